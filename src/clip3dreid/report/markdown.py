"""Write a report as Markdown with its figures beside it, for a paper or a repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from clip3dreid.io.files import atomic, inside, write_text
from clip3dreid.report.document import (
    Block,
    Bodies,
    Document,
    Drawing,
    Folded,
    RankedLists,
    Sheet,
    Table,
    Text,
)
from clip3dreid.report.parts import cell, grid
from clip3dreid.report.search_sheet import search_sheet

PAGE = "report.md"
_DPI = 200
"""Dots an inch: print wants more than screens."""


def write_markdown(document: Document, folder: Path) -> Path:
    """Write a report as `report.md`, with figures as PNG, ranked lists as JPEG and bodies as GLB.

    Args:
        document: what it shows. Whatever texts hold, they are no markup.
        folder: made if need be.

    Returns:
        The page.

    Raises:
        InputError: if they cannot be written.
    """
    lines = [f"# {cell(document.title)}", "", cell(document.subtitle), ""]
    lines += [*(f"- {cell(note)}" for note in document.notes), ""] if document.notes else []
    for section in document.sections:
        lines += [f"## {cell(section.title)}", ""]
        if section.left_out:
            lines += [f"Left out: {cell(section.left_out)}", ""]
        for block in section.blocks:
            lines += [*_written(block, folder), ""]
    lines += [cell(document.footer)]
    write_text(folder / PAGE, "\n".join(lines) + "\n")
    return folder / PAGE


def _written(block: Block, folder: Path) -> Iterator[str]:
    """Yield the lines of a block, and write its pictures."""
    match block:
        case Text():
            yield from (f"- {cell(line)}" if block.listed else f"{cell(line)}\n" for line in block.lines)
        case Table():
            yield f"**{cell(block.title)}**"
            yield ""
            yield from grid([name or "name" for name in block.header], block.rows)
        case Drawing():
            path = inside(folder, f"{block.name}.png")
            with atomic(path) as temporary:
                block.figure.savefig(temporary, dpi=_DPI)
            yield _picture(block.caption, path)
        case Sheet():
            yield _picture(block.caption, _saved(block.picture, folder, f"{block.name}.png"))
        case RankedLists():
            yield f"### {cell(block.title)}"
            yield ""
            sheet = search_sheet(block.rows, columns=min(10, max(len(row.hits) for row in block.rows)))
            yield _picture(block.title, _saved(sheet.picture, folder, f"{block.name}.jpg"))
            yield ""
            yield "Right hits have an unbroken frame, wrong ones a dashed one."
            if sheet.queries < len(block.rows):
                yield f"There was room for {sheet.queries} of {len(block.rows)} queries."
            yield ""
            yield from (f"- {cell(row.text)}" for row in block.rows)
        case Bodies():
            for body in block.bodies:
                path = inside(folder, f"{body.name}.glb")
                with atomic(path) as temporary:
                    temporary.write_bytes(body.glb)
                yield _picture(body.title, _saved(body.crop, folder, f"{body.name}.png"))
                yield ""
                facts = "; ".join(map(cell, body.facts))
                yield f"{cell(body.title)}: {facts}. [{path.name}]({path.name})"
                yield ""
        case Folded():
            longest = max((len(found) for found in re.findall(r"`+", block.text)), default=0)
            fence = "`" * max(3, longest + 1)
            yield f"**{cell(block.title)}**"
            yield ""
            yield fence
            yield block.text.rstrip("\n")
            yield fence


def _picture(caption: str, path: Path) -> str:
    return f"![{cell(caption)}]({path.name})"


def _saved(picture: Image.Image, folder: Path, name: str) -> Path:
    path = inside(folder, name)
    with atomic(path) as temporary:
        picture.convert("RGB").save(temporary, quality=92)
    return path
