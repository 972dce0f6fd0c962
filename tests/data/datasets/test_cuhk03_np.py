from pathlib import Path

import pytest

from clip3dreid.data.datasets import cuhk03_np
from clip3dreid.errors import InputError

from . import trees


@pytest.mark.parametrize(("boxes", "folder"), [("detected", "detected"), ("labelled", "labeled")])
def test_folders_like_market_are_read_for_either_kind_of_boxes(
    tmp_path: Path, boxes: str, folder: str
) -> None:
    manifest = cuhk03_np.read(trees.cuhk03_np(trees.misleading(tmp_path, "cuhk03-np"), folder), boxes=boxes)
    assert manifest.table.select("path", "person", "camera", "frame", "role").rows() == [
        (f"{folder}/bounding_box_test/0003_c2_2.png", "3", "2", 2, "gallery"),
        (f"{folder}/query/0003_c1_1.png", "3", "1", 1, "query"),
        (f"{folder}/bounding_box_train/0001_c1_1.png", "1", "1", 1, "train"),
        (f"{folder}/bounding_box_train/0001_c2_6.png", "1", "2", 6, "train"),
    ]
    assert trees.said(manifest) == (f"{boxes} boxes, read from folders",)


def test_indices_of_the_new_protocol_are_one_based_and_people_come_from_its_labels(tmp_path: Path) -> None:
    manifest = cuhk03_np.read(trees.cuhk03_np_indices(trees.misleading(tmp_path, "cuhk03")), boxes="labelled")
    # The person of pair 2 is number 1 in its name and number 844 of all.
    assert manifest.table.select("path", "person", "camera", "role").rows() == [
        ("images_labeled/2_001_2_07.png", "844", "2", "gallery"),
        ("images_labeled/2_001_1_03.png", "844", "1", "query"),
        ("images_labeled/1_001_1_01.png", "1", "1", "train"),
        ("images_labeled/1_001_2_06.png", "1", "2", "train"),
    ]


def test_the_other_kind_of_boxes_is_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected labeled/bounding_box_train/"):
        cuhk03_np.read(trees.cuhk03_np(tmp_path / "cuhk03-np", "detected"), boxes="labelled")
    with pytest.raises(InputError, match=r"boxes=drawn is unknown; choose detected, labelled"):
        cuhk03_np.read(tmp_path, boxes="drawn")


def test_a_config_without_extracted_pictures_says_how_to_extract_them(tmp_path: Path) -> None:
    root = trees.cuhk03_np_indices(tmp_path / "cuhk03")
    (root / "images_labeled").rename(root / "elsewhere")
    with pytest.raises(InputError, match=r"no images_labeled/: extract cuhk-03\.mat"):
        cuhk03_np.read(root, boxes="labelled")


def test_a_missing_extracted_picture_is_named(tmp_path: Path) -> None:
    root = trees.cuhk03_np_indices(tmp_path / "cuhk03")
    (root / "images_labeled/2_001_2_07.png").unlink()
    with pytest.raises(InputError, match=r"1 pictures of gallery_idx are not in .*: 2_001_2_07;"):
        cuhk03_np.read(root, boxes="labelled")


def test_a_file_that_is_no_config_is_named(tmp_path: Path) -> None:
    root = trees.cuhk03_np_indices(tmp_path / "cuhk03")
    (root / "cuhk03_new_protocol_config_labeled.mat").write_bytes(b"")
    with pytest.raises(InputError, match=r"labeled\.mat cannot be read as the new protocol's config"):
        cuhk03_np.read(root, boxes="labelled")


def test_pictures_of_no_index_are_counted_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    root = trees.cuhk03_np_indices(tmp_path / "cuhk03")
    notes = cuhk03_np.read(root, boxes="labelled").notes
    assert "1 pictures of images_labeled are in no list and left out: images_labeled/1_002_1_01.png" in notes
    (root / "images_labeled/1_001_1_01.jpg").touch()
    with pytest.raises(
        InputError, match=r"1_001_1_01\.jpg and .*1_001_1_01\.png are one picture by their names"
    ):
        cuhk03_np.read(root, boxes="labelled")
