"""Callbacks of our own: when a run is saved, what it costs, and what follows its results."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number
from clip3dreid.io.run_folder import LAST_CHECKPOINT
from clip3dreid.training.checkpoints import files_of, save_at_once

if TYPE_CHECKING:  # a run calls these
    from clip3dreid.training.module import ReidModule
    from clip3dreid.training.run import TrainResult

log = logging.getLogger(__name__)


class AfterResults(Callback):
    """A callback that hears of a run's results once they are written, in the first process, before loggers end."""

    def on_results(self, trainer: Trainer, module: ReidModule, result: TrainResult) -> None:
        """Do something with them; other processes do not wait for it."""


class LastCheckpoint(ModelCheckpoint):
    """Save the checkpoint that a run goes on from: each so many epochs, each so many minutes, and at the end.

    Args:
        dirpath: the folder of the run's checkpoints.
        every_epochs: epochs from one to the next; None: minutes alone count.
        every_minutes: minutes from one to the next, within an epoch too; None: epochs alone count.
        asynchronous: whether checkpoints are written while training goes on (`checkpoints.CheckpointFiles`).

    Raises:
        InputError: if a number is not positive.
    """

    def __init__(
        self,
        dirpath: Path | str,
        every_epochs: int | None = 1,
        every_minutes: float | None = None,
        asynchronous: bool = True,
    ) -> None:
        if every_epochs is not None:
            check_number("callbacks.last.every_epochs", every_epochs, Range(1), whole=True)
        if every_minutes is not None:
            check_number("callbacks.last.every_minutes", every_minutes, Range(0, above=True))
        super().__init__(
            dirpath=dirpath,
            filename=LAST_CHECKPOINT.stem,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.every_epochs, self.every_minutes = every_epochs, every_minutes
        self.asynchronous = asynchronous
        self._saved_at = 0.0

    @property
    def state_key(self) -> str:
        """Return the name of its state in a checkpoint: that of Lightning's class, which older runs were saved by."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse minutes where processes would have to agree on them.

        Raises:
            InputError: if each process holds a part of the model.
        """
        super().setup(trainer, pl_module, stage)
        if self.every_minutes is not None and not isinstance(
            trainer.strategy, DDPStrategy | SingleDeviceStrategy
        ):
            raise InputError(
                f"callbacks.last.every_minutes={self.every_minutes:g} cannot be had of "
                f"{type(trainer.strategy).__name__}, whose processes save together; give callbacks.last.every_epochs"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch if it is time; after its last batch the epoch is ended first.

        Raises:
            InputError: if a checkpoint could not be written.
        """
        if not trainer.is_global_zero:
            return
        files_of(trainer).check()
        loop = trainer.fit_loop.epoch_loop
        # Gradients that are still being added up are in no checkpoint.
        if self._overdue(trainer) and not loop.batch_progress.is_last_batch and not loop._should_accumulate():
            self._save_at_once(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch if it is its turn, it is time, or it is the last."""
        epoch = trainer.current_epoch + 1
        ends = trainer.should_stop or epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        # All processes save together where all know that it is their turn; the clock is the first one's.
        if ends or (self.every_epochs is not None and epoch % self.every_epochs == 0):
            super().on_train_epoch_end(trainer, pl_module)
            self._saved_at = time.monotonic()
        elif trainer.is_global_zero and (files_of(trainer).wanted or self._overdue(trainer)):
            self._save_at_once(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until all is written.

        Raises:
            InputError: if a checkpoint could not be written.
        """
        super().on_train_end(trainer, pl_module)
        if trainer.is_global_zero:
            files_of(trainer).wait()

    def _overdue(self, trainer: Trainer) -> bool:
        return (
            self.every_minutes is not None
            and time.monotonic() - self._saved_at >= 60 * self.every_minutes
            and not trainer.fast_dev_run  # type: ignore[attr-defined]
        )

    def _save_at_once(self, trainer: Trainer) -> None:
        assert self.dirpath is not None
        save_at_once(trainer, Path(self.dirpath) / LAST_CHECKPOINT.name)
        self._saved_at = time.monotonic()


def asynchronous(callbacks: Sequence[Callback]) -> bool:
    """Return whether the checkpoints of a training with these callbacks are written while it goes on."""
    return any(one.asynchronous for one in callbacks if isinstance(one, LastCheckpoint))


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
