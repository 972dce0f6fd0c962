"""Processes that tests start: how long one is waited for, and how the end of all its workers is."""

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


IMPORTED = ["pytest", "hypothesis", "torch.distributed", "clip3dreid.training.module"]
"""What a server of processes imports for them, once: each takes longer to import torch than for what it is to do."""


def side_by_side(function: Callable[..., None], count: int, *arguments: object) -> None:
    """Calls `function(rank, *arguments)` in new processes, one a rank, and raises what one of them raises."""
    from torch import multiprocessing as torch_multiprocessing

    # Forked, but from a process of its own that has done nothing yet: no thread, no lock, no gradient of this one.
    multiprocessing.set_forkserver_preload(IMPORTED)
    torch_multiprocessing.start_processes(function, arguments, count, start_method="forkserver")


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
