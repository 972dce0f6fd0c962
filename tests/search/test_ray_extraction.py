"""Extraction from a table in parts. Ray itself is slow to start: quick tests do its work in this process."""

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

import clip3dreid
from clip3dreid.errors import InputError
from clip3dreid.search import ray_extraction
from clip3dreid.search.extraction import extract
from clip3dreid.search.ray_extraction import RaySettings, extract_parts
from clip3dreid.search.settings import ExtractSettings
from clip3dreid.search.shards import Shards, unreadable
from tests.processes import PATIENCE_S

SETTINGS = ExtractSettings(batch=3)


def parts_of(folder: Path, ltcc_root: Path, encoded: bool = False) -> Path:
    """Five crops a part, with labels; every picture is there as a file, or in the table."""
    folder.mkdir()
    files = sorted((ltcc_root / "query").glob("*.png"))
    for start in range(0, len(files), 5):
        some = files[start : start + 5]
        table = pl.DataFrame(
            {"path": [f"q/{path.name}" for path in some], "camera": [path.name[4] for path in some]}
        )
        if encoded:
            table = table.with_columns(bytes=pl.Series([path.read_bytes() for path in some], dtype=pl.Binary))
        table.write_parquet(folder / f"part-{start:04d}.parquet")
    if not encoded:
        (folder / "q").symlink_to(ltcc_root / "query")
    return folder


class Inline:
    """What `ray` is to the module, in this process."""

    ActorPoolStrategy = SimpleNamespace
    exceptions = SimpleNamespace(RayTaskError=type("RayTaskError", (Exception,), {}))

    def __init__(self) -> None:
        self.looked: list[int] = []
        self.data = self

    def is_initialized(self) -> bool:
        return True

    def from_items(self, items):
        self._items = items
        return self

    def map_batches(self, kind, *, fn_constructor_kwargs, batch_size, **resources):
        actor = kind(**fn_constructor_kwargs)
        for item in self._items:
            done = actor({name: np.array([value]) for name, value in item.items()})
            self.looked += done["number"].tolist()
        return self

    def iter_rows(self):
        return [{"number": number, "rows": 5} for number in self.looked]


@pytest.fixture
def inline(monkeypatch) -> Inline:
    made = Inline()
    monkeypatch.setattr(ray_extraction, "_client", lambda: made)
    return made


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("form", ["parquet", "safetensors"])
def test_shards_are_those_that_the_extraction_here_fills(
    inline, encoded, form, saved_model, ltcc_root, tmp_path
):
    place = parts_of(tmp_path / "parts", ltcc_root, encoded)
    settings = ExtractSettings(batch=3, format=form)
    result = extract_parts(
        functools.partial(clip3dreid.load, saved_model), place, settings, tmp_path / "shards"
    )
    assert (result.pictures, result.skipped, result.computed) == (16, 0, 20)
    plain = tmp_path / "plain"
    extract(clip3dreid.load(saved_model), ltcc_root / "query", ExtractSettings(batch=3, workers=0), plain)
    found, expected = Shards(tmp_path / "shards"), Shards(plain)
    assert len(found.facts["shards"]) == 4
    assert found.labels["row"].to_list() == list(range(16))
    assert [Path(path).name for path in found.labels["path"]] == expected.labels["path"].to_list()
    assert found.labels["words"].to_list() == expected.labels["words"].to_list()
    assert set(found.labels["camera"]) <= set("0123456789c")
    for name in expected.facts["vectors"]:
        ours, theirs = (torch.cat(list(one.blocks(name))) for one in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_second_run_looks_at_parts_without_a_shard_or_that_changed(
    inline, saved_model, ltcc_root, tmp_path
):
    place = parts_of(tmp_path / "parts", ltcc_root)
    run = functools.partial(
        extract_parts, functools.partial(clip3dreid.load, saved_model), place, SETTINGS, tmp_path / "shards"
    )
    run()
    before = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    (tmp_path / "shards" / "shard-000002.parquet").unlink()
    inline.looked.clear()
    run()
    assert inline.looked == [2]
    assert {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()} == before
    changed = place / "part-0005.parquet"
    pl.read_parquet(changed).with_columns(camera=pl.lit("9")).write_parquet(changed)
    inline.looked.clear()
    run()
    assert inline.looked == [1]
    assert Shards(tmp_path / "shards").labels["camera"].to_list().count("9") == 5
    inline.looked.clear()
    assert run().computed == 0
    assert inline.looked == []


def test_what_cannot_be_read_is_listed(inline, saved_model, ltcc_root, tmp_path):
    place = parts_of(tmp_path / "parts", ltcc_root, encoded=True)
    part = place / "part-0000.parquet"
    table = pl.read_parquet(part)
    broken = [b"no picture", *table["bytes"].to_list()[1:]]
    table.with_columns(bytes=pl.Series(broken, dtype=pl.Binary)).write_parquet(part)
    make = functools.partial(clip3dreid.load, saved_model)
    result = extract_parts(make, place, SETTINGS, tmp_path / "shards")
    assert (result.pictures, result.skipped) == (15, 1)
    assert unreadable(tmp_path / "shards")["path"].to_list() == [table["path"][0]]
    assert (tmp_path / "shards" / "unreadable.csv").is_file()
    with pytest.raises(InputError, match=r"cannot read the picture .*not a picture"):
        extract_parts(make, place, ExtractSettings(on_error="fail"), tmp_path / "other")


def test_what_is_no_table_in_parts_is_refused(inline, saved_model, ltcc_root, tmp_path):
    make = functools.partial(clip3dreid.load, saved_model)
    for place in (ltcc_root / "query", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is no folder of Parquet files; backend=ray"):
            extract_parts(make, place, SETTINGS, tmp_path / "shards")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.parquet"):
        extract_parts(make, tmp_path / "parts", SETTINGS, tmp_path / "shards")
    with pytest.raises(InputError, match=r"ray\.actors=0"):
        RaySettings(actors=0)


def test_without_ray_the_extra_to_install_is_named(saved_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(InputError, match=r"pip install 'clip3dreid\[ray\]'"):
        extract_parts(
            functools.partial(clip3dreid.load, saved_model), tmp_path, SETTINGS, tmp_path / "shards"
        )


@pytest.mark.slow
def test_ray_itself_fills_shards_and_a_killed_run_goes_on(saved_model, ltcc_root, tmp_path):
    pytest.importorskip("ray")
    place = parts_of(tmp_path / "parts", ltcc_root)
    command = [
        *(sys.executable, "-m", "clip3dreid", "extract", f"checkpoint={saved_model}", f"pictures={place}"),
        *(f"out={tmp_path / 'shards'}", "backend=ray", "ray.actors=1", "batch=3"),
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        deadline = time.monotonic() + PATIENCE_S
        while not list((tmp_path / "shards").glob("shard-*")) and first.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("shard-*")}
    assert kept
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "16 pictures" in done.stdout
    for name, when in kept.items():
        assert (tmp_path / "shards" / name).stat().st_mtime_ns == when
    assert len(Shards(tmp_path / "shards")) == 16
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert "nothing was left to do" in again.stdout
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["rows_per_shard"] == 5
