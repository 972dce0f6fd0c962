"""Write files out of the way, from where they take their places whole: one by one, or all together.

A folder of many files that is written over hours has a folder of the program's own in it. What a killed run has left
running still writes to a stage there that is no longer used, and can put nothing in its place any more.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clip3dreid.errors import InputError
from clip3dreid.io.files import inside, writing

# Eight characters of tempfile's.
_STAGE = re.compile(r"(run|old)-[a-z0-9_]{8}")


def is_stage(name: str) -> bool:
    """Return whether `open_stage` makes folders of this name."""
    return _STAGE.fullmatch(name) is not None


def open_stage(work: Path) -> Path:
    """Make a folder in `work` where files are written before they take their places (`staged`).

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
    """Remove the folders that `open_stage` made, and then `work`, unless it holds something else."""
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
    """Yield a temporary place in a stage, which becomes a file of `folder` when the block succeeds.

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
    """Yield an empty folder, whose files all take their places in `folder` when the block succeeds, or none does.

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
