"""Keep a run's folder to one run: claimed by its first process, shared with its others."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from clip3dreid.errors import InputError
from clip3dreid.io.files import write_json
from clip3dreid.io.formats import peek_json
from clip3dreid.io.launch import Launch, launch
from clip3dreid.io.locks import LOCK, at_work, is_locked
from clip3dreid.io.run_folder import (
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    RESULTS,
    holds_checkpoint,
    resume_argument,
)

CLAIM = ".run.json"
"""Says whose folder it is: launch, command line, process."""
RECORD = ".hydra"
"""Folder of the command line's own record."""
_VERSION = 1
_SHARED, _READY = ".shared", "ready.json"
_WAIT_S, _LOOK_S = 600.0, 0.2


class Claim(NamedTuple):
    """A folder that this process has claimed."""

    folder: Path
    made: tuple[Path, ...]
    """Folders that were made for it, the outermost first."""
    there: frozenset[Path]
    """What it held before, relative to it."""

    @staticmethod
    def _writes(path: Path) -> bool:
        """Return whether a file of that name is written before there is anything to keep."""
        return path.parts[0] in (RECORD, _SHARED, LOCK, CLAIM) or (
            len(path.parts) == 1 and path.suffix == ".log"
        )

    def discard(self) -> None:
        """Remove what this claim made, if nothing came of it: no file but the command's record and a log."""
        new = [path for path in self.folder.rglob("*") if path.relative_to(self.folder) not in self.there]
        files = [path for path in new if path.is_symlink() or not path.is_dir()]
        ours = all(not path.is_symlink() and self._writes(path.relative_to(self.folder)) for path in files)
        if not ours or any(Path(name) in self.there for name in (RECORD, CLAIM)):
            return
        for path in files:
            path.unlink()
        folders = sorted((path for path in new if path.is_dir()), key=lambda path: -len(path.parts))
        for path in (*folders, *reversed(self.made)):
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()


class HeldFolder(NamedTuple):
    """A folder that is claimed and locked until it is released."""

    folder: Path
    goes_on: bool
    """Whether a scheduler has started the run in it again."""
    release: Callable[[bool], None]
    """Lets go of it; gets whether the command failed, and then removes what nothing came of."""


def hold(wanted: Path, what: str, arguments: Sequence[str], *, next_free: bool) -> HeldFolder:
    """Claim a folder for the first process of a run, and lock it.

    Args:
        wanted: the folder's name.
        what: is to happen there.
        arguments: of the command, by which a scheduler's next attempt finds its folder.
        next_free: where there is such a folder, take the name that follows.

    Raises:
        InputError: if another process is at work there, or it cannot be made.
    """
    start = launch()
    if start.attempt and (earlier := _of_earlier_attempt(wanted, start, arguments)) is not None:
        claim = Claim(earlier, (), _names(earlier))
        goes_on = holds_checkpoint(earlier)
    else:
        claim, goes_on = make(wanted, next_free=next_free), False
    stack = ExitStack()
    stack.enter_context(at_work(claim.folder, what))
    write_json(
        claim.folder / CLAIM,
        {
            "version": _VERSION,
            "launch": start.id,
            "attempt": start.attempt,
            "resumed": goes_on,
            "arguments": list(arguments),
            "process": os.getpid(),
            "host": platform.node(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
    )

    def release(failed: bool) -> None:
        stack.close()
        if failed:
            claim.discard()

    return HeldFolder(claim.folder, goes_on, release)


def make(wanted: Path, *, next_free: bool) -> Claim:
    """Make a folder, or take it as it is; with `next_free` one that nobody else has made.

    Raises:
        InputError: if it is a file, or cannot be made.
    """
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()  # atomic: of two processes one succeeds
        except FileExistsError:
            if not folder.is_dir():
                raise InputError(f"{folder} is a file; choose another hydra.run.dir") from None
            if not next_free:
                return Claim(folder, (), _names(folder))
        except OSError as error:
            raise InputError(
                f"cannot make {folder}: {error.strerror or error}; choose another hydra.run.dir"
            ) from error
        else:
            return Claim(folder, tuple(reversed(missing)), frozenset())
    raise AssertionError  # count() does not end


def wait_for_claim(wanted: Path, arguments: Sequence[str]) -> tuple[Path, bool]:
    """Wait for the folder that the first process claims for this launch.

    Args:
        wanted: the folder's name.
        arguments: of the command, which all processes of a launch share.

    Returns:
        The folder, and whether the run in it goes on because a scheduler has started it again.

    Raises:
        InputError: if none is claimed in ten minutes.
    """
    start = launch()
    if start.name is None:
        return wanted, False  # started by the first process, which names its folder
    ours = {"launch": start.id, "attempt": start.attempt, "arguments": list(arguments)}
    until = time.monotonic() + _WAIT_S
    while time.monotonic() < until:
        for folder, claim in _claims(wanted):
            if {key: claim.get(key) for key in ours} == ours:
                return folder, bool(claim.get("resumed"))
        time.sleep(_LOOK_S)
    raise InputError(
        f"the first process of this run has claimed no folder like {wanted} in {_WAIT_S:.0f} s; look at what it "
        "says, and whether all processes see the same disk"
    )


def refuse_held(folder: Path) -> None:
    """Refuse to begin a run where it would take the place of another.

    Raises:
        InputError: if the folder holds a run that something came of.
    """
    if (path := outcome(folder)) is not None:
        raise InputError(
            f"{folder} holds a run already ({path}); go on with it: {resume_argument(folder)}; or choose another "
            "folder with hydra.run.dir (of a sweep: hydra.sweep.dir)"
        )


def outcome(folder: Path) -> Path | None:
    """Return what came of the run in a folder, relative to it; None where there is no run, or nothing came of it."""
    kept = (Path(RESULTS), LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)
    return next((path for path in kept if (folder / path).exists()), None)


def prepared(folder: Path) -> Path:
    """Return where the first process of a run puts what it has found out for the others."""
    return folder / _SHARED


def say_prepared(folder: Path, facts: Mapping[str, Any]) -> None:
    """Let the other processes of this launch know that everything is there, and some facts."""
    ours = {"launch": launch().id, "attempt": launch().attempt}
    write_json(prepared(folder) / _READY, {**ours, **facts})


def wait_prepared(folder: Path) -> Mapping[str, Any]:
    """Wait until the first process of this launch has prepared the run, and return the facts that it tells.

    Raises:
        InputError: if it has ended before.
    """
    ours = {"launch": launch().id, "attempt": launch().attempt}
    while True:
        facts = peek_json(prepared(folder) / _READY) or {}
        if {key: facts.get(key) for key in ours} == ours:
            return facts
        if not is_locked(folder):
            raise InputError(
                f"the first process of this run has ended before {folder} was prepared; see what it said"
            )
        time.sleep(_LOOK_S)


def remove_prepared(folder: Path) -> None:
    """Remove what the processes of a run shared, which its own first process has written."""
    if not prepared(folder).is_symlink():
        shutil.rmtree(prepared(folder), ignore_errors=True)


def _names(folder: Path) -> frozenset[Path]:
    return frozenset(path.relative_to(folder) for path in folder.rglob("*"))


def _claims(wanted: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield folders of a name, or of the names that follow it, and who claimed them.

    Where a scheduler starts a run again all folders beside it count: it may have been named otherwise when it began.
    """
    others = wanted.parent.glob("*" if launch().attempt else f"{wanted.name}_*")
    for folder in (wanted, *sorted(others)):
        claim = peek_json(folder / CLAIM)
        if claim is not None and claim.get("version") == _VERSION:
            yield folder, claim


def _of_earlier_attempt(wanted: Path, start: Launch, arguments: Sequence[str]) -> Path | None:
    """Return the folder in which an earlier attempt of this very command worked."""
    ours = {"launch": start.id, "arguments": list(arguments)}
    folders = (folder for folder, claim in _claims(wanted) if {key: claim.get(key) for key in ours} == ours)
    return next(folders, None)
