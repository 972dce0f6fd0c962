"""The report on a data set, by a call as a notebook makes it."""

from html import escape
from pathlib import Path

import pytest

from clip3dreid.data.datasets import ltcc
from clip3dreid.data.sources import DataSpec, read_manifest
from clip3dreid.errors import InputError
from clip3dreid.retrieval.protocol import Protocol, ProtocolSet, nothing, same_camera
from clip3dreid.training.inspection import inspect

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


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        inspect(DataSpec("ltcc", tmp_path / "nowhere", ltcc.read))
