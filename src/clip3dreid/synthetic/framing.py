"""Place the camera and the light of a shot, and say which box a detector gives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clip3dreid.body.render import Camera, Light, project
from clip3dreid.synthetic.cameras import Shot, SurveillanceCamera


def lens(vertices: Tensor, cameras: Sequence[SurveillanceCamera], shots: Sequence[Shot]) -> Camera:
    """Place cameras before people.

    Args:
        vertices: (B, V, 3) metres, feet on y = 0.
        cameras: B of them.
        shots: B of them.

    Returns:
        Cameras as the renderer takes them. Scaling a person scales the camera's place with them: the picture stays.
    """

    def column(values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
        return vertices.new_tensor(values)

    low, high = vertices.amin(1), vertices.amax(1)
    distance = column([shot.distance for shot in shots]) * high[:, 1]
    # Sine and cosine by the math library: they are the same whatever the batch and the device.
    right = column([[math.cos(shot.yaw), 0.0, -math.sin(shot.yaw)] for shot in shots])
    wide = [2 * math.tan(camera.field_of_view / 2) for camera in cameras]
    shift = column([shot.offset for shot in shots]) * (column(wide) * distance)[:, None]
    target = (low + high) / 2 - right * shift[:, :1]
    target[:, 1] = high[:, 1] / 2 - shift[:, 1]
    return Camera(
        yaw=column([shot.yaw for shot in shots]),
        pitch=column([shot.pitch for shot in shots]),
        distance=distance,
        field_of_view=column([camera.field_of_view for camera in cameras]),
        target=target,
    )


def boxes(vertices: Tensor, camera: Camera, shots: Sequence[Shot]) -> Tensor:
    """Return the boxes that a detector gives.

    Args:
        vertices: (B, V, 3) metres, all of them inside the people or on their surface.
        camera: B cameras, see `lens`.
        shots: their margins, shifts, scales and narrowest boxes are used.

    Returns:
        (B, 4) left, top, right, bottom in the camera's frame.
    """
    points = project(vertices, camera, 1, 1)[..., :2]
    low, high = points.amin(1), points.amax(1)

    def column(values: Sequence[object]) -> Tensor:
        return vertices.new_tensor(values)

    size = (high - low) * (1 + 2 * column([[shot.margin] * 2 for shot in shots]))
    floor = column([shot.narrowest_box for shot in shots]) * size[:, 1]
    size = torch.stack([torch.maximum(size[:, 0], floor), size[:, 1]], 1)
    size = size * column([shot.box_scale for shot in shots])
    middle = (low + high) / 2 + size * column([shot.box_shift for shot in shots])
    return torch.cat([middle - size / 2, middle + size / 2], 1)


def light(vertices: Tensor, cameras: Sequence[SurveillanceCamera], shots: Sequence[Shot]) -> Light:
    """Return the light of shots, which stands still relative to the camera.

    Args:
        vertices: (B, V, 3), whose type and device are taken.
        cameras: B of them.
        shots: B of them.

    Returns:
        Light as the renderer takes it.
    """
    directions = []
    for camera, shot in zip(cameras, shots, strict=True):
        turn, flat = shot.yaw + shot.light_yaw, math.cos(camera.light_elevation)
        directions.append([math.sin(turn) * flat, math.sin(camera.light_elevation), math.cos(turn) * flat])
    ambient = vertices.new_tensor([camera.ambient for camera in cameras])
    strength = vertices.new_tensor([shot.light_strength for shot in shots])
    return Light(
        direction=vertices.new_tensor(directions),
        ambient=ambient * strength,
        diffuse=(1 - ambient) * strength,
        colour=vertices.new_tensor([camera.light_colour for camera in cameras]),
    )
