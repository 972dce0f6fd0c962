"""Read shards: what a model says of many pictures, in files that are written one by one and read by anything.

A folder holds `index.json` and shards of some thousand rows each. In `parquet` a shard is one file; in `safetensors`
the vectors are one file and the labels a Parquet file beside it, written first. A shard is computed from nothing but
its own rows, so a folder that was written in many goes is the same as one that was written in one.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.formats import damaged, decoding
from clip3dreid.io.resumable import Parts
from clip3dreid.search.shard_index import SHARDS_VERSION, UNREADABLE, read_shard_index, shard_stem

VECTORS = ("embedding", "joint", "betas")
"""Columns of a shard that are vectors; all others are labels."""
ROW, WORDS = "row", "words"
LEFT_OUT = "left_out"
"""Key of a shard of tracklets that names the frames that could not be read, where there are some."""
_KIND, _AGAIN = "a shard", "run extract again, which makes it anew and keeps the others"

Arrays = dict[str, npt.NDArray[Any]]


class Shard(NamedTuple):
    """One shard, in memory."""

    labels: pl.DataFrame
    """n rows: `row` in the list of pictures, `path`, `words` where there are some, and what else is known."""
    vectors: Arrays
    """name -> (n, width)."""
    card: dict[str, Any]
    """What the file says of itself, with the `skipped` pictures as [path, reason]."""


class Shards:
    """A finished folder of shards, to be read.

    Rows are numbered from 0 through all shards; pictures that were skipped have none.

    Args:
        folder: as `ShardWriter` filled it.
        lazy: look into the shards when their labels are first asked for, and not before: an engine that holds them
            itself never asks (`engine.LabelledIndex`).

    Attributes:
        facts: what `index.json` says.

    Raises:
        InputError: if there is nothing, shards are missing or damaged (naming them), or they are of another version.
    """

    def __init__(self, folder: Path, *, lazy: bool = False) -> None:
        self.folder = folder
        self.facts = read_shard_index(folder)
        self._stems = [shard_stem(folder, number) for number in range(len(self.facts["shards"]))]
        self._known: tuple[pl.DataFrame, list[int]] | None = None
        if not lazy:
            self._read()

    @property
    def labels(self) -> pl.DataFrame:
        """Return M rows, all columns but the vectors.

        Raises:
            InputError: as `Shards`.
        """
        return self._read()[0]

    def _read(self) -> tuple[pl.DataFrame, list[int]]:
        """Return the labels, and the number of rows of each shard; they are read once."""
        if self._known is None:
            self._known = self._look()
        return self._known

    def _look(self) -> tuple[pl.DataFrame, list[int]]:
        folder = self.folder
        tables = [
            _labels(stem, self.facts["format"], identity)
            for stem, identity in zip(self._stems, self.facts["shards"], strict=True)
        ]
        # One whose columns are others than most have is damaged where it names them.
        schemas = Counter(str(table.schema) for table in tables if table is not None)
        usual = max(schemas, key=schemas.__getitem__, default="")
        absent = [
            stem.name
            for stem, table in zip(self._stems, tables, strict=True)
            if table is None or str(table.schema) != usual
        ]
        if absent:
            raise InputError(
                f"{folder}: {len(absent)} of {len(tables)} shards are missing, damaged or of other pictures, first "
                f"{absent[0]}; run extract again, which makes these anew and keeps the others"
            )
        labels = pl.concat([table for table in tables if table is not None])
        if labels.is_empty():
            raise InputError(f"{folder} holds no picture that could be read; see {UNREADABLE} there")
        return labels, [0 if table is None else len(table) for table in tables]

    def __len__(self) -> int:
        return len(self.labels)

    def width(self, name: str) -> int:
        """Return the number of columns of a vector.

        Raises:
            InputError: if the shards do not hold it.
        """
        widths = self.facts["vectors"]
        if name not in widths:
            raise InputError(
                f"{self.folder} holds no {name} ({', '.join(widths)}); extract it, with a model that has learnt it"
            )
        return int(widths[name])

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Yield (n, width) of one vector, shard by shard, as stored: float32 or float16.

        Raises:
            InputError: if the shards do not hold it, or one is damaged.
        """
        self.width(name)
        counts = self._read()[1]
        for number, stem in enumerate(self._stems):
            shard = load_shard(stem, self.facts["format"])
            ours = self.facts["shards"][number], self.facts["fingerprint"], counts[number]
            if (shard.card["identity"], shard.card["fingerprint"], len(shard.labels)) != ours:
                raise InputError(f"{stem} is of another extraction; run extract again")
            if name not in shard.vectors:
                raise damaged(stem, f"it has no {name}", _AGAIN)
            # A copy: what was read may not be written to, which torch does not know.
            yield torch.tensor(shard.vectors[name])


def unreadable(folder: Path) -> pl.DataFrame:
    """Return the pictures that were skipped when a folder was filled: `path`, `reason`, in the order of the list.

    Of tracklets it is those without any frame, by their middle one.
    """
    return _told(folder, "skipped")


def left_out(folder: Path) -> pl.DataFrame:
    """Return the frames without which tracklets were looked at, as `unreadable` does."""
    return _told(folder, LEFT_OUT)


def _told(folder: Path, key: str) -> pl.DataFrame:
    pairs: list[Any] = []
    for number in range(len(read_shard_index(folder)["shards"])):
        pairs += read_shard_card(shard_stem(folder, number)).get(key, [])
    return pl.DataFrame(pairs, schema={"path": pl.String, "reason": pl.String}, orient="row")


def shard_checksum(labels: pl.DataFrame, vectors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the CRC-32 of a shard's labels and vectors, eight hexadecimal digits."""
    flat = labels.with_columns(pl.col(WORDS).list.join("|")) if WORDS in labels.columns else labels
    crc = zlib.crc32(flat.write_csv().encode(errors="surrogateescape"))
    for name in sorted(vectors):
        crc = zlib.crc32(np.ascontiguousarray(vectors[name]).data, crc)
    return f"{crc:08x}"


def save_shard(parts: Parts, number: int, form: str, shard: Shard) -> None:
    """Write a shard's files: labels with vectors, or labels first and then vectors.

    Raises:
        InputError: if they cannot be written.
    """
    metadata = {"clip3dreid": json.dumps(shard.card)}
    table = shard.labels
    if form == "parquet":
        table = table.with_columns(pl.Series(name, values) for name, values in shard.vectors.items())
    # Floats do not compress.
    with parts.write(number, ".parquet") as temporary:
        table.write_parquet(temporary, metadata=metadata, compression="uncompressed")
    if form == "safetensors":
        with parts.write(number, ".safetensors") as temporary:
            save_file(shard.vectors, temporary, metadata)


def read_shard_card(stem: Path) -> dict[str, Any]:
    """Read what a shard says of itself.

    Raises:
        InputError: if it is not there or damaged, naming it.
    """
    with decoding(stem, _KIND, _AGAIN):
        return dict(json.loads(pl.read_parquet_metadata(stem.with_suffix(".parquet"))["clip3dreid"]))


def _labels(stem: Path, form: str, identity: str) -> pl.DataFrame | None:
    """Read a shard's labels alone; None if there is no such shard, it cannot be read, or is of other pictures."""
    path = stem.with_suffix(".parquet")
    if form == "safetensors" and not stem.with_suffix(".safetensors").is_file():
        return None
    try:
        with decoding(stem, _KIND, _AGAIN):
            if read_shard_card(stem)["identity"] != identity:
                return None
            columns = [
                name for name in pl.scan_parquet(path, glob=False).collect_schema() if name not in VECTORS
            ]
            return pl.read_parquet(path, columns=columns, glob=False)
    except InputError:
        return None


def load_shard(stem: Path, form: str) -> Shard:
    """Read a shard whole.

    Raises:
        InputError: if it is not there or damaged, naming it.
    """
    path = stem.with_suffix(".parquet")
    with decoding(stem, _KIND, _AGAIN):
        card = read_shard_card(stem)
        table = pl.read_parquet(path, glob=False)
        if form == "parquet":
            vectors = {name: table[name].to_numpy() for name in VECTORS if name in table.columns}
            table = table.drop(vectors)
        else:
            with safe_open(stem.with_suffix(".safetensors"), framework="np") as file:
                vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                same = json.loads(file.metadata()["clip3dreid"]) == card
            if not same:
                raise damaged(stem, "labels and vectors are of different goes", _AGAIN)
        if unknown := vectors.keys() - set(VECTORS):
            raise damaged(stem, f"it has vectors called {min(unknown)[:80]!a}", _AGAIN)
        if card["version"] != SHARDS_VERSION or card["checksum"] != shard_checksum(table, vectors):
            raise damaged(stem, "its checksum is another", _AGAIN)
    return Shard(table, vectors, card)
