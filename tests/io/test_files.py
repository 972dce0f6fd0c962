import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import hypothesis.strategies as st
import polars as pl
import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file

from clip3dreid.errors import InputError
from clip3dreid.io.files import (
    LOCK,
    UNFINISHED,
    at_work,
    atomic,
    close_stages,
    inside,
    open_stage,
    remove,
    staged,
    sweep,
    together,
    why_not_written,
    write_json,
    write_text,
)


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
from clip3dreid.io.files import at_work
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
        "import sys, time; from clip3dreid.io.files import at_work\n"
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


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with a file, a folder and a link of each kind to somebody else's."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious").write_text("kept")
    out = tmp_path / "out"
    (out / "real").mkdir(parents=True)
    (out / "real" / "file").write_text("ours")
    (out / "real" / "linked").symlink_to(tmp_path / "theirs")
    (out / "linked").symlink_to(tmp_path / "theirs")
    (out / "precious").symlink_to(tmp_path / "theirs" / "precious")
    (out / "broken").symlink_to(tmp_path / "nowhere")
    return out


THROUGH_LINKS = ["linked", "linked/precious", "linked/new/deep", "real/linked/precious", "precious", "broken"]


@pytest.mark.parametrize("path", THROUGH_LINKS)
def test_no_link_within_a_folder_is_followed(path: str, linked: Path, tmp_path: Path) -> None:
    stage = open_stage(tmp_path / "work")
    before = names(tmp_path)
    with pytest.raises(InputError, match="is a link"):
        inside(linked, path)
    with pytest.raises(InputError, match="is a link"):
        remove(linked, ["real/file", path])
    with pytest.raises(InputError, match="is a link"), staged(stage, linked, path) as temporary:
        temporary.write_text("ours")
    assert names(tmp_path) == before
    assert (tmp_path / "theirs" / "precious").read_text() == "kept"


@given(st.lists(st.sampled_from(["..", ".", "a", "b"]), min_size=1, max_size=6), st.booleans())
def test_no_path_leads_out_of_a_folder(parts: list[str], absolute: bool) -> None:
    path = PurePosixPath("/" if absolute else "", *parts)
    folder = Path("out")
    if absolute or ".." in parts:
        with pytest.raises(InputError, match="leads out of"):
            inside(folder, path)
    else:
        assert inside(folder, path).is_relative_to(folder)


def test_a_folder_that_is_a_link_itself_is_its_owners_choice(linked: Path, tmp_path: Path) -> None:
    assert inside(linked / "linked", "precious") == linked / "linked" / "precious"
    remove(linked / "linked", ["precious"])
    assert names(tmp_path / "theirs") == []


def test_removal_takes_the_files_on_the_list_and_the_folders_that_are_left_empty(tmp_path: Path) -> None:
    for path in ("a/b/1", "a/b/2", "a/mine", "c/3"):
        write_text(tmp_path / path, path)
    remove(tmp_path, ["a/b/1", "a/b/2", "c/3", "c/gone"])
    assert names(tmp_path) == ["a", "a/mine"]


def test_what_an_earlier_run_still_writes_takes_nobodys_place(tmp_path: Path) -> None:
    work, out = tmp_path / "out" / ".work", tmp_path / "out"
    old = open_stage(work)
    stages = [old]

    def write(meanwhile: bool) -> None:
        with staged(old, out, "a/old") as temporary:
            temporary.write_text("old")
            if meanwhile:
                stages.append(open_stage(work))

    for meanwhile in (True, False):
        with pytest.raises(InputError, match="cannot write"):
            write(meanwhile)
    new = stages[-1]
    with staged(new, out, "b/new") as temporary:
        temporary.write_text("new")
    close_stages(work)
    assert [path for path in names(out) if (out / path).is_file()] == ["b/new"]
    assert not work.exists()


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    stage, name = open_stage(tmp_path / ".work"), "x" * 251 + ".png"
    with staged(stage, tmp_path, name) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"


def test_a_stage_leaves_what_is_not_its_own(tmp_path: Path, linked: Path) -> None:
    work = tmp_path / "work"
    open_stage(work)
    (work / "run-of-mine").mkdir()
    (work / "run-aaaaaaaa").symlink_to(tmp_path / "theirs")
    close_stages(work)
    assert names(work) == ["run-aaaaaaaa", "run-of-mine"]
    assert names(tmp_path / "theirs") == ["precious"]
    with pytest.raises(InputError, match="is a link"):
        open_stage(linked / "linked")


def test_files_that_belong_together_take_their_places_together(tmp_path: Path) -> None:
    def save(generation: str, fails: bool) -> None:
        with together(tmp_path, "index") as folder:
            (folder / "data").write_text(generation)
            if fails:
                raise OSError(28, "No space left on device")
            (folder / "index").write_text(generation)

    save("1", fails=False)
    with pytest.raises(InputError, match=r"cannot write .*No space left on device; make room"):
        save("2", fails=True)
    assert {path: (tmp_path / path).read_text() for path in names(tmp_path)} == {"data": "1", "index": "1"}
    (tmp_path / UNFINISHED / "run-killed00").mkdir(parents=True)
    save("3", fails=False)
    assert {path: (tmp_path / path).read_text() for path in names(tmp_path)} == {"data": "3", "index": "3"}


@pytest.mark.parametrize("name", ["precious", "broken"])
def test_files_that_belong_together_are_not_written_through_links(
    name: str, linked: Path, tmp_path: Path
) -> None:
    before = names(tmp_path)

    def write() -> None:
        with together(linked, "index") as folder:
            (folder / name).write_text("ours")
            (folder / "index").write_text("ours")

    with pytest.raises(InputError, match="is a link"):
        write()
    assert names(tmp_path) == before


def test_litter_of_killed_writers_is_swept_and_nothing_else(tmp_path: Path) -> None:
    own = [".part-00001-abc_12xy.bin", ".index-aaaaaaaa.json"]
    others = [".part-00001-mine.bin", ".notes-aaaaaaaa.json", "part-00001.bin", ".lock", ".index.json"]
    for name in own + others:
        (tmp_path / name).write_text("")
    sweep(tmp_path, re.compile(r"part-\d{5}\.bin|index\.json").fullmatch)
    assert names(tmp_path) == sorted(others)


def write_parquet(path: Path) -> None:
    pl.DataFrame({"x": range(10_000)}).write_parquet(path)


def write_tensors(path: Path) -> None:
    save_file({"x": torch.zeros(10_000)}, path)


@pytest.mark.parametrize("write", [write_parquet, write_tensors])
def test_the_systems_reason_is_found_in_what_libraries_make_of_it(write, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from tests.io import test_files; from clip3dreid.io import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        f"with files.atomic(Path(sys.argv[1])) as path: test_files.{write.__name__}(path)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], capture_output=True, text=True, env=environment
    )
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith(f"cannot write {target}: File too large; make room, or choose another place")
    )
    assert names(tmp_path) == ["target"]
    assert target.read_text() == "old"
    assert why_not_written(ValueError("no system")) is None
