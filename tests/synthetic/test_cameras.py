"""Cameras and shots as numbers: what is drawn, from where, and what is refused."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from clip3dreid.errors import InputError
from clip3dreid.synthetic.cameras import (
    CameraSettings,
    Shot,
    ShotSettings,
    SurveillanceCamera,
    misplaced,
    next_shot,
    sample_camera,
    sample_shot,
)
from clip3dreid.synthetic.occluders import KINDS, Occluder


def camera(seed: int = 0, **settings: object) -> SurveillanceCamera:
    return sample_camera(np.random.default_rng(seed), CameraSettings(**settings))  # type: ignore[arg-type]


def shots(count: int, one: SurveillanceCamera | None = None, **settings: object) -> list[Shot]:
    chosen = ShotSettings(**settings)  # type: ignore[arg-type]
    return [sample_shot(np.random.default_rng([5, index]), one or camera(), chosen) for index in range(count)]


def test_the_same_source_of_chance_gives_the_same_camera_and_shot_and_another_gives_another() -> None:
    assert camera(3) == camera(3)
    assert camera(3) != camera(4)
    assert shots(2) == shots(2)
    assert shots(2)[0] != shots(2)[1]


def test_cameras_and_shots_survive_json() -> None:
    one = camera()
    values = json.loads(json.dumps(dataclasses.asdict(one)))
    pairs: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    assert SurveillanceCamera(**pairs) == one
    hidden = shots(1, occluder=1.0)[0]
    values = json.loads(json.dumps(dataclasses.asdict(hidden)))
    assert values["yaw"] == hidden.yaw
    assert hidden.occluder is not None
    assert values["occluder"]["seed"] == hidden.occluder.seed


def test_angles_of_the_settings_are_degrees_and_those_of_a_camera_radians() -> None:
    one = camera(pitch=(18, 18), field_of_view=(90, 90), light_elevation=(45, 45))
    assert one.pitch == pytest.approx(math.pi / 10)
    assert one.field_of_view == pytest.approx(math.pi / 2)
    assert one.light_elevation == pytest.approx(math.pi / 4)


def test_gains_are_around_one_and_none_without_a_cast() -> None:
    assert np.mean(camera(cast=0.2).cast) == pytest.approx(1)
    assert np.std([camera(seed, cast=0.1).cast for seed in range(300)]) == pytest.approx(
        0.1 * math.sqrt(2 / 3), rel=0.1
    )
    assert camera(cast=0).cast == (1, 1, 1)


def test_people_are_seen_within_the_view_range_of_front_or_back() -> None:
    one = dataclasses.replace(camera(), back=0.25)
    yaws = np.array([shot.yaw for shot in shots(400, one, view_range=20)])
    from_front = np.abs(yaws) <= math.radians(20)
    from_back = np.abs(yaws - math.pi) <= math.radians(20)
    assert (from_front ^ from_back).all()
    assert from_back.mean() == pytest.approx(0.25, abs=0.07)
    assert np.abs(yaws[from_front]).max() > math.radians(18)


def test_a_camera_keeps_its_height_whatever_the_distance() -> None:
    one = camera()
    heights = [shot.distance * math.sin(shot.pitch) for shot in shots(20, one)]
    np.testing.assert_allclose(heights, one.distance * math.sin(one.pitch), rtol=1e-12)


def test_boxes_are_jittered_as_much_as_asked() -> None:
    made = shots(2000, box_shift=0.05, box_scale=0.1)
    assert np.std([shot.box_shift for shot in made]) == pytest.approx(0.05, rel=0.06)
    assert np.std(np.log([shot.box_scale for shot in made])) == pytest.approx(0.1, rel=0.06)
    exact = shots(1, box_shift=0, box_scale=0)[0]
    assert (exact.box_shift, exact.box_scale) == ((0, 0), (1, 1))


def test_occluders_come_as_often_as_asked_and_of_the_kinds_asked() -> None:
    made = [shot.occluder for shot in shots(600, occluder=0.3, occluders={"post": 3, "desk": 1, "plant": 0})]
    kinds = [thing.kind for thing in made if isinstance(thing, Occluder)]
    assert len(kinds) / 600 == pytest.approx(0.3, abs=0.06)
    assert set(kinds) == {"post", "desk"}
    assert kinds.count("post") / len(kinds) == pytest.approx(0.75, abs=0.1)


def test_the_next_shot_of_a_sequence_changes_box_and_motion_alone() -> None:
    before = shots(1, occluder=1.0)[0]
    after = next_shot(np.random.default_rng(1), before, ShotSettings())
    changed = {
        field.name
        for field in dataclasses.fields(Shot)
        if getattr(before, field.name) != getattr(after, field.name)
    }
    assert changed == {"box_shift", "box_scale", "motion"}


def test_a_misplaced_box_is_off_by_a_third_of_its_size_at_least() -> None:
    for seed in range(50):
        shift = misplaced(np.random.default_rng(seed), shots(1)[0]).box_shift
        assert min(abs(shift[0]), abs(shift[1])) >= 0.3


def test_settings_take_what_a_yaml_file_gives() -> None:
    given = OmegaConf.create({"pitch": [5, 10], "cast": 0})
    assert CameraSettings(pitch=given.pitch, cast=given.cast) == CameraSettings(pitch=(5.0, 10.0), cast=0.0)
    weights = OmegaConf.create({"occluders": {"post": 1}})
    assert ShotSettings(occluders=weights.occluders).occluders == {"post": 1.0}
    json.dumps(dataclasses.asdict(ShotSettings(occluders=weights.occluders)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pitch", (10, 5)),
        ("pitch", (5,)),
        ("pitch", 5),
        ("pitch", "steep"),
        ("quality", (0, 50)),
        ("noise", (float("nan"), 0.1)),
        ("cast", -0.1),
        ("cast", (0, 0.1)),
        ("resolution", (0, 1)),
    ],
)
def test_camera_settings_out_of_bounds_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"CameraSettings\.{name} is .*; give"):
        CameraSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"view_range": 120}, {"occluders": {"tree": 1}}, {"occluders": {"post": -1}}, {"occluders": {}}],
)
def test_shot_settings_out_of_bounds_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="ShotSettings"):
        ShotSettings(**settings)  # type: ignore[arg-type]


def test_every_kind_of_occluder_is_drawn_by_default() -> None:
    assert {shot.occluder.kind for shot in shots(100, occluder=1.0) if shot.occluder} == set(KINDS)
