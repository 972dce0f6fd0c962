"""The page of a report in a real browser: nothing fails, bodies turn, tables sort, and everybody can read it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clip3dreid.review.looked import Looked
from tests.screenshots import keep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed, in which the report's page is looked at")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(looked: Looked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of what the fixture has looked at already, so that no picture is looked at again."""
    from clip3dreid.report.document import Document, section
    from clip3dreid.report.html import write_html
    from clip3dreid.review import looked as parts
    from clip3dreid.review import recorded

    made = {
        "scores": lambda: recorded.scores(looked.run, []),
        "cmc": lambda: recorded.curves(looked.run),
        "words": lambda: recorded.words(looked.run),
        "configuration": lambda: recorded.configuration(looked.run),
        "environment": lambda: recorded.environment(looked.run),
        **{
            name: (lambda name=name: getattr(parts, name)(looked))
            for name in (
                "ranked_lists",
                "clothes_failures",
                "distances",
                "plans",
                "maps",
                "bodies",
                "embedding_map",
            )
        },
    }
    sections = [section(name, name, make) for name, make in made.items()]
    assert not any(one.left_out for one in sections)
    return write_html(Document("<script>a</script> title", "b", sections), tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page opened, which has said nothing to the console and asked nothing of anybody when the test ends."""
    scheme, width = getattr(request, "param", ("light", 1280))
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on(
        "request",
        lambda asked: said.append(asked.url) if not asked.url.startswith(("data:", "file:")) else None,
    )
    opened.goto(report.as_uri())
    yield opened
    keep(opened, f"report_{request.node.name}")
    opened.close()
    assert said == []


def test_a_body_is_drawn_and_turns_with_slider_keys_and_pointer(page: Any) -> None:
    figure = page.locator("figure.body").first
    figure.scroll_into_view_if_needed()
    canvas, slider = figure.locator("canvas"), figure.locator("input")
    figure.locator("canvas[data-drawn='0']").wait_for()

    def drawn() -> str:
        return str(canvas.evaluate("canvas => canvas.toDataURL()"))

    front = drawn()
    pixels = "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data"
    assert canvas.evaluate(f"canvas => [...{pixels}].some(value => value > 0)")
    slider.fill("90")
    side = drawn()
    assert side != front
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "91"
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 50, box["y"] + 40)
    page.mouse.up()
    assert slider.input_value() == "121"
    assert drawn() not in (front, side)
    slider.fill("0")
    assert drawn() == front


def test_a_body_can_be_taken_away_as_glb(page: Any) -> None:
    link = page.locator("a.glb").first
    link.scroll_into_view_if_needed()
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "body-1.glb"
    assert Path(download.value.path()).read_bytes().startswith(b"glTF")


def test_a_table_is_sorted_by_numbers_and_by_names_both_ways(page: Any) -> None:
    table = page.locator("table", has_text="Failures:")

    def column(number: int) -> list[str]:
        return [cell.strip() for cell in table.locator(f"tbody td:nth-child({number})").all_inner_texts()]

    button = table.locator("thead button").nth(2)
    button.click()
    ranks = [float(cell) for cell in column(3)]
    assert len(set(ranks)) > 1
    assert ranks == sorted(ranks)
    assert table.locator("th").nth(2).get_attribute("aria-sort") == "ascending"
    button.click()
    assert [float(cell) for cell in column(3)] == sorted(ranks, reverse=True)
    table.locator("thead button").nth(0).click()
    assert column(1) == sorted(column(1))
    assert table.locator("th[aria-sort]").count() == 1


@pytest.mark.parametrize("page", [("light", 1280), ("dark", 390)], indirect=True, ids=["desktop", "phone"])
def test_everybody_can_read_the_page_and_nothing_is_wider_than_it(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(
        "[...document.images].every(image => image.loading === 'lazy' || image.naturalWidth > 0)"
    )


def test_printed_it_has_dark_letters_on_white_and_all_of_every_table(page: Any) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    hidden = "[...document.querySelectorAll('.tall')].filter(one => one.scrollHeight > one.clientHeight + 2).length"
    assert page.evaluate(hidden) == 0
    assert page.locator("nav").is_hidden()
