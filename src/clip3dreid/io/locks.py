"""Keep a folder to one process at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clip3dreid.errors import InputError

log = logging.getLogger(__name__)

LOCK = ".lock"
"""The file that a folder's lock is held on; it stays when the lock is gone, empty."""
# Folders that this process is at work in: a process is never refused what it holds itself, so it must be told.
_HELD: set[tuple[int, int, int]] = set()
_POLL_S = 0.2


@contextmanager
def at_work(folder: Path | str, doing: str, *, wait: bool = False, tidy: bool = False) -> Iterator[None]:
    """Keep a folder to this process for as long as the block lasts.

    The lock dies with the process that holds it, however that ends, and is not inherited by processes that it starts.
    On a file system that knows no locks a warning is logged and nothing is kept.

    Args:
        folder: made if need be, and removed again if the block fails before it holds anything.
        doing: what is done there, in a few words, for whoever finds it locked.
        wait: until it is free, with a line that says so; else another holder is an error.
        tidy: remove the lock's file at the end, so that a finished folder is what it was made for and nothing else.

    Raises:
        InputError: if another process is at work there, naming it, or the folder cannot be written.
    """
    folder = Path(folder)
    path = folder / LOCK
    if (key := _held_as(path)) in _HELD:
        # Asked before the file is opened: closing it a second time would let go of the lock.
        raise RuntimeError(f"{folder} is locked by this very process")
    made = not folder.exists()
    handle, locked = _take(path, wait)
    try:
        key = _held_as(path)
        _HELD.add(key)
        try:
            if locked:
                with suppress(OSError):  # a full disk has no room for a name, but keeps the lock
                    _write_owner(handle, doing)
            yield
        except BaseException:
            if made and locked:
                _forget(folder)
            raise
        finally:
            _HELD.discard(key)
            if locked:
                with suppress(OSError):
                    os.ftruncate(handle, 0)
                    if tidy:
                        # While it is held: who waits for it finds that it is gone (`_take`).
                        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def is_locked(folder: Path | str) -> bool:
    """Return whether a process is at work in a folder; True where nobody can say, as on a disk without locks."""
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


def _take(path: Path, wait: bool) -> tuple[int, bool]:
    """Open a lock's file and take the lock; False where there are no locks."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not through a link: whoever made it may own what it points to.
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror or error}; choose another place"
            ) from error
        try:
            locked = _lock(handle, path.parent, wait)
        except BaseException:
            os.close(handle)
            raise
        # Else who held it has just removed it, and the next may have made another.
        if os.fstat(handle).st_nlink:
            return handle, locked
        os.close(handle)


def _forget(folder: Path) -> None:
    """Remove a folder that holds nothing but its lock, which who waits for it finds out (`_take`)."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def _held_as(path: Path) -> tuple[int, int, int]:
    """Return this process and the file; a file that is not there is nobody's."""
    try:
        status = path.lstat()
    except OSError:
        return 0, 0, 0
    return os.getpid(), status.st_dev, status.st_ino


def _lock(handle: int, folder: Path, wait: bool) -> bool:
    """Take the lock; False on a file system that has none."""
    announced = False
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
        if not announced:
            log.info("%s is in use: %s; waiting for it", folder, owner)
            announced = True
        time.sleep(_POLL_S)


def _write_owner(handle: int, doing: str) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = f"process {os.getpid()} on {platform.node()} is at work there since {since} ({doing})\n"
    os.ftruncate(handle, 0)
    os.pwrite(handle, owner.encode(), 0)
