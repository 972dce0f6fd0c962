from pathlib import Path

import pytest

from clip3dreid.data.datasets import vccr
from clip3dreid.data.tracklets import tracklets
from clip3dreid.errors import InputError

from . import trees


def test_labels_come_from_folders_and_names(tmp_path: Path) -> None:
    manifest = vccr.read(trees.vccr(trees.misleading(tmp_path, "VCCR")))
    columns = ("path", "person", "camera", "clothes", "tracklet", "frame", "split", "role")
    rows = {row[0]: row[1:] for row in manifest.table.select(columns).rows()}
    assert len(rows) == 21
    assert rows["train/0001/t1/0001-C1-D1-F0002.jpg"] == (
        *("1", "1", "1_1", "train/0001/t1", 2, "train", "train"),
    )
    assert rows["test_qg/query/0233/C2/t7/0233-C2-D1-x-F10.jpg"] == (
        *("233", "2", "233_1", "test_qg/query/0233/C2/t7", 10, "test", "query"),
    )
    assert rows["test_qg/gallery/0233/C3/t8/0233-C3-D2-F1.jpg"][1:3] == ("3", "233_2")


def test_frames_are_ordered_as_numbers(tmp_path: Path) -> None:
    table = vccr.read(trees.vccr(tmp_path / "d")).part("test", "query")
    found = tracklets(table, "vccr")
    assert [table["frame"][int(row)] for row in found.frames(0)] == list(range(1, 12))


def test_short_tracklets_of_the_test_split_are_left_out_and_counted(tmp_path: Path) -> None:
    root = trees.vccr(tmp_path / "d")
    trees.plant(root, *(f"test_qg/gallery/0240/C3/t9/0240-C3-D2-F{frame}.jpg" for frame in range(7)))
    trees.plant(root, "test_qg/gallery/0241/C3/t9/0241-C3-D2-F1.jpg")
    assert set(vccr.read(root).part("test", "gallery")["person"]) == {"233"}
    assert trees.said(vccr.read(root)) == ("2 test tracklets of fewer than 8 frames are left out",)
    assert set(vccr.read(root, min_frames=7).part("test", "gallery")["person"]) == {"233", "240"}
    assert trees.said(vccr.read(root, min_frames=0)) == ()
    # Those of training stay, however short.
    assert len(vccr.read(root).part("train")) == 2


def test_a_tracklet_of_several_cameras_or_outfits_is_several_and_counted(tmp_path: Path) -> None:
    root = trees.vccr(tmp_path / "d")
    trees.plant(root, "train/0001/t2/0001-C1-D1-F1.jpg", "train/0001/t2/0001-C2-D1-F1.jpg")
    trees.plant(root, "train/0001/t3/0001-C1-D1-F1.jpg", "train/0001/t3/0001-C1-D2-F1.jpg")
    manifest = vccr.read(root)
    found = tracklets(manifest.part("train"), "vccr").table
    assert sorted(found["tracklet"]) == [
        "train/0001/t1",
        "train/0001/t2:1_1",
        "train/0001/t2:2_1",
        "train/0001/t3:1_1",
        "train/0001/t3:1_2",
    ]
    assert any(
        note.startswith("2 tracklets of several cameras or outfits are divided") for note in manifest.notes
    )


def test_a_tracklet_in_the_folder_of_another_camera_has_that_of_its_names_and_is_counted(
    tmp_path: Path,
) -> None:
    root = trees.vccr(tmp_path / "d")
    assert trees.said(vccr.read(root)) == ()
    trees.plant(
        root,
        *(f"test_qg/gallery/0233/C9/t1/0233-C4-D2-F{frame}.jpg" for frame in range(8)),
        # Leading zeros are no other camera, and folders without a number say nothing.
        *(f"test_qg/gallery/0233/C05/t2/0233-C5-D2-F{frame}.jpg" for frame in range(8)),
        *(f"test_qg/gallery/0233/hall/t3/0233-C6-D2-F{frame}.jpg" for frame in range(8)),
    )
    manifest = vccr.read(root)
    assert set(manifest.part("test", "gallery")["camera"]) == {"3", "4", "5", "6"}
    assert trees.said(manifest) == (
        "1 test tracklets lie in the folder of another camera than their names say, which count: "
        "test_qg/gallery/0233/C9/t1",
    )


def test_an_empty_tracklet_is_counted(tmp_path: Path) -> None:
    root = trees.vccr(tmp_path / "d")
    (root / "test_qg/gallery/0233/C4/t1").mkdir(parents=True)
    assert trees.said(vccr.read(root)) == ("1 tracklets have no frames: test_qg/gallery/0233/C4/t1",)


def test_a_name_that_does_not_parse_is_listed(tmp_path: Path) -> None:
    root = trees.vccr(tmp_path / "d")
    trees.plant(root, "train/0001/t1/0001_c1_d1_f1.jpg")
    with pytest.raises(
        InputError, match=r"expected such as 0001/TRACKLET/0001-C2-D1-F0003\.jpg\): train/0001/t1/0001_c1"
    ):
        vccr.read(root)


def test_another_layout_is_told(tmp_path: Path) -> None:
    root = trees.vccr(tmp_path / "d")
    (root / "test_qg").rename(root / "test")
    with pytest.raises(InputError, match="lacks test_qg/query/"):
        vccr.read(root)
    with pytest.raises(InputError, match="min_frames=-1 must be a whole number, 0 or more"):
        vccr.read(root, min_frames=-1)
