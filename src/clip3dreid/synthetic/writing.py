"""Write a world to a folder: in chunks, by several processes, so that a killed run goes on where it stopped.

While it is being written a world's folder holds a folder `.world` with the truth of every finished chunk and, in a
folder of the run, the pictures that are just being written; a picture appears under its own name only when it is
whole. `world.json` lists every file that belongs to the world. Nothing else in the folder is ever touched, and one
process at a time works there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import polars as pl
import torch

from clip3dreid.data.truth_file import TRUTH, write_truth
from clip3dreid.io.checks import Range, check_number
from clip3dreid.io.formats import read_table, write_table
from clip3dreid.io.locks import at_work
from clip3dreid.io.opencv import one_thread
from clip3dreid.io.processes import spread
from clip3dreid.io.staging import open_stage, staged
from clip3dreid.synthetic.folder import (
    FORMAT,
    SCHEMA_VERSION,
    WORK,
    WORK_FOLDER,
    WORLD,
    FolderState,
    check_space,
    clear,
    examine,
    sealed_facts,
)
from clip3dreid.synthetic.plan import Plan

CHUNK = 16
"""Pictures that are drawn in one batch. Fixed, because the last bits of a batched product depend on its size."""
BYTES_A_PIXEL = {".png": 3.0, ".jpg": 1.0}
"""At most: a PNG of noise is as large as its pixels; a JPEG of quality 95 stays below a third of that."""
BYTES_OF_TRUTH = 2_000
"""Of a picture, in `truth.parquet` and in the chunks' files."""


class RenderedImage(NamedTuple):
    """A picture as a renderer hands it over."""

    data: bytes
    """The encoded file."""
    facts: dict[str, Any]
    """Columns of the truth that belong to this picture alone."""


Renderer: TypeAlias = Callable[[Sequence[int]], list[RenderedImage]]
"""From places in the plan to those pictures. What it draws depends on the places alone."""


@dataclass(frozen=True)
class WorldSpec:
    """A world that is to be written.

    Attributes:
        plan: the pictures and lists.
        make_renderer: makes the renderer; called once in every process, so it must be picklable.
        height: of a picture, pixels.
        width: of a picture, pixels.
        config: everything that decides the world, JSON-ready; a folder made with another one is another world.
        environment: versions of what draws it, JSON-ready; an interrupted world goes on only with the same ones.
        finish: from the truth that the renderer gave, one row a picture in plan order, with its place in the
            column `place`, to the table that is stored.
    """

    plan: Plan
    make_renderer: Callable[[], Renderer]
    height: int
    width: int
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    finish: Callable[[pl.DataFrame], pl.DataFrame]

    @property
    def files(self) -> list[str]:
        """Return every file of the world, sorted."""
        pictures = (picture.path for picture in self.plan.pictures)
        return sorted([*pictures, *self.plan.side_files, WORLD, TRUTH])

    @property
    def facts(self) -> dict[str, Any]:
        """Return what `world.json` says, without `complete`."""
        counts: dict[str, dict[str, int]] = {}
        people: dict[tuple[str, str], set[int]] = {}
        for picture in self.plan.pictures:
            part = counts.setdefault(f"{picture.split}/{picture.role}", {"pictures": 0, "people": 0})
            part["pictures"] += 1
            persons = people.setdefault((picture.split, picture.role), set())
            persons.add(picture.person)
            part["people"] = len(persons)
        return {
            "format": FORMAT,
            "version": SCHEMA_VERSION,
            "fingerprint": fingerprint(self.config),
            "config": dict(self.config),
            "environment": dict(self.environment),
            "counts": counts,
            "files": self.files,
        }

    @property
    def bytes_a_picture(self) -> float:
        """At most, with its truth."""
        suffix = PurePosixPath(self.plan.pictures[0].path).suffix
        return BYTES_A_PIXEL[suffix] * self.height * self.width + BYTES_OF_TRUTH


class WorldReport(NamedTuple):
    """What became of a world that was to be written."""

    pictures: int
    """Of the world."""
    rendered: int
    """By this run: fewer than `pictures` where it went on with an interrupted one, 0 where all was there."""


def fingerprint(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON-ready value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write(
    spec: WorldSpec,
    out: Path,
    *,
    workers: int,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> WorldReport:
    """Write a world, or what an interrupted run has left of it; a complete one is left as it is.

    Args:
        spec: of the world.
        out: its folder; made if it is not there.
        workers: processes; 0 draws in this one. The files do not depend on it.
        overwrite: begin anew where the folder holds another world. Only the files of that world are removed,
            and a folder that holds anything else, hidden files apart, is refused all the same: pictures of two
            data sets must not mix, and nobody's files get lost.
        progress: called with the number of pictures that are there and of all.

    Returns:
        How many pictures the world has, and how many of them this run has drawn.

    Raises:
        InputError: if `out` holds something else, another process is at work there, the disk is too full, or a file
            cannot be written.
    """
    check_number("workers", workers, Range(0), whole=True)
    pictures = len(spec.plan.pictures)
    # Before the lock, which is a file: a folder that is refused is not touched, one that is complete need not be.
    state = _look(spec, out, overwrite)
    if state.complete and not (out / WORK).exists():
        return WorldReport(pictures, 0)
    with at_work(out, "writes a world", tidy=True):
        state = _look(spec, out, overwrite)
        if state.complete:
            WORK_FOLDER.clear(out)
            return WorldReport(pictures, 0)
        if state.replaced:
            clear(out, state.replaced)
        job = _ChunkJob(spec, out, open_stage(out / WORK))
        job.write_json(WORLD, sealed_facts(spec.facts, complete=False))
        for path, text in spec.plan.side_files.items():
            job.write(path, text.encode())
        missing = job.missing()
        done = pictures - job.count(missing)
        if progress is not None:
            progress(done, pictures)
        for rendered in spread(job, missing, workers):
            done += rendered
            if progress is not None:
                progress(done, pictures)
        _finish(spec, job)
    return WorldReport(pictures, job.count(missing))


def _look(spec: WorldSpec, out: Path, overwrite: bool) -> FolderState:
    """Return what the folder holds, if the world may be written there and there is room for what is missing."""
    state = examine(out, spec.facts, overwrite)
    if not state.complete:
        job = _ChunkJob(spec, out, out / WORK)
        todo = len(spec.plan.pictures) if state.replaced else job.count(job.missing())
        check_space(out, todo * spec.bytes_a_picture, todo, state.replaced)
    return state


class _ChunkJob:
    """Draws and writes chunks; every process has a copy."""

    def __init__(self, spec: WorldSpec, out: Path, stage: Path) -> None:
        # The spec as a whole is not kept: it need not be picklable.
        self.make_renderer, self.out, self.stage = spec.make_renderer, out, stage
        self.paths = [picture.path for picture in spec.plan.pictures]
        self.renderer: Renderer | None = None

    def chunks(self) -> range:
        """Return the numbers of all chunks."""
        return range(math.ceil(len(self.paths) / CHUNK))

    def places(self, chunk: int) -> range:
        """Return the places in the plan of a chunk's pictures."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.paths)))

    def count(self, chunks: Sequence[int]) -> int:
        """Count the pictures in chunks."""
        return sum(len(self.places(chunk)) for chunk in chunks)

    def truth(self, chunk: int) -> str:
        return f"{WORK}/chunk-{chunk:06d}.parquet"

    def missing(self) -> list[int]:
        """Return the chunks that are still to be drawn."""
        return [chunk for chunk in self.chunks() if not self._is_done(chunk)]

    def _is_done(self, chunk: int) -> bool:
        # The truth is written last, but a picture may have been removed since.
        there = all((self.out / self.paths[place]).is_file() for place in self.places(chunk))
        return there and (self.out / self.truth(chunk)).is_file()

    def __call__(self, chunk: int) -> int:
        """Draw a chunk and return its number of pictures."""
        with _one_thread():
            if self.renderer is None:
                self.renderer = self.make_renderer()
            places = self.places(chunk)
            images = self.renderer(places)
        for place, image in zip(places, images, strict=True):
            self.write(self.paths[place], image.data)
        rows = [{"place": place} | image.facts for place, image in zip(places, images, strict=True)]
        self.write_table(self.truth(chunk), pl.DataFrame(rows, infer_schema_length=None))
        return len(places)

    def write(self, path: str, data: bytes) -> None:
        with staged(self.stage, self.out, path) as temporary:
            temporary.write_bytes(data)

    def write_json(self, path: str, value: Any) -> None:
        self.write(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())

    def write_table(self, path: str, table: pl.DataFrame) -> None:
        with staged(self.stage, self.out, path) as temporary:
            write_table(temporary, table)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Draw with one thread: the last bits of a sum depend on their number, and those of several processes wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_thread:
            yield
    finally:
        torch.set_num_threads(threads)


def _finish(spec: WorldSpec, job: _ChunkJob) -> None:
    """Join the chunks' truth, say that the world is complete, and remove the working folder."""
    again = "remove it and start again: its pictures are drawn anew"
    tables = [
        read_table(job.out / job.truth(chunk), "the truth about pictures", again)[0] for chunk in job.chunks()
    ]
    # A column that is empty throughout a chunk has no type of its own there.
    table = spec.finish(pl.concat(tables, how="diagonal_relaxed"))
    with staged(job.stage, job.out, TRUTH) as temporary:
        write_truth(temporary, table)
    job.write_json(WORLD, sealed_facts(spec.facts, complete=True))
    WORK_FOLDER.clear(job.out)
