"""Train a shape teacher: a small network that learns the shape coefficients of rendered, dressed people."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from clip3dreid.data.bodies import BodyTable, read_bodies
from clip3dreid.data.images import TestView, TrainView, to_unit
from clip3dreid.errors import InputError
from clip3dreid.guidance.bodies import moments
from clip3dreid.io.launch import FurtherProcesses
from clip3dreid.io.pictures import read_rgb
from clip3dreid.loss.identity import linear_classifier
from clip3dreid.model.build import build
from clip3dreid.model.shape_teacher import (
    ShapeAnswers,
    ShapeCard,
    ShapeNetwork,
    mirrored,
    save_shape_teacher,
)
from clip3dreid.model.small_clip import parameters
from clip3dreid.training.pretraining import PretrainingFolder, PretrainingModule, world_identity
from clip3dreid.training.pretraining_data import PretrainingData
from clip3dreid.training.teacher_settings import ShapePretrainingSettings

log = logging.getLogger(__name__)

PICTURES_AT_ONCE = 64


class ShapeBatch(NamedTuple):
    """Pictures of people whose shapes are known, as a batch."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    target: Tensor
    """(B, A) float32: coefficients, standardised as the network is to say them."""
    body: Tensor
    """(B,) int64, 0..bodies-1."""


class ShapeLesson:
    """What a shape teacher learns: whose picture it is, and that person's coefficients.

    Args:
        table: of the pictures.
        card: which coefficients, and how they are standardised.
    """

    def __init__(self, table: BodyTable, card: ShapeCard) -> None:
        learnt = torch.from_numpy(table.betas)[:, list(card.coefficients)]
        self._target = (learnt - torch.tensor(card.mean)) / torch.tensor(card.deviation)
        self._body = torch.from_numpy(table.body)

    def say(self, row: int, rng: np.random.Generator) -> None:
        """Say nothing: what is true of a picture is always the same."""

    def join(
        self, rows: Sequence[int], images: Sequence[npt.NDArray[np.uint8]], said: Sequence[None]
    ) -> ShapeBatch:
        """Return a batch."""
        index = list(rows)
        return ShapeBatch(torch.from_numpy(np.stack(images)), self._target[index], self._body[index])


def shape_loss(answers: ShapeAnswers, target: Tensor, balance: float) -> Tensor:
    """Return the loss of answers with uncertainty, a scalar: a Gaussian's negative log likelihood, balanced.

    A likelihood alone learns least where it errs most, since it can call itself unsure there instead; so every error
    is multiplied with a power of its own variance, through which no gradient flows.

    Source: Seitzer et al., "On the Pitfalls of Heteroscedastic Uncertainty Estimation with Probabilistic Neural
    Networks", ICLR 2022, equation 5.

    Args:
        answers: of B pictures.
        target: (B, A), standardised.
        balance: exponent, 0 (the likelihood) to 1 (the gradient of a squared error on the values).
    """
    variance = answers.log_variance.exp()
    likelihood = ((answers.value - target).square() / variance + answers.log_variance) / 2
    return (likelihood * variance.detach() ** balance).mean()


class ShapePretrainingModule(PretrainingModule):
    """Train a `ShapeNetwork`.

    Args:
        network: with random or pretrained weights.
        people: how many there are, where the network is to tell them apart instead.
        balance: see `shape_loss`.
        smoothing: of the labels where people are told apart.
        optimizer: makes an optimiser from parameter groups.
        schedule: multiplier of the learning rate for a 0-based epoch.
    """

    def __init__(
        self,
        network: ShapeNetwork,
        *,
        people: int,
        balance: float,
        smoothing: float,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        schedule: Callable[[int], float],
    ) -> None:
        super().__init__(optimizer, schedule)
        self.network = network
        self.classifier = None if network.head is not None else linear_classifier(network.width, people)
        self.balance, self.smoothing = balance, smoothing

    def training_step(self, batch: ShapeBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch; its parts are logged.

        Raises:
            FloatingPointError: if the loss is NaN or infinite.
        """
        answers: ShapeAnswers = self.network(to_unit(batch.images))
        if self.classifier is None:
            loss = shape_loss(answers, batch.target, self.balance)
            terms = {"loss/shape": loss, "loss/squared_error": F.mse_loss(answers.value, batch.target)}
        else:
            logits = self.classifier(answers.value)
            loss = F.cross_entropy(logits, batch.body, label_smoothing=self.smoothing)
            terms = {"loss/identity": loss}
        return self.logged(loss, terms, batch_idx, len(batch.images))


class PretrainedShapeTeacher(NamedTuple):
    """What came of a pretraining."""

    folder: Path
    """Of the shape teacher, as `model.shape_teacher.path` takes it."""
    pictures: int
    weights: int
    """Numbers that it has learnt."""
    seconds: int
    """Of training, in this go."""
    correlation: tuple[float, ...]
    """Of each coefficient, between truth and answer on people that it has not seen; empty for `identity`."""


def pretrain_shape_teacher(
    worlds: Sequence[Path],
    out: Path,
    settings: ShapePretrainingSettings,
    *,
    student: Mapping[str, Any],
    body: Mapping[str, Any],
    train_view: TrainView,
    optimizer: Callable[[list[dict[str, Any]]], Optimizer],
    schedule: Callable[[int], float],
    trainer: Callable[..., pl.Trainer],
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    record: Mapping[str, Any] | None = None,
    processes: FurtherProcesses | None = None,
    trusted: Sequence[str] = (),
) -> PretrainedShapeTeacher:
    """Train a shape teacher, or go on training it, and write its folder.

    Args:
        worlds: folders that `synthesize` wrote, whose training people are learnt and whose test people judge.
        out: the run's folder; the shape teacher comes to lie in `out/shape_teacher`.
        settings: of data and schedule.
        student: description of its network, as a card has it.
        body: `name`, `sha256` and `num_betas` of the body that the worlds were rendered with.
        train_view: augmentation; its size is that of the pictures.
        optimizer: makes an optimiser from parameter groups.
        schedule: multiplier of the learning rate for a 0-based epoch.
        trainer: makes a Trainer of its callbacks, loggers and plugins.
        callbacks: besides those that keep and stop a run.
        loggers: of the trainer.
        record: all that decides what comes of it, as plain values; a folder with another record is refused. None: the
            arguments that are plain.
        processes: what starts further processes, where the trainer has several.
        trusted: packages of the user's own whose classes the network may be made of.

    Raises:
        InputError: if worlds, body or network do not fit, or `out` holds something else or is in use.
        SystemExit: with 128 and the signal's number if the run was stopped by Ctrl-C or a scheduler.
    """
    known = record or {
        "worlds": [str(world) for world in worlds],
        "student": dict(student),
        **dataclasses.asdict(settings),
    }
    folder = PretrainingFolder(out, known, "shape_teacher")
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    people = {
        split: joined([read_bodies(one, split, dressed=True, key="worlds") for one in worlds])
        for split in ("train", "test")
    }
    train = people["train"]
    card = _card(train, settings, student, body, train_view)
    network = ShapeNetwork(build(student, trusted), len(card.coefficients) or None)
    data = PretrainingData(
        train.files,
        ShapeLesson(train, card),
        train_view=train_view,
        batch=settings.batch,
        workers=settings.workers,
        in_memory=settings.in_memory,
        seed=settings.seed,
    )
    module = ShapePretrainingModule(
        network,
        people=train.bodies,
        balance=settings.balance,
        smoothing=settings.smoothing,
        optimizer=optimizer,
        schedule=schedule,
    )
    weights = parameters(network)
    log.info("%d pictures of %d people, %s weights", len(train.files), train.bodies, f"{weights:,}")
    seconds = folder.fit(
        module, data, trainer=trainer, callbacks=callbacks, loggers=loggers, processes=processes
    )
    view = TestView(train_view.height, train_view.width, train_view.square)
    found = correlations(network.eval(), people["test"], view, card.coefficients)
    worlds_seen = [world_identity(world) for world in worlds]
    facts = {
        "trained_on": {"worlds": worlds_seen, "pictures": len(train.files), "people": train.bodies},
        "seed": settings.seed,
        "epochs": settings.epochs,
        "seconds": seconds,
        "weights": weights,
        "unseen": {"people": people["test"].bodies, "correlation": [round(one, 4) for one in found]},
    }
    rank_zero_only(save_shape_teacher)(folder.product, network, card, facts)
    return PretrainedShapeTeacher(folder.product, len(train.files), weights, seconds, found)


def _card(
    train: BodyTable,
    settings: ShapePretrainingSettings,
    student: Mapping[str, Any],
    body: Mapping[str, Any],
    view: TrainView,
) -> ShapeCard:
    """Return what the folder is to say of a network that learns from these people.

    Raises:
        InputError: if their coefficients are not the body's, or none is left to learn.
    """
    known, count = train.betas.shape[1], int(body["num_betas"])
    if known != count or settings.skipped >= count:
        raise InputError(
            f"the people of these worlds have {known} shape coefficients, body {body['name']} has {count} and "
            f"skipped={settings.skipped}; give the body they were rendered with (body=NAME), and skip fewer"
        )
    _, first = np.unique(train.body, return_index=True)
    mean, deviation = moments(train.betas[first])
    learnt = tuple(range(settings.skipped, count)) if settings.learns == "betas" else ()
    return ShapeCard(
        learns=settings.learns,
        student=dict(student),
        height=view.height,
        width=view.width,
        coefficients=learnt,
        mean=tuple(mean[list(learnt)].tolist()),
        deviation=tuple(deviation[list(learnt)].tolist()),
        rest=tuple(mean.tolist()),
        body=dict(body),
    )


def joined(tables: Sequence[BodyTable]) -> BodyTable:
    """Return the pictures of several folders as those of one; nobody is in two of them."""
    starts = np.cumsum([0, *(table.bodies for table in tables)])
    return BodyTable(
        [file for table in tables for file in table.files],
        np.concatenate([table.betas for table in tables]),
        np.concatenate([table.body + start for table, start in zip(tables, starts, strict=False)]),
    )


@torch.no_grad()
def correlations(
    network: ShapeNetwork, table: BodyTable, view: TestView, coefficients: Sequence[int]
) -> tuple[float, ...]:
    """Return for each coefficient the correlation of truth and answer over people, whose answers are averaged.

    Args:
        network: in evaluation mode.
        table: people's pictures and coefficients.
        view: how a picture is shown.
        coefficients: (A,) which ones the network says.
    """
    if not coefficients:
        return ()
    device = next(network.parameters()).device
    sums, counts = np.zeros((table.bodies, len(coefficients))), np.zeros((table.bodies, 1))
    for start in range(0, len(table.files), PICTURES_AT_ONCE):
        some = slice(start, start + PICTURES_AT_ONCE)
        images = torch.from_numpy(np.stack([view(read_rgb(path)) for path in table.files[some]]))
        said = mirrored(network, to_unit(images.to(device)))
        np.add.at(sums, table.body[some], said.value.cpu().numpy())
        np.add.at(counts, table.body[some], 1)
    _, first = np.unique(table.body, return_index=True)
    true, means = table.betas[first][:, list(coefficients)], sums / counts
    return tuple(float(np.corrcoef(means[:, i], true[:, i])[0, 1]) for i in range(len(coefficients)))
