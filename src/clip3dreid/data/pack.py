"""A pack: the pictures of data sets, decoded and resized once, in a folder that every process maps into memory.

The folder holds `index.json` and parts `pictures-00000.safetensors` (`io.resumable`). A part has `pictures`
(n, H, W, 3) uint8 and `identity` (n,) int64, hashes of the files that they were made of as these were then
(`io.files.identify`); its header has a checksum of both. Pictures are looked up by these hashes, so a pack of another
version of the data is known by what it lacks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Positive, some
from clip3dreid.io.files import FileIdentity, identity_hashes
from clip3dreid.io.formats import checksum, damaged, decoding
from clip3dreid.io.pictures import Pixels
from clip3dreid.io.resumable import INDEX, PartKind, Parts, cut, read_index

PACK_VERSION = 1
ROWS_PER_PART = 256
"""A part of 384x192 is 57 MB: what a process holds, and at most what a killed one has done for nothing."""
SUFFIX = ".safetensors"
PACK = PartKind(
    what="packed pictures",
    stem="pictures",
    digits=5,
    suffixes=(SUFFIX,),
    version=PACK_VERSION,
    needs={
        "height": Positive,
        "width": Positive,
        "square": bool,
        "rows": Positive,
        "rows_per_part": Positive,
        "fingerprint": str,
    },
    elsewhere="give another out",
)
_READ = replace(PACK, elsewhere="make the pack anew with clip3dreid pack")
_THREADS = 8


class PackSize(NamedTuple):
    """What the pictures of a pack were resized to."""

    height: int
    """H, in pixels."""
    width: int
    """W, in pixels."""
    square: bool
    """Whether they were padded to a square before, as in `TestView`."""

    def __str__(self) -> str:
        return f"{self.height}x{self.width}{', padded to squares' if self.square else ''}"


def size_of(index: Mapping[str, Any]) -> PackSize:
    """Return the size that an index says."""
    return PackSize(index["height"], index["width"], index["square"])


def fingerprint(identity: npt.NDArray[np.int64]) -> str:
    """Return what tells one version of the data from another: a checksum of its files' hashes (N,)."""
    return checksum(None, [("identity", identity)])


class _PartHeader(NamedTuple):
    """What a part says of itself, looked at without its pictures."""

    start: int
    """Of the pictures, in bytes from the file's beginning."""
    identity: npt.NDArray[np.int64]
    """(n,)."""
    checksum: str


def write_part(path: Path, pictures: Pixels, identity: npt.NDArray[np.int64]) -> None:
    """Write a part: (n, H, W, 3) uint8 and hashes (n,) of their files."""
    tensors: dict[str, npt.NDArray[Any]] = {"pictures": pictures, "identity": identity}
    # One value: of several the order is drawn anew each time, and a pack would not be the same twice. Not by
    # save_file, which leaves a file of its own beside this one when it is killed.
    path.write_bytes(save(tensors, {"checksum": _checksum(pictures, identity)}))


def is_usable(path: Path, size: PackSize, identity: npt.NDArray[np.int64]) -> bool:
    """Return whether a part is whole, as it was written, and of these files as they are now."""
    header = _header(path, size, len(identity))
    return header is not None and np.array_equal(header.identity, identity) and _is_whole(path, header, size)


def usable(
    folder: Path, size: PackSize, cuts: Sequence[range], identity: npt.NDArray[np.int64]
) -> Callable[[int], bool]:
    """Return what tells of a part's number whether it is usable; all parts are looked at by several threads."""
    good = each(
        lambda number: is_usable(
            folder / PACK.name(number, SUFFIX), size, identity[np.asarray(cuts[number])]
        ),
        range(len(cuts)),
    )
    return good.__getitem__


def each(look: Callable[[int], bool], numbers: Iterable[int]) -> list[bool]:
    """Look at parts with several threads: checksums let go of Python's lock."""
    with ThreadPool(min(_THREADS, os.cpu_count() or 1)) as pool:
        return pool.map(look, numbers, chunksize=1)


class Pack:
    """A finished pack, opened for reading: an array of pictures by row.

    Nothing is read but headers. Copies for other processes, forked or pickled, map the parts anew.

    Args:
        folder: that `clip3dreid pack` has filled.

    Raises:
        InputError: if there is none, it is not finished, or its index or a header is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / INDEX).is_file():
            raise InputError(f"{folder} holds no pack; make one with clip3dreid pack data=… out={folder}")
        index = read_index(folder, _READ)
        self.size = size_of(index)
        self._cuts = cut(index["rows"], index["rows_per_part"])
        self._rows_per_part: int = index["rows_per_part"]
        # Without `usable`: a part that is there and damaged is named, and no reason to go on packing.
        if missing := Parts(folder, PACK, self._cuts, lambda number: True).missing():
            raise InputError(
                f"{folder} is not finished: {len(missing)} of {len(self._cuts)} parts are missing; run clip3dreid "
                "pack with the same keys, which goes on there"
            )
        self._headers = [self._read_header(number) for number in range(len(self._cuts))]
        self.identity = np.concatenate([header.identity for header in self._headers])
        """(N,) hashes of the files."""
        if fingerprint(self.identity) != index["fingerprint"]:
            raise damaged(folder, "its parts are not those of its index", _READ.elsewhere)
        self._maps: dict[int, Pixels] = {}

    def __len__(self) -> int:
        return len(self.identity)

    def __getstate__(self) -> dict[str, Any]:
        # Pickled, a memory map would be a copy of all it maps.
        return {**self.__dict__, "_maps": {}}

    def __getitem__(self, row: int) -> Pixels:
        """Return a picture, (H, W, 3) uint8, mapped and not to be changed."""
        part, within = divmod(row, self._rows_per_part)
        mapped = self._maps.get(part)
        picture: Pixels = (self._map(part) if mapped is None else mapped)[within]
        return picture

    def check_size(self, size: PackSize) -> None:
        """Check that the pictures are of a size.

        Raises:
            InputError: naming both.
        """
        if self.size != size:
            square = " square=true" if size.square else ""
            raise InputError(
                f"{self.folder} is a pack of {self.size}, and the pictures are to be {size}; make another with "
                f"clip3dreid pack height={size.height} width={size.width}{square} …"
            )

    def check_whole(self) -> None:
        """Compare every byte with the parts' checksums.

        Raises:
            InputError: naming the first part that is damaged.
        """
        good = each(
            lambda number: _is_whole(self._path(number), self._headers[number], self.size),
            range(len(self._cuts)),
        )
        if False in good:
            raise self._damaged(good.index(False), "its checksum is another")

    def rows_of(self, identities: Sequence[FileIdentity], name: str) -> npt.NDArray[np.int64]:
        """Look up files of a data set.

        Args:
            identities: N files as they are now.
            name: of the data set, for the message.

        Returns:
            (N,) their rows here.

        Raises:
            InputError: if some are not here as they are now: the data set was changed since, or is another.
        """
        order = np.argsort(self.identity, kind="stable")
        wanted = identity_hashes(identities)
        place = np.searchsorted(self.identity, wanted, sorter=order)
        rows = order[np.minimum(place, len(order) - 1)]
        absent = self.identity[rows] != wanted
        if absent.any():
            lacking = [identities[number].path for number in np.flatnonzero(absent).tolist()]
            raise InputError(
                f"{self.folder} is a pack of another version of {name}: {len(lacking):,} of {len(wanted):,} pictures "
                f"are not in it as they are on disk ({some(lacking, 2)}); run clip3dreid pack again on the data"
            )
        return rows

    def _path(self, number: int) -> Path:
        return self.folder / PACK.name(number, SUFFIX)

    def _read_header(self, number: int) -> _PartHeader:
        header = _header(self._path(number), self.size, len(self._cuts[number]))
        if header is None:
            raise self._damaged(number, "it is no part of this pack, or cut short")
        return header

    def _map(self, number: int) -> Pixels:
        header = self._headers[number]
        shape = (len(header.identity), self.size.height, self.size.width, 3)
        with decoding(self._path(number), "packed pictures", _READ.elsewhere):
            mapped = np.memmap(self._path(number), np.uint8, "r", header.start, shape)
        # As a plain array: numpy's own class costs a microsecond at every row.
        self._maps[number] = np.asarray(mapped)
        return self._maps[number]

    def _damaged(self, number: int, reason: str) -> InputError:
        return damaged(
            self._path(number), reason, "run clip3dreid pack again with the same keys, which mends it"
        )


class PackedRows:
    """Some pictures of a pack by rows of their own.

    Args:
        pack: opened.
        rows: (N,) of the pack, row by row.
    """

    def __init__(self, pack: Pack, rows: npt.NDArray[np.int64]) -> None:
        self._pack, self._rows = pack, rows

    def __getitem__(self, row: int) -> Pixels:
        """Return a picture, (H, W, 3) uint8, mapped and not to be changed."""
        return self._pack[int(self._rows[row])]


def _checksum(pictures: Pixels, identity: npt.NDArray[np.int64]) -> str:
    return checksum(PACK_VERSION, [("identity", identity), ("pictures", pictures)])


def _header(path: Path, size: PackSize, rows: int) -> _PartHeader | None:
    """Return what a part says of itself; None if that cannot be, its length included."""
    try:
        with decoding(path, "packed pictures", ""), safe_open(path, framework="np") as file:
            card, pictures = file.metadata() or {}, file.get_slice("pictures")
            shape, kind, identity = pictures.get_shape(), pictures.get_dtype(), file.get_tensor("identity")
    except InputError:
        return None
    there = (tuple(shape), kind, identity.shape, identity.dtype)
    if there != ((rows, size.height, size.width, 3), "U8", (rows,), np.int64):
        return None
    return _PartHeader(_start(path), identity, str(card.get("checksum")))


def _start(path: Path) -> int:
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        return 8 + length + int(json.loads(raw.read(length))["pictures"]["data_offsets"][0])


def _is_whole(path: Path, header: _PartHeader, size: PackSize) -> bool:
    shape = (len(header.identity), size.height, size.width, 3)
    try:
        with decoding(path, "packed pictures", ""):
            pictures = np.memmap(path, np.uint8, "r", header.start, shape)
    except InputError:
        return False
    return _checksum(np.asarray(pictures), header.identity) == header.checksum
