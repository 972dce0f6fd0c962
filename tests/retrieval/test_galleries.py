"""Several galleries against the same people evaluated by hand, one gallery at a time."""

import numpy as np
import polars as pl
import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.retrieval.distributed import RetrievalScores
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.protocol import Protocol, same_camera
from clip3dreid.retrieval.protocol_counts import count

PEOPLE = 7


def protocol(size: int) -> Protocol:
    return Protocol("g", same_camera, "d", gallery_people=size)


def pictures(seed: int = 0) -> tuple[np.ndarray, pl.DataFrame, np.ndarray, pl.DataFrame]:
    """Two queries and three gallery pictures of each person, in any order; a distractor in the gallery."""
    rng = np.random.default_rng(seed)
    query = pl.DataFrame(
        {"person": [f"p{i}" for i in range(PEOPLE) for _ in range(2)], "camera": [1] * 2 * PEOPLE}
    )
    who = [f"p{i}" for i in range(PEOPLE) for _ in range(3)] + ["nobody"] * 2
    gallery = pl.DataFrame({"person": who, "camera": [2] * len(who)})
    tables = [table.sample(fraction=1, shuffle=True, seed=seed) for table in (query, gallery)]
    features = [rng.normal(size=(len(table), 4)) for table in tables]
    return features[0], tables[0], features[1], tables[1]


def by_hand(size: int) -> tuple[float, float, int]:
    """Mean R1 and AP over queries of separate evaluations, and the queries that there are."""
    q, qt, g, gt = pictures()
    parts = [[f"p{i}" for i in range(start, start + size)] for start in range(0, PEOPLE, size)]
    if len(parts[-1]) and len(set(parts[-1]) & {f"p{i}" for i in range(PEOPLE)}) < size / 2:
        parts[-2:] = [parts[-2] + parts[-1]]
    r1, ap, queries = 0.0, 0.0, 0
    for people in parts:
        own = qt["person"].is_in(people).to_numpy()
        theirs = (gt["person"].is_in(people) | (gt["person"] == "nobody")).to_numpy()
        found = evaluate(q[own], qt.filter(own), g[theirs], gt.filter(theirs), {"g": protocol(0)})[
            "g"
        ].result()
        r1, ap, queries = (
            r1 + own.sum() * found["r1"],
            ap + own.sum() * found["map"],
            queries + int(own.sum()),
        )
    return r1 / queries, ap / queries, queries


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_several_galleries_are_the_mean_over_the_queries_of_each_by_itself(size: int) -> None:
    q, qt, g, gt = pictures()
    found = evaluate(q, qt, g, gt, {"g": protocol(size), "all": protocol(0)})
    r1, ap, queries = by_hand(size)
    result = found["g"].result()
    assert (result["r1"], result["map"], result["valid_queries"]) == pytest.approx((r1, ap, queries))
    assert result["gallery_people"] == size
    assert found["g"].rows.tolist() == list(range(len(qt)))
    whole = found["all"].result()
    assert "gallery_people" not in whole
    assert list(found) == ["g", "all"]
    if size in (5, PEOPLE):  # two who are left over join the five
        assert result["map"] == pytest.approx(whole["map"])
    else:
        # Fewer to be mistaken for.
        assert result["map"] > whole["map"]
        assert result["chance_r1"] > whole["chance_r1"]


def test_rows_that_are_left_over_join_the_last_gallery_where_they_are_few() -> None:
    _, qt, _, gt = pictures()
    # 7 people by 5: 2 are left over, fewer than half of 5; by 4: 3 are left over.
    assert count(protocol(5), qt, gt).gallery == 7 * 3 + 2
    assert count(protocol(4), qt, gt).gallery == round((4 * 3 + 2 + 3 * 3 + 2) / 2)


def test_shares_of_several_processes_together_are_the_whole() -> None:
    sides = pictures()
    whole = evaluate(*sides, {"g": protocol(3)})["g"]
    shares = [evaluate(*sides, {"g": protocol(3)}, share=(rank, 3))["g"] for rank in range(3)]
    rows = torch.cat([share.rows for share in shares])
    assert sorted(rows.tolist()) == whole.rows.tolist()
    scores = RetrievalScores()
    for share in shares:
        assert share.counts == whole.counts
        scores.update(share.per_query)
    assert scores.compute()["map"] == pytest.approx(whole.result()["map"])
    numbers = torch.cat([share.numbers() for share in shares])
    torch.testing.assert_close(numbers[numbers[:, 0].argsort()], whole.numbers())


def test_what_has_no_meaning_with_several_galleries_is_told() -> None:
    sides = pictures()
    with pytest.raises(InputError, match=r"gallery_people=8, and there are 7 people"):
        evaluate(*sides, {"g": protocol(8)})
    with pytest.raises(InputError, match=r"several galleries \(gallery_people=3\), and open_set wants one"):
        evaluate(*sides, {"g": protocol(3)}, open_set=[0.1])
    with pytest.raises(InputError, match="gallery_people=-1 must be a whole number, 0 or more"):
        protocol(-1)
