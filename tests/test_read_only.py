"""A disk that nobody may write: whatever is to be written there, it is one line and no traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest

import clip3dreid
from clip3dreid.errors import InputError
from clip3dreid.export.formats import TorchExport
from clip3dreid.export.run import export
from clip3dreid.export.settings import ExportSettings
from clip3dreid.model.small_clip import save_small_clip
from clip3dreid.search.lance import Lance
from tests.data.test_blurring import blur, write_tree
from tests.guidance.test_embeddings import Counting, embedded
from tests.model.test_small_clip import MEAN, STD, made
from tests.search.galleries import MemoryGallery
from tests.search.test_shards import fill, open_writer
from tests.small_disk import make_read_only, small_disk
from tests.synthetic.test_writing import spec, write

Writer = Callable[[Path, Path], object]
"""Writes the folder `out` on a disk; the other argument is where a saved model is."""


def world(disk: Path, _: Path) -> object:
    return write(spec(pictures=4), disk / "out", workers=0)


def copy(disk: Path, _: Path) -> object:
    return blur(disk.parent / "source", disk / "out")


def shards(disk: Path, _: Path) -> object:
    return fill(open_writer(disk / "out"))


def embeddings(disk: Path, _: Path) -> object:
    return embedded(Counting(), disk.parent, 5, "disk", folder=disk / "out")


def index(disk: Path, _: Path) -> object:
    pytest.importorskip("lancedb")
    return Lance(MemoryGallery(disk.parent), "embedding", uri=str(disk / "out"))


def teacher(disk: Path, _: Path) -> object:
    return save_small_clip(disk / "out", *made(), MEAN, STD, {})


def model(disk: Path, saved: Path) -> object:
    return clip3dreid.load(saved).save_pretrained(disk / "out")


def exported(disk: Path, saved: Path) -> object:
    return export(
        clip3dreid.load(saved), ExportSettings(timing=0), {"torch_export": TorchExport()}, disk / "out"
    )


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
@pytest.mark.parametrize(
    "writer",
    [world, copy, shards, embeddings, index, teacher, model, exported],
    ids=lambda writer: writer.__name__,
)
def test_a_disk_that_nobody_may_write_is_told_in_one_line(
    writer: Writer, there: bool, tmp_path: Path, saved_model: Path
) -> None:
    write_tree(tmp_path / "source")
    with small_disk(tmp_path / "disk", 4000) as disk:
        if there and writer is teacher:
            writer(disk, saved_model)
        elif there:
            (disk / "out").mkdir()
        make_read_only(disk)
        with pytest.raises(InputError, match="Read-only file system") as error:
            writer(disk, saved_model)
        assert "\n" not in str(error.value)
