"""Plans against the readers of the real data sets: what a layout calls a picture is what the reader finds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.data.manifest import Manifest
from clip3dreid.errors import InputError
from clip3dreid.retrieval.protocol_counts import count
from clip3dreid.synthetic import layouts
from clip3dreid.synthetic.plan import Layout, PeopleCounts, Plan

NAMES = sorted(path.stem for path in (conf_dir() / "layout").glob("*.yaml"))
READ = [name for name in NAMES if name != "bodies"]
SEEDS = (0, 1, 2)
PEOPLE = PeopleCounts(train=3, test=4)


def layout(name: str, **settings: Any) -> Layout:
    """A layout as its config fills it, with some settings changed."""
    node = OmegaConf.load(conf_dir() / "layout" / f"{name}.yaml")
    made: Layout = instantiate(OmegaConf.merge(node, settings))
    return made


def plan(name: str, seed: int = 0, people: PeopleCounts = PEOPLE, **settings: Any) -> Plan:
    return layout(name, **settings)(people, np.random.default_rng(seed))


def touched(plan: Plan, root: Path) -> Path:
    """The plan on disk, with empty pictures."""
    for picture in plan.pictures:
        (root / picture.path).parent.mkdir(parents=True, exist_ok=True)
        (root / picture.path).touch()
    for path, text in plan.side_files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def data_config(name: str, root: Path) -> Any:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("inspect_data", [f"data={name}", f"data.root={root}"]).data


def read(name: str, root: Path) -> Manifest:
    manifest: Manifest = instantiate(data_config(name, root).read)(root)
    return manifest


def labels(row: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in known}


@pytest.mark.parametrize("name", READ)
def test_the_reader_finds_the_labels_of_the_plan(name: str, tmp_path: Path) -> None:
    made = plan(name)
    table = read(name, touched(made, tmp_path)).table
    # What the data set does not say, the plan may know all the same.
    known = {column for column in ("camera", "clothes") if table[column].null_count() == 0}
    found = {row["path"]: row for row in table.iter_rows(named=True)}
    expected = {picture.path: picture for picture in made.pictures if picture.role != "left_out"}
    assert found.keys() == expected.keys()
    for path, picture in expected.items():
        row = found[path]
        assert (row["split"], row["role"], row["person"]) == (
            picture.split,
            picture.role,
            picture.person_label,
        )
        assert row["frame"] == picture.frame
        told = {"camera": picture.camera_label, "clothes": picture.clothes_label}
        assert labels(row, known) == labels(told, known)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", READ)
def test_every_query_has_a_positive_under_every_protocol(name: str, seed: int, tmp_path: Path) -> None:
    root = touched(plan(name, seed), tmp_path)
    manifest = read(name, root)
    query, gallery = manifest.part("test", "query"), manifest.part("test", "gallery")
    assert query["person"].n_unique() == 4
    for node in data_config(name, root).protocols.values():
        counts = count(instantiate(node), query, gallery)
        assert counts.valid_queries == counts.queries > 0, node.name


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ltcc", {"cameras": 7, "seen": 2, "outfits": 2, "test_pictures": 2}),
        ("celeb_reid", {"outfits": 2, "test_pictures": 2}),
        ("celeb_reid", {"outfits": 3, "test_pictures": 9}),
        ("market1501", {"cameras": 9, "seen": 2, "test_pictures": 2}),
        ("ccvid", {"outfits": 2, "walks": 2, "frames": 1}),
        ("vccr", {"outfits": 2, "walks": 2, "cameras": 2}),
        ("vc_clothes", {"test_pictures": 2}),
    ],
)
def test_the_smallest_settings_leave_every_query_a_positive(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    root = touched(plan(name, **settings), tmp_path)
    manifest = read(name, root)
    for node in data_config(name, root).protocols.values():
        counts = count(instantiate(node), manifest.part("test", "query"), manifest.part("test", "gallery"))
        assert counts.valid_queries == counts.queries, node.name


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ltcc", {"cameras": 1}),
        ("ltcc", {"seen": 1}),
        ("ltcc", {"test_pictures": 1}),
        ("prcc", {"val_pictures": 0}),
        ("celeb_reid", {"outfits": 1}),
        ("market1501", {"seen": 1}),
        ("market1501", {"cameras": 10}),
        ("market1501", {"junk": -0.1}),
        ("vc_clothes", {"outfits": 4}),
        ("ccvid", {"walks": 1}),
        ("ccvid", {"walks": 13}),
        ("vccr", {"walks": 1}),
        ("vccr", {"frames": 7}),
        ("vccr", {"cameras": 1}),
        ("bodies", {"pictures": 0}),
    ],
)
def test_settings_that_break_the_rules_are_named(name: str, settings: dict[str, Any]) -> None:
    ((key, _),) = settings.items()
    with pytest.raises(InputError, match=rf"layout\.{key}=.*; give"):
        plan(name, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_people_are_in_one_split_and_every_path_is_there_once(name: str) -> None:
    made = plan(name, people=PeopleCounts(5, 3))
    split = {person: {p.split for p in made.pictures if p.person == person} for person in made.outfits}
    assert [split[person] for person in range(8)] == [{"train"}] * 5 + [{"test"}] * 3
    assert all(splits == {"test"} for person, splits in split.items() if person >= 8)
    paths = [picture.path for picture in made.pictures]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_depends_on_its_source_of_chance_alone(name: str) -> None:
    assert plan(name, 3) == plan(name, 3)


@pytest.mark.parametrize("name", ["ltcc", "prcc", "market1501", "vc_clothes", "ccvid", "vccr"])
def test_another_seed_numbers_people_otherwise(name: str) -> None:
    people = PeopleCounts(20, 20)
    assert plan(name, 1, people).pictures != plan(name, 2, people).pictures


def test_prcc_dresses_people_alike_under_a_and_b_and_otherwise_under_c() -> None:
    made = plan("prcc")
    worn = {(picture.camera_label, picture.outfit) for picture in made.pictures}
    assert worn == {("A", 0), ("B", 0), ("C", 1)}


def test_prcc_val_shows_the_training_people_again() -> None:
    pictures = plan("prcc").pictures
    val = {picture.person for picture in pictures if "/val/" in picture.path}
    assert val == {picture.person for picture in pictures if "/train/" in picture.path} == {0, 1, 2}


def test_vc_clothes_dresses_people_alike_under_2_and_3_and_otherwise_under_4() -> None:
    for outfits in (2, 3):
        worn = {int(p.camera_label): p.outfit for p in plan("vc_clothes", outfits=outfits).pictures}
        assert worn[2] == worn[3] != worn[4]
        assert len(set(worn.values())) == outfits


def test_celeb_reid_numbers_people_anew_in_the_test_split() -> None:
    numbers = {(p.split, p.person_label) for p in plan("celeb_reid").pictures}
    assert numbers == {("train", n) for n in "123"} | {("test", n) for n in "1234"}


def test_market_distractors_are_nobody_s_match_and_junk_are_bad_boxes_of_test_people() -> None:
    pictures = plan("market1501", distractors=0.5, junk=0.25).pictures
    gallery = [p for p in pictures if p.role == "gallery" and p.person_label != layouts.DISTRACTOR]
    distractors = [p.person for p in pictures if p.person_label == layouts.DISTRACTOR]
    junk = [p for p in pictures if p.person_label == layouts.JUNK]
    # 4 people, 4 cameras, 3 gallery pictures each.
    assert (len(gallery), len(distractors), len(junk)) == (48, 24, 12)
    assert distractors == list(range(7, 31))
    assert all(p.bad_box and 3 <= p.person < 7 and p.path.startswith("bounding_box_test/-1_c") for p in junk)
    assert not any(p.bad_box for p in pictures if p not in junk)


def test_ltcc_lists_tell_who_changes_clothes() -> None:
    for outfits, changing in ((2, "change"), (1, "unchange")):
        made = plan("ltcc", outfits=outfits)
        for split, people in (("train", 3), ("test", 4)):
            numbers = {int(p.person_label) for p in made.pictures if p.split == split}
            listed = made.side_files[f"info/cloth-{changing}_id_{split}.txt"].split()
            assert [int(number) for number in listed] == sorted(numbers)
            assert len(numbers) == people
            other = "unchange" if changing == "change" else "change"
            assert made.side_files[f"info/cloth-{other}_id_{split}.txt"] == ""


def test_a_share_of_ltccs_training_people_keeps_its_clothes() -> None:
    made = plan("ltcc", outfits=2, unchanged=1 / 3)
    worn = {
        (p.split, p.person): {q.outfit for q in made.pictures if q.person == p.person} for p in made.pictures
    }
    assert [len(outfits) for (split, _), outfits in sorted(worn.items()) if split == "train"] == [1, 2, 2]
    assert all(len(outfits) == 2 for (split, _), outfits in worn.items() if split == "test")
    assert len(made.side_files["info/cloth-unchange_id_train.txt"].split()) == 1
    assert plan("ltcc", outfits=2, unchanged=0) == plan("ltcc", outfits=2)
    with pytest.raises(InputError, match=r"layout.unchanged=1.5 must be a number from 0 to 1"):
        plan("ltcc", unchanged=1.5)


def test_ccvid_walks_are_sequences_past_one_camera_in_one_outfit() -> None:
    pictures = plan("ccvid", walks=2, frames=5).pictures
    sequences: dict[int, list[Any]] = {}
    for picture in pictures:
        sequences.setdefault(picture.sequence, []).append(picture)
    assert len(sequences) == 7 * 3 * 2
    for frames in sequences.values():
        assert [frame.step for frame in frames] == list(range(5))
        assert len({(frame.person, frame.outfit, frame.camera, frame.camera_label) for frame in frames}) == 1
    assert {p.camera_label for p in pictures} == {"1", "2", "13", "14"}
    assert {p.camera for p in pictures} == {0, 1, 2, 3}


def test_vccr_walks_are_sequences_past_one_camera_in_one_outfit_and_a_folder_each() -> None:
    pictures = plan("vccr", frames=9).pictures
    sequences: dict[int, list[Any]] = {}
    for picture in pictures:
        sequences.setdefault(picture.sequence, []).append(picture)
    assert len(sequences) == 7 * 3 * 2
    assert len({picture.path.rpartition("/")[0] for picture in pictures}) == len(sequences)
    for frames in sequences.values():
        assert [frame.step for frame in frames] == list(range(9))
        assert (
            len(
                {
                    (frame.person, frame.outfit, frame.camera, frame.path.rpartition("/")[0])
                    for frame in frames
                }
            )
            == 1
        )


def test_bodies_are_textureless_and_wear_nothing() -> None:
    made = plan("bodies")
    assert made.textureless
    assert set(made.outfits.values()) == {1}
    assert len(made.pictures) == 7 * 4


def test_dressed_bodies_wear_another_outfit_in_each_picture_and_mixed_ones_in_every_second() -> None:
    dressed, mixed = plan("bodies", dress="dressed"), plan("bodies", dress="mixed")
    assert not dressed.textureless
    assert not mixed.textureless
    assert not any(picture.bare for picture in dressed.pictures)
    assert set(dressed.outfits.values()) == {4}
    assert len({picture.clothes_label for picture in dressed.pictures}) == 7 * 4
    assert [picture.bare for picture in mixed.pictures[:4]] == [False, True, False, True]
    # The same cameras, whatever they wear: a control differs in nothing else.
    assert [p.camera for p in dressed.pictures] == [p.camera for p in plan("bodies").pictures]


def test_an_unknown_dress_is_named() -> None:
    with pytest.raises(InputError, match=r"layout\.dress=naked is unknown; choose bare, dressed or mixed"):
        plan("bodies", dress="naked")


def test_a_count_that_is_no_whole_number_is_named() -> None:
    with pytest.raises(InputError, match=r"layout\.outfits=1\.5 must be a whole number"):
        plan("ltcc", outfits=1.5)
