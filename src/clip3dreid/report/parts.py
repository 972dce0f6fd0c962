"""Put reports together: colours, letters, pictures that fit, Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageFont, ImageOps

from clip3dreid.io.pictures import UnreadablePicture, read_rgb

BLUE = "#3b6ea5"
GREY = "#8a8f98"
INK = "#1f2430"


def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font of the figures, which has most of the world's letters."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / name, size)


def readable(
    paths: Iterable[Path], count: int, width: int, height: int, box: Sequence[int] | None = None
) -> list[Image.Image]:
    """Return the first `count` pictures that can be read, or a box (left, top, right, bottom) of them."""
    pictures: list[Image.Image] = []
    for path in paths:
        if len(pictures) == count:
            break
        try:
            upright = Image.fromarray(read_rgb(path))
        except UnreadablePicture:
            continue
        if box is not None:
            across, down = upright.size
            upright = upright.crop((max(0, box[0]), max(0, box[1]), min(across, box[2]), min(down, box[3])))
        pictures.append(ImageOps.contain(upright, (width, height)))
    return pictures


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    head, *body = ([cell(text) for text in row] for row in (header, *rows))
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(header), *body)]


def cell(text: str) -> str:
    """Return text that stays in its cell and is no markup."""
    escaped = "".join(f"\\{sign}" if sign in "\\`*_|<>[]" else sign for sign in text)
    return " ".join(escaped.split())


def fitting_end(text: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    """Return as much of a text's end as is at most `width` pixels wide: digits are wider than most letters."""
    if face.getlength(text) <= width:
        return text
    ends = ("\u2026" + text[start:] for start in range(1, len(text) + 1))
    return next((end for end in ends if face.getlength(end) <= width), "\u2026")


def short(name: str, most: int = 40) -> str:
    """Return the end of a long name, which tells paths apart."""
    return name if len(name) <= most else "\u2026" + name[1 - most :]
