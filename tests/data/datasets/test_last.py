from pathlib import Path

import pytest

from clip3dreid.data.datasets import last
from clip3dreid.errors import InputError

from . import trees


def test_clothes_are_labelled_in_train_only(tmp_path: Path) -> None:
    manifest = last.read(trees.last(tmp_path / "last"))
    assert manifest.part("train").select("person", "clothes").rows() == [
        ("1", "1_1"),
        ("1", "1_2"),
        ("2", "2_7"),
    ]
    assert manifest.part("val")["clothes"].null_count() == 2
    assert manifest.part("test")["clothes"].null_count() == 3


def test_query_in_the_root_path_does_not_hide_the_folders_of_people(tmp_path: Path) -> None:
    manifest = last.read(trees.last(trees.misleading(tmp_path, "query")))
    counts = {
        key: len(manifest.part(*key))
        for key in (
            ("train", "train"),
            ("val", "query"),
            ("val", "gallery"),
            ("test", "query"),
            ("test", "gallery"),
        )
    }
    assert list(counts.values()) == [3, 1, 1, 1, 2]


def test_published_parts_add_up_to_the_published_whole() -> None:
    pictures = {p.part: p.count for p in last.PUBLISHED if p.what == "pictures"}
    assert sum(count for part, count in pictures.items() if part != "all") == pictures["all"]


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    root = trees.last(tmp_path / "last")
    for file in (root / "val/query").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"no pictures such as 000001_0012_3\.jpg in .*val/query"):
        last.read(root)
