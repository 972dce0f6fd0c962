"""Train a small network from nothing, in a folder of its own, which a killed training goes on in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.optim import Optimizer

from clip3dreid.errors import InputError
from clip3dreid.io.environment import environment, keep_earlier
from clip3dreid.io.files import inside, write_json, write_text
from clip3dreid.io.formats import damaged, read_yaml
from clip3dreid.io.launch import FurtherProcesses
from clip3dreid.io.progress import progress
from clip3dreid.io.run_folder import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from clip3dreid.model.checked_folder import check_place
from clip3dreid.synthetic.folder import world_facts
from clip3dreid.training.callbacks import asynchronous
from clip3dreid.training.checkpoints import CheckpointFiles, newest_whole
from clip3dreid.training.pretraining_data import PretrainingData
from clip3dreid.training.signals import SaveWhenTold, StopWatch

log = logging.getLogger(__name__)

_FILES = ("config.yaml", "environment.json")
# What may differ when a killed run goes on.
_HANDLING = ("workers", "in_memory", "trainer", "logger", "callbacks", "trusted")


class PretrainingModule(pl.LightningModule):
    """What both kinds of network that are trained from nothing have in common: how a step ends, and who moves.

    Args:
        optimizer: makes an optimiser from parameter groups.
        schedule: multiplier of the learning rate for a 0-based epoch.
    """

    def __init__(
        self,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        schedule: Callable[[int], float],
    ) -> None:
        super().__init__()
        self.optimizer, self.schedule = optimizer, schedule

    def logged(self, loss: Tensor, terms: Mapping[str, Tensor], batch_idx: int, size: int) -> Tensor:
        """Log the parts of a batch's loss, and return the loss.

        Args:
            loss: scalar, to be back-propagated.
            terms: name -> scalar.
            batch_idx: number of the batch in its epoch.
            size: pictures in it.

        Raises:
            FloatingPointError: if the loss is NaN or infinite.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}"
            )
        terms = {"loss/total": loss.detach(), **terms}
        self.log_dict(terms, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimiser, without weight decay on biases, norms and scales; its schedule goes by epochs."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in trained if parameter.ndim >= 2]},
            {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        built = self.optimizer(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(built, self.schedule)
        return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


class PretrainingFolder:
    """The folder of a training.

    Args:
        out: the folder.
        record: all that decides what comes of the training, as plain values; a folder with another is refused.
        product: folder inside it in which what was trained comes to lie.

    Raises:
        InputError: if `out` holds another training, or something else where the product is to lie.
    """

    def __init__(self, out: Path, record: Mapping[str, Any], product: str) -> None:
        # As a file gives it back.
        self._record: dict[str, Any] = yaml.safe_load(
            yaml.safe_dump(_listed(record), sort_keys=False, allow_unicode=True)
        )
        self.out, self.product = out, out / product
        _check_folder(out, self._record)
        # Now, and not after the training.
        check_place(self.product)

    def fit(
        self,
        module: pl.LightningModule,
        data: PretrainingData,
        *,
        trainer: Callable[..., pl.Trainer],
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        processes: FurtherProcesses | None = None,
    ) -> int:
        """Train, or go on training.

        Args:
            module: what is trained.
            data: what it is trained on.
            trainer: makes a Trainer of its callbacks, loggers and plugins.
            callbacks: besides those that keep and stop a run.
            loggers: of the trainer.
            processes: what starts further processes, where the trainer has several.

        Returns:
            Seconds of training, in this go.

        Raises:
            InputError: if the folder is in use, or holds something else by now.
            SystemExit: with 128 and the signal's number if the run was stopped by Ctrl-C or a scheduler.
        """
        with progress("decoding pictures", len(data.files)) as update:
            data.setup("fit", update)
        watch = StopWatch(self.out, f"the same command (out={self.out})")
        made = trainer(
            callbacks=[SaveWhenTold(watch), *callbacks],
            logger=list(loggers),
            reload_dataloaders_every_n_epochs=1,
            plugins=[CheckpointFiles(asynchronous=asynchronous(callbacks))],
        )
        watch.take_over(made, processes)
        start = _check_folder(self.out, self._record)
        if made.is_global_zero:
            check_place(self.product)
            keep_earlier(self.out)
            text = yaml.safe_dump(self._record, sort_keys=False, allow_unicode=True)
            write_text(self.out / "config.yaml", text)
            write_json(self.out / "environment.json", environment())
        begun = time.perf_counter()
        with watch.reporting():
            made.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
        return round(time.perf_counter() - begun)


def world_identity(folder: Path) -> dict[str, Any]:
    """Return what tells a rendered world from others, wherever it lies.

    Raises:
        InputError: if the folder does not say.
    """
    facts = world_facts(folder)
    return {key: facts[key] for key in ("fingerprint", "counts")} | {"seed": facts["config"]["seed"]}


def _listed(value: Any) -> Any:
    """Return tuples as lists, all the way down, which is how a file has them."""
    if isinstance(value, Mapping):
        return {key: _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, list | tuple) else value


def _check_folder(folder: Path, record: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint to go on from, if this very training was started there before.

    Raises:
        InputError: if the folder holds another training.
    """
    for name in (*_FILES, LAST_CHECKPOINT, Path("csv") / "metrics.csv"):
        inside(folder, name)
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    again = "give another out"
    earlier = read_yaml(path, "the config of a training", again)
    if not isinstance(earlier, dict):
        raise damaged(path, "it holds a list", again)
    keys = sorted(({*earlier, *record}) - set(_HANDLING))
    if changed := [key for key in keys if earlier.get(key) != record.get(key)]:
        raise InputError(f"{folder} holds a training with another {', '.join(changed)}; give another out")
    if not any((folder / name).exists() for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)):
        return None
    at = newest_whole(folder)
    log.info("going on after %d epochs and %d batches, from %s", at.epochs, at.batches, at.path)
    return at.path
