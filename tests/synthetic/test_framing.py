"""Where cameras, lights and boxes are, in numbers."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from clip3dreid.body.poses import ground, standing
from clip3dreid.body.render import project
from clip3dreid.body.smpl import load_body
from clip3dreid.synthetic.cameras import CameraSettings, Shot, ShotSettings, sample_camera, sample_shot
from clip3dreid.synthetic.framing import boxes, lens, light

HEIGHT, WIDTH = 96, 48
CAMERA = sample_camera(np.random.default_rng(0), CameraSettings(light_elevation=(30, 30)))


def shot_of(**changes: Any) -> Shot:
    """No jitter, no margin but for the changes."""
    settings = ShotSettings(margin=0, box_shift=0, box_scale=0, narrowest_box=0)
    return dataclasses.replace(sample_shot(np.random.default_rng(1), CAMERA, settings), **changes)


def test_the_view_is_of_the_side_that_the_shot_says() -> None:
    vertices = torch.tensor([[[-0.1, 0.0, 0.3], [0.1, 0.0, 0.3], [0.0, 1.0, 0.3], [0.0, 0.2, -0.3]]])
    for yaw, nearer in ((0.0, -0.3), (math.pi, 0.3)):
        seen = lens(vertices, [CAMERA], [shot_of(yaw=yaw, offset=(0.0, 0.0), pitch=0.0)])
        depth = project(vertices, seen, 10, 10)[0, :, 2] - seen.distance
        # Depths are about the middle of the person.
        assert float(depth[0]) == pytest.approx(nearer, abs=1e-5)


def test_standing_people_have_the_whole_head_in_the_picture() -> None:
    body = load_body("anny_light").requires_grad_(False)
    pose = torch.from_numpy(standing(np.random.default_rng(0)))[None]
    vertices = body(torch.zeros(1, 10), pose).vertices
    vertices = vertices + ground(vertices)[:, None]
    shot = shot_of(margin=0.04)
    camera = lens(vertices, [CAMERA], [shot])
    box = boxes(vertices, camera, [shot])
    points = project(vertices, camera, HEIGHT, WIDTH, box)[0, :, :2]
    expected = torch.tensor([WIDTH, HEIGHT]) * 0.04 / 1.08
    torch.testing.assert_close(points.amin(0), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.tensor([WIDTH, HEIGHT]) - points.amax(0), expected, atol=1e-3, rtol=0)


def test_the_light_turns_with_the_camera() -> None:
    lamp = light(
        torch.zeros(2, 1, 3),
        [CAMERA] * 2,
        [shot_of(yaw=0.0, light_yaw=0.5), shot_of(yaw=1.0, light_yaw=-0.5)],
    )
    flat = math.cos(math.pi / 6)
    expected = [[math.sin(yaw) * flat, 0.5, math.cos(yaw) * flat] for yaw in (0.5, 0.5)]
    torch.testing.assert_close(lamp.direction, torch.tensor(expected))


def test_ambient_and_far_light_add_up_to_the_strength() -> None:
    lamp = light(
        torch.zeros(1, 1, 3), [dataclasses.replace(CAMERA, ambient=0.6)], [shot_of(light_strength=1.5)]
    )
    assert float(lamp.ambient) == pytest.approx(0.9)
    assert float(lamp.diffuse) == pytest.approx(0.6)
