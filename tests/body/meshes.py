"""Meshes with known shapes, and cameras and lights to see them by."""

import math

import torch
from torch import Tensor

from clip3dreid.body.render import Camera, Light


def sphere(rings: int = 24, sectors: int = 48, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A closed sphere of radius 1 about the origin: vertices (V, 3), faces (F, 3)."""
    polar = torch.arange(1, rings, dtype=torch.float64)[:, None] * (math.pi / rings)
    around = torch.arange(sectors, dtype=torch.float64)[None] * (2 * math.pi / sectors)
    body = torch.stack(
        [polar.sin() * around.sin(), polar.cos().expand(-1, sectors), polar.sin() * around.cos()], 2
    )
    pole = torch.tensor([[0.0, 1, 0]], dtype=torch.float64)
    vertices = torch.cat([pole, body.view(-1, 3), -pole])
    faces = []
    for j in range(sectors):
        k = (j + 1) % sectors
        faces += [
            (0, 1 + j, 1 + k),
            (len(vertices) - 1, len(vertices) - 1 - sectors + k, len(vertices) - 1 - sectors + j),
        ]
        for i in range(rings - 2):
            a, b = 1 + i * sectors + j, 1 + i * sectors + k
            faces += [(a, a + sectors, b + sectors), (a, b + sectors, b)]
    return vertices.to(dtype), torch.tensor(faces)


def box(size: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """A closed box of these edge lengths about the origin: vertices (8, 3), faces (12, 3)."""
    corners = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in sides for face in ((a, b, c), (a, c, d))]
    return torch.tensor(corners) * torch.tensor(size) / 2, torch.tensor(faces)


def camera(
    batch: int = 1,
    yaw: float = 0,
    pitch: float = 0,
    distance: float = 4,
    field_of_view: float = 0.6,
    target: tuple[float, float, float] = (0, 0, 0),
    dtype: torch.dtype = torch.float32,
) -> Camera:
    def same(value: float) -> Tensor:
        return torch.full((batch,), value, dtype=dtype)

    place = torch.tensor([target], dtype=dtype).expand(batch, 3)
    return Camera(same(yaw), same(pitch), same(distance), same(field_of_view), place)


def light(
    batch: int = 1,
    direction: tuple[float, float, float] = (0.4, 0.5, 0.8),
    ambient: float = 0.35,
    dtype: torch.dtype = torch.float32,
) -> Light:
    def same(value: float) -> Tensor:
        return torch.full((batch,), value, dtype=dtype)

    towards = torch.tensor([direction], dtype=dtype).expand(batch, 3)
    return Light(towards, same(ambient), same(1 - ambient), torch.ones(batch, 3, dtype=dtype))
