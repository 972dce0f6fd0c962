"""Files: written whole or not at all, and one state of them told from another."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clip3dreid.errors import InputError


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


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` to `path` atomically, as indented JSON; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


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
