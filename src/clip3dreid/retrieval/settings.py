"""Name and check what a ranking may be asked for. Nothing here loads torch: doors check it first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from clip3dreid.errors import InputError

Distance: TypeAlias = Literal["cosine", "euclidean"]
"""What the gallery is ranked by."""
AveragePrecision: TypeAlias = Literal["plain", "trapezoid"]
"""As `metrics.score_ranks` defines them."""
SamePicture: TypeAlias = Literal["drop", "keep"]
"""Whether a query's own picture in the gallery is junk."""


def check_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """Return the false positive rates of an open-set evaluation as numbers.

    Raises:
        InputError: unless there is at least one, all are between 0 and 1, and no two are equal.
    """
    try:
        numbers = tuple(float(rate) for rate in rates)
    except (TypeError, ValueError):
        numbers = ()
    different = len({f"{rate:g}" for rate in numbers}) == len(numbers)
    if not numbers or not different or not all(0 < rate < 1 for rate in numbers):
        raise InputError(
            f"open_set={rates} must be null, or a list of different false positive rates between 0 and 1, "
            "such as [1e-4,1e-3,1e-2]"
        )
    return numbers


def open_set_rates(rates: Sequence[float] | None, *, reranked: bool) -> tuple[float, ...] | None:
    """Return the false positive rates to report at, if any.

    Raises:
        InputError: as `check_rates`, or if scores are re-ranked and so not comparable between queries.
    """
    if rates is None:
        return None
    if reranked:
        raise InputError(
            "open_set compares scores of different queries, which re-ranked ones do not allow; leave "
            "open_set or the re-ranking out"
        )
    return check_rates(rates)
