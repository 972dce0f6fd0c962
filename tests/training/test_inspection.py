"""The report on a data set, by a call as a notebook makes it."""

from html import escape
from pathlib import Path

import pytest
from PIL import Image

from clip3dreid.data.datasets import ltcc
from clip3dreid.data.manifest import Manifest, build
from clip3dreid.data.sources import DataSpec, read_manifest
from clip3dreid.errors import InputError
from clip3dreid.retrieval.protocol import Protocol, ProtocolSet, nothing, same_camera
from clip3dreid.training.inspection import inspect, strips

PROTOCOLS = ProtocolSet(
    {
        "everything": Protocol("everything", nothing, "Drops nothing."),
        "other_cameras": Protocol("other_cameras", same_camera, "Drops the query's camera."),
        "tracklets": Protocol("tracklets", nothing, "Needs what is not there.", needs=("tracklet",)),
    },
    "everything",
)


def test_a_data_set_is_inspected_by_a_call(ltcc_root: Path) -> None:
    spec = DataSpec("ltcc", ltcc_root, ltcc.read, val_people=2)
    report = inspect(spec, {"test": PROTOCOLS, "val": PROTOCOLS}, workers=0)
    assert report.data.counts["train"].people == 4
    assert [(one.split, one.protocol) for one in report.protocols] == [
        ("test", "everything"),
        ("test", "other_cameras"),
        ("val", "everything"),
        ("val", "other_cameras"),
    ]
    assert [one.counts["junk_per_query"] for one in report.protocols[:2]] == [0, 2]
    assert report.to_dict()["protocols"][0]["description"] == "Drops nothing."
    assert [title for title, *_ in report.tables()][-2:] == ["Protocols", ""]
    assert report.remarks() == []


def test_a_report_prints_as_its_tables_and_a_notebook_shows_them(ltcc_root: Path) -> None:
    report = inspect(DataSpec("ltcc", ltcc_root, ltcc.read), {"test": PROTOCOLS}, workers=0)
    text, page = repr(report), report._repr_html_()
    for title, header, rows in report.tables():
        for said in (title, *header, *(str(row[0]) for row in rows)):
            assert said in text, said
            assert escape(said) in page, said
    assert page.count("<table>") == len(report.tables())


def test_a_manifest_is_inspected_as_it_is_and_without_protocols(ltcc_root: Path) -> None:
    manifest = read_manifest(DataSpec("mine", ltcc_root, ltcc.read))
    report = inspect(manifest, decode=False)
    assert report.manifest is manifest
    assert report.protocols == ()
    assert not report.data.decoded


def walks(root: Path) -> Manifest:
    """Two people, each seen by camera 1 as a query and by camera 2; walks of 3 and of 12 frames."""
    rows = [
        {
            "path": f"{role}/{person}/{frame}.png",
            "split": "test",
            "role": role,
            "person": person,
            "camera": camera,
            "tracklet": "a",
            "frame": frame,
        }
        for role, camera, count in (("query", "1", 3), ("gallery", "2", 12))
        for person in "12"
        for frame in range(count)
    ]
    for place, row in enumerate(rows):
        path = root / str(row["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8), (place, 0, 0)).save(path)
    return build("walks", root, rows)


def test_protocols_count_tracklets_beside_pictures(tmp_path: Path) -> None:
    report = inspect(walks(tmp_path), {"test": PROTOCOLS}, workers=0)
    counted = {
        (one.protocol, one.of): (one.counts["queries"], one.counts["gallery"]) for one in report.protocols
    }
    assert counted["everything", "pictures"] == (6, 24)
    assert counted["everything", "tracklets"] == (2, 2)
    assert report.to_dict()["protocols"][-1]["of"] == "tracklets"


def test_a_sheet_shows_tracklets_as_strips_and_other_people_in_some_pictures(
    tmp_path: Path, ltcc_root: Path
) -> None:
    shown = strips(walks(tmp_path))
    assert [row.text for row in shown] == [
        *("test, query, person 1, camera 1, tracklet a, 3 frames",),
        *("test, query, person 2, camera 1, tracklet a, 3 frames",),
        *("test, gallery, person 1, camera 2, tracklet a, 12 frames",),
        *("test, gallery, person 2, camera 2, tracklet a, 12 frames",),
    ]
    assert [hit.path.relative_to(tmp_path).as_posix() for hit in shown[3].hits] == [
        f"gallery/2/{frame}.png" for frame in (0, 1, 3, 4, 6, 7, 9, 10)
    ]
    of_pictures = strips(read_manifest(DataSpec("mine", ltcc_root, ltcc.read)))
    assert of_pictures[0].text == "train, person 0, 8 pictures"
    inspect(walks(tmp_path), workers=0).draw(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as drawn:
        assert drawn.height > 4 * 160
    with pytest.raises(InputError, match=r"sheet=.*\.jpg"):
        inspect(walks(tmp_path), workers=0).draw(tmp_path / "sheet.txt")


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        inspect(DataSpec("ltcc", tmp_path / "nowhere", ltcc.read))
