import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from clip3dreid.errors import InputError
from clip3dreid.retrieval import open_set
from clip3dreid.retrieval import protocol as rules
from clip3dreid.retrieval.open_set import OpenSet, check_rates
from clip3dreid.retrieval.protocol import Protocol
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
    monkeypatch.setattr(open_set, "_ROOM", 16)  # so that the highest are picked out again and again
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


def test_strangers_of_real_draws_are_counted_right(monkeypatch):
    seen = []
    real = open_set._Highest.add
    monkeypatch.setattr(
        open_set._Highest, "add", lambda self, s: (seen.append(np.isfinite(s).sum()), real(self, s))
    )
    drawn = Protocol("drawn", rules.same_camera, "", draws=3, per_person=2)
    found = run(*world(seed=5), protocols={"drawn": drawn}, open_set=[0.1])["drawn"]
    assert sum(seen) == found.open_set._strangers


def test_a_worked_example():
    # Two strangers of ten may be accepted: the threshold is the third highest of them, 0.7, and must be exceeded.
    strangers = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, -np.inf]], np.float32)
    own = np.array([[0.95, 0.75, 0.7, 0.99]], np.float32)
    kept = np.array([[True, True, True, False]])
    watch = OpenSet([0.2, 0.05], 10, lambda rows: None, np.dtype(np.float32))
    watch.see(torch.tensor([0]), strangers, None, own, kept)
    assert watch.tpr_at_fpr() == {"0.2": pytest.approx(2 / 3), "0.05": pytest.approx(1 / 3)}


def test_all_scores_equal_accept_nobody():
    watch = OpenSet([0.5], 4, lambda rows: None, np.dtype(np.float32))
    watch.see(torch.tensor([0]), np.ones((1, 4), np.float32), None, np.ones((1, 2)), np.ones((1, 2), bool))
    assert watch.tpr_at_fpr() == {"0.5": 0}


def test_a_gallery_without_strangers_has_no_false_positive_rate():
    watch = OpenSet([0.5], 0, lambda rows: None, np.dtype(np.float32))
    assert watch.tpr_at_fpr() is None


@pytest.mark.parametrize(
    ("rate", "strangers", "most"), [(0.29, 100, 29), (0.01, 100, 1), (0.01, 99, 0), (0.1, 30, 3)]
)
def test_the_share_of_strangers_is_not_a_victim_of_rounding(rate, strangers, most):
    assert OpenSet([rate], strangers, lambda rows: None, np.dtype(np.float32))._allowed(rate) == most


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60),
    count=st.integers(1, 20),
    parts=st.integers(1, 5),
)
def test_the_highest_are_those_of_a_sort(values, count, parts):
    scores = np.array(values, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_set, "_ROOM", 1)
        highest = open_set._Highest(count, scores.dtype)
        for part in np.array_split(scores, parts):
            highest.add(part)
    expected = np.sort(scores[scores > -np.inf])[::-1][:count]
    np.testing.assert_array_equal(highest.sorted()[::-1][: len(expected)], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
def test_keys_of_numbers_have_their_order_and_lead_back(dtype, values):
    numbers = np.sort(np.array(values, dtype))
    keys = open_set._key(numbers)
    np.testing.assert_array_equal(keys[1:] > keys[:-1], numbers[1:] > numbers[:-1])
    np.testing.assert_array_equal(keys[1:] == keys[:-1], numbers[1:] == numbers[:-1])
    np.testing.assert_array_equal(open_set._number(keys, numbers.dtype), numbers)


@pytest.mark.parametrize("rates", [[], [0], [1], [0.1, 0.1], [float("nan")], ["much"], 0.1, [[0.1]]])
def test_what_are_no_rates_is_refused_in_one_line(rates):
    with pytest.raises(InputError, match=r"open_set=.* between 0 and 1") as caught:
        check_rates(rates)
    assert "\n" not in str(caught.value)
