"""The site's pages of docstrings hold what docs/api.md shows, with what that takes and returns, each once."""

import re

import griffe
import pytest

import api_pages
import clip3dreid

PAGE = api_pages.PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reference() -> api_pages.Reference:
    return api_pages.Reference(PAGE)


def shown(reference: api_pages.Reference) -> list[str]:
    return [anchor for text in reference.pages.values() for anchor in re.findall(r"^::: (.+)$", text, re.M)]


def test_the_front_door_and_the_call_behind_every_command_are_there(reference: api_pages.Reference) -> None:
    calls = {
        name
        for row in re.findall(r"^\| `\w+` \| (`clip3dreid.*) \|$", PAGE, re.M)
        for name in row.split("`")[1::2]
    }
    assert len(calls) >= 13
    front = {f"clip3dreid.{name}" for name in clip3dreid.__all__ if name != "__version__"}
    assert front | {"clip3dreid.training.run.train"} <= set(reference.homes)
    assert calls <= set(reference.homes)
    assert front <= set(re.findall(r"^::: (.+)$", reference.pages[api_pages.FRONT], re.M))


def test_each_stands_once_on_the_page_of_its_package(reference: api_pages.Reference) -> None:
    anchors = shown(reference)
    assert len(set(anchors)) == len(anchors)
    assert "::: clip3dreid.search.search.search\n" in reference.pages["docs/reference/search.md"]
    # A name of the front door stands there alone, and its home leads there.
    assert reference.homes["clip3dreid.search.gallery.Gallery"] == "clip3dreid.Gallery"
    assert "clip3dreid.search.gallery.Gallery" not in anchors


@pytest.mark.parametrize(
    ("name", "asked_for_by"),
    [
        ("clip3dreid.training.settings.TrainSettings", "an argument"),
        ("clip3dreid.training.run.TrainResult", "what is returned"),
        ("clip3dreid.search.settings.TextQueries", "a short name for several classes"),
        ("clip3dreid.synthetic.plan.Layout", "a field"),
    ],
)
def test_what_a_call_takes_or_returns_comes_with_it(
    reference: api_pages.Reference, name: str, asked_for_by: str
) -> None:
    alone = api_pages.Reference("`clip3dreid.errors.InputError`")
    assert name in shown(reference), asked_for_by
    assert name not in shown(alone), "it is there whatever the page names"


def test_what_only_an_example_imports_is_there_too() -> None:
    page = "```python\nfrom clip3dreid.loss.identity import CrossEntropy\n```\n"
    assert "clip3dreid.loss.identity.CrossEntropy" in shown(api_pages.Reference(page))


def test_names_in_text_become_links_and_nothing_else_does(reference: api_pages.Reference) -> None:
    code = "```python\n`clip3dreid.load`\n```"
    text = "`clip3dreid.load`, `clip3dreid.nothing`, [`clip3dreid.load`](api.md), `clip3dreid.load(1)`"
    assert reference.linked(f"{text}\n\n{code}\n") == (
        f"[`clip3dreid.load`][clip3dreid.load]{text.removeprefix('`clip3dreid.load`')}\n\n{code}\n"
    )


def test_an_example_is_code_and_no_quotation(reference: api_pages.Reference) -> None:
    extensions = griffe.load_extensions(api_pages.Examples)
    package = griffe.load(
        "clip3dreid",
        search_paths=[str(api_pages.ROOT / "src")],
        extensions=extensions,
        docstring_parser="google",
    )
    docstring = package["inference.model.load"].docstring
    assert docstring is not None
    assert [one for one in docstring.parsed if isinstance(one, griffe.DocstringSectionExamples)]
