"""Train a small teacher from nothing: first the image tower alone, to name words, then both towers together."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from clip3dreid.data.images import TrainView, to_unit
from clip3dreid.io.launch import FurtherProcesses
from clip3dreid.language.sentences import Sentences
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.loss.image_text import image_text_contrastive
from clip3dreid.model.small_clip import (
    make_small_clip,
    parameters,
    save_small_clip,
    train_tokenizer,
)
from clip3dreid.training.pretraining import PretrainingFolder, PretrainingModule, world_identity
from clip3dreid.training.pretraining_data import PretrainingData
from clip3dreid.training.teacher_data import (
    ImageTextBatch,
    SentenceLesson,
    read_training_set,
    tokenizer_texts,
)
from clip3dreid.training.teacher_settings import PretrainingSettings

log = logging.getLogger(__name__)

CARD_VERSION = 1
MOST_SCALE = 100.0
"""Of the factor on cosines, as in CLIP: more makes training unstable."""


class PretrainedTeacher(NamedTuple):
    """What came of a pretraining."""

    folder: Path
    """Of the teacher, as `model.teacher.path` takes it."""
    pictures: int
    weights: int
    """Numbers that the teacher has learnt."""
    seconds: int
    """Of training, in this go."""


class TeacherPretrainingModule(PretrainingModule):
    """Train a `transformers.CLIPModel`: it first learns to see, then to read.

    From nothing, the contrastive loss of both towers stays where nothing is told apart (the logarithm of the batch)
    for longer than a laptop's patience. So for the first epochs the image tower alone learns to name each group's
    word, through a linear classifier that is thrown away afterwards; then the contrastive loss teaches both towers,
    with the naming beside it.

    Args:
        model: with random weights.
        groups: number of words in each group.
        mean: of R, G and B, that pictures in 0..1 are normalised with.
        std: likewise.
        naming_epochs: epochs before the contrastive loss.
        naming_weight: of the naming beside it.
        optimizer: makes an optimiser from parameter groups.
        schedule: multiplier of the learning rate for a 0-based epoch.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        groups: Sequence[int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        naming_epochs: int,
        naming_weight: float,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        schedule: Callable[[int], float],
    ) -> None:
        super().__init__(optimizer, schedule)
        self.model = model
        self.groups = list(groups)
        self.naming = nn.Linear(model.config.projection_dim, sum(groups))
        self.naming_epochs, self.naming_weight = naming_epochs, naming_weight
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1), persistent=False)

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch; its parts are logged.

        Raises:
            FloatingPointError: if the loss is NaN or infinite.
        """
        pixels = (to_unit(batch.images) - self.mean) / self.std
        images = self.model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output.float()
        parts = self.naming(images).split(self.groups, 1)
        naming = torch.stack(
            [F.cross_entropy(part, batch.words[:, group]) for group, part in enumerate(parts)]
        ).mean()
        terms = {"loss/naming": naming}
        loss = naming
        if self.current_epoch >= self.naming_epochs:
            contrastive = self._contrastive(images, batch)
            terms |= {"loss/contrastive": contrastive, "train/scale": self.model.logit_scale.detach().exp()}
            loss = contrastive + self.naming_weight * naming
        return self.logged(loss, terms, batch_idx, len(images))

    def _contrastive(self, images: Tensor, batch: ImageTextBatch) -> Tensor:
        ids, mask = batch.ids.flatten(0, 1), batch.mask.flatten(0, 1)
        texts = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output.float()
        texts = F.normalize(texts, dim=-1).view(*batch.ids.shape[:2], -1)
        return image_text_contrastive(F.normalize(images, dim=-1), texts, self.model.logit_scale.exp())

    def on_train_batch_end(self, outputs: Any, batch: ImageTextBatch, batch_idx: int) -> None:
        """Keep the factor on cosines within bounds."""
        self.model.logit_scale.data.clamp_(0, math.log(MOST_SCALE))


def pretrain_teacher(
    worlds: Sequence[Path],
    out: Path,
    settings: PretrainingSettings,
    *,
    vocabulary: Vocabulary,
    sentences: Sentences,
    clip: Mapping[str, Any],
    train_view: TrainView,
    optimizer: Callable[[list[dict[str, Any]]], Optimizer],
    schedule: Callable[[int], float],
    trainer: Callable[..., pl.Trainer],
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    record: Mapping[str, Any] | None = None,
    processes: FurtherProcesses | None = None,
) -> PretrainedTeacher:
    """Train a small teacher, or go on training it, and write its folder.

    Args:
        worlds: folders that `synthesize` wrote, whose training people are read.
        out: the run's folder; the teacher comes to lie in `out/teacher`.
        settings: of data and schedule.
        vocabulary: of the words.
        sentences: how they are said.
        clip: of `transformers.CLIPConfig`, as plain values.
        train_view: augmentation; its size is that of the pictures.
        optimizer: makes an optimiser from parameter groups.
        schedule: multiplier of the learning rate for a 0-based epoch.
        trainer: makes a Trainer of its callbacks, loggers and plugins.
        callbacks: besides those that keep and stop a run.
        loggers: of the trainer.
        processes: what starts further processes, where the trainer has several.
        record: all that decides what comes of it, as plain values; a folder with another record is refused. None: the
            arguments that are plain.

    Raises:
        InputError: if world, grammar or network do not fit, or `out` holds something else or is in use.
        SystemExit: with 128 and the signal's number if the run was stopped by Ctrl-C or a scheduler.
    """
    known = record or {
        "worlds": [str(world) for world in worlds],
        "clip": dict(clip),
        "vocabulary": vocabulary.digest,
        **dataclasses.asdict(settings),
    }
    folder = PretrainingFolder(out, known, "teacher")
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    people = read_training_set(worlds, list(vocabulary.groups))
    taught = {"worlds": [world_identity(world) for world in worlds], "pictures": len(people.files)}
    texts = tokenizer_texts(people.words, sentences, settings.seed)
    tokenizer = train_tokenizer(texts, settings.vocabulary_size, settings.context)
    data = PretrainingData(
        people.files,
        SentenceLesson(people, sentences, tokenizer, settings.sentences_per_picture),
        train_view=train_view,
        batch=settings.batch,
        workers=settings.workers,
        in_memory=settings.in_memory,
        seed=settings.seed,
    )
    module = TeacherPretrainingModule(
        make_small_clip(tokenizer, clip),
        [len(words) for words in vocabulary.groups.values()],
        naming_epochs=settings.naming_epochs,
        naming_weight=settings.naming_weight,
        mean=settings.mean,
        std=settings.std,
        optimizer=optimizer,
        schedule=schedule,
    )
    log.info("%d pictures, %s weights", len(people.files), f"{parameters(module.model):,}")
    seconds = folder.fit(
        module, data, trainer=trainer, callbacks=callbacks, loggers=loggers, processes=processes
    )
    weights = parameters(module.model)
    card = {
        "version": CARD_VERSION,
        "trained_on": taught,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "seconds": seconds,
        "weights": weights,
        "vocabulary": vocabulary.digest,
        "view": {"height": train_view.height, "width": train_view.width},
    }
    rank_zero_only(save_small_clip)(
        folder.product, module.model, tokenizer, settings.mean, settings.std, card
    )
    return PretrainedTeacher(folder.product, len(people.files), weights, seconds)
