"""Against a plain sort of the whole score matrix."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clip3dreid.search.top_k as module
from clip3dreid.errors import InputError
from clip3dreid.search.top_k import top_k
from tests.retrieval.test_counting import Waits

METRICS = ["cosine", "product", "euclidean"]
WHOLE = {"cosine": "signs", "product": "whole", "euclidean": "whole"}


@pytest.fixture(autouse=True, params=["cpu", "accelerator"])
def _way(request, monkeypatch):
    """The CPU stands for an accelerator: all that differs is how a block's best are found."""
    if request.param == "accelerator":
        monkeypatch.setattr(module, "_Best", module._BestOnDevice)


def features(rows, width=16, seed=0, kind="random", dtype=torch.float64):
    """`signs` and `whole` have products that are exact in every precision, and many ties."""
    rng = np.random.default_rng(seed)
    if kind == "signs":
        values = rng.choice([-1.0, 1.0], (rows, width))
    elif kind == "whole":
        values = rng.integers(-2, 3, (rows, width)).astype(float)
    else:
        values = rng.standard_normal((rows, width))
    return torch.from_numpy(values).to(dtype)


def plain(query, gallery, k, metric, allowed=None):
    """Scores by loops of numpy, in float64, and a stable sort."""
    query, gallery = query.double().numpy(), gallery.double().numpy()
    rows, scores = np.full((len(query), k), -1), np.full((len(query), k), -np.inf)
    for i, item in enumerate(query):
        if metric == "euclidean":
            # Squares first: a root may make equal what is not.
            order_by = -((gallery - item) ** 2).sum(1)
            shown = -np.sqrt(-order_by)
        else:
            order_by = gallery @ item
            if metric == "cosine":
                order_by = order_by / np.linalg.norm(gallery, axis=1) / np.linalg.norm(item)
            shown = order_by
        order = np.argsort(-order_by, kind="stable")
        if allowed is not None:
            order = order[allowed.numpy()[order]]
        order = order[:k]
        rows[i, : len(order)], scores[i, : len(order)] = order, shown[order]
    return rows, scores


def assert_plain(found, query, gallery, k, metric, allowed=None):
    rows, scores = plain(query, gallery, k, metric, allowed)
    assert found.rows.tolist() == rows.tolist()
    assert found.scores.dtype == torch.float32
    np.testing.assert_allclose(found.scores.numpy(), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 50, 300])
def test_random_features_equal_a_sort_of_the_whole_matrix(metric, k):
    query, gallery = features(70, seed=1), features(5003, seed=2)
    # 128 kB: some forty blocks.
    assert_plain(top_k(query, gallery, k, metric, memory=2**17), query, gallery, k, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ties_come_in_gallery_order(metric, dtype):
    query = features(30, 4, 3, WHOLE[metric], dtype)
    gallery = features(3000, 4, 4, WHOLE[metric], dtype)
    scores = gallery.float() @ query[0].float()
    assert len(scores.unique()) < 40, "the example must have many ties"
    found = top_k(query, gallery, 40, metric, memory=2**15)
    assert_plain(found, query, gallery, 40, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_a_collapsed_model_finds_the_first_rows(metric):
    found = top_k(torch.ones(5, 8), torch.ones(3000, 8), 7, metric, memory=2**15)
    assert found.rows.tolist() == [list(range(7))] * 5


@pytest.mark.parametrize("falling", [True, False])
def test_a_gallery_in_order_of_nearness_is_found_all_the_same(falling):
    query, gallery = torch.ones(3, 1), torch.arange(4000.0).flip(0)[:, None]
    gallery = gallery if falling else gallery.flip(0)
    assert_plain(top_k(query, gallery, 70, "product", memory=2**14), query, gallery, 70, "product")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_as_the_same_numbers_in_float32(dtype):
    query, gallery = features(20, seed=5, dtype=dtype), features(2000, seed=6, dtype=dtype)
    half, single = top_k(query, gallery, 9), top_k(query.float(), gallery.float(), 9)
    assert torch.equal(half.rows, single.rows)
    torch.testing.assert_close(half.scores, single.scores)


def test_reduced_precision_is_switched_off_and_left_as_it_was():
    query, gallery = features(20, seed=5, dtype=torch.float32), features(900, seed=6, dtype=torch.float32)
    expected = top_k(query, gallery, 9)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = top_k(query, gallery, 9)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found.rows, expected.rows)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.0, 0.004, 0.5, 1.0])
def test_only_allowed_rows_are_found(metric, share):
    query, gallery = features(9, 4, 7, WHOLE[metric]), features(2000, 4, 8, WHOLE[metric])
    allowed = torch.from_numpy(np.random.default_rng(9).random(2000) < share)
    found = top_k(query, gallery, 20, metric, allowed, memory=2**14)
    assert_plain(found, query, gallery, 20, metric, allowed)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(0, 300), max_size=6),
    memory=st.integers(1, 2**17),
    k=st.integers(1, 70),
    metric=st.sampled_from(METRICS),
    some=st.booleans(),
)
def test_a_stream_in_any_pieces_equals_the_whole(seed, sizes, memory, k, metric, some):
    query, gallery = features(11, 4, seed, WHOLE[metric]), features(sum(sizes), 4, seed + 1, WHOLE[metric])
    allowed = torch.from_numpy(np.random.default_rng(seed).random(sum(sizes)) < 0.5) if some else None
    found = top_k(query, iter(gallery.split(sizes)), k, metric, allowed, memory)
    assert_plain(found, query, gallery, k, metric, allowed)


def test_queries_in_blocks_equal_all_at_once(monkeypatch):
    query, gallery = features(25, 4, 1, "signs"), features(500, 4, 2, "signs")
    monkeypatch.setattr(module, "QUERIES", 8)
    assert_plain(top_k(query, gallery, 5), query, gallery, 5, "cosine")


def test_rows_find_themselves_first():
    gallery = features(200, seed=3)
    for metric in ("cosine", "euclidean"):
        found = top_k(gallery, gallery, 1, metric)
        assert found.rows[:, 0].tolist() == list(range(200))
        best = 1 if metric == "cosine" else 0
        np.testing.assert_allclose(found.scores[:, 0].numpy(), best, atol=1e-6)


def test_no_query_and_no_gallery_find_nothing():
    assert top_k(torch.ones(0, 3), torch.ones(5, 3), 2).rows.shape == (0, 2)
    found = top_k(torch.ones(2, 3), torch.ones(0, 3), 2)
    assert found.rows.tolist() == [[-1, -1]] * 2
    assert found.scores.tolist() == [[-np.inf] * 2] * 2


def test_blocks_never_take_more_rows_than_the_memory_allows():
    taken = []

    class Spy(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.__getitem__ and isinstance(args[1], slice):
                taken.append(args[1].stop - args[1].start)
            return super().__torch_function__(function, types, args, kwargs or {})

    query, gallery = torch.ones(100, 8), torch.arange(80_000.0).view(-1, 8) + 1
    top_k(query, gallery.as_subclass(Spy), 3, memory=2**20)
    assert taken
    assert max(taken) <= 2**20 / 100 / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"metric": "manhattan"}, "metric=manhattan is unknown"),
        ({"query": torch.ones(2, 3, dtype=torch.int64)}, "give floating-point features"),
        ({"query": torch.ones(2, 4)}, r"gallery features are \(5, 3\)"),
        ({"query": torch.tensor([[1.0, 0, 0], [0, 0, 0]])}, "query feature 1 has length 0"),
        ({"query": torch.tensor([[1.0, 0, 0], [0, np.nan, 0]])}, "query feature 1 is NaN"),
        ({"allowed": torch.ones(4, dtype=torch.bool)}, "allowed has 4 rows"),
        ({"allowed": torch.ones(6, dtype=torch.bool)}, "allowed has 6 rows, the gallery 5"),
        (
            {"gallery": [torch.ones(2, 3), torch.ones(2, 3)], "allowed": torch.ones(2) > 0},
            "allowed has 2 rows",
        ),
        ({"gallery": [torch.ones(2, 3), torch.zeros(2, 3)]}, "gallery feature 2 has length 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message):
    arguments = {"query": torch.ones(2, 3), "gallery": torch.ones(5, 3), "k": 2, **change}
    with pytest.raises(InputError, match=message) as caught:
        top_k(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_gallery_feature_is_named_wherever_it_is(metric, value):
    gallery = features(4000, seed=1)
    gallery[3001, 2] = value
    with pytest.raises(InputError, match="gallery feature 3001 gives scores that are NaN or infinite"):
        top_k(features(20, seed=2), gallery, 5, metric, memory=2**15)


def test_an_accelerator_waits_once_a_block(request):
    if "cpu" in request.node.name:
        pytest.skip("the CPU waits for nobody")
    gallery = features(4000, seed=3, dtype=torch.float32)
    few, many = Waits(), Waits()
    with few:
        top_k(gallery[:5], gallery, 9, "product", memory=2**17)
    with many:
        top_k(gallery[:5], gallery, 9, "product", memory=2**13)
    size = 2**13 // 4 // 5 // module.SEGMENT * module.SEGMENT
    blocks = -(-4000 // size)
    assert many.count - few.count == blocks - 1
