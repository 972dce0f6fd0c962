"""Photographs: where the person is in them, what decides them, and what they do not give away."""

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from clip3dreid.body.poses import ground, sample
from clip3dreid.body.smpl import BodyModel, load_body
from clip3dreid.errors import InputError
from clip3dreid.synthetic.cameras import (
    CameraSettings,
    Shot,
    ShotSettings,
    SurveillanceCamera,
    misplaced,
    sample_camera,
    sample_shot,
)
from clip3dreid.synthetic.occluders import KINDS, Occluder, occlude
from clip3dreid.synthetic.photograph import Photograph, bare_bodies, photograph
from tests.body import meshes

HEIGHT, WIDTH = 96, 48
PLAIN = np.full((130, 160, 3), 128, np.uint8)


class Figure(NamedTuple):
    vertices: Tensor
    faces: Tensor
    attributes: Tensor


class Painted(NamedTuple):
    albedo: Tensor
    part: Tensor


def red(attributes: Tensor, person: Tensor) -> Painted:
    """Everybody is red below and blue above: the attribute is the height."""
    upper = attributes[:, :1] > 0.9
    return Painted(
        torch.where(upper, torch.tensor([0.1, 0.1, 0.8]), torch.tensor([0.8, 0.1, 0.1])),
        torch.where(upper[:, 0], 2, 1),
    )


@lru_cache
def body() -> BodyModel:
    return load_body("anny_light").requires_grad_(False)


def people(count: int, seed: int = 0, scale: float = 1.0) -> Figure:
    rng = np.random.default_rng([seed, 5])
    poses = np.stack([sample({"walking": 1.0, "standing": 1.0}, rng).axis_angle for _ in range(count)])
    betas = torch.from_numpy(rng.normal(0, 1, (count, 10)).astype(np.float32))
    vertices = body()(betas, torch.from_numpy(poses)).vertices
    vertices = (vertices + ground(vertices)[:, None]) * scale
    return Figure(vertices, body().faces, vertices[..., 1:2] / scale)


def plain_camera(**changes: Any) -> SurveillanceCamera:
    """No colours, no noise, no blur, no shadow."""
    one = sample_camera(
        np.random.default_rng(0),
        CameraSettings(
            cast=0,
            gamma=(1, 1),
            saturation=(1, 1),
            blur=(0, 0),
            noise=(0, 0),
            resolution=(1, 1),
            shadow=(0, 0),
            adaptation=(0, 0),
        ),
    )
    return dataclasses.replace(one, **changes)


def plain_shot(seed: int = 0, **changes: Any) -> Shot:
    """No jitter, no margin, no occluder, no motion."""
    settings = ShotSettings(margin=0, box_shift=0, box_scale=0, narrowest_box=0, motion=(0, 0), occluder=0)
    shot = sample_shot(np.random.default_rng([1, seed]), plain_camera(), settings)
    return dataclasses.replace(shot, **changes)


def take(
    figure: Figure,
    cameras: list[SurveillanceCamera],
    shots: list[Shot],
    canvases: list[np.ndarray] | None = None,
    first: int = 0,
) -> Photograph:
    count = len(figure.vertices)
    rngs = [np.random.default_rng([2, first + index]) for index in range(count)]
    return photograph(figure, red, cameras, shots, canvases or [PLAIN] * count, HEIGHT, WIDTH, rngs)


def test_a_picture_is_the_same_alone_and_among_others() -> None:
    count = 6
    figure = people(count)
    cameras = [sample_camera(np.random.default_rng([3, index]), CameraSettings()) for index in range(count)]
    shots = [
        sample_shot(np.random.default_rng([4, index]), one, ShotSettings(occluder=0.5))
        for index, one in enumerate(cameras)
    ]
    canvases = [
        np.random.default_rng(index).integers(0, 256, PLAIN.shape, np.uint8) for index in range(count)
    ]
    together = take(figure, cameras, shots, canvases)
    for index in range(count):
        one = slice(index, index + 1)
        alone = Figure(figure.vertices[one], figure.faces, figure.attributes[one])
        single = take(alone, cameras[one], shots[one], canvases[one], first=index)
        for name, value in single._asdict().items():
            np.testing.assert_array_equal(getattr(together, name)[one], value, err_msg=name)


def test_other_chance_changes_the_noise_alone() -> None:
    figure, camera = people(1), plain_camera(noise=0.02)
    one, same, other = (take(figure, [camera], [plain_shot()], first=first) for first in (0, 0, 1))
    np.testing.assert_array_equal(one.image, same.image)
    assert (one.image != other.image).mean() > 0.5
    np.testing.assert_array_equal(one.mask, other.mask)


def test_shapes_and_types() -> None:
    taken = take(people(2), [plain_camera()] * 2, [plain_shot()] * 2)
    assert taken.image.shape == (2, HEIGHT, WIDTH, 3)
    assert taken.mask.shape == taken.depth.shape == taken.part.shape == (2, HEIGHT, WIDTH)
    assert taken.image.dtype == taken.mask.dtype == taken.part.dtype == np.uint8
    assert taken.depth.dtype == taken.box.dtype == taken.visible.dtype == np.float32


@pytest.mark.parametrize("seed", range(4))
def test_without_margin_and_jitter_the_person_touches_all_four_edges(seed: int) -> None:
    mask = take(people(1, seed), [plain_camera()], [plain_shot(seed)]).mask[0]
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    # The tip of a finger or foot may be thinner than a sample.
    assert rows[0] <= 1
    assert rows[-1] >= HEIGHT - 2
    assert columns[0] <= 1
    assert columns[-1] >= WIDTH - 2


def test_the_margin_is_a_part_of_the_persons_size_on_each_side() -> None:
    mask = take(people(1), [plain_camera()], [plain_shot(margin=0.25)]).mask[0]
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    for place, size in ((rows, HEIGHT), (columns, WIDTH)):
        assert place[0] == pytest.approx(size / 6, abs=1.5)
        assert size - 1 - place[-1] == pytest.approx(size / 6, abs=1.5)


def test_a_shifted_box_moves_the_person_the_other_way() -> None:
    figure = people(1)
    exact = take(figure, [plain_camera()], [plain_shot(margin=0.5)])
    moved = take(figure, [plain_camera()], [plain_shot(margin=0.5, box_shift=(0.25, -0.125))])
    np.testing.assert_array_equal(
        moved.mask[0, HEIGHT // 8 :, : -WIDTH // 4], exact.mask[0, : -HEIGHT // 8, WIDTH // 4 :]
    )


def test_boxes_are_scaled_and_no_narrower_than_asked() -> None:
    figure, camera = people(1), plain_camera()

    def box(**changes: Any) -> np.ndarray:
        left, top, right, bottom = take(figure, [camera], [plain_shot(**changes)]).box[0]
        return np.array([right - left, bottom - top])

    np.testing.assert_allclose(box(box_scale=(1.2, 0.9)), box() * [1.2, 0.9], rtol=1e-5)
    wide = box(narrowest_box=1.5)
    assert wide[0] == pytest.approx(1.5 * wide[1], rel=1e-5)
    assert wide[1] == pytest.approx(box()[1], rel=1e-5)


def test_a_crop_does_not_show_how_tall_somebody_is() -> None:
    shots = [plain_shot(seed, margin=0.04) for seed in range(3)]
    cameras = [plain_camera(shadow=0.8)] * 3
    small, tall = (take(people(3, scale=scale), cameras, shots) for scale in (1.0, 1.25))
    np.testing.assert_allclose(small.box, tall.box, atol=1e-5)
    np.testing.assert_allclose(small.depth, tall.depth, rtol=1e-3)
    difference = np.abs(small.image.astype(int) - tall.image)
    # Vertices are snapped to parts of a pixel, so a sample on an edge may fall to the other side.
    assert np.mean(difference > 2) < 0.002


def test_depth_is_in_statures() -> None:
    camera, shot = plain_camera(), plain_shot(offset=(0.0, 0.0), pitch=0.0, yaw=0.0, distance=4.0)
    depth = take(people(1), [camera], [shot]).depth[0]
    np.testing.assert_array_equal(np.isfinite(depth), take(people(1), [camera], [shot]).mask[0] > 0)
    assert np.isinf(depth).any()
    assert depth[np.isfinite(depth)].mean() == pytest.approx(4, abs=0.1)


def test_people_off_the_middle_of_the_frame_have_boxes_there() -> None:
    figure, camera = people(1), plain_camera()
    for offset in ((0.2, 0.0), (-0.15, 0.1)):
        left, top, right, bottom = take(figure, [camera], [plain_shot(offset=offset, pitch=0.0)]).box[0]
        # Right and up of the frame's middle.
        assert (left + right) / 2 == pytest.approx(0.5 + offset[0], abs=0.03)
        assert (top + bottom) / 2 == pytest.approx(0.5 - offset[1], abs=0.03)


def test_parts_and_colours_are_where_the_paint_puts_them() -> None:
    taken = take(people(1), [plain_camera(ambient=1.0)], [plain_shot(light_strength=1.0)])
    inside = taken.mask[0] == 255
    for part, colour in ((1, (0.8, 0.1, 0.1)), (2, (0.1, 0.1, 0.8))):
        chosen = taken.image[0][inside & (taken.part[0] == part)]
        np.testing.assert_array_equal(np.median(chosen, 0), np.rint(255 * np.array(colour, np.float32)))
    assert taken.part[0][taken.mask[0] == 0].max() == 0
    assert taken.part[0][inside].min() == 1
    # Heads are up.
    assert taken.part[0, 2:40].max() == 2
    assert set(np.unique(taken.part[0, 70:])) == {0, 1}


def test_light_comes_from_where_the_shot_says() -> None:
    vertices, faces = meshes.sphere()
    figure = Figure((vertices + torch.tensor([0.0, 1.0, 0.0]))[None], faces, torch.zeros(1, len(vertices), 1))
    camera = plain_camera(ambient=0.2, light_elevation=0.3)
    pictures = [
        take(figure, [camera], [plain_shot(yaw=0.7, light_yaw=yaw)]).image[0].astype(float).sum(2)
        for yaw in (1.0, -1.0)
    ]
    right, left = (picture[:, WIDTH // 2 :].sum() / picture[:, : WIDTH // 2].sum() for picture in pictures)
    assert right > 1.2
    assert left < 1 / 1.2


def test_a_shadow_darkens_the_ground_beside_the_feet_and_nothing_above() -> None:
    # The light is low behind the camera, so the shadow lies behind the person and reaches far up in the picture.
    figure, shot = people(1), plain_shot(margin=0.2, pitch=0.5, light_yaw=0.3)
    cameras = [plain_camera(shadow=shadow, light_elevation=0.25) for shadow in (0.0, 1.0)]
    without, dark = (take(figure, [camera], [shot]) for camera in cameras)
    difference = (without.image.astype(int) - dark.image)[0].max(2)
    assert difference.min() >= 0
    assert difference[HEIGHT // 2 :].max() > 20
    assert difference[: HEIGHT // 3].max() == 0
    # Without the fade it would be as dark all along.
    upper, lower = difference[HEIGHT // 3 : HEIGHT // 2].max(), difference[HEIGHT // 2 :].max()
    assert upper < 0.6 * lower


@pytest.mark.parametrize("kind", KINDS)
def test_an_occluder_covers_the_person_and_is_known(kind: str) -> None:
    figure, camera = people(1), plain_camera()
    # Where a post is, there is a leg or the trunk.
    thing = Occluder(kind, 0.45, 0.4, (0.1, 0.9, 0.1), 3)
    free = take(figure, [camera], [plain_shot()])
    hidden = take(figure, [camera], [plain_shot(occluder=thing)])
    cover = occlude(thing, HEIGHT, WIDTH)[..., 3]
    assert (hidden.mask[0][cover == 255] == 0).all()
    assert (hidden.part[0][cover == 255] == 0).all()
    np.testing.assert_array_equal(hidden.image[0][cover == 0], free.image[0][cover == 0])
    assert free.visible[0] == 1
    expected = (free.mask[0] * (1 - cover / 255.0)).sum() / free.mask[0].sum()
    assert hidden.visible[0] == pytest.approx(expected, abs=0.01)
    assert 0.1 < hidden.visible[0] < 0.98


def test_an_occluder_is_as_bright_as_the_light() -> None:
    thing = Occluder("desk", 0.5, 0.4, (0.6, 0.6, 0.6), 3)
    bright, dim = (
        take(people(1), [plain_camera()], [plain_shot(occluder=thing, light_strength=strength)]).image[0]
        for strength in (1.0, 0.5)
    )
    hidden = occlude(thing, HEIGHT, WIDTH)[..., 3] == 255
    np.testing.assert_allclose(dim[hidden], bright[hidden] / 2, atol=1.01)


def test_a_misplaced_box_misses_much_of_the_person() -> None:
    figure, camera = people(1), plain_camera()
    full = take(figure, [camera], [plain_shot()]).box[0]
    area = []
    for seed in range(20):
        shot = misplaced(np.random.default_rng(seed), plain_shot())
        box = take(figure, [camera], [shot]).box[0]
        low, high = np.maximum(full[:2], box[:2]), np.minimum(full[2:], box[2:])
        union = np.prod(full[2:] - full[:2]) + np.prod(box[2:] - box[:2])
        shared = np.prod(np.clip(high - low, 0, None))
        area.append(shared / (union - shared))
    # Half an overlap is what counts as a hit.
    assert max(area) < 0.5


def test_exposure_follows_the_scene_and_not_the_clothes() -> None:
    figure = people(1)
    dark = np.full_like(PLAIN, 40)
    for adaptation, expected in ((0.0, 40), (1.0, 80)):
        shot = plain_shot(light_strength=1.0, margin=0.3)
        taken = take(figure, [plain_camera(adaptation=adaptation)], [shot], [dark])
        assert taken.image[0][taken.mask[0] == 0].mean() == pytest.approx(expected, abs=1)


def test_bodies_are_grey_and_lit() -> None:
    figure = people(2)
    rngs = [np.random.default_rng(index) for index in range(2)]
    cameras, shots = [plain_camera(ambient=0.3)] * 2, [plain_shot()] * 2
    bodies = bare_bodies(figure.vertices, figure.faces, [0.7, 0.2])
    taken = photograph(*bodies, cameras, shots, [PLAIN] * 2, HEIGHT, WIDTH, rngs)
    for image, mask in zip(taken.image, taken.mask, strict=True):
        inside = image[mask == 255].astype(int)
        np.testing.assert_array_equal(inside.max(1), inside.min(1))
        assert inside.std() > 5
    bright, dark = (taken.image[index][taken.mask[index] == 255].mean() for index in (0, 1))
    assert bright > 2 * dark
    assert set(np.unique(taken.part)) == {0, 1}


def test_one_of_each_is_needed_for_each_person() -> None:
    figure = people(2)
    rngs = [np.random.default_rng(0)] * 2
    with pytest.raises(InputError, match=r"2 people and .*'shots': 1"):
        photograph(figure, red, [plain_camera()] * 2, [plain_shot()], [PLAIN] * 2, HEIGHT, WIDTH, rngs)
    with pytest.raises(InputError, match="2 bodies and 1 greys"):
        bare_bodies(figure.vertices, figure.faces, [0.5])


def test_a_figure_in_double_precision_looks_the_same() -> None:
    figure = people(1)
    double = Figure(figure.vertices.double(), figure.faces, figure.attributes.double())

    def paint(attributes: Tensor, person: Tensor) -> Painted:
        painted = red(attributes, person)
        return Painted(painted.albedo.to(attributes), painted.part)

    rngs = [np.random.default_rng([2, 0])]
    taken = photograph(double, paint, [plain_camera()], [plain_shot()], [PLAIN], HEIGHT, WIDTH, rngs)
    single = take(figure, [plain_camera()], [plain_shot()])
    assert np.mean(np.abs(taken.image.astype(int) - single.image) > 1) < 0.002
