"""Measure bodies as a tailor would: lengths, girths, and where they stand in a population.

Girths are those of a tape, so of the convex hull of a plane slice: by Cauchy's formula its length is 2 pi times
the mean, over all directions, of how far the slice reaches. That is batched, and differentiable in the shape
coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip3dreid.errors import InputError

DENSITY = 985.0
"""kg / m3 of a body with air in its lungs (Krzywicki and Chinn, 1967, give 1.06 without)."""

DIRECTIONS = 36
"""Directions in half a turn's worth of which Cauchy's mean is taken; on an ellipse of 2:1 it is exact to 1e-6."""

MEASURES = (
    "stature",
    "weight_index",
    "shoulder_breadth",
    "chest_girth",
    "waist_girth",
    "hip_girth",
    "thigh_girth",
    "calf_girth",
    "upper_arm_girth",
    "arm_length",
    "leg_length",
    "torso_length",
    "neck_length",
    "belly",
)
"""In metres, but for `weight_index` in kg / m2. `gender` (0 male .. 1 female) and `muscularity` (0..1) come with
bodies whose file has phenotypes."""

_PHENOTYPES = {"gender": "gender", "muscularity": "muscle"}

# Where slices are laid, as fractions of the way from the hips to the neck; the tape takes the fullest or narrowest.
# Not higher: there the arms begin, and a tape would run into the armpit.
CHEST = (0.58, 0.61, 0.64)
WAIST = (0.22, 0.29, 0.36, 0.43, 0.50)
HIP = (-0.18, -0.10, -0.02, 0.06)
# As fractions of the way from joint to joint.
THIGH, CALF, UPPER_ARM = 0.35, 0.30, 0.50


class Body(Protocol):
    """What is asked of a body model; `smpl.BodyModel` and `official.OfficialBody` answer it."""

    faces: Tensor
    skinning_weights: Tensor
    phenotypes: dict[str, Tensor]

    def rest(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Return vertices (B, V, 3) and joints (B, 24, 3) in the rest pose."""
        ...


class _Edges(NamedTuple):
    torso: Tensor
    thigh: Tensor
    calf: Tensor
    upper_arm: Tensor


def _edges(body: Body) -> _Edges:
    """Return (E, 2) edges of each part that is sliced; the arms stay out of the torso's."""
    faces, owner = body.faces, body.skinning_weights
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = edges[edges[:, 0] < edges[:, 1]]

    def of(*joints: int) -> Tensor:
        share = owner[:, list(joints)].sum(1) > 0.5
        return edges[share[edges].all(1)]

    return _Edges(of(0, 1, 2, 3, 6, 9, 12, 13, 14), of(0, 1, 4), of(1, 4, 7), of(13, 16, 18))


@lru_cache(maxsize=8)
def _directions(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    angles = [2 * math.pi * i / count for i in range(count)]
    return tuple(map(math.cos, angles)), tuple(map(math.sin, angles))


def slice_support(vertices: Tensor, edges: Tensor, point: Tensor, normal: Tensor, towards: Tensor) -> Tensor:
    """Return how far plane slices of a surface reach.

    Args:
        vertices: (B, V, 3).
        edges: (E, 2) of the part that is sliced.
        point: (B, S, 3) a point of each of S planes.
        normal: (B, S, 3) the planes' unit normals.
        towards: (B, S, D, 3) directions in each plane.

    Returns:
        (B, S, D) the largest distance of the slice from `point` along each direction; -inf where nothing is cut.
    """
    offset = (point * normal).sum(-1, keepdim=True)  # (B, S, 1)
    height = normal @ vertices.transpose(1, 2) - offset  # (B, S, V)
    before, after = height[..., edges[:, 0]], height[..., edges[:, 1]]
    # A plane cuts few edges, so what follows is done for those alone.
    cut = ((before < 0) != (after < 0)).nonzero(as_tuple=True)
    body, plane, edge = cut
    first, second = vertices[body, edges[edge, 0]], vertices[body, edges[edge, 1]]  # (N, 3)
    share = before[cut] / (before[cut] - after[cut])
    where = torch.lerp(first, second, share[:, None]) - point[body, plane]
    reach = (towards[body, plane] @ where[..., None])[..., 0]  # (N, D)
    shape = towards.shape[:3]
    row = (body * shape[1] + plane)[:, None].expand_as(reach)
    none = reach.new_full((shape[0] * shape[1], shape[2]), -math.inf)
    support: Tensor = none.scatter_reduce(0, row, reach, "amax").view(shape)
    return support


def girths(vertices: Tensor, edges: Tensor, point: Tensor, normal: Tensor) -> Tensor:
    """Measure lengths of a tape around plane slices.

    Args:
        vertices: (B, V, 3) metres.
        edges: (E, 2).
        point: (B, S, 3).
        normal: (B, S, 3) unit normals.

    Returns:
        (B, S) metres; 0 where the plane cuts nothing.
    """
    helper = torch.where(
        normal[..., :1].abs() < 0.8, normal.new_tensor([1.0, 0.0, 0.0]), normal.new_tensor([0.0, 0.0, 1.0])
    )
    across = torch.nn.functional.normalize(torch.linalg.cross(normal, helper.expand_as(normal)), dim=-1)
    along = torch.linalg.cross(normal, across)
    cosine, sine = (normal.new_tensor(values)[:, None] for values in _directions(DIRECTIONS))
    towards = across[:, :, None] * cosine + along[:, :, None] * sine
    reach = slice_support(vertices, edges, point, normal, towards)
    length: Tensor = torch.where(torch.isinf(reach), torch.zeros_like(reach), reach).mean(-1) * 2 * math.pi
    return length


def volume(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return (B,) cubic metres inside a closed surface: the sum of its faces' signed tetrahedra."""
    a, b, c = (vertices[:, faces[:, i]] for i in range(3))
    inside: Tensor = (a * torch.linalg.cross(b, c)).sum((-1, -2)) / 6
    return inside


def _between(joints: Tensor, first: int, second: int) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(joints[:, second] - joints[:, first], dim=-1)
    return length


def measure(body: Body, betas: Tensor) -> dict[str, Tensor]:
    """Measure bodies in the rest pose.

    Args:
        body: any body model with SMPL's 24 joints.
        betas: (B, K).

    Returns:
        name -> (B,), the names in `MEASURES`, and `gender` and `muscularity` where the body's file tells them.
        Differentiable in betas.

    Raises:
        InputError: if a plane that should cut the torso does not.
    """
    parts = [_measure(body, chunk) for chunk in torch.split(betas, 64)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _measure(body: Body, betas: Tensor) -> dict[str, Tensor]:
    vertices, joints = body.rest(betas)
    edges = _edges(body)
    up = vertices.new_tensor([0.0, 1.0, 0.0])
    hips = (joints[:, 1] + joints[:, 2]) / 2
    neck = joints[:, 12]

    def torso(levels: tuple[float, ...]) -> Tensor:
        way = vertices.new_tensor(levels)[:, None]
        return hips[:, None] + way * (neck - hips)[:, None]

    def limb(part: Tensor, first: int, second: int, way: float) -> Tensor:
        bone = joints[:, second] - joints[:, first]
        point = joints[:, first] + way * bone
        normal = torch.nn.functional.normalize(bone, dim=-1)
        return girths(vertices, part, point[:, None], normal[:, None])[:, 0]

    levels = torso(CHEST + WAIST + HIP)
    around = girths(vertices, edges.torso, levels, up.expand_as(levels))
    chest, waist, hip = torch.split(around, [len(CHEST), len(WAIST), len(HIP)], 1)
    front = vertices.new_tensor([0.0, 0.0, 1.0]).expand(*levels.shape[:2], 1, 3)
    reach = slice_support(vertices, edges.torso, levels * up, up.expand_as(levels), front)[..., 0]
    stature = vertices[..., 1].amax(1) - vertices[..., 1].amin(1)
    if not bool(torch.isfinite(reach).all()):
        raise InputError(
            "a slice through the torso cuts nothing; is this a body of SMPL's joints, with finite betas?"
        )
    measures = {
        "stature": stature,
        "weight_index": DENSITY * volume(vertices, body.faces) / stature**2,
        "shoulder_breadth": _between(joints, 16, 17),
        "chest_girth": chest.amax(1),
        "waist_girth": waist.amin(1),
        "hip_girth": hip.amax(1),
        "thigh_girth": limb(edges.thigh, 1, 4, THIGH),
        "calf_girth": limb(edges.calf, 4, 7, CALF),
        "upper_arm_girth": limb(edges.upper_arm, 16, 18, UPPER_ARM),
        "arm_length": _between(joints, 16, 18) + _between(joints, 18, 20),
        "leg_length": _between(joints, 1, 4)
        + _between(joints, 4, 7)
        + joints[:, 7, 1]
        - vertices[..., 1].amin(1),
        "torso_length": (neck - hips).norm(dim=-1),
        "neck_length": _between(joints, 12, 15),
        # How far the belly stands out before the chest; negative where it does not.
        "belly": reach[:, len(CHEST) : len(CHEST) + 4].amax(1) - reach[:, : len(CHEST)].amax(1),
    }
    for name, phenotype in _PHENOTYPES.items():
        if phenotype in body.phenotypes:
            linear = body.phenotypes[phenotype].to(betas)
            # Squashed and not cut off, so that no two people tie at the ends; of slope 1 in the middle.
            measures[name] = 0.5 + 0.5 * torch.tanh(2 * (linear[0] + betas @ linear[1:] - 0.5))
    return measures


def sample_betas(
    rng: np.random.Generator,
    count: int,
    num_betas: int = 10,
    stature_spread: float = 1.0,
    shape_spread: float | Sequence[float] = 1.0,
) -> npt.NDArray[np.float32]:
    """Draw shapes.

    Args:
        rng: where the numbers come from.
        count: N.
        num_betas: K.
        stature_spread: standard deviation of the first coefficient; 1 is the population of the body's file.
        shape_spread: of the others, one number or K - 1 of them.

    Returns:
        (N, K) normal draws, none beyond 2.5 standard deviations.

    Raises:
        InputError: if there are spreads for another number of components.
    """
    spread = np.asarray(shape_spread, float)
    if spread.ndim and spread.shape != (num_betas - 1,):
        raise InputError(
            f"shape_spread has {spread.size} numbers and the body {num_betas - 1} components beyond stature; "
            "give one number, or one for each"
        )
    draws = rng.standard_normal((count, num_betas))
    while (far := np.abs(draws) > 2.5).any():
        draws[far] = rng.standard_normal(int(far.sum()))
    draws[:, :1] *= stature_spread
    draws[:, 1:] *= spread
    return draws.astype(np.float32)


def percentiles(values: Mapping[str, Tensor], population: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return where measures stand among those of a population.

    Args:
        values: name -> (B,).
        population: name -> (N,), with the same names.

    Returns:
        name -> (B,) 0..100: the share of the population below, and half of that which is equal.
    """
    places = {}
    for name, value in values.items():
        ordered = population[name].sort().values
        below = torch.searchsorted(ordered, value.contiguous())
        up_to = torch.searchsorted(ordered, value.contiguous(), right=True)
        places[name] = 50.0 * (below + up_to) / len(ordered)
    return places
