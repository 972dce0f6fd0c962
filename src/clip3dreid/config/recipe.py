"""Make a recipe of the command line the arguments of calls: what it trains with, by the names of `conf`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import open_dict

from clip3dreid.config import objects
from clip3dreid.config.command_line import ready
from clip3dreid.config.groups import ADDED
from clip3dreid.config.hydra import composed, foreseen, register
from clip3dreid.config.training import guides, ranking_settings, train_settings
from clip3dreid.config.trust import check_targets
from clip3dreid.config.words import quoted
from clip3dreid.errors import InputError
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.loss.weighted import LossEntry
from clip3dreid.model.image_teacher import ImageTeacher
from clip3dreid.model.shape_teacher import ShapeTeacher
from clip3dreid.training.request import MakeData, MakeGuides, MakeTrainer
from clip3dreid.training.settings import RankingSettings, TrainSettings

_OF_RUNS = ("data", "logger", "callbacks", "protocol", "resume", "run_name")
"""Keys of `conf/train.yaml` that mean nothing to a recipe: `train` is given these things itself."""
_OF_THE_CALL = ("default_root_dir", "max_epochs", "check_val_every_n_epoch")
"""Of the trainer, what `train` fills in from its folder and settings."""
_NOT_OF_TRAINING = ("teacher", "shape_teacher", "vocabulary")


@dataclass(frozen=True)
class Recipe:
    """What a recipe trains with; `arguments` are those of `training.run.train`, by their names there.

    Attributes:
        student: the student, as a checkpoint's card has it.
        losses: name -> entry.
        settings: how the student is trained.
        ranking: how queries and galleries are compared.
        batches: makes the data module.
        optimizer: makes an optimiser of parameter groups.
        schedule: multiplier of the learning rate for a 0-based epoch.
        guides: makes what guides the losses.
        trainer: makes Lightning's Trainer.
        teacher: makes the teacher that the guides ask, as `guidance.labelling.label` takes it.
        shape_teacher: makes the shape teacher.
        vocabulary: makes the words; picklable, as `synthetic.settings.SynthesisSettings` takes it.
    """

    student: Mapping[str, Any]
    losses: Mapping[str, LossEntry]
    settings: TrainSettings
    ranking: RankingSettings
    batches: MakeData
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[[int], float]
    guides: MakeGuides
    trainer: MakeTrainer
    teacher: Callable[[], ImageTeacher]
    shape_teacher: Callable[[], ShapeTeacher]
    vocabulary: Callable[[], Vocabulary]

    @property
    def arguments(self) -> dict[str, Any]:
        """Return what `training.run.train` takes beside data and folder: `train(data, folder=…, **arguments)`."""
        names = [field.name for field in fields(self) if field.name not in _NOT_OF_TRAINING]
        return {name: getattr(self, name) for name in names}


def recipe(
    experiment: str | None = None,
    *,
    method: str | None = None,
    epochs: int | None = None,
    seed: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return what a recipe of the command line trains with.

    Args:
        experiment: data, sizes and schedule, a name of `conf/experiment`; its data are left alone. None: the root's.
        method: losses with their guides, a name of `conf/method`; None: the experiment's.
        epochs: of the training; None: the experiment's.
        seed: of everything that is drawn.
        options: further keys of `clip3dreid train`, as `key=value` sets them: `{"datamodule.height": 64}`.

    Raises:
        InputError: if a name, a key or a value is none of those that there are.

    Example:
        >>> import clip3dreid
        >>> from clip3dreid.training.run import train
        >>> small = clip3dreid.recipe("demo", method="ce", epochs=2, options={"datamodule.height": 64})
        >>> train(manifest, folder="run", **small.arguments)  # doctest: +SKIP
    """
    chosen = {"experiment": experiment, "method": method, "epochs": epochs, "seed": seed}
    keys = {key: value for key, value in chosen.items() if value is not None} | dict(options or {})
    for key in keys:
        if key.lstrip("+~").partition(".")[0] in _OF_RUNS:
            raise InputError(f"options: {key} is no part of a recipe; give it to the call that trains")
    register()
    words = ready("train", [f"{'+' * (key in ADDED['train'])}{key}={_word(key, keys[key])}" for key in keys])
    try:
        cfg = composed("train", *words)
        check_targets(cfg)
        with open_dict(cfg.trainer):
            for key in _OF_THE_CALL:
                del cfg.trainer[key]
        return Recipe(
            student=objects.plain(cfg.model.student),
            losses=instantiate(cfg.loss),
            settings=train_settings(cfg),
            ranking=ranking_settings(cfg.retrieval, "retrieval."),
            batches=instantiate(cfg.datamodule),
            optimizer=instantiate(cfg.optimizer.optimizer),
            schedule=instantiate(cfg.optimizer.schedule),
            guides=lambda pictures, labels, ranks: guides(cfg, pictures, labels=labels, ranks=ranks),
            trainer=objects.trainer_factory(cfg),
            teacher=objects.teacher(cfg),
            shape_teacher=objects.shape_teacher(cfg),
            vocabulary=partial(instantiate, objects.plain(cfg.language), _convert_="all"),
        )
    except InputError:
        raise
    except Exception as error:
        if (line := foreseen(error)) is None:
            raise
        raise InputError(line) from error


def _word(key: str, value: Any) -> str:
    """Return a plain value as it is typed on a command line.

    Raises:
        InputError: if it is none.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(_word(key, one) for one in value)}]"
    if isinstance(value, str):
        # What a command line would read as something else than a text.
        return quoted(value) if value in ("", "null") or value[0] in "[{" or "${" in value else value
    if isinstance(value, int | float):
        return repr(value)
    raise InputError(f"options: {key}={value!r} is no plain value")
