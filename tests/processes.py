"""Processes that tests start: how long one is waited for, and how the end of all its workers is."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 1800
"""After which a test takes a process for hung: far beyond what any of them takes on the busiest machine."""


def session(leader: int) -> list[int]:
    """Processes that live in a session."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, number = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended in between
            continue
        if int(number) == leader and state != "Z":
            found.append(int(process.name))
    return found


def await_end(leader: int) -> None:
    """Waits until nobody is left in a session: workers end with their parent, but not in the same moment."""
    deadline = time.monotonic() + PATIENCE_S
    while session(leader):
        assert time.monotonic() < deadline, f"still there: {session(leader)}"
        time.sleep(0.01)


_HOLDER = """
import sys
from clip3dreid.io.locks import at_work
with at_work(*sys.argv[1:]):
    print("there", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(folder: Path, doing: str) -> Iterator[int]:
    """Another process that is at work in a folder (`locks.at_work`) while the block lasts; its number."""
    command = [sys.executable, "-c", _HOLDER, str(folder), doing]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "there\n"
        try:
            yield holder.pid
        finally:
            holder.stdin.close()
