from pathlib import Path

import pytest

from clip3dreid.data.datasets import ltcc
from clip3dreid.errors import InputError

from . import trees


def test_labels_come_from_basenames_whatever_the_folders_above_are_called(tmp_path: Path) -> None:
    manifest = ltcc.read(trees.ltcc(trees.misleading(tmp_path, "LTCC_ReID")))
    columns = ("path", "person", "clothes", "camera", "frame", "split", "role")
    assert manifest.table.select(columns).rows() == [
        ("test/012_1_c4_000400.png", "12", "12_1", "4", 400, "test", "gallery"),
        ("test/012_3_c2_000500.png", "12", "12_3", "2", 500, "test", "gallery"),
        ("test/099_1_c2_000600.png", "99", "99_1", "2", 600, "test", "gallery"),
        ("query/012_1_c2_000300.png", "12", "12_1", "2", 300, "test", "query"),
        ("train/000_1_c11_015833.png", "0", "0_1", "11", 15833, "train", "train"),
        ("train/000_2_c1_000100.png", "0", "0_2", "1", 100, "train", "train"),
        ("train/007_1_c3_000200.png", "7", "7_1", "3", 200, "train", "train"),
    ]
    assert all(file.is_file() for file in manifest.files())


def test_a_picture_of_another_data_set_is_named_as_not_parsing(tmp_path: Path) -> None:
    root = trees.ltcc(tmp_path / "LTCC_ReID")
    trees.plant(root, "train/0002_c1s1_000451_03.jpg")
    with pytest.raises(
        InputError, match=r"1 file names .* 000_1_c11_015833\.png\): train/0002_c1s1_000451_03"
    ):
        ltcc.read(root)
