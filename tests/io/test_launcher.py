"""Further processes are started by the command that is given, in an environment that this process keeps clear of."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from clip3dreid.io.launch import ID, FurtherProcesses, launch
from clip3dreid.io.launcher import CommandLauncher, own_processes, start_by

SAY = """import os, sys
told = [os.environ[name] for name in {0}] + sys.argv[1:]
open(os.environ['LOCAL_RANK'], 'w').write(' '.join(told))"""
NAMES = ("WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", ID)


def test_each_process_is_started_by_the_command_with_its_rank_and_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*NAMES, "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch.cache_clear()
    before = dict(os.environ)
    others = FurtherProcesses((sys.executable, "-c", SAY.format(NAMES), "a=b c"), tmp_path)
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(launcher=_SubprocessScriptLauncher(LightningEnvironment(), 3, 1))
    )
    start_by(trainer, others, observed=False)
    launcher = trainer.strategy._launcher
    assert isinstance(launcher, CommandLauncher)
    assert launcher.launch(lambda: "done") == "done"
    assert [process.wait() for process in launcher.procs] == [0, 0]
    told = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert told == {rank: f"3 0 127.0.0.1 {launch().id} a=b c" for rank in ("1", "2")}
    assert dict(os.environ) == before
    launch.cache_clear()


def test_a_trainer_of_one_process_keeps_what_it_has() -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=None))
    start_by(trainer, None)
    assert not hasattr(trainer.strategy, "_launcher")


@pytest.mark.parametrize("ends", [False, True])
def test_a_process_that_goes_on_finds_its_environment_as_it_was(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with own_processes(ends=ends):
        monkeypatch.setenv("MASTER_PORT", "2")
        monkeypatch.setenv("WORLD_SIZE", "2")
    assert (os.environ["MASTER_PORT"], os.environ.get("WORLD_SIZE")) == (("2", "2") if ends else ("1", None))
