import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.files import LOCK, at_work, atomic, write_json, write_text


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")

    def fail_half_way() -> None:
        with atomic(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": [1, "ü"]})
    assert json.loads((tmp_path / "a" / "b.json").read_text(encoding="utf-8")) == {"x": [1, "ü"]}


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"r1": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / "file" / "below.txt", "x")


HOLDER = """
import multiprocessing, sys, time
from clip3dreid.files import at_work
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
