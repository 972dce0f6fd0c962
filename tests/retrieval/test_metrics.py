import numpy as np
import pytest
import torch
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from clip3dreid.errors import InputError
from clip3dreid.retrieval.distributed import RetrievalScores
from clip3dreid.retrieval.metrics import PerQuery, score_ranks, summarise
from tests.processes import side_by_side
from tests.retrieval.worlds import rank_a_share, run, world

RANKS = torch.tensor([[1, 3, 6], [2, 99, 99], [7, 21, 99]])
KEPT = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])


def test_scores_of_known_ranks_are_as_worked_by_hand():
    first, hits, ap, inp = score_ranks(RANKS, KEPT, "plain")
    assert first.tolist() == [1, 2, 7]
    assert hits.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    np.testing.assert_allclose(ap, [(1 + 2 / 3 + 3 / 6) / 3, 1 / 2, (1 / 7 + 2 / 21) / 2], atol=1e-15)
    np.testing.assert_allclose(inp, [3 / 6, 1 / 2, 2 / 21], atol=1e-15)


def test_the_trapezoid_takes_precision_just_before_a_hit_as_one_at_rank_one():
    ap = score_ranks(RANKS, KEPT, "trapezoid")[2]
    first = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 5 + 3 / 6) / 2) / 3
    np.testing.assert_allclose(ap, [first, (0 + 1 / 2) / 2, ((0 + 1 / 7) / 2 + (1 / 20 + 2 / 21) / 2) / 2])


@pytest.mark.parametrize("seed", range(3))
def test_both_average_precisions_are_scikit_learns(seed):
    hits = np.random.default_rng(seed).random(40) < 0.2
    ranks = torch.tensor(np.flatnonzero(hits) + 1)[None]
    kept = torch.ones_like(ranks, dtype=torch.bool)
    scores = -np.arange(40)
    assert score_ranks(ranks, kept, "plain")[2].item() == pytest.approx(average_precision_score(hits, scores))
    precision, recall, _ = precision_recall_curve(hits, scores)
    assert score_ranks(ranks, kept, "trapezoid")[2].item() == pytest.approx(auc(recall, precision))


def test_a_row_without_positives_scores_zero_everywhere():
    for scores in score_ranks(RANKS, torch.zeros_like(KEPT), "plain"):
        assert not scores.any()


def per_query(valid):
    first, hits, ap, inp = score_ranks(RANKS, KEPT, "plain")
    return PerQuery(torch.tensor(valid), KEPT.sum(1), torch.zeros(3, dtype=torch.int64), first, hits, ap, inp)


def test_means_are_over_valid_queries_only():
    found = summarise(per_query([True, False, True]))
    assert found["queries"] == 3
    assert found["valid_queries"] == 2
    assert (found["r1"], found["r5"], found["r10"]) == (0.5, 0.5, 1)
    assert found["map"] == pytest.approx(((1 + 2 / 3 + 1 / 2) / 3 + (1 / 7 + 2 / 21) / 2) / 2)
    assert found["minp"] == pytest.approx((1 / 2 + 2 / 21) / 2)


def test_no_valid_query_is_an_error_and_not_a_division_by_zero():
    with pytest.raises(InputError, match="none of 3 queries"):
        summarise(per_query([False] * 3))


def test_updates_add_up_to_the_whole():
    whole = per_query([True, False, True])
    scores = RetrievalScores()
    for row in range(3):
        scores.update(whole.at(torch.tensor([row])))
    scores.update(whole.at(torch.tensor([], dtype=torch.int64)))
    assert scores.compute() == pytest.approx(summarise(whole), abs=1e-15)


def test_two_processes_with_a_share_each_report_what_one_reports(tmp_path):
    side_by_side(rank_a_share, 2, 2, tmp_path)
    alone = run(*world(seed=11, kind="signs"), open_set=[0.01, 0.2])
    one = {name: found.result() for name, found in alone.items()}
    for rank in (0, 1):
        for name, result in torch.load(tmp_path / f"{rank}.pt").items():
            assert result.pop("share") == list(range(rank, 40, 2))
            scores = {key: value for key, value in result.items() if isinstance(value, float)}
            assert scores == pytest.approx({key: one[name][key] for key in scores}, abs=1e-12)
            assert {k: v for k, v in result.items() if k not in scores} == {
                k: v for k, v in one[name].items() if k not in scores
            }
