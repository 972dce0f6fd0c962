"""Find the model and the gallery that are tried; no torch is loaded, so that what is missing is told of at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from clip3dreid.errors import InputError
from clip3dreid.io.resumable import INDEX
from clip3dreid.io.run_folder import LAST_CHECKPOINT
from clip3dreid.model.places import SHIPPED
from clip3dreid.search.shard_index import read_shard_index

SMALL_WORLD = "small_world"
"""Folder below the demo's of a world that is rendered for the page alone."""
_METHOD = "clip3dreid"


class Source(NamedTuple):
    """A model, and the gallery that it is tried on."""

    checkpoint: str
    """What `clip3dreid.load` takes."""
    gallery: Path
    """Shards, or what `Gallery.add` takes, or a world."""
    is_world: bool = False
    """The gallery is the test people of a rendered world, which is rendered where it is not there."""

    @property
    def holds_shards(self) -> bool:
        """Return whether the gallery was extracted before."""
        return (self.gallery / INDEX).is_file()


def find_source(gallery: Path | None, checkpoint: str | None, demo: Path) -> Source:
    """Find what is to be tried.

    Args:
        gallery: shards, a folder of pictures, a table of them, or boxes; None: what the demo has left, else a small
            world.
        checkpoint: the model; None: the one that has filled the shards, the demo's for what it has left, otherwise
            the one of the package.
        demo: folder of `clip3dreid demo`.

    Raises:
        InputError: if the gallery is not there, or the model that has filled it.
    """
    if gallery is not None:
        if not gallery.exists():
            raise InputError(
                f"gallery={gallery} is not there; give a folder that clip3dreid extract has filled, a folder of "
                "pictures, or a table with a column path"
            )
        if checkpoint is None and (gallery / INDEX).is_file():
            return Source(_model_of(gallery), gallery)
        return Source(checkpoint or SHIPPED[0], gallery)
    if checkpoint is None and (found := _demo(demo)) is not None:
        return found
    return Source(checkpoint or SHIPPED[0], demo / SMALL_WORLD, is_world=True)


def _demo(demo: Path) -> Source | None:
    """Return the newest shards of a finished demo with the run that has filled them; None: it has not finished."""
    for shards in sorted(demo.glob("shards_*"), key=lambda path: path.stat().st_mtime, reverse=True):
        run = demo / shards.name.replace("shards", _METHOD, 1)
        if (shards / INDEX).is_file() and (run / LAST_CHECKPOINT).is_file():
            return Source(str(run), shards)
    return None


def _model_of(shards: Path) -> str:
    model = str(read_shard_index(shards).get("model"))
    if not Path(model).expanduser().exists() and model not in SHIPPED:
        raise InputError(
            f"checkpoint is not set, and the model that made {shards}, {model}, is not there; give its place as "
            "checkpoint=FOLDER"
        )
    return model
