"""Show how far a training is: a line an epoch and, on a terminal, a bar with the time that is left of all of it."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from clip3dreid.io.talk import bars_wanted, say

log = logging.getLogger(__name__)

_LOSS, _TOTAL, _HELD_OUT = "loss/", "total", "val/"
_SHOWN = {"r1": "R1", "map": "mAP"}
# Often enough for the eye, and nothing beside a step.
_REDRAWN_S = 0.2


@dataclass(frozen=True)
class Epoch:
    """What came of an epoch.

    Attributes:
        epoch: its number, from 1.
        epochs: how many there will be.
        loss: `total`, and each term, raw; means over the epoch.
        learning_rate: of the optimiser's first group.
        seconds: that it took, evaluation included.
        seconds_left: of the training, by the mean step of this go; None where nothing is known yet.
        val: data set/protocol -> score -> 0..1; empty where no evaluation took place.
    """

    epoch: int
    epochs: int
    loss: Mapping[str, float]
    learning_rate: float
    seconds: float
    seconds_left: float | None
    val: Mapping[str, Mapping[str, float]]

    def text(self) -> str:
        """Return one line."""
        terms = ", ".join(f"{name} {value:.3f}" for name, value in self.loss.items() if name != _TOTAL)
        parts = [f"epoch {self.epoch} of {self.epochs}"]
        if _TOTAL in self.loss:
            parts.append(f"loss {self.loss[_TOTAL]:.3f}" + (f" ({terms})" if terms else ""))
        elif terms:
            parts.append(terms)
        parts.append(f"lr {self.learning_rate:.2e}")
        left = "" if self.seconds_left is None else f", {span(self.seconds_left)} left"
        parts.append(f"{self.seconds:.1f} s{left}")
        several = len({place.partition("/")[0] for place in self.val}) > 1
        for place, scores in self.val.items():
            shown = [f"{title} {100 * scores[key]:.1f}" for key, title in _SHOWN.items() if key in scores]
            parts.append(f"val {place if several else place.partition('/')[2]} {', '.join(shown)}")
        return "; ".join(parts)

    def event(self) -> dict[str, Any]:
        """Return the same for programs."""
        return {"event": "epoch", **asdict(self)}


def span(seconds: float) -> str:
    """Return a time span as `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class TrainingProgress(ProgressBar):
    """Say a line at the end of each epoch and, where stdout is a terminal, show a bar of the whole training.

    Nothing is read from the device but once an epoch, when its means are there. The bar is drawn by the main thread:
    a thread of its own could hold a lock while a loader forks its workers.

    Args:
        bar: whether a bar is shown where there is a terminal for it.
    """

    def __init__(self, bar: bool = True) -> None:
        super().__init__()
        self.bar = bar
        self._rate: Any = math.nan
        self._begun = self._epoch_begun = time.perf_counter()
        self._done = self._start = 0
        self._evaluated = False
        self._shown: Progress | None = None
        self._drawn = 0.0
        self._all, self._part = TaskID(0), TaskID(0)

    def disable(self) -> None:
        """Show no bar; Lightning asks for it in processes that are not the first."""
        self.bar = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, from whichever step the training goes on."""
        loop = trainer.fit_loop
        within = loop.epoch_loop.batch_progress.current.ready if loop.restarted_mid_epoch else 0
        self._start = self._done = trainer.current_epoch * self._batches(trainer) + within
        self._begun = self._epoch_begun = time.perf_counter()
        self._open(trainer, "training", self._batches(trainer) * (trainer.max_epochs or 0))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_begun = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the rate: when the epoch ends, its schedule has gone on."""
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        self._done = trainer.current_epoch * self._batches(trainer) + batch_idx + 1
        left = self._left(trainer)
        self._move(
            self._all,
            self._done,
            what=f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}",
            left="" if left is None else f"{span(left)} left",
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say the epoch's line; all processes read the means, which they may have to agree on."""
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        evaluated, self._evaluated = self._evaluated, False
        if not trainer.is_global_zero:
            return
        loss = {name.removeprefix(_LOSS): value for name, value in found.items() if name.startswith(_LOSS)}
        epoch = Epoch(
            epoch=trainer.current_epoch + 1,
            epochs=trainer.max_epochs or 0,
            loss=loss,
            learning_rate=float(self._rate),
            seconds=time.perf_counter() - self._epoch_begun,
            seconds_left=self._left(trainer),
            val=_scores(found) if evaluated else {},
        )
        say(log, epoch.text(), epoch.event())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there are scores of this epoch."""
        self._evaluated = not trainer.sanity_checking
        if trainer.state.fn != "fit":
            self._close()
        elif self._shown is not None:
            self._shown.update(self._part, visible=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show a bar of an evaluation by itself."""
        if trainer.state.fn != "fit":
            self._open(trainer, "evaluation", sum(map(int, trainer.num_val_batches)))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show a bar of the test."""
        self._done = 0
        self._open(trainer, "test", sum(map(int, trainer.num_test_batches)))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._close()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the evaluation's bar, which stands below the training's."""
        self._evaluating(trainer, trainer.num_val_batches, dataloader_idx, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the evaluation's bar."""
        self._evaluating(trainer, trainer.num_test_batches, dataloader_idx, batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the bar away."""
        self._close()

    @staticmethod
    def _batches(trainer: Trainer) -> int:
        return int(trainer.num_training_batches)

    def _left(self, trainer: Trainer) -> float | None:
        """Return the seconds that are left of the training, evaluations at the pace of until now."""
        done = self._done - self._start
        left = self._batches(trainer) * (trainer.max_epochs or 0) - self._done
        return (time.perf_counter() - self._begun) / done * left if done else None

    def _open(self, trainer: Trainer, what: str, total: int) -> None:
        self._close()
        if not (self.bar and trainer.is_global_zero and bars_wanted() and sys.stdout.isatty()):
            return
        console = Console()
        if not console.is_interactive:
            return
        self._shown = Progress(
            TextColumn("{task.fields[what]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[left]}"),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),
            expand=True,
        )
        self._all = self._shown.add_task("", total=total, completed=self._done, what=what, left="")
        self._part = self._shown.add_task("", visible=False, what="evaluation", left="")
        self._shown.start()
        # A process that is killed must not leave a terminal without one.
        console.show_cursor(True)

    def _close(self) -> None:
        if self._shown is not None:
            self._shown.stop()
        self._shown = None

    def _move(self, task: TaskID, done: int, **fields: Any) -> None:
        if self._shown is None:
            return
        self._shown.update(task, completed=done, **fields)
        now = time.perf_counter()
        if now - self._drawn > _REDRAWN_S:
            self._drawn = now
            self._shown.refresh()

    def _evaluating(self, trainer: Trainer, batches: Any, loader: int, batch_idx: int) -> None:
        sizes = [int(size) for size in batches]
        task = self._part if trainer.state.fn == "fit" else self._all
        self._move(task, sum(sizes[:loader]) + batch_idx + 1, total=sum(sizes), visible=True)


def _scores(found: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the scores on held-out people: data set/protocol -> score -> value."""
    scores: dict[str, dict[str, float]] = {}
    for name, value in found.items():
        if name.startswith(_HELD_OUT):
            place, _, score = name.removeprefix(_HELD_OUT).rpartition("/")
            scores.setdefault(place, {})[score] = value
    return scores
