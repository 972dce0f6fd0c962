from pathlib import Path

import pytest

from clip3dreid.data.datasets import mevid
from clip3dreid.errors import InputError

from . import trees


def test_labels_come_from_the_lists_and_both_ends_of_a_line_count(tmp_path: Path) -> None:
    manifest = mevid.read(trees.mevid(trees.misleading(tmp_path, "mevid")))
    columns = ("path", "person", "camera", "clothes", "tracklet", "frame", "split", "role")
    rows = {row[0]: row[1:] for row in manifest.table.select(columns).rows()}
    assert len(rows) == 11
    assert rows["bbox_train/0103/0103O020C424T000F00002.jpg"] == (
        *("103", "424", "103_20", "train_0", 2, "train", "train"),
    )
    assert rows["bbox_test/0201/0201O003C330T004F00001.jpg"] == (
        *("201", "330", "201_3", "test_0", 1, "test", "query"),
    )
    assert rows["bbox_test/0201/0201O003C508T000F00000.jpg"][1:] == (
        *("508", "201_3", "test_1", 0, "test", "gallery"),
    )
    assert rows["bbox_test/0007/0007O000C330T000F00000.jpg"][0] == "7"
    counts = manifest.table.group_by("tracklet").len().rows()
    assert sorted(counts) == [("test_0", 2), ("test_1", 3), ("test_2", 1), ("train_0", 3), ("train_1", 2)]


def test_frames_are_chosen_evenly_and_a_note_says_so(tmp_path: Path) -> None:
    manifest = mevid.read(trees.mevid(tmp_path / "d"), frames=2)
    table = manifest.table.filter(tracklet="test_1")
    assert table["frame"].to_list() == [0, 1]
    assert "up to 2 frames of each tracklet, evenly spread" in manifest.notes
    # Those that are not taken are listed all the same.
    assert not any("in no list" in note for note in manifest.notes)


def test_a_line_without_pictures_is_counted_and_its_number_stays_its_own(tmp_path: Path) -> None:
    root = trees.mevid(tmp_path / "d")
    info = root / "track_test_info.txt"
    info.write_text("6 5 201 3 330\n" + info.read_text())
    (root / "query_IDX.txt").write_text("1\n")
    manifest = mevid.read(root)
    assert manifest.part("test", "query")["tracklet"].unique().to_list() == ["test_1"]
    assert "1 lines of track_test_info.txt name no pictures: 0" in manifest.notes


def test_pictures_in_no_list_are_counted(tmp_path: Path) -> None:
    root = trees.mevid(tmp_path / "d")
    trees.plant(root, "bbox_test/0201/0201O003C330T009F00000.jpg")
    assert any("1 pictures of bbox_test are in no list" in note for note in mevid.read(root).notes)


def test_listed_pictures_that_are_not_there_are_listed(tmp_path: Path) -> None:
    root = trees.mevid(tmp_path / "d")
    (root / "bbox_test/0201/0201O003C508T000F00001.jpg").unlink()
    with pytest.raises(
        InputError, match=r"1 listed pictures are not in .*: bbox_test/0201/0201O003C508T000F00001"
    ):
        mevid.read(root)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("track_test_info.txt", "0 1 201 3 330\n2 9 201 3 508\n", r"line 2 of .* names pictures 2 to 9 of 6"),
        (
            "track_test_info.txt",
            "0 2 201 3 330\n",
            r"line 1 of .* person 201 and camera 330, and has .*C508T000",
        ),
        (
            "track_test_info.txt",
            "0 1 202 3 330\n",
            r"line 1 of .* person 202 and camera 330, and has .*0201O",
        ),
        ("track_test_info.txt", "0 1 201 3\n", r"line 1 of .* is '0 1 201 3', not 5 whole numbers"),
        ("track_test_info.txt", "0 1.5 201 3 330\n", "not 5 whole numbers"),
        ("track_test_info.txt", "0 one 201 3 330\n", "not 5 whole numbers"),
        ("query_IDX.txt", "0\n3\n", r"query_IDX\.txt names tracklets 3 of 3"),
        (
            "train_name.txt",
            "0103O020C424T000F00000.jpg\n103.jpg\n",
            r"1 names of .* do not parse .*: 103\.jpg",
        ),
    ],
)
def test_a_list_that_cannot_be_right_is_named_with_its_line(
    tmp_path: Path, file: str, text: str, said: str
) -> None:
    root = trees.mevid(tmp_path / "d")
    (root / file).write_text(text)
    with pytest.raises(InputError, match=said):
        mevid.read(root)


def test_a_missing_list_is_told(tmp_path: Path) -> None:
    root = trees.mevid(tmp_path / "d")
    (root / "query_IDX.txt").unlink()
    with pytest.raises(InputError, match=r"lacks query_IDX\.txt"):
        mevid.read(root)
