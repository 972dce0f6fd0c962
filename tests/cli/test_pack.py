"""Packing, and training on a pack, through the command line."""

import json
from pathlib import Path

import pytest

from tests.conftest import TINY, Command

PACK = ("out=packs/ltcc", "height=32", "width=16", "workers=0")


def test_a_data_set_is_packed_verified_and_trained_on(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    data = ("data=ltcc", f"data.root={ltcc_root}")
    done = invoke("pack", *data, *PACK)
    assert done.returncode == 0, done.stderr
    said = "packs/ltcc: 80 pictures, 0 MB, 0 of them there before; datamodule.pack=packs/ltcc trains on it"
    assert said in done.stdout
    done = invoke("pack", *data, *PACK)
    assert "80 pictures, 0 MB, 80 of them there before" in done.stdout
    done = invoke("pack", *data, *PACK, "verify=true")
    assert "80 pictures, 0 MB, every byte as it was written, of the files as they are now" in done.stdout
    scores = {}
    for number, place in enumerate((None, "packs/ltcc")):
        run = ("hydra.run.dir=run" + str(number), "epochs=2", "datamodule.augment_on=device")
        pack = () if place is None else (f"datamodule.pack={place}",)
        done = invoke("train", *data, *TINY, *run, *pack)
        assert done.returncode == 0, done.stderr
        scores[place] = json.loads((tmp_path / f"run{number}/results.json").read_text())["evaluations"]
    assert scores[None] == scores["packs/ltcc"]
    words = ("checkpoint=run1", *data, "datamodule.pack=packs/ltcc", "datamodule.workers=0", "out=o.json")
    done = invoke("evaluate", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "o.json").read_text())["results"]
    assert found["general"]["r1"] == scores[None][0]["results"]["general"]["r1"]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("datamodule.height=48", "is a pack of 32x16, and the pictures are to be 48x16"),
        ("data.root=other", "is a pack of another version of ltcc"),
        (
            "datamodule.pack=nowhere",
            "nowhere holds no pack; make one with clip3dreid pack data=… out=nowhere",
        ),
        ("datamodule.augment_on=gpu", "datamodule.augment_on=gpu is unknown; choose worker or device"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    ltcc_root: Path, invoke: Command, tmp_path: Path, word: str, line: str
) -> None:
    invoke("pack", "data=ltcc", f"data.root={ltcc_root}", *PACK)
    if word == "data.root=other":
        from tests.conftest import write_ltcc

        write_ltcc(tmp_path / "other")
    words = ("data=ltcc", f"data.root={ltcc_root}", *TINY, "datamodule.pack=packs/ltcc", word)
    done = invoke("train", *words)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_pack_without_a_folder_is_refused_in_a_line(ltcc_root: Path, invoke: Command) -> None:
    done = invoke("pack", "data=ltcc", f"data.root={ltcc_root}")
    assert done.returncode == 2
    assert "out is not set; give it on the command line as out=VALUE" in done.stderr
