"""Draw what a search found: a query a row, its hits beside it."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from clip3dreid.errors import InputError
from clip3dreid.io.files import atomic
from clip3dreid.report.parts import BLUE, GREY, INK, fitting_end, font, readable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Of the files that can be drawn."""
_GAP = 8
_TALLEST = 16_000
"""Pixels; WebP ends there, JPEG at four times as much."""


class ShownPicture(NamedTuple):
    """A picture to show, or a part of it."""

    path: Path
    box: tuple[int, int, int, int] | None = None
    """Left, top, right, bottom in pixels."""
    caption: tuple[str, ...] = ()
    """Lines below it."""


class Row(NamedTuple):
    """A query and what it found."""

    text: str
    """The query in words; shown where it has no pictures."""
    pictures: Sequence[ShownPicture]
    """Of the query."""
    hits: Sequence[ShownPicture]
    """Best first."""


def check_sheet(path: Path) -> None:
    """Check that a sheet can be drawn in the format that a file's name asks for.

    Raises:
        InputError: with the suffixes that there are.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"sheet={path} must end in {', '.join(SUFFIXES)}")


def draw_search(path: Path, rows: Sequence[Row], *, height: int = 200, columns: int = 10) -> int:
    """Draw queries and their hits.

    Args:
        path: of the picture; its suffix is one of `SUFFIXES`.
        rows: at least one query.
        height: of a picture, pixels.
        columns: hits side by side; more go below.

    Returns:
        How many queries there was room for: a picture cannot be of any height.

    Raises:
        InputError: if it cannot be written.
    """
    small = font(12)
    width = round(height * 0.55)
    captions = max((len(hit.caption) for row in rows for hit in row.hits), default=0)
    line = 15
    tall = height + captions * line + _GAP
    lines = [max(1, -(-len(row.hits) // columns)) for row in rows]
    heights = itertools.accumulate(count * tall + 2 * _GAP for count in lines)
    fitting = max(1, sum(total + 2 * _GAP <= _TALLEST for total in heights))
    rows, lines = rows[:fitting], lines[:fitting]
    across = width * 2 + 3 * _GAP + columns * (width + _GAP)
    sheet = Image.new("RGB", (across, sum(lines) * tall + (len(rows) + 1) * 2 * _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    top = 2 * _GAP
    for row, count in zip(rows, lines, strict=True):
        _draw_query(sheet, draw, row, top, width, height)
        for place, hit in enumerate(row.hits):
            x = width * 2 + 3 * _GAP + place % columns * (width + _GAP)
            y = top + place // columns * tall
            _paste(sheet, draw, hit, x, y, width, height)
            for number, caption in enumerate(hit.caption):
                shown = fitting_end(caption, small, width)
                draw.text(
                    (x, y + height + 2 + number * line), shown, font=small, fill=INK if not number else GREY
                )
        top += count * tall
        draw.line((_GAP, top, across - _GAP, top), fill="#d9dce1")
        top += 2 * _GAP
    with atomic(path) as temporary:
        sheet.save(temporary, quality=92)
    return fitting


def _draw_query(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, top: int, width: int, height: int
) -> None:
    for place, picture in enumerate(row.pictures[:2]):
        _paste(sheet, draw, picture, _GAP + place * (width + _GAP), top, width, height)
    if row.pictures:
        draw.rectangle((_GAP - 3, top - 3, _GAP + width + 2, top + height + 2), outline=BLUE, width=2)
    else:
        for number, line in enumerate(textwrap.wrap(row.text, 30)[: height // 18]):
            draw.text((_GAP, top + number * 18), line, font=font(14), fill=BLUE)


def _paste(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    picture: ShownPicture,
    x: int,
    y: int,
    width: int,
    height: int,
) -> None:
    found = readable([picture.path], 1, width, height, picture.box)
    if found:
        sheet.paste(found[0], (x + (width - found[0].width) // 2, y + (height - found[0].height) // 2))
    else:
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=GREY)
        draw.text((x + 6, y + height // 2), "not there", font=font(12), fill=GREY)
