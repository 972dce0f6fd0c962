import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip3dreid.data.inspection import describe_data
from clip3dreid.data.manifest import Manifest, Published, build

ROWS: list[tuple[str, str, str, str, str | None, str | None, str | None]] = [
    # path, person, split, role, clothes, camera, query set
    ("t/1.jpg", "1", "train", "train", "1_1", "1", None),
    ("t/2.jpg", "1", "train", "train", "1_1", "2", None),
    ("t/3.jpg", "1", "train", "train", "1_2", "2", None),
    ("t/4.jpg", "2", "train", "train", "2_1", "3", None),
    ("q/1.jpg", "1", "test", "query", "1_1", "1", "B"),
    ("q/2.jpg", "5", "test", "query", "5_1", "1", "C"),
    ("q/3.jpg", "5", "test", "query", "5_1", "9", "C"),
    ("g/1.jpg", "5", "test", "gallery", "5_1", "1", None),
]
PUBLISHED = (
    Published("train", "pictures", 4),
    Published("query C", "pictures", 5),
    Published("all", "people", 7, remembered=True),
    Published("val", "people", 3),
    Published("all", "tracklets", 2),
)


def picture(path: Path, width: int, height: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    columns = ("path", "person", "split", "role", "clothes", "camera", "query_set")
    for index, (path, *_) in enumerate(ROWS):
        picture(tmp_path / path, 10 + index // 2, 20 + index)
    rows = [dict(zip(columns, row, strict=True)) for row in ROWS]
    return build("x", tmp_path, rows, ["a note"], PUBLISHED)


def test_counts_agree_with_counting_by_hand(manifest: Manifest) -> None:
    counts = {part: c[:5] for part, c in describe_data(manifest).counts.items()}
    assert counts == {
        "train": (4, 2, 3, 3, None),
        "test": (4, 2, 2, 2, None),
        "query": (3, 2, 2, 2, None),
        "query B": (1, 1, 1, 1, None),
        "query C": (2, 1, 1, 2, None),
        "gallery": (1, 1, 1, 1, None),
        # 1 of train and 1 of test are two people, and so are their outfits; camera 1 is one camera.
        "all": (8, 4, 5, 4, None),
    }


def test_pictures_per_person_are_least_median_and_most(manifest: Manifest) -> None:
    counts = describe_data(manifest).counts
    assert tuple(counts["train"].pictures_per_person) == (1, 2, 3)
    assert tuple(counts["all"].pictures_per_person) == (1, 2, 3)
    assert tuple(counts["query B"].pictures_per_person) == (1, 1, 1)


def test_a_picture_in_two_roles_is_one_picture() -> None:
    row = {"path": "a", "person": "1", "split": "test"}
    both = build("x", Path("r"), [row | {"role": "query"}, row | {"role": "gallery"}])
    counts = describe_data(both).counts
    assert [counts[part].pictures for part in ("query", "gallery", "test", "all")] == [1, 1, 1, 1]
    assert tuple(counts["all"].pictures_per_person) == (1, 1, 1)


def test_differences_from_published_counts_are_reported_and_never_raised(manifest: Manifest) -> None:
    report = describe_data(manifest)
    assert [(c.part, c.what, c.published, c.found) for c in report.published] == [
        ("train", "pictures", 4, 4),
        ("query C", "pictures", 5, 2),
        ("all", "people", 7, 4),
        ("val", "people", 3, 0),
        ("all", "tracklets", 2, None),
    ]
    table = next(rows for title, _, rows in report.tables() if title == "Published counts")
    assert [row[-1] for row in table] == [
        "none",
        "-3",
        "-3 (published count remembered, no source)",
        "-3",
        "no such label",
    ]


def test_sizes_agree_with_the_pictures_that_were_written(manifest: Manifest) -> None:
    sizes = describe_data(manifest, workers=2).sizes
    assert sizes is not None
    widths, heights = [10, 10, 11, 11, 12, 12, 13, 13], list(range(20, 28))
    assert tuple(sizes.width) == (10, statistics.median(widths), 13)
    assert tuple(sizes.height) == (20, statistics.median(heights), 27)
    assert sizes.distinct == 8


def test_a_turned_picture_is_measured_as_it_will_be_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a.jpg", 40, 20, exif=exif)
    sizes = describe_data(
        build("x", tmp_path, [{"path": "a.jpg", "person": "1", "split": "train", "role": "train"}])
    ).sizes
    assert sizes is not None
    assert (sizes.width.median, sizes.height.median, sizes.most_common) == (20, 40, "20 x 40 (100%)")


def test_jpeg_data_in_a_png_name_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 8, 9, format="JPEG")
    report = describe_data(
        build("x", tmp_path, [{"path": "a.png", "person": "1", "split": "train", "role": "train"}]), True
    )
    assert report.unreadable == ()


def test_unreadable_pictures_are_named_and_truncated_ones_found_by_decoding(manifest: Manifest) -> None:
    (manifest.root / "t/1.jpg").write_bytes(b"no picture")
    (manifest.root / "t/2.jpg").write_bytes(b"")
    (manifest.root / "t/3.jpg").unlink()
    whole = (manifest.root / "q/1.jpg").read_bytes()
    (manifest.root / "q/1.jpg").write_bytes(whole[:-100])
    headers, full = describe_data(manifest), describe_data(manifest, decode=True)
    assert [(u.path, u.reason.partition(" of")[0]) for u in headers.unreadable] == [
        ("t/1.jpg", "not a picture"),
        ("t/2.jpg", "not a picture"),
        ("t/3.jpg", "there is no such file"),
    ]
    assert [u.path for u in full.unreadable] == ["q/1.jpg", "t/1.jpg", "t/2.jpg", "t/3.jpg"]
    assert "truncated" in full.unreadable[0].reason


def test_a_data_set_without_a_readable_picture_has_no_sizes(manifest: Manifest) -> None:
    report = describe_data(manifest.replace(root=manifest.root / "elsewhere"))
    assert report.sizes is None
    assert len(report.unreadable) == 8


def test_names_in_train_and_test_are_counted(manifest: Manifest) -> None:
    assert describe_data(manifest).names_in_train_and_test == 1


def test_the_table_of_unreadable_pictures_is_cut_and_says_so(tmp_path: Path) -> None:
    rows = [{"path": f"{i:02d}.jpg", "person": "1", "split": "train", "role": "train"} for i in range(23)]
    report = describe_data(build("x", tmp_path, rows))
    table = next(rows for title, _, rows in report.tables() if title == "Unreadable pictures")
    assert len(table) == 21
    assert table[-1] == ["and 3 more", ""]
    assert len(report.to_dict()["unreadable"]) == 23


def test_the_dictionary_survives_json_and_holds_what_the_report_holds(manifest: Manifest) -> None:
    report = describe_data(manifest, decode=True)
    back = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert back == report.to_dict()
    assert back["version"] == 1
    assert back["counts"]["query C"]["pictures"] == 2
    assert back["counts"]["train"]["pictures_per_person"] == {"least": 1, "median": 2, "most": 3}
    assert back["published"][1] == {
        "part": "query C",
        "what": "pictures",
        "published": 5,
        "found": 2,
        "remembered": False,
    }
    assert back["sizes"]["height"]["most"] == 27
    assert back["notes"] == ["a note"]


def test_tables_are_rectangles_of_strings(manifest: Manifest) -> None:
    tables = describe_data(manifest).tables()
    assert len(tables) == 4
    for _, header, rows in tables:
        assert rows
        assert all(len(row) == len(header) and all(isinstance(cell, str) for cell in row) for row in rows)


def test_the_report_counts_tracklets_whose_frames_differ_in_size(tmp_path: Path) -> None:
    facts = {"person": "1", "split": "train", "role": "train"}
    rows = []
    for tracklet, widths in (("a", (8, 9, 8)), ("b", (8, 8)), ("c", (7,)), (None, (5, 6))):
        for frame, width in enumerate(widths):
            path = f"{tracklet}{frame}.png"
            picture(tmp_path / path, width, 10)
            rows.append({"path": path, "tracklet": tracklet, **facts})
    (tmp_path / "c1.png").write_bytes(b"none")
    rows.append({"path": "c1.png", "tracklet": "c", **facts})
    report = describe_data(build("x", tmp_path, rows))
    assert report.tracklets["all"].several_sizes == 1
    assert report.faults == ("2 of 9 pictures have no tracklet: no clips can be made of them",)
    assert report.to_dict()["tracklets"]["train"]["frames"] == {"least": 2, "median": 2, "most": 3}
    titles = {title: rows for title, _, rows in report.tables()}
    assert titles["Tracklets (least / median / most)"][0] == [
        *("train", "3", "3 / 3 / 3", "2 / 2 / 3", "3", "0", "0", "1")
    ]
    assert titles["Faults of tracklets"] == [[report.faults[0]]]
    uniform = [row for row in rows if row["tracklet"] not in ("a", None)]
    report = describe_data(build("x", tmp_path, uniform))
    assert report.tracklets["all"].several_sizes == 0
    assert report.faults == report.notes == ()


def test_a_set_of_pictures_has_no_tracklets_to_report(manifest: Manifest) -> None:
    report = describe_data(manifest)
    assert (dict(report.tracklets), report.faults) == ({}, ())
