"""Compute what variants are worth: means over runs, paired differences, their intervals, relative times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clip3dreid.comparison.runs import SCORES, Pair, Run
from clip3dreid.report.ablation import Score, Variant
from clip3dreid.retrieval.bootstrap import LEVEL, Interval, QueryScores, paired_difference, t_interval

Runs = Mapping[Pair, Run]
"""The runs of one variant."""


def variant_of(
    name: str, members: Runs, others: Runs, *, baseline: str, resamples: int, seed: int
) -> Variant:
    """Compute what a variant scores, and its differences to the baseline.

    Args:
        name: of the variant.
        members: its runs.
        others: those of the baseline.
        baseline: its name.
        resamples: of the bootstrap.
        seed: likewise.
    """
    pairs = [pair for pair in members if pair in others] if name != baseline else []
    scores = {}
    for key, title in SCORES.items():
        means = [run.mean(key) for run in members.values()]
        differences = [members[pair].mean(key) - others[pair].mean(key) for pair in pairs]
        scores[title] = Score(
            mean=float(np.mean(means)),
            sd=float(np.std(means, ddof=1)) if len(means) > 1 else None,
            differences=tuple(differences),
            people=_over_people(key, members, others, pairs, resamples, seed),
            seeds=t_interval(differences, LEVEL),
        )
    steps = _ratios(members, others, pairs)
    pictures = _ratios(members, others, pairs, each_picture=True)
    if name == baseline and any(run.step_seconds for run in members.values()):
        steps, pictures = [1.0], [1.0]
    return Variant(
        name,
        len(members),
        scores,
        step=float(np.median(steps)) if steps else None,
        picture=float(np.median(pictures)) if pictures else None,
    )


def without_partner(grouped: Mapping[str, Runs], baseline: str) -> list[str]:
    """Return a note on each run that has no partner among the baseline's, or that the baseline alone has.

    Args:
        grouped: variant -> its runs.
        baseline: one of the variants.
    """

    def alone(name: str, other: str) -> list[str]:
        return [
            f"{other} has no run with seed {seed} on {root}, which {name} has: no pair"
            for seed, root in grouped[name]
            if (seed, root) not in grouped[other]
        ]

    return [note for name in grouped for note in (*alone(name, baseline), *alone(baseline, name))]


def _over_people(
    key: str, members: Runs, others: Runs, pairs: Sequence[Pair], resamples: int, seed: int
) -> Interval | None:
    """Return an interval of the mean difference over query people; runs on one data folder ask the same people."""
    if not pairs:
        return None
    by_root: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_root.setdefault(pair[1], []).append(pair)

    def samples(runs: Runs) -> list[QueryScores]:
        return [
            QueryScores(
                np.stack([runs[pair].values(key) for pair in on_root]),
                runs[on_root[0]].queries["person"].to_numpy(),
            )
            for on_root in by_root.values()
        ]

    return paired_difference(samples(members), samples(others), level=LEVEL, resamples=resamples, seed=seed)


def _ratios(members: Runs, others: Runs, pairs: Sequence[Pair], *, each_picture: bool = False) -> list[float]:
    """Return the time of a step, or of a picture, over that of the baseline; of each pair for which it is known."""
    ratios = []
    for pair in pairs:
        one, other = members[pair], others[pair]
        if one.step_seconds and other.step_seconds:
            ratio = one.step_seconds / other.step_seconds
            if not each_picture:
                ratios.append(ratio)
            elif one.pictures and other.pictures:
                ratios.append(ratio * other.pictures / one.pictures)
    return ratios
