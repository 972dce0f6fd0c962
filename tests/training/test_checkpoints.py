"""Checkpoints survive kills, full disks and damage."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.io.run_folder import PREVIOUS_CHECKPOINT
from clip3dreid.training import checkpoints
from clip3dreid.training.checkpoints import CheckpointFiles, damage, moved, newest_whole
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
