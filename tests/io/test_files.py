import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path, PurePosixPath

import hypothesis.strategies as st
import polars as pl
import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file

from clip3dreid.errors import InputError
from clip3dreid.io.files import (
    FileIdentity,
    atomic,
    identify,
    identity_hashes,
    inside,
    remove,
    sweep,
    why_not_written,
    write_json,
    write_text,
)
from clip3dreid.io.staging import open_stage, staged


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")

    def fail_half_way() -> None:
        with atomic(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": [1, "ü"]})
    assert json.loads((tmp_path / "a" / "b.json").read_text(encoding="utf-8")) == {"x": [1, "ü"]}


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"r1": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / "file" / "below.txt", "x")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with a file, a folder and a link of each kind to somebody else's."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious").write_text("kept")
    out = tmp_path / "out"
    (out / "real").mkdir(parents=True)
    (out / "real" / "file").write_text("ours")
    (out / "real" / "linked").symlink_to(tmp_path / "theirs")
    (out / "linked").symlink_to(tmp_path / "theirs")
    (out / "precious").symlink_to(tmp_path / "theirs" / "precious")
    (out / "broken").symlink_to(tmp_path / "nowhere")
    return out


THROUGH_LINKS = ["linked", "linked/precious", "linked/new/deep", "real/linked/precious", "precious", "broken"]


@pytest.mark.parametrize("path", THROUGH_LINKS)
def test_no_link_within_a_folder_is_followed(path: str, linked: Path, tmp_path: Path) -> None:
    stage = open_stage(tmp_path / "work")
    before = names(tmp_path)
    with pytest.raises(InputError, match="is a link"):
        inside(linked, path)
    with pytest.raises(InputError, match="is a link"):
        remove(linked, ["real/file", path])
    with pytest.raises(InputError, match="is a link"), staged(stage, linked, path) as temporary:
        temporary.write_text("ours")
    assert names(tmp_path) == before
    assert (tmp_path / "theirs" / "precious").read_text() == "kept"


@given(st.lists(st.sampled_from(["..", ".", "a", "b"]), min_size=1, max_size=6), st.booleans())
def test_no_path_leads_out_of_a_folder(parts: list[str], absolute: bool) -> None:
    path = PurePosixPath("/" if absolute else "", *parts)
    folder = Path("out")
    if absolute or ".." in parts:
        with pytest.raises(InputError, match="leads out of"):
            inside(folder, path)
    else:
        assert inside(folder, path).is_relative_to(folder)


def test_a_folder_that_is_a_link_itself_is_its_owners_choice(linked: Path, tmp_path: Path) -> None:
    assert inside(linked / "linked", "precious") == linked / "linked" / "precious"
    remove(linked / "linked", ["precious"])
    assert names(tmp_path / "theirs") == []


def test_removal_takes_the_files_on_the_list_and_the_folders_that_are_left_empty(tmp_path: Path) -> None:
    for path in ("a/b/1", "a/b/2", "a/mine", "c/3"):
        write_text(tmp_path / path, path)
    remove(tmp_path, ["a/b/1", "a/b/2", "c/3", "c/gone"])
    assert names(tmp_path) == ["a", "a/mine"]


def test_litter_of_killed_writers_is_swept_and_nothing_else(tmp_path: Path) -> None:
    own = [".part-00001-abc_12xy.bin", ".index-aaaaaaaa.json"]
    others = [".part-00001-mine.bin", ".notes-aaaaaaaa.json", "part-00001.bin", ".lock", ".index.json"]
    for name in own + others:
        (tmp_path / name).write_text("")
    sweep(tmp_path, re.compile(r"part-\d{5}\.bin|index\.json").fullmatch)
    assert names(tmp_path) == sorted(others)


def write_parquet(path: Path) -> None:
    pl.DataFrame({"x": range(10_000)}).write_parquet(path)


def write_tensors(path: Path) -> None:
    save_file({"x": torch.zeros(10_000)}, path)


@pytest.mark.parametrize("write", [write_parquet, write_tensors])
def test_the_systems_reason_is_found_in_what_libraries_make_of_it(write, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from tests.io import test_files; from clip3dreid.io import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        f"with files.atomic(Path(sys.argv[1])) as path: test_files.{write.__name__}(path)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], capture_output=True, text=True, env=environment
    )
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith(f"cannot write {target}: File too large; make room, or choose another place")
    )
    assert names(tmp_path) == ["target"]
    assert target.read_text() == "old"
    assert why_not_written(ValueError("no system")) is None


def test_states_of_a_series_are_those_of_a_list_and_made_when_they_are_asked_for(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name * 7)
    listed = ["a", "b", "gone", "a"]
    states = identify(tmp_path, pl.Series(listed), missing_ok=True)
    assert list(states) == list(identify(tmp_path, listed, missing_ok=True))
    assert [states[0], states[-1]] == [states[3], states[0]]
    assert states[0] == ("a", 7, (tmp_path / "a").stat().st_mtime_ns)
    assert states[2] == ("gone", -1, 0)
    assert list(states[1:3]) == [states[1], states[2]]
    plain = list(states)
    assert (
        identity_hashes(states).tolist()
        == identity_hashes(plain).tolist()
        == identity_hashes(states[:4]).tolist()
    )
    with pytest.raises(InputError, match="gone cannot be read"):
        identify(tmp_path, pl.Series(listed))


def test_the_hash_of_a_state_is_the_one_that_folders_on_disk_hold():
    digest = hashlib.blake2b("p/ä.jpg\x0012\x0034".encode(), digest_size=8).digest()
    assert identity_hashes([FileIdentity("p/ä.jpg", 12, 34)]).tobytes() == digest
