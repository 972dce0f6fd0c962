"""The one exception for things a user can put right, and which others are foreseen."""

from __future__ import annotations

import errno
from collections.abc import Iterator

# What a disk refuses, whichever library was just writing.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class InputError(Exception):
    """Bad input: what is wrong, where, and what to do about it, in one line.

    Entry points print the message and exit with status 2; every other exception is a defect of the
    program and keeps its traceback and status 1.
    """


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it, outermost first, each once: raised anew, it can be its own cause's cause."""
    current: BaseException | None = error
    passed: set[int] = set()
    while current is not None and id(current) not in passed:
        passed.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def one_line(error: BaseException) -> str | None:
    """Return one line for an error that the user can put right; None for a defect of the program.

    Whatever it was raised in, bad input is told as it was said; a disk that is full or may not be read is named.
    """
    for link in causes(error):
        if isinstance(link, InputError):
            message = str(link)
            if "Original Traceback" in message:
                # From a loader's worker: torch puts the whole traceback into the message; its last line has ours.
                message = message.strip().splitlines()[-1].partition(": ")[2]
            return " ".join(message.split())
    for link in causes(error):
        if isinstance(link, OSError) and link.errno in _DISK:
            what = link.filename or "what the run has to say"
            return f"cannot write {what}: {link.strerror}; make room, or choose another place"
        if isinstance(link, PermissionError) and link.filename is not None:
            return f"no access to {link.filename}: {link.strerror}; choose another place, or ask its owner"
    return None
