"""Keep an average of the weights beside those that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(Callback):
    """An exponential moving average of all that a model has learnt: weights, running statistics, heads of losses.

    After step n of the optimiser it is `d * average + (1 - d) * weights`, d the smaller of the decay and
    `(1 + n) / (10 + n)`: else a short training's average would be ruled by the weights that it began with.
    A checkpoint holds it beside the weights, so that a run that goes on has the average that it would have had.
    It moves nothing of the training itself.

    Args:
        decay: what of the average each step leaves, between 0 and 1.

    Source: Polyak and Juditsky, SIAM J. Control Optim. 1992; the decay's rise is that of TensorFlow's
    `ExponentialMovingAverage`.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._average: dict[str, Tensor] = {}
        self._weights: list[Tensor] = []
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights, and bring the average of a run that goes on to where they are."""
        learnt = _learnt(pl_module)
        self._weights = list(learnt.values())
        self._step = trainer.global_step
        start = self._average or learnt
        self._average = {name: start[name].to(now.device, copy=True) for name, now in learnt.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights in, once a step of the optimiser has moved them."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        update(list(self._average.values()), self._weights, self.updates)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the average."""
        return {"updates": self.updates, "average": self._average}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with the average of a checkpoint."""
        self.updates, self._average = state_dict["updates"], dict(state_dict["average"])

    @contextmanager
    def applied(self, module: LightningModule) -> Iterator[None]:
        """Put the average in the place of the weights while the block lasts."""
        learnt = _learnt(module)
        kept = {name: tensor.clone() for name, tensor in learnt.items()}
        _copy(self._average, learnt)
        try:
            yield
        finally:
            _copy(kept, learnt)

    def save(self, trainer: Trainer, module: LightningModule, path: Path) -> bool:
        """Write a checkpoint whose weights are the average; all processes must ask.

        Args:
            trainer: which has trained.
            module: as it was trained, and as it stays.
            path: of the checkpoint.

        Returns:
            Whether there is an average: not before the first step.
        """
        if not self.updates:
            return False
        with self.applied(module):
            trainer.save_checkpoint(path, weights_only=True)
        return True


def _learnt(module: LightningModule) -> dict[str, Tensor]:
    """Return the floating-point tensors of a module's state, not copied."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
