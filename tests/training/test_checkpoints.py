"""Checkpoints survive kills, full disks and damage."""

import os
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.io.run_folder import PREVIOUS_CHECKPOINT
from clip3dreid.model.weights import read_checkpoint
from clip3dreid.training import checkpoints
from clip3dreid.training.checkpoints import CheckpointFiles, damage, moved, newest_whole, snapshot
from tests.processes import PATIENCE_S
from tests.small_disk import small_disk

PREVIOUS = PREVIOUS_CHECKPOINT.name


def content(step: int, processed: int = 1, started: int = 1, ready: int = 0) -> dict[str, Any]:
    """As much of a checkpoint of Lightning as is asked for its progress."""
    loops = {
        "epoch_progress": {"current": {"processed": processed, "started": started}},
        "epoch_loop.batch_progress": {"current": {"ready": ready}},
    }
    return {"global_step": step, "loops": {"fit_loop": loops}, "weights": torch.full((50_000,), float(step))}


def write(folder: Path, step: int, **progress: int) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    CheckpointFiles().save_checkpoint(content(step, **progress), path)
    return path


def test_the_checkpoint_before_the_last_is_kept_and_nothing_else(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        path = write(tmp_path, step)
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.ckpt", PREVIOUS]
    steps = [
        CheckpointFiles().load_checkpoint(path.with_name(name))["global_step"]
        for name in ("last.ckpt", PREVIOUS)
    ]
    assert steps == [3, 2]


def test_it_says_where_a_training_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path, 9, processed=2, started=3, ready=4)
    assert newest_whole(tmp_path) == (path, 2, 4)
    # After a whole epoch the batches behind it are those of that epoch.
    path = write(tmp_path, 12, processed=3, started=3, ready=6)
    assert newest_whole(tmp_path) == (path, 3, 0)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "gone"])
def test_a_damaged_last_checkpoint_is_passed_over_for_the_one_before_and_that_is_said(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    # Not written over in place: the file may have another name as well.
    path.unlink()
    if how != "gone":
        path.write_bytes({"cut": data[:-100], "flipped": bytes(data), "empty": b""}[how])
    found = newest_whole(tmp_path)
    assert found.path.name == PREVIOUS
    assert ("damaged" in caplog.text) == (how != "gone")


def test_where_nothing_whole_is_left_nothing_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no .*last.ckpt.*start it anew"):
        newest_whole(tmp_path)
    write(tmp_path, 1).write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="is damaged"):
        newest_whole(tmp_path)


def test_what_reads_back_otherwise_does_not_take_the_place_of_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, 1)
    before = path.read_bytes()
    real = os.fsync

    def lossy(handle: int) -> None:
        os.pwrite(handle, b"xxxx", 2000)
        real(handle)

    monkeypatch.setattr(os, "fsync", lossy)
    with pytest.raises(
        InputError, match=r"step 2 cannot be written .*reads back damaged.*the one before it stays"
    ):
        write(tmp_path, 2)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_costs_the_new_checkpoint_and_not_the_old_one(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 500) as disk:
        path = write(disk, 1)
        with pytest.raises(InputError, match=r"No space left.*the one before it stays; make room"):
            CheckpointFiles().save_checkpoint(content(2) | {"more": torch.zeros(90_000)}, path)
        assert damage(path) is None
        assert newest_whole(disk).path == path
        assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_nothing_is_written_anywhere_but_beside_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TMPDIR is another file system, a file that is moved from there is copied over the good one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    opened: list[str] = []
    real = os.open

    def watched(path: Any, *arguments: Any, **keys: Any) -> int:
        opened.append(str(path))
        return real(path, *arguments, **keys)

    monkeypatch.setattr(checkpoints.os, "open", watched)
    path = write(tmp_path / "run", 1)
    assert opened
    assert {Path(one).parent for one in opened} == {path.parent}
    assert not list(elsewhere.iterdir())


def test_a_file_system_without_second_names_keeps_the_one_before_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    assert CheckpointFiles().load_checkpoint(path.with_name(PREVIOUS))["global_step"] == 1


def test_a_checkpoint_that_was_moved_knows_its_selected_one_by_the_new_place(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").write_bytes(b"")
    old = "/old/place/checkpoints"
    state = {
        "dirpath": old,
        "best_model_path": f"{old}/best.ckpt",
        "last_model_path": "",
        "kth_best_model_path": f"{old}/best.ckpt",
        "best_k_models": {f"{old}/best.ckpt": 0.5},
    }
    checkpoint = {"callbacks": {"ModelCheckpoint": state, "StepTimes": {}}}
    moved(checkpoint, tmp_path)
    assert state["dirpath"] == str(tmp_path)
    assert state["best_model_path"] == state["kth_best_model_path"] == str(tmp_path / "best.ckpt")
    assert state["best_k_models"] == {str(tmp_path / "best.ckpt"): 0.5}
    (tmp_path / "best.ckpt").unlink()
    moved(checkpoint, tmp_path)
    assert state["best_model_path"] == ""


def test_a_snapshot_keeps_what_training_changes_afterwards() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    state = OrderedDict(a=weight, tied=weight.view(2, 3), turned=weight.T)
    state._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    checkpoint = {"state_dict": state, "optimizer_states": [{"state": {0: (weight + 1, "text")}}], "epoch": 3}
    kept = snapshot(checkpoint)
    weight.zero_()
    state["new"] = weight
    assert list(kept["state_dict"]) == ["a", "tied", "turned"]
    assert kept["state_dict"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    # One memory has one copy, as in the file.
    assert kept["state_dict"]["tied"].data_ptr() == kept["state_dict"]["a"].data_ptr()
    assert kept["state_dict"]["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert kept["state_dict"]._metadata == state._metadata  # type: ignore[attr-defined]
    assert kept["optimizer_states"][0]["state"][0][0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert kept["epoch"] == 3


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, written = threading.Event(), []
    real = checkpoints._write

    def slow(content: dict[str, Any], path: Path) -> None:
        assert go.wait(PATIENCE_S)
        real(content, path)
        written.append(content["global_step"])

    monkeypatch.setattr(checkpoints, "_write", slow)
    files, path = CheckpointFiles(asynchronous=True), tmp_path / "last.ckpt"
    first = content(1)
    files.save_checkpoint(first, path)
    # It is not there yet, and what it is made of may change.
    assert not path.exists()
    first["weights"].zero_()
    files.check()
    assert written == []
    threading.Timer(0.1, go.set).start()
    files.save_checkpoint(content(2), path)
    assert written[:1] == [1]
    files.wait()
    assert written == [1, 2]
    assert files.step == 2
    previous = files.load_checkpoint(path.with_name(PREVIOUS))
    assert previous["weights"].eq(1).all()
    assert files.load_checkpoint(path)["global_step"] == 2


def test_what_went_wrong_while_training_went_on_is_said_once_in_one_line(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 500) as disk:
        path = write(disk, 1)
        files = CheckpointFiles(asynchronous=True)
        files.save_checkpoint(content(2) | {"more": torch.zeros(90_000)}, path)
        with pytest.raises(InputError, match=r"step 2 cannot be written .*the one before it stays"):
            files.wait()
        files.wait()
        files.teardown()
        assert newest_whole(disk).path == path
        assert files.load_checkpoint(path)["global_step"] == 1


KILLED = """
import os, sys, time
from pathlib import Path
from clip3dreid.training.checkpoints import CheckpointFiles
from tests.training.test_checkpoints import content
path = Path(sys.argv[1]) / "checkpoints" / "last.ckpt"
files = CheckpointFiles(asynchronous=True)
files.save_checkpoint(content(1), path)
files.wait()

def slow(handle):
    print("writing", flush=True)
    time.sleep(1000)

os.fsync = slow
files.save_checkpoint(content(2), path)
"""


def test_a_kill_in_the_middle_of_an_asynchronous_write_leaves_the_checkpoint_before_it_whole(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    path = newest_whole(tmp_path).path
    assert path.name == "last.ckpt"
    assert CheckpointFiles().load_checkpoint(path)["global_step"] == 1
    # What is left of the other is written over.
    assert [file.name for file in path.parent.iterdir() if file.name != "last.ckpt"] == [".last.ckpt.part"]
    write(tmp_path, 3)
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.ckpt", PREVIOUS]


def test_a_checkpoint_carries_the_checksum_of_what_a_model_is_loaded_from(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saved = {
        "state_dict": {"student.a": torch.ones(2), "losses.b": torch.ones(2)},
        "clip3dreid": {"version": 1, "student": {}, "height": 32, "width": 16},
        "clip3dreid_heads": {"shape.bias": torch.tensor([0.5])},
    }
    CheckpointFiles().save_checkpoint(saved, path)
    assert read_checkpoint(path).state.keys() == {"a"}
    changed = CheckpointFiles().load_checkpoint(path)
    changed["state_dict"]["student.a"][0] = 2
    torch.save(changed, path)
    with pytest.raises(InputError, match=r"last\.ckpt is damaged \(its checksum is another\)"):
        read_checkpoint(path)
