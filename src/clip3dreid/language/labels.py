"""Labels: from a teacher's scores to the words of each person, in a file that people can read and edit."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from clip3dreid.errors import InputError
from clip3dreid.io import checks
from clip3dreid.io.files import atomic, write_json
from clip3dreid.io.formats import decoding, read_json, read_table, seal, unseal, write_table
from clip3dreid.io.spelling import labels as spelled
from clip3dreid.io.table_files import read_table as read_user_table
from clip3dreid.language.vocabulary import Vocabulary

log = logging.getLogger(__name__)

Scores = npt.NDArray[np.floating[Any]]

SCHEMA_VERSION = 1

CALIBRATIONS = ("zscore", "none")
KEYS = {"person": ("data_set", "person"), "image": ("data_set", "person", "path")}
"""Level -> the columns that tell its units apart."""
SCHEMA: dict[str, type[pl.DataType]] = {
    "data_set": pl.String,
    "person": pl.String,
    "path": pl.String,  # of labels of single pictures only
    "group": pl.String,
    "word": pl.String,
    "score": pl.Float32,  # mean calibrated score of the word; null where a person chose it
    "margin": pl.Float32,  # over the second word of the group, 0 or more; null as well
}
_AGAIN = "label the pictures again"
_KIND = "labels of this project"
_FACTS = "clip3dreid_labels"


@dataclasses.dataclass(frozen=True)
class WordLabels:
    """The words of people (or of pictures), and where they come from.

    Attributes:
        table: a row a unit and group, columns as in `SCHEMA`, sorted by unit and group.
        teacher: name of the model that scored the words.
        fingerprint: of its weights.
        vocabulary: `Vocabulary.digest` of the words it scored.
        calibration: `zscore` or `none`.
        level: `person` or `image`: whose words these are.
        data_sets: names, sorted.
        pictures: how many were scored.
    """

    table: pl.DataFrame
    teacher: str
    fingerprint: str
    vocabulary: str
    calibration: str
    level: str
    data_sets: tuple[str, ...]
    pictures: int

    @property
    def facts(self) -> dict[str, Any]:
        """Return all but the table, as plain values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["table"]
        return {"version": SCHEMA_VERSION, **values, "data_sets": list(self.data_sets)}


def aggregate(
    scores: Scores, table: pl.DataFrame, *, calibration: str = "zscore", level: str = "person"
) -> tuple[pl.DataFrame, npt.NDArray[np.float32]]:
    """Calibrate the scores of pictures and averages them over each person.

    CLIP favours some words whatever a picture shows; `zscore` takes each word's mean over all pictures away and
    divides by its standard deviation. A person's score is the mean over outfits of the mean over the outfit's
    pictures, so that an outfit seen often counts no more than another; a person's pictures without a clothes label
    are one outfit.

    Args:
        scores: (N, W) similarity of each picture with each word. A row that is not finite is a picture that could not
            be used, and is left out.
        table: N rows with `data_set`, `person`, `path` and, nullable, `clothes`.
        calibration: `zscore` or `none`.
        level: `person`, or `image` for each picture by itself.

    Returns:
        The U units, sorted: `data_set`, `person`, at level `image` also `path`, and how many `pictures` were used;
        and their (U, W) scores. Neither depends on the order of the pictures.

    Raises:
        InputError: if a setting is unknown, there are no pictures, or people have no picture that could be used.
    """
    checks.choose("calibration", calibration, CALIBRATIONS)
    keys = list(keys_of(level))
    if scores.ndim != 2 or len(scores) != len(table):
        raise ValueError(f"scores of shape {scores.shape} do not fit {len(table)} pictures")
    if table.is_empty():
        raise InputError("there are no training pictures to label; check data.root")
    # In one order, so that sums of floating-point numbers are the same whatever order the pictures came in.
    order = table.select(pl.arg_sort_by("data_set", "person", "clothes", "path")).to_series()
    table = table[order].with_columns(pl.col("clothes").cast(pl.String))
    values = np.asarray(scores, np.float64)[order.to_numpy()]
    usable = np.isfinite(values).all(1)
    if not usable.all():
        kept = table.filter(usable)
        lost = table.join(kept, on=["data_set", "person"], how="anti").select("data_set", "person").unique()
        if not lost.is_empty():
            raise InputError(f"no usable picture of {_names(lost)}; remove or repair the pictures")
        log.warning("%d of %d pictures could not be used", len(table) - len(kept), len(table))
        table, values = kept, values[usable]
    if calibration == "zscore":
        values = _zscore(values)
    if level == "image":
        units, means = table.select(*keys, pictures=pl.lit(1, pl.Int64)), values
    else:
        outfits, per_outfit = _means(
            table.with_columns(pictures=pl.lit(1, pl.Int64)), values, [*keys, "clothes"]
        )
        units, means = _means(outfits, per_outfit, keys)
    order = units.select(pl.arg_sort_by(keys)).to_series()
    return units[order], means[order.to_numpy()].astype(np.float32)


def choose(units: pl.DataFrame, scores: Scores, vocabulary: Vocabulary) -> pl.DataFrame:
    """Return the word of each group that scores highest.

    Args:
        units: U rows of `aggregate`.
        scores: (U, W), words as in `vocabulary.flat`.
        vocabulary: the words.

    Returns:
        U x G rows, columns as in `SCHEMA` (`path` if the units have it). `margin` is the lead over the second word of
        the group, 0 or more; of words that score the same, the first of the group is chosen.
    """
    words = vocabulary.flat
    if scores.shape != (len(units), len(words)):
        raise ValueError(
            f"scores of shape {scores.shape} do not fit {len(units)} units and {len(words)} words"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores of units must be finite")
    count = len(units)
    keys = [column for column in KEYS["image"] if column in units.columns]
    parts, start = [], 0
    for place, (group, names) in enumerate(vocabulary.groups.items()):
        own = scores[:, start : start + len(names)]
        start += len(names)
        best = own.argmax(1)
        first, second = np.sort(own, 1)[:, [-1, -2]].T
        parts.append(
            units.select(keys).with_columns(
                pl.lit(group).alias("group"),
                pl.Series("word", [names[index] for index in best], pl.String),
                pl.Series("score", first.astype(np.float32)),
                pl.Series("margin", (first - second).astype(np.float32)),
                unit=pl.int_range(count),
                place=pl.lit(place),
            )
        )
    return pl.concat(parts).sort("unit", "place").drop("unit", "place")


def save(labels: WordLabels, path: Path) -> None:
    """Write labels atomically: as Parquet, or, for editing, as CSV with the facts in a `.json` beside it.

    Raises:
        InputError: if the suffix is neither, or the place cannot be written.
    """
    if _suffix(path) == ".parquet":
        write_table(path, labels.table, {_FACTS: json.dumps(labels.facts)})
        return
    with atomic(path) as temporary:
        labels.table.write_csv(temporary)
    # What is sealed is not meant to be edited, as the table is.
    write_json(path.with_suffix(".json"), seal(labels.facts))


def is_labels(path: Path) -> bool:
    """Return whether a file is one that `save` wrote, as far as can be told of a table that somebody edits."""
    try:
        with decoding(path, _KIND, ""):
            if _suffix(path) == ".parquet":
                return _FACTS in pl.read_parquet_metadata(path)
            return {"data_set", "person", "group", "word"} <= set(
                pl.read_csv(path, n_rows=0, glob=False).columns
            )
    except InputError:
        return False


def load(path: Path, vocabulary: Vocabulary) -> WordLabels:
    """Read labels that `save` wrote and perhaps somebody edited.

    Words may be changed for others of their group, `score` and `margin` emptied, rows put in another order, and all
    rows of a person removed.

    Args:
        path: the Parquet or CSV file.
        vocabulary: the words that are known now; a note goes to the log if they are not those that were scored.

    Raises:
        InputError: naming file and place, if it is no file of labels, is damaged, has another schema version, an
            unknown group or word, a group of a person twice or not at all, or a score that is no number.
    """
    table, facts = _read_parquet(path) if _suffix(path) == ".parquet" else _read_csv(path)
    version = facts.get("version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has labels of version {version}, this program reads {SCHEMA_VERSION}; {_AGAIN}"
        )
    if "person" in table.columns:
        table = table.with_columns(spelled(table["person"]))
    # A spreadsheet that writes semicolons writes decimal commas too.
    numbers = [name for name in ("score", "margin") if table.schema.get(name) == pl.String]
    table = table.with_columns(pl.col(numbers).str.replace(",", ".", literal=True))
    kinds = {"teacher": str, "fingerprint": str, "vocabulary": str, "calibration": str, "level": str}
    for key, kind in (kinds | {"data_sets": list, "pictures": int}).items():
        if not isinstance(facts.get(key), kind):
            raise InputError(f"{path} does not tell its {key}; {_AGAIN}")
    labels = WordLabels(
        table=_checked(table, facts["level"], vocabulary, str(path)),
        **{key: facts[key] for key in kinds},
        data_sets=tuple(map(str, facts["data_sets"])),
        pictures=facts["pictures"],
    )
    if labels.vocabulary != vocabulary.digest:
        log.warning("%s was made with another vocabulary; its words are all known still", path)
    return labels


def _read_parquet(path: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    table, metadata = read_table(path, _KIND, _AGAIN)
    with decoding(path, _KIND, _AGAIN):
        facts = json.loads(metadata[_FACTS])
        if not isinstance(facts, dict):
            raise TypeError(f"{_FACTS} is no object")
    return table, facts


def _read_csv(path: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    beside = path.with_suffix(".json")
    if path.exists() and not beside.exists():
        raise InputError(
            f"labels {path}: {beside.name}, which belongs beside it, is missing; give both or {_AGAIN}"
        )
    table = read_user_table(path, f"labels {path}", advice=_AGAIN)
    facts = read_json(beside, _KIND, _AGAIN)
    # Another version's may be sealed otherwise; it is refused as what it is.
    return table, unseal(facts, beside, _AGAIN) if facts.get("version") == SCHEMA_VERSION else facts


def tokens(
    labels: WordLabels, names: Sequence[str], vocabulary: Vocabulary
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the words of people as numbers, and how sure they are.

    Args:
        labels: of at least these people.
        names: P people, `data_set/person`; for labels of level `image` P pictures, `data_set/path`.
        vocabulary: the words, G groups of them.

    Returns:
        (P, G) index into `vocabulary.flat`, and (P, G) margins, 1 where a person chose the word.

    Raises:
        InputError: naming some of those that have no labels.
    """
    last = KEYS[labels.level][-1]
    numbers = {word: index for index, word in enumerate(vocabulary.flat)}
    tokens_of: dict[str, list[tuple[int, float]]] = {}
    groups = list(vocabulary.groups)
    table = labels.table.select("data_set", last, "group", "word", pl.col("margin").fill_null(1.0)).sort(
        "data_set", last, pl.col("group").replace_strict(groups, range(len(groups)))
    )
    for data_set, name, group, word, margin in table.iter_rows():
        tokens_of.setdefault(f"{data_set}/{name}", []).append((numbers[group, word], margin))
    if missing := [name for name in dict.fromkeys(names) if name not in tokens_of]:
        what = "people" if labels.level == "person" else "pictures"
        raise InputError(
            f"{len(missing)} of {len(set(names))} training {what} have no labels: {checks.some(missing, 3)}; "
            "label this training set"
        )
    both = np.array([tokens_of[name] for name in names]).reshape(-1, len(groups), 2)
    return both[..., 0].astype(np.int64), both[..., 1].astype(np.float32)


def keys_of(level: str) -> tuple[str, ...]:
    """Return the columns that tell a level's units apart.

    Raises:
        InputError: if the level is unknown.
    """
    checks.choose("level", level, KEYS)
    return KEYS[level]


def _zscore(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return each column with mean 0 and standard deviation 1; zeros where it is the same for all."""
    # The deviation of a constant column is rounding noise, not 0.
    constant = values.max(0) == values.min(0)
    deviation = np.where(constant, 1.0, values.std(0))
    return np.where(constant, 0.0, (values - values.mean(0)) / deviation)


def _means(
    table: pl.DataFrame, values: npt.NDArray[np.float64], keys: list[str]
) -> tuple[pl.DataFrame, npt.NDArray[np.float64]]:
    """Return means of rows that are alike in `keys`, by which the table is sorted, and their `pictures` added up."""
    runs = table.select(pl.struct(keys).rle_id()).to_series().to_numpy()
    starts = np.flatnonzero(np.diff(runs, prepend=-1))
    units = table.group_by(keys, maintain_order=True).agg(pl.col("pictures").sum())
    means = np.add.reduceat(values, starts, axis=0) / np.diff(starts, append=len(table))[:, None]
    return units, means


def _suffix(path: Path) -> str:
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"labels {path}: the name must end in .parquet or .csv")
    return path.suffix


def _checked(table: pl.DataFrame, level: str, vocabulary: Vocabulary, where: str) -> pl.DataFrame:
    """Return a table of labels that can be trusted, in canonical order, its columns as in `SCHEMA`."""
    keys = keys_of(level)
    columns = [column for column in SCHEMA if column != "path" or column in keys]
    for column in table.columns:
        if column not in columns:
            raise InputError(
                f"{where}: column {column[:80]} is unknown{checks.hint(column, columns)}; remove it"
            )
    for column in (*keys, "group", "word"):
        if column not in table.columns:
            raise InputError(
                f"{where} has no column {column}; its columns, between commas, are {', '.join(columns)}"
            )
    texts = [pl.col(column).cast(pl.String).str.strip_chars() for column in (*keys, "group", "word")]
    numbers = [column for column in ("score", "margin") if column in table.columns]
    table = table.with_columns(texts)
    for column in (*keys, "group", "word"):
        empty = table[column].is_null() | (table[column] == "")
        if empty.any():
            raise InputError(f"{where}: row {int(empty.arg_max() or 0) + 1} has no {column}; fill it in")
    if table.is_empty():
        raise InputError(f"{where} has no rows; {_AGAIN}")
    for column in numbers:
        cast = table[column].cast(pl.Float32, strict=False)
        wrong = (cast.is_null() & table[column].is_not_null()) | ~cast.is_finite().fill_null(True)
        if column == "margin":
            wrong |= (cast < 0).fill_null(False)
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            raise InputError(
                f"{where}: {column} {_shown(table[column][row])} of {_unit(table, keys, row)} is not possible; "
                "correct or empty it"
            )
        table = table.with_columns(cast)
    missing = [pl.lit(None).alias(column) for column in columns if column not in table.columns]
    table = table.with_columns(missing).select(pl.col(c).cast(SCHEMA[c]) for c in columns)
    check_words(table, vocabulary, where)
    check_unique(table, [*keys, "group"], where)
    groups = list(vocabulary.groups)
    counts = table.group_by(keys).agg(pl.col("group")).sort(keys)
    partial = counts.filter(pl.col("group").list.len() < len(groups))
    if not partial.is_empty():
        absent = [group for group in groups if group not in partial["group"][0].to_list()]
        raise InputError(f"{where}: {_unit(partial, keys, 0)} has no word of {', '.join(absent)}; add it")
    return table.sort(*keys, pl.col("group").replace_strict(groups, range(len(groups))))


def check_words(table: pl.DataFrame, vocabulary: Vocabulary, where: str) -> None:
    """Raise InputError, with the place, if a group or word of the table is not in the vocabulary."""
    owner = {word: group for group, word in vocabulary.flat}
    for group, word in table.select("group", "word").unique(maintain_order=True).iter_rows():
        if group not in vocabulary.groups:
            near = checks.hint(group, vocabulary.groups)
            raise InputError(f"{where}: group {_shown(group)} is not in the vocabulary{near}; correct it")
        if word in vocabulary.groups[group]:
            continue
        if word in owner:
            raise InputError(
                f"{where}: {_shown(word)} is a word of {owner[word]}, not of {group}; correct it"
            )
        near = checks.hint(word, vocabulary.groups[group])
        raise InputError(f"{where}: word {_shown(word)} is not in group {group}{near}; correct it")


def check_unique(table: pl.DataFrame, keys: list[str], where: str) -> None:
    """Raise InputError, with the place, if a unit has more than one row for a group."""
    twice = table.filter(pl.struct(keys).is_duplicated())
    if not twice.is_empty():
        raise InputError(
            f"{where}: {_unit(twice, keys[:-1], 0)} has more than one word of {twice['group'][0]}; keep one"
        )


def _unit(table: pl.DataFrame, keys: Sequence[str], row: int) -> str:
    """Return `data_set/person`, or `data_set/path` of a picture."""
    return f"{table['data_set'][row]}/{table[keys[-1]][row]}"[:200]


def _shown(value: object) -> str:
    """Return a cell in a message: short, and on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _names(people: pl.DataFrame) -> str:
    names = people.select(pl.concat_str("data_set", "person", separator="/")).to_series().sort()
    return checks.some(names.to_list(), 3)
