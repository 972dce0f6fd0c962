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
RIGHT, WRONG = "#1a7f4b", "#b3261e"
"""Colours of frames around hits that are right and wrong; the frames of the latter are dashed."""
_GAP = 8
_LINE = 15
_TALLEST = 16_000
"""Pixels; WebP ends there, JPEG at four times as much."""


class ShownPicture(NamedTuple):
    """A picture to show, or a part of it."""

    path: Path
    box: tuple[int, int, int, int] | None = None
    """Left, top, right, bottom in pixels."""
    caption: tuple[str, ...] = ()
    """Lines below it."""
    right: bool | None = None
    """Whether it shows the person who was asked for: framed, unbroken where it does; None: nobody says."""


class Row(NamedTuple):
    """A query and what it found."""

    text: str
    """The query in words; shown where it has no pictures."""
    pictures: Sequence[ShownPicture]
    """Of the query."""
    hits: Sequence[ShownPicture]
    """Best first."""


class DrawnSheet(NamedTuple):
    """A drawn search."""

    picture: Image.Image
    queries: int
    """How many there was room for."""


def check_sheet(path: Path) -> None:
    """Check that a sheet can be drawn in the format that a file's name asks for.

    Raises:
        InputError: with the suffixes that there are.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"sheet={path} must end in {', '.join(SUFFIXES)}")


def draw_search(path: Path, rows: Sequence[Row], *, height: int = 200, columns: int = 10) -> int:
    """Draw queries and their hits, and write the picture.

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
    drawn = search_sheet(rows, height=height, columns=columns)
    with atomic(path) as temporary:
        drawn.picture.save(temporary, quality=92)
    return drawn.queries


def search_sheet(rows: Sequence[Row], *, height: int = 200, columns: int = 10) -> DrawnSheet:
    """Draw queries and their hits; arguments as of `draw_search`."""
    width = round(height * 0.55)
    shown = [picture for row in rows for picture in (*row.pictures, *row.hits)]
    captions = max((len(picture.caption) for picture in shown), default=0)
    tall = height + captions * _LINE + _GAP
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
            if hit.right is not None:
                _frame(draw, x, y, width, height, right=hit.right)
            _write(draw, hit.caption, x, y + height + (5 if hit.right is not None else 2), width)
        top += count * tall
        draw.line((_GAP, top, across - _GAP, top), fill="#d9dce1")
        top += 2 * _GAP
    return DrawnSheet(sheet, fitting)


def _draw_query(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, top: int, width: int, height: int
) -> None:
    for place, picture in enumerate(row.pictures[:2]):
        x = _GAP + place * (width + _GAP)
        _paste(sheet, draw, picture, x, top, width, height)
        _write(draw, picture.caption, x, top + height + 5, width)
    if row.pictures:
        draw.rectangle((_GAP - 3, top - 3, _GAP + width + 2, top + height + 2), outline=BLUE, width=2)
    else:
        for number, line in enumerate(textwrap.wrap(row.text, height * 3 // 20)[: height // 18]):
            draw.text((_GAP, top + number * 18), line, font=font(14), fill=BLUE)


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, width: int) -> None:
    """Write lines below a picture, the first one darker."""
    small = font(12)
    for number, line in enumerate(lines):
        shown = fitting_end(line, small, width)
        draw.text((x, y + number * _LINE), shown, font=small, fill=GREY if number else INK)


def _frame(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, height: int, *, right: bool) -> None:
    """Frame a hit: in an unbroken line where it is right, else in dashes."""
    box = (x - 3, y - 3, x + width + 2, y + height + 2)
    if right:
        draw.rectangle(box, outline=RIGHT, width=3)
        return
    left, top, end, bottom = box
    for start in range(left, end, 12):
        for line in (top, bottom - 2):
            draw.rectangle((start, line, min(start + 6, end), line + 2), fill=WRONG)
    for start in range(top, bottom, 12):
        for line in (left, end - 2):
            draw.rectangle((line, start, line + 2, min(start + 6, bottom)), fill=WRONG)


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
