"""Write shards: a folder of them is filled in one go or in many."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from clip3dreid.data.crops import cut_between_pictures
from clip3dreid.errors import InputError
from clip3dreid.io.files import FileIdentity, identity_hashes
from clip3dreid.io.resumable import Parts, look_into
from clip3dreid.model.card import ClipSize
from clip3dreid.search.settings import ShardSettings
from clip3dreid.search.shard_index import (
    CLIPS,
    FEATURE,
    SHARDS,
    SHARDS_VERSION,
    shard_clips,
    shard_feature,
    shard_stem,
)
from clip3dreid.search.shards import (
    LEFT_OUT,
    ROW,
    WORDS,
    Arrays,
    Shard,
    load_shard,
    save_shard,
    shard_checksum,
)


class ShardWriter:
    """A folder of shards to be filled.

    Opening looks at every shard of this process whole: what is damaged, or was made of other pictures or labels,
    counts as missing. Of several processes that fill a folder together the first must have locked it for all of them
    (`locks.at_work`); what killed ones were just writing is removed.

    Args:
        folder: made if need be.
        table: N pictures to come: `path` and labels.
        identities: N states of their files.
        facts: plain values that say what the vectors are, the same for all shards: `fingerprint` of the model among
            them. A folder with other facts is refused.
        settings: how shards are stored.
        notes: plain values that may change from go to go, such as where the pictures are: `root` and `model`.
        share: (process, processes): which shards are this process's, every `processes`-th.
        missing: path of a row -> the file that is not there, where a row is of several; None: it is the row's own.

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
        settings: ShardSettings,
        *,
        notes: Mapping[str, Any] | None = None,
        share: tuple[int, int] = (0, 1),
        missing: Mapping[str, str] | None = None,
    ) -> None:
        before = examine(folder, facts, settings)
        self.folder, self.table = folder, table
        self.rows_per_shard = settings.rows_per_shard if before is None else before["rows_per_shard"]
        self._form, self._dtype = settings.format, np.dtype(settings.dtype)
        self._fingerprint = str(facts["fingerprint"])
        lost = {one.path for one in identities if one.size < 0}
        self._lost = {path: (missing or {}).get(path, path) for path in lost}
        hashes = identity_hashes(identities)
        cuts = cut_between_pictures(table["path"], range(len(table)), self.rows_per_shard)
        self._identities = [_identity(number, rows, table, hashes) for number, rows in enumerate(cuts)]
        self._parts = Parts(folder, SHARDS, cuts, self._usable, share)
        self._parts.sweep()
        if share[0] == 0 and before is not None:
            # Before the index that knows of them is replaced. Readers without it would take them for ours.
            self._parts.remove_beyond(len(before["shards"]))
        index = dict(notes or {}) | _agreed(facts, settings)
        index |= {"rows_per_shard": self.rows_per_shard, "count": len(table), "shards": self._identities}
        if before != index:
            self._parts.write_index(index)

    @property
    def mine(self) -> range:
        """Return the numbers of this process's shards."""
        return self._parts.mine

    def rows(self, number: int) -> range:
        """Return the rows of the list that a shard is made of."""
        return self._parts.cuts[number]

    def missing(self) -> list[int]:
        """Return the numbers of this process's shards that are still to be made."""
        return self._parts.missing()

    def put(
        self,
        number: int,
        rows: npt.NDArray[np.int64],
        vectors: Mapping[str, npt.NDArray[Any]],
        words: Sequence[Sequence[str]] | None,
        skipped: Sequence[tuple[int, str]],
        left_out: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Write a shard, whole or not at all.

        Args:
            number: one of `missing()`.
            rows: (n,) rows of the list that the vectors are of, ascending.
            vectors: name -> (n, width).
            words: n lists of words, or None where the model knows none.
            skipped: (row, reason) of the shard's other pictures.
            left_out: (path, reason) of frames without which tracklets were looked at.

        Raises:
            ValueError: if rows are missing or another shard's.
            InputError: if a vector is NaN or infinite, naming the picture, or the folder cannot be written.
        """
        wanted = self.rows(number)
        if sorted([*rows.tolist(), *(row for row, _ in skipped)]) != list(wanted):
            raise ValueError(f"shard {number} is made of rows {wanted.start} to {wanted.stop - 1}")
        shard = make_shard(
            self.table,
            rows,
            vectors,
            words,
            skipped,
            left_out,
            identity=self._identities[number],
            fingerprint=self._fingerprint,
            dtype=str(self._dtype),
        )
        save_shard(self._parts, number, self._form, shard)
        self._parts.done.add(number)

    def _usable(self, number: int) -> bool:
        try:
            shard = load_shard(shard_stem(self.folder, number), self._form)
        except InputError:
            return False
        expected = {"identity": self._identities[number], "fingerprint": self._fingerprint}
        usable = all(shard.card[key] == value for key, value in expected.items())
        if not usable and (lost := self._lost.keys() & set(shard.labels["path"])):
            raise InputError(
                f"{self.folder} holds shards of pictures that are not there any more, first "
                f"{self._lost[min(lost)]}; bring them "
                "back, take them off the list, or remove that folder"
            )
        return usable


def make_shard(
    table: pl.DataFrame,
    rows: npt.NDArray[np.int64],
    vectors: Mapping[str, npt.NDArray[Any]],
    words: Sequence[Sequence[str]] | None,
    skipped: Sequence[tuple[int, str]],
    left_out: Sequence[tuple[str, str]] = (),
    *,
    identity: str,
    fingerprint: str,
    dtype: str,
    first: int = 0,
) -> Shard:
    """Return a shard of some rows of a table.

    Args:
        table: `path` and labels.
        rows: (n,) of it that the vectors are of, ascending.
        vectors: name -> (n, width).
        words: n lists of words, or None where the model knows none.
        skipped: (row, reason) of pictures that were left out.
        left_out: (path, reason) of frames of tracklets that were.
        identity: of what the shard is made of.
        fingerprint: of the model.
        dtype: that vectors are stored in.
        first: row of the whole list that is the table's first.

    Raises:
        InputError: if a vector is NaN or infinite, naming the picture, or too large for float16.
    """
    labels = table[rows].with_columns(pl.Series(ROW, rows + first))
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
            arrays[name] = np.ascontiguousarray(values.astype(dtype))
        if not np.isfinite(arrays[name]).all():
            raise InputError(f"a {name} is too large for float16; give dtype=float32")
    card = {
        "version": SHARDS_VERSION,
        "fingerprint": fingerprint,
        "identity": identity,
        "skipped": [[table["path"][row], reason] for row, reason in skipped],
        **({LEFT_OUT: list(map(list, left_out))} if left_out else {}),
        "checksum": shard_checksum(labels, arrays),
    }
    return Shard(labels, arrays, card)


def examine(folder: Path, facts: Mapping[str, Any], settings: ShardSettings) -> dict[str, Any] | None:
    """Check that a folder may be filled, as `ShardWriter` is going to; nothing is changed.

    Args:
        folder: which need not be there.
        facts: as for `ShardWriter`.
        settings: likewise.

    Returns:
        What its index says; None if it has none.

    Raises:
        InputError: if the folder holds another model's shards or another version's, files of the same names that are
            nobody knows whose, or its index is damaged or a link.
    """
    index = look_into(folder, SHARDS)
    if index is None:
        return None
    agreed = _agreed(facts, settings)
    differ = [key for key in agreed if key != FEATURE and index.get(key) != agreed[key]]
    theirs, ours = shard_feature(index, folder), shard_feature(agreed, folder)
    if theirs != ours:
        raise InputError(
            f"{folder} holds shards of feature={theirs}, not of {ours}; give another out, or remove those"
        )
    if CLIPS in differ:
        before, now = (_of_what(shard_clips(one, folder)) for one in (index, agreed))
        raise InputError(
            f"{folder} holds shards of {before}, not of {now}; give another out, or remove those"
        )
    if "fingerprint" in differ:
        made_by, given = index["fingerprint"][:12], agreed["fingerprint"][:12]
        raise InputError(
            f"{folder} holds shards of another model ({made_by}…) than the one given ({given}…); give another out, "
            "or remove those"
        )
    if differ:
        key = differ[0]
        raise InputError(
            f"{folder} holds shards of {key}={index.get(key)}, not of {agreed[key]}; give another out, or remove "
            "those"
        )
    return index


def _of_what(clips: ClipSize | None) -> str:
    if clips is None:
        return "pictures"
    return f"tracklets (clips.frames={clips.frames}, clips.stride={clips.stride})"


def _agreed(facts: Mapping[str, Any], settings: ShardSettings) -> dict[str, Any]:
    """Return what all goes at a folder must agree on."""
    return {"version": SHARDS_VERSION, "format": settings.format, "dtype": settings.dtype, **facts}


def _identity(number: int, rows: range, table: pl.DataFrame, hashes: npt.NDArray[np.int64]) -> str:
    """Return what changes with any picture, box or label that a shard is made of."""
    digest = hashlib.blake2b(f"{number} ".encode(), digest_size=16)
    digest.update(hashes[rows.start : rows.stop].tobytes())
    digest.update(table[rows.start : rows.stop].write_csv().encode(errors="surrogateescape"))
    return digest.hexdigest()
