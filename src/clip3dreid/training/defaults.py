"""Hold what a training takes where nothing is said: optimiser, trainer, callbacks, and the record of what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.sources import DataSpec
from clip3dreid.io.run_folder import LAST_CHECKPOINT
from clip3dreid.loss.weighted import LossEntry
from clip3dreid.training.callbacks import LastCheckpoint
from clip3dreid.training.data import RunData
from clip3dreid.training.progress import TrainingProgress
from clip3dreid.training.settings import RankingSettings, TrainSettings

BATCHES = partial(ReidDataModule)
OPTIMIZER = partial(torch.optim.Adam, lr=3.5e-4, weight_decay=5e-4)
"""The base recipe's."""
TRAINER = partial(pl.Trainer)
# Of Lightning's trainer, where whoever makes one says nothing else.
_TRAINER: dict[str, Any] = {
    "devices": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    # The project's own samplers know the rank; Lightning's would wrap them.
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}


def trainer_arguments(settings: TrainSettings, folder: Path) -> dict[str, Any]:
    """Return arguments of Lightning's trainer, for all that whoever makes one leaves out."""
    return _TRAINER | {
        "max_epochs": settings.epochs,
        "check_val_every_n_epoch": settings.evaluate_every,
        "default_root_dir": folder,
    }


def csv_logger(folder: Path) -> CSVLogger:
    """Make the logger of a file that a killed run keeps up to its last epoch."""
    return CSVLogger(folder, name="", version="csv", flush_logs_every_n_steps=1)


def usual_callbacks(folder: Path) -> list[Callback]:
    """Make what saves the last checkpoint of a run after each epoch, and what shows its progress."""
    return [LastCheckpoint(folder / LAST_CHECKPOINT.parent), TrainingProgress()]


def best_checkpoint(folder: Path, monitor: str) -> ModelCheckpoint:
    """Make what saves the checkpoint with the best score of a name."""
    return ModelCheckpoint(
        dirpath=folder / LAST_CHECKPOINT.parent,
        filename="best",
        monitor=monitor,
        mode="max",
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )


def described(
    data: Sequence[RunData],
    student: Mapping[str, Any],
    losses: Mapping[str, LossEntry],
    settings: TrainSettings,
    ranking: RankingSettings,
) -> dict[str, Any]:
    """Return what a run was asked for, as plain data under the keys of `conf/train.yaml`."""

    def place(one: RunData) -> dict[str, Any]:
        spec = isinstance(one.source, DataSpec)
        held = {"val_people": one.source.val_people} if isinstance(one.source, DataSpec) else {}
        return {
            "name": one.name,
            "root": str(one.source.root.absolute() if spec else one.source.root),
            **held,
        }

    first, *others = map(place, data)
    keys = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    keys["model"] = {
        "student": dict(student),
        "pretrained": keys.pop("pretrained"),
        "fetch": keys.pop("fetch"),
    }
    keys["bodies"] = {"batch_norm": keys.pop("body_norm")}
    keys["data"] = first | {"also": {one["name"]: one for one in others}}
    numbers = ("weight", "share", "start_epoch", "warmup_epochs")
    keys["loss"] = {name: {key: entry.get(key) for key in numbers} for name, entry in losses.items()}
    feature = None if ranking.feature is None else ranking.feature.weights
    keys["retrieval"] = {"metric": ranking.metric, "flip": ranking.mirrors, "feature": feature}
    return keys
