"""What docstrings and pages show is done as it stands there, in a folder that holds what they name."""

import doctest
import importlib
import re
import shutil
from pathlib import Path
from types import FunctionType
from typing import Any

import polars as pl
import pytest

import clip3dreid
from clip3dreid.inference.model import ReidModel
from clip3dreid.search.gallery import Gallery
from clip3dreid.search.search import SearchResult
from tests.conftest import write_ltcc

ROOT = Path(__file__).parents[1]
RUN = "runs/ltcc/2026-11-24_18-00-00_clip3dreid_resnet50_seed1"
"""A run that the README loads."""


def shown() -> dict[str, doctest.DocTest]:
    """Examples of all docstrings, but for those that only training or a data set could do."""
    files = sorted(
        path for path in (ROOT / "src").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")
    )
    names = [".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in files]
    found = [test for name in names for test in doctest.DocTestFinder().find(importlib.import_module(name))]
    done = [test for test in found if not all(doctest.SKIP in one.options for one in test.examples)]
    return {test.name.removeprefix("clip3dreid."): test for test in done}


EXAMPLES = shown()


@pytest.fixture(scope="module")
def prepared(saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, crops, a table of them, and pictures of single people."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(saved_model, folder / "model")
    files = sorted((write_ltcc(folder / "world", train=[], test=range(20, 22)) / "query").iterdir())
    (folder / "crops").mkdir()
    for file in files:
        file.rename(folder / "crops" / file.name)
    named = ["someone.jpg", "a.jpg", "b.jpg", "c.jpg", "d.jpg", "a.png", "b.png"]
    for file, name in zip(files, named, strict=False):
        shutil.copy(folder / "crops" / file.name, folder / name)
    shutil.rmtree(folder / "world")
    labels = [(f"crops/{file.name}", int(file.name[:3]), int(file.name[7])) for file in files]
    pl.DataFrame(labels, ["path", "person", "camera"], orient="row").write_csv(folder / "crops.csv")
    return folder


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def names(place: Path) -> dict[str, Any]:
    """What an example may take for granted."""
    model = clip3dreid.load("model")
    gallery = Gallery.from_pictures(model, "crops.csv", workers=0)
    gallery.save("shards/crops")
    return {"model": model, "gallery": gallery}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_it_says(name: str, names: dict[str, Any]) -> None:
    example = EXAMPLES[name]
    example.globs.update(names)
    said: list[str] = []
    assert doctest.DocTestRunner().run(example, out=said.append, clear_globs=False).failed == 0, "".join(said)


WITHOUT = {
    "forward",
    "placed",
    "word_scores",
    "best_words",
    "choices",
    "words_of",
    "from_pretrained",
    "width",
    "blocks",
    "draw",
    "show",
}
"""Methods for other parts of the program, or that another one's example shows."""


def test_what_users_call_has_an_example() -> None:
    called = {
        f"{kind.__name__}.{name}"
        for kind in (ReidModel, Gallery, SearchResult)
        for name, value in vars(kind).items()
        if isinstance(value, FunctionType | classmethod) and not name.startswith("_") and name not in WITHOUT
    }
    assert {"load", "Gallery", "SearchResult"} | called <= {
        re.sub(r"^([a-z_]+\.)+", "", name) for name in EXAMPLES
    }


def block(page: str, section: str) -> str:
    """Return the first piece of Python of a section, by its heading."""
    text = (ROOT / page).read_text(encoding="utf-8")
    part = re.split(rf"^#+ {section}$", text, flags=re.M)[1]
    code = re.search(r"^```python\n(.*?)^```$", part, flags=re.M | re.S)
    assert code is not None
    return code[1]


def test_what_the_page_on_the_interface_begins_with_is_done(place: Path) -> None:
    names: dict[str, Any] = {}
    exec(block("docs/api.md", "From Python"), names)
    assert names["features"].shape == (2, 128)
    assert names["similar"] == pytest.approx(names["model"].similarity("a.png", "b.png").item(), abs=1e-5)
    assert {path.name for path in (place / "copy").iterdir()} >= {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    # And the section on galleries goes on with that model.
    exec(block("docs/api.md", "A gallery"), names)
    assert (place / "found.jpg").is_file()
    assert len(names["gallery"]) == 9
    assert names["hits"].to_polars()["score"].is_sorted(descending=True)


def test_what_the_readme_does_with_a_trained_model_is_done(place: Path) -> None:
    shutil.copytree(place / "model", place / RUN)
    names: dict[str, Any] = {}
    exec(block("README.md", "Use a trained model"), names)
    assert names["features"].shape == (2, 128)
    assert (place / "found.jpg").is_file()


def test_what_the_page_on_search_does_from_python_is_done(names: dict[str, Any], place: Path) -> None:
    shutil.copytree(place / "model", place / "runs/…")
    done: dict[str, Any] = {}
    exec(block("docs/search.md", "From Python"), done)
    assert len(done["result"].answers[0].hits) == 8
    assert (place / "found.jpg").is_file()
