from pathlib import Path

import pytest

from clip3dreid.data.datasets import celeb_reid
from clip3dreid.data.inspection import describe_data
from clip3dreid.data.manifest import training_labels
from clip3dreid.errors import InputError

from . import trees


def test_frame_is_the_whole_image_number_and_neither_camera_nor_clothes_are_made_up(tmp_path: Path) -> None:
    manifest = celeb_reid.read(trees.celeb_reid(trees.misleading(tmp_path, "Celeb-reID")))
    assert sorted(manifest.part("train").select("person", "frame").rows()) == [("1", 1), ("1", 12), ("2", 1)]
    assert manifest.table.select("camera", "clothes", "tracklet").null_count().row(0) == (6, 6, 6)


def test_test_people_are_never_merged_with_training_people_of_the_same_number(tmp_path: Path) -> None:
    manifest = celeb_reid.read(trees.celeb_reid(tmp_path / "Celeb-reID"))
    labels = training_labels(manifest.part("train"))
    assert labels.people == ("celeb_reid/1", "celeb_reid/2")
    assert sorted(manifest.part("test")["person"].unique()) == ["1", "9"]
    # 1 and 2 of train, 1 and 9 of test: four people though only three names.
    assert describe_data(manifest).counts["all"].people == 4
    assert any("restart" in note for note in manifest.notes)


def test_junk_is_left_out_and_counted(tmp_path: Path) -> None:
    manifest = celeb_reid.read(trees.celeb_reid(tmp_path / "Celeb-reID"))
    assert "-1" not in set(manifest.table["person"])
    assert "2 pictures of person -1 (junk) are left out" in manifest.notes


@pytest.mark.parametrize("variant", celeb_reid.VARIANTS)
def test_every_variant_names_its_manifest_and_adds_up(tmp_path: Path, variant: str) -> None:
    manifest = celeb_reid.read(trees.celeb_reid(tmp_path / "celeb"), variant=variant)
    assert manifest.name == variant
    assert set(manifest.table["data_set"]) == {variant}
    assert ("blurred" in " ".join(manifest.notes)) == variant.endswith("blur")
    pictures = {p.part: p.count for p in manifest.published if p.what == "pictures"}
    if variant != "ccda":
        assert pictures["train"] + pictures["query"] + pictures["gallery"] == pictures["all"]


def test_names_of_ccda_may_end_after_the_image_number(tmp_path: Path) -> None:
    root = trees.plant(tmp_path / "CCDA", "train/3_4.jpg", "query/5_1_x_y.jpg", "gallery/5_2.jpg")
    assert celeb_reid.read(root, variant="ccda").table["frame"].to_list() == [
        2,
        1,
        4,
    ]  # gallery, query, train


def test_an_unknown_variant_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"variant=light is unknown; choose celeb_reid, celeb_reid_light"):
        celeb_reid.read(tmp_path, variant="light")
