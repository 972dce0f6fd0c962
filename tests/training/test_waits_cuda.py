"""A GPU is never waited for in a step after the first: torch itself refuses what would wait.

Needs no more of this folder than `tiny_training`, and runs without its fixtures:
`python -m pytest --noconftest tests/training/test_waits_cuda.py -k cuda`.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from clip3dreid.loss.identity import CrossEntropy
from tests.tiny_training import METHODS, tiny_trainer, tiny_training

STEPS = 6
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class NoWaits(pl.Callback):
    """From the second step on until the last, what would wait is an error."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        if batch_idx == 1:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_on_cuda_waits(method: str, precision: str) -> None:
    module, data = tiny_training(method, STEPS, pinned=True)
    watch = NoWaits()
    trainer = tiny_trainer([watch], accelerator="gpu", precision=precision, gradient_clip_val=10.0)
    trainer.fit(module, datamodule=data)
    assert watch.steps == STEPS
    assert trainer.callback_metrics["loss/total"].isfinite()


@needs_gpu
def test_channels_last_and_a_fused_optimiser_on_cuda_wait_no_more() -> None:
    module, data = tiny_training("clip3dreid_cal", STEPS, pinned=True, channels_last=True)
    module.optimizer = lambda groups: torch.optim.Adam(groups, lr=3.5e-4, fused=True)
    trainer = tiny_trainer([NoWaits()], accelerator="gpu", precision="16-mixed")
    trainer.fit(module, datamodule=data)


@needs_gpu
def test_a_loss_that_is_not_finite_on_cuda_is_heard_of_a_step_later_with_the_state_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops_at_the_third(monkeypatch, accelerator="gpu", precision="32-true")


def stops_at_the_third(monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    """Train with a loss that is NaN in the third step: the state after two steps is what is left."""
    original, calls = CrossEntropy.forward, 0

    def fails(self: CrossEntropy, features: Any, batch: Any, bodies: Any = None) -> Any:
        nonlocal calls
        calls += 1
        return original(self, features, batch, bodies) * (float("nan") if calls == 3 else 1.0)

    def named(*_: Any) -> list[str]:
        return ["a.png"]

    expected, data = tiny_training("ce", 2)
    tiny_trainer(**how).fit(expected, datamodule=data)
    monkeypatch.setattr(CrossEntropy, "forward", fails)
    monkeypatch.setattr("clip3dreid.training.module.batch_paths", named)
    module, data = tiny_training("ce", STEPS)
    with pytest.raises(FloatingPointError, match=r"identity = nan.* epoch 1, batch 3.*a\.png"):
        tiny_trainer(**how).fit(module, datamodule=data)
    left, wanted = module.state_dict(), expected.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(left[name].cpu(), tensor.cpu(), msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_the_trainings_that_a_gpu_is_shown_run_without_one(method: str) -> None:
    module, data = tiny_training(method, 3)
    trainer = tiny_trainer(accelerator="cpu")
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["loss/total"].isfinite()
