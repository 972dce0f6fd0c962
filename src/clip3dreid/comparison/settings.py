"""Say how runs are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clip3dreid.io.checks import Positive, Seed, check


@dataclass(frozen=True)
class CompareSettings:
    """How runs are compared.

    Args:
        baseline: the variant that the others are compared with.
        protocol: one of those in the results; None: the headline.
        checkpoint: `last`, or `best` where held-out people selected one.
        feature: `headline`, what each run compares pictures by; or `embedding`, the embedding alone of all runs.
        order: variants from the top; those that are left out follow. Empty: as they are found, the baseline first.
        resamples: of the bootstrap over query people.
        seed: of the bootstrap.

    Raises:
        InputError: if a value is none of these.
    """

    baseline: str = "ce"
    protocol: str | None = None
    checkpoint: str = "last"
    feature: Literal["headline", "embedding"] = "headline"
    order: tuple[str, ...] = ()
    resamples: Positive = 10_000
    seed: Seed = 1

    def __post_init__(self) -> None:
        check(self)
