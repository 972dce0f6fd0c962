"""Shards: what a model says of many pictures, in files that are written one by one and read by anything.

A folder holds `index.json` and shards of some thousand rows each. In `parquet` a shard is one file; in `safetensors`
the vectors are one file and the labels a Parquet file beside it, written first. A shard is computed from nothing but
its own rows, so a folder that was written in many goes is the same as one that was written in one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from clip3dreid.io.files import (
    FileIdentity,
    atomic,
    identity_hashes,
    inside,
    remove,
    sweep,
    write_json,
)
from clip3dreid.io.formats import damaged, decoding, read_json, seal, unseal

SHARDS_VERSION = 1
INDEX = "index.json"
UNREADABLE = "unreadable.csv"
FORMATS = ("parquet", "safetensors")
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
VECTORS = ("embedding", "joint", "betas")
"""Columns of a shard that are vectors; all others are labels."""
ROW, WORDS = "row", "words"
_KIND, _AGAIN = "a shard", "run extract again, which makes it anew and keeps the others"

_NAME = re.compile(r"shard-(\d{6,})\.(parquet|safetensors)")

Arrays = dict[str, npt.NDArray[Any]]


class Shard(NamedTuple):
    """One shard, in memory."""

    labels: pl.DataFrame
    """n rows: `row` in the list of pictures, `path`, `words` where there are some, and what else is known."""
    vectors: Arrays
    """name -> (n, width)."""
    card: dict[str, Any]
    """What the file says of itself, with the `skipped` pictures as [path, reason]."""


class ShardWriter:
    """A folder of shards to be filled.

    Opening looks at every shard of this process whole: what is damaged, or was made of other pictures or labels,
    counts as missing. Of several processes that fill a folder together the first must have locked it for all of them
    (`files.at_work`); what killed ones were just writing is removed.

    Args:
        folder: made if need be.
        table: N pictures to come: `path` and labels.
        identities: N states of their files.
        facts: plain values that say what the vectors are, the same for all shards: `fingerprint` of the model among
            them. A folder with other facts is refused.
        notes: plain values that may change from go to go, such as where the pictures are: `root` and `model`.
        form: `parquet` or `safetensors`.
        dtype: `float32` or `float16` for vectors, half the bytes.
        rows_per_shard: of a new folder; an existing one keeps its own.
        share: (process, processes): which shards are this process's, every `processes`-th.

    Raises:
        InputError: as `examine`, and if the folder holds shards of pictures that are not there any more, or cannot be
            written.
    """

    def __init__(
        self,
        folder: Path,
        table: pl.DataFrame,
        identities: Sequence[FileIdentity],
        facts: Mapping[str, Any],
        *,
        notes: Mapping[str, Any] | None = None,
        form: str = "parquet",
        dtype: str = "float32",
        rows_per_shard: int = 4096,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        found = examine(folder, facts, form=form, dtype=dtype, rows_per_shard=rows_per_shard)
        if found is not None:
            rows_per_shard = found["rows_per_shard"]
        self.folder, self.table = folder, table
        self._hashes = identity_hashes(identities)
        self._dtype = DTYPES[dtype]
        self.rows_per_shard, self._form = rows_per_shard, form
        self._fingerprint = str(facts["fingerprint"])
        self._lost = {one.path for one in identities if one.size < 0}
        count = math.ceil(len(table) / rows_per_shard)
        self._identities = [self._identity(number) for number in range(count)]
        self.mine = range(share[0], count, share[1])
        """Numbers of this process's shards."""
        self._done = {number for number in self.mine if self._good(number)}
        whole = dict(notes or {}) | _index(facts, form, dtype)
        whole |= {"rows_per_shard": rows_per_shard, "count": len(table), "shards": self._identities}
        # Each process its own: another's may just be being written.
        sweep(folder, lambda name: (own := _NAME.fullmatch(name)) and int(own[1]) in self.mine)
        if share[0] == 0:
            # Before the index that knows of them is replaced. Readers without it would take them for ours.
            beyond = [] if found is None else range(count, len(found["shards"]))
            remove(folder, (f"{_stem(folder, n).name}.{kind}" for n in beyond for kind in FORMATS))
            sweep(folder, (INDEX, UNREADABLE).__contains__)
        if found != whole:
            write_json(inside(folder, INDEX), seal(whole))

    def rows(self, number: int) -> range:
        """Rows of the list that a shard is made of."""
        first = number * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, len(self.table)))

    def missing(self) -> list[int]:
        """Numbers of this process's shards that are still to be made."""
        return [number for number in self.mine if number not in self._done]

    def put(
        self,
        number: int,
        rows: npt.NDArray[np.int64],
        vectors: Mapping[str, npt.NDArray[Any]],
        words: Sequence[Sequence[str]] | None,
        skipped: Sequence[tuple[int, str]],
    ) -> None:
        """Writes a shard, whole or not at all.

        Args:
            number: one of `missing()`.
            rows: (n,) rows of the list that the vectors are of, ascending.
            vectors: name -> (n, width).
            words: n lists of words, or None where the model knows none.
            skipped: (row, reason) of the shard's other pictures.

        Raises:
            ValueError: if rows are missing or another shard's.
            InputError: if a vector is NaN or infinite, naming the picture, or the folder cannot be written.
        """
        wanted = self.rows(number)
        if sorted([*rows.tolist(), *(row for row, _ in skipped)]) != list(wanted):
            raise ValueError(f"shard {number} is made of rows {wanted.start} to {wanted.stop - 1}")
        labels = self.table[rows].with_columns(pl.Series(ROW, rows))
        if words is not None:
            labels = labels.with_columns(pl.Series(WORDS, words, dtype=pl.List(pl.String)))
        arrays: Arrays = {}
        for name, values in vectors.items():
            wrong = (~np.isfinite(values)).any(1).nonzero()[0]
            if len(wrong):
                raise InputError(
                    f"the model gives {labels['path'][int(wrong[0])]} a {name} with NaN or infinite values; use "
                    "trainer.precision=32-true, or mend the model"
                )
            with np.errstate(over="ignore"):
                arrays[name] = np.ascontiguousarray(values.astype(self._dtype))
            if not np.isfinite(arrays[name]).all():
                raise InputError(f"a {name} is too large for float16; give dtype=float32")
        card = {
            "version": SHARDS_VERSION,
            "fingerprint": self._fingerprint,
            "identity": self._identities[number],
            "skipped": [[self.table["path"][row], reason] for row, reason in skipped],
            "checksum": _checksum(labels, arrays),
        }
        stem = _stem(self.folder, number)
        try:
            _save(stem, self._form, Shard(labels, arrays, card))
        except InputError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise InputError(
                f"cannot write {stem.name} to {self.folder}: {reason}; make room and run again: the rest is kept"
            ) from error
        self._done.add(number)

    def _identity(self, number: int) -> str:
        """Changes with any picture, box or label that a shard is made of."""
        rows = self.rows(number)
        digest = hashlib.blake2b(f"{number} ".encode(), digest_size=16)
        digest.update(self._hashes[rows.start : rows.stop].tobytes())
        digest.update(self.table[rows.start : rows.stop].write_csv().encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _good(self, number: int) -> bool:
        stem = _stem(self.folder, number)
        if not any(stem.with_suffix(suffix).exists() for suffix in (".parquet", ".safetensors")):
            return False
        try:
            shard = _load(stem, self._form)
        except InputError:
            return False
        ours = {"identity": self._identities[number], "fingerprint": self._fingerprint}
        good = all(shard.card[key] == value for key, value in ours.items())
        if not good and (lost := self._lost.intersection(shard.labels["path"])):
            raise InputError(
                f"{self.folder} holds shards of pictures that are not there any more, first {min(lost)}; bring them "
                "back, take them off the list, or remove that folder"
            )
        return good


def examine(
    folder: Path, facts: Mapping[str, Any], *, form: str, dtype: str, rows_per_shard: int
) -> dict[str, Any] | None:
    """Looks whether a folder may be filled, as `ShardWriter` is going to; nothing is changed.

    Args:
        folder: which need not be there.
        facts: as for `ShardWriter`, and so are the others.
        form: likewise.
        dtype: likewise.
        rows_per_shard: likewise.

    Returns:
        What its index says; None if it has none.

    Raises:
        InputError: if a setting is unknown, the folder holds another model's shards or another version's, files of
            the same names that are nobody knows whose, or its index is damaged or a link.
    """
    for name, value, known in (("format", form, FORMATS), ("dtype", dtype, tuple(DTYPES))):
        if value not in known:
            raise InputError(f"{name}={value} is unknown; choose {' or '.join(known)}")
    if rows_per_shard < 1:
        raise InputError(f"rows_per_shard={rows_per_shard} must be 1 or more")
    # Before the index is looked for, which others who fill the folder with us write before their first shard.
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if os.path.lexists(inside(folder, INDEX)):
        found = _read_index(folder)
        _refuse_others(folder, found, _index(facts, form, dtype))
        return found
    if foreign := [name for name in names if _NAME.fullmatch(name) or name == UNREADABLE]:
        raise InputError(
            f"{folder} holds files of the names that shards have ({', '.join(foreign[:3])}) and no {INDEX} that says "
            "whose they are; give another out, or move them away"
        )
    return None


def _index(facts: Mapping[str, Any], form: str, dtype: str) -> dict[str, Any]:
    """What all goes at a folder must agree on."""
    return {"version": SHARDS_VERSION, "format": form, "dtype": dtype, **facts}


class Shards:
    """A finished folder of shards, to be read.

    Rows are numbered from 0 through all shards; pictures that were skipped have none.

    Args:
        folder: as `ShardWriter` filled it.

    Attributes:
        facts: what `index.json` says.
        labels: M rows, all columns but the vectors.

    Raises:
        InputError: if there is nothing, shards are missing or damaged (naming them), or they are of another version.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / INDEX).is_file():
            raise InputError(
                f"{folder} holds no shards ({INDEX}); make them: clip3dreid extract out={folder}"
            )
        self.folder = folder
        self.facts = _read_index(folder)
        self._stems = [_stem(folder, number) for number in range(len(self.facts["shards"]))]
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
        self.labels = pl.concat([table for table in tables if table is not None])
        if self.labels.is_empty():
            raise InputError(f"{folder} holds no picture that could be read; see unreadable.csv there")
        self._counts = [0 if table is None else len(table) for table in tables]

    def __len__(self) -> int:
        return len(self.labels)

    def width(self, name: str) -> int:
        """Columns of a vector.

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
        """Yields (n, width) of one vector, shard by shard, as stored: float32 or float16.

        Raises:
            InputError: if the shards do not hold it, or one is damaged.
        """
        self.width(name)
        for number, stem in enumerate(self._stems):
            shard = _load(stem, self.facts["format"])
            ours = self.facts["shards"][number], self.facts["fingerprint"], self._counts[number]
            if (shard.card["identity"], shard.card["fingerprint"], len(shard.labels)) != ours:
                raise InputError(f"{stem} is of another extraction; run extract again")
            if name not in shard.vectors:
                raise damaged(stem, f"it has no {name}", _AGAIN)
            # A copy: what was read may not be written to, which torch does not know.
            yield torch.tensor(shard.vectors[name])


def unreadable(folder: Path) -> pl.DataFrame:
    """The pictures that were skipped when a folder was filled: `path` and `reason`, in the order of the list."""
    pairs = []
    for number in range(len(_read_index(folder)["shards"])):
        pairs += _card(_stem(folder, number))["skipped"]
    return pl.DataFrame(pairs, schema={"path": pl.String, "reason": pl.String}, orient="row")


def _stem(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}"


def _read_index(folder: Path) -> dict[str, Any]:
    path, again = folder / INDEX, f"remove {folder} and extract again"
    needed = {
        "fingerprint": str,
        "format": str,
        "dtype": str,
        "rows_per_shard": int,
        "shards": list,
        "vectors": dict,
    }
    again = "restore it, or extract into another folder"
    found = read_json(path, "the index of shards", again)
    version = found.get("version")
    if version != SHARDS_VERSION:
        raise InputError(
            f"{path} has version {version}, this program reads {SHARDS_VERSION}; extract into another folder"
        )
    if (
        not all(isinstance(found.get(key), kind) for key, kind in needed.items())
        or found["format"] not in FORMATS
        or found["dtype"] not in DTYPES
        or found["rows_per_shard"] < 1
    ):
        raise damaged(path, "a value is missing or cannot be", again)
    return unseal(found, path, again)


def _refuse_others(folder: Path, found: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    differ = [key for key in ours if found.get(key) != ours[key]]
    if "fingerprint" in differ:
        theirs, given = found["fingerprint"][:12], ours["fingerprint"][:12]
        raise InputError(
            f"{folder} holds shards of another model ({theirs}…) than the one given ({given}…); give another out, or "
            "remove those"
        )
    if differ:
        key = differ[0]
        raise InputError(
            f"{folder} holds shards of {key}={found.get(key)}, not of {ours[key]}; give another out, or remove "
            "those"
        )


def _checksum(labels: pl.DataFrame, vectors: Mapping[str, npt.NDArray[Any]]) -> str:
    flat = labels.with_columns(pl.col(WORDS).list.join("|")) if WORDS in labels.columns else labels
    crc = zlib.crc32(flat.write_csv().encode(errors="surrogateescape"))
    for name in sorted(vectors):
        crc = zlib.crc32(np.ascontiguousarray(vectors[name]).data, crc)
    return f"{crc:08x}"


def _save(stem: Path, form: str, shard: Shard) -> None:
    metadata = {"clip3dreid": json.dumps(shard.card)}
    table = shard.labels
    if form == "parquet":
        table = table.with_columns(pl.Series(name, values) for name, values in shard.vectors.items())
    # Floats do not compress.
    with atomic(inside(stem.parent, f"{stem.name}.parquet")) as temporary:
        table.write_parquet(temporary, metadata=metadata, compression="uncompressed")
    if form == "safetensors":
        with atomic(inside(stem.parent, f"{stem.name}.safetensors")) as temporary:
            save_file(shard.vectors, temporary, metadata)


def _card(stem: Path) -> dict[str, Any]:
    """What a shard says of itself.

    Raises:
        InputError: if it is not there or damaged, naming it.
    """
    with decoding(stem, _KIND, _AGAIN):
        return dict(json.loads(pl.read_parquet_metadata(stem.with_suffix(".parquet"))["clip3dreid"]))


def _labels(stem: Path, form: str, identity: str) -> pl.DataFrame | None:
    """A shard's labels alone; None if there is no such shard, it cannot be read, or is of other pictures."""
    path = stem.with_suffix(".parquet")
    if form == "safetensors" and not stem.with_suffix(".safetensors").is_file():
        return None
    try:
        with decoding(stem, _KIND, _AGAIN):
            if _card(stem)["identity"] != identity:
                return None
            columns = [
                name for name in pl.scan_parquet(path, glob=False).collect_schema() if name not in VECTORS
            ]
            return pl.read_parquet(path, columns=columns, glob=False)
    except InputError:
        return None


def _load(stem: Path, form: str) -> Shard:
    """Reads a shard whole.

    Raises:
        InputError: if it is not there or damaged, naming it.
    """
    path = stem.with_suffix(".parquet")
    with decoding(stem, _KIND, _AGAIN):
        card = _card(stem)
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
        if card["version"] != SHARDS_VERSION or card["checksum"] != _checksum(table, vectors):
            raise damaged(stem, "its checksum is another", _AGAIN)
    return Shard(table, vectors, card)
