from pathlib import Path

from clip3dreid.data.datasets import market1501

from . import trees


def test_junk_is_left_out_everywhere_and_distractors_stay_in_the_gallery_alone(tmp_path: Path) -> None:
    manifest = market1501.read(trees.market1501(trees.misleading(tmp_path, "Market-1501-v15.09.15")))
    assert manifest.table.select("path", "person", "camera", "frame", "role").rows() == [
        ("bounding_box_test/0000_c3s1_000551_00.jpg", "0", "3", 551, "gallery"),
        ("bounding_box_test/0001_c2s1_000301_02.jpg", "1", "2", 301, "gallery"),
        ("query/0001_c1s1_001051_00.jpg", "1", "1", 1051, "query"),
        ("bounding_box_train/0002_c1s1_000451_03.jpg", "2", "1", 451, "train"),
        ("bounding_box_train/0007_c6s3_077419_02.jpg", "7", "6", 77419, "train"),
    ]


def test_what_was_left_out_is_counted(tmp_path: Path) -> None:
    assert trees.said(market1501.read(trees.market1501(tmp_path / "market"))) == (
        "1 pictures of person 0 (distractors) in bounding_box_train are left out",
        "1 pictures of person 0 (distractors) in query are left out",
        "2 pictures of person -1 (junk) are left out",
        "1 gallery pictures are distractors (person 0), nobody's match",
    )


def test_clothes_are_unknown_not_constant(tmp_path: Path) -> None:
    table = market1501.read(trees.market1501(tmp_path / "market")).table
    assert table["clothes"].null_count() == len(table)
