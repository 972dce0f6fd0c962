"""The colour of every visible point of a dressed person, decided from its place on the standard person."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clip3dreid.synthetic.garment_fit import FittedOutfit
from clip3dreid.synthetic.landmarks import ARMPIT, HALF_HEAD, WAIST
from clip3dreid.synthetic.people import Colour

BODY, TUBE, HAIR, BAG = 1, 2, 3, 4
"""Meshes that a point may lie on: the fourth attribute."""

PARTS = ("background", "skin", "hair", "upper", "lower", "shoes", "bag")
"""Names of the part numbers that `paint` returns."""
_BELT = 1.0
"""Height of a dress's belt on the standard person, metres."""
_SKIN, _HAIR, _UPPER, _LOWER, _SHOES, _BAG = range(1, 7)


class Paint(NamedTuple):
    """Colours of points."""

    albedo: Tensor
    """(N, 3) RGB, 0..1."""
    part: Tensor
    """(N,) uint8, index into `PARTS`."""


def hairline(x: Tensor, height: Tensor, forward: Tensor, lower: float) -> Tensor:
    """Return metres above the line where hair begins: from the nape over the ears to the forehead.

    Args:
        x: distance from the middle plane, on the standard person.
        height: above the ground.
        forward: towards the face.
        lower: 1 for a line that covers ears and temples, 0 for one around them.
    """
    behind = ((forward - 0.015) / 0.05).clamp(0, 1)
    front = ((forward - 0.065) / 0.075).clamp(0, 1)
    line = 1.505 + (0.075 - 0.03 * lower) * behind + (0.065 + 0.02 * lower) * front
    # Temples: the line comes down at the sides of the forehead.
    return height - line + (0.02 + 0.02 * lower) * (x / HALF_HEAD).square() * front


def neck_border(x: Tensor, forward: Tensor, neckline: Tensor | float) -> Tensor:
    """Return where an upper garment ends at the neck: it slopes from nape to chest; shoulders stay covered."""
    return neckline - 0.3 * (forward - 0.05) + 2.5 * (x - 0.08).clamp_min(0)


class _TextureCanvas:
    """Points of one person that are being painted."""

    def __init__(self, points: Tensor, skin: Colour) -> None:
        self.x, self.height, self.forward, kind = points.t().contiguous().unbind(0)
        self.kind = kind.round().to(torch.int8)
        self.far = self.x.abs()
        self.albedo = points.new_tensor(skin).repeat(len(points), 1)
        self.part = torch.full((len(points),), _SKIN, dtype=torch.uint8, device=points.device)

    def lay(self, chosen: Tensor, colour: Colour | Tensor, part: int | None = None) -> None:
        """Paint points of given numbers (M,) in one colour, or in one each (M, 3)."""
        if not isinstance(colour, Tensor):
            colour = self.albedo.new_tensor(colour).expand(len(chosen), 3)
        self.albedo.index_copy_(0, chosen, colour)
        if part is not None:
            self.part.index_fill_(0, chosen, part)

    def at(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return signed x, height and forward of points (M,)."""
        return self.x[chosen], self.height[chosen], self.forward[chosen]


def paint(points: Tensor, fitted: FittedOutfit) -> Paint:
    """Colour points of one person.

    Args:
        points: (N, 4) attributes of a figure, interpolated.
        fitted: what is worn.
    """
    canvas = _TextureCanvas(points, fitted.skin)
    body = canvas.kind == BODY
    head = body & (canvas.height > 1.47) & (canvas.far < 0.12)
    _head(canvas, head.nonzero()[:, 0], fitted)
    arm = (canvas.far > ARMPIT) & (canvas.height > WAIST)
    trunk = body & ~arm
    _legs(canvas, trunk, fitted)
    _trunk(canvas, trunk & (canvas.height > min(fitted.upper_hem, fitted.waist)), fitted)
    _sleeves(canvas, (body & arm & (canvas.far < fitted.sleeve)).nonzero()[:, 0], fitted)
    if fitted.tube:
        _tube(canvas, (canvas.kind == TUBE).nonzero()[:, 0], fitted)
    hanging = (canvas.kind == HAIR).nonzero()[:, 0]
    if len(hanging):
        x, height, _ = canvas.at(hanging)
        canvas.lay(hanging, _strands(x, height, fitted), _HAIR)
    if fitted.outfit.bag != "none":
        _bag(canvas, (canvas.kind == BAG).nonzero()[:, 0], fitted)
    return Paint(canvas.albedo, canvas.part)


def _tint(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(1.0, part * factor) for part in colour)
    return red, green, blue


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (a + share * (b - a) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _tones(shade: Tensor, colour: Colour) -> Tensor:
    """Return (M, 3): one colour, darker or lighter by (M,) factors."""
    return shade[:, None] * shade.new_tensor(colour)


def _strands(x: Tensor, height: Tensor, fitted: FittedOutfit) -> Tensor:
    shade = 1 + 0.22 * torch.sin(x * 190 + 2 * torch.sin(height * 40)) * torch.sin(height * 23 + x * 31)
    return _tones(shade, fitted.hair)


def _head(canvas: _TextureCanvas, head: Tensor, fitted: FittedOutfit) -> None:
    x, height, forward = canvas.at(head)
    far = x.abs()
    front = forward > 0.075
    eyes = front & ((height - 1.588).abs() < 0.0085) & ((far - 0.031).abs() < 0.0145)
    white = eyes & ((far - 0.031).abs() > 0.006)
    brows = front & ((height - 1.606 + 0.03 * (far - 0.03)).abs() < 0.0055) & ((far - 0.033).abs() < 0.019)
    mouth = front & ((height - 1.508).abs() < 0.0085 - 4 * far.square()) & (far < 0.027)
    nose = front & ((height - 1.535).abs() < 0.006) & (far < 0.014)
    shadow = front & ((height - 1.600).abs() < 0.022) & ((far - 0.032).abs() < 0.024)
    skin = fitted.skin
    canvas.lay(head[shadow], _tint(skin, 0.90))
    canvas.lay(head[nose], _tint(skin, 0.72))
    canvas.lay(head[mouth], _mix(_tint(skin, 0.72), (0.55, 0.18, 0.18), 0.45))
    canvas.lay(head[eyes], (0.07, 0.05, 0.05))
    canvas.lay(head[white], _mix(skin, (0.85, 0.85, 0.85), 0.5))
    canvas.lay(head[brows], _mix(_tint(skin, 0.6), fitted.hair, 0.7))
    if fitted.style != "bald":
        above = hairline(far, height, forward, float(fitted.style in ("bob", "long")))
        ragged = 0.003 * torch.sin(x * 400) + 0.002 * torch.sin(forward * 290)
        grown = above + ragged > 0
        canvas.lay(head[grown], _strands(x[grown], forward[grown], fitted), _HAIR)
    else:
        # Shaved: a shade darker where hair would grow.
        grown = hairline(far, height, forward, 0.0) > 0
        canvas.lay(head[grown], _mix(skin, fitted.hair, 0.10))


def _legs(canvas: _TextureCanvas, trunk: Tensor, fitted: FittedOutfit) -> None:
    """Paint shoes, and what is worn on the legs."""
    outfit = fitted.outfit
    low = (trunk & (canvas.height < fitted.waist)).nonzero()[:, 0]
    x, height, forward = canvas.at(low)
    rise = 0.3 * (forward - 0.03).clamp(0, 0.12)
    shod = height < fitted.shoe_top + rise
    sole = height < 0.016
    canvas.lay(low[shod], outfit.shoe_colour, _SHOES)
    light = sum(outfit.shoe_colour) > 0.6 or outfit.bag_side > 0
    canvas.lay(low[sole], (0.82, 0.82, 0.80) if light and outfit.shoe_height < 0.3 else (0.10, 0.09, 0.08))
    if outfit.shoe_height < 0.3:
        laces = shod & (forward > 0.055) & (forward < 0.12) & (height > 0.045)
        laces &= torch.sin(forward * 450) > 0.2
        canvas.lay(low[laces], _mix(outfit.shoe_colour, (0.9, 0.9, 0.9), 0.5))
    if fitted.tube:
        # What lies under a skirt or a coat is seen only where a knee comes through it.
        hidden = height > fitted.tube_hem + 0.025
        colour = outfit.upper_colour if fitted.tail or outfit.dress else outfit.lower_colour
        canvas.lay(low[hidden], _tint(colour, 0.7), _UPPER if fitted.tail else _LOWER)
        low, x, height, forward = (value[~hidden] for value in (low, x, height, forward))
    if outfit.lower == "skirt":
        return
    dressed = height > fitted.leg_hem + 0.8 * (forward - 0.03).clamp(0, 0.2)
    chosen = low[dressed]
    x, height, forward = x[dressed], height[dressed], forward[dressed]
    far = x.abs()
    colours = _cloth(_around(x, forward), height, forward, fitted, upper=False)
    # The seat and the inner thighs lie in shadow; seams, pockets and hems are darker lines.
    shade = 1 - 0.30 * torch.exp(-((far / 0.035) ** 2)) * (height < 0.84).to(height.dtype)
    folds = torch.sin(height * 55 + 14 * far) * torch.sin(forward * 37 + height * 19)
    shade = shade * (1 + 0.045 * folds)
    seam = (forward.abs() < 0.004) & (far > 0.1)
    line = (height > fitted.waist - 0.035) | (height < fitted.leg_hem + 0.012) | seam
    pocket = (
        (forward > 0.02)
        & ((far - 0.14 + 0.35 * (height - 0.92)).abs() < 0.005)
        & ((height - 0.92).abs() < 0.05)
    )
    fly = (forward > 0) & (far < 0.006) & (height > 0.87)
    shade = torch.where(line | pocket | fly, shade * 0.75, shade)
    canvas.lay(chosen, colours * shade[:, None], _LOWER)


def _trunk(canvas: _TextureCanvas, high: Tensor, fitted: FittedOutfit) -> None:
    """Paint what is worn above the waist, without the sleeves."""
    outfit = fitted.outfit
    chosen = high.nonzero()[:, 0]
    x, height, forward = canvas.at(chosen)
    far = x.abs()
    border = neck_border(far, forward, fitted.neckline)
    if fitted.neck_point:
        border = border - (fitted.neck_point - 1.4 * far).clamp_min(0) * (forward > 0.02).to(far.dtype)
    to_border = border - height
    dressed = (height > fitted.upper_hem) & (to_border > 0)
    chosen, x, height, forward, far, to_border = (
        value[dressed] for value in (chosen, x, height, forward, far, to_border)
    )
    colours = _cloth(_around(x, forward), height, forward, fitted, upper=True)
    folds = torch.sin(height * 46 + 20 * x) * torch.sin(forward * 30 + 17 * x)
    shade = 1 + 0.05 * folds
    # Under the arms.
    shade = shade * (1 - 0.25 * torch.exp(-(((far - 0.19) / 0.03) ** 2)) * (height < 1.32).to(far.dtype))
    edge = (height < fitted.upper_hem + 0.012) | (to_border < 0.013)
    front = forward > 0.02
    if fitted.outdoor:
        pocket = front & ((height - 1.05 - 0.5 * (far - 0.1)).abs() < 0.006) & ((far - 0.11).abs() < 0.035)
        edge = edge | pocket | (front & (far < 0.006))
    shade = torch.where(edge, shade * 0.72, shade)
    colours = colours * shade[:, None]
    if fitted.outdoor and outfit.open_front:
        gap = front & (far < _opening(height, fitted))
        lapel = front & ~gap & (far < _opening(height, fitted) + 0.022) & (height > 1.15)
        colours[gap.nonzero()[:, 0]] = colours.new_tensor(outfit.inner_colour)
        colours[lapel.nonzero()[:, 0]] *= 0.82
    elif fitted.outdoor:
        wedge = front & (far < 0.55 * (height - 1.37))
        colours[wedge.nonzero()[:, 0]] = colours.new_tensor(outfit.inner_colour)
    if outfit.dress:
        belt = (height - _BELT).abs() < 0.018
        colours[belt.nonzero()[:, 0]] = colours.new_tensor(outfit.second_colour) * 0.9
    canvas.lay(chosen, colours, _UPPER)
    _straps(canvas, chosen, x, height, forward, fitted)


def _opening(height: Tensor, fitted: FittedOutfit) -> Tensor:
    """Return the half width of the gap of an open jacket or coat at a height, metres."""
    low = fitted.tube_hem if fitted.tail else fitted.upper_hem
    return 0.028 + 0.035 * ((height - low) / (1.42 - low)).clamp(0, 1)


def _straps(
    canvas: _TextureCanvas, chosen: Tensor, x: Tensor, height: Tensor, forward: Tensor, fitted: FittedOutfit
) -> None:
    outfit = fitted.outfit
    if outfit.bag == "none":
        return
    if outfit.bag == "backpack":
        where = ((x.abs() - 0.105).abs() < 0.02) & (height > 1.10) & (forward > -0.03)
    else:
        # From the far shoulder across the trunk to the hip.
        line = -0.10 + (1.40 - height) * (0.27 / 0.42)
        where = (x * outfit.bag_side - line).abs() < 0.017
    canvas.lay(chosen[where], _tint(outfit.bag_colour, 0.85), _BAG)


def _sleeves(canvas: _TextureCanvas, chosen: Tensor, fitted: FittedOutfit) -> None:
    x, height, forward = canvas.at(chosen)
    far = x.abs()
    around = torch.atan2(height - 1.348, forward) * 0.05
    colours = _cloth(around, 1.4 - far, forward, fitted, upper=True, logo=False)
    shade = 1 + 0.05 * torch.sin(far * 70 + 9 * forward) * torch.sin(far * 23 + height * 40)
    shade = torch.where(far > fitted.sleeve - 0.012, shade * 0.72, shade)
    shade = torch.where((far - ARMPIT - 0.004).abs() < 0.004, shade * 0.85, shade)
    canvas.lay(chosen, colours * shade[:, None], _UPPER)


def _tube(canvas: _TextureCanvas, chosen: Tensor, fitted: FittedOutfit) -> None:
    """Paint a skirt, or the tail of a coat."""
    outfit = fitted.outfit
    along, height, front = canvas.at(chosen)
    of_upper = fitted.tail or outfit.dress
    colours = _cloth(along, height, front, fitted, upper=of_upper, logo=False)
    down = ((WAIST - height) / (WAIST - fitted.tube_hem)).clamp(0, 1)
    shade = 1 + (0.03 + 0.09 * down) * torch.sin(
        along * (2 * math.pi * 7 / (2 * math.pi * 0.16)) + 2 * height
    )
    shade = torch.where(height < fitted.tube_hem + 0.012, shade * 0.75, shade)
    part = _UPPER if fitted.tail else _LOWER
    if fitted.tail:
        # Columns run from the person's left over the front to the right.
        beside = (along - 0.16 * math.pi / 2).abs()
        if outfit.open_front:
            gap = (beside < _opening(height, fitted) * (1 - 0.4 * down) + 0.05 * down) & (front > 0)
            colours = torch.where(gap[:, None], _tones(0.95 - 0.45 * down, outfit.inner_colour), colours)
        else:
            shade = torch.where((beside < 0.006) & (front > 0), shade * 0.6, shade)
    canvas.lay(chosen, colours * shade[:, None], part)
    if outfit.dress:
        canvas.lay(chosen[(height - _BELT).abs() < 0.018], _tint(outfit.second_colour, 0.9))
    elif fitted.tail:
        _straps(canvas, chosen, 0.17 * torch.cos(along / 0.16), height, front, fitted)
    else:
        # What is worn above hangs over the top of a skirt.
        over = height > fitted.upper_hem
        colours = _cloth(along[over], height[over], front[over], fitted, upper=True, logo=False)
        canvas.lay(chosen[over], 0.95 * colours, _UPPER)


def _bag(canvas: _TextureCanvas, chosen: Tensor, fitted: FittedOutfit) -> None:
    x, up, forward = canvas.at(chosen)
    colour = fitted.outfit.bag_colour
    shade = torch.where((up - 0.25).abs() < 0.04, 0.6, 1.0)
    if fitted.outfit.bag == "backpack":
        pocket = (up < -0.15) & (x.abs() < 0.7) & (forward < 0)
        rim = pocket & ((up > -0.22) | (x.abs() > 0.63))
        shade = torch.where(rim, 0.65, torch.where(pocket, 0.88, shade))
    canvas.lay(chosen, _tones(shade, colour), _BAG)


def _around(x: Tensor, forward: Tensor) -> Tensor:
    """Return metres across cloth: flat in front and behind, so that stripes hang straight; slanting at the sides."""
    return x + 0.35 * forward * (x / 0.06).clamp(-1, 1)


def _cloth(
    across: Tensor, along: Tensor, forward: Tensor, fitted: FittedOutfit, upper: bool, logo: bool = True
) -> Tensor:
    """Return (M, 3) colour of cloth; `across` and `along` are metres on it."""
    outfit = fitted.outfit
    first = outfit.upper_colour if upper else outfit.lower_colour
    second = outfit.second_colour if upper else _mix(first, outfit.second_colour, 0.6)
    kind = outfit.pattern if upper else outfit.lower_pattern
    base = across.new_tensor(first)
    if kind == "plain" or (kind == "logo" and not (logo and upper)):
        return base.expand(len(across), 3)
    size = outfit.pattern_size if upper else 0.7 * outfit.pattern_size
    if kind == "logo":
        mark = (forward > 0) & ((across / 0.095) ** 2 + ((along - 1.22) / 0.07) ** 2 < 1)
        share = mark.to(across.dtype)
    else:
        bars = (torch.frac(along / size + 100) < 0.5).to(across.dtype)
        posts = (torch.frac(across / size + 100.25) < 0.5).to(across.dtype)
        share = {"horizontal_stripes": bars, "vertical_stripes": posts, "checks": (bars + posts) / 2}[kind]
    return torch.lerp(base, across.new_tensor(second), share[:, None])
