from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from clip3dreid.retrieval import counting
from clip3dreid.retrieval.counting import (
    SortBuffer,
    negatives_ranked_above,
    negatives_ranked_above_on_device,
)


class Waits(TorchFunctionMode):
    """Counts what would make the host wait for a device: reading numbers, and finding where something is true."""

    NAMES = ("__bool__", "__int__", "__float__", "item", "tolist", "nonzero", "cpu", "numpy")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.count += getattr(function, "__name__", "") in self.NAMES
        return function(*arguments, **(options or {}))


def example(seed, rows=7, gallery=40, matches=3, levels=6):
    """Scores with many ties, and the query's own items taken out of them."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(rows, gallery)).astype(np.float32)
    columns = np.array([np.sort(rng.permutation(gallery)[:matches]) for _ in range(rows)])
    mine = np.take_along_axis(scores, columns, 1)
    np.put_along_axis(scores, columns, np.float32(-np.inf), 1)
    order = np.argsort(-mine, axis=1, kind="stable")
    needed = rng.random((rows, matches)) < 0.7
    return scores, np.take_along_axis(mine, order, 1), np.take_along_axis(columns, order, 1), needed


def plain(scores, items, matches, columns, needed):
    """One negative after another."""
    items = range(scores.shape[1]) if items is None else items
    ahead = np.zeros(needed.shape, np.int64)
    for row, place in np.argwhere(needed):
        score, column = matches[row, place], columns[row, place]
        better = (scores[row, j] > score or (scores[row, j] == score and j < column) for j in items)
        ahead[row, place] = sum(better)
    return ahead


def count(scores, items, matches, columns, needed, threads=1):
    with ThreadPoolExecutor(threads) as workers:
        return negatives_ranked_above(scores.copy(), items, matches, columns, needed, SortBuffer(workers))


# All negatives are sorted; or a few are picked out.
PATHS = {"sorted": 10**9, "picked": 0}


@pytest.mark.parametrize("items", [None, np.arange(1, 40, 3)])
@pytest.mark.parametrize("many", PATHS.values(), ids=PATHS.keys())
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([1, 2, 6, 1000]))
def test_both_ways_count_what_a_loop_counts(many, items, seed, levels):
    data = example(seed, levels=levels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_MANY", many)
        found = count(data[0], items, *data[1:])
    needed = data[-1]
    np.testing.assert_array_equal(found[needed], plain(data[0], items, *data[1:])[needed])


def test_a_sample_that_misleads_changes_nothing(monkeypatch):
    scores, matches, columns, needed = example(3)
    monkeypatch.setattr(counting, "_SAMPLE", 1)
    found = count(scores, None, matches, columns, needed)
    np.testing.assert_array_equal(found[needed], plain(scores, None, matches, columns, needed)[needed])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tile", [1, 40 * 4 * 3, 2**20])
def test_threads_and_tiles_change_nothing(threads, tile, monkeypatch):
    monkeypatch.setattr(counting, "_TILE", tile)
    monkeypatch.setattr(counting, "_MANY", PATHS["sorted"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    scores, matches, columns, needed = example(4, rows=10)
    found = count(scores, None, matches, columns, needed, threads)
    np.testing.assert_array_equal(found[needed], plain(scores, None, matches, columns, needed)[needed])


def test_a_sort_buffer_serves_blocks_of_any_size_and_type():
    with ThreadPoolExecutor(1) as workers:
        buffer = SortBuffer(workers)
        for dtype, width in ((np.float32, 5), (np.float64, 9), (np.float32, 3)):
            scores = np.random.default_rng(width).random((4, width)).astype(dtype)
            rows = np.array([3, 0])
            np.testing.assert_array_equal(buffer.sorted(scores, rows, None), np.sort(scores[rows]))
            items = np.array([0, 2])
            np.testing.assert_array_equal(buffer.sorted(scores, rows, items), np.sort(scores[rows][:, items]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 6, 1000]), st.booleans(), st.sampled_from([1, 3, 9]))
def test_what_an_accelerator_does_counts_ties_and_all_as_one_after_another(seed, levels, some, positives):
    scores, matches, columns, needed = example(seed, matches=positives, levels=levels)
    items = np.flatnonzero(np.random.default_rng(seed).random(40) < 0.6) if some else None
    given = (torch.from_numpy(one) for one in (scores, matches, columns, needed))
    negatives, *rest = given
    at = None if items is None else torch.from_numpy(items)
    found = negatives_ranked_above_on_device(negatives, at, *rest).numpy()
    expected = plain(scores, items, matches, columns, needed)
    np.testing.assert_array_equal(found[needed], expected[needed])


@pytest.mark.parametrize("rivals", [1, 900])
def test_an_accelerator_picks_few_rivals_out_and_compares_many(rivals):
    """Both ways give the count that stands there: so many negatives above the one positive."""
    scores = torch.zeros(2, 1000)
    scores[:, 1 : rivals + 1] = 2
    matches, columns, needed = torch.ones(2, 1), torch.zeros(2, 1).long(), torch.ones(2, 1, dtype=torch.bool)
    scores[:, 0] = -torch.inf
    with Waits() as waits:
        found = negatives_ranked_above_on_device(scores, None, matches, columns, needed)
    assert found.tolist() == [[rivals]] * 2
    assert waits.count == 2
