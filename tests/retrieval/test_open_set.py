import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from clip3dreid.retrieval import open_set
from clip3dreid.retrieval import protocol as rules
from clip3dreid.retrieval.open_set import OpenSet
from clip3dreid.retrieval.protocol import Protocol
from tests.processes import PATIENCE_S
from tests.retrieval.plain import JUNK, score_matrix
from tests.retrieval.worlds import PROTOCOLS, run, world

RATES = [0.001, 0.01, 0.1, 0.5]


def roc(scores, query_rows, gallery_rows, junk, rates):
    """Scikit-learn's curve over all pairs of queries with a positive; at each rate its highest point."""
    labels, values = [], []
    for query, row in zip(query_rows, scores, strict=True):
        pairs = [
            (item["person"] == query["person"], score)
            for item, score in zip(gallery_rows, row, strict=True)
            if item["person"] != query["person"] or not junk(query, item)
        ]
        if any(same for same, _ in pairs):
            labels += [same for same, _ in pairs]
            values += [score for _, score in pairs]
    fpr, tpr, _ = roc_curve(labels, values, drop_intermediate=False)
    return {f"{rate:g}": tpr[fpr <= rate].max() for rate in rates}


# Cosines of whole numbers are not exact, so their ties would be left to rounding.
@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("cosine", "random"),
        ("cosine", "signs"),
        *(("euclidean", kind) for kind in ("random", "signs", "whole")),
    ],
)
def test_every_protocol_has_scikit_learns_rates(metric, kind, monkeypatch):
    monkeypatch.setattr(open_set, "BLOCK", 16)  # so that the highest are picked out again and again
    query, query_rows, gallery, gallery_rows = data = world(seed=1, dtype=torch.float64, kind=kind)
    scores = score_matrix(query, gallery, metric)
    for name, found in run(*data, metric=metric, open_set=RATES).items():
        expected = roc(scores, query_rows, gallery_rows, JUNK[name], RATES)
        assert found.result()["tpr_at_fpr"] == pytest.approx(expected, abs=1e-12), name


def test_the_number_of_blocks_changes_nothing():
    data = world(seed=2)
    whole, blocks = (run(*data, open_set=RATES, memory=memory) for memory in (2**27, 2000))
    for name in PROTOCOLS:
        assert whole[name].result()["tpr_at_fpr"] == blocks[name].result()["tpr_at_fpr"]


def test_ranks_are_the_same_with_and_without():
    data = world(seed=3, kind="signs")
    plain, watched = run(*data, metric="euclidean"), run(*data, metric="euclidean", open_set=RATES)
    for name in PROTOCOLS:
        assert all(map(torch.equal, plain[name].per_query, watched[name].per_query))


def test_filters_leave_their_pairs_out_and_draws_are_pooled():
    query, query_rows, gallery, gallery_rows = data = world(seed=4, dtype=torch.float64)
    some = Protocol("some", rules.nothing, "", queries={"camera": ["c2"]}, gallery={"camera": ["c0", "c1"]})
    drawn = Protocol("drawn", rules.nothing, "", draws=3, per_person=10**6)
    found = run(*data, protocols={"some": some, "drawn": drawn}, open_set=RATES)
    scores = score_matrix(query, gallery, "cosine")
    asked = [i for i, row in enumerate(query_rows) if row["camera"] == "c2"]
    kept = [j for j, row in enumerate(gallery_rows) if row["camera"] in ("c0", "c1")]
    rows = [query_rows[i] for i in asked], [gallery_rows[j] for j in kept]
    expected = roc(scores[asked][:, kept], *rows, JUNK["no_removal"], RATES)
    assert found["some"].result()["tpr_at_fpr"] == pytest.approx(expected, abs=1e-12)
    # Each draw is the whole gallery, so pooling them is the gallery three times over.
    expected = roc(scores, query_rows, gallery_rows, JUNK["no_removal"], RATES)
    assert found["drawn"].result()["tpr_at_fpr"] == pytest.approx(expected, abs=1e-12)


def test_negatives_of_real_draws_are_counted_right(monkeypatch):
    seen = []
    real = open_set._Highest.add
    monkeypatch.setattr(
        open_set._Highest, "add", lambda self, s: (seen.append(np.isfinite(s).sum()), real(self, s))
    )
    drawn = Protocol("drawn", rules.same_camera, "", draws=3, per_person=2)
    found = run(*world(seed=5), protocols={"drawn": drawn}, open_set=[0.1])["drawn"]
    assert sum(seen) == found.open_set._negatives


def test_a_worked_example():
    # Two negatives of ten may be accepted: the threshold is the third highest of them, 0.7, and must be exceeded.
    negatives = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, -np.inf]], np.float32)
    matches = np.array([[0.95, 0.75, 0.7, 0.99]], np.float32)
    positives = np.array([[True, True, True, False]])
    watch = OpenSet([0.2, 0.05], 10, lambda rows: None, np.dtype(np.float32))
    watch.update(torch.tensor([0]), negatives, None, matches, positives)
    assert watch.tpr_at_fpr() == {"0.2": pytest.approx(2 / 3), "0.05": pytest.approx(1 / 3)}


def test_all_scores_equal_accept_nobody():
    watch = OpenSet([0.5], 4, lambda rows: None, np.dtype(np.float32))
    watch.update(torch.tensor([0]), np.ones((1, 4), np.float32), None, np.ones((1, 2)), np.ones((1, 2), bool))
    assert watch.tpr_at_fpr() == {"0.5": 0}


def test_a_gallery_without_negatives_has_no_false_positive_rate():
    watch = OpenSet([0.5], 0, lambda rows: None, np.dtype(np.float32))
    assert watch.tpr_at_fpr() is None


@pytest.mark.parametrize(
    ("rate", "negatives", "most"), [(0.29, 100, 29), (0.01, 100, 1), (0.01, 99, 0), (0.1, 30, 3)]
)
def test_the_share_of_negatives_is_not_a_victim_of_rounding(rate, negatives, most):
    assert OpenSet([rate], negatives, lambda rows: None, np.dtype(np.float32))._allowed(rate) == most


def bisected(scores, place):
    """The score at a place, 1 the highest: bisection over all numbers of a type, by counts of what is as high."""
    kind = np.dtype(f"i{scores.itemsize}")

    def key(number):
        bits = int(np.array(number, scores.dtype).view(kind))
        return bits if bits >= 0 else np.iinfo(kind).min - bits

    def number(key):
        bits = key if key >= 0 else np.iinfo(kind).min - key
        return np.array(bits, kind).view(scores.dtype)

    low, high = key(-np.inf), key(np.inf)
    while low < high:
        middle = -(-(low + high) // 2)
        low, high = (middle, high) if (scores >= number(middle)).sum() >= place else (low, middle - 1)
    return float(number(low))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60),
    count=st.integers(1, 20),
    parts=st.integers(1, 5),
)
def test_the_highest_are_those_of_a_sort_and_of_a_bisection_of_all_numbers(dtype, values, count, parts):
    scores = np.array(values, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_set, "BLOCK", 1)
        highest = open_set._Highest(count, scores.dtype)
        for part in np.array_split(scores, parts):
            highest.add(part)
    expected = [*np.sort(scores)[::-1], *[-np.inf] * count][:count]
    places = range(1, count + 1)
    assert [highest.rank(place) for place in places] == expected
    assert [bisected(scores, place) for place in places] == expected


def in_processes(calls):
    """What each call returns, in threads of their own that exchange numbers as processes do; and their messages."""
    meeting, slots, messages = threading.Barrier(len(calls)), [None] * len(calls), []

    def run_one(place):
        def gather(numbers):
            slots[place] = numbers.clone()
            meeting.wait(PATIENCE_S)
            everything = torch.stack(slots)
            meeting.wait(PATIENCE_S)
            if not place:
                messages.append(len(numbers))
            return everything

        return calls[place](gather)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run_one, range(len(calls)))), messages


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shares=st.lists(st.integers(0, 300), min_size=2, max_size=4).filter(any),
    levels=st.sampled_from([2, 30, 10**6]),
    block=st.sampled_from([1, 7, 64]),
    ordered=st.booleans(),
)
def test_processes_with_a_share_each_find_the_rates_of_one_and_of_scikit_learn(
    seed, shares, levels, block, ordered
):
    rng = np.random.default_rng(seed)
    negatives = (rng.integers(levels, size=sum(shares)) / levels).astype(np.float32)
    negatives = np.sort(negatives) if ordered else negatives  # all that decide are then one process's
    positives = (rng.integers(levels, size=len(shares)) / levels + 0.2).astype(np.float32)
    parts = np.split(negatives, np.cumsum(shares)[:-1])

    def watch(parts, positives):
        watching = OpenSet(RATES, len(negatives), lambda rows: None, np.dtype(np.float32))
        for part, positive in zip(parts, positives, strict=True):
            watching.update(torch.tensor([0]), part[None], None, positive[None, None], np.ones((1, 1), bool))
        return watching

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_set, "BLOCK", block)
        alone = watch(parts, positives).tpr_at_fpr()
        each = [watch([part], [positive]).tpr_at_fpr for part, positive in zip(parts, positives, strict=True)]
        found, messages = in_processes(each)
        again, _ = in_processes(each)
    labels = np.repeat([0, 1], [len(negatives), len(positives)])
    fpr, tpr, _ = roc_curve(labels, np.concatenate([negatives, positives]), drop_intermediate=False)
    assert alone == {f"{rate:g}": pytest.approx(tpr[fpr <= rate].max()) for rate in RATES}
    assert found == again == [alone] * len(shares)
    assert max(messages[:-1]) <= block, "scores travel in blocks"


def test_scores_that_cannot_decide_do_not_travel(monkeypatch):
    monkeypatch.setattr(open_set, "BLOCK", 10)
    highest = [open_set._Highest(100, np.dtype(np.float32)) for _ in range(2)]
    highest[0].add(np.arange(1000, 1140, dtype=np.float32))
    highest[1].add(np.arange(140, dtype=np.float32))
    unions, messages = in_processes([each.of_all for each in highest])
    assert [union.rank(100) for union in unions] == [1040, 1040]
    # Some scores of both until the first's fill the memory for 150, of which the lower ones go; then the first's.
    assert len(messages) < 14
