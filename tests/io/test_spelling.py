import unicodedata

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from clip3dreid.io.spelling import alike, label, labels, merged

SPACE = st.sampled_from(["", " ", "\t", "\u00a0", "\ufeff", "  "])
TEXT = st.text(max_size=8)


@given(st.integers(0, 10**9), st.integers(0, 5), SPACE, SPACE, st.sampled_from(["", ".", ".0", ".00"]))
def test_a_number_has_one_spelling_whatever_stands_around_it(number, zeros, before, after, tail):
    assert label(before + "0" * zeros + str(number) + tail + after) == str(number)


@given(TEXT)
def test_spelling_twice_changes_nothing_more(text):
    assert label(label(text)) == label(text)


@given(st.text(st.characters(categories=["L", "P"]), max_size=8), SPACE, SPACE)
def test_of_words_only_the_space_around_them_goes(text, before, after):
    assert label(before + text + after) == unicodedata.normalize("NFC", text)


def test_signs_and_fractions_and_letters_keep_their_zeros():
    spelled = ["-1", "-08", "-0", "1.5", "c01", "01a", "٠١"]
    assert [label(text) for text in spelled] == ["-1", "-8", "0", "1.5", "c01", "01a", "٠١"]


@given(st.lists(st.none() | TEXT | st.integers(0, 99).map("{:03d}".format), max_size=20))
def test_a_column_is_spelled_as_its_values_are(values):
    column = pl.Series(values, dtype=pl.String)
    assert labels(column).to_list() == [None if v is None else label(v) or None for v in values]


def test_numbers_of_any_type_are_spelled_as_text_is():
    for column in (
        pl.Series([8, None]),
        pl.Series([8.0, None]),
        pl.Series([8.0, float("nan")]),
        pl.Series(["08", None]),
    ):
        assert labels(column).to_list() == ["8", None]


def test_spellings_that_become_one_are_told():
    (note,) = merged(pl.Series(["08", "8", "Ann ", "Ann", "Bob", None]), "person")
    assert note.startswith("2 person labels")
    assert "'08', '8' are '8'" in note
    assert "'Ann', 'Ann ' are 'Ann'" in note
    assert merged(pl.Series(["08", "9"]), "person") == []


def test_labels_that_differ_by_case_zeros_or_spaces_alone_are_told():
    (note,) = alike(["ann", "Ann", "p08", "p8", "a b", "ab", "x10", "x1"], "person")
    assert note.startswith("3 person labels differ")
    assert all(name in note for name in ("'Ann' and 'ann'", "'p08' and 'p8'", "'a b' and 'ab'"))
    assert "x1" not in note
    assert alike(["1", "10", "100", "c1_02", "c10_2"], "person") == []


@given(st.lists(st.integers(0, 10**6).map(str), unique=True, max_size=30))
def test_numbers_are_never_alike(values):
    assert alike(values, "person") == []
