"""Find data sets on disk as they are asked for, once for all processes of a run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clip3dreid.data.manifest import Manifest, load, save
from clip3dreid.data.selection import drop_unreadable, hold_out
from clip3dreid.io.checks import Count, check
from clip3dreid.io.progress import progress
from clip3dreid.io.ranks import ALONE, Ranks

log = logging.getLogger(__name__)

OnError = Literal["fail", "skip"]
"""What is done about a picture that cannot be read: end with its name, or leave it out and count it."""


@dataclass(frozen=True)
class DataSpec:
    """A data set, as it is asked for.

    Args:
        name: what it is called in reports, file names and labels.
        root: its folder, or table.
        read: makes a manifest of it, as the functions of `data.datasets` do.
        on_error: what is done about pictures that cannot be read.
        val_people: training people held out to choose checkpoints; 0: none.
        key: what stands before the fields' names in messages.

    Raises:
        InputError: if a value is none of these.
    """

    name: str
    root: Path
    read: Callable[[Path], Manifest]
    on_error: OnError = "fail"
    val_people: Count = 0
    key: str = "data"

    def __post_init__(self) -> None:
        check(self, f"{self.key}.")


def read_manifest(spec: DataSpec) -> Manifest:
    """Read a data set as it is on disk, whether or not its pictures can be decoded.

    Raises:
        InputError: if the root is not there, or does not look like this data set.
    """
    return spec.read(spec.root.absolute()).renamed(spec.name)


def read_source(spec: DataSpec, seed: int, workers: int = 1, ranks: Ranks = ALONE) -> Manifest:
    """Read a data set for a run: unreadable pictures dropped where that is asked for, people held out.

    Of several processes the first one lists it, and each decodes a share where unreadable ones are to be found.

    Args:
        spec: of the data set.
        seed: of the draw of held-out people.
        workers: threads that decode pictures, where unreadable ones are to be found.
        ranks: the processes of the run.

    Raises:
        InputError: as `read_manifest` and `data.selection.hold_out`.
    """
    manifest = _listed(spec, ranks)
    if spec.on_error == "skip":
        with progress(f"decoding {manifest.name}", len(manifest.table)) as update:
            manifest = drop_unreadable(manifest, max(1, workers), update, ranks)
    manifest = hold_out(manifest, spec.val_people, seed)
    for note in manifest.notes:
        log.info("%s: %s", manifest.name, note)
    return manifest


def _listed(spec: DataSpec, ranks: Ranks) -> Manifest:
    """Return a data set as the first process finds it; the others read what that one has written of it."""
    if ranks.size == 1:
        return read_manifest(spec)
    path = ranks.folder / shared_name("manifest", spec.name)
    manifest = None
    if ranks.first:
        manifest = read_manifest(spec)
        save(manifest, path)
    ranks.wait(f"manifest of {spec.name}")
    return load(path) if manifest is None else manifest


def shared_name(what: str, data_set: str) -> str:
    """Return the name of a table of a data set, which may be called anything, for the other processes of a run."""
    return f"{what}-{hashlib.sha256(data_set.encode()).hexdigest()[:16]}.parquet"
