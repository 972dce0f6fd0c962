import dataclasses
import doctest
import json

import numpy as np
import polars as pl
import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.retrieval.bootstrap import QueryScores, interval
from clip3dreid.retrieval.evaluation import evaluate, query_table
from clip3dreid.retrieval.protocol import (
    Protocol,
    nothing,
    same_camera,
    same_camera_or_clothes,
)
from clip3dreid.retrieval.protocol_counts import count

GENERAL = Protocol("general", same_camera, "the usual one")
NO_REMOVAL = Protocol("no_removal", nothing, "")
CHANGING = Protocol("clothes_changing", same_camera_or_clothes, "", needs=["clothes"])


def tables():
    query = pl.DataFrame(
        {"path": ["q/a.png", "q/b.png", "q/c.png"], "person": ["a", "b", "c"], "camera": ["1", "1", "1"]}
    )
    gallery = pl.DataFrame({"path": list("wxyz"), "person": list("aabb"), "camera": ["1", "2", "2", "2"]})
    return query, gallery


def features(rows, width=3):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


def run(query_features=None, gallery_features=None, protocols=None, **options):
    query, gallery = tables()
    return evaluate(
        features(3) if query_features is None else query_features,
        query,
        features(4) if gallery_features is None else gallery_features,
        gallery,
        {"general": GENERAL} if protocols is None else protocols,
        **options,
    )


def test_the_result_holds_scores_counts_and_protocol_and_is_json():
    result = json.loads(json.dumps(run()["general"].result(), allow_nan=False))
    assert {"r1", "r5", "r10", "r20", "map", "minp"} <= set(result)
    assert all(0 <= result[score] <= 1 for score in ("r1", "map", "minp", "junk_share", "chance_r1"))
    assert (result["queries"], result["valid_queries"], result["gallery"]) == (3, 2, 4)
    assert result["without_positive"] == ["q/c.png"]
    assert result["positives_per_query"] == 1.5
    assert result["junk_per_query"] == pytest.approx(1 / 3)
    assert result["junk_share"] == pytest.approx(1 / 12)
    assert result["chance_r1"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert (result["protocol"], result["description"]) == ("general", "the usual one")
    assert (result["drop"], result["metric"], result["shots"]) == ("same_camera", "cosine", "multi-shot")


def test_the_example_of_the_docstring_runs():
    example = doctest.DocTestFinder(recurse=False).find(evaluate, "evaluate", globs={})[0]
    assert len(example.examples) > 8
    assert doctest.DocTestRunner().run(example).failed == 0


def test_arrays_give_what_tensors_give():
    query, gallery = features(3), features(4)
    assert run(query.numpy(), gallery.numpy())["general"].result() == run(query, gallery)["general"].result()


def test_counts_need_no_features_and_are_those_of_the_evaluation():
    assert count(GENERAL, *tables()) == run()["general"].counts


def test_at_most_ten_queries_without_a_positive_are_named():
    query = pl.DataFrame({"person": ["a", *"bcdefghijklm"]})
    found = count(NO_REMOVAL, query, pl.DataFrame({"person": ["a"]}))
    assert found.valid_queries == 1
    assert found.without_positive == tuple(f"row {row}" for row in range(1, 11))


def test_euclidean_takes_lengths_into_account_and_cosine_does_not():
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[9.0, 0.0], [1.0, 0.5]])
    data = query, pl.DataFrame({"person": ["a"]}), gallery, pl.DataFrame({"person": ["a", "b"]})
    ranks = {
        metric: evaluate(*data, {"n": NO_REMOVAL}, metric=metric)["n"].per_query.first_hit.item()
        for metric in ("cosine", "euclidean")
    }
    assert ranks == {"cosine": 1, "euclidean": 2}


def with_value(rows, value):
    tensor = features(rows)
    tensor[1, 2] = value
    return tensor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_features": with_value(3, torch.nan)}, "1 of 3 query features hold NaN or inf.*q/b.png"),
        ({"gallery_features": with_value(4, torch.inf)}, "1 of 4 gallery features hold NaN or inf.* x"),
        ({"gallery_features": with_value(4, 1e30)}, "too large to square"),
        ({"gallery_features": features(4) * torch.tensor([[1.0], [0], [1], [0]])}, "2 of 4 .*all zero.* x"),
        ({"gallery_features": features(4, 5)}, "3 wide and gallery features 5"),
        ({"query_features": features(5)}, "5 query features for 3 pictures"),
        (
            {"query_features": torch.zeros(3, 0), "gallery_features": torch.zeros(4, 0)},
            "query features are empty",
        ),
        ({"query_features": torch.zeros(3)}, "expected floating-point"),
        ({"query_features": torch.zeros(3, 3, dtype=torch.int64)}, "expected floating-point"),
        ({"metric": "manhattan"}, "choose cosine or euclidean"),
        ({"protocols": {}}, "no protocol"),
        ({"protocols": {"cc": CHANGING}}, "clothes_changing needs clothes"),
    ],
)
def test_bad_input_gets_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        run(**arguments)
    assert "\n" not in str(caught.value)


def test_zero_features_have_a_place_in_euclidean_space():
    assert run(gallery_features=torch.zeros(4, 3), metric="euclidean")["general"].counts.valid_queries == 2


@pytest.mark.parametrize("empty", ["query", "gallery"])
def test_an_empty_query_or_gallery_is_an_error(empty):
    query, gallery = tables()
    query, gallery = (query.clear(), gallery) if empty == "query" else (query, gallery.clear())
    with pytest.raises(InputError, match=f"the {empty} features are empty"):
        evaluate(features(3)[: len(query)], query, features(4)[: len(gallery)], gallery, {"general": GENERAL})
    with pytest.raises(InputError, match=f"no {empty} pictures"):
        count(GENERAL, query, gallery)


def test_no_valid_query_at_all_says_what_removed_them():
    query, gallery = tables()
    with pytest.raises(InputError, match="rule same_camera drops all 4 gallery pictures"):
        count(GENERAL, query, gallery.with_columns(camera=pl.lit("1")))
    with pytest.raises(InputError, match="no person of its 3 queries is among its 4 gallery"):
        count(GENERAL, query, gallery.with_columns(person=pl.lit("z")))


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A re-ranking that gives the scores it was made with, and remembers what it was asked."""

    scores: np.ndarray
    lambda_: float = 0.5
    seen: list = dataclasses.field(default_factory=list)

    def __call__(self, query, gallery, metric):
        self.seen.append((query.shape, gallery.shape, metric, torch.is_grad_enabled()))
        return self

    def block(self, rows):
        return self.scores[rows.numpy()]


def test_a_reranking_sees_all_features_once_and_its_scores_are_ranked():
    protocols = {"general": GENERAL, "no_removal": NO_REMOVAL}
    # The query of b finds y third under both; the query of a finds w and x, of which w is junk under one.
    rerank = Fixed(np.array([[4.0, 1, 2, 3], [4, 3, 1, 1], [0, 0, 0, 0]], np.float32))
    found = run(protocols=protocols, rerank=rerank)
    assert rerank.seen == [((3, 3), (4, 3), "cosine", False)]
    assert found["general"].per_query.first_hit.tolist() == [3, 3, 0]
    assert found["no_removal"].per_query.first_hit.tolist() == [1, 3, 0]


def test_a_reranking_and_its_settings_are_named_with_every_number():
    assert run()["general"].result()["rerank"] is None
    facts = run(rerank=Fixed(np.zeros((3, 4))))["general"].result()["rerank"]
    assert (facts["method"], facts["lambda"]) == ("Fixed", 0.5)


def test_a_query_that_asks_nothing_is_never_scored():
    asked = []

    class Noting(Fixed):
        def block(self, rows):
            asked.extend(rows.tolist())
            return super().block(rows)

    run(rerank=Noting(np.zeros((3, 4))))
    assert asked == [0, 1], "query c has no positive"


def test_open_set_scores_of_a_reranking_are_refused():
    with pytest.raises(InputError, match="leave open_set or the re-ranking out"):
        run(rerank=Fixed(np.zeros((3, 4))), open_set=[0.1])


def test_intervals_are_those_of_the_scores_of_each_query():
    rng = np.random.default_rng(0)
    query = pl.DataFrame({"person": rng.choice(list("abcde"), 40)})
    gallery = pl.DataFrame({"person": rng.choice(list("abcde"), 60)})
    found = evaluate(features(40), query, features(60), gallery, {"all": NO_REMOVAL})["all"]
    scores = {"r1": found.per_query.hits[:, 0], "map": found.per_query.ap, "minp": found.per_query.inp}
    result = found.result()
    for name, values in scores.items():
        # The same people under other names are drawn in another order: intervals agree but for the drawing.
        expected = interval([QueryScores(values.numpy(), query["person"].to_numpy())])
        assert result["interval"][name] == pytest.approx(expected, abs=0.01)
        assert expected.low < result[name] < expected.high


def test_one_person_has_no_interval():
    query, gallery = tables()
    found = evaluate(features(3)[:1], query[:1], features(4), gallery, {"general": GENERAL})["general"]
    assert found.result()["interval"] is None


def test_the_table_of_queries_has_the_valid_ones_and_their_means_are_the_results():
    found = run()["general"]
    table = query_table(found.numbers(), tables()[0])
    assert table["query"].to_list() == ["q/a.png", "q/b.png"]
    assert table["person"].to_list() == ["a", "b"]
    assert table["positives"].to_list() == [1, 2]
    assert table["junk"].to_list() == [1, 0]
    result = found.result()
    for column, score in {"r1": "r1", "ap": "map", "inp": "minp"}.items():
        assert table[column].mean() == pytest.approx(result[score], abs=1e-12)
    assert ((table["first_hit"] <= 1) == (table["r1"] == 1)).all()


def test_a_query_that_finds_itself_is_no_hit_and_is_counted():
    # Each query lies in the gallery; the person's other picture is behind a stranger's.
    table = pl.DataFrame({"path": ["a1", "b1"], "person": ["a", "b"]})
    gallery = pl.DataFrame({"path": ["a1", "a2", "b1", "b2"], "person": ["a", "a", "b", "b"]})
    at = torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [5.0], [3.0], [9.0]])
    protocols = {
        "drop": NO_REMOVAL,
        "keep": dataclasses.replace(NO_REMOVAL, same_picture="keep"),
    }
    found = evaluate(at[0], table, at[1], gallery, protocols, metric="euclidean")
    kept, dropped = (found[name].result() for name in ("keep", "drop"))
    assert kept["r1"] == 1
    assert dropped["r1"] == 0
    assert found["drop"].per_query.first_hit.tolist() == [2, 3]
    assert [r["queries_in_gallery"] for r in (kept, dropped)] == [2, 2]
    assert kept["in_gallery"] == ["a1", "b1"]
    assert [r["same_picture"] for r in (kept, dropped)] == ["keep", "drop"]
    assert (kept["junk_per_query"], dropped["junk_per_query"]) == (0, 1)


def test_where_only_the_queries_themselves_are_left_that_is_said():
    table = pl.DataFrame({"path": ["a"], "person": ["a"]})
    with pytest.raises(
        InputError, match="its rule nothing \\(and same_picture=drop the queries' own pictures\\)"
    ):
        count(NO_REMOVAL, table, table)


def test_the_same_picture_of_another_person_is_a_stranger():
    query = pl.DataFrame({"path": ["x"], "person": ["a"]})
    gallery = pl.DataFrame({"path": ["x", "y"], "person": ["b", "a"]})
    found = evaluate(torch.ones(1, 1), query, torch.ones(2, 1), gallery, {"n": NO_REMOVAL})["n"]
    assert found.per_query.first_hit.tolist() == [2]
    assert found.counts.queries_in_gallery == 0
