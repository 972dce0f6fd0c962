"""A run's folder is one run's, whoever asks for it at the same time."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io import claims
from clip3dreid.io.claims import Claim
from clip3dreid.io.launch import launch
from tests.config.test_resumed import a_run


def test_of_many_that_ask_for_the_same_new_folder_at_once_each_gets_its_own(tmp_path: Path) -> None:
    found: list[Claim] = []
    ready = threading.Barrier(8)

    def ask() -> None:
        ready.wait()
        found.append(claims.make(tmp_path / "runs" / "now_seed1", next_free=True))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({claim.folder for claim in found}) == 8
    assert all(claim.folder.is_dir() for claim in found)


HOLDER = """
import sys
from pathlib import Path
from clip3dreid.io.claims import hold
print("ready", flush=True)
sys.stdin.readline()
held = hold(Path("runs/now_seed1"), "a run", [], next_free=True)
print(held.folder, flush=True)
sys.stdin.read()
held.release(False)
"""


def test_processes_that_start_in_the_same_second_hold_a_folder_each(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    pipes = [(one.stdin, one.stdout) for one in started]
    assert all(
        there is not None and back is not None and back.readline() == "ready\n" for there, back in pipes
    )
    for there, _ in pipes:
        assert there is not None
        there.write("now\n")
        there.flush()
    found = [back.readline().strip() for _, back in pipes if back is not None]
    assert [one.communicate()[1] for one in started] == [None] * 6
    name = "runs/now_seed1"
    assert sorted(found) == [name, *(f"{name}_{number}" for number in range(2, 7))]


def test_a_run_that_a_scheduler_starts_again_is_found_by_whatever_name_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    launch.cache_clear()
    try:
        claims.hold(tmp_path / "job-77_seed1", "a run", ["data=ltcc"], next_free=True).release(False)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        launch.cache_clear()
        now = tmp_path / "job-77_ce_resnet50_seed1"
        for arguments, folder in ((["data=ltcc"], tmp_path / "job-77_seed1"), (["data=prcc"], now)):
            again = claims.hold(now, "a run", arguments, next_free=True)
            again.release(False)
            assert again.folder == folder
    finally:
        launch.cache_clear()


def test_a_claim_that_nothing_came_of_is_taken_back_and_nobody_else_s_is(tmp_path: Path) -> None:
    precious = tmp_path / "logs"
    precious.mkdir()
    (precious / "mine.log").write_text("of last year")
    (precious / "notes").mkdir()
    claim = claims.make(precious, next_free=False)
    (precious / ".hydra").mkdir()
    (precious / ".hydra" / "config.yaml").write_text("")
    (precious / "train.log").write_text("")
    claim.discard()
    assert sorted(path.name for path in precious.rglob("*")) == ["mine.log", "notes"]
    new = claims.make(tmp_path / "a" / "b" / "c", next_free=True)
    (new.folder / "train.log").write_text("")
    new.discard()
    assert not (tmp_path / "a").exists()


def test_a_claim_that_something_came_of_is_left_alone(tmp_path: Path) -> None:
    claim = claims.make(tmp_path / "run", next_free=True)
    (claim.folder / "train.log").write_text("")
    (claim.folder / "results.json").write_text("{}")
    claim.discard()
    assert sorted(path.name for path in claim.folder.iterdir()) == ["results.json", "train.log"]


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a.log").write_text("kept")
    claim = claims.make(tmp_path / "run", next_free=True)
    (claim.folder / ".hydra").symlink_to(tmp_path / "precious")
    claim.discard()
    assert (tmp_path / "precious" / "a.log").read_text() == "kept"


def test_a_folder_that_holds_a_run_is_not_begun_again(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds a run already \(checkpoints/last.ckpt\).*resume="):
        claims.refuse_held(a_run(tmp_path / "run"))
    claims.refuse_held(tmp_path)
