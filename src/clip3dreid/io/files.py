"""Write files whole or not at all, remove none that is not the program's, and tell one state of a file from another.

Three rules hold for every folder that this program fills. Nothing in it is written or removed through a link
(`inside`): whoever made the link may own what it points to. The folder itself may be one, that is its owner's choice.
Nothing is removed that this process did not make, or that the program's own list does not prove to be the program's
(`remove`). One process works there at a time (`locks.at_work`), and what a killed one has left running can put
nothing in its place any more (`staging.open_stage`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from clip3dreid.errors import InputError
from clip3dreid.io.video_places import picture_status

if TYPE_CHECKING:
    from polars import Series


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its place only when the block succeeds.

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
    """Turn an error of the disk into one line, whichever library was just writing; all others come through.

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
    """Return the system's reason, if an error is of writing a file; None for any other.

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
    """Return an exception in a few words: its text on one line, or its type where that says more."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split())[:200]
    if not text or isinstance(error, KeyError):
        return f"{type(error).__name__} {text}".strip()
    return text


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def inside(folder: Path | str, path: PurePath | str) -> Path:
    """Return the place of a file in a folder that the program fills, if no link leads there.

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
    """Remove files that are known for the program's, and the folders below `folder` that this leaves empty.

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


def sweep(folder: Path, ours: Callable[[str], object]) -> None:
    """Remove what killed processes left of files that `atomic` was just writing.

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


class FileIdentity(NamedTuple):
    """What tells one state of a picture's file from another."""

    path: str
    """Relative to the data set's root; of a crop of a video it names frame and box too."""
    size: int
    """Bytes; -1 of a file that is not there."""
    mtime_ns: int
    """Time of the last change, nanoseconds since 1970."""


class FileIdentities(Sequence[FileIdentity]):
    """States of many files, each made an object when it is asked for: a million take some 20 MB beside their paths.

    Args:
        paths: N, relative to the root: a list, or a series of polars.
        sizes: (N,) int64 bytes; -1 of files that are not there.
        changed: (N,) int64 nanoseconds since 1970.
    """

    def __init__(
        self, paths: Sequence[str] | Series, sizes: npt.NDArray[np.int64], changed: npt.NDArray[np.int64]
    ) -> None:
        self._paths, self._sizes, self._changed = paths, sizes, changed

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> FileIdentity: ...

    @overload
    def __getitem__(self, index: slice) -> FileIdentities: ...

    def __getitem__(self, index: int | slice) -> FileIdentity | FileIdentities:
        if isinstance(index, slice):
            return FileIdentities(self._paths[index], self._sizes[index], self._changed[index])
        return FileIdentity(self._paths[index], int(self._sizes[index]), int(self._changed[index]))

    def __iter__(self) -> Iterator[FileIdentity]:
        states = zip(in_turn(self._paths), self._sizes, self._changed, strict=True)
        return (FileIdentity(path, int(size), int(changed)) for path, size, changed in states)


def identify(root: Path, paths: Sequence[str] | Series, *, missing_ok: bool = False) -> FileIdentities:
    """Look at a data set's files, each for its size and the time of its last change.

    Args:
        root: the data set's folder.
        paths: of pictures, relative to it, row by row: a list, or a series of polars, of which no million texts are
            made at once. Of a place in a video (`io.video_places`) the video is looked at.
        missing_ok: take a file that is not there for one of its states.

    Raises:
        InputError: if one of them is not there.
    """
    sizes, changed = np.full(len(paths), -1, np.int64), np.zeros(len(paths), np.int64)
    folder = os.fspath(root)
    for row, path in enumerate(in_turn(paths)):
        try:
            status = picture_status(os.path.join(folder, path))  # noqa: PTH118
        except OSError as error:
            if not missing_ok:
                raise InputError(f"{root / path} cannot be read: {error.strerror}; restore it") from error
        else:
            sizes[row], changed[row] = status.st_size, status.st_mtime_ns
    return FileIdentities(paths, sizes, changed)


_AT_ONCE = 10_000


def in_turn(texts: Sequence[str] | Series) -> Iterator[str]:
    """Yield texts, of a series of polars some thousand at a time."""
    for start in range(0, len(texts), _AT_ONCE):
        yield from texts[start : start + _AT_ONCE]


def identity_hashes(identities: Sequence[FileIdentity]) -> npt.NDArray[np.int64]:
    """Return hashes (N,) of 64 bits, of which a chance agreement is nothing to fear: rows are compared one by one."""
    hashes = np.empty(len(identities), dtype="<i8")
    for row, (path, size, mtime_ns) in enumerate(identities):
        text = f"{path}\0{size}\0{mtime_ns}".encode(errors="surrogateescape")
        hashes[row] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
    return hashes
