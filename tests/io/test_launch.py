"""How a process was started is found out from what its launcher leaves in the environment."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io import launch
from tests.processes import PATIENCE_S

Started = Callable[..., launch.Launch]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    """Sets the environment of a launch."""

    def set_to(**environment: str) -> launch.Launch:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in (
                launch.ID,
                "LOCAL_RANK",
                "RANK",
                "WORLD_SIZE",
                "NODE_RANK",
            ):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        launch.launch.cache_clear()
        return launch.launch()

    yield set_to
    launch.launch.cache_clear()


def test_slurm_s_processes_share_a_name_and_its_restarts_are_counted(started: Started) -> None:
    step = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
    first, second = (
        started(**step, SLURM_PROCID="0"),
        started(**step, SLURM_PROCID="1", SLURM_RESTART_COUNT="2"),
    )
    assert first == ("job-77", 0, 2, 0, "job-77")
    assert second == ("job-77", 1, 2, 2, "job-77")
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "4"}
    assert started(**step | array | {"SLURM_STEP_ID": "3"}, SLURM_PROCID="0").name == "job-70-4.3"
    # In an interactive allocation, or in a batch script without srun, a command is a command.
    assert started(**step, SLURM_PROCID="0", SLURM_JOB_NAME="bash").name is None
    assert started(SLURM_JOB_ID="77").name is None


def test_nodes_that_are_started_one_by_one_are_refused(started: Started) -> None:
    with pytest.raises(InputError, match="torchrun or srun"):
        started(NODE_RANK="1", MASTER_ADDR="localhost")


def test_a_run_alone_is_a_launch_of_its_own_and_its_children_belong_to_it(started: Started) -> None:
    alone = started()
    assert alone.first
    assert alone.name is None
    assert alone.processes == 1
    environment = {launch.ID: alone.id, "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    assert started(**environment) == (alone.id, 1, 2, 0, None)
    again = started()
    launch.forget()
    assert launch.launch().id != again.id


AGREE = """
from clip3dreid.io.launch import launch
found = launch()
print(found.rank, found.attempt, found.name, flush=True)
"""


@pytest.mark.slow
def test_processes_of_torchrun_agree_on_a_name_and_keep_it_when_they_are_started_again(
    tmp_path: Path,
) -> None:
    script = tmp_path / "agree.py"
    script.write_text(AGREE + "import sys; sys.exit(found.attempt == 0)")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", str(script)],
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {line[0] for line in lines} == {"0", "1"}, done.stderr
    assert {line[1] for line in lines} == {"0", "1"}
    assert len({line[2] for line in lines}) == 1
