"""A teacher's embeddings of a data set's pictures, computed once and read back by row.

On disk they lie in parts of some thousand rows, so that a build that was killed goes on where it stopped. Each row
names the file that it was computed from, so that a changed picture is never served an old embedding.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Positive
from clip3dreid.io.files import FileIdentity, identity_hashes
from clip3dreid.io.formats import decoding
from clip3dreid.io.resumable import PartKind, Parts, cut, look_into
from clip3dreid.types import Batch

if TYPE_CHECKING:  # workers that only read embeddings do without transformers
    from clip3dreid.model.frozen import FrozenNetwork

CACHE_VERSION = 1
ROWS_PER_PART = 4096
EMBEDDINGS = PartKind(
    what="embeddings",
    stem="part",
    digits=5,
    suffixes=(".safetensors",),
    version=CACHE_VERSION,
    needs={"fingerprint": str, "width": int, "rows_per_part": Positive},
    elsewhere="give another model.teacher.cache_dir",
    # All that it says is known beforehand, but for the rows of a part.
    sealed=False,
)
_SUFFIX = ".safetensors"


class Cache(Protocol):
    """Embeddings by row."""

    width: int
    """d."""

    def read(self, rows: Tensor) -> Tensor:
        """Map rows (B,) int64 to embeddings (B, d) float32, on the device of the rows."""
        ...


class MemoryCache:
    """Embeddings in memory.

    Args:
        embeddings: (N, d) float32, by row; on whatever device they are to be kept.

    Raises:
        ValueError: if they are no matrix.
        InputError: if one is NaN or infinite.
    """

    def __init__(self, embeddings: Tensor) -> None:
        if embeddings.ndim != 2:
            raise ValueError(f"embeddings must be (N, d), not {tuple(embeddings.shape)}")
        row = _first_not_finite(embeddings)
        if row is not None:
            raise InputError(
                f"the embedding of row {row} is NaN or infinite; set model.teacher.dtype=float32, or get the "
                "teacher's files anew"
            )
        self.embeddings = embeddings.detach().float()
        self.width = embeddings.shape[1]

    def read(self, rows: Tensor) -> Tensor:
        """Map rows (B,) int64 to embeddings (B, d) float32, on the device of the rows.

        Raises:
            IndexError: if there is no such row.
        """
        if rows.device.type == "cpu":
            _check_rows(rows, len(self.embeddings))
        return self.embeddings[rows.to(self.embeddings.device)].to(rows.device)


class _Place(NamedTuple):
    """Where a part's embeddings lie in its file."""

    start: int
    """Bytes from the beginning."""
    checksum: str
    """What the file says of them, to know it by."""


class EmbeddingCache:
    """Embeddings in a folder: `index.json` and parts `part-00000.safetensors`, mapped into memory when read.

    A part holds the consecutive rows `i * rows_per_part` and on: `embedding` (n, d) float32 and `identity` (n,)
    int64, hashes of the files' identities. Opening checks every part whole; what does not agree with the files as
    they are now, or is damaged, counts as missing. Opening writes nothing; `put` and `begin` want the folder locked
    (`locks.at_work`). Copies for other processes, forked or pickled, map the parts anew.

    Args:
        folder: made by the first `put` if need be; one for a data set.
        identities: N files, row by row.
        teacher: its name, for messages.
        fingerprint: of teacher and preprocessing (`FrozenNetwork.fingerprint`).
        width: d.
        rows_per_part: of a new cache; an existing one keeps its own.

    Raises:
        InputError: if the folder holds another teacher's embeddings or another version's, its index is damaged, or it
            holds files of the same names without an index.
    """

    def __init__(
        self,
        folder: Path,
        identities: Sequence[FileIdentity],
        *,
        teacher: str,
        fingerprint: str,
        width: int,
        rows_per_part: int = ROWS_PER_PART,
    ) -> None:
        if rows_per_part < 1:
            raise ValueError(f"rows_per_part must be positive, not {rows_per_part}")
        self.folder, self.teacher, self.fingerprint, self.width = folder, teacher, fingerprint, width
        self.identities = list(identities)
        self._hashes = identity_hashes(self.identities)
        self._maps: dict[int, npt.NDArray[np.float32]] = {}
        before = self._look()
        self.rows_per_part = rows_per_part if before is None else int(before["rows_per_part"])
        self._index = {
            "version": CACHE_VERSION,
            "teacher": teacher,
            "fingerprint": fingerprint,
            "width": width,
            "count": len(self),
            "rows_per_part": self.rows_per_part,
        }
        self._indexed = before == self._index
        self._places: dict[int, _Place] = {}
        """Of the usable parts."""
        self._cuts = cut(len(self), self.rows_per_part)
        self._parts = Parts(folder, EMBEDDINGS, self._cuts, self._is_usable)
        self.found = len(self) - sum(map(len, self.missing()))
        """Rows that were there when it was opened."""

    def __len__(self) -> int:
        return len(self.identities)

    def __getstate__(self) -> dict[str, Any]:
        # Pickled, a memory map would be a copy of all it maps.
        return {**self.__dict__, "_maps": {}}

    @property
    def stale(self) -> int:
        """Return the folder's parts that cannot be used: pictures changed, came or went, or the file is damaged."""
        return self._parts.stale

    def begin(self) -> None:
        """Make the folder ready for parts: what killed processes were just writing goes, the index is written."""
        self._parts.sweep()
        self._say()

    def look_again(self) -> None:
        """Take in parts that other processes have made since."""
        self._parts.look_again(self._is_usable)

    def missing(self) -> list[range]:
        """Return the rows to compute, one range a part: what `put` takes."""
        return [self._cuts[part] for part in self._parts.missing()]

    def put(self, rows: range, embeddings: Tensor) -> None:
        """Write a part.

        Args:
            rows: one of `missing()`.
            embeddings: (len(rows), d) of these rows, floating point, on any device.

        Raises:
            ValueError: if the rows are no part, or the embeddings not of their shape.
            InputError: if an embedding is NaN or infinite, or the folder cannot be written.
        """
        part = rows.start // self.rows_per_part
        if not len(rows) or rows not in self._cuts[part : part + 1]:
            raise ValueError(f"{rows} is no part of this cache; put what missing() returns")
        if embeddings.shape != (len(rows), self.width):
            raise ValueError(f"embeddings are {tuple(embeddings.shape)}, not {(len(rows), self.width)}")
        wrong = _first_not_finite(embeddings)
        if wrong is not None:
            raise InputError(
                f"{self.teacher} gives an embedding with NaN or infinite values for "
                f"{self.identities[rows[wrong]].path}; set model.teacher.dtype=float32, or get the teacher's "
                "files anew"
            )
        values = embeddings.detach().to("cpu", torch.float32).contiguous()
        tensors = {"embedding": values, "identity": torch.tensor(self._hashes[rows.start : rows.stop])}
        card = {
            "version": str(CACHE_VERSION),
            "fingerprint": self.fingerprint,
            "checksum": _checksum(values.numpy()),
        }
        self._say()
        with self._parts.write(part, _SUFFIX) as temporary:
            save_file(tensors, temporary, card)
        self._maps.pop(part, None)
        if not self._is_usable(part):
            raise InputError(
                f"{self._path(part)} is damaged as soon as written; give another model.teacher.cache_dir"
            )
        self._parts.done.add(part)

    def read(self, rows: Tensor) -> Tensor:
        """Look embeddings up.

        Args:
            rows: (B,) int64 on any device.

        Returns:
            (B, d) float32 on that device.

        Raises:
            IndexError: if there is no such row.
            RuntimeError: if rows are still missing.
        """
        if lacking := len(self._cuts) - len(self._parts.done):
            raise RuntimeError(f"{self.folder} lacks {lacking} parts; put() them first")
        wanted = rows.detach().cpu()
        _check_rows(wanted, len(self))
        found = np.empty((len(wanted), self.width), dtype=np.float32)
        for place, row in enumerate(wanted.tolist()):
            part, within = divmod(row, self.rows_per_part)
            mapped = self._maps.get(part)
            found[place] = (self._map(part) if mapped is None else mapped)[within]
        return torch.from_numpy(found).to(rows.device)

    def _say(self) -> None:
        """Write what the folder holds; first, so that whatever lies there is known for what it is."""
        if not self._indexed:
            self._parts.write_index(self._index)
            self._indexed = True

    def _path(self, part: int) -> Path:
        return self.folder / EMBEDDINGS.name(part, _SUFFIX)

    def _map(self, part: int) -> npt.NDArray[np.float32]:
        shape = len(self._cuts[part]), self.width
        place = self._places[part]
        # Hours may lie between opening and the first look, and another data set may have been given the folder.
        if _place(self._path(part)) != place:
            raise InputError(
                f"{self._path(part)} was replaced meanwhile, perhaps by a training on other pictures; give each its "
                "own model.teacher.cache_dir"
            )
        mapped = np.memmap(self._path(part), np.dtype("<f4"), "r", place.start, shape)
        # As a plain array: numpy's own class costs a microsecond at every row.
        self._maps[part] = np.asarray(mapped)
        return self._maps[part]

    def _look(self) -> dict[str, Any] | None:
        """Return what the folder says it holds, if that may be gone on with; None for a new one."""
        index = look_into(self.folder, EMBEDDINGS)
        if index is None:
            return None
        if (index["fingerprint"], index["width"]) != (self.fingerprint, self.width):
            ours, theirs = self.fingerprint[:8], index["fingerprint"][:8]
            raise InputError(
                f"{self.folder} holds embeddings of teacher {index.get('teacher')} ({theirs}), not of {self.teacher} "
                f"({ours}), whose files, view or dtype differ; remove {self.folder}, or {EMBEDDINGS.elsewhere}"
            )
        return index

    def _is_usable(self, part: int) -> bool:
        """Check a part whole, and keep where its embeddings lie if it is good."""
        path, rows = self._path(part), self._cuts[part]
        try:
            with decoding(path, "embeddings", ""), safe_open(path, framework="np") as file:
                card = file.metadata() or {}
                embedding, identity = file.get_tensor("embedding"), file.get_tensor("identity")
        except InputError:
            return False
        place = _place(path)
        usable = (
            card.get("version") == str(CACHE_VERSION)
            and card.get("fingerprint") == self.fingerprint
            and embedding.shape == (len(rows), self.width)
            and embedding.dtype == np.float32
            and np.array_equal(identity, self._hashes[rows.start : rows.stop])
            and card.get("checksum") == _checksum(embedding)
        )
        if place is None or not usable:
            return False
        self._places[part] = place
        return True


def _place(path: Path) -> _Place | None:
    try:
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
        return _Place(
            8 + length + int(header["embedding"]["data_offsets"][0]), header["__metadata__"]["checksum"]
        )
    except (OSError, ValueError, KeyError, TypeError, MemoryError):
        return None


def _checksum(values: npt.NDArray[np.float32]) -> str:
    return f"{zlib.crc32(values.data):08x}"


def _first_not_finite(embeddings: Tensor) -> int | None:
    wrong = (~torch.isfinite(embeddings)).any(1).nonzero()
    return int(wrong[0]) if len(wrong) else None


def _check_rows(rows: Tensor, count: int) -> None:
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise IndexError(f"rows {int(rows.min())} to {int(rows.max())}, where there are {count}")


class TeacherEmbeddings(nn.Module):
    """What a training loop asks for the teacher's embeddings: from a cache, or fresh.

    Args:
        teacher: embeds the very pictures that the student is shown, before erasing where a batch has that view, if
            there is no cache. It moves with this module and is part of nobody's state.
        cache: answers by row, if given: the embedding of the picture as it is on disk.

    Attributes:
        width: d.
        ahead: whether it answers before a batch goes to the device, which has nothing to do with it: from a cache.

    Raises:
        ValueError: if there is neither.
    """

    def __init__(self, teacher: FrozenNetwork | None = None, cache: Cache | None = None) -> None:
        super().__init__()
        source = teacher if cache is None else cache
        if source is None:
            raise ValueError("needs a teacher or a cache")
        self.teacher = teacher
        self.cache = cache
        self.width = source.width
        self.ahead = cache is not None

    def forward(self, batch: Batch) -> Tensor:
        """Return embeddings (B, d) float32 of a batch, on its device.

        Where guides are about all frames of clips, they are the frames' means, of length 1.
        """
        if batch.frames is None:
            return self._embedded(batch)
        of_frames = torch.unflatten(self._embedded(batch), 0, tuple(batch.frames.shape))
        return F.normalize(of_frames.mean(1), dim=1)

    def _embedded(self, batch: Batch) -> Tensor:
        """Return (B, d), or (B x T, d) of all frames."""
        if self.cache is not None:
            return self.cache.read(batch.row if batch.frames is None else batch.frames.flatten())
        assert self.teacher is not None
        embedding: Tensor = self.teacher(_guided(batch))
        return embedding


def _guided(batch: Batch) -> Tensor:
    """Return the pictures that guides are about, (B, 3, H, W), or (B x T, 3, H, W) of all frames of clips."""
    images = batch.images if batch.view is None else batch.view
    if images.ndim == 4:
        return images
    # A view is of what guides are about already.
    return images[:, images.shape[1] // 2] if batch.frames is None else images.flatten(0, 1)
