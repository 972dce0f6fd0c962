import numpy as np
import pytest
from scipy import stats

from clip3dreid.retrieval import bootstrap
from clip3dreid.retrieval.bootstrap import (
    QueryScores,
    confidences,
    interval,
    paired_difference,
    t_interval,
)


def confidence(values, person, **keys):
    """The interval of a single run."""
    return interval([QueryScores(values, person)], **keys)


def queries(seed, people=30, effect=0.0):
    """Values and people: up to six queries each, which share what makes their person easy."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 7, people)
    person = np.repeat(np.arange(people), counts)
    ease = np.repeat(rng.uniform(0.2, 0.9 - effect, people), counts)
    return (rng.random(len(person)) < ease + effect).astype(float), person


def test_two_people_worked_by_hand():
    # Person a: one query, found. Person b: three, none found. Drawn are aa (1/4 of the time), ab (1/2), bb (1/4),
    # with means of 1, 1/4 and 0: sums over numbers of queries, not means of people's means.
    values, person = np.array([1.0, 0, 0, 0]), np.array(["a", "b", "b", "b"])
    assert confidence(values, person, level=0.95) == (0.0, 1.0)
    assert confidence(values, person, level=0.4) == (0.25, 0.25)


def plain(samples, weights, level):
    """The same with loops: `weights` has, for each sample, how often each person was drawn in each resample."""
    means = []
    for resample in range(len(weights[0])):
        runs = []
        for (values, person), drawn in zip(samples, weights, strict=True):
            names = sorted(set(person.tolist()))
            for run in np.atleast_2d(values):
                total, count = 0.0, 0
                for name, times in zip(names, drawn[resample], strict=True):
                    for value, who in zip(run, person, strict=True):
                        if who == name:
                            total += times * value
                            count += times
                runs.append(total / count)
        means.append(sum(runs) / len(runs))
    means.sort()

    def quantile(share):
        place = share * (len(means) - 1)
        below = int(place)
        return means[below] + (place - below) * (means[min(below + 1, len(means) - 1)] - means[below])

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


@pytest.mark.parametrize("block", [1, 500, 1 << 22])
def test_it_agrees_with_plain_loops_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(bootstrap, "_DRAWN", block)
    first, second = (queries(seed, people=9) for seed in (1, 2))
    samples = [
        QueryScores(np.stack([first[0], first[0][::-1], first[0] / 2]), first[1]),
        QueryScores(*second),
    ]
    rng = np.random.default_rng(5)
    weights = [np.concatenate(list(bootstrap._weights(9, 60, rng))) for _ in samples]
    found = interval(samples, level=0.8, resamples=60, seed=5)
    assert found == pytest.approx(plain(samples, weights, 0.8))


def test_every_resample_draws_as_many_people_as_there_are():
    weights = np.concatenate(list(bootstrap._weights(7, 5000, np.random.default_rng(0))))
    assert weights.shape == (5000, 7)
    assert (weights.sum(1) == 7).all()
    # Multinomial: mean 1, variance 1 - 1/7, covariance -1/7.
    np.testing.assert_allclose(np.cov(weights.T), np.eye(7) - 1 / 7, atol=0.06)


def test_it_agrees_with_scipy():
    values, person = queries(3)
    sums, counts = np.bincount(person, values), np.bincount(person)
    expected = stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert confidence(values, person, resamples=20_000) == pytest.approx(tuple(expected), abs=0.006)


def test_identical_runs_differ_by_exactly_nothing():
    samples = [QueryScores(*queries(seed)) for seed in range(3)]
    assert paired_difference(samples, samples) == (0.0, 0.0)


def test_a_shift_of_every_query_is_found_without_any_doubt():
    sample = QueryScores(*queries(0))
    low, high = paired_difference([QueryScores(sample.values + 0.25, sample.person)], [sample])
    assert low == pytest.approx(0.25)
    assert high == pytest.approx(0.25)


def test_a_pair_is_surer_than_two_runs_by_themselves():
    # What makes a person easy is the same in both runs, and cancels out.
    values, person = queries(4)
    other = values.copy()
    other[::7] = 1 - other[::7]
    low, high = paired_difference([QueryScores(values, person)], [QueryScores(other, person)])
    alone = confidence(values, person)
    assert low < np.mean(values - other) < high
    assert high - low < alone.high - alone.low


def test_runs_of_one_world_are_no_further_evidence_about_people_but_worlds_are():
    values, person = queries(6, people=60)

    def width(samples):
        low, high = interval(samples)
        return high - low

    one = width([QueryScores(values, person)])
    assert width([QueryScores(np.stack([values] * 4), person)]) == pytest.approx(one)
    # The same names in another sample are other people.
    assert width([QueryScores(values, person)] * 4) == pytest.approx(one / 2, rel=0.1)


def test_runs_weigh_the_same_whatever_their_world():
    rows = np.arange(4)
    samples = [QueryScores(np.ones((3, 4)), rows), QueryScores(np.zeros(4), rows)]
    assert interval(samples) == pytest.approx((0.75, 0.75))


def test_it_covers_the_truth_as_often_as_it_says():
    covered, runs, shift = 0, 300, 0.1
    for seed in range(runs):
        rng = np.random.default_rng([9, seed])
        person = np.repeat(np.arange(50), rng.integers(1, 6, 50))
        # Half of the spread is the person's, so queries are far from independent.
        difference = shift + rng.normal(0, 0.2, 50)[person] + rng.normal(0, 0.2, len(person))
        base = rng.random(len(person))
        found = paired_difference(
            [QueryScores(base + difference, person)], [QueryScores(base, person)], resamples=500
        )
        covered += found.low <= shift <= found.high
    assert 0.91 <= covered / runs <= 0.98


def test_queries_as_if_independent_would_be_far_too_sure():
    person = np.repeat(np.arange(20), 30)
    values = (person < 10).astype(float)
    by_person, by_query = confidence(values, person), confidence(values, np.arange(600))
    assert by_person.high - by_person.low > 4 * (by_query.high - by_query.low)


def test_the_seed_decides_the_drawing():
    values, person = queries(8)
    assert confidence(values, person) == confidence(values, person)
    assert confidence(values, person, resamples=50) != confidence(values, person, resamples=50, seed=2)


def test_single_precision_and_names_serve_as_well():
    values, person = queries(8)
    names = np.array([f"{who:04d}" for who in person], dtype=object)
    assert confidence(values.astype(np.float32), names) == confidence(values, person)


def test_several_scores_have_the_intervals_they_have_alone(monkeypatch):
    values, person = queries(8)
    several = np.stack([values, values[::-1], values / 2 + 0.1])
    found = confidences(several, person, resamples=700)
    assert found == [pytest.approx(confidence(score, person, resamples=700), abs=1e-12) for score in several]
    monkeypatch.setattr(bootstrap, "_DRAWN", 50)
    assert confidences(several, person, resamples=700) == found


def test_the_interval_of_one_run_covers_the_truth_as_often_as_it_says():
    covered, runs = 0, 300
    for seed in range(runs):
        rng = np.random.default_rng([10, seed])
        person = np.repeat(np.arange(50), rng.integers(1, 6, 50))
        ease = np.clip(rng.normal(0.5, 0.2, 50), 0, 1)[person]
        hit = (rng.random(len(person)) < ease).astype(float)
        low, high = confidences(np.stack([hit, ease]), person, resamples=500)[0]
        # Symmetric about one half, so the people's mean is just that.
        covered += low <= 0.5 <= high
    assert 0.91 <= covered / runs <= 0.98


def test_one_person_says_nothing_about_others():
    assert confidence(np.ones(5), np.zeros(5)) is None
    assert confidences(np.ones((2, 5)), np.zeros(5)) is None
    assert interval([QueryScores(*queries(0)), QueryScores(np.ones(5), np.zeros(5))]) is None


@pytest.mark.parametrize(
    ("values", "person", "keys"),
    [
        (np.ones(3), np.arange(4), {}),
        (np.ones(0), np.arange(0), {}),
        (np.array([1, np.nan]), np.arange(2), {}),
        (np.ones((1, 1, 2)), np.arange(2), {}),
        (np.ones(2), np.arange(2), {"level": 1.0}),
        (np.ones(2), np.arange(2), {"resamples": 0}),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(values, person, keys):
    with pytest.raises(ValueError, match=r"values|interval"):
        confidence(values, person, **keys)
    with pytest.raises(ValueError, match=r"values|interval"):
        confidences(values[None], person, **keys)


def test_samples_that_are_no_pair_are_refused():
    sample = QueryScores(*queries(0))
    with pytest.raises(ValueError, match="same queries"):
        paired_difference([sample], [QueryScores(sample.values, sample.person[::-1])])
    with pytest.raises(ValueError, match="same queries"):
        paired_difference([sample], [QueryScores(sample.values[1:], sample.person[1:])])
    with pytest.raises(ValueError, match="zip"):
        paired_difference([sample], [sample, sample])


def test_the_t_interval_is_scipys_and_blank_without_repetition():
    values = [0.01, 0.03, 0.05]
    # Mean 0.03, sd 0.02, t of 2 degrees of freedom 4.3027.
    assert t_interval(values) == pytest.approx(
        (0.03 - 4.3027 * 0.02 / 3**0.5, 0.03 + 4.3027 * 0.02 / 3**0.5), rel=1e-4
    )
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert t_interval(values, 0.9) == pytest.approx(tuple(expected))
    assert t_interval([0.2, 0.2]) == pytest.approx((0.2, 0.2))
    assert t_interval([0.2]) is None
    assert t_interval([]) is None
