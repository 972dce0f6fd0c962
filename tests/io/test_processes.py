"""Work in other processes: in order, ended with the parent, told in a line when one is killed."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io.processes import spread


def work(dies_at: int, fails_at: int, item: int) -> tuple[int, int]:
    if item == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == fails_at:
        raise ZeroDivisionError(f"no item {item}")
    return item, os.getpid()


def test_results_come_in_order_and_from_other_processes() -> None:
    found = list(spread(functools.partial(work, -1, -1), range(7), 2, at_once=2))
    assert [item for item, _ in found] == list(range(7))
    assert os.getpid() not in {process for _, process in found}
    here = list(spread(functools.partial(work, -1, -1), range(3), 0))
    assert here == [(item, os.getpid()) for item in range(3)]
    assert list(spread(functools.partial(work, -1, -1), [], 2)) == []


def test_a_killed_process_is_told_in_a_line_and_an_error_as_it_is() -> None:
    with pytest.raises(
        InputError, match=r"a process at work was killed, .*workers=1.*what is finished is kept"
    ):
        list(spread(functools.partial(work, 1, -1), range(3), 1))
    with pytest.raises(ZeroDivisionError, match="no item 1"):
        list(spread(functools.partial(work, -1, 1), range(3), 1))


CHILD = (
    "import time; from clip3dreid.io.processes import end_with_parent\n"
    "end_with_parent(); print('there', flush=True)\n"
)
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1] + "time.sleep(600)"], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_process_ends_with_a_parent_that_is_killed() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path(f"/proc/{int(parent.stdout.readline())}")
        assert child.exists()
        parent.kill()
        parent.wait()
    for _ in range(1000):
        if not child.exists() or (child / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("it lives on")
