from pathlib import Path

import pytest

from clip3dreid.data.datasets import deepchange
from clip3dreid.errors import InputError

from . import trees


def test_tracklets_come_from_the_lists_and_days_are_no_clothes(tmp_path: Path) -> None:
    manifest = deepchange.read(trees.deepchange(trees.misleading(tmp_path, "DeepChangeDataset")))
    columns = ("path", "person", "camera", "clothes", "tracklet", "split", "role")
    rows = {row[0].split("/")[0]: row[1:] for row in manifest.table.select(columns).rows()}
    assert rows["val-set-query"] == ("451", "1", None, "5", "val", "query")
    assert rows["val-set-gallery"] == ("451", "2", None, "6", "val", "gallery")
    assert rows["test-set-gallery"] == ("602", "17", None, "9", "test", "gallery")
    assert manifest.part("train")["tracklet"].to_list() == ["17", "18"]
    assert trees.said(manifest) == ()


def test_a_tracklet_spelled_with_zeros_is_the_same_tracklet(tmp_path: Path) -> None:
    test = deepchange.read(trees.deepchange(tmp_path / "d")).part("test")
    assert set(test.filter(person="601")["tracklet"]) == {"7"}


def test_days_become_clothes_on_request_and_a_note_says_so(tmp_path: Path) -> None:
    manifest = deepchange.read(trees.deepchange(tmp_path / "d"), clothes_from_day=True)
    assert manifest.part("train")["clothes"].to_list() == ["1_12", "1_13"]
    assert "days" in manifest.notes[0]


def test_a_listed_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    root = trees.deepchange(tmp_path / "d")
    (root / "test-set-gallery/P0602_C17_30_09_00031_0.jpg").unlink()
    with pytest.raises(
        InputError, match=r"1 of the 2 pictures listed in .*test-set-gallery-bbox.txt.*P0602_C17"
    ):
        deepchange.read(root)


@pytest.mark.parametrize("line", ["P0001_C05_12_09_00031_0.jpg", "P0001_C05_12_09_00031_0.jpg,x"])
def test_a_line_without_a_number_is_named_with_its_place(tmp_path: Path, line: str) -> None:
    root = trees.deepchange(tmp_path / "d")
    (root / "train-set-bbox.txt").write_text(f"P0001_C05_12_09_00031_0.jpg,17\n{line}\n")
    with pytest.raises(InputError, match=r"line 2 of .*train-set-bbox.txt"):
        deepchange.read(root)


def test_an_empty_list_is_named(tmp_path: Path) -> None:
    root = trees.deepchange(tmp_path / "d")
    (root / "val-set-query-bbox.txt").write_text("\n")
    with pytest.raises(InputError, match=r"val-set-query-bbox\.txt lists no pictures"):
        deepchange.read(root)
