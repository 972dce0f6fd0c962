"""A rendered world of six people, a gallery of it, and a process that serves the page."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

import clip3dreid
from clip3dreid.body.smpl import load_body
from clip3dreid.data.datasets import ltcc
from clip3dreid.synthetic import layouts
from clip3dreid.synthetic.settings import SynthesisSettings
from clip3dreid.synthetic.synthesis import synthesize
from tests.processes import PATIENCE_S


class Rendered(NamedTuple):
    """People who can be looked for."""

    gallery: Path
    """Shards of the test people's gallery pictures, with labels."""
    queries: list[Path]
    """Pictures of theirs that are not in the gallery."""
    people: list[str]
    """Who is on each."""


class Page(NamedTuple):
    """A page that is served."""

    url: str
    folder: Path
    """Where the process may leave files."""
    process: subprocess.Popen[str]


@pytest.fixture(scope="session")
def rendered(saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    folder = tmp_path_factory.mktemp("rendered")
    layout = partial(layouts.ltcc, outfits=1, cameras=3, seen=2, pictures=1, test_pictures=3)
    settings = SynthesisSettings(
        layout=layout, body=partial(load_body, "anny_light"), seed=5, train_people=1, test_people=6,
        height=128, width=64, antialias=1, workers=0,
    )  # fmt: skip
    synthesize(settings, folder / "world")
    manifest = ltcc.read(folder / "world")
    table, asked = manifest.part("test", "gallery"), manifest.part("test", "query")
    labels = {name: table[name].to_list() for name in ("person", "clothes", "camera")}
    gallery = clip3dreid.Gallery(clip3dreid.load(saved_model))
    gallery.add(list(map(str, manifest.files(table))), labels, workers=0)
    gallery.save(folder / "shards")
    return Rendered(folder / "shards", manifest.files(asked), asked["person"].to_list())


def served(folder: Path, *arguments: str) -> Iterator[Page]:
    """Serve the page until whoever asked for it is done."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(folder)}
    environment.pop("GRADIO_TEMP_DIR", None)
    command = [sys.executable, "-m", "clip3dreid", "serve", "port=0", *arguments]
    with (
        (folder / "errors.txt").open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder, env=environment
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), (folder / "errors.txt").read_text()
            yield Page(line.split()[0], folder, process)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def page(rendered: Rendered, saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    yield from served(
        folder,
        f"gallery={rendered.gallery}",
        f"checkpoint={saved_model}",
        *("top=8", "queue=5", "pictures=4", "megabytes=1"),
    )
