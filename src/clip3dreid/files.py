"""Files: written whole or not at all, read or refused in one line, known for damaged; folders kept to one process."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import platform
import re
import tempfile
import time
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clip3dreid.errors import InputError

if TYPE_CHECKING:  # imported where tables are read: command lines answer --help without it
    import polars as pl

log = logging.getLogger(__name__)


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place only when the block succeeds.

    Args:
        path: the file to write; its folder is created.

    Yields:
        A path in the same folder (so that the final rename is atomic), with the same suffix.

    Raises:
        InputError: if the folder or the file cannot be written, a full disk included.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; give this one the permissions any new file would have had.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; make room, or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def encoding(path: Path | str) -> Iterator[None]:
    """Turns what a library makes of a full disk into one line; inside `atomic`, around the library's call alone.

    Polars, safetensors and torch raise types of their own there. Everything else they raise is a defect, and comes
    through as it is.

    Args:
        path: the file that is to be written, for the message.

    Raises:
        InputError: if the system refused to write.
    """
    try:
        yield
    except OSError:
        raise  # atomic's own
    except Exception as error:
        reason = _reason(error)
        if not _SYSTEM.search(reason):
            raise
        raise InputError(f"cannot write {path}: {reason}; make room, or choose another place") from error


# How Rust ends what the system has said, and how torch's writer complains of a file that does not grow.
_SYSTEM = re.compile(r"\(os error \d+\)|inline_container|PytorchStreamWriter")


@contextmanager
def decoding(what: object, kind: str, advice: str) -> Iterator[None]:
    """Turns whatever a decoder raises into one line; the one guard around every read of a file from outside.

    A damaged or hostile file can make a decoder raise almost anything, running out of memory and Rust's panics, which
    are no `Exception`, included. So the block holds the reading alone, and no code of ours that may have defects.

    Args:
        what: the file, for the message; a setting's name may stand before it (`features=x.npz`).
        kind: what it is read as, such as `JSON`.
        advice: what to do about it.

    Raises:
        InputError: naming all three and the decoder's reason; one that is raised inside comes through as it is.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(
            f"{what} asks for more memory than there is: it is damaged, or too large to be read as {kind}; {advice}"
        ) from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C and the like
        raise InputError(f"{what} cannot be read as {kind} ({_reason(error)}); {advice}") from error


def _reason(error: BaseException) -> str:
    """An exception in a few words: its text on one line, or its type where that says more."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split())[:200]
    if not text or isinstance(error, KeyError):
        return f"{type(error).__name__} {text}".strip()
    return text


def read_json(path: Path, what: str, advice: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: the file, UTF-8.
        what: it is, for the message, such as `the index of shards`.
        advice: what to do about another.

    Raises:
        InputError: if there is none, or it is damaged or no object.
    """
    with decoding(path, what, advice):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise InputError(f"{path} cannot be read as {what} (it holds no JSON object); {advice}")
    return found


def read_npz(
    path: Path,
    what: object,
    advice: str,
    *,
    keys: Collection[str] | None = None,
    skip_objects: bool = False,
) -> dict[str, npt.NDArray[Any]]:
    """Reads arrays of numbers and strings, whole and compared with the archive's checksums.

    numpy's own reader takes an array of a smaller shape than was written without a word, since it then never gets to
    the checksum, and makes room for whatever size a file claims.

    Args:
        path: the file.
        what: it is, for messages; a setting's name, perhaps (`features=x.npz`).
        advice: what to do about another.
        keys: of the arrays wanted; the others are not looked at. None: all.
        skip_objects: leave out arrays of Python objects, unread; else they are refused.

    Returns:
        The arrays there are.

    Raises:
        InputError: if there is no such file, or it is damaged, no NPZ, or an array holds something else.
    """
    found = {}
    with decoding(what, "NPZ", advice), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if keys is not None and name not in keys:
                continue
            with decoding(f"{what}: {name}", "an array", advice), archive.open(member) as stream:
                array = _read_array(stream, member.file_size)
            if array is not None:
                found[name] = array
            elif not skip_objects:
                raise InputError(
                    f"{what}: {name} holds no plain numbers or strings, and is not unpickled; {advice}"
                )
    return found


def npz_keys(path: Path, what: object, advice: str) -> list[str]:
    """Names of the arrays of an NPZ file, sorted; arguments and errors as of `read_npz`."""
    with decoding(what, "NPZ", advice), zipfile.ZipFile(path) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist())


def _read_array(stream: IO[bytes], size: int) -> npt.NDArray[Any] | None:
    """An array of `size` bytes with its header; None if it is one of objects. Anything may be raised."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = headers[np.lib.format.read_magic(stream)](stream)
    if dtype.hasobject:
        return None
    if dtype.kind not in "biufcSU" or math.prod(shape) * dtype.itemsize != size - stream.tell():
        raise ValueError(f"an array of {dtype} and shape {shape} in {size} bytes")
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    rest = memoryview(array.reshape(-1, order="A").view(np.uint8)) if array.nbytes else memoryview(b"")
    while rest:
        # The last piece is compared with the archive's checksum.
        rest = rest[stream.readinto(rest) :]  # type: ignore[attr-defined]
    return array


CHECKSUM = "checksum"
"""Key of plain values that say with what checksum they were written; see `seal`."""
TABLE_CHECKSUMS = "clip3dreid_checksums"
"""Key of a Parquet file's metadata: as JSON, the checksum of each column, and of the rest of our metadata under ""."""
_OURS = "clip3dreid"


def checksum(facts: Any, arrays: Iterable[tuple[str, npt.NDArray[Any]]] = ()) -> str:
    """CRC-32 of plain values and arrays with their names, types and shapes; eight hexadecimal digits.

    It tells damage, which is all it is for: whoever means to deceive writes the checksum too. CRC-32 takes a tenth of
    the time that writing takes, and any secure hash some half of it.

    Args:
        facts: JSON-ready.
        arrays: (name, values) in an order of their own, such as by name.
    """
    crc = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
    for name, values in arrays:
        crc = zlib.crc32(f"\0{name} {values.dtype.str} {values.shape}\0".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"


def seal(facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-ready facts with a checksum of themselves, to be compared by `unseal`."""
    return {**facts, CHECKSUM: checksum(dict(facts))}


def unseal(facts: Mapping[str, Any], path: Path, advice: str) -> dict[str, Any]:
    """Facts as they were before `seal`; those of an earlier version, without a checksum, with a line in the log.

    Args:
        facts: as read.
        path: of their file, for messages.
        advice: what to do about damage.

    Raises:
        InputError: if they are not those that were written.
    """
    plain = {key: value for key, value in facts.items() if key != CHECKSUM}
    if CHECKSUM not in facts:
        unsealed(path)
    elif facts[CHECKSUM] != checksum(plain):
        raise damaged(path, "its checksum is another", advice)
    return plain


def unsealed(path: Path) -> None:
    """Says in the log that nobody can tell whether a file is as it was written."""
    log.warning("%s has no checksum, as earlier versions wrote it: damage to it would go unnoticed", path)


def damaged(path: Path, reason: str, advice: str) -> InputError:
    """The line about a file that can be read and is not what was written."""
    return InputError(f"{path} is damaged ({reason}); {advice}")


def write_table(path: Path | str, table: pl.DataFrame, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a table as Parquet, atomically, with a checksum of each column and of the metadata.

    Args:
        path: the file.
        table: any; columns of Python objects excepted.
        metadata: of the file; keys begin with `clip3dreid`.

    Raises:
        InputError: if it cannot be written.
    """
    own = dict(metadata or {})
    own[TABLE_CHECKSUMS] = json.dumps({"": checksum(own)} | {s.name: _column_checksum(s) for s in table})
    with atomic(path) as temporary, encoding(path):
        table.write_parquet(temporary, metadata=own)


def read_table(
    path: Path,
    what: str,
    advice: str,
    *,
    columns: Collection[str] | None = None,
    sealed: bool = True,
) -> tuple[pl.DataFrame, dict[str, str]]:
    """Reads a Parquet file, and compares its checksums where it has some.

    Args:
        path: the file; no pattern, and no address.
        what: it is, for messages, such as `labels`.
        advice: what to do about another.
        columns: to read; None: all.
        sealed: this program has written it; one without checksums gets a line in the log.

    Returns:
        The table, and the file's metadata under keys that begin with `clip3dreid`.

    Raises:
        InputError: if there is no such file, it is damaged or no Parquet, or lacks a column.
    """
    import polars as pl

    with decoding(path, what, advice):
        with path.open("rb"):  # the system's word on a file that cannot be opened is clearer
            pass
        metadata = pl.read_parquet_metadata(path)
        table = pl.read_parquet(path, columns=None if columns is None else list(columns), glob=False)
        own = {key: value for key, value in metadata.items() if key.startswith(_OURS)}
        sums = json.loads(own.pop(TABLE_CHECKSUMS)) if TABLE_CHECKSUMS in own else None
        if sums is not None:
            wrong = [series.name for series in table if sums.get(series.name) != _column_checksum(series)]
            if columns is None:
                wrong += sorted(sums.keys() - {"", *table.columns})
            if sums.get("") != checksum(own):
                wrong.append("metadata")
            if wrong:
                raise damaged(path, f"the checksum of {', '.join(wrong[:3])} is another", advice)
    if sums is None and sealed:
        unsealed(path)
    return table, own


def _column_checksum(series: pl.Series) -> str:
    return checksum(None, _arrays(series.name, series))


def _arrays(name: str, series: pl.Series) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """What a column holds as plain arrays, the same in every version of polars and however a file encodes it."""
    import polars as pl

    yield f"{name}?", series.is_null().to_numpy()
    values = series.drop_nulls()
    kind = values.dtype
    if isinstance(kind, pl.Array):
        values = values.arr.to_list()
        kind = values.dtype
    if isinstance(kind, pl.List):
        lengths = values.list.len()
        yield f"{name}#", lengths.cast(pl.Int64).to_numpy()
        yield from _arrays(f"{name}[]", values.filter(lengths > 0).explode())
    elif isinstance(kind, pl.Struct):
        for field in values.struct.unnest():
            yield from _arrays(f"{name}.{field.name}", field)
    elif isinstance(kind, pl.String | pl.Categorical | pl.Enum | pl.Binary):
        texts = values if isinstance(kind, pl.Binary) else values.cast(pl.String).cast(pl.Binary)
        yield f"{name}#", texts.bin.size().cast(pl.Int64).to_numpy()
        yield name, np.frombuffer(b"".join(texts.to_list()), np.uint8)
    elif not isinstance(kind, pl.Null):
        yield name, values.to_physical().to_numpy()


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` to `path` atomically, as indented JSON; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


LOCK = ".lock"
"""The file that a folder's lock is held on; it stays when the lock is gone, empty."""
# Folders that this process is at work in: a process is never refused what it holds itself, so it must be told.
_HELD: set[tuple[int, int, int]] = set()
_POLL_S = 0.2


@contextmanager
def at_work(folder: Path | str, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Keeps a folder to this process for as long as the block lasts.

    The lock dies with the process that holds it, however that ends, and is not inherited by processes that it starts.
    On a file system that knows no locks a warning is logged and nothing is kept.

    Args:
        folder: made if need be.
        doing: what is done there, in a few words, for whoever finds it locked.
        wait: until it is free, with a line that says so; else another holder is an error.

    Raises:
        InputError: if another process is at work there, naming it, or the folder cannot be written.
    """
    folder = Path(folder)
    path = folder / LOCK
    if (key := _held_as(path)) in _HELD:
        # Asked before the file is opened: closing it a second time would let go of the lock.
        raise RuntimeError(f"{folder} is locked by this very process")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not through a link: whoever made it may own what it points to.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    try:
        locked = _lock(handle, folder, wait)
        key = _held_as(path)
        _HELD.add(key)
        try:
            if locked:
                _write_owner(handle, doing)
            yield
        finally:
            _HELD.discard(key)
            if locked:
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _held_as(path: Path) -> tuple[int, int, int]:
    """This process and the file; a file that is not there is nobody's."""
    try:
        status = path.lstat()
    except OSError:
        return 0, 0, 0
    return os.getpid(), status.st_dev, status.st_ino


def _lock(handle: int, folder: Path, wait: bool) -> bool:
    """Takes the lock; False on a file system that has none."""
    told = False
    while True:
        try:
            # By process and not by open file (flock), which forked loader workers would inherit and outlive us with.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning(
                    "%s cannot be locked (%s): let no other process work there", folder, error.strerror
                )
                return False
        else:
            return True
        owner = os.pread(handle, 1000, 0).decode(errors="replace").strip() or "another process"
        if not wait:
            raise InputError(
                f"{folder} is in use: {owner}; wait until it has ended, or choose another folder"
            )
        if not told:
            log.info("%s is in use: %s; waiting for it", folder, owner)
            told = True
        time.sleep(_POLL_S)


def _write_owner(handle: int, doing: str) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = f"process {os.getpid()} on {platform.node()} is at work there since {since} ({doing})\n"
    os.ftruncate(handle, 0)
    os.pwrite(handle, owner.encode(), 0)


class FileIdentity(NamedTuple):
    """What tells one state of a picture's file from another."""

    path: str
    """Relative to the data set's root."""
    size: int
    """Bytes; -1 of a file that is not there."""
    mtime_ns: int
    """Time of the last change, nanoseconds since 1970."""


def identify(root: Path, paths: Iterable[str], *, missing_ok: bool = False) -> list[FileIdentity]:
    """Looks at a data set's files.

    Args:
        root: the data set's folder.
        paths: of pictures, relative to it, row by row.
        missing_ok: take a file that is not there for one of its states.

    Raises:
        InputError: if one of them is not there.
    """
    found = []
    for path in paths:
        try:
            status = (root / path).stat()
        except OSError as error:
            if not missing_ok:
                raise InputError(f"{root / path} cannot be read: {error.strerror}; restore it") from error
            found.append(FileIdentity(path, -1, 0))
        else:
            found.append(FileIdentity(path, status.st_size, status.st_mtime_ns))
    return found


def identity_hashes(identities: Sequence[FileIdentity]) -> npt.NDArray[np.int64]:
    """(N,) 64 bits each, of which a chance agreement is nothing to fear: they are compared row by row."""
    digests = (
        hashlib.blake2b(
            f"{path}\0{size}\0{mtime_ns}".encode(errors="surrogateescape"), digest_size=8
        ).digest()
        for path, size, mtime_ns in identities
    )
    return np.frombuffer(b"".join(digests), dtype="<i8")
