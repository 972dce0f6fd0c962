import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip3dreid.data import same_pictures
from clip3dreid.data.datasets import ccvid, celeb_reid, deepchange, last, ltcc, prcc, vc_clothes
from clip3dreid.data.manifest import Published
from clip3dreid.data.same_pictures import mark_same_pictures

# What PRCC's reader knows otherwise, and the total of its paper.
PRCC_REST = (
    Published("train", "pictures", prcc.TRAIN_PICTURES["ignore"]),
    Published("val", "pictures", prcc.TRAIN_PICTURES["train"] - prcc.TRAIN_PICTURES["ignore"]),
    Published("all", "pictures", 33_698),
)


def rows(*pairs: tuple[str, str]) -> pl.DataFrame:
    return pl.DataFrame(pairs, schema={"person": pl.String, "path": pl.String}, orient="row")


def write(root: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        (root / name).write_bytes(content)


def test_one_path_and_equal_bytes_are_the_same_picture(tmp_path: Path) -> None:
    write(tmp_path, a=b"xx", b=b"xx", c=b"xy", d=b"x")
    found = mark_same_pictures(
        tmp_path, rows(("1", "a"), ("1", "d")), rows(("1", "b"), ("1", "c"), ("1", "d"))
    )
    assert found.query["picture"].to_list() == ["a", "d"]
    assert found.gallery["picture"].to_list() == ["a", "c", "d"]
    assert found.query.drop("picture").equals(rows(("1", "a"), ("1", "d")))


def test_only_files_of_one_size_and_person_on_both_sides_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, q1=b"aa", q2=b"bbb", g1=b"aa", g2=b"cccc", g3=b"bbb", alone=b"bbb")
    read: list[str] = []
    digest = same_pictures._digest
    monkeypatch.setattr(same_pictures, "_digest", lambda path: read.append(path.name) or digest(path))
    found = mark_same_pictures(
        tmp_path,
        rows(("1", "q1"), ("2", "q2")),
        rows(("1", "g1"), ("1", "g2"), ("1", "g3"), ("9", "alone")),
    )
    assert (sorted(read), found.files_read) == (["g1", "q1"], 2)
    # Of a person without a query nothing is asked, and of one without a gallery neither.
    assert found.sizes_asked == 4


def test_files_that_are_empty_or_not_there_are_like_no_other(tmp_path: Path) -> None:
    write(tmp_path, q=b"", g=b"")
    found = mark_same_pictures(tmp_path, rows(("1", "q"), ("1", "no")), rows(("1", "g"), ("1", "none")))
    assert set(found.query["picture"]).isdisjoint(found.gallery["picture"])


def test_links_are_the_picture_that_they_lead_to(tmp_path: Path) -> None:
    write(tmp_path, q=b"aa")
    (tmp_path / "g").symlink_to(tmp_path / "q")
    os.link(tmp_path / "q", tmp_path / "h")
    found = mark_same_pictures(tmp_path, rows(("1", "q")), rows(("1", "g"), ("1", "h")))
    assert found.gallery["picture"].to_list() == ["g", "g"]
    assert found.query["picture"].to_list() == ["g"]


@pytest.mark.parametrize(
    ("published", "what", "parts"),
    [
        (ltcc.PUBLISHED, "pictures", ("train", "query", "gallery")),
        ((*prcc.PUBLISHED, *PRCC_REST), "pictures", ("train", "val", "query B", "query C", "gallery")),
        (celeb_reid.CELEB, "pictures", ("train", "query", "gallery")),
        (celeb_reid.LIGHT, "pictures", ("train", "query", "gallery")),
        (last.PUBLISHED, "pictures", ("train", "val_query", "val_gallery", "query", "gallery")),
        (vc_clothes.PUBLISHED, "pictures", ("train", "query", "gallery")),
        (deepchange.PUBLISHED, "pictures", ("train", "val_query", "val_gallery", "query", "gallery")),
        (ccvid.PUBLISHED, "tracklets", ("train", "query", "gallery")),
    ],
)
def test_no_published_picture_is_query_and_gallery_for_the_parts_add_up_to_the_whole(
    published: Sequence[Published], what: str, parts: Sequence[str]
) -> None:
    counts = {count.part: count.count for count in published if count.what == what}
    assert sum(counts[part] for part in parts) == counts["all"]


FILES = {"a": b"1", "b": b"1", "c": b"2", "d": b"22", "e": b"22", "f": b"33", "g": b"1"}
SIDE = st.lists(st.tuples(st.sampled_from("12"), st.sampled_from(sorted(FILES))), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIDE, SIDE)
def test_pictures_of_a_person_are_equal_just_where_their_bytes_are(
    tmp_path: Path, query: list[tuple[str, str]], gallery: list[tuple[str, str]]
) -> None:
    write(tmp_path, **FILES)
    found = mark_same_pictures(tmp_path, rows(*query), rows(*gallery))
    for (person, path), picture in zip(query, found.query["picture"], strict=True):
        for (other, item), seen in zip(gallery, found.gallery["picture"], strict=True):
            if person == other:
                assert (picture == seen) == (FILES[path] == FILES[item])
            elif picture == seen:
                assert FILES[path] == FILES[item]
