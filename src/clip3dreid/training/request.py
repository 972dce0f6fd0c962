"""Hold what a training was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.training_set import TrainingSet
from clip3dreid.guidance.guides import Guide
from clip3dreid.io.ranks import Ranks
from clip3dreid.loss.weighted import LossEntry
from clip3dreid.training.data import RunData
from clip3dreid.training.settings import Invocation, RankingSettings, TrainSettings

MakeGuides = Callable[[TrainingSet, Path | None, Ranks], Sequence[Guide]]
"""Makes guides of the training pictures, the labels that the run has already, or None, and the run's processes."""
MakeData = partial[ReidDataModule]
MakeTrainer = partial[pl.Trainer]


@dataclass(frozen=True)
class TrainRequest:
    """What a training was asked for: the arguments of `training.run.train`, which says what they are."""

    data: list[RunData]
    student: Mapping[str, Any]
    losses: Mapping[str, LossEntry]
    folder: Path
    settings: TrainSettings
    ranking: RankingSettings
    batches: MakeData
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[[int], float]
    guides: MakeGuides
    trainer: MakeTrainer
    loggers: Sequence[Logger]
    callbacks: Sequence[Callback]
    best: Callable[..., ModelCheckpoint] | None
    config: Mapping[str, Any]
    invocation: Invocation | None

    @property
    def selecting(self) -> str:
        """Return the split that checkpoints are selected on."""
        return "test" if self.settings.select_on_test else "val"
