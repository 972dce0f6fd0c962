import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip3dreid.errors import InputError
from clip3dreid.io.formats import CHECKSUM, seal
from clip3dreid.language.labels import (
    WordLabels,
    aggregate,
    choose,
    load,
    save,
    tokens,
)
from clip3dreid.language.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    {
        "stature": {"measure": "stature", "words": ["short", "medium height", "tall"], "cuts": [33, 67]},
        "figure": {"prototypes": {"pear": {"hip": 80}, "apple": {"hip": 20}}},
    }
)
Floats = npt.NDArray[np.floating[Any]]


def pictures(*rows: tuple[str, str, str | None]) -> pl.DataFrame:
    """Rows of (data set, person, clothes)."""
    names = ["data_set", "person", "clothes"]
    table = pl.DataFrame(list(rows), schema=dict.fromkeys(names, pl.String), orient="row")
    return table.with_columns(path=pl.format("{}.png", pl.int_range(len(rows))))


def column(*values: float) -> Floats:
    return np.array(values, np.float32)[:, None]


def units(table: pl.DataFrame) -> list[tuple[Any, ...]]:
    return table.rows()


# Calibration and means.


def test_zscores_take_a_words_mean_and_deviation_over_all_pictures_away() -> None:
    table = pictures(("a", "1", "x"), ("a", "2", "y"), ("a", "3", "z"), ("a", "4", "w"))
    # Mean 5, deviations -3 -1 1 3, variance (9 + 1 + 1 + 9) / 4 = 5.
    found, means = aggregate(column(2, 4, 6, 8), table)
    assert units(found) == [("a", name, 1) for name in "1234"]
    assert means.dtype == np.float32
    np.testing.assert_allclose(means[:, 0], np.array([-3, -1, 1, 3]) / 5**0.5, rtol=1e-6)


def test_a_word_that_scores_the_same_everywhere_becomes_zeros() -> None:
    table = pictures(("a", "1", "x"), ("a", "2", "y"), ("a", "3", "z"))
    # 0.1 three times has a mean that is not 0.1, to the last digit.
    _, means = aggregate(column(0.1, 0.1, 0.1).astype(np.float64), table)
    assert means.tolist() == [[0], [0], [0]]


def test_an_outfit_seen_often_counts_no_more_than_another() -> None:
    table = pictures(*[("a", "1", "often")] * 3, ("a", "1", "seldom"), ("a", "2", "other"))
    found, means = aggregate(column(1, 2, 3, 10, 4), table, calibration="none")
    assert units(found) == [("a", "1", 4), ("a", "2", 1)]
    assert means[:, 0].tolist() == [6, 4]  # (2 + 10) / 2, not 16 / 4


def test_pictures_without_clothes_label_are_one_outfit_of_their_person() -> None:
    table = pictures(("a", "1", None), ("a", "1", None), ("a", "1", "x"), ("a", "2", None), ("b", "1", None))
    found, means = aggregate(column(1, 3, 10, 20, 40), table, calibration="none")
    assert units(found) == [("a", "1", 3), ("a", "2", 1), ("b", "1", 1)]
    assert means[:, 0].tolist() == [6, 20, 40]


def test_at_level_image_every_picture_keeps_its_own_scores() -> None:
    table = pictures(("a", "2", "x"), ("a", "1", "y"), ("a", "1", "y"))
    found, means = aggregate(column(1, 2, 3), table, calibration="none", level="image")
    assert units(found) == [("a", "1", "1.png", 1), ("a", "1", "2.png", 1), ("a", "2", "0.png", 1)]
    assert means[:, 0].tolist() == [2, 3, 1]


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_the_order_of_pictures_changes_nothing(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 20))
    names = st.tuples(st.sampled_from("ab"), st.sampled_from("123"), st.sampled_from(["x", "y", None]))
    table = pictures(*[data.draw(names) for _ in range(count)])
    scores = np.random.default_rng(count).normal(size=(count, 5)).astype(np.float32)
    order = data.draw(st.permutations(range(count)))
    level = data.draw(st.sampled_from(["person", "image"]))
    expected, means = aggregate(scores, table, level=level)
    found, shuffled = aggregate(scores[order], table[order], level=level)
    assert found.equals(expected)
    assert shuffled.tobytes() == means.tobytes()


def test_the_means_agree_with_plain_loops() -> None:
    random = np.random.default_rng(5)
    rows = [(str(random.choice(["a", "b"])), str(random.integers(6)), None) for _ in range(60)]
    clothes = [None if number == 0 else str(number) for number in random.integers(0, 3, 60)]
    table = pictures(*rows).with_columns(clothes=pl.Series(clothes, dtype=pl.String))
    scores = random.normal(size=(60, 4))
    found, means = aggregate(scores, table, calibration="none")
    for (data_set, person, count), mean in zip(found.iter_rows(), means, strict=True):
        own = [i for i in range(60) if rows[i][:2] == (data_set, person)]
        outfits = [
            scores[[i for i in own if clothes[i] == outfit]].mean(0) for outfit in {clothes[i] for i in own}
        ]
        assert count == len(own)
        np.testing.assert_allclose(mean, np.mean(outfits, 0), rtol=1e-5)


def test_pictures_that_could_not_be_scored_are_left_out() -> None:
    table = pictures(("a", "1", "x"), ("a", "1", "y"), ("a", "2", "z"))
    found, means = aggregate(column(1, float("nan"), 3), table, calibration="none")
    assert units(found) == [("a", "1", 1), ("a", "2", 1)]
    assert means[:, 0].tolist() == [1, 3]


def test_people_without_a_usable_picture_are_named() -> None:
    table = pictures(("a", "1", "x"), ("a", "1", "y"), *[("b", str(name), "z") for name in range(1, 6)])
    nan = float("nan")
    with pytest.raises(InputError, match=r"no usable picture of b/1, b/2, b/3 and 1 more;"):
        aggregate(column(1, nan, nan, nan, nan, nan, 1), table)
    with pytest.raises(InputError, match="no training pictures to label"):
        aggregate(np.zeros((0, 1)), table.clear())


def test_unknown_settings_and_scores_of_other_pictures_are_refused() -> None:
    table = pictures(("a", "1", "x"))
    with pytest.raises(InputError, match="calibration=zscores is unknown; choose zscore or none"):
        aggregate(column(1), table, calibration="zscores")
    with pytest.raises(InputError, match="level=people is unknown; choose person or image"):
        aggregate(column(1), table, level="people")
    with pytest.raises(ValueError, match="shape"):
        aggregate(column(1, 2), table)


# The choice.


def chosen(*scores: list[float]) -> pl.DataFrame:
    table = pictures(*[("a", str(1 + index), None) for index in range(len(scores))])
    return choose(table.select("data_set", "person"), np.array(scores, np.float32), VOCABULARY)


def test_the_word_with_the_highest_score_is_chosen_and_the_lead_kept() -> None:
    table = chosen([0.5, -1, 0.25, 1, 3], [0, 0, 2, 5, -5])
    assert table.columns == ["data_set", "person", "group", "word", "score", "margin"]
    assert table.rows() == [
        ("a", "1", "stature", "short", 0.5, 0.25),
        ("a", "1", "figure", "apple", 3, 2),
        ("a", "2", "stature", "tall", 2, 2),
        ("a", "2", "figure", "pear", 5, 10),
    ]


def test_of_words_that_score_the_same_the_first_is_chosen() -> None:
    table = chosen([0, 1, 1, 2, 2])
    assert table["word"].to_list() == ["medium height", "pear"]
    assert table["margin"].to_list() == [0, 0]


def test_scores_that_do_not_fit_the_vocabulary_are_a_defect() -> None:
    with pytest.raises(ValueError, match="do not fit 1 units and 5 words"):
        chosen([0, 1, 1, 2])
    with pytest.raises(ValueError, match="finite"):
        chosen([0, 1, float("nan"), 2, 2])


# The file.


def labels(level: str = "person") -> WordLabels:
    table = pictures(("a", "7", "x"), ("a", "12", "y"), ("b", "7", None), ("a", "7", "x"))
    scores = np.random.default_rng(3).normal(size=(4, 5))
    found, means = aggregate(scores, table, level=level)
    facts = {"teacher": "clip", "fingerprint": "12ab", "vocabulary": VOCABULARY.digest}
    return WordLabels(
        table=choose(found, means, VOCABULARY),
        calibration="zscore",
        level=level,
        data_sets=("a", "b"),
        pictures=4,
        **facts,
    )


@pytest.mark.parametrize("level", ["person", "image"])
@pytest.mark.parametrize("name", ["labels.parquet", "labels.csv"])
def test_labels_come_back_as_they_were_written(name: str, level: str, tmp_path: Path) -> None:
    written = labels(level)
    save(written, tmp_path / "new" / name)
    read = load(tmp_path / "new" / name, VOCABULARY)
    assert read.table.equals(written.table)
    assert read.facts == written.facts


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    save(labels(), path)
    return path


def edit(path: Path, change: Callable[[list[str]], Any]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_an_edited_word_counts_and_needs_no_score(csv: Path) -> None:
    edit(csv, lambda lines: lines.__setitem__(1, "a,12,stature, tall ,,"))
    row = load(csv, VOCABULARY).table.row(0, named=True)
    assert (row["person"], row["word"], row["score"], row["margin"]) == ("12", "tall", None, None)


def test_a_spreadsheets_habits_change_nothing(csv: Path) -> None:
    expected = load(csv, VOCABULARY).table
    lines = csv.read_text(encoding="utf-8").splitlines()
    # A byte order mark, Windows line ends, rows in another order.
    csv.write_text("\ufeff" + "\r\n".join([lines[0], *reversed(lines[1:])]) + "\r\n", encoding="utf-8")
    assert load(csv, VOCABULARY).table.equals(expected)


def test_semicolons_decimal_commas_zeros_and_space_change_nothing_either(csv: Path) -> None:
    expected = load(csv, VOCABULARY).table
    lines = [line.split(",") for line in csv.read_text(encoding="utf-8").splitlines()]
    for cells in lines[1:]:
        cells[1] = f" 00{cells[1]}"
        cells[4:] = [cell.replace(".", ",") for cell in cells[4:]]
    csv.write_text("\n".join(";".join(cells) for cells in lines) + "\n\n", encoding="utf-16")
    assert load(csv, VOCABULARY).table.equals(expected)


def test_a_table_without_scores_is_enough(csv: Path) -> None:
    pl.read_csv(csv, infer_schema=False).drop("score", "margin").write_csv(csv)
    table = load(csv, VOCABULARY).table
    assert table["score"].null_count() == len(table) == 6


def test_all_rows_of_a_person_may_be_removed(csv: Path) -> None:
    edit(csv, lambda lines: lines.__delitem__(slice(1, 3)))
    assert load(csv, VOCABULARY).table["person"].unique().to_list() == ["7"]


def test_another_vocabulary_with_the_same_words_is_noticed(
    csv: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(csv, VOCABULARY)
    assert not caplog.text
    overwrite(csv, vocabulary="other")
    load(csv, VOCABULARY)
    assert "another vocabulary" in caplog.text


def replace(old: str, new: str) -> Callable[[list[str]], Any]:
    """Replaces in the first line below the header that has it."""

    def change(lines: list[str]) -> None:
        index = next(i for i, line in enumerate(lines) if i > 0 and old in line)
        lines[index] = lines[index].replace(old, new)

    return change


def row(line: str) -> Callable[[list[str]], Any]:
    return lambda lines: lines.__setitem__(1, line)


EDITS: dict[str, tuple[str, Callable[[list[str]], Any]]] = {
    "a mistyped group": (
        "group 'statur' is not in the vocabulary; did you mean stature",
        replace("stature", "statur"),
    ),
    "a mistyped word": (
        "word 'tal' is not in group stature; did you mean tall",
        row("a,12,stature,tal,,"),
    ),
    "an unknown word": ("word 'lanky' is not in group stature; correct it", row("a,12,stature,lanky,,")),
    "a word of another group": ("'pear' is a word of figure, not of stature", row("a,12,stature,pear,,")),
    "a group twice": (
        "a/12 has more than one word of stature",
        lambda lines: lines.append("a,12,stature,tall,,"),
    ),
    "a missing group": ("a/12 has no word of figure", lambda lines: lines.__delitem__(2)),
    "an empty word": ("row 1 has no word", row("a,12,stature,,,")),
    "an empty person": ("row 1 has no person", row("a,,stature,tall,,")),
    "a score that is no number": ("score 'high' of a/12 is not possible", row("a,12,stature,tall,high,")),
    "a margin below nothing": ("margin '-1' of a/12 is not possible", row("a,12,stature,tall,0.1,-1")),
    "an endless score": ("score 'inf' of a/12 is not possible", row("a,12,stature,tall,inf,1")),
    "an unknown column": (
        "column scoer is unknown; did you mean score",
        lambda lines: lines.__setitem__(0, lines[0].replace("score", "scoer")),
    ),
    "a missing column": (
        "has no column word",
        lambda lines: lines.__setitem__(slice(None), [",".join(x.split(",")[:3]) for x in lines]),
    ),
    "no rows": ("and no rows; label the pictures again", lambda lines: lines.__delitem__(slice(1, None))),
}


@pytest.mark.parametrize("fault", EDITS)
def test_a_faulty_edit_is_refused_in_one_line_that_says_where(fault: str, csv: Path) -> None:
    message, change = EDITS[fault]
    edit(csv, change)
    with pytest.raises(InputError) as caught:
        load(csv, VOCABULARY)
    assert message in str(caught.value)
    assert str(csv) in str(caught.value)
    assert "\n" not in str(caught.value)


def overwrite(path: Path, **facts: Any) -> None:
    """Writes other facts, as a program would: with their checksum."""
    beside = path.with_suffix(".json")
    content = {key: value for key, value in json.loads(beside.read_text()).items() if key != CHECKSUM}
    beside.write_text(json.dumps(seal(content | facts)))


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "another version": ("labels of version 2, this program reads 1", lambda path: overwrite(path, version=2)),
    "another level": ("level=people is unknown", lambda path: overwrite(path, level="people")),
    "no facts": (
        "labels.json, which belongs beside it, is missing",
        lambda path: path.with_suffix(".json").unlink(),
    ),
    "other facts": ("labels of version None", lambda path: path.with_suffix(".json").write_text("{}")),
    "a list of facts": (
        "cannot be read as labels of this project",
        lambda path: path.with_suffix(".json").write_text("[]"),
    ),
    "a fact too few": (
        "does not tell its teacher",
        lambda path: path.with_suffix(".json").write_text('{"version": 1, "level": "person"}'),
    ),
    "no file": ("labels.csv cannot be read as csv (No such file", lambda path: path.unlink()),
    "no text": ("line 1 is no UTF-8 text", lambda path: path.write_bytes(b"a\xff\n\xfe")),
    "an empty file": ("labels.csv is empty; label the pictures again", lambda path: path.write_bytes(b"")),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_no_file_of_labels_is_refused_in_one_line(fault: str, csv: Path) -> None:
    message, change = FILES[fault]
    change(csv)
    with pytest.raises(InputError) as caught:
        load(csv, VOCABULARY)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_parquet_files_and_suffixes_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"word": ["tall"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="cannot be read as labels of this project"):
        load(tmp_path / "other.parquet", VOCABULARY)
    for use in (lambda path: save(labels(), path), lambda path: load(path, VOCABULARY)):
        with pytest.raises(InputError, match=r"labels\.txt: the name must end in \.parquet or \.csv"):
            use(tmp_path / "labels.txt")


def test_tokens_point_into_the_flat_list_for_people_in_the_order_asked_for() -> None:
    own = labels()
    names = ["b/7", "a/12", "a/7", "b/7"]
    chosen, margin = tokens(own, names, VOCABULARY)
    assert chosen.shape == margin.shape == (4, 2)
    assert (chosen.dtype, margin.dtype) == (np.int64, np.float32)
    rows = {(row["data_set"], row["person"], row["group"]): row for row in own.table.iter_rows(named=True)}
    flat = VOCABULARY.flat
    for name, numbers, leads in zip(names, chosen, margin, strict=True):
        data_set, person = name.split("/")
        expected = [rows[data_set, person, group] for group in VOCABULARY.groups]
        assert [flat[number] for number in numbers] == [(row["group"], row["word"]) for row in expected]
        np.testing.assert_allclose(leads, [row["margin"] for row in expected], rtol=1e-6)


def test_tokens_that_a_person_chose_are_as_sure_as_one() -> None:
    own = labels()
    written = own.table.with_columns(
        margin=pl.when((pl.col("person") == "12") & (pl.col("group") == "figure"))
        .then(None)
        .otherwise("margin")
    )
    plain, edited = (
        tokens(dataclasses.replace(own, table=table), ["a/7", "a/12"], VOCABULARY)
        for table in (own.table, written)
    )
    assert np.array_equal(plain[0], edited[0])
    assert edited[1][1].tolist() == [plain[1][1, 0], 1.0]
    assert edited[1][0].tolist() == plain[1][0].tolist()


def test_tokens_do_not_depend_on_the_order_of_the_table() -> None:
    own = labels()
    turned = dataclasses.replace(own, table=own.table.reverse())
    for one, other in zip(
        tokens(own, ["a/7", "b/7"], VOCABULARY), tokens(turned, ["a/7", "b/7"], VOCABULARY), strict=True
    ):
        assert np.array_equal(one, other)


def test_tokens_of_pictures_are_found_by_their_path() -> None:
    own = labels("image")
    chosen, margin = tokens(own, ["a/3.png", "b/2.png"], VOCABULARY)
    for row, name in enumerate(["3.png", "2.png"]):
        found = own.table.filter(pl.col("path") == name)
        assert [VOCABULARY.flat[number][1] for number in chosen[row]] == found["word"].to_list()
        np.testing.assert_allclose(margin[row], found["margin"], rtol=1e-6)


def test_people_without_labels_are_named_and_counted() -> None:
    with pytest.raises(InputError, match="2 of 3 training people have no labels: a/8, c/7; label this"):
        tokens(labels(), ["a/7", "a/8", "c/7", "a/8"], VOCABULARY)
