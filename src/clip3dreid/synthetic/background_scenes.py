"""Places drawn by chance: corridors, streets, parks, shops and the like, as a camera sees them from above.

They are drawn in parts of the canvas and not in pixels, so the same rng gives the same place on every
canvas of the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from clip3dreid.io.pictures import Pixels

_Array: TypeAlias = npt.NDArray[Any]

LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in how bright a colour looks (ITU-R BT.601)."""
_SHIFT = 4  # OpenCV takes points in sixteenths of a pixel


class _SceneCanvas:
    """Pixels to draw on. x runs from 0 to `aspect`, y from 0 (top) to 1: so units are square."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height, self.width = height, width
        self.aspect = width / height
        self.pixels = np.zeros((height, width, 3), np.uint8)

    def polygon(self, points: Sequence[Sequence[float]] | _Array, colour: _Array) -> None:
        place = np.asarray(points) * self.height - 0.5
        scaled = np.round(place * 2**_SHIFT)
        cv2.fillPoly(self.pixels, [scaled.astype(np.int32)], self.rgb(colour), cv2.LINE_AA, _SHIFT)

    def box(self, left: float, top: float, right: float, bottom: float, colour: _Array) -> None:
        self.polygon([[left, top], [right, top], [right, bottom], [left, bottom]], colour)

    def disc(
        self, x: float, y: float, radius: float, colour: _Array, stretch: float = 1.0, corners: int = 14
    ) -> None:
        angle = np.linspace(0, 2 * math.pi, corners, endpoint=False)
        self.polygon(np.stack([x + radius * stretch * np.cos(angle), y + radius * np.sin(angle)], 1), colour)

    @staticmethod
    def rgb(colour: _Array) -> tuple[int, int, int]:
        red, green, blue = (int(min(max(channel, 0), 1) * 255) for channel in colour)
        return red, green, blue

    def clouds(self, rows: int, columns: int, sigma: float, top: float = 0.0, bottom: float = 1.0) -> None:
        """Add smooth spots, so many down and across, with that standard deviation, between two heights."""
        spots = self.rng.normal(0, 255 * sigma, (rows, columns)).astype(np.float32)
        first, last = round(top * self.height), round(bottom * self.height)
        if last <= first:
            return
        grown = cv2.resize(spots, (self.width, last - first), interpolation=cv2.INTER_LINEAR)
        part = self.pixels[first:last]
        part[:] = np.clip(part + grown[..., None], 0, 255)

    def gradient(self, top: float, bottom: float, first: _Array, last: _Array) -> None:
        """Fill all between two heights with colours from `first` to `last`."""
        start, end = round(top * self.height), round(bottom * self.height)
        share = np.linspace(0, 1, max(end - start, 1))[: end - start, None, None]
        self.pixels[start:end] = np.clip(255 * (first + (last - first) * share), 0, 255)


def _colour(rng: np.random.Generator, low: float, high: float, tint: float) -> _Array:
    """Draw a grey between two levels, tinted by about so much; as bright as the grey, and never beyond white."""
    gain = np.clip(1 + tint * rng.standard_normal(3), 0.35, 1.8)
    colour = rng.uniform(low, high) * gain / (gain @ LUMINANCE)
    capped: _Array = colour / max(1.0, colour.max())
    return capped


def _floor(canvas: _SceneCanvas, top: float, colour: _Array, tiles: bool) -> None:
    """Draw a floor in perspective from `top` down, with joints if it is tiled."""
    rng = canvas.rng
    canvas.gradient(top, 1.0, colour * rng.uniform(0.7, 0.95), colour * rng.uniform(0.95, 1.15))
    canvas.clouds(6, 20, 0.02, top)
    horizon, x = top - rng.uniform(0.15, 0.6), rng.uniform(0.3, 0.7) * canvas.aspect
    spread, depth = rng.uniform(0.12, 0.3), rng.uniform(0.15, 0.35)
    joint = colour * rng.uniform(0.75, 0.92)
    if not tiles:
        return
    for line in range(-16, 17):
        # Lines that meet in a point on the horizon; the widths grow towards the viewer.
        ends = [x + line * spread * (y - horizon) / (1 - horizon) for y in (top, 1.0)]
        wide = [0.004 * (y - horizon) / (1 - horizon) for y in (top, 1.0)]
        corners = [
            [ends[0] - wide[0], top],
            [ends[0] + wide[0], top],
            [ends[1] + wide[1], 1],
            [ends[1] - wide[1], 1],
        ]
        canvas.polygon(corners, joint)
    near = 1 - horizon
    for row in range(1, 24):
        y = horizon + near / (1 + depth * row)
        if y <= top:
            break
        canvas.box(-0.1, y, canvas.aspect + 0.1, y + 0.006 * (y - horizon) / near, joint)


def _wall(canvas: _SceneCanvas, top: float) -> None:
    """Draw a bare wall with doors, posters and a skirting board."""
    rng = canvas.rng
    wall = _colour(rng, 0.35, 0.9, 0.1)
    canvas.gradient(0, top, wall * rng.uniform(0.85, 1.05), wall)
    canvas.clouds(3, 6, 0.03, 0, top)
    if rng.random() < 0.4:  # a band of another colour along the wall
        level = top * rng.uniform(0.45, 0.8)
        canvas.box(-0.1, level, canvas.aspect + 0.1, top, _colour(rng, 0.2, 0.7, 0.25))
    for _ in range(int(rng.integers(0, 4))):
        x, wide = rng.uniform(0, canvas.aspect), rng.uniform(0.2, 0.34)
        door = _colour(rng, 0.15, 0.75, 0.2)
        canvas.box(x - 0.02, top - 0.72, x + wide + 0.02, top, door * 0.6)
        canvas.box(x, top - 0.7, x + wide, top, door)
        canvas.disc(x + wide * 0.88, top - 0.33, 0.012, door * 1.6)
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.uniform(0, canvas.aspect), rng.uniform(0, top * 0.6)
        wide, tall = rng.uniform(0.08, 0.3, 2)
        canvas.box(x, y, x + wide, y + tall, _colour(rng, 0.5, 1, 0.05))
        canvas.box(
            x + 0.01,
            y + 0.01,
            x + wide - 0.01,
            y + tall * rng.uniform(0.4, 0.95),
            _colour(rng, 0.2, 0.8, 0.5),
        )
    canvas.box(-0.1, top - rng.uniform(0.01, 0.04), canvas.aspect + 0.1, top, wall * rng.uniform(0.4, 0.8))
    _floor(canvas, top, _colour(rng, 0.25, 0.75, 0.08), bool(rng.random() < 0.6))


def _corridor(canvas: _SceneCanvas, top: float) -> None:
    """Draw a passage that runs away from the camera, with doors along its sides."""
    rng = canvas.rng
    wall, floor = _colour(rng, 0.4, 0.9, 0.07), _colour(rng, 0.25, 0.7, 0.08)
    _floor(canvas, top, floor, bool(rng.random() < 0.7))
    x, half, up = rng.uniform(0.3, 0.7) * canvas.aspect, rng.uniform(0.12, 0.3), rng.uniform(0.1, 0.25)
    ceiling = top - rng.uniform(0.35, 0.55)
    end = [[x - half, ceiling], [x + half, ceiling], [x + half, top], [x - half, top]]
    canvas.box(-0.1, -0.1, canvas.aspect + 0.1, ceiling, wall * 1.15)
    canvas.polygon(end, wall * rng.uniform(0.5, 1.2))

    def side(sign: float, near: float, far: float, low: float, high: float) -> list[list[float]]:
        """Return a part of a side wall: from the end (0) to the viewer (1), from the floor (0) to the ceiling (1)."""
        corners = []
        for place, share in ((near, high), (far, high), (far, low), (near, low)):
            across = x + sign * (half + place * 1.6)
            bottom, above = top + place * (1 - top) * 2.2, ceiling - place * up * 4
            corners.append([across, bottom + (above - bottom) * share])
        return corners

    for sign, shade in ((-1.0, rng.uniform(0.75, 1)), (1.0, rng.uniform(0.75, 1))):
        canvas.polygon(side(sign, 1.2, 0, 0, 1), wall * shade)
        canvas.polygon(
            side(sign, 1.2, 0, 0, rng.uniform(0.03, 0.3)), wall * shade * _colour(rng, 0.5, 0.9, 0.1)
        )
        door = _colour(rng, 0.15, 0.7, 0.2)
        for place in np.cumsum(rng.uniform(0.06, 0.35, 4)):
            canvas.polygon(side(sign, place + 0.09 + place * 0.15, place, 0, 0.75), door * shade)
    lamps = rng.uniform(0.6, 1.4)
    for place in np.linspace(0.05, 0.9, int(rng.integers(2, 7))) * lamps:
        y, wide = ceiling - place * up * 4, 0.12 * half + place * 0.12
        canvas.box(x - wide, y - 0.02 - 0.05 * place, x + wide, y, np.ones(3))
    canvas.clouds(3, 4, 0.03)


def _street(canvas: _SceneCanvas, top: float) -> None:
    """Draw a facade with windows and shop fronts, a pavement, perhaps a road, cars and lamp posts."""
    rng = canvas.rng
    wall = _colour(rng, 0.3, 0.8, 0.15)
    canvas.box(-0.1, -0.1, canvas.aspect + 0.1, top, wall)
    canvas.clouds(8, 24, 0.02, 0, top)
    glass, frame = _colour(rng, 0.1, 0.5, 0.12), _colour(rng, 0.2, 1, 0.1)
    wide, tall = rng.uniform(0.1, 0.25), rng.uniform(0.14, 0.3)
    step, rise = wide * rng.uniform(1.3, 2.2), tall * rng.uniform(1.3, 1.9)
    base = top - rng.uniform(0.3, 0.5)
    for y in np.arange(base - rise, -tall, -rise):
        for x in np.arange(rng.uniform(-step, 0), canvas.aspect, step):
            canvas.box(x - 0.012, y - 0.012, x + wide + 0.012, y + tall + 0.012, frame)
            canvas.box(x, y, x + wide, y + tall, glass * rng.uniform(0.5, 1.6))
    x = rng.uniform(-0.3, 0)
    while x < canvas.aspect:  # shop fronts and doors along the ground
        front = rng.uniform(0.15, 0.6)
        canvas.box(x, base, x + front, top, _colour(rng, 0.1, 0.8, 0.3))
        canvas.box(
            x + 0.02,
            base + rng.uniform(0.03, 0.1),
            x + front - 0.02,
            top - rng.uniform(0, 0.1),
            _colour(rng, 0.1, 0.7, 0.15),
        )
        x += front + rng.uniform(0, 0.3)
    pavement = _colour(rng, 0.35, 0.7, 0.05)
    _floor(canvas, top, pavement, bool(rng.random() < 0.5))
    for _ in range(int(rng.integers(0, 3))):  # parked cars
        x, size = rng.uniform(-0.2, canvas.aspect), rng.uniform(0.22, 0.34)
        paint, y = _colour(rng, 0.1, 0.85, 0.35), top + rng.uniform(0.0, 0.06)
        roof = [
            [0.2, -0.9],
            [0.7, -0.9],
            [0.95, -0.5],
            [1.5, -0.45],
            [1.5, 0],
            [-0.5, 0],
            [-0.5, -0.5],
            [-0.1, -0.5],
        ]
        canvas.polygon(np.array(roof) * size * [1, 0.75] + [x, y], paint)
        pane = [[0.22, -0.82], [0.66, -0.82], [0.85, -0.52], [0.0, -0.52]]
        canvas.polygon(np.array(pane) * size * [1, 0.75] + [x, y], np.full(3, 0.12))
        for wheel in (-0.15, 1.1):
            canvas.disc(x + wheel * size, y, 0.15 * size, np.full(3, 0.07))
    if rng.random() < 0.5:  # the road begins here
        kerb = rng.uniform(top + 0.25, 1.0)
        canvas.box(-0.1, kerb, canvas.aspect + 0.1, kerb + 0.015, pavement * 1.3)
        canvas.box(-0.1, kerb + 0.015, canvas.aspect + 0.1, 1.1, _colour(rng, 0.15, 0.35, 0.03))
    for _ in range(int(rng.integers(0, 3))):
        x, post = rng.uniform(0, canvas.aspect), _colour(rng, 0.1, 0.5, 0.1)
        canvas.box(x, -0.1, x + rng.uniform(0.01, 0.03), top + rng.uniform(0.02, 0.15), post)


def _park(canvas: _SceneCanvas, top: float) -> None:
    """Draw sky, trees, bushes, grass and a path."""
    rng = canvas.rng
    sky = np.array([0.72, 0.82, 0.92]) * rng.uniform(0.75, 1.1)
    canvas.gradient(0, top, sky, np.clip(sky * 1.1, 0, 1))
    leaf = np.array([0.24, 0.36, 0.14]) * rng.uniform(0.6, 1.3) + np.array([rng.uniform(0, 0.15), 0, 0])
    grass = np.array([0.34, 0.45, 0.18]) * rng.uniform(0.7, 1.25) + np.array([rng.uniform(0, 0.15), 0, 0])
    far = top - rng.uniform(0.05, 0.35)
    for x in rng.uniform(-0.1, canvas.aspect + 0.1, 40):  # a far hedge
        canvas.disc(x, far + rng.uniform(0, 0.1), rng.uniform(0.06, 0.16), leaf * rng.uniform(0.55, 1.1))
    canvas.box(-0.1, far + 0.1, canvas.aspect + 0.1, top, leaf * 0.6)
    canvas.clouds(20, 60, 0.04, 0, top)
    canvas.gradient(top, 1, grass * 0.8, grass * 1.1)
    canvas.clouds(40, 90, 0.035, top)
    if rng.random() < 0.75:
        path, x, level = _colour(rng, 0.45, 0.75, 0.07), rng.uniform(0, canvas.aspect), rng.uniform(0.4, 0.8)
        if rng.random() < 0.5:  # across, or away from the camera
            canvas.box(
                -0.1,
                top + (1 - top) * (level - 0.3),
                canvas.aspect + 0.1,
                top + (1 - top) * (level + 0.3),
                path,
            )
        else:
            canvas.polygon([[x - 0.05, top], [x + 0.05, top], [x + 0.9, 1.05], [x - 0.9, 1.05]], path)
    for _ in range(int(rng.integers(2, 7))):
        x, foot, trunk = rng.uniform(0, canvas.aspect), top + rng.uniform(-0.02, 0.1), rng.uniform(0.02, 0.06)
        bark = np.array([0.3, 0.24, 0.18]) * rng.uniform(0.6, 1.3)
        canvas.polygon(
            [[x - trunk, foot], [x - trunk * 0.6, -0.1], [x + trunk * 0.6, -0.1], [x + trunk, foot]], bark
        )
        crown = rng.uniform(0.1, 0.3)
        for _ in range(12):
            canvas.disc(
                x + rng.normal(0, crown * 0.7),
                rng.normal(0.02, 0.1),
                crown * rng.uniform(0.25, 0.6),
                leaf * rng.uniform(0.6, 1.4),
            )
    canvas.clouds(3, 5, 0.04)


def _shop(canvas: _SceneCanvas, top: float) -> None:
    """Draw shelves full of goods on a shining floor."""
    rng = canvas.rng
    rack, level = _colour(rng, 0.3, 0.95, 0.05), top + 0.02
    canvas.box(-0.1, -0.1, canvas.aspect + 0.1, level, rack * 0.55)
    rise, tints = rng.uniform(0.13, 0.24), [_colour(rng, 0.15, 0.75, 0.35) for _ in range(9)]
    shelf = level - 0.03
    while shelf > -0.1:
        x = -0.02
        while x < canvas.aspect:
            wide, tall = rng.uniform(0.03, 0.11), rise * rng.uniform(0.45, 0.85)
            tint = tints[int(rng.integers(9))] * rng.uniform(0.8, 1.15)
            for _ in range(int(rng.integers(1, 4))):  # goods stand in rows of the same
                canvas.box(x, shelf - tall, x + wide * 0.94, shelf, tint)
                canvas.box(
                    x + wide * 0.1, shelf - tall * 0.7, x + wide * 0.8, shelf - tall * 0.45, tint * 1.5
                )
                x += wide
        canvas.box(-0.1, shelf, canvas.aspect + 0.1, shelf + 0.018, rack)
        shelf -= rise
    for x in np.arange(rng.uniform(0, 0.4), canvas.aspect, rng.uniform(0.5, 1.0)):
        canvas.box(x, -0.1, x + 0.02, level, rack * 0.9)
    above = canvas.pixels[: round(level * canvas.height)].copy()
    _floor(canvas, level, _colour(rng, 0.5, 0.85, 0.04), bool(rng.random() < 0.7))
    shine = above[::-1][: canvas.height - len(above)]  # the floor mirrors the shelves
    start = len(above)
    floor = canvas.pixels[start : start + len(shine)]
    share = rng.uniform(0.05, 0.25)
    floor[:] = cv2.addWeighted(
        floor, 1 - share, cv2.GaussianBlur(shine, (0, 0), canvas.height / 60), share, 0
    )
    canvas.clouds(2, 4, 0.04)


def _office(canvas: _SceneCanvas, top: float) -> None:
    """Draw windows or a glass partition, desks with screens, a carpet."""
    rng = canvas.rng
    wall = _colour(rng, 0.45, 0.9, 0.05)
    canvas.gradient(0, top, wall, wall * 0.9)
    pane, frame = _colour(rng, 0.55, 1.0, 0.06), _colour(rng, 0.1, 0.8, 0.03)
    wide, sill = rng.uniform(0.3, 0.6), top * rng.uniform(0.55, 1.0)
    for x in np.arange(rng.uniform(-wide, 0), canvas.aspect, wide):
        canvas.box(x, -0.1, x + wide * 0.96, sill, pane * rng.uniform(0.85, 1.1))
        canvas.box(x + wide * 0.96, -0.1, x + wide, sill, frame)
    if rng.random() < 0.4:  # blinds
        for y in np.arange(0, sill, 0.02):
            canvas.box(-0.1, y, canvas.aspect + 0.1, y + 0.008, pane * 0.8)
    canvas.clouds(6, 16, 0.035, 0, top)
    _floor(canvas, top, _colour(rng, 0.2, 0.55, 0.12), bool(rng.random() < 0.3))
    canvas.clouds(60, 120, 0.012, top)
    for _ in range(int(rng.integers(1, 6))):
        x, size, y = rng.uniform(-0.2, canvas.aspect), rng.uniform(0.3, 0.55), top + rng.uniform(0.02, 0.18)
        desk = _colour(rng, 0.3, 0.85, 0.1)
        canvas.box(x, y - 0.26, x + size, y - 0.23, desk * 1.1)
        canvas.box(x + 0.01, y - 0.23, x + size - 0.01, y - rng.uniform(0.02, 0.2), desk * 0.7)
        for leg in (0.02, size - 0.04):
            canvas.box(x + leg, y - 0.23, x + leg + 0.02, y, desk * 0.4)
        screen, across = rng.uniform(0.1, 0.16), x + rng.uniform(0.03, 0.15)
        canvas.box(across, y - 0.28 - screen, across + screen * 1.5, y - 0.28, np.full(3, 0.1))
        canvas.box(
            across + 0.01,
            y - 0.27 - screen,
            across + screen * 1.5 - 0.01,
            y - 0.29,
            _colour(rng, 0.2, 0.9, 0.2),
        )
        chair = _colour(rng, 0.05, 0.4, 0.2)
        canvas.box(x + size * 0.4, y - 0.2, x + size * 0.75, y + 0.02, chair)
    canvas.clouds(2, 4, 0.03)


def _square(canvas: _SceneCanvas, top: float) -> None:
    """Draw an open paved place with pillars, railings and far people, as at a station."""
    rng = canvas.rng
    haze = _colour(rng, 0.4, 0.85, 0.06)
    canvas.gradient(0, top, haze * 1.1, haze * 0.9)
    for _ in range(int(rng.integers(3, 9))):  # far buildings, signs
        x, wide, tall = rng.uniform(-0.2, canvas.aspect), rng.uniform(0.1, 0.6), top * rng.uniform(0.2, 0.9)
        block = haze * rng.uniform(0.4, 1.0)
        canvas.box(x, top - tall, x + wide, top, block)
        for y in np.arange(top - tall + 0.04, top - 0.04, 0.07):
            canvas.box(x + 0.02, y, x + wide - 0.02, y + 0.03, block * rng.uniform(0.6, 1.3))
    _floor(canvas, top, _colour(rng, 0.3, 0.75, 0.06), bool(rng.random() < 0.85))
    for _ in range(int(rng.integers(0, 9))):  # people far away
        x, tall, y = rng.uniform(0, canvas.aspect), rng.uniform(0.12, 0.22), top + rng.uniform(0.0, 0.1)
        coat = _colour(rng, 0.08, 0.6, 0.3)
        canvas.box(x - tall * 0.11, y - tall * 0.5, x + tall * 0.1, y, coat * 0.5)
        canvas.disc(x, y - tall * 0.62, tall * 0.24, coat, 0.62)
        canvas.disc(x, y - tall * 0.92, tall * 0.085, np.array([0.5, 0.38, 0.3]))
    if rng.random() < 0.5:
        rail, level = _colour(rng, 0.2, 0.9, 0.05), top + rng.uniform(0.0, 0.08)
        for y in (level - 0.2, level - 0.1):
            canvas.box(-0.1, y, canvas.aspect + 0.1, y + 0.012, rail)
        for x in np.arange(rng.uniform(0, 0.3), canvas.aspect, 0.3):
            canvas.box(x, level - 0.2, x + 0.014, level, rail)
    for _ in range(int(rng.integers(0, 3))):
        x, wide, pillar = rng.uniform(0, canvas.aspect), rng.uniform(0.05, 0.13), _colour(rng, 0.3, 0.8, 0.08)
        for strip in range(5):
            left = x + wide * strip / 5
            canvas.box(
                left,
                -0.1,
                left + wide / 5 + 0.003,
                top + 0.08,
                pillar * (0.6 + 0.45 * math.sin(0.5 + 0.5 * strip)),
            )
    canvas.clouds(3, 5, 0.03)


def _plain(canvas: _SceneCanvas, top: float) -> None:
    """Draw one colour, a little uneven."""
    rng = canvas.rng
    canvas.box(-0.1, -0.1, canvas.aspect + 0.1, 1.1, _colour(rng, 0.05, 0.95, 0.25))
    canvas.clouds(3, 4, rng.uniform(0, 0.04))


def _noise(canvas: _SceneCanvas, top: float) -> None:
    """Draw coloured spots of all sizes: no floor, no walls, nothing to lean on."""
    rng = canvas.rng
    total = np.zeros((canvas.height, canvas.width, 3), np.float32)
    for size in (2, 5, 12, 30, 80):
        spots = rng.normal(0, 1, (size, 2 * size, 3)).astype(np.float32)
        total += np.float32(rng.uniform(0.3, 1)) * cv2.resize(spots, (canvas.width, canvas.height))
    level, contrast = rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.2)
    canvas.pixels[:] = np.clip(255 * (level + contrast * total), 0, 255)


_DRAW: dict[str, Callable[[_SceneCanvas, float], None]] = {
    "wall": _wall,
    "corridor": _corridor,
    "street": _street,
    "park": _park,
    "shop": _shop,
    "office": _office,
    "square": _square,
    "plain": _plain,
    "noise": _noise,
}
KINDS = tuple(_DRAW)
"""What can be drawn; the last two are for bodies without a world."""
PLACES = KINDS[:-2]


def scene(rng: np.random.Generator, height: int, width: int, kind: str | None = None) -> Pixels:
    """Draw a place.

    Args:
        rng: where the numbers come from.
        height: of the canvas, pixels.
        width: of the canvas, pixels.
        kind: one of `KINDS`; by default one of `PLACES`, by chance.

    Returns:
        (height, width, 3) RGB. The floor begins between 40 and 65 % of the height.
    """
    chosen = PLACES[int(rng.integers(len(PLACES)))]
    canvas = _SceneCanvas(rng, height, width)
    _DRAW[kind or chosen](canvas, float(rng.uniform(0.4, 0.65)))
    return canvas.pixels
