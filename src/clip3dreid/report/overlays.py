"""Draw over crops: where a network looks, and which part of a picture answers to which word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageOps

from clip3dreid.report.parts import INK, fitting_end, font

Values = npt.NDArray[np.floating[Any]]

_GAP = 6
_LINE = 15
_NARROWEST = 112
"""Pixels of a tile, that its line has room."""
_STRONGEST = "#ffffff"


def overlay(crop: Image.Image, values: Values, highest: float | None = None) -> Image.Image:
    """Lay a map of values over a crop: dark blue over green to yellow, with a box around the highest position.

    Args:
        crop: RGB.
        values: (h, w), 0 or more, of a grid that covers the crop.
        highest: the value that is all yellow; None: the map's own highest.

    Returns:
        RGB of the crop's size.
    """
    from matplotlib import colormaps

    top = float(values.max()) if highest is None else highest
    share = np.clip(values / top, 0, 1) if top > 0 else np.zeros(values.shape)
    grid = Image.fromarray((255 * share).astype(np.uint8))
    smooth = np.asarray(grid.resize(crop.size, Image.Resampling.BICUBIC), np.float64) / 255
    colours = 255 * np.asarray(colormaps["viridis"](smooth))[..., :3]
    grey = np.asarray(ImageOps.grayscale(crop), np.float64)[..., None]
    mixed = Image.fromarray((0.45 * grey + 0.55 * colours).clip(0, 255).astype(np.uint8))
    if top > 0:
        # Not by colour alone.
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        high, wide = values.shape
        box = (
            column * crop.width / wide,
            row * crop.height / high,
            (column + 1) * crop.width / wide - 1,
            (row + 1) * crop.height / high - 1,
        )
        ImageDraw.Draw(mixed).rectangle(box, outline=_STRONGEST, width=max(1, crop.width // 64))
    return mixed


def plan_sheet(
    crop: Image.Image, mass: Values, words: Sequence[str], *, height: int = 150, columns: int = 9
) -> Image.Image:
    """Draw a transport plan over a crop: the crop, then a tile a word that shows which positions answer to it.

    Args:
        crop: RGB.
        mass: (L, h, w), 0 or more: how much of each word comes from a position, as of
            `inference.word_plan.WordPlan`. Yellow is the most of any position and word of the sheet.
        words: L of them.
        height: of a tile, pixels.
        columns: tiles side by side, the crop among them.

    Returns:
        RGB, white ground.
    """
    highest = float(mass.max())
    small = scaled(crop, height)
    tiles = [(small, "the crop")]
    tiles += [(overlay(small, own, highest), word) for own, word in zip(mass, words, strict=True)]
    return tile_sheet(tiles, columns=columns)


def tile_sheet(tiles: Sequence[tuple[Image.Image, str]], *, columns: int = 9) -> Image.Image:
    """Put pictures of one size side by side, each with a line below it.

    Args:
        tiles: at least one picture with its line.
        columns: side by side; more go below.

    Returns:
        RGB, white ground.
    """
    width = max(max(picture.width for picture, _ in tiles), _NARROWEST)
    height = max(picture.height for picture, _ in tiles)
    across = min(columns, len(tiles))
    down = -(-len(tiles) // across)
    size = (across * (width + _GAP) + _GAP, down * (height + _LINE + 2 * _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, small = ImageDraw.Draw(sheet), font(11)
    for place, (picture, line) in enumerate(tiles):
        x = _GAP + place % across * (width + _GAP)
        y = _GAP + place // across * (height + _LINE + 2 * _GAP)
        sheet.paste(picture, (x + (width - picture.width) // 2, y))
        shown = fitting_end(line, small, width)
        left = x + (width - small.getlength(shown)) / 2
        draw.text((left, y + height + 2), shown, font=small, fill=INK)
    return sheet


def scaled(crop: Image.Image, height: int) -> Image.Image:
    """Return a crop of that height, its shape kept."""
    width = max(1, round(crop.width * height / crop.height))
    return crop.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
