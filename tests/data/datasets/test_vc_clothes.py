from pathlib import Path

from clip3dreid.data.datasets import vc_clothes

from . import trees


def test_a_dated_folder_above_does_not_pass_for_a_name(tmp_path: Path) -> None:
    manifest = vc_clothes.read(trees.vc_clothes(trees.misleading(tmp_path, "VC-Clothes")))
    assert manifest.table.select("person", "camera", "clothes", "frame", "split", "role").rows() == [
        ("257", "4", "257_2", 10, "test", "gallery"),
        ("257", "3", "257_1", 9, "test", "query"),
        ("1", "2", "1_3", 4, "train", "train"),
        ("256", "1", "256_1", 1, "train", "train"),
    ]


def test_published_parts_add_up_to_the_published_whole() -> None:
    pictures = {p.part: p.count for p in vc_clothes.PUBLISHED if p.what == "pictures"}
    assert pictures["train"] + pictures["query"] + pictures["gallery"] == pictures["all"]
