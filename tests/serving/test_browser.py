"""The page in a real browser: what a user does, and what must not happen."""

import importlib.util
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.screenshots import keep
from tests.serving.conftest import Page, Rendered

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
WAIT_MS = 120_000

for package in ("gradio", "playwright", "axe_playwright_python"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (pip install 'clip3dreid[dev]')", allow_module_level=True)
if not Path(CHROMIUM).is_file():
    pytest.skip("no Chromium on this machine", allow_module_level=True)

FLAGS = [
    *("--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Tab:
    """A tab that has the page, and what it has asked whom."""

    def __init__(self, browser: Any, url: str, width: int, **options: Any) -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": 844}, **options)
        self.tab.set_default_timeout(WAIT_MS)
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.goto(url)
        self.tab.wait_for_selector("#people button")

    def upload(self, *files: Any) -> None:
        self.tab.set_input_files("#drop input[type=file]", list(files))

    def hits(self) -> list[str]:
        self.tab.wait_for_selector("#hits li")
        return self.tab.locator("#hits figcaption").all_inner_texts()

    def told(self, text: str) -> str:
        """Return the line that is shown, once it says something."""
        line = self.tab.locator("#message p", has_text=text)
        line.wait_for()
        return line.inner_text()

    def strangers(self) -> list[str]:
        """Return requests that left for another host."""
        own = {"127.0.0.1", None}
        return [url for url in self.asked if urlsplit(url).hostname not in own]


@pytest.fixture(params=[1280])
def tab(browser: Any, page: Page, request: pytest.FixtureRequest) -> Iterator[Tab]:
    made = Tab(browser, page.url, request.param)
    yield made
    keep(made.tab, f"serve_{request.node.name}")
    assert made.strangers() == []
    assert made.wrong == []
    assert made.tab.evaluate("document.documentElement.scrollWidth") <= request.param
    made.tab.close()


on_screen_and_phone = pytest.mark.parametrize("tab", [1280, 390], indirect=True)
on_phone = pytest.mark.parametrize("tab", [390], indirect=True)


def huge_png(side: int = 10_000) -> bytes:
    """A PNG that says in its header how large it is, and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    packed = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def violations(tab: Any) -> list[str]:
    """What axe finds wrong with the whole page, gradio's own parts with ours."""
    from axe_playwright_python.sync_playwright import Axe

    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in Axe().run(tab).response["violations"]]


@on_screen_and_phone
def test_a_crop_finds_its_person_who_is_described_in_words_and_as_a_body(
    tab: Tab, rendered: Rendered
) -> None:
    tab.upload(rendered.queries[0])
    hits = tab.hits()
    assert len(hits) == 8
    assert any(f"person {rendered.people[0]}\n" in f"{hit}\n" for hit in hits[:3]), hits
    assert tab.tab.locator("#words tbody tr").count() == 4
    assert tab.tab.locator("#places figure").count() == 4
    assert tab.tab.locator("#drop .shelf img").count() == 1
    # A GLB file inside the page, which the viewer draws.
    link = tab.tab.locator("#body a[data-testid=model3d-download-link]")
    assert link.get_attribute("href").startswith("data:model/gltf-binary;base64,Z2xURg")
    tab.tab.wait_for_selector("#body canvas")
    assert violations(tab.tab) == []


@on_phone
def test_words_find_people_and_say_how_they_were_read(tab: Tab) -> None:
    tab.tab.fill("#text textarea", "a tall, heavyset man")
    tab.tab.click("#search")
    assert tab.told("Read as") == "Read as: tall, heavyset, masculine."
    assert len(tab.hits()) == 8
    assert tab.tab.locator("#words table").count() == 0
    assert not tab.tab.locator("#body").is_visible()
    assert violations(tab.tab) == []


@on_screen_and_phone
def test_fields_and_lists_of_the_filter_are_there_for_everybody(tab: Tab) -> None:
    tab.tab.click("#filters button")
    tab.tab.locator("#more textarea, #more input").wait_for()
    assert violations(tab.tab) == []
    tab.tab.click("#camera input")
    tab.tab.locator("#camera [role=option], ul[role=listbox] li").first.wait_for()
    assert violations(tab.tab) == []
    # The scan sees what it is for: a field without a name.
    tab.tab.evaluate(
        "const field = document.querySelector('#text textarea');"
        "field.removeAttribute('placeholder'); field.closest('label').replaceWith(field)"
    )
    assert [one.partition(":")[0] for one in violations(tab.tab)] == ["label"]


def test_whoever_of_the_gallery_is_clicked_is_asked_with_and_does_not_find_that_very_picture(
    tab: Tab,
) -> None:
    who = tab.tab.locator("#people img").first.get_attribute("alt")
    tab.tab.locator("#people button").first.click()
    first = tab.hits()[0]
    assert "1.000" not in first
    assert tab.tab.locator("#drop .shelf img").count() == 1
    assert who.startswith("person ")


def test_a_filter_leaves_its_own_and_what_was_asked_is_asked_again(
    browser: Any, page: Page, rendered: Rendered
) -> None:
    tab = Tab(browser, page.url, 1280)
    tab.upload(rendered.queries[0], rendered.queries[1])
    tab.hits()
    tab.tab.click("#filters button")
    tab.tab.click("#camera input")
    tab.tab.get_by_role("option", name="2").click()
    tab.tab.wait_for_function(
        "[...document.querySelectorAll('#hits figcaption')].every(one => one.innerText.includes('camera 2'))"
    )
    tab.tab.fill("#more textarea, #more input", "person=[nobody]")
    tab.tab.press("#more textarea, #more input", "Enter")
    assert "where.person=[nobody] leaves no picture" in tab.told("nobody")
    tab.tab.fill("#more textarea, #more input", "whatever")
    tab.tab.press("#more textarea, #more input", "Enter")
    assert "is no condition; write person=[3,7]" in tab.told("whatever")
    tab.tab.close()


@on_phone
def test_bad_input_is_told_in_one_line_and_the_page_goes_on(tab: Tab, rendered: Rendered) -> None:
    tab.upload({"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no picture at all"})
    assert "cannot read the picture notes.jpg: not a picture" in tab.told("notes.jpg")
    tab.upload({"name": "huge.png", "mimeType": "image/png", "buffer": huge_png()})
    assert "it has 10000 x 10000 pixels, and more than 80,000,000 are not decoded" in tab.told("huge.png")
    tab.upload(*[{"name": f"{n}.png", "mimeType": "image/png", "buffer": b"x"} for n in range(5)])
    tab.tab.locator("#drop .wrong", has_text="5 pictures are too many; give up to 4").wait_for()
    tab.upload({"name": "fat.png", "mimeType": "image/png", "buffer": b"x" * 1_100_000})
    tab.tab.locator("#drop .wrong", has_text="1.1 MB, and up to 1 MB are taken").wait_for()
    for text, why in (
        ("x" * 10_000, "the text has 10,000 letters, and at most 500 are read"),
        ("   ", "the text is empty"),
        ("zebra", "'zebra' has no word that this model knows"),
        (str(rendered.queries[0]), f"'{rendered.queries[0]}' has no word that this model knows"),
    ):
        tab.tab.fill("#text textarea", text)
        tab.tab.click("#search")
        assert "\n" not in tab.told(why)
    assert tab.tab.locator("#message [role=alert]").count() == 1
    tab.upload(rendered.queries[0])
    assert len(tab.hits()) == 8
    assert tab.tab.locator("#message .wrong").count() == 0


def test_the_page_can_be_read_in_the_dark_and_keeps_nothing_that_was_uploaded(
    browser: Any, page: Page, rendered: Rendered
) -> None:
    tab = Tab(browser, page.url, 1280, color_scheme="dark")
    tab.upload(rendered.queries[0])
    tab.hits()
    assert violations(tab.tab) == []
    tab.tab.close()
    left = [path for path in page.folder.rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".glb", ".bin", "")]
    # gradio's own folder of files is there, and empty.
    (own,) = page.folder.glob("clip3dreid-page-*")
    assert not [path for path in own.rglob("*") if path.is_file()]
