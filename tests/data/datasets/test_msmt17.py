from pathlib import Path

import pytest

from clip3dreid.data.datasets import msmt17
from clip3dreid.errors import InputError

from . import trees


@pytest.mark.parametrize(("version", "faces"), [("V1", "faces as recorded"), ("V2", "faces blurred")])
def test_the_version_is_told_by_its_folders_and_noted(tmp_path: Path, version: str, faces: str) -> None:
    manifest = msmt17.read(trees.msmt17(trees.misleading(tmp_path, "MSMT17"), version))
    assert manifest.notes[0] == f"MSMT17 {version}, {faces}"
    train, test = trees.MSMT17_FOLDERS[version]
    assert manifest.table.select("path", "person", "camera", "split", "role").rows() == [
        (f"{test}/0001/0001_004_15_0113afternoon_0002_1.jpg", "1", "15", "test", "gallery"),
        (f"{test}/0000/0000_000_02_0113afternoon_0001_1.jpg", "0", "2", "test", "query"),
        (f"{train}/0000/0000_000_01_0303morning_0015_0.jpg", "0", "1", "train", "train"),
    ]


def test_val_joins_train_on_request_and_the_published_count_follows(tmp_path: Path) -> None:
    root = trees.msmt17(tmp_path / "MSMT17_V1")
    apart, joined = msmt17.read(root), msmt17.read(root, val_in_train=True)
    assert [len(m.part("train")) for m in (apart, joined)] == [1, 2]
    assert "left out" in apart.notes[1]
    assert "added to train" in joined.notes[1]
    published = [
        next(p for p in m.published if (p.part, p.what) == ("train", "pictures")) for m in (apart, joined)
    ]
    assert [(p.count, p.remembered) for p in published] == [(30_248, True), (32_621, False)]


def test_pictures_of_an_archive_that_was_unpacked_half_are_named(tmp_path: Path) -> None:
    root = trees.msmt17(tmp_path / "MSMT17_V1")
    (root / "list_query.txt").write_text("0009/0009_000_02_0113afternoon_0001_1.jpg 9\n")
    with pytest.raises(InputError, match=r"1 of the 1 pictures listed in .*list_query.txt.*0009/0009_000_02"):
        msmt17.read(root)


def test_the_folder_above_is_told_where_the_version_lies(tmp_path: Path) -> None:
    root = trees.msmt17(tmp_path / "msmt" / "MSMT17_V2", "V2")
    with pytest.raises(InputError, match=rf"set data\.root={root}$"):
        msmt17.read(root.parent)


@pytest.mark.parametrize("val_in_train", [False, True])
def test_only_pictures_that_no_list_names_are_counted(tmp_path: Path, val_in_train: bool) -> None:
    root = trees.msmt17(tmp_path / "MSMT17_V1")
    assert not any("in no list" in note for note in msmt17.read(root, val_in_train).notes)
    trees.plant(root, "train/0009/0009_000_01_0303morning_0015_0.jpg")
    notes = msmt17.read(root, val_in_train).notes
    assert any(
        note.startswith("1 pictures of train are in no list and left out: train/0009/") for note in notes
    )
