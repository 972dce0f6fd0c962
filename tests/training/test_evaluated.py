"""Scores show themselves: as a table, as polars, as plain data."""

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from clip3dreid.inference.parts import Feature
from clip3dreid.training.evaluated import Evaluated
from clip3dreid.training.settings import RANKING

INTERVAL = {"r1": [0.4, 0.6], "map": [0.25, 0.35], "minp": [0.1, 0.125]}


def scores(**changes: Any) -> dict[str, Any]:
    return {
        **{"r1": 0.5, "r5": 0.625, "r10": 0.75, "r20": 1.0, "map": 0.3, "minp": 0.12, "chance_r1": 0.03},
        **{"queries": 8, "valid_queries": 8, "gallery": 90, "queries_in_gallery": 0, "interval": INTERVAL},
        **{"shots": "multi-shot", "average_precision": "plain", "metric": "cosine", "same_picture": "drop"},
        **{"rerank": None, "tpr_at_fpr": None, "description": "A rule <with> a name."},
        **changes,
    }


def queries(people: int) -> pl.DataFrame:
    return pl.DataFrame({"person": [str(row % people) for row in range(8)]})


ONE = Evaluated(
    "m.ckpt",
    RANKING,
    {"ltcc": {"general": scores(), "other": scores(valid_queries=6, interval=None)}},
    {"ltcc": {"general": queries(3), "other": queries(1)}},
    {"ltcc": ["two pictures are missing"]},
)


def cells(shown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]


def test_it_prints_as_a_table_in_per_cent_with_intervals_and_what_they_are_of() -> None:
    shown = repr(ONE)
    assert shown == str(ONE)
    lines = shown.splitlines()
    assert lines[0] == "ltcc (test), m.ckpt, cosine"
    assert [cell.strip() for cell in lines[2].split("┃")[1:-1]] == [
        "protocol", "queries", "gallery", "people", "R1", "R5", "R10", "mAP", "mINP",
    ]  # fmt: skip
    assert cells(shown) == [
        ["general", "8", "90", "3", "50.0 [40.0, 60.0]", "62.5", "75.0", "30.0 [25.0, 35.0]", "12.0 [10.0, 12.5]"],
        ["other", "6 of 8", "90", "1", "50.0", "62.5", "75.0", "30.0", "12.0"],
    ]  # fmt: skip
    assert lines[-4:] == [
        "  general (multi-shot, plain AP, cosine, same_picture=drop): A rule <with> a name.",
        "  other (multi-shot, plain AP, cosine, same_picture=drop): A rule <with> a name.",
        "  note: two pictures are missing",
        "  R1, mAP, mINP: 95 % intervals over query people",
    ]


def test_a_notebook_shows_the_same_with_nothing_of_it_taken_for_markup() -> None:
    page = ONE._repr_html_()
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for row in cells(repr(ONE)):
        assert all(cell in text for cell in row)
    assert "A rule &lt;with&gt; a name." in page
    assert page.count("<tr>") == 3


def test_polars_has_a_row_a_protocol_as_fractions() -> None:
    table = ONE.to_polars()
    assert table["protocol"].to_list() == ["general", "other"]
    row, other = table.to_dicts()
    assert (row["data"], row["feature"], row["people"], row["valid_queries"]) == ("ltcc", "embedding", 3, 8)
    assert (row["r1_low"], row["r1"], row["r1_high"]) == (0.4, 0.5, 0.6)
    assert (row["minp_low"], row["minp"], row["minp_high"]) == (0.1, 0.12, 0.125)
    assert [other[f"{key}_low"] for key in INTERVAL] == [None] * 3
    alone = dataclasses.replace(ONE, results={"ltcc": {"other": scores(interval=None)}})
    assert alone.to_polars().schema == table.schema
    assert "intervals" not in repr(alone)


def test_several_data_sets_and_features_are_told_apart_in_columns_of_their_own() -> None:
    both = {"ltcc": {"general": scores()}, "prcc": {"general": scores(r1=0.25)}}
    asked = {name: {"general": queries(2)} for name in both}
    two = Evaluated("m.ckpt", RANKING, both, asked, {"ltcc": [], "prcc": []})
    assert [row[:2] for row in cells(repr(two))] == [["ltcc", "general"], ["prcc", "general"]]
    # What is said of both is said once.
    assert repr(two).count("A rule") == 1
    feature = Feature([("embedding", 1), ("betas", 0.5)])
    several = dataclasses.replace(two, feature=feature, alone=both, alone_queries=asked)
    assert [row[:3] for row in cells(repr(several))] == [
        [name, by, "general"] for name in both for by in ("embedding + 0.5 betas", "embedding")
    ]


def test_plain_data_say_whether_a_model_or_its_features_were_given() -> None:
    facts = json.loads(json.dumps(ONE.to_dict()))
    assert (facts["checkpoint"], facts["data"], facts["notes"]) == (
        "m.ckpt",
        "ltcc",
        ["two pictures are missing"],
    )
    assert facts["results"] == json.loads(json.dumps(ONE.results["ltcc"]))
    given = dataclasses.replace(ONE, computed=False)
    assert (given.to_dict()["features"], given.to_dict()["data"]) == ("m.ckpt", "ltcc")
    assert given.to_polars()["feature"].to_list() == [None, None]
    bare = Evaluated("f.npz", RANKING, {"": {}}, {"": {}}, {"": []}, computed=False)
    assert "data" not in bare.to_dict()


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_title_names_the_split(split: str, tmp_path: Path) -> None:
    assert repr(dataclasses.replace(ONE, split=split)).startswith(f"ltcc ({split}), ")
