"""The report on a data set, through the command line."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from clip3dreid.data.manifest import load
from tests.conftest import Command, write_ltcc


def test_the_report_has_counts_sizes_protocols_and_the_manifest(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    done = invoke("inspect_data", "data=ltcc", f"data.root={ltcc_root}", "out=o.json", "manifest=m.parquet")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "o.json").read_text())
    protocols = {entry["protocol"]: entry for entry in report["protocols"]}
    assert list(protocols) == ["general", "same_clothes", "clothes_changing"]
    # A query's person has 4 gallery pictures: 2 outfits x 2 cameras.
    assert [protocols[name]["junk_per_query"] for name in protocols] == [2, 3, 3]
    assert all(entry["valid_queries"] == 16 for entry in protocols.values())
    assert "9,576" in done.stdout
    manifest = load(tmp_path / "m.parquet")
    assert len(manifest.part("train")) == 48
    assert manifest.root == ltcc_root


def test_held_out_people_are_shown_with_their_protocols(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    done = invoke("inspect_data", "data=ltcc", f"data.root={ltcc_root}", "data.val_people=2", "out=o.json")
    assert done.returncode == 0, done.stderr
    splits = {entry["split"] for entry in json.loads((tmp_path / "o.json").read_text())["protocols"]}
    assert splits == {"test", "val"}


def test_an_unreadable_picture_is_listed_and_is_no_failure(invoke: Command, tmp_path: Path) -> None:
    root = write_ltcc(tmp_path / "LTCC_ReID", train=range(2), test=range(3))
    victim = sorted((root / "test").iterdir())[0]
    victim.write_bytes(b"not a picture")
    done = invoke("inspect_data", "data=ltcc", f"data.root={root}")
    assert done.returncode == 0, done.stderr
    assert victim.name in done.stdout


def test_a_wrong_root_is_told_the_layout_and_the_nearest_match(invoke: Command, tmp_path: Path) -> None:
    root = write_ltcc(tmp_path / "data" / "LTCC_ReID", train=range(2), test=range(3))
    done = invoke("inspect_data", "data=ltcc", f"data.root={root.parent}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "train/" in done.stderr
    assert "LTCC_ReID" in done.stderr


def test_queries_that_are_in_the_gallery_are_counted_by_path_and_by_bytes(
    invoke: Command, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (8, 4, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "b.png").read_bytes())
    (tmp_path / "t.csv").write_text(
        "path,person,split,role\na.png,1,test,query\nb.png,1,test,query\na.png,1,test,gallery\n"
        "copy.png,1,test,gallery\nc.png,1,test,gallery\n"
    )
    done = invoke("inspect_data", "data=custom", "data.root=t.csv", "out=o.json")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "o.json").read_text())["protocols"]
    assert (entry["queries_in_gallery"], entry["junk_per_query"], entry["same_picture"]) == (2, 1, "drop")
    assert entry["in_gallery"] == ["a.png", "b.png"]
    assert "2 of 2 queries are in the gallery themselves" in " ".join((done.stdout + done.stderr).split())


def test_what_is_passed_over_is_counted_in_the_report(invoke: Command, tmp_path: Path) -> None:
    root = write_ltcc(tmp_path / "LTCC_ReID", train=range(2), test=range(3))
    for name in ("train/Thumbs.db", "query/.DS_Store", "info/ids.txt", "README"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    done = invoke("inspect_data", "data=ltcc", f"data.root={root}", "out=o.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o.json").read_text())["notes"] == [
        "3 files that are no pictures are passed over: 1 *.db such as train/Thumbs.db, 1 README, 1 hidden such as "
        "query/.DS_Store",
        "1 folders beside the data set's are not looked at: info/",
    ]
