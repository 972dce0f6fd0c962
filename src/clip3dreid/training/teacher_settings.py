"""Settings of the pretraining of teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Count, Fraction, Positive, Range, Seed, check


@dataclass(frozen=True)
class PretrainingSettings:
    """Say how a teacher is trained from nothing.

    Args:
        seed: of order, augmentation, sentences and weights.
        epochs: in all.
        naming_epochs: the first ones, in which the image tower alone learns to name words.
        naming_weight: of the naming beside the contrastive loss.
        batch: pictures in the global batch.
        sentences_per_picture: drawn anew every time that a picture is shown.
        vocabulary_size: tokens.
        context: tokens of the longest sentence.
        workers: loader processes.
        in_memory: keep all pictures decoded.
        mean: of R, G and B, that pictures in 0..1 are normalised with.
        std: likewise.

    Raises:
        InputError: if a value is out of bounds.
    """

    seed: Seed = 1
    epochs: Positive = 46
    naming_epochs: Count = 30
    naming_weight: Annotated[float, Range(0)] = 0.5
    batch: Positive = 64
    sentences_per_picture: Positive = 2
    vocabulary_size: Positive = 700
    context: Positive = 112
    workers: Count = 1
    in_memory: bool = True
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        check(self)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(
                f"mean={list(self.mean)} and std={list(self.std)} must be three numbers each, std positive"
            )


@dataclass(frozen=True)
class ShapePretrainingSettings:
    """Say how a shape teacher is trained.

    Args:
        learns: `betas`, the shape coefficients; or, a control, `identity`: who is who among the same people.
        skipped: how many of the first coefficients are left out: stature, which a crop does not show.
        balance: how much the surer answers weigh less than in a likelihood: 0 is the likelihood itself, 1 all alike
            (beta of Seitzer et al., ICLR 2022).
        smoothing: of the labels of `identity`.
        seed: of order, augmentation and weights.
        epochs: in all.
        batch: pictures in the global batch.
        workers: loader processes.
        in_memory: keep all pictures decoded.

    Raises:
        InputError: if a value is out of bounds.
    """

    learns: Literal["betas", "identity"] = "betas"
    skipped: Count = 1
    balance: Fraction = 0.5
    smoothing: Fraction = 0.1
    seed: Seed = 1
    epochs: Positive = 12
    batch: Positive = 64
    workers: Count = 1
    in_memory: bool = True

    def __post_init__(self) -> None:
        check(self)
