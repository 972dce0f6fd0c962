import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip3dreid.body.gltf import glb
from clip3dreid.errors import InputError
from clip3dreid.report.document import (
    Bodies,
    Document,
    Drawing,
    Folded,
    RankedLists,
    Section,
    Sheet,
    Table,
    Text,
    TurnableBody,
    section,
)
from clip3dreid.report.figures import draw_cmc
from clip3dreid.report.html import as_html, write_html
from clip3dreid.report.search_sheet import Row, ShownPicture

NASTY = "</script><script>alert('x')</script><img src=x onerror=alert(1)> \"quoted\" & {{ 7 * 7 }}"


def document(folder: Path, text: str = NASTY) -> Document:
    """A report with every kind of block, and a text wherever one can stand."""
    Image.new("RGB", (32, 64), "grey").save(folder / "a <b>.png")
    right = ShownPicture(folder / "a <b>.png", caption=("1. at 0.1", text), right=True)
    wrong = ShownPicture(folder / "gone.png", caption=(text,), right=False)
    tetrahedron = (
        torch.tensor([[0, 0, 0], [0, 2, 0], [1, 0, 0], [0, 0, 1.0]]),
        torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]]),
    )
    crop = Image.new("RGB", (32, 64), "grey")
    body = TurnableBody("body-1", text, crop, glb(*tetrahedron, name=text), [text])
    blocks = [
        Text([text]),
        Text([text, "b"], listed=True),
        Table(text, ("name", "R1, %"), [[text, "9.5 [1.0, 2.0]"], ["b", "10.1"], ["c", ""]]),
        Drawing("cmc", draw_cmc({text: np.linspace(0.2, 1, 5)}), text),
        Sheet("sheet", crop, text),
        RankedLists("lists", text, [Row(text, [right._replace(right=None)], [right, wrong])]),
        Bodies([body]),
        Folded(text, text),
    ]
    parts = [Section("one", text, blocks), Section("two", text, left_out=text)]
    return Document(text, text, parts, footer=text, notes=[text])


class Reader(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_whatever_texts_hold_they_stay_texts(tmp_path: Path) -> None:
    nasty, tame = (read(as_html(document(tmp_path, text))) for text in (NASTY, "tame"))
    assert [tag for tag, _ in nasty.tags] == [tag for tag, _ in tame.tags]
    assert not any(key.startswith("on") for _, attributes in nasty.tags for key in attributes)
    assert nasty.text.count("alert('x')") >= 12
    assert "{{ 7 * 7 }}" in nasty.text


def test_a_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    found = read(as_html(document(tmp_path)))
    for tag, attributes in found.tags:
        for key in ("src", "href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    policy = next(
        one["content"] for _, one in found.tags if one.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "url(" not in re.sub(r"url\(#", "", as_html(document(tmp_path)))


def test_right_and_wrong_are_said_in_words_and_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = read(as_html(document(tmp_path)))
    assert "✓ right" in found.text
    assert "✗ wrong" in found.text
    assert "not there" in found.text
    classes = [attributes.get("class") for tag, attributes in found.tags if tag == "figure"]
    assert {"query", "right", "wrong"} <= set(classes)
    assert all(attributes.get("alt") for tag, attributes in found.tags if tag == "img")


def test_ids_of_a_page_are_there_once(tmp_path: Path) -> None:
    ids = [
        attributes["id"] for _, attributes in read(as_html(document(tmp_path))).tags if attributes.get("id")
    ]
    assert len(set(ids)) == len(ids)


def test_numbers_stand_to_the_right_and_single_rows_are_not_sorted(tmp_path: Path) -> None:
    found = read(as_html(document(tmp_path)))
    heads = [attributes.get("class") for tag, attributes in found.tags if tag == "th"]
    assert heads == [None, "number"]
    one = Document("t", "s", [Section("a", "A", [Table("t", ("x",), [["1"]])])])
    assert "<button" not in as_html(one)


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    page = write_html(document(tmp_path), tmp_path / "new" / "folder")
    assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_a_section_that_cannot_be_made_says_why_in_one_line() -> None:
    def fail() -> list[Text]:
        raise InputError("no\n pictures")

    assert section("a", "A", fail) == Section("a", "A", left_out="no pictures")
    with pytest.raises(ZeroDivisionError):
        section("a", "A", lambda: [Text([str(1 / 0)])])


def test_the_body_that_is_offered_is_the_one_that_is_drawn(tmp_path: Path) -> None:
    import base64

    links = [
        one["href"]
        for _, one in read(as_html(document(tmp_path))).tags
        if one.get("download") == "body-1.glb"
    ]
    assert len(links) == 1
    assert links[0] is not None
    content = base64.b64decode(links[0].partition(",")[2])
    assert (
        json.loads(content[20 : 20 + int.from_bytes(content[12:16], "little")])["meshes"][0]["name"] == NASTY
    )
