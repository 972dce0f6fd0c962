from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from clip3dreid.data.manifest import build
from clip3dreid.data.tracklet_counts import DescribedTracklets, TrackletCounts, describe_tracklets

NO_SIZES = pl.DataFrame(schema={"path": pl.String, "size": pl.String})


def rows_of(tracklet: str, numbers: Iterable[int | None], **facts: Any) -> list[dict[str, Any]]:
    """Frames of a tracklet, with the labels of a training person unless others are given."""
    facts = {"person": "1", "split": "train", "role": "train", "camera": "1", **facts}
    where = "/".join(str(facts[key]) for key in ("split", "role", "person", "camera"))
    return [
        {"path": f"{where}/{tracklet}/{place}.jpg", "tracklet": tracklet, "frame": number, **facts}
        for place, number in enumerate(numbers)
    ]


def described(*tracklets: list[dict[str, Any]]) -> DescribedTracklets:
    manifest = build("x", Path("r"), [row for rows in tracklets for row in rows])
    return describe_tracklets(manifest.table, NO_SIZES)


def test_tracklets_are_counted_as_by_hand() -> None:
    gallery = {"split": "test", "role": "gallery", "person": "7"}
    found = described(
        rows_of("a", range(1, 11)),
        rows_of("b", range(4)),
        rows_of("c", [5], person="2"),
        rows_of("d", range(8), **gallery),
        rows_of("e", range(20), **gallery | {"person": "1"}),
        rows_of("f", range(9), **gallery),
    )
    assert found.counts == {
        "train": TrackletCounts(3, (1, 1.5, 2), (1, 4, 10), 2, 0, 0, 0),
        "gallery": TrackletCounts(3, (1, 1.5, 2), (8, 9, 20), 0, 0, 0, 0),
        # 1 of train and 1 of test are two people.
        "all": TrackletCounts(6, (1, 1.5, 2), (1, 8.5, 20), 2, 0, 0, 0),
    }
    assert found.faults == found.notes == ()


def test_a_gap_is_where_numbers_grow_by_more_than_they_mostly_do() -> None:
    found = described(
        rows_of("whole", [3, 4, 5, 6]),
        rows_of("one gap of three", [1, 2, 3, 7, 8]),
        rows_of("every fifth", [0, 5, 10, 15, 20]),
        rows_of("every fifth, one gone", [0, 5, 10, 20, 25]),
        # Of the two steps either may be meant: the lesser is.
        rows_of("three frames", [1, 2, 4]),
        rows_of("two frames", [1, 9]),
        rows_of("no numbers", [None, None, None]),
    )
    assert (found.counts["train"].with_gaps, found.counts["train"].missing) == (3, 3 + 1 + 1)


def test_tracklets_of_several_outfits_and_numbers_that_stand_twice_are_faults() -> None:
    found = described(
        rows_of("a", range(3)),
        [row | {"clothes": f"1_{place}"} for place, row in enumerate(rows_of("b", range(3)))],
        rows_of("c", [1, 2, 2, 3]),
    )
    outfits, twice = found.faults
    assert outfits.startswith("1 tracklets show several outfits (b)")
    assert twice.startswith("1 tracklets have a frame number twice (c)")


def test_a_few_names_of_several_people_or_cameras_are_faults() -> None:
    names = [rows_of(f"t{number}", range(2)) for number in range(20)]
    found = described(*names, rows_of("t3", range(2), person="2"), rows_of("t4", range(2), camera="2"))
    assert found.faults == (
        "1 of 20 tracklet names stand under several people (t3): taken as a tracklet of each",
        "1 of 21 tracklet names stand under several cameras of one person (t4): taken as a tracklet of each",
    )
    assert found.notes == ()


def test_names_that_begin_anew_for_each_person_are_no_fault() -> None:
    found = described(*(rows_of(name, range(2), person=who) for who in "12" for name in "ab"))
    assert found.faults == ()
    assert found.notes == ("tracklets are numbered anew for each person",)
