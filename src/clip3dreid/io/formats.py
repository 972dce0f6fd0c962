"""Read every file from outside to its end, or refuse it in one line, and know damage by checksums."""

from __future__ import annotations

import difflib
import json
import logging
import math
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import yaml

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.files import atomic, reason_of

if TYPE_CHECKING:  # imported where tables are read: command lines answer --help without it
    import polars as pl

log = logging.getLogger(__name__)


@contextmanager
def decoding(what: object, kind: str, advice: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one line; the one guard around every read of a file from outside.

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
        raise InputError(f"{what} cannot be read as {kind} ({reason_of(error)}); {advice}") from error


def read_json(path: Path, what: str, advice: str) -> dict[str, Any]:
    """Read a JSON object.

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


def peek_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None where there is none: of a file that says whose a folder is, if it says anything."""
    try:
        return read_json(path, "JSON", "")
    except InputError:
        return None


def read_npz(
    path: Path,
    what: object,
    advice: str,
    *,
    keys: Collection[str] | None = None,
    skip_objects: bool = False,
    most_bytes: float = math.inf,
) -> dict[str, npt.NDArray[Any]]:
    """Read arrays of numbers and strings, whole and compared with the archive's checksums.

    numpy's own reader takes an array of a smaller shape than was written without a word, since it then never gets to
    the checksum, and makes room for whatever size a file claims.

    Args:
        path: the file.
        what: it is, for messages; a setting's name, perhaps (`features=x.npz`).
        advice: what to do about another.
        keys: of the arrays wanted; the others are not looked at. None: all.
        skip_objects: leave out arrays of Python objects, unread; else they are refused.
        most_bytes: of the wanted arrays together: what is compressed can be a thousand times larger than the file.

    Returns:
        The arrays there are.

    Raises:
        InputError: if there is no such file, or it is damaged, no NPZ, or an array holds something else.
    """
    arrays = {}
    with decoding(what, "NPZ", advice), zipfile.ZipFile(path) as archive:
        size = sum(
            member.file_size
            for member in archive.infolist()
            if keys is None or member.filename.removesuffix(".npy") in keys
        )
        if size > most_bytes:
            found_mb, most_mb = size / 1e6, most_bytes / 1e6
            raise InputError(
                f"{what} holds {found_mb:,.0f} MB of arrays, and {most_mb:,.0f} at most are expected; {advice}"
            )
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with decoding(f"{what}: {name}", "an array", advice), archive.open(member) as stream:
                # Opened, though it may not be wanted: names stand in two places, which must agree.
                if keys is not None and name not in keys:
                    continue
                array = _read_array(stream, member.file_size)
            if array is not None:
                arrays[name] = array
            elif not skip_objects:
                raise InputError(
                    f"{what}: {name} holds no plain numbers or strings, and is not unpickled; {advice}"
                )
    return arrays


def npz_keys(path: Path, what: object, advice: str) -> list[str]:
    """Return the names of the arrays of an NPZ file, sorted; arguments and errors as of `read_npz`."""
    with decoding(what, "NPZ", advice), zipfile.ZipFile(path) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist())


def _read_array(stream: IO[bytes], size: int) -> npt.NDArray[Any] | None:
    """Read an array of `size` bytes with its header; None if it is one of objects. Anything may be raised."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = headers[np.lib.format.read_magic(stream)](stream)
    if dtype.hasobject:
        return None
    if dtype.kind not in "biufcSU" or math.prod(shape) * dtype.itemsize != size - stream.tell():
        raise ValueError(f"an array of {dtype} and shape {shape} in {size} bytes")
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    rest = array.reshape(-1, order="A").view(np.uint8).data if array.nbytes else memoryview(b"")
    while rest:
        # The last piece is compared with the archive's checksum.
        rest = rest[stream.readinto(rest) :]  # type: ignore[attr-defined]
    return array


def read_text(path: Path, what: object, advice: str) -> str:
    """Read a text, UTF-8 with or without a mark at its beginning; arguments and errors as of `decoding`."""
    with decoding(what, "text", advice):
        return path.read_text(encoding="utf-8-sig")


def read_yaml(path: Path, what: str, advice: str) -> Any:
    """Read a YAML file of plain values, such as a run's config; nothing in it is run.

    Args:
        path: the file, UTF-8.
        what: it is, for the message.
        advice: what to do about another.

    Returns:
        A dictionary, empty of an empty file, or a list.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    with decoding(path, what, advice):
        # A safe loader, if not the one that linters know.
        value = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)  # noqa: S506
    if value is not None and not isinstance(value, dict | list):
        raise InputError(f"{path} cannot be read as {what} (it holds no mapping and no list); {advice}")
    return {} if value is None else value


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # which PyYAML does not type
    """PyYAML's safe loader, which takes 1e-3 for a number too, as people and other readers do."""


_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


CHECKSUM = "checksum"
"""Key of plain values that say with what checksum they were written; see `seal`."""
TABLE_CHECKSUMS = "clip3dreid_checksums"
"""Key of a Parquet file's metadata: as JSON, the checksum of each column, and under "" of our other metadata."""
_OURS = "clip3dreid"


def checksum(facts: Any, arrays: Iterable[tuple[str, npt.NDArray[Any]]] = ()) -> str:
    """Return the CRC-32 of plain values and arrays with their names, types and shapes; eight hexadecimal digits.

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
    """Return JSON-ready facts with a checksum of themselves, to be compared by `unseal`."""
    return {**facts, CHECKSUM: checksum(dict(facts))}


def unseal(facts: Mapping[str, Any], path: Path, advice: str) -> dict[str, Any]:
    """Return facts as they were before `seal`; those of an earlier version, without checksum, with a line in the log.

    Args:
        facts: as read.
        path: of their file, for messages.
        advice: what to do about damage.

    Raises:
        InputError: if they are not those that were written.
    """
    plain = {key: value for key, value in facts.items() if key != CHECKSUM}
    if CHECKSUM not in facts:
        unsealed(path, CHECKSUM, facts, advice)
    elif facts[CHECKSUM] != checksum(plain):
        raise damaged(path, "its checksum is another", advice)
    return plain


# Two letters of eight may be others, or lost or doubled; `checkpoint` must not pass for `checksum`.
_CLOSE = 0.7
_FOREIGN = ("ARROW:schema", "pandas")
"""Metadata that writers of Parquet add by themselves."""


def unsealed(path: Path, key: str, keys: Iterable[Any], advice: str) -> None:
    """Say in the log that nobody can tell whether a file is as it was written.

    Args:
        path: the file.
        key: under which its checksum would be.
        keys: that it has.
        advice: what to do about damage.

    Raises:
        InputError: if one of them is almost the other: then its name is what was damaged.
    """
    # What all of our names begin with says nothing of how near two of them are.
    names = {str(name).removeprefix(f"{_OURS}_"): str(name) for name in keys}
    wanted = key.removeprefix(f"{_OURS}_")
    close = [name for bare, name in names.items() if wanted in bare] or [
        names[bare] for bare in difflib.get_close_matches(wanted, names, n=1, cutoff=_CLOSE)
    ]
    if close:
        raise damaged(path, f"{close[0][:80]!a} stands where {key} would", advice)
    log.warning("%s has no checksum, as earlier versions wrote it: damage to it would go unnoticed", path)


def damaged(path: Path, reason: str, advice: str) -> InputError:
    """Return the error about a file that can be read and is not what was written."""
    return InputError(f"{path} is damaged ({reason}); {advice}")


def write_table(path: Path | str, table: pl.DataFrame, metadata: Mapping[str, str] | None = None) -> None:
    """Write a table as Parquet, atomically, with a checksum of each column and of the metadata.

    Args:
        path: the file.
        table: any; columns of Python objects excepted.
        metadata: of the file; keys begin with `clip3dreid`.

    Raises:
        InputError: if it cannot be written.
    """
    own = dict(metadata or {})
    own[TABLE_CHECKSUMS] = json.dumps({"": checksum(own)} | {s.name: _column_checksum(s) for s in table})
    with atomic(path) as temporary:
        table.write_parquet(temporary, metadata=own)


def read_table(
    path: Path,
    what: str,
    advice: str,
    *,
    columns: Collection[str] | None = None,
    needs: Collection[str] = (),
    sealed: bool = True,
) -> tuple[pl.DataFrame, dict[str, str]]:
    """Read a Parquet file, and compares its checksums where it has some.

    Args:
        path: the file; no pattern, and no address.
        what: it is, for messages, such as `labels`.
        advice: what to do about another.
        columns: to read; None: all.
        needs: columns that must be there, beside those to read.
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
        there = pl.scan_parquet(path, glob=False).collect_schema()
        if absent := [column for column in (*(columns or ()), *needs) if column not in there]:
            raise InputError(f"{path} has no column {', '.join(absent)}; {advice}")
        table = pl.read_parquet(path, columns=None if columns is None else list(columns), glob=False)
        facts = {key: value for key, value in metadata.items() if key.startswith(_OURS)}
        sums = json.loads(facts.pop(TABLE_CHECKSUMS)) if TABLE_CHECKSUMS in facts else None
        if sums is not None:
            wrong = [series.name for series in table if sums.get(series.name) != _column_checksum(series)]
            if columns is None:
                wrong += sorted(sums.keys() - {"", *table.columns})
            if sums.get("") != checksum(facts):
                wrong.append("metadata")
            if wrong:
                raise damaged(path, f"the checksum of {some(wrong, 3)} is another", advice)
    if sums is None and sealed:
        strange = [key for key in metadata if key not in _FOREIGN and not key.startswith(_OURS)]
        if strange:
            raise damaged(path, f"its metadata has {strange[0][:80]!a}, which nobody writes", advice)
        unsealed(path, TABLE_CHECKSUMS, metadata, advice)
    return table, facts


def _column_checksum(series: pl.Series) -> str:
    return checksum(None, _arrays(series.name, series))


def _arrays(name: str, series: pl.Series) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield what a column holds as plain arrays, the same in every version of polars, however a file encodes it."""
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
