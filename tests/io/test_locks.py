import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io.locks import LOCK, at_work
from tests.io.test_files import names

HOLDER = """
import multiprocessing, sys, time
from clip3dreid.io.locks import at_work
with at_work(sys.argv[1], "a long task"):
    # A child of the holder, as a loader's worker is: it must not keep the lock when the holder is gone.
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    print(child.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that is at work in a folder, with a child."""
    folder = tmp_path / "shared"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process, folder
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)
    process.stdout.close()


def test_a_folder_in_use_is_refused_with_the_name_of_who_is_at_work(
    holder: tuple[subprocess.Popen[str], Path],
) -> None:
    process, folder = holder
    with (
        pytest.raises(InputError, match=rf"in use: process {process.pid} .*a long task"),
        at_work(folder, "x"),
    ):
        pass


def test_a_lock_dies_with_its_owner_though_a_child_of_it_lives_on(
    holder: tuple[subprocess.Popen[str], Path],
) -> None:
    process, folder = holder
    process.kill()
    process.wait()
    with at_work(folder, "another task"):
        assert "another task" in (folder / LOCK).read_text()
    assert (folder / LOCK).read_text() == ""


def test_who_waits_gets_the_folder_when_it_is_free(
    holder: tuple[subprocess.Popen[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    process, folder = holder
    start = time.monotonic()
    threading.Timer(0.7, process.kill).start()
    with caplog.at_level("INFO"), at_work(folder, "x", wait=True):
        assert time.monotonic() - start >= 0.7
    assert "waiting" in caplog.text


def test_a_full_disk_has_room_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with at_work(tmp_path, "x"):
        pass


def test_a_folder_that_is_given_away_keeps_no_lock(tmp_path: Path) -> None:
    with at_work(tmp_path, "x", tidy=True):
        assert names(tmp_path) == [LOCK]
    assert names(tmp_path) == []


def test_a_folder_that_nothing_came_of_is_removed_again(tmp_path: Path) -> None:
    def fail(folder: Path, name: str | None) -> None:
        with at_work(folder, "x"):
            if name:
                (folder / name).write_text("kept")
            raise KeyboardInterrupt

    (tmp_path / "old").mkdir()
    for folder, name in (("new", None), ("filled", "file"), ("old", None)):
        with pytest.raises(KeyboardInterrupt):
            fail(tmp_path / folder, name)
    assert names(tmp_path) == ["filled", "filled/.lock", "filled/file", "old", "old/.lock"]


def test_who_waited_for_a_folder_that_was_removed_has_a_lock_of_its_own(tmp_path: Path) -> None:
    """The holder fails and removes the folder, with the file that the other has opened."""
    code = (
        "import sys, time; from clip3dreid.io.locks import at_work\n"
        "with at_work(sys.argv[1], 'x', wait=True):\n"
        "    print('there', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "new"
    waiting: list[subprocess.Popen[str]] = []

    def fail() -> None:
        with at_work(folder, "fails"):
            command = [sys.executable, "-c", code, str(folder)]
            waiting.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            descriptors = Path(f"/proc/{waiting[0].pid}/fd")
            while not any(path.resolve() == (folder / LOCK).resolve() for path in descriptors.iterdir()):
                time.sleep(0.01)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    with waiting[0] as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        with pytest.raises(InputError, match=f"in use: process {other.pid}"), at_work(folder, "y"):
            pass
        other.stdin.close()


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="cannot write"), at_work(tmp_path / "folder", "x"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_process_may_work_in_a_folder_again_but_not_twice_at_once(tmp_path: Path) -> None:
    for _ in range(2):
        with at_work(tmp_path, "x"):
            pass
    with (
        at_work(tmp_path, "x"),
        pytest.raises(RuntimeError, match="this very process"),
        at_work(tmp_path, "y"),
    ):
        pass
