"""Means, paired differences, intervals and relative times, against numbers worked out by hand."""

from pathlib import Path

import polars as pl
import pytest
from scipy.stats import t

from clip3dreid.comparison.runs import Pair, Run
from clip3dreid.comparison.statistics import Runs, variant_of, without_partner

PEOPLE = ["ann", "ann", "bob", "bob"]


def run(
    variant: str, pair: Pair, hits: list[float], step: float | None = None, pictures: int | None = None
) -> Run:
    """A run with four queries of two people, whose average precisions are half their first hits."""
    queries = pl.DataFrame(
        {"query": ["a", "b", "c", "d"], "person": PEOPLE, "r1": hits, "map": [hit / 2 for hit in hits]}
    )
    return Run(Path(variant), variant, pair, "ltcc", {}, None, queries, step, pictures)


def by_pair(*runs: Run) -> Runs:
    return {one.pair: one for one in runs}


ONE, TWO, THREE = (1, "world"), (2, "world"), (3, "world")
BASELINE = by_pair(run("ce", ONE, [1, 0, 0, 0], 0.2, 32), run("ce", TWO, [1, 0, 1, 0], 0.2, 32))
BETTER = by_pair(
    run("local", ONE, [1, 1, 1, 0], 0.3, 64),
    run("local", TWO, [1, 1, 1, 1], 0.5, 64),
    run("local", THREE, [0, 0, 0, 0], 9.0, 64),
)


def computed(name: str, members: Runs, others: Runs = BASELINE):
    return variant_of(name, members, others, baseline="ce", resamples=200, seed=1)


def test_scores_are_means_over_all_runs_and_differences_over_the_pairs() -> None:
    found = computed("local", BETTER)
    r1, map_ = found.scores["R1"], found.scores["mAP"]
    assert found.runs == 3
    # 0.75, 1 and 0: their mean, and their standard deviation with n - 1.
    assert r1.mean == pytest.approx(1.75 / 3)
    assert r1.sd == pytest.approx(
        (((0.75 - 1.75 / 3) ** 2 + (1 - 1.75 / 3) ** 2 + (1.75 / 3) ** 2) / 2) ** 0.5
    )
    # The third has no partner.
    assert r1.differences == (0.5, 0.5)
    assert r1.difference == 0.5
    assert map_.differences == (0.25, 0.25)
    assert map_.mean == pytest.approx(r1.mean / 2)


def test_the_interval_over_seeds_is_students() -> None:
    spread = by_pair(run("local", ONE, [1, 1, 0, 0]), run("local", TWO, [1, 1, 1, 1]))
    score = computed("local", spread).scores["R1"]
    assert score.differences == (0.25, 0.5)
    # Two values, one degree of freedom; their standard error is half the distance between them.
    half = t.ppf(0.975, 1) * 0.125
    assert score.seeds == pytest.approx((0.375 - half, 0.375 + half))


def test_the_interval_over_people_is_that_of_what_each_person_gains() -> None:
    # Ann gains 0.5 in the first pair and 0.5 in the second, Bob likewise: whoever is drawn, it is 0.5.
    assert computed("local", BETTER).scores["R1"].people == pytest.approx((0.5, 0.5))
    # Ann gains 1 and Bob nothing: two of them are drawn, one in four times Bob twice, one in four Ann twice.
    ann = computed("local", by_pair(run("local", ONE, [1, 1, 0, 0])), by_pair(run("ce", ONE, [0, 0, 0, 0])))
    assert ann.scores["R1"].people == (0, 1)


def test_times_are_medians_of_the_ratios_of_pairs() -> None:
    found = computed("local", BETTER)
    # 0.3 / 0.2 and 0.5 / 0.2, and half as much a picture, of which a step has twice as many.
    assert (found.step, found.picture) == (pytest.approx(2.0), pytest.approx(1.0))


def test_the_baseline_is_the_measure_and_nobodys_partner() -> None:
    found = computed("ce", BASELINE)
    assert (found.step, found.picture) == (1.0, 1.0)
    for score in found.scores.values():
        assert (score.differences, score.difference, score.people, score.seeds) == ((), None, None, None)


def test_what_is_not_known_is_none() -> None:
    alone = computed("local", by_pair(run("local", THREE, [1, 0, 0, 0])))
    assert (alone.step, alone.picture) == (None, None)
    assert (alone.scores["R1"].mean, alone.scores["R1"].sd, alone.scores["R1"].people) == (0.25, None, None)
    unmeasured = computed("local", by_pair(run("local", ONE, [1, 0, 0, 0], 0.4, None)))
    assert (unmeasured.step, unmeasured.picture) == (pytest.approx(2.0), None)
    assert unmeasured.scores["R1"].seeds is None


def test_runs_without_a_partner_are_noted_on_both_sides() -> None:
    grouped = {"ce": BASELINE, "local": BETTER, "all": by_pair(run("all", ONE, [1, 1, 1, 1]))}
    assert without_partner(grouped, "ce") == [
        "ce has no run with seed 3 on world, which local has: no pair",
        "all has no run with seed 2 on world, which ce has: no pair",
    ]
