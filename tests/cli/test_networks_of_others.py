"""Every door takes a network of others for a checkpoint: evaluate, extract, search; export does not."""

import json
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.model.test_networks import onnx_file

SAID = ("network.height=6", "network.width=4", "network.channels=rgb", "network.range=255")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return onnx_file(tmp_path / "tiny.onnx")


def test_it_is_evaluated(invoke: Command, ltcc_root: Path, network: Path, tmp_path: Path) -> None:
    data = ("data=ltcc", f"data.root={ltcc_root}", "trainer=cpu", "datamodule.workers=0")
    refused = invoke("evaluate", f"checkpoint={network}", *data)
    assert refused.returncode == 2
    assert "does not say what pixels it takes; write tiny.yaml beside it" in refused.stderr
    for number, more in enumerate((SAID, (*SAID, "flip=false"))):
        out = tmp_path / f"{number}.json"
        done = invoke("evaluate", f"checkpoint={network}", *data, *more, f"out={out}")
        assert done.returncode == 0, done.stderr
        facts = json.loads(out.read_text(encoding="utf-8"))
        assert facts["flip"] == (number == 0)
        assert 0 < facts["results"]["general"]["map"] <= 1
    network.with_suffix(".yaml").write_text(
        "height: 6\nwidth: 4\nchannels: rgb\nrange: 255\nflip: false\n", encoding="utf-8"
    )
    done = invoke(
        "evaluate", f"checkpoint={network.with_suffix('.yaml')}", *data, f"out={tmp_path / 'sheet.json'}"
    )
    assert done.returncode == 0, done.stderr
    sheet, told = (
        json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("sheet.json", "1.json")
    )
    assert sheet["results"] == told["results"]


def test_it_fills_shards_that_are_searched(
    invoke: Command, ltcc_root: Path, network: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    done = invoke(
        "extract",
        f"checkpoint={network}",
        *SAID,
        f"pictures={ltcc_root}",
        f"out={shards}",
        "trainer=cpu",
        "workers=0",
    )
    assert done.returncode == 0, done.stderr
    picture = next(ltcc_root.rglob("*.png"))
    asked = (
        "search",
        f"gallery={shards}",
        f"checkpoint={network}",
        f"picture={picture}",
        f"out={tmp_path / 'x.json'}",
    )
    done = invoke(*asked, *SAID)
    assert done.returncode == 0, done.stderr
    hits = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["queries"][0]["hits"]
    assert hits[0]["score"] == pytest.approx(1)
    other = invoke(*asked, *SAID, "network.channels=bgr")
    assert other.returncode == 2
    assert "was made by another model" in other.stderr


def test_it_is_exported_already(invoke: Command, network: Path, tmp_path: Path) -> None:
    network.with_suffix(".yaml").write_text("height: 6\nwidth: 4\nrange: 255\n", encoding="utf-8")
    done = invoke("export", f"checkpoint={network}", f"out={tmp_path / 'exported'}")
    assert done.returncode == 2
    assert "is a network of others; use its own file" in done.stderr
    assert not (tmp_path / "exported").exists()
