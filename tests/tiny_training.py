"""Trainings of every method on random pictures: nothing is read from a disk, and little is imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn import functional as F

from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.loss.body import BodyShape
from clip3dreid.loss.clothes import ClothesAdversarial, ClothesMemory
from clip3dreid.loss.distill import GlobalAlignment
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.loss.local import LocalAlignment
from clip3dreid.loss.local_contrast import LocalContrast
from clip3dreid.loss.margin_heads import ArcFace, Circle, CosFace
from clip3dreid.loss.pairwise import Contrastive, PairwiseCircle, PairwiseCosFace, Triplet
from clip3dreid.loss.shape import ShapeAlignment
from clip3dreid.loss.transport import Sinkhorn
from clip3dreid.loss.weighted import WeightedLosses
from clip3dreid.model.embedding_cache import MemoryCache, TeacherEmbeddings
from clip3dreid.model.pooling import MaximumAverage
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.student import Student
from clip3dreid.training.module import ReidModule
from clip3dreid.types import (
    Batch,
    BodyBatch,
    BodySpace,
    Dimensions,
    ShapeTargets,
    TeacherSpace,
    TextTargets,
)

PEOPLE, PICTURES, BODIES, WIDTH, BETAS = 12, 32, 8, 16, 10
_TRANSPORT = {
    "solver": Sinkhorn(eps=0.1, iterations=20, tolerance=1e-3),
    "centre": "vocabulary",
    "positions": "uniform",
    "tokens": "uniform",
}
_IDENTITY = {"identity": partial(CrossEntropy, smoothing=0.1)}
_CLOTHES = {"clothes_adversarial": partial(ClothesAdversarial, scale=16.0, epsilon=0.1)}
_GUIDED = {
    "local": partial(LocalContrast, temperature=0.05, learn_temperature=True, **_TRANSPORT),
    "global": partial(GlobalAlignment, source="embedding", centre=True),
    "shape": partial(ShapeAlignment, weighting="certainty"),
}
METHODS: dict[str, dict[str, Any]] = {
    "ce": _IDENTITY,
    "cal": {**_IDENTITY, **_CLOTHES},
    "clip3dreid": {**_IDENTITY, **_GUIDED},
    "clip3dreid_cal": {**_IDENTITY, **_GUIDED, **_CLOTHES},
    "clip3dreid_paper": {
        **_IDENTITY,
        "local": partial(LocalAlignment, projection="student", **_TRANSPORT),
        "global": partial(GlobalAlignment, source="embedding", centre=True),
        "body": partial(BodyShape, vertex_weight=1.0, scale="stature"),
    },
    "pairs": {
        **_IDENTITY,
        "triplet": partial(Triplet, margin=0.3, distance="cosine"),
        "euclidean": partial(Triplet, margin=None, distance="euclidean"),
        "circle": partial(PairwiseCircle, scale=48.0, margin=0.35),
        "cosface": partial(PairwiseCosFace, scale=16.0, margin=0.0),
        "contrastive": partial(Contrastive, scale=16.0),
        "memory": partial(ClothesMemory, scale=16.0, epsilon=0.1, momentum=0.2),
    },
    "margins": {
        "arcface": partial(ArcFace, scale=16.0, margin=0.1),
        "cosface": partial(CosFace, scale=16.0, margin=0.1),
        "circle": partial(Circle, scale=96.0, margin=0.3),
    },
}
"""Method -> its terms."""


class _Repeated:
    def __init__(self, batch: Any, times: int) -> None:
        self._batches = [batch] * times

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class TinyData(pl.LightningDataModule):
    """One random batch again and again, in pinned memory where there is a GPU."""

    on_before_batch_transfer = ReidDataModule.on_before_batch_transfer  # type: ignore[assignment]
    on_after_batch_transfer = ReidDataModule.on_after_batch_transfer  # type: ignore[assignment]

    def __init__(self, steps: int, *, bodies: bool, pinned: bool) -> None:
        super().__init__()
        row = torch.arange(PICTURES)
        person = row // 4 % PEOPLE
        images = torch.randint(0, 256, (PICTURES, 3, 32, 16), dtype=torch.uint8)
        people = Batch(images, person, 2 * person + row % 2, row % 3, row)
        second = BodyBatch(images[:BODIES], torch.randn(BODIES, BETAS), torch.arange(BODIES))
        if pinned:
            people, second = people._make(map(_pinned, people)), second._make(map(_pinned, second))
        self.batch: Any = {"people": people, "bodies": second} if bodies else people
        self.steps = steps
        # Of pictures that a loader has left to the device; there are none.
        self.train_view = None
        self.bodies = SimpleNamespace(view=None)

    def rows(self, world_size: int) -> list[int]:
        return [PICTURES // world_size] * world_size

    def train_dataloader(self) -> Any:
        return _Repeated(self.batch, self.steps)


def _pinned(value: Any) -> Any:
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


def _units(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def _guides() -> tuple[object, ...]:
    words = _units(10, WIDTH)
    # Pairs of people share their words.
    chosen = torch.arange(PEOPLE)[:, None] // 2 % 4 + torch.tensor([0, 5])
    certain = torch.ones(PEOPLE, BETAS)
    return (
        TextTargets(words, chosen, torch.ones(PEOPLE, 2), "person", words),
        TeacherSpace(WIDTH, torch.zeros(WIDTH)),
        ShapeTargets(torch.randn(PEOPLE, BETAS), certain, "person", tuple(range(BETAS)), certain[0], certain[0]),
        BodySpace(torch.randn(20, 3), torch.randn(20, 3, BETAS), torch.zeros(BETAS), torch.ones(BETAS), BODIES),
    )  # fmt: skip


def tiny_training(
    method: str,
    steps: int,
    *,
    pinned: bool = False,
    ghost_group: int | None = 16,
    channels_last: bool = False,
) -> tuple[ReidModule, TinyData]:
    """Return a training of a method, to be given to a trainer."""
    torch.manual_seed(0)
    student = Student(
        ResNet(18, width=8),
        MaximumAverage(),
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
        ghost_group=ghost_group,
    )
    if channels_last:
        student.to(memory_format=torch.channels_last)
    dimensions = Dimensions(
        student.channels, student.width, PEOPLE, torch.arange(2 * PEOPLE) // 2, guides=_guides()
    )
    entries: Any = {
        name: {"weight": 1.0, "start_epoch": 0, "warmup_epochs": 0, "term": term}
        for name, term in METHODS[method].items()
    }
    guided = "global" in entries
    module = ReidModule(
        student,
        WeightedLosses(entries, dimensions),
        optimizer=partial(torch.optim.Adam, lr=3.5e-4, weight_decay=5e-4),
        schedule=lambda epoch: 1.0,
        card={},
        seed=1,
        protocols={},
        metric="cosine",
        flip=True,
        targets={"teacher": TeacherEmbeddings(cache=MemoryCache(_units(PICTURES, WIDTH)))}
        if guided
        else None,
        gradient_norms_every=200,
    )
    return module, TinyData(steps, bodies="body" in entries, pinned=pinned)


def tiny_trainer(callbacks: Sequence[pl.Callback] = (), **how: Any) -> pl.Trainer:
    """Return a trainer that says and saves nothing."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        max_epochs=1, devices=1, num_sanity_val_steps=0, log_every_n_steps=1, enable_model_summary=False,
        callbacks=list(callbacks), **{**quiet, **how},
    )  # fmt: skip
