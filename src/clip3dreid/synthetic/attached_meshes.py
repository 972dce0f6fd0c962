"""Meshes that are not the body's skin: skirts and coat tails, hair that hangs, bags.

All are grids of fixed size that are bent into shape around each person in the rest pose and then move with the body.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clip3dreid.synthetic.garment_fit import FittedOutfit
from clip3dreid.synthetic.landmarks import ANKLE, HIP, KNEE, NECK, TOP, WAIST, interpolate_levels

LEVELS = 24
"""Heights at which a person's extent is measured for what hangs around it."""
_BAND = 0.04  # metres above and below a level; the coarsest body has a row of vertices in each
_LOWEST, _HIGHEST = 0.12, 1.40
TUBE = (14, 28)
"""Rings from top to hem, columns."""
CURTAIN = (10, 24)
"""Rows from the crown to the tips, columns; two thirds of them outside."""
BUN = (6, 9)
BAG = (8, 14)


class AttachedMesh(NamedTuple):
    """A mesh in the rest pose, for B people."""

    points: Tensor
    """(B, P, 3) metres."""
    weights: Tensor
    """(B, P, 24) skinning weights."""
    places: Tensor
    """(B, P, 3): where its colour is looked up."""
    present: Tensor
    """(B,) bool."""


class Extent(NamedTuple):
    """How far people reach at some heights, metres, (B, N) each."""

    side: Tensor
    front: Tensor
    back: Tensor


def grid(rows: int, columns: int) -> Tensor:
    """Return triangles (F, 3) of a tube of `rows` rings, seen from outside where rings go down and turn +x to +z."""
    row, column = torch.meshgrid(torch.arange(rows - 1), torch.arange(columns), indexing="ij")
    here = row * columns + column
    beside = row * columns + (column + 1) % columns
    first = torch.stack([here, beside, beside + columns], -1)
    second = torch.stack([here, beside + columns, here + columns], -1)
    return torch.stack([first, second], 2).reshape(-1, 3)


def smoothstep(value: Tensor, start: float, end: float) -> Tensor:
    """Return 0 at `start`, 1 at `end`, level at both; `start` may be the larger."""
    share = ((value - start) / (end - start)).clamp(0, 1)
    return share * share * (3 - 2 * share)


class Bands:
    """Which vertices of a body model lie at which height, for measuring people.

    Args:
        places: (V, 3) on the standard person.
        arms: (V,) how much of each vertex moves with the arms.
    """

    def __init__(self, places: Tensor, arms: Tensor) -> None:
        self.levels = torch.linspace(_LOWEST, _HIGHEST, LEVELS)
        gap = (places[:, 1] - self.levels[:, None]).abs()
        inside = (gap < _BAND) & (arms < 0.3)
        members = [row.nonzero()[:, 0] for row in inside]
        # A level without vertices, on a body coarser than any we know, borrows the nearest one.
        members = [
            indices if len(indices) else row.argmin()[None] for indices, row in zip(members, gap, strict=True)
        ]
        widest = max(map(len, members))
        self.index = torch.stack([torch.cat([m, m[:1].expand(widest - len(m))]) for m in members])

    def extent(self, vertices: Tensor, heights: Tensor) -> Extent:
        """Measure the reach of people (B, V, 3) in the rest pose at heights (B, N) of the standard person."""
        batch = len(vertices)
        near = vertices.index_select(1, self.index.flatten()).view(batch, *self.index.shape, 3)
        x, z = near[..., 0].abs(), near[..., 2]
        reach = (x.amax(2), z.amax(2), z.amin(2))
        return Extent(*(interpolate_levels(heights, self.levels, value) for value in reach))


def person_height(heights: Tensor, joints: Tensor) -> Tensor:
    """Return where heights (B, N) of the standard person are on people with rest joints (B, 24, 3): y (B, N)."""
    y = joints[..., 1]
    levels = torch.stack([y[:, 7:9].mean(1), y[:, 4:6].mean(1), y[:, 1:3].mean(1), y[:, 12]], 1)
    return interpolate_levels(heights, heights.new_tensor([ANKLE, KNEE, HIP, NECK]), levels)


def _columns(values: Sequence[Sequence[float]]) -> list[Tensor]:
    """Return (B, 1) tensors from B rows of numbers."""
    return list(torch.tensor(values, dtype=torch.float32)[:, :, None].unbind(1))


def tube(fitted: Sequence[FittedOutfit], vertices: Tensor, joints: Tensor, bands: Bands) -> AttachedMesh:
    """Make skirts and coat tails: rings around hips and legs that hang from the widest place above them.

    Args:
        fitted: B outfits.
        vertices: (B, V, 3) the naked people in the rest pose.
        joints: (B, 24, 3) likewise.
        bands: of the body model.
    """
    rings, columns = TUBE
    top, hem, ease, flare = _columns([(f.tube_top, f.tube_hem, f.tube_ease, f.tube_flare) for f in fitted])
    down = torch.linspace(0, 1, rings)[None]
    height = top + down * (hem - top)
    reach = bands.extent(vertices, height)
    # The first rings hide inside the trunk's own surface, then the cloth stands clear of it and hangs.
    off = (
        1.25 * ease * smoothstep(top - height, 0.01, 0.10)
        - 0.03 * smoothstep(top - height, 0.06, 0.0)
        + flare * down
    )
    side = reach.side.cummax(1).values + off
    front = reach.front.cummax(1).values + 0.8 * off
    back = reach.back.cummin(1).values - 0.8 * off
    angle = 2 * math.pi * torch.arange(columns) / columns
    # Between an ellipse and a box: two legs side by side.
    cosine, sine = (torch.sign(f) * f.abs() ** 0.85 for f in (angle.cos(), angle.sin()))
    depth = (front - back)[..., None] / 2
    x = side[..., None] * cosine
    z = (front + back)[..., None] / 2 + depth * sine
    y = person_height(height, joints)[..., None].expand_as(x)
    points = torch.stack([x, y, z], -1).flatten(1, 2)

    left = 0.5 + 0.5 * torch.tanh(2.2 * angle.cos())
    free = smoothstep(height, WAIST - 0.02, HIP - 0.10)[..., None].expand_as(x)
    shin = (0.85 * smoothstep(height, KNEE + 0.05, KNEE - 0.10))[..., None].expand_as(x)
    weights = points.new_zeros(*x.shape, 24)
    low, high = (smoothstep(height, *span)[..., None].expand_as(x) for span in ((0.98, 1.06), (1.06, 1.16)))
    weights[..., 0], weights[..., 3], weights[..., 6] = (1 - free) * (1 - low), low * (1 - high), high
    for thigh, knee, share in ((1, 4, left), (2, 5, 1 - left)):
        weights[..., thigh] = free * share * (1 - shin)
        weights[..., knee] = free * share * shin
    along = (angle * 0.16).expand_as(x)
    places = torch.stack([along, height[..., None].expand_as(x), sine.expand_as(x)], -1)
    return AttachedMesh(
        points, weights.flatten(1, 2), places.flatten(1, 2), torch.tensor([f.tube for f in fitted])
    )


class Skull:
    """The head's vertices, for fitting hair.

    Args:
        places: (V, 3) on the standard person.
        head: (V,) how much of each vertex moves with the head.
    """

    def __init__(self, places: Tensor, head: Tensor) -> None:
        # Ears do not count: hair lies on the skull behind and above them.
        self.index = ((head > 0.9) & (places[:, 1] > 1.50)).nonzero()[:, 0]
        self.top = ((head > 0.9) & (places[:, 1] > 1.62)).nonzero()[:, 0]

    def measure(self, vertices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Measure half width, front, back and crown of people (B, V, 3): (B, 1) each, metres."""
        head = vertices.index_select(1, self.index)
        wide = vertices.index_select(1, self.top)[..., 0].abs().amax(1, keepdim=True)
        z = head[..., 2]
        return wide, z.amax(1, keepdim=True), z.amin(1, keepdim=True), head[..., 1].amax(1, keepdim=True)


def _head_height(heights: Tensor, joints: Tensor, crown: Tensor) -> Tensor:
    """Return what `person_height` does, above the neck."""
    neck = joints[:, 12:13, 1]
    return neck + (heights - NECK) * (crown - neck) / (TOP - NECK)


def curtain(
    fitted: Sequence[FittedOutfit], vertices: Tensor, joints: Tensor, bands: Bands, skull: Skull
) -> AttachedMesh:
    """Make bobs and long hair: a shell, thick as a finger, from the crown around the back of the head to the tips."""
    rows, columns = CURTAIN
    outside = 2 * columns // 3
    long = torch.tensor([[f.style == "long"] for f in fitted])
    ease = torch.tensor([[f.upper_ease] for f in fitted])
    wide, front, back, crown = skull.measure(vertices)
    down = torch.linspace(0, 1, rows)[None]
    tip = torch.where(long, 1.27, 1.475)
    height = (TOP - 0.03) + down * (tip - TOP + 0.03)
    y = _head_height(height, joints, crown)
    # On the head it follows the skull; below, it falls down the back, outside of what is worn there.
    behind = bands.extent(vertices, torch.full((len(fitted), 1), 1.33)).back - ease - 0.022
    low = smoothstep(height, 1.50, 1.40)
    round_off = torch.sqrt((1 - ((height - 1.60).clamp_min(0) / 0.105) ** 2).clamp_min(0.02))
    middle = torch.lerp(0.55 * back + 0.45 * front, back, low)
    deep = torch.lerp((middle - back + 0.022) * round_off, middle - torch.minimum(behind, back), low)
    # Fuller at the jaw, thinner at the tips.
    full = (wide + 0.014 + 0.012 * smoothstep(height, 1.62, 1.50)) * round_off
    full = full * (1 - torch.where(long, 0.28, 0.0) * smoothstep(down, 0.5, 1.0))
    turn = math.pi * torch.lerp(torch.full_like(low, 0.60), torch.full_like(low, 0.48), low)
    share = torch.cat([torch.linspace(-1, 1, outside), torch.linspace(1, -1, columns - outside)])
    thick = torch.cat([torch.zeros(outside), torch.ones(columns - outside)]) * 0.026
    # Tips and front edges come to an end instead of being cut off like a board.
    thick = thick * (1 - 0.85 * down[..., None] ** 4)
    angle = turn[..., None] * share
    x = (full[..., None] - thick) * angle.sin()
    z = middle[..., None] - (deep[..., None] - thick).clamp_min(0.004) * angle.cos()
    points = torch.stack([x, y[..., None].expand_as(x), z], -1).flatten(1, 2)
    weights = points.new_zeros(*x.shape, 24)
    trunk = 0.85 * smoothstep(height, 1.49, 1.36)[..., None].expand_as(x)
    weights[..., 9], weights[..., 15] = trunk, 1 - trunk
    places = torch.stack([angle * 0.09, height[..., None].expand_as(x), share.expand_as(x)], -1)
    present = torch.tensor([f.style in ("bob", "long") for f in fitted])
    return AttachedMesh(points, weights.flatten(1, 2), places.flatten(1, 2), present)


def _ball(rows: int, columns: int, squareness: float) -> Tensor:
    """Return (rows * columns, 3) points of a ball (1) or, towards 0, of a box with round edges, half sizes 1."""
    fall = math.pi * torch.linspace(0, 1, rows)[:, None]
    turn = 2 * math.pi * torch.arange(columns)[None] / columns
    around = (turn.cos() * fall.sin(), fall.cos().expand(rows, columns), turn.sin() * fall.sin())
    ball = torch.stack([part.expand(rows, columns) for part in around], -1).flatten(0, 1)
    return ball / (ball.abs() ** (1 / squareness)).sum(1, keepdim=True) ** squareness


def bun(fitted: Sequence[FittedOutfit], vertices: Tensor, joints: Tensor, skull: Skull) -> AttachedMesh:
    """Make a ball of hair at the back of the head."""
    batch = len(fitted)
    _, _, back, crown = skull.measure(vertices)
    height = _head_height(torch.full((batch, 1), 1.660), joints, crown)
    centre = torch.cat([joints[:, 15, :1], height, back - 0.014], 1)
    ball = _ball(*BUN, 1 / 2).expand(batch, -1, -1)
    weights = ball.new_zeros(*ball.shape[:2], 24)
    weights[..., 15] = 1
    return AttachedMesh(
        centre[:, None] + 0.052 * ball, weights, ball, torch.tensor([f.style == "bun" for f in fitted])
    )


def bag(fitted: Sequence[FittedOutfit], vertices: Tensor, joints: Tensor, bands: Bands) -> AttachedMesh:
    """Make a backpack behind the shoulder blades, or a bag beside the hip."""
    batch = len(fitted)
    ease = torch.tensor([[f.upper_ease] for f in fitted])
    side = torch.tensor([[float(f.outfit.bag_side)] for f in fitted])
    on_back = torch.tensor([[f.outfit.bag == "backpack"] for f in fitted])
    heights = torch.tensor([[1.19, 0.92]]).expand(batch, 2)
    y = person_height(heights, joints)
    behind = bands.extent(vertices, torch.full((batch, 1), 1.30)).back - ease
    beside = bands.extent(vertices, torch.full((batch, 1), 0.93)).side + ease
    pack, purse = torch.tensor([0.145, 0.20, 0.075]), torch.tensor([0.045, 0.115, 0.145])
    pack_at = torch.cat([joints[:, 9, :1], y[:, :1], behind - 0.055], 1)
    purse_at = torch.cat([side * (beside + 0.035), y[:, 1:], joints[:, 0, 2:] - 0.05], 1)
    ball = _ball(*BAG, 0.22).expand(batch, -1, -1)
    centre, half = torch.where(on_back, pack_at, purse_at), torch.where(on_back, pack, purse)
    weights = ball.new_zeros(*ball.shape[:2], 24)
    weights[..., 9], weights[..., 0] = on_back.to(ball.dtype), (~on_back).to(ball.dtype)
    present = torch.tensor([f.outfit.bag != "none" for f in fitted])
    return AttachedMesh(centre[:, None] + half[:, None] * ball, weights, ball, present)
