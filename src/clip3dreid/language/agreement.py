"""Compare labels with what is known of people."""

from __future__ import annotations

import numpy as np
import polars as pl

from clip3dreid.errors import InputError
from clip3dreid.language.labels import KEYS, check_unique, check_words, keys_of
from clip3dreid.language.vocabulary import Vocabulary


def agreement(table: pl.DataFrame, truth: pl.DataFrame, vocabulary: Vocabulary) -> pl.DataFrame:
    """Return how far labels agree with what is known, group by group.

    Args:
        table: of labels.
        truth: `data_set`, `person` (and `path`, if the labels have it), `group`, `word`, and perhaps `measure`: the
            quantity that the group's words ascend with.
        vocabulary: the words.

    Returns:
        A row a group, in their order: `group`; `units`, how many both tables know; `spearman`, for ordered groups,
        the rank correlation (-1..1) of the chosen word's place with the measure, or with the true word's place where
        no measure is given, and null where either is the same for all; `accuracy`; `majority`, the accuracy of always
        saying the commonest true word; `balanced_accuracy`, the mean recall of the true words that occur; `chance`,
        the balanced accuracy of guessing.

    Raises:
        InputError: if the two have nobody in common, or the truth knows a unit twice, or a word that is unknown.
    """
    keys = [column for column in (*KEYS["image"], "group") if column in table.columns]
    where = "the truth"
    check_words(truth, vocabulary, where)
    check_unique(truth, keys, where)
    measured = "measure" in truth.columns
    known = truth.select(
        *keys, "word", (pl.col("measure") if measured else pl.lit(None)).cast(pl.Float64).alias("measure")
    )
    both = table.select(*keys, "word").join(known, on=keys, suffix="_true").sort(keys)
    if both.is_empty():
        raise InputError("labels and truth have nobody in common; are they of the same data set?")
    from scipy.stats import spearmanr  # here: most labels are compared with nothing

    rows = []
    for group, words in vocabulary.groups.items():
        of_group = both.filter(pl.col("group") == group)
        if of_group.is_empty():
            continue
        chosen, true = (
            of_group[column].replace_strict(words, range(len(words)), return_dtype=pl.Int64).to_numpy()
            for column in ("word", "word_true")
        )
        measure = of_group["measure"].to_numpy() if not of_group["measure"].null_count() else true
        right = chosen == true
        occurring, counts = np.unique(true, return_counts=True)
        rank = None
        if group in vocabulary.ordered and np.ptp(chosen) > 0 and np.ptp(measure) > 0:
            rank = float(spearmanr(chosen, measure).statistic)
        rows.append(
            {
                "group": group,
                "units": len(of_group),
                "spearman": rank,
                "accuracy": float(right.mean()),
                "majority": float(counts.max() / len(of_group)),
                "balanced_accuracy": float(np.mean([right[true == word].mean() for word in occurring])),
                "chance": 1 / len(occurring),
            }
        )
    return pl.DataFrame(rows, schema_overrides={"spearman": pl.Float64})


def true_words(
    truth: pl.DataFrame, data_set: str, vocabulary: Vocabulary, level: str = "person"
) -> pl.DataFrame:
    """Return the words of a rendered world, as `agreement` takes them.

    Args:
        truth: of one split; `person`, `path`, `word_…` of each group and `measure_…`, a row a picture.
        data_set: its name.
        vocabulary: the words.
        level: `person` or `image`.

    Returns:
        `data_set`, `person` (and `path`), `group`, `word`, `measure`: a row a unit and group that the truth knows.

    Raises:
        InputError: if the level is unknown.
    """
    keys = list(keys_of(level))
    prefix = "measure_"
    measures = {
        name[len(prefix) :]: truth[name].to_numpy() for name in truth.columns if name.startswith(prefix)
    }
    values = vocabulary.columns(measures)
    parts = []
    for group, expressions in vocabulary.measures.items():
        if f"word_{group}" not in truth.columns:
            continue
        measure = values.get(expressions[0]) if group in vocabulary.ordered else None
        parts.append(
            truth.with_columns(data_set=pl.lit(data_set), group=pl.lit(group), word=pl.col(f"word_{group}"))
            .with_columns(
                pl.Series("measure", [None] * len(truth) if measure is None else measure, pl.Float64)
            )
            .select(*keys, "group", "word", "measure")
            .unique(keys, maintain_order=True)
        )
    return pl.concat(parts)
