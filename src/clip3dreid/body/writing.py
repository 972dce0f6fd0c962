"""Writing a world to a folder: in chunks, by several processes, so that a killed run goes on where it stopped.

While it is being written a world's folder holds a folder `.world` with the truth of every finished chunk and the
pictures that are just being written; a picture appears under its own name only when it is whole. `world.json` lists
every file that belongs to the world. Nothing else in the folder is ever touched.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import polars as pl
import torch

from clip3dreid.body.folder import (
    FORMAT,
    SCHEMA_VERSION,
    TRUTH,
    WORK,
    WORLD,
    check_space,
    clear,
    examine,
    remove_strays,
    write_facts,
)
from clip3dreid.body.plan import Plan
from clip3dreid.errors import InputError
from clip3dreid.files import write_text
from clip3dreid.formats import read_table, write_table

CHUNK = 16
"""Pictures that are drawn in one batch. Fixed, because the last bits of a batched product depend on its size."""
BYTES_A_PIXEL = {".png": 3.0, ".jpg": 1.0}
"""At most: a PNG of noise is as large as its pixels; a JPEG of quality 95 stays below a third of that."""
BYTES_OF_TRUTH = 2_000
"""Of a picture, in `truth.parquet` and in the chunks' files."""


class Drawn(NamedTuple):
    """A picture as the artist hands it over."""

    data: bytes
    """The encoded file."""
    facts: dict[str, Any]
    """Columns of the truth that belong to this picture alone."""


Artist: TypeAlias = Callable[[Sequence[int]], list[Drawn]]
"""From places in the plan to those pictures. What it draws depends on the places alone."""


@dataclass(frozen=True)
class Commission:
    """What is to be written.

    Attributes:
        plan: the pictures and lists.
        artist: makes an artist; called once in every process, so it must be picklable.
        height: of a picture, pixels.
        width: of a picture, pixels.
        config: everything that decides the world, JSON-ready; a folder made with another one is another world.
        environment: versions of what draws it, JSON-ready; an interrupted world goes on only with the same ones.
        finish: from the truth that the artist gave, one row a picture in plan order, with its place in the
            column `place`, to the table that is stored.
    """

    plan: Plan
    artist: Callable[[], Artist]
    height: int
    width: int
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    finish: Callable[[pl.DataFrame], pl.DataFrame]

    @property
    def files(self) -> list[str]:
        """Every file of the world, sorted."""
        pictures = (picture.path for picture in self.plan.pictures)
        return sorted([*pictures, *self.plan.side_files, WORLD, TRUTH])

    @property
    def facts(self) -> dict[str, Any]:
        """What `world.json` says, without `complete`."""
        counts: dict[str, dict[str, int]] = {}
        people: dict[tuple[str, str], set[int]] = {}
        for picture in self.plan.pictures:
            part = counts.setdefault(f"{picture.split}/{picture.role}", {"pictures": 0, "people": 0})
            part["pictures"] += 1
            seen = people.setdefault((picture.split, picture.role), set())
            seen.add(picture.person)
            part["people"] = len(seen)
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


class Report(NamedTuple):
    """What became of a commission."""

    pictures: int
    """Of the world."""
    drawn: int
    """By this run: fewer than `pictures` where it went on with an interrupted one, 0 where all was there."""


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-ready value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write(
    commission: Commission,
    out: Path,
    *,
    workers: int,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Writes a world, or what an interrupted run has left of it; a complete one is left as it is.

    Args:
        commission: the world.
        out: its folder; made if it is not there.
        workers: processes; 0 draws in this one. The files do not depend on it.
        overwrite: begin anew where the folder holds another world. Only the files of that world are removed,
            and a folder that holds anything else, hidden files apart, is refused all the same: pictures of two
            data sets must not mix, and nobody's files get lost.
        progress: called with the number of pictures that are there and of all.

    Returns:
        How many pictures the world has, and how many of them this run has drawn.

    Raises:
        InputError: if `out` holds something else, the disk is too full, or a file cannot be written.
    """
    if workers < 0:
        raise InputError(f"workers={workers} is negative; give the number of processes, or 0 for none")
    pictures = len(commission.plan.pictures)
    found = examine(out, commission.facts, overwrite)
    if found.complete:
        return Report(pictures, 0)
    job = _Job(commission, out)
    missing = [chunk for chunk in job.chunks() if found.replaced or not job.is_done(chunk)]
    todo = sum(len(job.places(chunk)) for chunk in missing)
    # Before anything is removed.
    check_space(out, todo * commission.bytes_a_picture, todo, found.replaced)
    if found.replaced:
        clear(out, found.replaced)
    _make(out / WORK)
    remove_strays(out / WORK)
    write_facts(out, commission.facts, complete=False)
    for path, text in commission.plan.side_files.items():
        write_text(out / path, text)
    done = pictures - todo
    if progress is not None:
        progress(done, pictures)
    for drawn in _run(job, missing, workers):
        done += drawn
        if progress is not None:
            progress(done, pictures)
    _finish(commission, job)
    return Report(pictures, todo)


class _Job:
    """Draws and writes chunks; every process has a copy."""

    def __init__(self, commission: Commission, out: Path) -> None:
        # The commission as a whole stays here: it need not be picklable.
        self.make_artist, self.out = commission.artist, out
        self.paths = [picture.path for picture in commission.plan.pictures]
        self.artist: Artist | None = None

    def chunks(self) -> range:
        """Numbers of all chunks."""
        return range(math.ceil(len(self.paths) / CHUNK))

    def places(self, chunk: int) -> range:
        """Places in the plan of a chunk's pictures."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.paths)))

    def truth(self, chunk: int) -> Path:
        return self.out / WORK / f"chunk-{chunk:06d}.parquet"

    def is_done(self, chunk: int) -> bool:
        # The truth is written last, but a picture may have been removed since.
        there = all((self.out / self.paths[place]).is_file() for place in self.places(chunk))
        return there and self.truth(chunk).is_file()

    def __call__(self, chunk: int) -> int:
        """Draws a chunk and returns its number of pictures."""
        if self.artist is None:
            self.artist = self.make_artist()
        places = self.places(chunk)
        drawn = self.artist(places)
        for place, picture in zip(places, drawn, strict=True):
            self._write(self.out / self.paths[place], picture.data)
        rows = [{"place": place} | picture.facts for place, picture in zip(places, drawn, strict=True)]
        table = pl.DataFrame(rows, infer_schema_length=None)
        write_table(self.truth(chunk), table)
        return len(places)

    def _write(self, target: Path, data: bytes) -> None:
        # Beside the tree and not in it, so that a killed run leaves no stray picture among the others.
        temporary = self.out / WORK / f"part-{os.getpid()}{target.suffix}"
        with self._room(target):
            temporary.write_bytes(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)

    @staticmethod
    @contextmanager
    def _room(target: Path) -> Iterator[None]:
        """Says which file could not be written."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write {target}: {error.strerror or error}; make room for it and start again: what is "
                "finished is kept"
            ) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror or error}; choose another place") from error


_JOB: _Job | None = None


def _start(job: _Job) -> None:
    """Makes a process ready to draw: one thread, the job, Ctrl-C left to the parent."""
    global _JOB
    _JOB = job
    # Several processes with several threads each wait for one another.
    torch.set_num_threads(1)
    _follow_parent()


def _draw(chunk: int) -> int:
    assert _JOB is not None
    return _JOB(chunk)


def _run(job: _Job, chunks: Sequence[int], workers: int) -> Iterator[int]:
    """Draws chunks and yields how many pictures each has; the first error ends it."""
    if not workers or not chunks:
        threads = torch.get_num_threads()
        # As in the workers: the last bits of a sum depend on the number of threads.
        torch.set_num_threads(1)
        try:
            yield from map(job, chunks)
        finally:
            torch.set_num_threads(threads)
        return
    # Spawned and not forked: the progress bar has a thread by now, and a fork would copy its locks.
    context = multiprocessing.get_context("spawn")
    processes = min(workers, len(chunks))
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(job,))
    try:
        yield from executor.map(_draw, chunks)
    except BrokenProcessPool as error:
        raise InputError(
            f"a process that drew pictures was killed, perhaps for its memory (workers={workers}); start again with "
            "fewer: what is finished is kept"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leaves Ctrl-C to the parent, and ends with it should it be killed: idle workers would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _finish(commission: Commission, job: _Job) -> None:
    """Joins the chunks' truth, says that the world is complete, and removes the working folder."""
    again = "remove it and start again: its pictures are drawn anew"
    tables = [read_table(job.truth(chunk), "the truth about pictures", again)[0] for chunk in job.chunks()]
    # A column that is empty throughout a chunk has no type of its own there.
    table = commission.finish(pl.concat(tables, how="diagonal_relaxed"))
    write_table(job.out / TRUTH, table)
    write_facts(job.out, commission.facts, complete=True)
    shutil.rmtree(job.out / WORK)
