"""Pack the pictures of data sets: decode and resize each once, by many processes, for all trainings to come."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clip3dreid.data.manifest import Manifest
from clip3dreid.data.pack import (
    PACK,
    PACK_VERSION,
    ROWS_PER_PART,
    SUFFIX,
    Pack,
    PackSize,
    fingerprint,
    size_of,
    usable,
    write_part,
)
from clip3dreid.data.pack_settings import PackSettings
from clip3dreid.data.resizing import fit
from clip3dreid.data.sources import DataSpec, read_source
from clip3dreid.errors import InputError
from clip3dreid.io.files import FileIdentity, identify, identity_hashes
from clip3dreid.io.locks import at_work
from clip3dreid.io.opencv import one_thread
from clip3dreid.io.pictures import read_rgb
from clip3dreid.io.processes import spread
from clip3dreid.io.progress import progress
from clip3dreid.io.resumable import Parts, cut, look_into

log = logging.getLogger(__name__)

ADVICE = "replace it, or leave it out with data.on_error=skip"


class PackReport(NamedTuple):
    """What became of a pack."""

    pictures: int
    found: int
    """How many of them were there before."""
    megabytes: float
    """10^6 bytes of pixels."""


class _Pictures(NamedTuple):
    """All pictures of some data sets, each once."""

    files: list[Path]
    identity: npt.NDArray[np.int64]
    """(N,) hashes of the files as they are now."""


def pack(
    data: Sequence[DataSpec | Manifest], settings: PackSettings, *, rows_per_part: int = ROWS_PER_PART
) -> PackReport:
    """Pack all pictures of data sets, or what a folder lacks of them: a killed run goes on where it stopped.

    With `settings.verify` nothing is made: every byte of a pack is compared with its checksums, and what it was made
    of with the files as they are now.

    Args:
        data: the data sets, to be read or read already.
        settings: where, and of which size.
        rows_per_part: pictures a part, of a new pack; one that is there keeps its own.

    Raises:
        InputError: if a picture cannot be read, or the folder holds a pack of another size, or something else; to be
            verified, if it is another, not finished or damaged.
    """
    manifests = [_read(one, settings.workers) for one in data]
    return _verify(manifests, settings) if settings.verify else _pack(manifests, settings, rows_per_part)


def _read(one: DataSpec | Manifest, workers: int) -> Manifest:
    # Who is held out changes nothing: the pictures are all packed.
    return one if isinstance(one, Manifest) else read_source(replace(one, val_people=0), 0, workers)


def _pack(manifests: Sequence[Manifest], settings: PackSettings, rows_per_part: int) -> PackReport:
    folder, size = settings.out, PackSize(settings.height, settings.width, settings.square)
    pictures = _pictures(manifests)
    count = len(pictures.files)
    with at_work(folder, "packs pictures", tidy=True):
        before = look_into(folder, PACK)
        if before is not None and size_of(before) != size:
            raise InputError(
                f"{folder} is a pack of {size_of(before)}, not {size}; give another out, or remove {folder}"
            )
        rows_per_part = rows_per_part if before is None else before["rows_per_part"]
        cuts = cut(count, rows_per_part)
        parts = Parts(folder, PACK, cuts, usable(folder, size, cuts, pictures.identity))
        parts.sweep()
        if parts.stale:
            log.warning(
                "%s: %d parts are of other or changed pictures, or damaged, and are made anew",
                folder,
                parts.stale,
            )
        index = {
            "version": PACK_VERSION,
            **size._asdict(),
            "rows": count,
            "rows_per_part": rows_per_part,
            "fingerprint": fingerprint(pictures.identity),
            "data": [manifest.name for manifest in manifests],
        }
        if before != index:
            parts.write_index(index)
            if before is not None:
                parts.remove_beyond(len(cut(before["rows"], rows_per_part)))
        missing = parts.missing()
        found = done = count - sum(len(cuts[number]) for number in missing)
        with progress(f"packing {size}", count) as update:
            update(done)
            task = _MakePart(folder, size, cuts, pictures)
            for number in spread(task, missing, settings.workers):
                done += len(cuts[number])
                update(done)
    return _report(count, found, size)


def _verify(manifests: Sequence[Manifest], settings: PackSettings) -> PackReport:
    found = Pack(settings.out)
    found.check_size(PackSize(settings.height, settings.width, settings.square))
    for manifest in manifests:
        found.rows_of(_identities(manifest), manifest.name)
    found.check_whole()
    return _report(len(found), len(found), found.size)


def _report(count: int, found: int, size: PackSize) -> PackReport:
    return PackReport(count, found, count * size.height * size.width * 3 / 1e6)


@dataclass(frozen=True)
class _MakePart:
    """What makes one part; every process has a copy."""

    folder: Path
    size: PackSize
    cuts: list[range]
    pictures: _Pictures

    def __call__(self, number: int) -> int:
        """Make the part of a number, and return the number."""
        rows, size = self.cuts[number], self.size
        made = np.empty((len(rows), size.height, size.width, 3), np.uint8)
        with one_thread:
            for place, row in enumerate(rows):
                rgb = read_rgb(self.pictures.files[row], ADVICE)
                made[place] = fit(rgb, size.height, size.width, size.square)
        # Looks at no part: the first process has.
        parts = Parts(self.folder, PACK, [], lambda number: False)
        with parts.write(number, SUFFIX) as temporary:
            write_part(temporary, made, self.pictures.identity[rows.start : rows.stop])
        return number


def _pictures(manifests: Sequence[Manifest]) -> _Pictures:
    """Return every picture of some data sets once, however many roles it has."""
    files: list[Path] = []
    identities: list[FileIdentity] = []
    for manifest in manifests:
        some = _identities(manifest)
        files += [manifest.root / one.path for one in some]
        identities += some
    _, first = np.unique(hashes := identity_hashes(identities), return_index=True)
    first.sort()
    return _Pictures([files[row] for row in first], hashes[first])


def _identities(manifest: Manifest) -> Sequence[FileIdentity]:
    return identify(manifest.root, manifest.table["path"].unique().sort())
