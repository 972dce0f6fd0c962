"""OpenCV's threads are the host program's to set."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import cv2
import pytest

from clip3dreid.io.opencv import one_thread
from tests.processes import PATIENCE_S


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    yield
    cv2.setNumThreads(before)


def test_importing_leaves_the_number_of_threads_and_the_environment_alone() -> None:
    # In one process, one after the other: whichever is at fault is the last that the traceback knows.
    code = """
import importlib, os
# What others do when they are imported is not ours.
import cv2, polars, lightning
cv2.setNumThreads(3)
before = dict(os.environ)
for module in ("clip3dreid.data.images", "clip3dreid.synthetic.synthesis", "clip3dreid.data.datamodule"):
    importlib.import_module(module)
    assert cv2.getNumThreads() == 3, module
    assert {**os.environ} == before, module
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr


def test_small_pictures_are_worked_on_by_one_thread_and_the_setting_comes_back() -> None:
    with one_thread:
        assert cv2.getNumThreads() == 1
        with one_thread:
            assert cv2.getNumThreads() == 1
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == 3


def test_threads_that_overlap_bring_back_what_was_set_before_the_first() -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with one_thread:
            entered.set()
            leave.wait(PATIENCE_S)

    other = threading.Thread(target=work)
    other.start()
    entered.wait(PATIENCE_S)
    with one_thread:
        leave.set()
        other.join()
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == 3
