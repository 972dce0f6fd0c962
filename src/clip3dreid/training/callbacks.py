"""Callbacks of our own: what a run costs, and what follows its results."""

from __future__ import annotations

import logging
import statistics
import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:  # a run calls these
    from clip3dreid.training.module import ReidModule
    from clip3dreid.training.run import TrainResult

log = logging.getLogger(__name__)


class AfterResults(Callback):
    """A callback that hears of a run's results once they are written, in the first process, before loggers end."""

    def on_results(self, trainer: Trainer, module: ReidModule, result: TrainResult) -> None:
        """Do something with them; other processes do not wait for it."""


class CostEstimate(Callback):
    """Time the steps of a trial run and say what the real one would take on the same machine.

    Args:
        epochs: of the real run.
        warmup: steps left out of the timing, while caches fill and kernels are chosen.
    """

    def __init__(self, epochs: int, warmup: int = 3) -> None:
        self.epochs = epochs
        self.warmup = warmup
        self._times: list[float] = []
        self._losses: list[float] = []
        self._last = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock; reading the loss waits for the device, so asynchronous work is counted."""
        self._losses.append(float(outputs["loss"]))
        self._times.append(time.perf_counter() - self._last)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Print the estimate."""
        times = self._times[self.warmup :] or self._times
        if not times:
            return
        step = statistics.median(times)
        steps = len(trainer.datamodule.sampler(0, 1))  # type: ignore[attr-defined]
        hours = step * steps * self.epochs / 3600
        log.info(
            "trial: loss %.3f -> %.3f over %d steps on one batch; %.3f s a step without loading; the real run "
            "of %d epochs x %d steps would train for about %.2f h here",
            self._losses[0],
            self._losses[-1],
            len(self._losses),
            step,
            self.epochs,
            steps,
            hours,
        )


class StepTimes(Callback):
    """What a step costs, loading included: the time between the first and the last step of each epoch.

    Attributes:
        epochs: seconds a step, epoch by epoch; those of one step are left out.
    """

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self._start = 0.0

    @property
    def median(self) -> float | None:
        """Return the seconds of a step; None where no epoch had two."""
        return statistics.median(self.epochs) if self.epochs else None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock when the first step is done, and read it at every one after."""
        now = time.perf_counter()
        if batch_idx == 0:
            self._start = now
        elif batch_idx + 1 == trainer.num_training_batches:
            self.epochs.append((now - self._start) / batch_idx)
