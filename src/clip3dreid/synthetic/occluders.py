"""Things that stand before a person: a post, a plant, a passer-by, the edge of a desk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Layer: TypeAlias = npt.NDArray[np.uint8]
_Points: TypeAlias = npt.NDArray[Any]
_SHIFT = 4  # OpenCV takes points in sixteenths of a pixel


@dataclass(frozen=True)
class Occluder:
    """A thing before a person; `dataclasses.asdict` is ready for JSON."""

    kind: str
    """One of `KINDS`."""
    position: float
    """0 is the left edge of the picture, 1 the right one."""
    size: float
    """About what part of the picture's width (what stands; a post two thirds of it) or height (a desk) it takes."""
    colour: tuple[float, float, float]
    """RGB, 0..1."""
    seed: int
    """Of its details."""


class _Sheet:
    """A transparent RGBA sheet to draw on, in parts of its width and height."""

    def __init__(self, height: int, width: int, colour: tuple[float, float, float]) -> None:
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self.pixels[..., :3] = self.rgb(colour, 1.0)[:3]  # so that soft edges do not turn black
        self.size = np.array([width, height], np.float64)

    @staticmethod
    def rgb(
        colour: tuple[float, float, float] | npt.NDArray[Any], factor: float
    ) -> tuple[int, int, int, int]:
        red, green, blue = (int(min(max(channel * factor, 0), 1) * 255) for channel in colour)
        return red, green, blue, 255

    def points(self, points: _Points) -> npt.NDArray[np.int32]:
        scaled: npt.NDArray[np.int32] = np.round((np.asarray(points) * self.size - 0.5) * 2**_SHIFT).astype(
            np.int32
        )
        return scaled

    def polygon(self, points: _Points, colour: tuple[int, int, int, int]) -> None:
        cv2.fillPoly(self.pixels, [self.points(points)], colour, cv2.LINE_AA, _SHIFT)

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int, int]
    ) -> None:
        self.polygon(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]), colour)


def _post(sheet: _Sheet, thing: Occluder, rng: np.random.Generator) -> None:
    """Draw a post or pillar from top to bottom, rounded by its shades."""
    half = thing.size / 3
    edges = np.linspace(-half, half, 8)
    lit = rng.uniform(-0.6, 0.6)
    for left, right in itertools.pairwise(edges):
        middle = (left + right) / 2 / half
        shade = 0.55 + 0.5 * max(0.0, math.cos(1.3 * (middle - lit)))
        sheet.box(thing.position + left, -0.1, thing.position + right, 1.1, sheet.rgb(thing.colour, shade))


def _plant(sheet: _Sheet, thing: Occluder, rng: np.random.Generator) -> None:
    """Draw leaves from a pot at the bottom edge."""
    aspect = sheet.size[1] / sheet.size[0]
    green = np.array([0.12, 0.34, 0.12]) * rng.uniform(0.7, 1.4) + rng.uniform(0, 0.1, 3)
    root = np.array([thing.position, 1.02])
    tall = thing.size * 1.2
    for _ in range(int(26 + 30 * thing.size)):
        angle = rng.normal(0, 0.65)
        reach = tall * rng.uniform(0.35, 1.0)
        along = np.array([math.sin(angle) * aspect, -math.cos(angle)])
        across = np.array([math.cos(angle) * aspect, math.sin(angle)]) * reach * rng.uniform(0.06, 0.13)
        tip = root + along * reach
        middle = root + along * reach * 0.55
        leaf = np.array([root + along * reach * 0.15, middle + across, tip, middle - across])
        sheet.polygon(leaf, sheet.rgb(green, rng.uniform(0.5, 1.3)))
    pot = 0.12 * thing.size * aspect
    low = 1 - 0.15 * thing.size
    corners = [[-1.2 * pot, low], [1.2 * pot, low], [pot, 1.1], [-pot, 1.1]]
    sheet.polygon(np.add(corners, [thing.position, 0]), sheet.rgb(thing.colour, 1.0))


def _passer_by(sheet: _Sheet, thing: Occluder, rng: np.random.Generator) -> None:
    """Draw somebody nearer to the camera, cut by the picture's left or right edge, whichever is nearer."""
    aspect = sheet.size[1] / sheet.size[0]
    side = -1.0 if thing.position < 0.5 else 1.0
    edge = 0.0 if side < 0 else 1.0
    inner = edge - side * thing.size
    half = rng.uniform(0.17, 0.22) * aspect
    middle = inner + side * half
    top = rng.uniform(-0.05, 0.22)
    skin = np.array([0.72, 0.52, 0.42]) * rng.uniform(0.45, 1.15)
    lower = np.array([0.2, 0.22, 0.28]) * rng.uniform(0.4, 1.8)
    angle = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    round_ = np.stack([np.cos(angle), np.sin(angle)], 1)
    waist = top + 0.55
    legs = [[-0.78, waist - 0.05], [0.78, waist - 0.05], [0.7, 1.1], [-0.7, 1.1]]
    sheet.polygon(np.array(legs) * [half, 1] + [middle, 0], sheet.rgb(lower, 1))
    torso = [
        [-0.3, 0.13],
        [-0.85, 0.17],
        [-1, 0.27],
        [-0.95, 0.62],
        [-0.7, 0.62],
        [0.7, 0.62],
        [0.95, 0.62],
        [1, 0.27],
        [0.85, 0.17],
        [0.3, 0.13],
    ]
    sheet.polygon(np.array(torso) * [half, 1] + [middle, top], sheet.rgb(thing.colour, 1))
    shaded = np.array(torso[5:]) * [half, 1] + [middle, top]
    sheet.polygon(np.vstack([shaded, [[middle + 0.35 * half, top + 0.2]]]), sheet.rgb(thing.colour, 0.75))
    head = [0.36 * half, 0.085]
    sheet.polygon(round_ * head + [middle, top + 0.07], sheet.rgb(skin, 1))
    hair = np.minimum(round_, [1, 0.1]) * [0.4 * half, 0.095] + [middle, top + 0.06]
    sheet.polygon(hair, sheet.rgb(skin * 0.3, rng.uniform(0.3, 1.2)))


def _desk(sheet: _Sheet, thing: Occluder, rng: np.random.Generator) -> None:
    """Draw the edge of a desk, counter or low wall along the bottom."""
    top = 1 - thing.size
    tilt = rng.uniform(-0.04, 0.04)
    board = 0.05 + 0.15 * thing.size
    front = [[-0.1, top - tilt], [1.1, top + tilt], [1.1, 1.1], [-0.1, 1.1]]
    sheet.polygon(np.array(front), sheet.rgb(thing.colour, 0.65))
    plate = [[-0.1, top - tilt], [1.1, top + tilt], [1.1, top + tilt + board], [-0.1, top - tilt + board]]
    sheet.polygon(np.array(plate), sheet.rgb(thing.colour, 1.1))
    panels = int(rng.integers(1, 5))
    for place in np.linspace(0, 1, panels + 1)[:-1] + rng.uniform(0, 1 / panels):
        sheet.box(place, top + board + abs(tilt) + 0.02, place + 0.012, 1.1, sheet.rgb(thing.colour, 0.4))


_DRAW: dict[str, Callable[[_Sheet, Occluder, np.random.Generator], None]] = {
    "post": _post,
    "plant": _plant,
    "passer_by": _passer_by,
    "desk": _desk,
}
KINDS = tuple(_DRAW)
"""What can stand before a person."""


def occlude(thing: Occluder, height: int, width: int) -> Layer:
    """Draw a thing; what it looks like depends on nothing else than itself and the picture's size.

    Args:
        thing: one of `KINDS`.
        height: H, pixels.
        width: W, pixels.

    Returns:
        (H, W, 4) uint8: RGB, and how much it hides, 0..255. RGB is not multiplied by it.
    """
    sheet = _Sheet(height, width, thing.colour)
    _DRAW[thing.kind](sheet, thing, np.random.default_rng(thing.seed))
    # What is nearer than the person is out of focus, a little.
    soft: Layer = cv2.GaussianBlur(sheet.pixels, (0, 0), max(0.3, height / 256))
    return soft
