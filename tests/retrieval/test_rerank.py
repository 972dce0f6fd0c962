import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.retrieval import rerank
from clip3dreid.retrieval.rerank import KReciprocal, QueryExpansion

OPTIONS = sorted(path.stem for path in (conf_dir() / "rerank").glob("*.yaml"))


def features(kind, queries=12, gallery=50, width=8, seed=0, dtype=torch.float64):
    """`whole` numbers have many pictures at exactly the same distance; `twins` come five times each."""
    rng = np.random.default_rng(seed)
    pictures = queries + gallery
    if kind == "whole":
        made = rng.integers(-1, 2, (pictures, width))
    elif kind == "twins":
        made = rng.integers(-9, 10, (pictures, width))[rng.integers(0, -(-pictures // 5), pictures)]
    elif kind == "clustered":
        made = 3 * rng.normal(size=(6, width))[rng.integers(6, size=pictures)]
        made = made + rng.normal(size=(pictures, width))
    else:
        made = rng.normal(size=(pictures, width))
    made = torch.tensor(made, dtype=dtype)
    return made[:queries], made[queries:]


def squared(query, gallery, metric):
    """(N, N) squared distances, float64. Pairwise, so that equal pairs give equal numbers."""
    both = torch.cat([query, gallery]).double().numpy()
    if metric == "cosine":
        both = both / np.linalg.norm(both, axis=1, keepdims=True)
    return np.array([[((one - other) ** 2).sum() for other in both] for one in both])


def final_distance(query, gallery, metric, k1, k2, lambda_, convention="original"):
    """(Q, G) final distances by sets, one step of the paper after the other."""
    d = squared(query, gallery, metric)
    pictures = len(d)
    order = np.argsort(d, axis=1, kind="stable")
    unit = np.ones(pictures) if convention == "fast_reid" else d.max(1)
    scaled = d / unit[:, None]
    if convention == "torchreid":
        scaled = scaled**2
    itself = 0 if convention == "fast_reid" else 1

    def near(p, k):
        return set(order[p, : min(k, k1 + itself)].tolist())

    def reciprocal(p, k):
        return {q for q in near(p, k) if p in near(q, k)}

    code = np.zeros((pictures, pictures))
    for p in range(pictures):
        own = reciprocal(p, k1 + itself)
        expanded = set(own)
        for q in own:
            others = reciprocal(q, int(np.around(k1 / 2)) + 1)
            if 3 * len(others & own) > 2 * len(others):
                expanded |= others
        for q in expanded:
            code[p, q] = np.exp(-scaled[p, q])
        if expanded:
            code[p] /= code[p].sum()
    code = np.array([code[order[p, :k2]].mean(0) for p in range(pictures)])
    mixed = d / 2 if convention == "fast_reid" and metric == "cosine" else scaled
    queries = len(query)
    jaccard = np.array(
        [[1 - np.minimum(one, other).sum() / np.maximum(one, other).sum() for other in code] for one in code]
    )
    return ((1 - lambda_) * jaccard + lambda_ * mixed)[:queries, queries:]


def scores(method, query, gallery, metric="cosine", block=None):
    source = method(query, gallery, metric)
    rows = torch.arange(len(query))
    return np.concatenate([source.block(part).copy() for part in rows.split(block or len(query))])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("convention", ["original", "torchreid", "fast_reid"])
def test_final_distances_equal_the_definition_step_by_step(convention, kind, metric):
    query, gallery = features(kind)
    for k1, k2, lambda_ in ((20, 6, 0.3), (5, 5, 0.5), (7, 1, 0.0), (1, 1, 0.1), (14, 3, 1.0)):
        found = scores(KReciprocal(k1, k2, lambda_, convention), query, gallery, metric)
        expected = final_distance(query, gallery, metric, k1, k2, lambda_, convention)
        np.testing.assert_allclose(-found, expected, rtol=0, atol=1e-12)
        if (convention, metric) != ("fast_reid", "euclidean"):
            single = scores(KReciprocal(k1, k2, lambda_, convention), query.float(), gallery.float(), metric)
            np.testing.assert_allclose(-single, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["whole", "twins"])
@pytest.mark.parametrize("k1", [4, 20])
def test_equally_near_pictures_stand_in_the_order_queries_gallery(kind, k1):
    query, gallery = features(kind)
    d = np.sort(squared(query, gallery, "euclidean"), axis=1)
    assert (d[:, k1] == d[:, k1 + 1]).mean() > 0.15, "the example must have ties at the edge"
    found = scores(KReciprocal(k1, 3), query, gallery, "euclidean")
    expected = final_distance(query, gallery, "euclidean", k1, 3, 0.3)
    np.testing.assert_allclose(-found, expected, rtol=0, atol=1e-12)


def test_a_collapsed_model_gives_every_pair_the_same_original_distance():
    same = torch.full((30, 8), 0.1)
    found = scores(KReciprocal(5, 2, lambda_=1.0), same[:4], same[4:])
    np.testing.assert_allclose(found, 0, atol=1e-6)
    assert np.isfinite(scores(KReciprocal(5, 2), same[:4], same[4:])).all()


@pytest.mark.parametrize(("queries", "gallery"), [(1, 1), (1, 2), (3, 1), (4, 9)])
@pytest.mark.parametrize("convention", ["original", "torchreid", "fast_reid"])
def test_fewer_pictures_than_neighbours_are_all_neighbours(convention, queries, gallery):
    made = features("random", queries, gallery)
    expected = final_distance(*made, "cosine", 20, 6, 0.3, convention)
    found = scores(KReciprocal(convention=convention), *made)
    np.testing.assert_allclose(-found, expected, rtol=0, atol=1e-12)


def test_a_worked_example_of_two_pairs():
    """Two queries, each with its twin far from the others: k1=1 makes codes of a pair alone."""
    query = torch.tensor([[0.0], [10.0]])
    gallery = torch.tensor([[1.0], [9.0]])
    found = -scores(KReciprocal(1, 1, 0.5), query, gallery, "euclidean")
    # d(0, 1) = 1 and the farthest is 100 away; from 1, 81. A code holds exp(-0) and exp(-d / farthest).
    near, own = np.exp(-1 / 100), np.exp(-1 / 81)
    one, other = np.array([1, near]) / (1 + near), np.array([own, 1]) / (1 + own)
    jaccard = 1 - np.minimum(one, other).sum() / np.maximum(one, other).sum()
    expected = [[(jaccard + 0.01) / 2, (1 + 0.81) / 2], [(1 + 0.81) / 2, (jaccard + 0.01) / 2]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_lambda_one_leaves_the_original_ranking_and_lambda_zero_only_the_jaccard_distance():
    query, gallery = features("clustered")
    d = squared(query, gallery, "cosine")[: len(query), len(query) :]
    alone = scores(KReciprocal(lambda_=1.0), query, gallery)
    assert (np.argsort(-alone, axis=1) == np.argsort(d, axis=1)).all()
    jaccard, both = (-scores(KReciprocal(lambda_=x), query, gallery) for x in (0.0, 0.4))
    np.testing.assert_allclose(both, 0.6 * jaccard - 0.4 * alone, rtol=0, atol=1e-12)
    assert (jaccard == 1).any(), "some pictures must share nothing"


@pytest.mark.parametrize("method", [KReciprocal(8, 3), QueryExpansion(3), QueryExpansion(3, 3.0, True)])
def test_blocks_equal_all_at_once_in_any_order(method, monkeypatch):
    query, gallery = features("clustered", queries=41)
    whole = scores(method, query, gallery)
    order = torch.randperm(41, generator=torch.Generator().manual_seed(0))
    found = method(query, gallery, "cosine").block(order)
    np.testing.assert_allclose(found, whole[order.numpy()], rtol=0, atol=1e-12)
    # Every step in blocks of one row.
    monkeypatch.setattr(rerank, "MEMORY", 1)
    np.testing.assert_allclose(scores(method, query, gallery, block=3), whole, rtol=0, atol=1e-12)
    assert method(query, gallery, "cosine").block(torch.arange(0)).shape == (0, len(gallery))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k1=st.integers(1, 30),
    convention=st.sampled_from(["original", "torchreid", "fast_reid"]),
)
def test_permuting_the_gallery_permutes_the_scores(seed, k1, convention):
    query, gallery = features("clustered", 5, 25, seed=seed)
    order = np.random.default_rng(seed).permutation(25)
    method = KReciprocal(k1, min(k1, 4), convention=convention)
    one, other = scores(method, query, gallery), scores(method, query, gallery[order])
    np.testing.assert_allclose(other, one[:, order], rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["random", "clustered", "twins", "same"]),
    k1=st.integers(1, 12),
    convention=st.sampled_from(["original", "torchreid"]),
    metric=st.sampled_from(["cosine", "euclidean"]),
)
def test_final_distances_are_finite_and_within_0_and_1(seed, kind, k1, convention, metric):
    query, gallery = features(kind, 4, 20, seed=seed, dtype=torch.float32)
    if kind == "same":
        query, gallery = query[:1].repeat(4, 1), query[:1].repeat(20, 1)
    else:
        query, gallery = query + 0.01, gallery + 0.01
    found = scores(KReciprocal(k1, 1, convention=convention), query, gallery, metric)
    assert found.dtype == np.float32
    assert (np.abs(found + 0.5) <= 0.5 + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [KReciprocal(8, 3), QueryExpansion(3)])
def test_half_precision_features_score_as_the_same_numbers_in_float32(method, dtype):
    query, gallery = (side.to(dtype) for side in features("clustered"))
    half = scores(method, query, gallery)
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, scores(method, query.float(), gallery.float()))


@pytest.mark.parametrize("method", [KReciprocal(8, 3), QueryExpansion(3)])
def test_features_are_left_alone_and_autocast_changes_nothing(method):
    query, gallery = (side.float().requires_grad_() for side in features("clustered"))
    before = query.clone(), gallery.clone()
    expected = scores(method, query.detach(), gallery.detach())
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(method, query, gallery)
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(query, before[0])
    assert torch.equal(gallery, before[1])


def expanded(query, pool, k, alpha, itself):
    """One vector expanded: a plain loop."""
    cosines = [float(query @ other) for other in pool]
    nearest = sorted(range(len(pool)), key=lambda j: -cosines[j])[: k + (not itself)]
    total = query.clone() if itself else torch.zeros_like(query)
    for j in nearest:
        total += max(cosines[j], 0.0) ** alpha * pool[j]
    return total / total.norm()


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("gallery_too", [False, True])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_expansion_equals_a_plain_loop(alpha, gallery_too, k):
    query, gallery = (torch.nn.functional.normalize(side) for side in features("clustered"))
    both = torch.cat([query, gallery])
    pool = both if gallery_too else gallery
    new_query = torch.stack([expanded(q, pool, k, alpha, not gallery_too) for q in query])
    new_gallery = torch.stack([expanded(g, pool, k, alpha, False) for g in gallery])
    expected = new_query @ (new_gallery if gallery_too else gallery).T
    found = scores(QueryExpansion(k, alpha, gallery_too), 2 * query, 3 * gallery)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-12)


def test_average_query_expansion_of_a_worked_example():
    query = torch.tensor([[1.0, 0.0]])
    gallery = torch.tensor([[0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]])
    # The nearest is (0.8, 0.6), so the mean is (0.9, 0.3), of norm sqrt(0.9).
    found = scores(QueryExpansion(1, 0.0), query, gallery)
    np.testing.assert_allclose(found, [[0.3, 0.9, -0.9] / np.sqrt(0.9)], rtol=0, atol=1e-6)
    # With alpha 1 it weighs 0.8: (1 + 0.64, 0.48) of length sqrt(2.92).
    found = scores(QueryExpansion(1, 1.0), query, gallery)
    np.testing.assert_allclose(found, [[0.48, 1.6, -1.64] / np.sqrt(2.92)], rtol=0, atol=1e-6)
    # Euclidean: the mean (0.9, 0.3) is 0.81 + 0.49, 0.01 + 0.09 and 3.61 + 0.09 from them, squared.
    found = scores(QueryExpansion(1, 0.0), query, gallery, "euclidean")
    np.testing.assert_allclose(0.9 - 2 * found, [[1.3, 0.1, 3.7]], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"k1": 0}, "k1=0"),
        ({"k2": 0}, "k2=0"),
        ({"k1": 5, "k2": 6}, "k2=6"),
        ({"lambda_": -0.1}, "lambda_=-0.1"),
        ({"lambda_": 1.1}, "lambda_=1.1"),
        ({"lambda_": float("nan")}, "lambda_=nan"),
        ({"convention": "mine"}, "original, torchreid or fast_reid"),
    ],
)
def test_wrong_settings_are_told_in_one_line(arguments, word):
    with pytest.raises(InputError, match=word) as caught:
        KReciprocal(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"k": 0}, "k=0"), ({"alpha": -1.0}, "alpha=-1"), ({"alpha": float("nan")}, "nan")],
)
def test_wrong_settings_of_an_expansion_are_told_in_one_line(arguments, word):
    with pytest.raises(InputError, match=word) as caught:
        QueryExpansion(**arguments)
    assert "\n" not in str(caught.value)


def test_cosine_weights_are_refused_for_euclidean_distances():
    with pytest.raises(InputError, match="choose metric=cosine or rerank"):
        QueryExpansion(alpha=3.0)(*features("random"), "euclidean")


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds_and_scores(option):
    path = conf_dir() / "rerank" / f"{option}.yaml"
    assert path.read_text(encoding="utf-8").startswith("# @package rerank\n")
    found = scores(instantiate(OmegaConf.load(path)), *features("clustered"))
    assert np.isfinite(found).all()


def test_the_options_named_after_the_classes_hold_their_defaults():
    for option, default in (("k_reciprocal", KReciprocal()), ("alpha_qe", QueryExpansion())):
        assert instantiate(OmegaConf.load(conf_dir() / "rerank" / f"{option}.yaml")) == default
