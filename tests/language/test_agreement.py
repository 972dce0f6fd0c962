from typing import Any

import polars as pl
import pytest

from clip3dreid.errors import InputError
from clip3dreid.language.agreement import agreement, true_words
from tests.language.test_labels import VOCABULARY


def table_of(group: str, *words: str, **columns: Any) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "data_set": ["a"] * len(words),
            "person": [str(index) for index in range(len(words))],
            "group": [group] * len(words),
            "word": words,
            **columns,
        }
    )


def test_agreement_by_hand() -> None:
    truth = pl.concat(
        [
            table_of("stature", "short", "short", "medium height", "tall"),
            table_of("figure", "pear", "pear", "pear", "apple"),
        ]
    )
    said = pl.concat(
        [
            table_of("stature", "short", "medium height", "medium height", "tall"),
            table_of("figure", "pear", "pear", "apple", "pear"),
        ]
    )
    stature, figure = agreement(said, truth, VOCABULARY).rows(named=True)
    # Ranks less their mean: -1.5 0 0 1.5 and -1 -1 0.5 1.5; 1.5 + 2.25 = 3.75 of 4.5 and 4.5.
    assert stature["spearman"] == pytest.approx(3.75 / 4.5)
    assert stature["accuracy"] == 0.75
    assert stature["balanced_accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert stature["chance"] == pytest.approx(1 / 3)
    assert stature["majority"] == 0.5
    assert figure == {
        "group": "figure",
        "units": 4,
        "spearman": None,
        "accuracy": 0.5,
        "majority": 0.75,
        "balanced_accuracy": pytest.approx(1 / 3),
        "chance": 0.5,
    }


def test_agreement_ranks_by_the_measure_where_it_is_known() -> None:
    said = table_of("stature", "short", "medium height", "tall")
    truth = table_of("stature", "tall", "tall", "tall", measure=[1.5, 1.7, 1.9])
    found = agreement(said, truth, VOCABULARY).row(0, named=True)
    assert found["spearman"] == pytest.approx(1)
    assert found["accuracy"] == pytest.approx(1 / 3)


def test_agreement_has_no_rank_where_everybody_has_the_same_word() -> None:
    said = table_of("stature", "tall", "tall", "tall")
    truth = table_of("stature", "short", "medium height", "tall")
    assert agreement(said, truth, VOCABULARY)["spearman"].to_list() == [None]


def test_agreement_looks_at_those_whom_both_know() -> None:
    said = table_of("stature", "tall", "tall", "short")
    assert agreement(said, table_of("stature", "tall"), VOCABULARY)["units"].to_list() == [1]
    with pytest.raises(InputError, match="nobody in common"):
        agreement(said, table_of("stature", "tall").with_columns(data_set=pl.lit("b")), VOCABULARY)
    with pytest.raises(InputError, match="the truth: a/0 has more than one word of stature"):
        agreement(said, pl.concat([table_of("stature", "tall")] * 2), VOCABULARY)
    with pytest.raises(InputError, match="the truth: word 'giant'"):
        agreement(said, table_of("stature", "giant"), VOCABULARY)


def test_a_rendered_worlds_truth_becomes_words_of_people_with_their_measures() -> None:
    world = pl.DataFrame(
        {
            "person": ["1", "1", "2"],
            "path": ["x", "y", "z"],
            "word_stature": ["short", "short", "tall"],
            "word_figure": ["pear", "pear", "apple"],
            "word_shoes": ["boots", "boots", "boots"],
            "measure_stature": [1.5, 1.5, 1.9],
        }
    )
    people = true_words(world, "a", VOCABULARY)
    assert people.rows() == [
        ("a", "1", "stature", "short", 1.5),
        ("a", "2", "stature", "tall", 1.9),
        ("a", "1", "figure", "pear", None),
        ("a", "2", "figure", "apple", None),
    ]
    assert len(true_words(world, "a", VOCABULARY, "image")) == 6
    said = pl.concat(
        [table_of("stature", "tall", "tall", "short"), table_of("figure", "pear", "pear", "apple")]
    )
    assert agreement(said, people, VOCABULARY)["accuracy"].to_list() == [0, 1]
