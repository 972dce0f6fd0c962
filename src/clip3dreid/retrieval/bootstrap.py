"""Say how sure a score is: intervals over query people, and over repeated trainings.

Queries of one person stand or fall together, so people are what is drawn anew, each with all their queries: the
cluster bootstrap (Field & Welsh, "Bootstrapping clustered data", JRSS B 2007), with percentile intervals (Efron &
Tibshirani, "An introduction to the bootstrap", 1993, chapter 13). The gallery stays as it is: a person who is drawn
twice asks twice, and does not stand in the gallery twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating[Any]]

LEVEL = 0.95
RESAMPLES = 10_000
_DRAWN = 1 << 22
"""People drawn at a time, over all resamples of a block: 32 MiB."""


class Interval(NamedTuple):
    """From `low` to `high`, both in the unit of the values."""

    low: float
    high: float


class QueryScores(NamedTuple):
    """What K runs scored on the same Q queries of one world."""

    values: Values
    """(Q,), or (K, Q): a score of each query, such as 1 for a first hit, or average precision."""
    person: npt.NDArray[Any]
    """(Q,) whose queries they are, strings or numbers; the same name in another sample is another person."""


def paired_difference(
    first: Sequence[QueryScores],
    second: Sequence[QueryScores],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 1,
) -> Interval | None:
    """Return an interval of how much higher `first` scores than `second` on the same queries.

    Each resample takes the same people for both, so what makes a person easy or hard for both cancels out.

    Args:
        first: a sample of each world.
        second: of the same worlds in the same order, with the same queries and numbers of runs.
        level: confidence, between 0 and 1.
        resamples: how often people are drawn.
        seed: of the drawing.

    Returns:
        As `interval` of the differences, query by query. Equal values give exactly 0 to 0.

    Raises:
        ValueError: if the samples do not belong together.
    """
    differences = []
    for one, other in zip(first, second, strict=True):
        if np.shape(one.values) != np.shape(other.values) or not np.array_equal(one.person, other.person):
            raise ValueError("both samples of a pair must hold the same queries of the same people")
        differences.append(QueryScores(np.subtract(one.values, other.values, dtype=np.float64), one.person))
    return interval(differences, level=level, resamples=resamples, seed=seed)


def interval(
    samples: Sequence[QueryScores], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 1
) -> Interval | None:
    """Return a percentile interval of the mean over runs of each run's mean over its queries.

    A resample draws, in each world, as many people as it has, with replacement, and takes the sum of the drawn
    people's values over the number of their queries; people have different numbers of them. Runs of one world are
    scored on the same drawn people: they are no further evidence about people. Worlds are drawn independently.

    Args:
        samples: one for each world, with one or several runs.
        level: confidence, between 0 and 1.
        resamples: how often people are drawn.
        seed: of the drawing.

    Returns:
        The interval, in the unit of the values; None where a world has a single person, from whom no spread is
        to be learnt.

    Raises:
        ValueError: if there are no samples, no queries, or values that are not finite or do not fit the people.
    """
    if not samples or not 0 < level < 1 or resamples < 1:
        raise ValueError("an interval needs a sample, a level between 0 and 1, and at least one resample")
    people = [_sums(sample) for sample in samples]
    if any(len(counts) < 2 for _, counts, _ in people):
        return None
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for sums, counts, runs in people:
        done = 0
        for weights in _weights(len(counts), resamples, rng):
            total[done : done + len(weights)] += runs * (weights @ sums) / (weights @ counts)
            done += len(weights)
    total /= sum(runs for _, _, runs in people)
    low, high = np.quantile(total, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def confidences(
    values: Values,
    person: npt.NDArray[Any],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 1,
) -> list[Interval] | None:
    """Return intervals of a single run's means over its queries, of several scores of the same queries.

    The drawing, which takes the time, is done once for all scores.

    Args:
        values: (K, Q) scores of each valid query.
        person: (Q,) whose queries they are.
        level: confidence, between 0 and 1.
        resamples: how often people are drawn.
        seed: of the drawing.

    Returns:
        For each of the K scores what `interval` gives of it.

    Raises:
        ValueError: as `interval`.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError("an interval needs a level between 0 and 1, and at least one resample")
    parts = [_sums(QueryScores(score, person)) for score in values]
    sums, counts = np.stack([score for score, _, _ in parts], 1), parts[0][1]
    if len(counts) < 2:
        return None
    drawn = _weights(len(counts), resamples, np.random.default_rng(seed))
    means = np.concatenate([(weights @ sums) / (weights @ counts)[:, None] for weights in drawn])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return Student's t interval of a mean (Student, "The probable error of a mean", Biometrika 1908).

    Args:
        values: one of each repetition, such as the paired difference of each seed.
        level: confidence, between 0 and 1.

    Returns:
        The interval, in the unit of the values; None of fewer than two values.
    """
    # Here, and not scipy.stats' own t, which takes longer to import than everything else in this file.
    from scipy.special import stdtrit

    count = len(values)
    if count < 2:
        return None
    mean = float(np.mean(values))
    half = float(stdtrit(count - 1, (1 + level) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean - half, mean + half)


def _sums(sample: QueryScores) -> tuple[Values, Values, int]:
    """Return (people,) sums of values, mean over the runs; (people,) numbers of queries; and the number of runs."""
    values = np.atleast_2d(np.asarray(sample.values, np.float64))
    person = np.asarray(sample.person)
    if values.ndim != 2 or person.shape != values.shape[1:] or not values.size:
        raise ValueError(
            f"values of shape {values.shape} do not fit {person.shape} people, or there are none"
        )
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    _, code = np.unique(person, return_inverse=True)
    sums = np.bincount(code, weights=values.mean(0)).astype(np.float64)
    return sums, np.bincount(code).astype(np.float64), len(values)


def _weights(people: int, resamples: int, rng: np.random.Generator) -> Iterator[Values]:
    """Yield (R, people) how often each person is drawn: multinomial counts, in blocks that fit the memory."""
    block = max(1, _DRAWN // people)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(people, size=(rows, people)) + people * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * people)
        yield counts.reshape(rows, people).astype(np.float64)
