import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from PIL import Image

from clip3dreid.errors import InputError
from clip3dreid.report import label_figures
from clip3dreid.report.label_figures import draw_scores, draw_sheet, draw_words
from clip3dreid.report.label_page import certainty, write_page
from tests.processes import PATIENCE_S

GROUPS = {"stature": ["short", "medium height", "tall"], "leg_length": ["short legs", "long legs"]}
FACTS = {"teacher": "clip", "calibration": "zscore", "data_sets": ["a", "b"], "pictures": 12}


def made_up(count: int, **columns: Any) -> tuple[pl.DataFrame, pl.DataFrame, npt.NDArray[np.float32]]:
    """Labels, units and scores of people 0, 1 ... of data set a; each less certain than the one before."""
    units = pl.DataFrame({"data_set": ["a"] * count, "person": [str(i) for i in range(count)], **columns})
    scores = np.zeros((count, 5), np.float32)
    rows = []
    for i in range(count):
        for group, place in (("stature", i % 3), ("leg_length", 3 + i % 2)):
            word = [word for words in GROUPS.values() for word in words][place]
            scores[i, place] = margin = 1 + count - i
            rows.append(
                units.row(i, named=True) | {"group": group, "word": word, "score": margin, "margin": margin}
            )
    return pl.DataFrame(rows, schema_overrides={"score": pl.Float32, "margin": pl.Float32}), units, scores


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, list[Path]]:
    """Two pictures of each of twelve people, after one that is damaged and one that is not there."""
    (tmp_path / "bad.png").write_bytes(b"no picture")
    found: dict[str, list[Path]] = {}
    for person in range(12):
        paths = [tmp_path / f"{person}_{index}.png" for index in range(2)]
        for path in paths:
            Image.new("RGB", (30, 60), (250, 0, 0)).save(path)
        found[f"a/{person}"] = [tmp_path / "bad.png", tmp_path / "none.png", *paths]
    return found


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def red(path: Path) -> int:
    """Red pixels."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), int)
    return int(((pixels[..., 0] > 200) & (pixels[..., 1:].max(-1) < 60)).sum())


def test_the_page_has_settings_figures_and_every_person(
    tmp_path: Path, pictures: dict[str, list[Path]]
) -> None:
    table, units, scores = made_up(12)
    out = tmp_path / "new" / "page"
    agreement = pl.DataFrame({"group": ["stature"], "spearman": [None], "accuracy": [0.5]})
    page = write_page(
        out,
        table,
        GROUPS,
        FACTS,
        units=units,
        scores=scores,
        pictures=pictures.__getitem__,
        agreement=agreement,
        shown=3,
    )
    assert page == out / "labels.md"
    names = {"labels.md", "words.png", "scores.png", "certain.jpg", "uncertain.jpg"}
    assert {path.name for path in out.iterdir()} == names
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Labels of 12 people\n")
    assert all(f"({name})" in text for name in names - {"labels.md"})
    assert "| teacher | clip |" in text
    assert "| data sets | a, b |" in text
    assert "| stature |  | 0.50 |" in text
    assert "| short | 4 | 33% | 8.50 |" in text
    assert "| long legs | 6 | 50% | 7.00 |" in text
    listed = text.partition("## All people")[2]
    assert all(f"| a/{person} |" in listed for person in range(12))


def section(text: str, start: str, end: str) -> list[str]:
    """First cells of the table between two headings."""
    lines = text.partition(start)[2].partition(end)[0].splitlines()
    return [line.split("|")[1].strip() for line in lines if line.startswith("| a/")]


def test_the_most_and_least_certain_are_listed_from_the_extreme(tmp_path: Path) -> None:
    table, _, _ = made_up(12)
    text = write_page(tmp_path, table, GROUPS, FACTS, shown=3).read_text(encoding="utf-8")
    assert section(text, "## The most certain", "##") == ["a/0", "a/1", "a/2"]
    assert section(text, "## The least certain", "##") == ["a/11", "a/10", "a/9"]
    assert "Most certain: a/0 (short, 13.00), a/1 (medium height, 12.00), a/2 (tall, 11.00)." in text
    assert {path.name for path in tmp_path.iterdir()} == {"labels.md", "words.png"}


def test_edited_words_without_margin_are_listed_but_neither_certain_nor_uncertain(tmp_path: Path) -> None:
    table, _, _ = made_up(3)
    edited = table.with_columns(pl.when(pl.col("person") != "1").then(pl.col("score", "margin")).name.keep())
    assert certainty(edited).rows() == [("a/0", 4.0), ("a/2", 2.0), ("a/1", None)]
    text = write_page(tmp_path, edited, GROUPS, FACTS).read_text(encoding="utf-8")
    assert section(text, "## The most certain", "##") == ["a/0", "a/2"]
    assert "| a/1 |  | medium height, long legs |" in text
    nothing = table.with_columns(margin=pl.lit(None, pl.Float32))
    text = write_page(tmp_path, nothing, GROUPS, FACTS).read_text(encoding="utf-8")
    assert "certain:" not in text


def test_a_long_table_is_cut_and_says_so(tmp_path: Path) -> None:
    table, _, _ = made_up(12)
    text = write_page(tmp_path, table, GROUPS, FACTS, listed=5).read_text(encoding="utf-8")
    assert len(section(text, "## The first 5 of 12 people", "The rest")) == 5
    assert text.endswith("The rest is in the file of labels.\n")


def test_names_are_no_markup(tmp_path: Path) -> None:
    table, units, scores = made_up(2)
    odd = pl.lit("p|1_x*$a$")
    table, units = (
        table.with_columns(person=odd + pl.col("person")),
        units.with_columns(person=odd + pl.col("person")),
    )
    text = write_page(tmp_path, table, GROUPS, FACTS, units=units, scores=scores).read_text(encoding="utf-8")
    assert "| a/p\\|1\\_x\\*$a$0 |" in text


def test_labels_of_pictures_are_told_apart_by_their_path(tmp_path: Path) -> None:
    table, units, scores = made_up(4, path=["x.png", "y.png", "z.png", "w.png"])
    asked: list[str] = []

    def of(unit: str) -> Sequence[Path]:
        asked.append(unit)
        return []

    text = write_page(
        tmp_path, table, GROUPS, FACTS, units=units, scores=scores, pictures=of, shown=1
    ).read_text(encoding="utf-8")
    assert asked == ["a/x.png", "a/w.png"]
    assert text.startswith("# Labels of 4 pictures\n")
    assert "| a/y.png |" in text


def test_pictures_that_cannot_be_read_are_skipped(tmp_path: Path, pictures: dict[str, list[Path]]) -> None:
    table, _, _ = made_up(12)
    draw_sheet(tmp_path / "one.jpg", ["a/3"], table, GROUPS, pictures.__getitem__)
    # Two pictures of 30 x 60 in a height of 220.
    assert red(tmp_path / "one.jpg") == pytest.approx(2 * 110 * 220, rel=0.03)
    draw_sheet(tmp_path / "none.jpg", ["a/3"], table, GROUPS, lambda unit: pictures[unit][:2])
    assert red(tmp_path / "none.jpg") == 0


def test_a_sheet_shows_at_most_three_pictures_of_somebody(
    tmp_path: Path, pictures: dict[str, list[Path]]
) -> None:
    table, _, _ = made_up(12)
    draw_sheet(tmp_path / "one.jpg", ["a/3"], table, GROUPS, lambda unit: pictures[unit][2:] * 4)
    assert red(tmp_path / "one.jpg") == pytest.approx(3 * 110 * 220, rel=0.03)


@pytest.mark.parametrize("count", [1, 2, 61, 2001])
def test_scores_can_be_drawn_of_one_person_and_of_very_many(tmp_path: Path, count: int) -> None:
    table, units, scores = made_up(count)
    draw_scores(tmp_path / "scores.png", units, scores, GROUPS, table)
    width, height = size(tmp_path / "scores.png")
    assert width < 2500
    assert height < 2500


def test_rows_that_are_alike_lie_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # Three kinds of people in turn.
    scores = np.eye(5)[np.arange(30) % 3]
    kinds = label_figures._reading_order(scores) % 3
    assert np.count_nonzero(np.diff(kinds)) == 2
    monkeypatch.setattr(label_figures, "_MOST_CLUSTERED", 10)
    line = np.random.default_rng(0).permutation(30)
    order = label_figures._reading_order(line[:, None] * np.ones(5))
    assert sorted(order) == list(range(30))
    assert abs(np.diff(line[order])).max() == 1


def test_many_rows_share_the_means_of_their_neighbours() -> None:
    values = np.arange(2000.0)[:, None]
    pooled = label_figures._pooled(values)
    assert len(pooled) == 667
    assert pooled[:2, 0].tolist() == [1, 4]
    assert pooled[-1, 0] == 1998.5


def test_scores_of_other_words_are_a_defect(tmp_path: Path) -> None:
    _, units, scores = made_up(3)
    with pytest.raises(ValueError, match="do not fit 3 units and 5 words"):
        draw_scores(tmp_path / "scores.png", units, scores[:, 1:], GROUPS)


def test_a_vocabulary_of_one_group_can_be_drawn(tmp_path: Path) -> None:
    table, _, _ = made_up(3)
    draw_words(tmp_path / "words.png", table, {"stature": GROUPS["stature"]})
    assert size(tmp_path / "words.png")[0] > 300


def test_no_labels_at_all_are_refused(tmp_path: Path) -> None:
    table, _, _ = made_up(1)
    with pytest.raises(InputError, match="no labels to show"):
        write_page(tmp_path, table.clear(), GROUPS, FACTS)


def test_the_module_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, clip3dreid.report.label_page; "
        "assert not {'torch', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
