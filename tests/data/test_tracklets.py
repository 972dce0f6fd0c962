from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from clip3dreid.data.manifest import build
from clip3dreid.data.tracklets import Tracklets, tracklets
from clip3dreid.errors import InputError
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.protocol import Protocol, same_camera_or_clothes


def row(path: str, **facts: Any) -> dict[str, Any]:
    return {"path": path, "person": "1", "split": "test", "role": "gallery", "tracklet": "7"} | facts


def read(rows: list[dict[str, Any]]) -> tuple[pl.DataFrame, Tracklets]:
    table = build("d", Path("/nowhere"), rows).part("test")
    return table, tracklets(table, "d")


def paths(table: pl.DataFrame, found: Tracklets) -> list[list[str]]:
    return [[table["path"][int(row)] for row in found.frames(one)] for one in range(len(found.table))]


def test_frames_without_numbers_are_ordered_as_people_count() -> None:
    names = ["t/img2_10.jpg", "t/img10_1.jpg", "t/img2_9.jpg", "t/img1_100.jpg"]
    table, found = read([row(name) for name in names])
    assert paths(table, found) == [["t/img1_100.jpg", "t/img2_9.jpg", "t/img2_10.jpg", "t/img10_1.jpg"]]


def test_frames_with_numbers_are_ordered_by_them_whatever_their_paths() -> None:
    table, found = read([row("a.jpg", frame=10), row("b.jpg", frame=9), row("c.jpg", frame=100)])
    assert paths(table, found) == [["b.jpg", "a.jpg", "c.jpg"]]
    (one,) = found.table.iter_rows(named=True)
    assert (one["path"], one["frame"], one["frames"]) == ("a.jpg", 10, 3)


def test_a_tracklet_has_the_labels_of_its_frames_and_every_frame_is_in_one() -> None:
    table, found = read(
        [
            row("q/1.jpg", role="query", tracklet="a", camera="3", clothes="1_x", frame=1),
            row("g/2.jpg", tracklet="b", camera="4", clothes="1_y", frame=2),
            row("g/1.jpg", tracklet="b", camera="4", clothes="1_y", frame=1),
            row("g/0.jpg", tracklet="a", camera="3", clothes="1_x", frame=5),
        ]
    )
    labels = found.table.select("role", "tracklet", "camera", "clothes", "frames").rows()
    assert labels == [
        ("gallery", "a", "3", "1_x", 1),
        ("gallery", "b", "4", "1_y", 2),
        ("query", "a", "3", "1_x", 1),
    ]
    assert sorted(found.rows.tolist()) == list(range(len(table)))
    assert found.starts.tolist() == [0, 1, 3, 4]
    assert found.rows.dtype == found.starts.dtype == np.int64


def test_numbers_that_start_anew_under_each_camera_or_for_each_person_are_told_apart() -> None:
    _, found = read([row("a.jpg", camera="1"), row("b.jpg", camera="2"), row("c.jpg", person="2")])
    assert len(found.table) == 3


def test_pictures_without_tracklets_are_refused_and_counted() -> None:
    with pytest.raises(InputError, match="d: 1 of 2 pictures have no tracklet; "):
        read([row("a.jpg"), row("b.jpg", tracklet=None)])


def test_a_tracklet_in_two_outfits_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"1 tracklets show several outfits: 7; .* divide them"):
        read([row("a.jpg", clothes="1_x"), row("b.jpg", clothes="1_y"), row("c.jpg", tracklet="8")])
    with pytest.raises(InputError, match="several outfits"):
        read([row("a.jpg", clothes="1_x"), row("b.jpg", clothes=None)])


@pytest.mark.parametrize("column", ["location", "scale"])
def test_a_tracklet_of_two_locations_or_scales_is_refused_by_name(column: str) -> None:
    with pytest.raises(InputError, match=f"1 tracklets show several {column}s: 7; .* divide them"):
        read([row("a.jpg", **{column: "x"}), row("b.jpg", **{column: "y"}), row("c.jpg", tracklet="8")])
    _, found = read(
        [row("a.jpg", **{column: "x"}), row("b.jpg", **{column: "x"}), row("c.jpg", tracklet="8")]
    )
    assert found.table.select("tracklet", column).rows() == [("7", "x"), ("8", None)]


def test_evaluation_reads_a_table_of_tracklets_as_one_of_pictures() -> None:
    """Rules of the base recipe at the level of tracklets, against a plain loop."""
    rng = np.random.default_rng(3)
    rows = [
        row(
            f"{role}/{number:03d}/{frame}.jpg",
            role=role,
            tracklet=str(number),
            person=str(number % 4),
            camera=str(number % 3),
            clothes=f"{number % 4}_{number % 5}",
            frame=frame,
        )
        for role, count in (("query", 12), ("gallery", 60))
        for number in range(count)
        for frame in range(1 + number % 3)
    ]
    table = build("d", Path("/nowhere"), rows)
    query, gallery = (tracklets(table.part("test", role), "d").table for role in ("query", "gallery"))
    assert (len(query), len(gallery)) == (12, 60)
    features = [rng.normal(size=(len(part), 6)).astype(np.float32) for part in (query, gallery)]
    rule = Protocol(
        "clothes_changing", same_camera_or_clothes, "other clothes, another camera", needs=("clothes",)
    )
    found = evaluate(features[0], query, features[1], gallery, {"cc": rule})["cc"]
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in features]
    hits, precisions = [], []
    for asked, scores in zip(query.iter_rows(named=True), unit[0] @ unit[1].T, strict=True):
        ranked = []
        for place in np.argsort(-scores):
            there = gallery.row(int(place), named=True)
            own = there["person"] == asked["person"]
            if not (own and (there["camera"] == asked["camera"] or there["clothes"] == asked["clothes"])):
                ranked.append(own)
        if any(ranked):
            hits.append(ranked[0])
            places = np.flatnonzero(ranked) + 1
            precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
    result = found.result()
    assert result["valid_queries"] == len(hits) > 5
    assert result["r1"] == pytest.approx(np.mean(hits))
    assert result["map"] == pytest.approx(np.mean(precisions))
