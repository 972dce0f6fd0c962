from pathlib import Path

import pytest

import clip3dreid
from clip3dreid.errors import InputError
from clip3dreid.serving.backend import Backend
from clip3dreid.serving.source import Source
from tests.serving.conftest import Rendered


def test_a_backend_loads_once_and_tells_how_it_goes(saved_model: Path, rendered: Rendered) -> None:
    backend = Backend(Source(str(saved_model), rendered.gallery))
    assert backend.is_loading
    assert backend.state.endswith("…")
    backend.start()
    backend.start()
    answering = backend.load()
    assert backend.load() is answering
    assert not backend.is_loading
    assert backend.state == str(answering)
    assert backend.state.startswith(f"{len(answering.gallery)} pictures; model ")


def test_what_cannot_be_loaded_is_told_to_whoever_asks(rendered: Rendered, tmp_path: Path) -> None:
    backend = Backend(Source(str(tmp_path / "no_model"), rendered.gallery))
    backend.start()
    assert not backend.wait()
    assert backend.has_failed
    assert "no_model is not there" in backend.state
    with pytest.raises(InputError, match="no_model is not there"):
        backend.load()


def test_pictures_that_were_not_extracted_are_looked_at(saved_model: Path, rendered: Rendered) -> None:
    folder = rendered.queries[0].parent
    assert len(Backend(Source(str(saved_model), folder)).load().gallery) == len(rendered.queries)


def test_a_gallery_in_memory_is_there_at_once(saved_model: Path, rendered: Rendered) -> None:
    gallery = clip3dreid.Gallery.open(rendered.gallery, clip3dreid.load(saved_model))
    assert Backend(gallery).load().gallery is gallery
