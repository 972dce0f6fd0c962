"""Put a folder of shards in the place of another, so that one of the two is whole whenever the program is killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.files import writing
from clip3dreid.io.locks import LOCK, at_work
from clip3dreid.io.resumable import INDEX
from clip3dreid.search.shard_index import SHARDS, UNREADABLE

_NEW, _BEFORE = "new", "before"


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `place` when the block succeeds.

    It is written beside, in `.NAME.saving`, and the folder that was there is set aside until the new one is in its
    place. What a kill leaves in between `restore` puts right.

    Args:
        place: of shards; need not be there.

    Raises:
        InputError: if the folder holds anything but shards, or cannot be written; what was there is still there.
    """
    work = _work(place)
    with at_work(work, "saves a gallery", wait=True, tidy=True), writing(place):
        _restore(place, work)
        if others := _others(place):
            raise InputError(
                f"{place} holds more than a gallery ({some(others)}); choose a folder of its own"
            )
        stage, before = work / _NEW, work / _BEFORE
        stage.mkdir()
        try:
            yield stage
            if place.exists():
                place.rename(before)
            stage.rename(place)
        finally:
            _restore(place, work)
    with suppress(OSError):
        work.rmdir()


def restore(place: Path) -> None:
    """Put back what a killed program had set aside, and remove what it had not finished."""
    work = _work(place)
    if work.is_dir():
        with at_work(work, "opens a gallery", wait=True, tidy=True):
            _restore(place, work)
        with suppress(OSError):
            work.rmdir()


def _work(place: Path) -> Path:
    return place.with_name(f".{place.name}.saving")


def _restore(place: Path, work: Path) -> None:
    before = work / _BEFORE
    if before.is_dir() and not place.exists():
        before.rename(place)
    for left in (work / _NEW, before):
        shutil.rmtree(left, ignore_errors=True)


def _others(place: Path) -> list[str]:
    """Return what lies in a folder beside shards."""
    if not place.exists():
        return []
    if not place.is_dir():
        raise InputError(f"{place} is no folder; choose another place")
    known = {INDEX, UNREADABLE, LOCK}
    return sorted(
        path.name for path in place.iterdir() if path.name not in known and SHARDS.number(path.name) is None
    )
