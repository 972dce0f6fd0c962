"""Files: written whole or not at all, folders kept to one process, one state of a file told from another."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clip3dreid.errors import InputError

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


def is_locked(folder: Path | str) -> bool:
    """Whether a process is at work in a folder; True where nobody can say, as on a file system without locks."""
    path = Path(folder) / LOCK
    if _held_as(path) in _HELD:
        return True
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)  # and with it the lock, if there was none
    return False


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
