"""Hold what a report shows, before it is a page or a paper's Markdown: sections of tables, figures and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image

from clip3dreid.errors import InputError
from clip3dreid.report.search_sheet import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph, or a list of lines."""

    lines: Sequence[str]
    listed: bool = False


@dataclass(frozen=True)
class Table:
    """A table, whose columns of numbers stand to the right; a page's can be sorted."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Drawing:
    """A figure in the colours of `report.figures`."""

    name: str
    """Letters, digits and hyphens; of the figure's file, once in a report."""
    figure: Figure
    caption: str
    """Says what there is to see, to those who cannot see it too."""


@dataclass(frozen=True)
class Sheet:
    """A picture made of pictures."""

    name: str
    """As of `Drawing`."""
    picture: Image.Image
    caption: str


@dataclass(frozen=True)
class RankedLists:
    """Queries, and the gallery pictures that each found, right and wrong ones marked."""

    name: str
    """As of `Drawing`."""
    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class TurnableBody:
    """A body beside the crop it was made of."""

    name: str
    """As of `Drawing`."""
    title: str
    crop: Image.Image
    glb: bytes
    facts: Sequence[str]


@dataclass(frozen=True)
class Bodies:
    """Bodies side by side."""

    bodies: Sequence[TurnableBody]


@dataclass(frozen=True)
class Folded:
    """A long text that a page shows when it is asked for."""

    title: str
    text: str


Block: TypeAlias = Text | Table | Drawing | Sheet | RankedLists | Bodies | Folded


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    name: str
    """Letters, digits and underscores; what `without` calls it."""
    title: str
    blocks: Sequence[Block] = ()
    left_out: str | None = None
    """Why there is nothing; None: there is something."""


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    footer: str = ""
    notes: Sequence[str] = field(default_factory=tuple)


def section(name: str, title: str, make: Callable[[], Sequence[Block]]) -> Section:
    """Make a section, or say in a line why it cannot be made.

    Args:
        name: of the section.
        title: its heading.
        make: returns its blocks, or raises InputError with the reason that there are none.
    """
    try:
        return Section(name, title, tuple(make()))
    except InputError as reason:
        return Section(name, title, left_out=" ".join(str(reason).split()))
