from pathlib import Path

import polars as pl
import pytest

from clip3dreid.data.datasets import prcc
from clip3dreid.errors import InputError

from . import trees


def test_a_and_b_share_an_outfit_and_c_is_another(tmp_path: Path) -> None:
    train = prcc.read(trees.prcc(trees.misleading(tmp_path, "prcc"))).part("train")
    assert train.select("person", "camera", "clothes", "frame").rows() == [
        ("1", "A", "1_AB", 1),
        ("1", "B", "1_AB", 2),
        ("1", "C", "1_C", 3),
        ("20", "C", "20_C", 10),
    ]


def test_camera_a_is_the_gallery_and_b_and_c_are_two_query_sets(tmp_path: Path) -> None:
    test = prcc.read(trees.prcc(tmp_path / "prcc")).part("test")
    rows = test.select("path", "person", "camera", "clothes", "role", "query_set").rows()
    assert rows == [
        ("rgb/test/A/003/cropped_rgb001.jpg", "3", "A", "3_AB", "gallery", None),
        ("rgb/test/A/003/cropped_rgb005.jpg", "3", "A", "3_AB", "gallery", None),
        ("rgb/test/B/003/cropped_rgb001.jpg", "3", "B", "3_AB", "query", "B"),
        ("rgb/test/C/003/cropped_rgb001.jpg", "3", "C", "3_C", "query", "C"),
    ]


def test_val_shows_training_people_so_it_is_left_out_or_trained_on_but_never_validates(
    tmp_path: Path,
) -> None:
    root = trees.prcc(tmp_path / "prcc")
    ignored, used = prcc.read(root), prcc.read(root, use_val="train")
    assert [len(m.part("train")) for m in (ignored, used)] == [4, 5]
    assert ignored.part("val").is_empty()
    assert used.part("val").is_empty()
    assert "left out" in ignored.notes[0]
    assert "trained on" in used.notes[0]


def test_the_published_count_of_training_pictures_goes_with_use_val(tmp_path: Path) -> None:
    root = trees.prcc(tmp_path / "prcc")
    counts = [
        {(p.part, p.what): p.count for p in prcc.read(root, use_val=use).published}
        for use in ("ignore", "train")
    ]
    assert [count["train", "pictures"] for count in counts] == [17_896, 22_898]
    # Gallery, B and C are remembered; that they add up to the published test split speaks for them.
    parts = ("gallery", "query B", "query C")
    assert sum(counts[0][part, "pictures"] for part in parts) == counts[0]["test", "pictures"]


def test_a_person_folder_that_is_no_number_does_not_parse(tmp_path: Path) -> None:
    root = trees.prcc(tmp_path / "prcc")
    trees.plant(root, "rgb/train/backup/A_cropped_rgb001.jpg")
    with pytest.raises(InputError, match="backup"):
        prcc.read(root)


def test_an_unknown_use_of_val_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use_val=val is unknown; choose ignore or train"):
        prcc.read(trees.prcc(tmp_path / "prcc"), use_val="val")


def test_every_picture_stands_once(tmp_path: Path) -> None:
    table = prcc.read(trees.prcc(tmp_path / "prcc"), use_val="train").table
    assert table.select(pl.col("path").n_unique()).item() == len(table) == 9
