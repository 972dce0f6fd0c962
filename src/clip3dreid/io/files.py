"""Files: written whole or not at all, folders kept to one process, one state of a file told from another.

Three rules hold for every folder that this program fills. Nothing in it is written or removed through a link
(`inside`): whoever made the link may own what it points to. The folder itself may be one, that is its owner's choice.
Nothing is removed that this process did not make, or that the program's own list does not prove to be the program's
(`remove`). One process works there at a time (`at_work`), and what a killed one has left running can put nothing in
its place any more (`open_stage`).
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
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
        with writing(path):
            yield temporary
            # mkstemp makes files private; give this one the permissions any new file would have had.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
    finally:
        with suppress(OSError):  # on a disk that went away there is nothing to tidy up
            temporary.unlink(missing_ok=True)


_TORCH = re.compile(r"inline_container|PytorchStreamWriter")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def writing(what: Path, advice: str = "make room, or choose another place") -> Iterator[None]:
    """Turns an error of the disk into one line, whichever library was just writing; all others come through.

    Args:
        what: is written, for the message.
        advice: what to do about it.

    Raises:
        InputError: naming both, and the system's reason.
    """
    try:
        yield
    except Exception as error:
        if (reason := why_not_written(error)) is None:
            raise
        raise InputError(f"cannot write {what}: {reason}; {advice}") from error


def why_not_written(error: Exception) -> str | None:
    """The system's reason, if an error is of writing a file; None for any other.

    Libraries that write by themselves (safetensors, polars) have errors of their own, which hold the system's number;
    torch's says that a file did not grow.
    """
    if isinstance(error, InputError):
        return None
    if told := _OS_ERROR.search(str(error)):
        return os.strerror(int(told[1]))
    if isinstance(error, RuntimeError) and _TORCH.search(str(error)):
        context = error.__context__
        return (isinstance(context, OSError) and context.strerror) or "torch could not write all of it"
    return error.strerror or str(error) or type(error).__name__ if isinstance(error, OSError) else None


def reason_of(error: BaseException) -> str:
    """An exception in a few words: its text on one line, or its type where that says more."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split())[:200]
    if not text or isinstance(error, KeyError):
        return f"{type(error).__name__} {text}".strip()
    return text


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` to `path` atomically, as indented JSON; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def inside(folder: Path | str, path: PurePath | str) -> Path:
    """The place of a file or folder in a folder that the program fills, if no link leads there.

    Args:
        folder: as the user gave it; it may be a link itself, or lie behind one.
        path: relative to it; nothing need be there.

    Returns:
        `folder / path`.

    Raises:
        InputError: if a part of `path` is a link, naming it, or leads out of the folder.
    """
    place, relative = Path(folder), PurePath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"{path} leads out of {folder}; nothing is written or removed there")
    for part in relative.parts:
        place = place / part
        if place.is_symlink():
            raise InputError(
                f"{place} is a link, and nothing is written or removed through one; move it away, or choose another "
                "folder (which may be a link itself)"
            )
    return place


def remove(folder: Path | str, paths: Iterable[str]) -> None:
    """Removes files that are known for the program's, and the folders below `folder` that this leaves empty.

    Args:
        folder: as for `inside`.
        paths: relative to it; those that are not there are passed over.

    Raises:
        InputError: if a link leads to one of them, and then nothing is removed; or if one cannot be removed.
    """
    folder, paths = Path(folder), list(paths)
    places = [inside(folder, path) for path in paths]
    for place in places:
        try:
            place.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot remove {place}: {error.strerror or error}") from error
    parents = {parent for path in paths for parent in PurePath(path).parents} - {PurePath()}
    for parent in sorted(parents, key=lambda parent: -len(parent.parts)):
        with suppress(OSError):  # it holds something else
            (folder / parent).rmdir()


# Eight characters of tempfile's.
_STAGE = re.compile(r"(run|old)-[a-z0-9_]{8}")


def is_stage(name: str) -> bool:
    """Whether `open_stage` makes folders of this name."""
    return _STAGE.fullmatch(name) is not None


def open_stage(work: Path) -> Path:
    """A new folder in `work` where files are written before they take their places (`staged`).

    Earlier ones go. A worker that outlives its killed parent still writes to one of those, so from here on it can
    finish nothing, and nothing of an earlier run gets among the files of a new one.

    Args:
        work: the program's own folder within the one that it fills, which must be locked (`at_work`); made if need
            be.

    Raises:
        InputError: if `work` is a link, or cannot be written.
    """
    inside(work.parent, work.name)
    try:
        work.mkdir(parents=True, exist_ok=True)
        _remove_stages(work)
        return Path(tempfile.mkdtemp(dir=work, prefix="run-"))
    except OSError as error:
        raise InputError(f"cannot write {work}: {error.strerror or error}; choose another place") from error


def close_stages(work: Path) -> None:
    """Removes the folders that `open_stage` made, and then `work`, unless it holds something else."""
    _remove_stages(work)
    with suppress(OSError):
        work.rmdir()


def _remove_stages(work: Path) -> None:
    for path in list(work.iterdir()):
        if is_stage(path.name) and path.is_dir() and not path.is_symlink():
            # First out of reach by its name, at one stroke: while it is emptied, a worker may fill it.
            gone = path.with_name(f"old-{path.name[4:]}")
            if gone != path:
                path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def staged(stage: Path, folder: Path, path: str) -> Iterator[Path]:
    """Yields a temporary place in a stage, which becomes a file of `folder` when the block succeeds.

    As `atomic`, where a folder has many files: a killed run leaves no litter among them.

    Args:
        stage: of `open_stage`, on the same file system.
        folder: that is filled.
        path: of the file, relative to it; its folders are made.

    Raises:
        InputError: if a link leads there, or it cannot be written, a full disk included.
    """
    target = inside(folder, path)
    # Not with its name, which may be as long as a name can be.
    temporary = stage / f"{os.getpid()}{target.suffix}"
    try:
        with writing(target, "make room for it and start again: what is finished is kept"):
            yield temporary
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


UNFINISHED = ".unfinished"
"""Within a folder, where `together` has its files before they take their places."""


@contextmanager
def together(folder: Path | str, last: str) -> Iterator[Path]:
    """Yields an empty folder, whose files all take their places in `folder` when the block succeeds, or none does.

    Args:
        folder: locked (`at_work`); made if need be.
        last: the file that vouches for the others: an earlier one goes first and the new one comes last, so that
            not even a crash while they take their places leaves a mixture that passes for whole.

    Raises:
        InputError: if a link is in the way, or the folder cannot be written, a full disk included; what was there
            before is still there.
    """
    folder = Path(folder)
    stage = open_stage(folder / UNFINISHED)
    try:
        with writing(folder):
            yield stage
            names = sorted((path.name for path in stage.iterdir()), key=lambda name: (name == last, name))
            for name in names:
                if inside(folder, name).is_dir():
                    raise InputError(f"cannot write {folder / name}: it is a folder; choose another place")
            (folder / last).unlink(missing_ok=True)
            for name in names:
                (stage / name).replace(folder / name)
    except InputError as error:
        # Of a file that is nobody's yet; what it was going to be is asked about.
        raise InputError(str(error).replace(str(stage), str(folder))) from error
    finally:
        with suppress(OSError):
            close_stages(stage.parent)


def sweep(folder: Path, ours: Callable[[str], object]) -> None:
    """Removes what killed processes left of files that `atomic` was just writing.

    Args:
        folder: locked (`at_work`), so that nobody is writing them.
        ours: from a name to whether it is of those files; of no others anything is removed.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            found = _TEMPORARY.fullmatch(path.name)
            if found and ours(found["stem"] + found["suffix"]) and not path.is_symlink():
                path.unlink(missing_ok=True)


_TEMPORARY = re.compile(r"\.(?P<stem>.+)-[a-z0-9_]{8}(?P<suffix>(\.[^.]+)?)")


LOCK = ".lock"
"""The file that a folder's lock is held on; it stays when the lock is gone, empty."""
# Folders that this process is at work in: a process is never refused what it holds itself, so it must be told.
_HELD: set[tuple[int, int, int]] = set()
_POLL_S = 0.2


@contextmanager
def at_work(folder: Path | str, doing: str, *, wait: bool = False, tidy: bool = False) -> Iterator[None]:
    """Keeps a folder to this process for as long as the block lasts.

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


def _take(path: Path, wait: bool) -> tuple[int, bool]:
    """Opens a lock's file and takes the lock; False where there are no locks."""
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
    """Removes a folder that holds nothing but its lock, which who waits for it finds out (`_take`)."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


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
