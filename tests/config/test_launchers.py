import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from clip3dreid.config.command_line import ready
from clip3dreid.config.hydra import register
from clip3dreid.config.launchers import free_device
from clip3dreid.errors import InputError
from tests.conftest import TINY, Command
from tests.processes import holding


@pytest.fixture(autouse=True)
def known() -> None:
    register()


@pytest.mark.parametrize(
    ("name", "extra"), [("joblib", "joblib"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm")]
)
def test_a_launcher_that_is_not_installed_is_refused_with_its_extra(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("hydra_plugins.") else find(name)
    )
    with pytest.raises(InputError, match=rf"not installed; pip install 'clip3dreid\[{extra}\]'$"):
        ready("train", ["-m", "data=ltcc", f"hydra/launcher={name}", "seed=1,2"])
    assert "hydra/launcher=basic" in ready("train", ["-m", "data=ltcc", "hydra/launcher=basic", "seed=1,2"])


def test_a_launcher_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match="unknown; choose joblib, submitit_local, submitit_slurm or basic"):
        ready("train", ["-m", "data=ltcc", "hydra/launcher=ray", "seed=1,2"])
    with pytest.raises(InputError, match="evaluate has no hydra/launcher to choose"):
        ready("evaluate", ["-m", "hydra/launcher=joblib", "data=ltcc,prcc"])


def test_a_process_of_a_sweep_has_a_device_that_no_other_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hydra = SimpleNamespace(mode=RunMode.MULTIRUN, sweep=SimpleNamespace(dir=tmp_path))
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    free = free_device.__wrapped__
    with holding(tmp_path / ".devices" / "0", "a run of a sweep"):
        with pytest.raises(
            InputError, match="all 1 devices have a run of this sweep; start at most 1 at once"
        ):
            free(1)
        assert free(3) == 1
    hydra.mode = RunMode.RUN
    assert free(3) == 0


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_launchers_sweep_is_that_of_hydras_own(
    launcher: str, ltcc_root: Path, command: Command, tmp_path: Path
) -> None:
    sweep = ["-m", f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep", "data=ltcc", "epochs=1", *TINY]
    done = command("train", *sweep, f"data.root={ltcc_root}", "seed=1,2", "variant=device${free_device:2}")
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "sweep").glob("[01]_ltcc_device?_resnet18_seed?"))
    facts = [json.loads((run / "results.json").read_text()) for run in runs]
    assert [fact["seed"] for fact in facts] == [1, 2]
    assert all(
        (run / ".hydra" / "overrides.yaml").is_file() and (run / "train.log").is_file() for run in runs
    )
    # As a run of any sweep it is gone on with by its folder alone.
    gone_on = command("train", f"resume={runs[1]}", "epochs=2")
    assert gone_on.returncode == 0, gone_on.stderr
    assert "going on after 1 epoch" in gone_on.stdout
    # The other runs are made before the sweep says what is wrong with one.
    wrong = command("train", *sweep, f"data.root={ltcc_root},/nowhere", "seed=3", "hydra.sweep.dir=wrong")
    assert wrong.returncode == 2
    assert "error: ltcc: the data root /nowhere is not there" in wrong.stderr
    assert (tmp_path / "wrong" / "0_ltcc_ce_resnet18_seed3" / "results.json").is_file()
    again = command("train", *sweep, f"data.root={ltcc_root}", "seed=3,4", "hydra.sweep.dir=wrong")
    assert again.returncode == 2
    assert "holds a run already" in again.stderr
