"""Search a gallery: exactly, in memory or from its shards, or by another engine behind the same two words.

An engine is a callable `(gallery, column) -> Index`, which a config composes (`conf/engine/*.yaml`, `_partial_`), and
an index answers `search(query, k, where)`. Rows are gallery rows, 0-based, in the order of the shards; scores are
cosines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.devices import chosen_device
from clip3dreid.search.filters import Filter
from clip3dreid.search.top_k import Metric, TopK, top_k, unit


class Searchable(Protocol):
    """Labels and vectors of pictures, read block by block, as `shards.Shards` has them."""

    @property
    def folder(self) -> Path:
        """Return where it lies."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return what the vectors are; JSON-ready. `fingerprint` says by which model."""

    @property
    def labels(self) -> pl.DataFrame:
        """Return G rows."""

    def width(self, name: str) -> int:
        """Return the number of columns of a vector."""

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Yield (n, width) of one vector, in the order of the labels."""


class Index(Protocol):
    """A gallery that can be searched."""

    def search(self, query: Tensor, k: int, where: Filter) -> TopK:
        """Find the k nearest gallery rows of each query among those that a filter allows.

        Args:
            query: (Q, D) floating-point features, not 0.
            k: 1 or more.
            where: allows them.

        Raises:
            InputError: if the filter leaves nothing, or the features do not fit.
        """


@runtime_checkable
class LabelledIndex(Index, Protocol):
    """An index that holds the labels too, so that a search of it reads nothing of the gallery.

    Its engine says so beforehand, by an attribute `holds_labels` that is true.
    """

    def __len__(self) -> int:
        """Return the number of gallery rows."""

    def labels_at(self, rows: Sequence[int]) -> pl.DataFrame:
        """Return the labels of gallery rows, as the gallery has them, in the order in which they are asked for."""

    def check(self, where: Filter) -> None:
        """Refuse a filter that names a label that is not there, or leaves nothing.

        Raises:
            InputError: naming what is wrong with it.
        """


def holds_labels(engine: object) -> bool:
    """Return whether what an engine makes is a `LabelledIndex`."""
    return bool(getattr(getattr(engine, "func", engine), "holds_labels", False))


class Exact:
    """Compares with everything. The default: nothing to build, and nothing is missed.

    Args:
        gallery: what to search.
        column: which of its vectors.
        stream: read the vectors anew for every search, one block at a time, instead of holding them in memory:
            slower, in memory that does not grow with the gallery.
        memory: bytes that a block of scores may take; None: as `top_k`.
        device: where vectors are held and compared: `auto`, `cpu`, `cuda`, `cuda:1`; None: on the CPU.
        half: hold them in float16 whatever they are stored in: half the memory, cosines to three digits.

    Raises:
        InputError: if the gallery does not hold the column, there is no such device, or it has no room.
    """

    def __init__(
        self,
        gallery: Searchable,
        column: str,
        *,
        stream: bool = False,
        memory: int | None = None,
        device: str | None = None,
        half: bool = False,
    ) -> None:
        self._gallery, self._column, self._memory = gallery, column, memory
        self._device = torch.device(chosen_device(device or "cpu"))
        gallery.width(column)
        self._vectors = None if stream else _together(gallery, column, self._device, half)
        self._unit = self._vectors is not None and self._vectors.dtype == torch.float32

    def search(self, query: Tensor, k: int, where: Filter) -> TopK:
        """Search as `Index.search` does."""
        allowed = where.mask(self._gallery.labels)
        vectors = self._gallery.blocks(self._column) if self._vectors is None else self._vectors
        metric: Metric = "cosine"
        asked = query.to(self._device)
        if self._unit:
            asked, metric = unit(asked, "query"), "product"
        found = top_k(asked, vectors, k, metric, allowed, self._memory)
        return TopK(found.rows.to(query.device), found.scores.to(query.device))


def _together(gallery: Searchable, column: str, device: torch.device, half: bool) -> Tensor:
    """Return all vectors (G, D) on a device, never twice in memory.

    In float32 they are of length 1, so that no search takes their norms, which cost as much as a query's products
    with them. Half precision stays as stored: rounding it again would change scores.

    Raises:
        InputError: if the device has no room, or vectors and labels do not fit.
    """
    vectors = torch.empty(0)
    start = 0
    for block in gallery.blocks(column):
        if not start:
            kind = torch.float16 if half else block.dtype
            try:
                vectors = torch.empty(len(gallery.labels), block.shape[1], dtype=kind, device=device)
            except torch.OutOfMemoryError as error:
                need = len(gallery.labels) * block.shape[1] * kind.itemsize / 2**30
                raise InputError(
                    f"device={device} has no room for the gallery's {need:.1f} GiB of {column}; give "
                    "engine.stream=true, engine.half=true or device=cpu"
                ) from error
        if start + len(block) > len(vectors):
            break
        block = block.to(device)
        single = block.dtype == torch.float32
        vectors[start : start + len(block)] = unit(block, "gallery", start) if single else block
        start += len(block)
    if start != len(gallery.labels):
        raise InputError(f"{gallery.folder} has other numbers of vectors and labels; extract it anew")
    return vectors
