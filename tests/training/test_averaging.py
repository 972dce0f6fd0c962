"""The average of the weights: what it is, where it lies, and that the training knows nothing of it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

import clip3dreid
from clip3dreid.errors import InputError
from clip3dreid.training.averaging import WeightAverage
from clip3dreid.training.settings import TrainSettings
from tests.conftest import TINY, Command
from tests.training.test_run import weights


class Line(LightningModule):
    """One weight, one running statistic and one count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def averaged(decay: float, values: list[float], steps: list[int] | None = None) -> tuple[WeightAverage, Line]:
    """The average after a weight has had these values, a batch each, at these steps of the optimiser."""
    module, average, trainer = Line(), WeightAverage(decay), SimpleNamespace(global_step=0)
    average.on_train_start(cast(Trainer, trainer), module)
    for number, value in enumerate(values):
        module.weight.data.fill_(value)
        module.mean.fill_(-value)
        module.count += 1
        trainer.global_step = number + 1 if steps is None else steps[number]
        average.on_train_batch_end(cast(Trainer, trainer), module, None, None, number)
    return average, module


def value(average: WeightAverage, module: Line) -> float:
    with average.applied(module):
        assert module.mean.item() == -module.weight.item()
        return module.weight.item()


def test_the_decay_rises_to_its_value() -> None:
    # After the first step 2/11 of 0 and 9/11 of 11; after the second 3/12 of that and 9/12 of 12.
    assert value(*averaged(0.999, [11.0])) == pytest.approx(9.0)
    assert value(*averaged(0.999, [11.0, 12.0])) == pytest.approx(0.25 * 9.0 + 0.75 * 12.0)
    # No more than it was given.
    assert value(*averaged(0.1, [11.0, 12.0])) == pytest.approx(0.1 * 0.9 * 11.0 + 0.9 * 12.0)


def test_it_is_a_plain_loops_average_of_a_long_walk() -> None:
    walk = torch.randn(300, generator=torch.Generator().manual_seed(0)).cumsum(0).tolist()
    expected = 0.0
    for number, weight in enumerate(walk, start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * weight
    assert value(*averaged(0.9, walk)) == pytest.approx(expected, rel=1e-5)


def test_batches_whose_gradients_are_still_being_gathered_do_not_count() -> None:
    once, module = averaged(0.999, [1.0, 1.0, 11.0], steps=[0, 0, 1])
    assert once.updates == 1
    assert value(once, module) == pytest.approx(9.0)


def test_weights_are_as_they_were_after_the_average_was_looked_at() -> None:
    average, module = averaged(0.9, [1.0, 2.0, 0.3])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(RuntimeError), average.applied(module):
        raise RuntimeError
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.count == 3


@pytest.mark.parametrize("wrong", [0, 1, 1.5, -0.1])
def test_a_decay_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match=rf"ema={wrong:g} must be a number between 0 and 1, such as 0\.999"):
        TrainSettings(ema=wrong)


def test_a_run_evaluates_it_beside_the_last_weights_which_are_those_of_a_run_without(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    shared = ["data=ltcc", f"data.root={ltcc_root}", *TINY, "epochs=2", "optimizer.optimizer.lr=1e-2"]
    assert invoke("train", *shared, "hydra.run.dir=plain").returncode == 0
    done = invoke("train", *shared, "ema=0.9", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "ltcc, ema checkpoint (average of the weights, decay 0.9)" in done.stdout
    plain, last = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert all(torch.equal(tensor, last[name]) for name, tensor in plain.items())
    found: Any = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
    assert [one["checkpoint"] for one in found] == ["last", "ema"]
    assert found[0]["results"] != found[1]["results"]
    assert (tmp_path / "run" / found[1]["per_query"]["general"]).is_file()
    # Its file is a model like any other, and holds the average of the last checkpoint.
    model = clip3dreid.load(tmp_path / "run" / "checkpoints" / "ema.ckpt")
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    average = state["callbacks"]["WeightAverage"]["average"]
    for name, tensor in cast(nn.Module, model.student).state_dict().items():
        expected = average.get(f"student.{name}", state["state_dict"][f"student.{name}"])
        assert torch.equal(tensor, expected), name
    done = invoke("evaluate", "checkpoint=run/checkpoints/ema.ckpt", "data=ltcc", f"data.root={ltcc_root}",
                  "datamodule.workers=0", "trainer=cpu", "out=alone.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = json.loads((tmp_path / "alone.json").read_text())["results"]
    assert alone["general"]["map"] == pytest.approx(found[1]["results"]["general"]["map"], abs=1e-9)
