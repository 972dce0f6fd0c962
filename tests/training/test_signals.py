"""A run that is told to end ends, in all of its processes, and says how to go on."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from clip3dreid.training.signals import Stopped, StopWatch, requeue
from tests.conftest import TINY
from tests.processes import PATIENCE_S


def watch(folder: Path) -> StopWatch:
    return StopWatch(folder, "command resume=run")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_outside_of_training_a_signal_ends_the_process_with_the_status_of_that_signal(
    signum: int, tmp_path: Path
) -> None:
    def told() -> None:
        with watch(tmp_path):
            os.kill(os.getpid(), signum)
            time.sleep(5)

    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stopped:
        told()
    assert stopped.value.code == 128 + signum
    assert signal.getsignal(signum) is before


def test_a_first_process_that_fails_says_why_itself_and_not_that_those_it_told_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[object] = []
    # As long as it takes to tell the others, who end at once.
    monkeypatch.setattr(StopWatch, "_part", lambda self, error: time.sleep(1))
    monkeypatch.setattr(StopWatch, "_leave", lambda self, line, status: left.append(line))

    def fails() -> None:
        with watch(tmp_path) as one:
            child = SimpleNamespace(poll=lambda: 1 if one._parting else None)
            one._launcher = SimpleNamespace(procs=[child])
            time.sleep(0.3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert left == []


def test_in_training_it_waits_for_the_batch_and_a_second_ctrl_c_does_not(tmp_path: Path) -> None:
    with watch(tmp_path) as one:
        one.training_begins()
        os.kill(os.getpid(), signal.SIGINT)
        assert one.told == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_first_ctrl_c_that_the_thread_hears_before_the_handler_runs_waits_for_the_batch(
    tmp_path: Path,
) -> None:
    with watch(tmp_path) as one:
        one.training_begins()
        # As in a long step: the main thread is told late, because another one gets the signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(2)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        assert one.told == signal.SIGINT


def test_what_was_ignored_before_still_is(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with watch(tmp_path) as one:
            os.kill(os.getpid(), signal.SIGHUP)
            assert one.told is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_requests_for_requeueing_are_heeded_under_slurm_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert signal.SIGUSR1 not in StopWatch._heeded()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert signal.SIGUSR1 in StopWatch._heeded()


def test_slurm_is_asked_to_start_the_job_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue()
    assert (tmp_path / "asked").read_text() == "requeue 77\nrequeue 70_3\n"
    scontrol.write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    assert not requeue()
    scontrol.unlink()
    monkeypatch.setenv("PATH", str(scontrol.parent))
    assert not requeue()


@pytest.mark.parametrize("again", [True, False])
def test_a_sweep_which_would_begin_anew_is_not_requeued(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr("clip3dreid.training.signals.requeue", lambda: asked.append(True))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(Stopped), StopWatch(tmp_path, "command", again).reporting():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert asked == [True] * again


def test_a_worker_of_a_loader_leaves_the_decision_to_the_process_that_started_it(tmp_path: Path) -> None:
    with watch(tmp_path) as one:
        one.training_begins()
        loader = DataLoader(TensorDataset(torch.arange(8)), num_workers=1, persistent_workers=True)
        iterator = iter(loader)
        next(iterator)
        os.kill(iterator._workers[0].pid, signal.SIGINT)  # as a terminal sends it to all
        os.kill(iterator._workers[0].pid, signal.SIGHUP)
        assert len(list(iterator)) == 7
        assert one.told is None


BLOCKED = """
import os, signal, sys, threading
from pathlib import Path
from clip3dreid.training import signals
signals.GRACE_S = 1.0
read, _ = os.pipe()
with signals.StopWatch(Path(sys.argv[1]), "command resume=run") as watch:
    watch.training_begins()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    import ctypes
    # As a collective that waits for a process that is gone: C code, in which Python runs no handler.
    while True:
        ctypes.CDLL(None).sleep(1000)
"""


def test_a_process_that_waits_for_ever_ends_all_the_same_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; go on with command resume=run" in done.stderr


def test_a_run_that_has_saved_nothing_recommends_no_resume(tmp_path: Path) -> None:
    one = watch(tmp_path)
    one.told = signal.SIGTERM
    assert one._farewell() == "stopped by SIGTERM; nothing is saved yet: start it again"


# Two processes.


class Pair:
    """A training in two processes, started as Lightning does or by torchrun."""

    def __init__(self, folder: Path, root: Path, *arguments: str, launcher: str = "lightning") -> None:
        self.folder, self.log = folder, folder / "run.log"
        module = ["-m", "clip3dreid.train"]
        if launcher == "torchrun":
            module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *module]
        command = [
            sys.executable, *module, "data=ltcc", f"data.root={root}", *TINY, "datamodule.workers=1", "epochs=2000",
            "trainer.devices=2", "trainer.strategy=ddp", "model.student.ghost_group=4", *arguments,
        ]  # fmt: skip
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def wait_for(self, text: str) -> None:
        while text not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            time.sleep(0.05)

    def ranks(self) -> list[int]:
        """Processes of the run, by rank."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = dict(
                    part.split("=", 1) for part in (entry / "environ").read_text().split("\0") if "=" in part
                )
                status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_text()
                # As the first one was started, and as it starts the others.
                is_training = "clip3dreid.train" in command or "clip3dreid\0train" in command
            except (OSError, ValueError, UnicodeDecodeError):
                continue
            if int(status[3]) == self.process.pid and is_training and status[0] != "Z":
                parent = int(status[1])
                found[int(entry.name)] = (environment.get("LOCAL_RANK", "0"), parent)
        # Loaders' workers have a rank's process as their parent.
        own = {
            pid: rank
            for pid, (rank, parent) in found.items()
            if parent not in found or found[parent][0] != rank
        }
        return [pid for pid, _ in sorted(own.items(), key=lambda item: (int(item[1]), item[0]))]

    def alive(self) -> bool:
        done = subprocess.run(["pgrep", "-s", str(self.process.pid)], capture_output=True, check=False)
        return done.returncode == 0

    def ended_within(self, seconds: float) -> int:
        """Status of the first process, once all of the session are gone."""
        status = self.process.wait(seconds)
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.1)
        assert not self.alive(), "processes are left"
        return status

    def end(self) -> None:
        subprocess.run(["pkill", "-9", "-s", str(self.process.pid)], check=False)
        self.process.wait()


# Ten times the minute that is promised: a busy machine is slow, and a hang is for ever.
LIMIT = PATIENCE_S


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_whichever_process_is_told_both_end_with_a_checkpoint(
    rank: int, signum: int, ltcc_root: Path, tmp_path: Path
) -> None:
    pair = Pair(tmp_path, ltcc_root, "hydra.run.dir=run")
    try:
        pair.wait_for("epoch 2 of")
        os.kill(pair.ranks()[rank], signum)
        assert pair.ended_within(LIMIT) == 128 + signum
        assert "saved; go on with clip3dreid train resume=" in pair.log.read_text(errors="replace")
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    finally:
        pair.end()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_whichever_process_dies_the_other_ends_too(rank: int, ltcc_root: Path, tmp_path: Path) -> None:
    pair = Pair(tmp_path, ltcc_root, "hydra.run.dir=run")
    try:
        pair.wait_for("epoch 2 of")
        os.kill(pair.ranks()[rank], signal.SIGKILL)
        assert pair.ended_within(LIMIT) != 0
    finally:
        pair.end()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_told_before_they_have_met_both_end(rank: int, ltcc_root: Path, tmp_path: Path) -> None:
    pair = Pair(tmp_path, ltcc_root, "hydra.run.dir=run")
    try:
        while len(pair.ranks()) < 2:
            assert pair.process.poll() is None
            time.sleep(0.02)
        os.kill(pair.ranks()[rank], signal.SIGTERM)
        assert pair.ended_within(LIMIT) != 0
        assert "resume=" not in pair.log.read_text(errors="replace")
    finally:
        pair.end()


@pytest.mark.slow
def test_under_torchrun_all_processes_use_one_folder_and_a_restart_goes_on_there(
    ltcc_root: Path, tmp_path: Path
) -> None:
    pair = Pair(tmp_path, ltcc_root, "run_name=together", launcher="torchrun")
    try:
        pair.wait_for("epoch 2 of")
        runs = list((tmp_path / "runs" / "together").iterdir())
        assert len(runs) == 1
        # The first process alone lists the data, and leaves its listing to the others.
        assert list((runs[0] / ".shared").glob("manifest-*.parquet"))
        os.kill(pair.process.pid, signal.SIGTERM)
        assert pair.ended_within(LIMIT) != 0
        assert (runs[0] / "checkpoints" / "last.ckpt").is_file()
        assert len(list((tmp_path / "runs" / "together").iterdir())) == 1
    finally:
        pair.end()


@pytest.mark.slow
def test_slurm_s_signal_saves_and_requeues_and_the_restart_goes_on_in_the_same_folder(
    ltcc_root: Path, tmp_path: Path
) -> None:
    """SLURM is played here: two tasks of a step, its environment, and a `scontrol` that notes what it is asked."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    step = {
        "SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_STEP_ID": "0", "SLURM_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1", "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
    }  # fmt: skip

    def srun(attempt: int, log: str, epochs: int) -> list[subprocess.Popen[bytes]]:
        restart = {"SLURM_RESTART_COUNT": str(attempt)} if attempt else {}
        command = [
            sys.executable, "-m", "clip3dreid.train", "data=ltcc", f"data.root={ltcc_root}", *TINY, "run_name=job",
            f"epochs={epochs}", "trainer.devices=2", "trainer.strategy=ddp", "model.student.ghost_group=4",
        ]  # fmt: skip
        found = []
        for rank in "01":
            with (tmp_path / f"{log}{rank}").open("wb") as file:
                found.append(
                    subprocess.Popen(
                        command, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                        env=os.environ | step | restart | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
                    )
                )  # fmt: skip
        return found

    def said(log: str) -> str:
        return (tmp_path / f"{log}0").read_text(errors="replace")

    tasks = srun(0, "first", 2000)
    while "epoch 2 of" not in said("first"):
        assert {task.poll() for task in tasks} == {None}, said("first")[-3000:]
        time.sleep(0.05)
    tasks[1].send_signal(signal.SIGUSR1)
    assert [task.wait(LIMIT) for task in tasks] == [128 + signal.SIGUSR1] * 2
    assert (tmp_path / "asked").read_text() == "requeue 4242\n"
    # The same command, as SLURM repeats it: it goes on without being told.
    tasks = srun(1, "second", 2000)
    while "epoch " not in said("second").partition("folder ")[2]:
        assert {task.poll() for task in tasks} == {None}, said("second")[-3000:]
        time.sleep(0.05)
    assert "going on after" in said("second")
    tasks[0].send_signal(signal.SIGTERM)
    assert [task.wait(LIMIT) for task in tasks] == [128 + signal.SIGTERM] * 2
    assert [path.name for path in (tmp_path / "runs" / "job").iterdir()] == ["job-4242_ce_resnet18_seed1"]
