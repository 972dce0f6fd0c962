"""Hydra's callback that claims folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clip3dreid.io.launch import launch
from tests.conftest import Command


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes this process the second of two that SLURM has started."""
    step = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    launch.cache_clear()
    yield
    launch.cache_clear()


@pytest.mark.usefixtures("second_of_two")
def test_a_sweep_in_several_processes_is_refused_before_anything_is_made(
    invoke: Command, tmp_path: Path
) -> None:
    done = invoke("train", "-m", "data=ltcc", "data.root=x", "seed=1,2")
    assert done.returncode == 2, done.stderr
    assert "without -m" in done.stderr
    assert not list(tmp_path.iterdir())
