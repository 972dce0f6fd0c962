"""Write a report as one HTML page that needs no network: styles, script, figures, pictures and bodies are inside."""

from __future__ import annotations

import base64
import io
import re
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from clip3dreid.io.files import write_text
from clip3dreid.report.document import Document, Drawing, Table
from clip3dreid.report.figures import as_svg
from clip3dreid.report.parts import readable
from clip3dreid.report.search_sheet import ShownPicture

PAGE = "report.html"
_THUMBNAIL = (160, 200)
"""Most pixels of a picture in a list, across and down; on the page it is at most 144 high."""
_NUMBER = re.compile(r"[+\-\u2212]?\d[\d,.]*(e[+-]?\d+)?( .*| ?%|x)?")


def write_html(document: Document, folder: Path) -> Path:
    """Write a report as `report.html`.

    Args:
        document: what it shows. Whatever texts hold, they stay texts.
        folder: made if need be.

    Returns:
        The page.

    Raises:
        InputError: if it cannot be written.
    """
    write_text(folder / PAGE, as_html(document))
    return folder / PAGE


def as_html(document: Document) -> str:
    """Return the text of a report's page."""
    assets = files("clip3dreid.report") / "assets"
    template, css, script = (
        (assets / f"report.{suffix}").read_text(encoding="utf-8") for suffix in ("html.j2", "css", "js")
    )
    engine = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return engine.from_string(template).render(
        document=document,
        css=Markup(css),
        script=Markup(script),
        kind_of=lambda block: type(block).__name__,
        numeric=_numeric,
        svg=_svg,
        thumbnail=_thumbnail,
        data_uri=data_uri,
        base64=_base64,
    )


def data_uri(picture: Image.Image) -> str:
    """Return a picture as an address that holds it."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{_base64(buffer.getvalue())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _thumbnail(picture: ShownPicture) -> str | None:
    found = readable([picture.path], 1, *_THUMBNAIL, picture.box)
    return data_uri(found[0]) if found else None


def _svg(drawing: Drawing) -> Markup:
    return Markup(as_svg(drawing.figure, drawing.name))


def _numeric(table: Table) -> list[bool]:
    """Return for each column whether all of its cells that are not blank begin with a number."""
    columns = ([row[place] for row in table.rows if row[place]] for place in range(len(table.header)))
    return [bool(cells) and all(map(_NUMBER.fullmatch, cells)) for cells in columns]
