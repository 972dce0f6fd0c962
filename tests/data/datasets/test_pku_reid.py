from pathlib import Path

import pytest

from clip3dreid.data.datasets import pku_reid
from clip3dreid.errors import InputError

from . import trees


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.pku_reid(trees.misleading(tmp_path, "PKU-Reid"))


def people(root: Path, split: str, **options: float) -> set[str]:
    return set(pku_reid.read(root, **options).part(split)["person"])  # type: ignore[arg-type]


def test_half_of_the_people_train_and_the_others_test(root: Path) -> None:
    train, test = people(root, "train"), people(root, "test")
    assert len(train) == len(test) == 4
    assert train | test == {str(person) for person in range(1, 9)}


def test_test_people_are_queries_in_camera_1_and_gallery_in_camera_2(root: Path) -> None:
    test = pku_reid.read(root).part("test")
    assert set(test.select("camera", "role").rows()) == {("1", "query"), ("2", "gallery")}
    assert set(test["frame"]) == {1, 8}


@pytest.mark.parametrize(("fraction", "expected"), [(0, (0, 8)), (0.25, (2, 6)), (1, (8, 0))])
def test_the_fraction_is_of_the_people(root: Path, fraction: float, expected: tuple[int, int]) -> None:
    assert (
        len(people(root, "train", train_fraction=fraction)),
        len(people(root, "test", train_fraction=fraction)),
    ) == (expected)


def test_the_draw_depends_on_the_seed_and_on_nothing_else(root: Path) -> None:
    draws = [frozenset(people(root, "train", split_seed=seed)) for seed in range(8)]
    assert draws == [frozenset(people(root, "train", split_seed=seed)) for seed in range(8)]
    assert len(set(draws)) > 1


def test_nobody_changes_clothes(root: Path) -> None:
    table = pku_reid.read(root).table
    assert table.select("person", "clothes").n_unique() == table["clothes"].n_unique() == 8


def test_a_fraction_outside_0_to_1_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"train_fraction=1\.5 must be a number from 0 to 1"):
        pku_reid.read(root, train_fraction=1.5)


def test_a_third_camera_is_refused(root: Path) -> None:
    trees.plant(root, "001_03_1.png")
    with pytest.raises(InputError, match=r"001_03_1\.png=3 is unknown; choose 1 or 2"):
        pku_reid.read(root)


def test_a_root_one_level_too_high_is_told_the_folder_of_pictures(root: Path) -> None:
    trees.plant(root.parent, "Another/picture.png")
    with pytest.raises(InputError, match=rf"such as 001_01_1\.png .* set data\.root={root}$"):
        pku_reid.read(root.parent)
