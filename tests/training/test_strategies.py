"""What several devices are trained with, and what is refused of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from clip3dreid.errors import InputError
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.loss.weighted import WeightedLosses
from clip3dreid.training.strategies import (
    DistributedStudent,
    ShardedStudent,
    check_devices,
    may_leave_unused,
    whole,
)
from tests.config.test_conf import composed
from tests.conftest import TINY, Command
from tests.loss.cases import dimensions


def losses(*starts: int) -> WeightedLosses:
    entries: Any = {
        f"term{number}": {
            "weight": 1.0,
            "start_epoch": start,
            "warmup_epochs": 0,
            "term": lambda at: CrossEntropy(at, smoothing=0.1),
        }
        for number, start in enumerate(starts)
    }
    return WeightedLosses(entries, dimensions(4, 3))


class Trained(nn.Module):
    def __init__(self, terms: nn.Module | None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        if terms is not None:
            self.losses = terms


@pytest.fixture
def wrapped(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What torch's DistributedDataParallel is made with."""
    made: list[dict[str, Any]] = []
    target = "lightning.pytorch.strategies.ddp.DistributedDataParallel"
    monkeypatch.setattr(target, lambda **given: made.append(given))
    return made


@pytest.mark.parametrize(("starts", "search"), [((0,), False), ((0, 0), False), ((0, 25), True)])
def test_parameters_without_a_gradient_are_looked_for_where_a_loss_starts_late_and_nowhere_else(
    starts: tuple[int, ...], search: bool, wrapped: list[dict[str, Any]]
) -> None:
    strategy = DistributedStudent(
        parallel_devices=[torch.device("cpu")], cluster_environment=SimpleNamespace(local_rank=lambda: 0)
    )
    strategy._setup_model(Trained(losses(*starts)))
    assert wrapped[0]["find_unused_parameters"] is search


def test_of_what_trains_something_else_nothing_is_known() -> None:
    assert may_leave_unused(Trained(None))
    assert may_leave_unused(Trained(nn.Linear(1, 1)))


def test_the_config_of_ddp_reaches_torch(wrapped: list[dict[str, Any]]) -> None:
    cfg = composed("train", "data=ltcc", "data.root=x", "trainer=ddp", "trainer.strategy.static_graph=true")
    strategy = instantiate(cfg.trainer.strategy, cluster_environment=SimpleNamespace(local_rank=lambda: 0))
    strategy.parallel_devices = [torch.device("cpu")]
    strategy._setup_model(Trained(losses(0)))
    given = {key: value for key, value in wrapped[0].items() if key not in ("module", "device_ids")}
    # The name of the second is torch's, by version.
    buffers = given.pop("forward_sync_buffers", given.pop("broadcast_buffers", None))
    assert buffers is False
    assert given == {"gradient_as_bucket_view": True, "static_graph": True, "find_unused_parameters": False}


@pytest.mark.parametrize("trainer", ["gpu", "ddp", "fsdp"])
def test_a_trainer_for_gpus_switches_on_what_is_right_there_and_the_command_line_has_the_last_word(
    trainer: str,
) -> None:
    shared = ("data=ltcc", "data.root=x", f"trainer={trainer}")
    cfg = composed("train", *shared)
    assert cfg.channels_last is (trainer != "fsdp")
    assert (cfg.fused, cfg.compile, cfg.matmul_precision) == (True, False, "high")
    assert cfg.optimizer.optimizer.fused is True
    assert (cfg.trainer.get("benchmark"), cfg.trainer.precision) == (None, "bf16-mixed")
    assert cfg.gradient_norms_every == (0 if trainer == "fsdp" else 200)
    given = composed(
        "train", *shared, "channels_last=false", "fused=null", "compile=true", "matmul_precision=highest",
        "+trainer.benchmark=true", "trainer.precision=32-true",
    )  # fmt: skip
    assert (given.channels_last, given.fused, given.compile) == (False, None, True)
    assert (given.matmul_precision, given.optimizer.optimizer.fused) == ("highest", None)
    assert (given.trainer.benchmark, given.trainer.precision) == (True, "32-true")


def test_a_trainer_for_the_cpu_switches_nothing_on_and_an_experiment_may() -> None:
    cfg = composed("train", "data=ltcc", "data.root=x", "trainer=cpu")
    assert (cfg.channels_last, cfg.fused, cfg.matmul_precision) == (False, None, "highest")
    assert composed("train", "+experiment=demo", "data.root=x").channels_last is True


@pytest.mark.parametrize("optimizer", ["adam", "adam_step", "adamw", "sgd", "sgd_base"])
def test_every_optimiser_can_be_fused_on_the_cpu_too(optimizer: str) -> None:
    cfg = composed("train", "data=ltcc", "data.root=x", f"optimizer={optimizer}", "fused=true")
    weight = nn.Parameter(torch.ones(3))
    made = instantiate(cfg.optimizer.optimizer)([{"params": [weight]}])
    weight.square().sum().backward()
    made.step()
    assert made.param_groups[0]["fused"] is True
    assert (weight < 1).all()


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_device_that_is_not_there_is_refused(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"trainer.accelerator={accelerator} is a device that is not there"):
        check_devices({"accelerator": accelerator})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices({"accelerator": accelerator, "devices": 2})
    with pytest.raises(InputError, match=r"trainer\.devices=4, but there are 2 GPUs"):
        check_devices({"accelerator": accelerator, "devices": 4})


@pytest.mark.parametrize("devices", [1, "auto", None])
def test_weights_cannot_be_shared_out_among_one_process(devices: Any) -> None:
    with pytest.raises(InputError, match=r"this is one; give trainer\.devices=2 or more"):
        check_devices({"accelerator": "cpu", "devices": devices, "strategy": ShardedStudent()})
    check_devices({"accelerator": "cpu", "devices": 2, "strategy": ShardedStudent()})
    check_devices({"accelerator": "cpu", "devices": 1, "num_nodes": 2, "strategy": ShardedStudent()})


REFUSED = {
    "trainer=fsdp trainer.accelerator=cpu trainer.devices=1": "this is one; give trainer.devices=2 or more",
    "trainer=fsdp trainer.accelerator=cpu trainer.devices=2 ema=0.9": "needs ema=null",
    "trainer=fsdp trainer.accelerator=cpu trainer.devices=2 gradient_norms_every=5": "needs gradient_norms_every=0",
    "trainer=fsdp trainer.accelerator=cpu trainer.devices=2 channels_last=true": "needs channels_last=false",
    "trainer=fsdp trainer.accelerator=cpu trainer.devices=2 trainer.gradient_clip_val=1": "gradient_clip_val=null",
    "ema=1": "ema=1 must be a number between 0 and 1",
    "matmul_precision=higher": "did you mean high",
    "compile=true activation_checkpointing=true": "choose one",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(
    given: str, ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    tiny = [one for one in TINY if one != "trainer=cpu" or "trainer" not in given]
    done = invoke("train", "data=ltcc", f"data.root={ltcc_root}", *tiny, *given.split(), "hydra.run.dir=run")
    assert done.returncode == 2, done.stderr
    assert REFUSED[given] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_nobody_shares_out_is_refused() -> None:
    strategy = ShardedStudent()
    strategy._lightning_module = LightningModule()
    with pytest.raises(InputError, match="trainer=fsdp is for clip3dreid train"):
        strategy.setup(cast(Trainer, None))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_training_on_a_gpu_that_is_not_there_ends_with_one_line(ltcc_root: Path, invoke: Command) -> None:
    tiny = [one for one in TINY if one != "trainer=cpu"]
    done = invoke("train", "data=ltcc", f"data.root={ltcc_root}", *tiny, "trainer=gpu", "hydra.run.dir=run")
    assert done.returncode == 2, done.stderr
    assert "is a device that is not there" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_tensor_that_nobody_shares_is_whole() -> None:
    tensor = torch.ones(2)
    assert whole(tensor) is tensor
