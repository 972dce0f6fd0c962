import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip3dreid.errors import InputError
from clip3dreid.retrieval import protocol as rules
from clip3dreid.retrieval import ranking
from clip3dreid.retrieval.counting import negatives_ranked_above_on_device
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.protocol import Protocol
from clip3dreid.retrieval.ranking import block_rows
from tests.processes import side_by_side
from tests.retrieval.plain import JUNK, evaluate_plain, score_matrix
from tests.retrieval.test_counting import Waits
from tests.retrieval.worlds import PROTOCOLS, RULES, rank_in_parts, run, world


def assert_equals_plain(found, expected, tolerance):
    per_query = found.per_query
    assert per_query.valid.tolist() == [numbers is not None for numbers in expected]
    numbers = np.array([numbers or (0.0, 0.0, 0.0) for numbers in expected])
    for column, values in enumerate((per_query.first_hit, per_query.ap, per_query.inp)):
        np.testing.assert_allclose(values.numpy(), numbers[:, column], rtol=0, atol=tolerance)
    valid = numbers[per_query.valid.numpy()]
    result = found.result()
    if not found.protocol.draws:
        for k in (1, 5, 10, 20):
            assert result[f"r{k}"] == pytest.approx((valid[:, 0] <= k).mean(), abs=tolerance)
    assert result["map"] == pytest.approx(valid[:, 1].mean(), abs=tolerance)
    assert result["minp"] == pytest.approx(valid[:, 2].mean(), abs=tolerance)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_every_rule_equals_a_plain_loop_on_random_features(metric, dtype, tolerance):
    query, query_rows, gallery, gallery_rows = data = world(seed=1, dtype=dtype)
    scores = score_matrix(query, gallery, metric)
    for name, found in run(*data, metric=metric).items():
        assert_equals_plain(found, evaluate_plain(scores, query_rows, gallery_rows, JUNK[name]), tolerance)


@pytest.mark.parametrize(
    ("metric", "kind"), [("cosine", "signs"), ("euclidean", "signs"), ("euclidean", "whole")]
)
def test_exact_ties_rank_as_a_stable_sort_by_gallery_order(metric, kind):
    query, query_rows, gallery, gallery_rows = data = world(seed=2, width=4, kind=kind)
    scores = score_matrix(query, gallery, metric)
    assert len(np.unique(scores)) < 30, "the example must have many ties"
    for name, found in run(*data, metric=metric).items():
        assert_equals_plain(found, evaluate_plain(scores, query_rows, gallery_rows, JUNK[name]), 1e-12)


@pytest.mark.parametrize("kind", ["random", "signs"])
@pytest.mark.parametrize("per_person", [1, 2])
def test_draws_equal_a_plain_loop_over_the_same_lots(kind, per_person):
    query, query_rows, gallery, gallery_rows = data = world(seed=3, width=4, kind=kind)
    scores = score_matrix(query, gallery, "cosine")
    for name, rule in RULES.items():
        options = {"draws": 3, "per_person": per_person, "seed": 5}
        found = run(*data, protocols={name: Protocol(name, rule, "", **options)})[name]
        assert_equals_plain(
            found, evaluate_plain(scores, query_rows, gallery_rows, JUNK[name], **options), 1e-6
        )


def test_the_trapezoid_is_the_plain_loops():
    query, query_rows, gallery, gallery_rows = data = world(seed=4)
    protocol = Protocol("general", rules.same_camera, "", average_precision="trapezoid")
    expected = evaluate_plain(
        score_matrix(query, gallery, "cosine"), query_rows, gallery_rows, JUNK["general"], trapezoid=True
    )
    assert_equals_plain(run(*data, protocols={"general": protocol})["general"], expected, 1e-6)


def test_a_filtered_gallery_ranks_as_if_the_rest_were_not_there():
    query, query_rows, gallery, gallery_rows = data = world(seed=5, width=4, kind="signs")
    keep = [j for j, row in enumerate(gallery_rows) if row["camera"] in ("c0", "c1")]
    asked = [i for i, row in enumerate(query_rows) if row["camera"] == "c2"]
    protocol = Protocol(
        "some", rules.nothing, "", queries={"camera": ["c2"]}, gallery={"camera": ["c0", "c1"]}
    )
    found = run(*data, protocols={"all": PROTOCOLS["general"], "some": protocol})["some"]
    scores = score_matrix(query, gallery, "cosine")[asked][:, keep]
    rows = [query_rows[i] for i in asked], [gallery_rows[j] for j in keep]
    assert found.rows.tolist() == asked
    assert_equals_plain(found, evaluate_plain(scores, *rows, JUNK["no_removal"]), 1e-12)


def test_a_protocol_alone_gives_what_it_gives_among_others():
    data = world(seed=6, kind="signs")
    together = run(*data)
    for name, protocol in PROTOCOLS.items():
        alone = run(*data, protocols={name: protocol})[name]
        assert all(map(torch.equal, alone.per_query, together[name].per_query))


def test_a_collapsed_model_is_at_chance():
    _, query_rows, _, gallery_rows = world(seed=7, queries=60, gallery=400, people=10)
    constant = torch.ones(400, 16)
    found = run(constant[:60], query_rows, constant, gallery_rows)["no_removal"]
    expected = evaluate_plain(np.zeros((60, 400)), query_rows, gallery_rows, JUNK["no_removal"])
    assert_equals_plain(found, expected, 1e-9)
    assert found.result()["map"] == pytest.approx(0.1, abs=0.05)
    assert found.result()["chance_r1"] == pytest.approx(0.1, abs=0.02)


def test_chance_is_what_random_features_reach_with_and_without_draws():
    _, query_rows, _, gallery_rows = world(seed=8, queries=400, gallery=300, people=4)
    protocols = {
        "general": PROTOCOLS["general"],
        "drawn": Protocol("drawn", rules.same_camera, "", draws=5, per_person=2),
    }
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(n, 64, generator=generator) for n in (400, 300))
    for found in run(query, query_rows, gallery, gallery_rows, protocols=protocols).values():
        result = found.result()
        assert result["r1"] == pytest.approx(result["chance_r1"], abs=0.05)


def test_one_gallery_item_and_single_positives_rank_first():
    rows = [{"person": "a"}, {"person": "b"}]
    protocols = {"general": PROTOCOLS["general"]}
    found = run(torch.eye(2), rows, torch.ones(1, 2), rows[:1], protocols=protocols)["general"]
    assert found.per_query.valid.tolist() == [True, False]
    assert found.per_query.first_hit.tolist() == [1, 0]
    assert found.result()["map"] == 1


def test_junk_ahead_of_a_positive_does_not_count_whatever_its_score():
    rows = {"person": ["a", "a", "a", "b"], "camera": ["1", "1", "2", "1"]}
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    query = pl.DataFrame({"person": ["a"], "camera": ["1"]})
    found = evaluate(features[:1], query, features, pl.DataFrame(rows), {"g": PROTOCOLS["general"]})["g"]
    assert found.per_query.first_hit.tolist() == [1]
    assert found.per_query.junk.tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_rank_as_the_same_numbers_in_float32(dtype):
    query, query_rows, gallery, gallery_rows = world(seed=9)
    query, gallery = query.to(dtype), gallery.to(dtype)
    half = run(query, query_rows, gallery, gallery_rows)["general"]
    single = run(query.float(), query_rows, gallery.float(), gallery_rows)["general"]
    assert all(map(torch.equal, half.per_query, single.per_query))


def test_reduced_precision_is_switched_off_while_ranking_and_left_as_it_was():
    seen = []

    def rule(query, gallery):
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return rules.same_camera(query, gallery)

    data = world(seed=10, width=4, kind="whole")
    expected = run(*data, metric="euclidean")["general"]
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            protocols = {"general": Protocol("general", rule, "")}
            found = run(*data, protocols=protocols, metric="euclidean")["general"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen[-1] == ("highest", False)
    assert all(map(torch.equal, found.per_query, expected.per_query))


def test_a_block_takes_the_bytes_it_may_but_at_least_one_query():
    for gallery, own, itemsize in ((100, 3, 4), (82_161, 80, 4), (63_000, 1_000, 8)):
        for memory in (10**6, 2**27):
            rows = block_rows(gallery, own, itemsize, memory)
            a_row = 2 * gallery * itemsize + 100 * own
            assert rows == 1 or rows * a_row <= memory
            assert (rows + 1) * a_row > memory


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), memory=st.integers(1, 20_000))
def test_block_size_changes_nothing(seed, memory):
    data = world(seed, queries=11, gallery=30, people=3, kind="signs")
    whole, blocks = run(*data), run(*data, memory=memory)
    for name in PROTOCOLS:
        # Ranks are exactly the same; their mean is summed over a row as wide as the block needs.
        torch.testing.assert_close(whole[name].per_query, blocks[name].per_query, rtol=0, atol=1e-15)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_gallery_order_changes_nothing_where_there_are_no_ties(seed):
    query, query_rows, gallery, gallery_rows = world(
        seed, queries=9, gallery=30, people=3, dtype=torch.float64
    )
    order = np.random.default_rng(seed).permutation(30)
    one = run(query, query_rows, gallery, gallery_rows)
    other = run(query, query_rows, gallery[order], [gallery_rows[j] for j in order])
    for name in PROTOCOLS:
        assert all(map(torch.equal, one[name].per_query, other[name].per_query))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), place=st.integers(0, 30))
def test_a_stranger_in_the_gallery_never_raises_a_score(seed, place):
    query, query_rows, gallery, gallery_rows = world(seed, queries=9, gallery=30, people=3, kind="signs")
    before = run(query, query_rows, gallery, gallery_rows)
    stranger = torch.where(torch.arange(16) % 2 == 0, 1.0, -1.0)[None]
    row = {**gallery_rows[0], "person": "stranger"}
    after = run(
        query,
        query_rows,
        torch.cat([gallery[:place], stranger, gallery[place:]]),
        [*gallery_rows[:place], row, *gallery_rows[place:]],
    )
    for name in PROTOCOLS:
        assert (after[name].per_query.ap <= before[name].per_query.ap).all()
        assert (after[name].per_query.first_hit >= before[name].per_query.first_hit).all()


@dataclasses.dataclass(frozen=True)
class Scores:
    """A source of given scores."""

    scores: np.ndarray

    def __call__(self, query, gallery, metric):
        return self

    def block(self, rows):
        return self.scores[rows.numpy()]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([1, 3, 30, 10**9]))
def test_scores_of_any_source_rank_as_a_plain_stable_sort(seed, levels):
    query, query_rows, gallery, gallery_rows = world(seed, queries=9, gallery=50, people=4)
    scores = np.random.default_rng(seed).integers(levels, size=(9, 50)) / levels
    expected = {name: evaluate_plain(scores, query_rows, gallery_rows, junk) for name, junk in JUNK.items()}
    protocols = {name: PROTOCOLS[name] for name, numbers in expected.items() if any(numbers)}
    found = run(query, query_rows, gallery, gallery_rows, protocols=protocols, rerank=Scores(scores))
    for name in protocols:
        assert_equals_plain(found[name], expected[name], 1e-9)


def test_an_addend_or_a_factor_for_each_query_changes_nothing():
    query, query_rows, gallery, gallery_rows = world(seed=12)
    scores = np.random.default_rng(0).integers(100, size=(40, 90)).astype(np.float64)
    other = scores * 2.0 ** np.arange(-20, 20)[:, None] - 2.0**20
    one, two = (run(query, query_rows, gallery, gallery_rows, rerank=Scores(x)) for x in (scores, other))
    for name in PROTOCOLS:
        assert all(map(torch.equal, one[name].per_query, two[name].per_query))


def test_every_picture_twice_ranks_as_the_plain_loop_says():
    query, query_rows, gallery, gallery_rows = world(seed=13, gallery=45, kind="signs")
    gallery, gallery_rows = gallery.repeat(2, 1), gallery_rows * 2
    scores = score_matrix(query, gallery, "cosine")
    for name, found in run(query, query_rows, gallery, gallery_rows).items():
        assert_equals_plain(found, evaluate_plain(scores, query_rows, gallery_rows, JUNK[name]), 1e-9)


def test_a_query_whose_pictures_are_all_junk_leaves_the_others_as_they_were():
    query, query_rows, gallery, gallery_rows = world(seed=14, dtype=torch.float64)
    lonely = {**query_rows[0], "person": "alone", "camera": "c0"}
    rows = [*query_rows, lonely], [*gallery_rows, lonely, lonely]
    # Far from all, so that the new gallery pictures rank last; under the query's own rule both are junk.
    far = -query.sum(0, keepdim=True)
    features = torch.cat([query, far]), torch.cat([gallery, far, far])
    found = run(features[0], rows[0], features[1], rows[1], protocols={"general": PROTOCOLS["general"]})
    scores = score_matrix(*features, "cosine")
    assert_equals_plain(found["general"], evaluate_plain(scores, *rows, JUNK["general"]), 1e-9)
    assert found["general"].per_query.valid.tolist()[-1] is False
    assert found["general"].per_query.junk.tolist()[-1] == 2


@pytest.mark.parametrize("people", [1, 2])
@pytest.mark.parametrize("gallery", [1, 2, 3])
def test_the_smallest_worlds_rank_as_the_plain_loop_says(gallery, people):
    for seed in range(20):
        data = world(seed, queries=2, gallery=gallery, people=people, dtype=torch.float64)
        query, query_rows, items, gallery_rows = data
        scores = score_matrix(query, items, "cosine")
        for name, junk in JUNK.items():
            expected = evaluate_plain(scores, query_rows, gallery_rows, junk)
            if any(expected):
                found = run(*data, protocols={name: PROTOCOLS[name]})[name]
                assert_equals_plain(found, expected, 1e-9)
            else:
                with pytest.raises(InputError, match="no query of this data has a positive"):
                    run(*data, protocols={name: PROTOCOLS[name]})


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(threads):
    data = world(seed=15, queries=60, gallery=200, kind="signs")
    before = torch.get_num_threads()
    expected = run(*data)
    torch.set_num_threads(threads)
    try:
        found = run(*data)
    finally:
        torch.set_num_threads(before)
    for name in PROTOCOLS:
        assert all(map(torch.equal, found[name].per_query, expected[name].per_query))


class TestOnADevice:
    """The CPU stands for one: all that differs is what counts."""

    @pytest.fixture(autouse=True)
    def _device(self, monkeypatch):
        monkeypatch.setattr(ranking, "_counting", lambda device, buffer: negatives_ranked_above_on_device)

    @pytest.mark.parametrize("kind", ["random", "signs"])
    @pytest.mark.parametrize("memory", [None, 3000])
    @pytest.mark.parametrize("draws", [0, 3])
    def test_every_rule_equals_a_plain_loop(self, kind, memory, draws):
        query, query_rows, gallery, gallery_rows = data = world(seed=6, width=4, kind=kind)
        scores = score_matrix(query, gallery, "cosine")
        for name, rule in RULES.items():
            options = {"draws": draws, "seed": 5} if draws else {}
            found = run(*data, protocols={name: Protocol(name, rule, "", **options)}, memory=memory)[name]
            expected = evaluate_plain(scores, query_rows, gallery_rows, JUNK[name], **options)
            assert_equals_plain(found, expected, 1e-6)

    def test_the_host_waits_twice_a_block(self):
        data = world(seed=6)
        few, many = Waits(), Waits()
        with few:
            run(*data, protocols={"general": PROTOCOLS["general"]})
        with many:
            run(*data, protocols={"general": PROTOCOLS["general"]}, memory=1)
        blocks = int(run(*data)["general"].per_query.valid.sum())
        # Beside the two a block's width, which is looked up beforehand, and what makes an array of the CPU's scores.
        assert many.count - few.count == (2 + 3) * (blocks - 1)


def test_a_gallery_in_parts_ranks_as_one(tmp_path):
    """Two processes hold it; whoever has which pictures, each gets the results of the whole, ties included."""
    side_by_side(rank_in_parts, 2, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    drawn = {"drawn": Protocol("drawn", rules.same_camera, "", draws=3, seed=5)}
    some = {"some": Protocol("some", rules.same_camera, "", gallery={"camera": ["c0", "c1"]})}
    whole = {
        kind: run(*world(seed=13, width=4, kind=kind), protocols={**PROTOCOLS, **drawn, **some})
        for kind in ("random", "signs")
    }
    assert first.keys() == second.keys()
    assert len(first) == 6
    for key, found in first.items():
        for name, per_query in found.items():
            expected = whole[key[0]][name].per_query
            for column, ours, theirs in zip(expected, per_query, second[key][name], strict=True):
                torch.testing.assert_close(ours, column, rtol=0, atol=1e-12)
                assert torch.equal(ours, theirs)


def test_what_needs_the_whole_gallery_is_refused_of_a_part():
    query, query_rows, gallery, gallery_rows = world(seed=13)
    share = ranking.GalleryShare(torch.arange(3), lambda one: one, lambda one: one)
    with pytest.raises(InputError, match="a gallery in parts is ranked without"):
        run(query, query_rows, gallery[:3], gallery_rows, gallery_share=share, open_set=[0.1])
