"""Writing, resuming and refusing, with a renderer that paints a number: what is drawn does not matter here."""

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from clip3dreid.errors import InputError
from clip3dreid.io.formats import CHECKSUM, seal
from clip3dreid.io.staging import open_stage
from clip3dreid.synthetic import writing
from clip3dreid.synthetic.plan import Plan, PlannedPicture
from clip3dreid.synthetic.writing import CHUNK, RenderedImage, Renderer, WorldReport, WorldSpec, write
from tests.processes import PATIENCE_S, await_end
from tests.small_disk import fill, small_disk

PICTURES = 3 * CHUNK + 2
CONFIG = {"seed": 7, "layout": {"cameras": 2}}


def plan(pictures: int = PICTURES, suffix: str = ".png") -> Plan:
    return Plan(
        tuple(
            PlannedPicture(
                f"{'train' if i % 2 else 'test'}/{i:04d}{suffix}",
                *("train" if i % 2 else "test", "train" if i % 2 else "gallery", i % 5, 0, 0, i),
                *(str(i % 5), "1_1", "1"),
            )
            for i in range(pictures)
        ),
        {"info/list.txt": "1\n"},
    )


class Painter:
    """Paints a picture's place, and can die or fail at a place, or wait at each."""

    def __init__(self, dies_at: int = -1, fails_at: int = -1, wait: float = 0) -> None:
        self.dies_at, self.fails_at, self.wait = dies_at, fails_at, wait

    def __call__(self, places: Sequence[int]) -> list[RenderedImage]:
        return [self.paint(place) for place in places]

    def paint(self, place: int) -> RenderedImage:
        time.sleep(self.wait)
        if place == self.dies_at:
            os._exit(9)
        if place == self.fails_at:
            raise ZeroDivisionError(f"no picture {place}")
        buffer = io.BytesIO()
        noise = np.random.default_rng([7, place]).integers(0, 256, (8, 4, 3), np.uint8)
        Image.fromarray(noise).save(buffer, "PNG")
        # Half of the chunks know no pose at all.
        return RenderedImage(buffer.getvalue(), {"pose": None if place // CHUNK % 2 else [place / 10.0]})


def finish(table: pl.DataFrame) -> pl.DataFrame:
    return table.rename({"place": "number"})


def spec(config: dict[str, Any] | None = None, pictures: int = PICTURES, **painter: Any) -> WorldSpec:
    renderer: Any = functools.partial(Painter, **painter)
    return WorldSpec(plan(pictures), renderer, 8, 4, config or CONFIG, {"torch": "1"}, finish)


def held(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("worlds") / "world"
    assert write(spec(), out, workers=0) == WorldReport(PICTURES, PICTURES)
    return out


def interrupted(out: Path, at: int = 2 * CHUNK + 1) -> Path:
    with pytest.raises(ZeroDivisionError, match=f"no picture {at}"):
        write(spec(fails_at=at), out, workers=0)
    return out


def test_a_world_is_its_pictures_its_lists_its_truth_and_its_description(world: Path) -> None:
    files = held(world)
    assert set(files) == {p.path for p in plan().pictures} | {"info/list.txt", "truth.parquet", "world.json"}
    facts = json.loads(files["world.json"])
    assert facts["complete"] is True
    assert facts["config"] == CONFIG
    assert facts["files"] == sorted(files)
    assert facts["counts"] == {
        "test/gallery": {"pictures": 25, "people": 5},
        "train/train": {"pictures": 25, "people": 5},
    }


def test_the_truth_has_a_row_for_each_picture_in_plan_order_whatever_its_chunk_lacks(world: Path) -> None:
    truth = pl.read_parquet(world / "truth.parquet")
    assert truth["number"].to_list() == list(range(PICTURES))
    assert truth["pose"].to_list()[: CHUNK + 1] == [[i / 10] for i in range(CHUNK)] + [None]


def test_the_bytes_do_not_depend_on_the_workers(world: Path, tmp_path: Path) -> None:
    write(spec(), tmp_path / "w", workers=2)
    assert held(tmp_path / "w") == held(world)


def test_a_complete_world_is_left_alone(world: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    assert write(spec(dies_at=0), world, workers=0) == WorldReport(PICTURES, 0)
    assert times == {path: path.stat().st_mtime_ns for path in world.rglob("*")}


def test_an_interrupted_world_goes_on_with_the_missing_chunks_only(world: Path, tmp_path: Path) -> None:
    out = interrupted(tmp_path / "w")
    assert json.loads((out / "world.json").read_text())["complete"] is False
    first = out / plan().pictures[0].path
    before = first.stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    report = write(spec(), out, workers=0, progress=lambda *done: calls.append(done))
    assert report == WorldReport(PICTURES, PICTURES - 2 * CHUNK)
    assert calls == [(2 * CHUNK, PICTURES), (3 * CHUNK, PICTURES), (PICTURES, PICTURES)]
    assert first.stat().st_mtime_ns == before
    assert held(out) == held(world)


def test_a_picture_that_was_removed_meanwhile_is_drawn_again(world: Path, tmp_path: Path) -> None:
    out = interrupted(tmp_path / "w")
    (out / plan().pictures[3].path).unlink()
    assert write(spec(), out, workers=0).rendered == PICTURES - CHUNK
    assert held(out) == held(world)


SLOW = """
import functools
from pathlib import Path
from tests.synthetic.test_writing import spec
from clip3dreid.synthetic.writing import write
if __name__ == "__main__":
    write(spec(pictures=200, wait=0.01), Path("w"), workers=2, progress=lambda *done: print(*done, flush=True))
"""


@contextlib.contextmanager
def slow(tmp_path: Path, wait_for: int = CHUNK) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes a world of 200 pictures with two workers, from when so many are there."""
    with subprocess.Popen(
        [sys.executable, "slow.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if int(line.split()[0]) >= wait_for:
                break
        yield run


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_whole_files_only_and_is_continued(signal_number: int, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    with slow(tmp_path) as run:
        run.send_signal(signal_number)
        run.wait(PATIENCE_S)
    out = tmp_path / "w"
    # The workers notice that their parent is gone; what they were writing comes to an end.
    await_end(run.pid)
    for path in out.rglob("*.png"):
        if ".world" not in path.parts:
            Image.open(path).load()
    assert not (out / "truth.parquet").exists()
    report = write(spec(pictures=200), out, workers=0)
    assert 0 < report.rendered < 200
    write(spec(pictures=200), tmp_path / "whole", workers=0)
    assert held(out) == held(tmp_path / "whole")


def test_a_worker_that_is_killed_is_told_in_a_line(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a process at work was killed.*workers=2"):
        write(spec(dies_at=2 * CHUNK), tmp_path / "w", workers=2)
    write(spec(), tmp_path / "w", workers=0)
    assert held(tmp_path / "w") == held(world)


def test_the_error_of_a_worker_surfaces_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="no picture 20"):
        write(spec(fails_at=20), tmp_path / "w", workers=2)


def test_an_unfinished_world_of_other_settings_or_versions_is_refused(tmp_path: Path) -> None:
    out = interrupted(tmp_path / "w")
    before = held(out)
    other = spec({"seed": 8, "layout": {"cameras": 2}})
    with pytest.raises(InputError, match=r"another world: seed is 7 there and 8 here; .*overwrite=true"):
        write(other, out, workers=0)
    newer = WorldSpec(plan(), Painter, 8, 4, CONFIG, {"torch": "2"}, finish)
    with pytest.raises(InputError, match=r"torch is 1 there and 2 here"):
        write(newer, out, workers=0)
    assert held(out) == before


def test_a_complete_world_is_left_alone_whatever_versions_made_it(world: Path) -> None:
    newer = WorldSpec(plan(), Painter, 8, 4, CONFIG, {"torch": "2"}, finish)
    assert write(newer, world, workers=0).rendered == 0


def test_a_world_that_lost_a_picture_is_refused(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "w"
    shutil.copytree(world, out)
    (out / "train/0001.png").unlink()
    with pytest.raises(InputError, match=r"1 of its files are gone, such as train/0001\.png"):
        write(spec(), out, workers=0)


def test_overwrite_replaces_a_world_and_leaves_none_of_its_files(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "w"
    shutil.copytree(world, out)
    (out / ".notes").write_text("mine")
    config = CONFIG | {"seed": 8}
    smaller = spec(config, pictures=4)
    write(smaller, out, workers=0, overwrite=True)
    assert set(held(out)) == set(smaller.files) | {".notes"}
    assert (out / ".notes").read_text() == "mine"


def test_overwrite_removes_folders_that_it_empties(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "w"
    shutil.copytree(world, out)
    one = WorldSpec(plan(1), Painter, 8, 4, CONFIG, {"torch": "1"}, finish)
    write(one, out, workers=0, overwrite=True)
    assert not (out / "train").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_holds_something_else_is_never_touched(overwrite: bool, tmp_path: Path) -> None:
    out = tmp_path / "w"
    (out / "train").mkdir(parents=True)
    (out / "train/0001.png").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(train/0001\.png\)"):
        write(spec(), out, workers=0, overwrite=overwrite)
    assert held(out) == {"train/0001.png": b"mine"}


def test_overwrite_refuses_a_world_with_other_files_among_its_own(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "w"
    shutil.copytree(world, out)
    (out / "train/mine.png").write_text("mine")
    before = held(out)
    with pytest.raises(InputError, match=r"1 files that are not of the world there \(train/mine\.png\)"):
        write(spec({"seed": 9}), out, workers=0, overwrite=True)
    assert held(out) == before


@pytest.mark.parametrize("text", ["", "[]", '{"complete": true}', "not json"])
def test_a_description_of_something_else_is_no_world(text: str, tmp_path: Path) -> None:
    out = tmp_path / "w"
    out.mkdir()
    (out / "world.json").write_text(text)
    with pytest.raises(InputError, match="something else"):
        write(spec(), out, workers=0, overwrite=True)
    assert (out / "world.json").read_text() == text


def test_a_list_that_points_out_of_the_folder_removes_nothing_there(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "w"
    shutil.copytree(world, out)
    (tmp_path / "mine.txt").write_text("mine")
    facts = json.loads((out / "world.json").read_text())
    del facts[CHECKSUM]
    hostile = facts | {"files": [*facts["files"], "../mine.txt"]}
    (out / "world.json").write_text(json.dumps(seal(hostile)))
    write(spec({"seed": 9}), out, workers=0, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_world_of_another_version_is_told_so(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "w"
    shutil.copytree(world, out)
    facts = json.loads((out / "world.json").read_text())
    (out / "world.json").write_text(json.dumps(facts | {"version": 0}))
    with pytest.raises(InputError, match=r"its version is 0, this program writes 1"):
        write(spec(), out, workers=0)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        write(spec(), tmp_path / "w", workers=0, overwrite=True)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = int(PICTURES * (3 * 8 * 4 + writing.BYTES_OF_TRUTH)) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, free))
    with pytest.raises(InputError, match=r"up to 0\.1 MB are needed for 50 pictures, 0\.1 MB are free"):
        write(spec(), tmp_path / "new" / "w", workers=0)
    assert not (tmp_path / "new").exists()


def test_a_disk_too_full_for_the_new_world_leaves_the_old_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "w"
    shutil.copytree(world, out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 0))
    with pytest.raises(InputError, match="too full"):
        write(spec({"seed": 9}), out, workers=0, overwrite=True)
    assert held(out) == held(world)
    # What is replaced makes room.
    assert write(spec({"seed": 9}, pictures=2), out, workers=0, overwrite=True).rendered == 2


def test_only_the_missing_pictures_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = interrupted(tmp_path / "w")
    free = (PICTURES - 2 * CHUNK) * (3 * 8 * 4 + writing.BYTES_OF_TRUTH)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, free))
    assert write(spec(), out, workers=0).pictures == PICTURES


def test_a_disk_that_fills_up_meanwhile_is_told_and_the_run_goes_on_later(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes, written = Path.write_bytes, []

    def full(path: Path, data: bytes) -> int:
        written.append(path)
        # The description and the list come before the pictures.
        if len(written) > 22:
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match=r"cannot write .*0020\.png: No space left on device"):
            write(spec(), tmp_path / "w", workers=0)
    write(spec(), tmp_path / "w", workers=0)
    assert held(tmp_path / "w") == held(world)


def test_what_a_killed_run_was_just_writing_is_swept_away(world: Path, tmp_path: Path) -> None:
    out = interrupted(tmp_path / "w")
    (stage,) = (path for path in (out / ".world").iterdir() if path.is_dir())
    (stage / "1-0042.png").write_text("half")
    with contextlib.suppress(ZeroDivisionError):
        write(spec(fails_at=PICTURES - 1), out, workers=0)
    assert not stage.exists()


def test_negative_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers=-1"):
        write(spec(), tmp_path / "w", workers=-1)


def test_the_fingerprint_follows_the_values_and_not_their_order() -> None:
    assert writing.fingerprint({"a": 1, "b": [2]}) == writing.fingerprint({"b": [2], "a": 1})
    assert writing.fingerprint({"a": 1}) != writing.fingerprint({"a": 2})


def test_an_artist_is_made_once_in_a_process(tmp_path: Path) -> None:
    made: list[int] = []

    def renderer() -> Renderer:
        made.append(1)
        return Painter()

    write(WorldSpec(plan(), renderer, 8, 4, CONFIG, {}, finish), tmp_path / "w", workers=0)
    assert made == [1]


def linked(tmp_path: Path) -> Path:
    """A folder of somebody's, with all kinds of files in it."""
    precious = tmp_path / "precious"
    (precious / "run-abcdefgh").mkdir(parents=True)
    for name in (".bashrc", "part-1.png", "chunk-000000.parquet", "0001.png", "run-abcdefgh/thesis.tex"):
        (precious / name).write_text("mine")
    return precious


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", [".world", "train", "train/0001.png", "info", "world.json"])
def test_nothing_is_written_or_removed_through_a_link(place: str, overwrite: bool, tmp_path: Path) -> None:
    precious = linked(tmp_path)
    before = held(precious)
    out = interrupted(tmp_path / "w")
    if (out / place).is_dir():
        shutil.rmtree(out / place)
        (out / place).symlink_to(precious)
    else:
        (out / place).replace(precious / "moved")
        before["moved"] = (precious / "moved").read_bytes()
        (out / place).symlink_to(precious / "moved")
    config = CONFIG | {"seed": 8} if overwrite else CONFIG
    # A picture that is a link is there, and is left as it is.
    with contextlib.suppress(InputError):
        write(spec(config), out, workers=0, overwrite=overwrite)
        assert (place, overwrite) == ("train/0001.png", False)
    assert held(precious) == before
    assert (out / place).is_symlink()


def test_a_link_in_a_new_folder_is_something_else(tmp_path: Path) -> None:
    precious = linked(tmp_path)
    before = held(precious)
    for place in ("train", "info"):
        out = tmp_path / place
        out.mkdir()
        (out / place).symlink_to(precious)
        with pytest.raises(InputError, match=f"holds something else \\({place}\\)"):
            write(spec(), out, workers=0)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / ".world").symlink_to(precious)
    with pytest.raises(InputError, match=r"w/\.world is a link.*move it away"):
        write(spec(), tmp_path / "w", workers=0)
    assert held(precious) == before


def test_the_folder_itself_may_be_a_link_to_a_large_disk(world: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "w").symlink_to(tmp_path / "disk")
    write(spec({"seed": 8}), tmp_path / "w", workers=0)
    write(spec(), tmp_path / "w", workers=0, overwrite=True)
    assert held(tmp_path / "disk") == held(world)
    assert (tmp_path / "w").is_symlink()


def test_a_working_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    out = interrupted(tmp_path / "w")
    (out / ".world" / "notes.txt").write_text("mine")
    before = held(out)
    for config, overwrite in ((CONFIG, False), (CONFIG | {"seed": 8}, True)):
        with pytest.raises(InputError, match=r"\.world holds something else \(notes\.txt\); move it away"):
            write(spec(config), out, workers=0, overwrite=overwrite)
    assert held(out) == before


@pytest.mark.slow
def test_a_folder_where_another_process_writes_is_refused_and_that_one_ends_well(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    with slow(tmp_path) as run:
        for overwrite in (False, True):
            with pytest.raises(InputError, match=rf"in use: process {run.pid} on .* \(writes a world\)"):
                write(spec(pictures=200), tmp_path / "w", workers=0, overwrite=overwrite)
        assert run.wait(PATIENCE_S) == 0
    write(spec(pictures=200), tmp_path / "whole", workers=0)
    assert held(tmp_path / "w") == held(tmp_path / "whole")
    assert write(spec(pictures=200), tmp_path / "w", workers=0).rendered == 0


def test_a_worker_that_outlived_its_parent_puts_nothing_into_the_next_world(
    world: Path, tmp_path: Path
) -> None:
    """Stopped when its parent is killed, it wakes when another world is there."""
    (tmp_path / "slow.py").write_text(SLOW)
    with slow(tmp_path) as run:
        with pytest.raises(InputError, match=rf"in use: process {run.pid} on .* \(writes a world\)"):
            write(spec(pictures=200), tmp_path / "w", workers=0)
        workers = children(run.pid)
        assert len(workers) >= 2
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        run.kill()
        run.wait()
    other = spec({"seed": 8}, pictures=250)
    write(other, tmp_path / "w", workers=0, overwrite=True)
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    while any(alive(worker) for worker in workers):
        time.sleep(0.01)
    write(other, tmp_path / "whole", workers=0)
    assert held(tmp_path / "w") == held(tmp_path / "whole")


def test_what_was_written_to_a_stage_that_is_gone_takes_nobodys_place(tmp_path: Path) -> None:
    job = writing._ChunkJob(spec(), tmp_path, open_stage(tmp_path / ".world"))
    open_stage(tmp_path / ".world")
    with pytest.raises(InputError, match="cannot write"):
        job(0)
    assert not held(tmp_path)


def test_a_run_killed_while_it_tidied_up_is_tidied_up_after(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "w"
    shutil.copytree(world, out)
    open_stage(out / ".world")
    (out / ".world" / "chunk-000001.parquet").write_text("old")
    assert write(spec(), out, workers=0).rendered == 0
    assert not (out / ".world").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*file/w"):
        write(spec(), tmp_path / "file" / "w", workers=0)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(InputError, match=r"cannot write .*Read-only file system"):
        write(spec(), tmp_path / "w", workers=0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_fills_up_for_real_is_one_line_and_the_run_goes_on(
    workers: int, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 600) as disk:
        out = disk / "w"
        with monkeypatch.context() as patch:
            # As if another program filled it after the check.
            patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 10**9))
            filler = fill(disk, leave=120_000)
            with pytest.raises(InputError, match=r"cannot write .*No space left on device"):
                write(spec(), out, workers=workers)
        filler.unlink()
        assert write(spec(), out, workers=workers).rendered > 0
        assert held(out) == held(world)


@pytest.mark.slow
def test_a_run_killed_ten_times_and_started_again_at_once_ends_as_if_undisturbed(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW.replace("wait=0.01", "wait=0.002"))
    rng = np.random.default_rng(3)
    for _ in range(10):
        with slow(tmp_path, wait_for=0) as run:
            time.sleep(rng.uniform(0, 0.3))
            run.kill()
            run.wait()
    write(spec(pictures=200), tmp_path / "w", workers=2)
    write(spec(pictures=200), tmp_path / "whole", workers=0)
    assert held(tmp_path / "w") == held(tmp_path / "whole")
