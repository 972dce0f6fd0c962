"""Keep a training from ending with its dashboard: what a logger cannot write costs a line, not the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from clip3dreid.errors import InputError
from clip3dreid.io.files import reason_of

log = logging.getLogger(__name__)


class SparedLogger(Logger):
    """A logger whose first failure is a line in the log, after which it is left alone.

    Before anything is trained a failure is worth ending for: `log_hyperparams`, which begins a dashboard, raises.

    Args:
        inner: the logger.

    Attributes:
        inner: the same.
        failed: whether it has failed.
    """

    def __init__(self, inner: Logger) -> None:
        super().__init__()
        self.inner = inner
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        """Return what the logger has besides, such as `watch`."""
        if name == "inner":  # not there yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def name(self) -> str | None:
        """Return the logger's own."""
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        """Return the logger's own."""
        return self.inner.version

    @property
    def save_dir(self) -> str | None:
        """Return the logger's own."""
        return self.inner.save_dir

    @property
    def experiment(self) -> Any:
        """Return what the logger writes to."""
        return getattr(self.inner, "experiment", None)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Begin the run's dashboard.

        Raises:
            InputError: if it does not begin.
        """
        try:
            self.inner.log_hyperparams(*args, **kwargs)
        except Exception as error:
            name = _shown(self.inner)
            raise InputError(
                f"{name} does not begin: {reason_of(error)}; logger=csv leaves dashboards out"
                + (", WANDB_MODE=offline keeps it on this machine" if name == "W&B" else "")
            ) from error

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Log numbers."""
        self._try(lambda: self.inner.log_metrics(*args, **kwargs))

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """Log the network."""
        self._try(lambda: self.inner.log_graph(*args, **kwargs))

    def save(self) -> None:
        """Write what is waiting to be written."""
        self._try(self.inner.save)

    def finalize(self, status: str) -> None:
        """End what is logged of a stage."""
        self._try(lambda: self.inner.finalize(status))

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Take note of a checkpoint."""
        self._try(lambda: self.inner.after_save_checkpoint(checkpoint_callback))

    def _try(self, act: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            act()
        except Exception as error:
            self.failed = True
            log.warning(
                "%s writes no more (%s); training goes on without it", _shown(self.inner), reason_of(error)
            )


def spared(loggers: Sequence[Logger]) -> list[Logger]:
    """Return loggers of which none but a CSV file's, the run's own record, can end a training."""
    return [one if isinstance(one, CSVLogger) else SparedLogger(one) for one in loggers]


def finish_dashboards(loggers: Sequence[Logger]) -> None:
    """End runs of dashboards, which the next run of this process would otherwise go on writing to."""
    for logger in loggers:
        if type(logger).__name__ == "WandbLogger":
            import wandb

            try:
                wandb.finish()
            except Exception as error:
                log.warning("W&B did not end as it should: %s", reason_of(error))


def _shown(logger: Logger) -> str:
    return {"WandbLogger": "W&B", "TensorBoardLogger": "TensorBoard"}.get(
        type(logger).__name__, type(logger).__name__
    )
