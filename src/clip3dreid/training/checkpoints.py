"""Checkpoints of a run: written whole beside their place, read back before they take it, the one before kept."""

from __future__ import annotations

import copy
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch import Trainer
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.files import reason_of, why_not_written
from clip3dreid.io.formats import decoding
from clip3dreid.io.pickle_scan import scan_torch_file
from clip3dreid.io.run_folder import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from clip3dreid.model.card import CARD
from clip3dreid.model.weights import HEADS, add_checksum

log = logging.getLogger(__name__)


class CheckpointFiles(CheckpointIO):
    """How the trainer's checkpoints come to the disk and from it.

    A checkpoint is written under another name in its own folder, forced to the disk and read back; only then does it
    take its name. So a kill, a full disk or a failing one never costs more than the steps since the one before.

    Args:
        asynchronous: write in a thread, from a copy in this machine's memory, while training goes on. There is never
            more than one on its way: the next one waits for it.

    Attributes:
        step: of the optimiser, at which what is or is going to be `last.ckpt` was saved; None: nothing was.
        wanted: whether a checkpoint is asked for at the end of this epoch, whatever is usual.
    """

    def __init__(self, *, asynchronous: bool = False) -> None:
        self.asynchronous = asynchronous
        self.step: int | None = None
        self.wanted = False
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, or begin to where that is asynchronous.

        Args:
            checkpoint: plain data and tensors.
            path: its file. What a file of the name `last.ckpt` held is kept as `previous.ckpt`.
            storage_options: none are known.

        Raises:
            InputError: if it, or the one before, cannot be written, or is not what was written when read back; what
                was there stays.
        """
        path = Path(path)
        self.wait()
        if self.asynchronous:
            content = snapshot(checkpoint)
            # No daemon: a program that ends lets it finish.
            self._thread = Thread(target=self._write_aside, args=(content, path), name="checkpoint")
            self._thread.start()
        else:
            _write(checkpoint, path)
        if path.name == LAST_CHECKPOINT.name:
            self.step = checkpoint.get("global_step")

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            InputError: as `save_checkpoint`; once.
        """
        if self._thread is not None:
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Say what became of a checkpoint that has come to its end meanwhile; one on its way is not waited for.

        Raises:
            InputError: as `save_checkpoint`; once.
        """
        if self._thread is None or self._thread.is_alive():
            return
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write_aside(self, content: dict[str, Any], path: Path) -> None:
        try:
            _write(content, path)
        except BaseException as error:  # whatever it is, the training has to hear of it
            self._error = error

    def teardown(self) -> None:
        """Wait until everything is written; of a training that fails, its own error is what is said."""
        try:
            self.wait()
        except InputError as error:
            log.error("%s", error)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, on the CPU unless told otherwise; nothing is ever unpickled."""
        scan_torch_file(Path(path))
        content: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint that another has taken the place of."""
        Path(path).unlink(missing_ok=True)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole, or leave what is there."""
    # Here and not where it is made: the sum takes as long as a good part of the writing.
    if CARD in checkpoint and HEADS in checkpoint:
        add_checksum(checkpoint)
    # One name, so that what a killed run leaves is written over; the run's lock keeps others away from it.
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if (wrong := damage(part)) is not None:
                raise OSError(f"what was written reads back damaged ({wrong})")
            if path.name == LAST_CHECKPOINT.name:
                _keep(path)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch's own writer turns the disk's error into the latter
        raise InputError(_unwritten(checkpoint, path, error)) from error


def snapshot(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a checkpoint into this machine's memory, so that training may change what it was made of.

    Args:
        checkpoint: plain data and tensors on any device; tensors of one memory have one copy.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}
    memo: dict[int, Any] = {}
    for tensor in _tensors(checkpoint):
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in copies:
            copies[place] = _on_the_host(tensor)
        memo[id(tensor)] = copies[place]
    if any(device.type == "cuda" for device, *_ in copies):
        torch.cuda.synchronize()
    copied: dict[str, Any] = copy.deepcopy(dict(checkpoint), memo)
    return copied


def _on_the_host(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.detach().to("cpu", copy=True)
    # Pinned memory is filled several times as fast, all tensors in one go, and comes from torch's own store.
    host = torch.empty_like(tensor, device="cpu", pin_memory=True, requires_grad=False)
    return host.copy_(tensor.detach(), non_blocking=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def save_at_once(trainer: Trainer, path: Path) -> None:
    """Save the checkpoint that a run goes on from in the middle of an epoch, by the first process alone.

    `Trainer.save_checkpoint` would wait for the other processes.

    Args:
        trainer: between two steps of the optimiser, of a strategy whose first process holds all of the model.
        path: its file.
    """
    content = trainer._checkpoint_connector.dump_checkpoint(False)
    trainer.strategy.save_checkpoint(content, path)


def files_of(trainer: Trainer) -> CheckpointFiles:
    """Return what a run's trainer writes its checkpoints by."""
    files = trainer.strategy.checkpoint_io
    assert isinstance(files, CheckpointFiles)
    return files


def _keep(path: Path) -> None:
    """Give the file at `path` the second name `previous.ckpt`, so that there is no moment without either."""
    previous = path.with_name(PREVIOUS_CHECKPOINT.name)
    if not path.exists():
        return
    previous.unlink(missing_ok=True)
    try:
        previous.hardlink_to(path)
    except OSError:  # a file system without second names
        path.replace(previous)


def _unwritten(checkpoint: dict[str, Any], path: Path, error: OSError | RuntimeError) -> str:
    reason = why_not_written(error) or reason_of(error)
    left = "the one before it stays" if path.exists() else "there is none yet"
    return (
        f"the checkpoint of step {checkpoint.get('global_step')} cannot be written to {path}: {reason}; {left}; make "
        "room and go on with resume="
    )


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's file, in a few words; None where every byte is as it was written."""
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        return reason_of(error)
    return None if bad is None else f"{bad} has another checksum"


class Resumable(NamedTuple):
    """The checkpoint that a run goes on from."""

    path: Path
    epochs: int
    """Return the whole epochs that are trained."""
    batches: int
    """Batches of the next one that are trained."""


def newest_whole(folder: Path) -> Resumable:
    """Look for the checkpoint to go on from.

    Args:
        folder: of a run.

    Returns:
        Its last checkpoint, or the one before where that one is damaged, which is logged.

    Raises:
        InputError: if there is none, or all are damaged.
    """
    wrong: list[str] = []
    for path in (folder / LAST_CHECKPOINT, folder / PREVIOUS_CHECKPOINT):
        if not path.exists():
            continue
        if (reason := damage(path)) is None:
            for line in wrong:
                log.warning("%s; taking %s, the newest whole checkpoint", line, path.name)
            return Resumable(path, *_progress(path))
        wrong.append(f"{path} is damaged: {reason}")
    if wrong:
        raise InputError(f"{'; '.join(wrong)}; start the run anew")
    raise InputError(
        f"{folder} holds no {LAST_CHECKPOINT}: the run ended before it saved one; start it anew in another folder"
    )


def _progress(path: Path) -> tuple[int, int]:
    """Return the epochs and batches that a checkpoint of Lightning has behind it."""
    scan_torch_file(path)
    with decoding(path, "a checkpoint of a training", "give the folder of a run"):
        # Mapped: the tensors are not read.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        fit = content["loops"]["fit_loop"]
        epochs = fit["epoch_progress"]["current"]
        batches = fit["epoch_loop.batch_progress"]["current"]["ready"]
        return int(epochs["processed"]), int(batches) if epochs["processed"] < epochs["started"] else 0


def moved(checkpoint: dict[str, Any], folder: Path) -> None:
    """Make the paths of a checkpoint's callbacks those of the folder where it is now, in place.

    Args:
        checkpoint: of Lightning, whose checkpoint callbacks note where they wrote.
        folder: of the checkpoints, which may have been moved since.
    """
    for state in checkpoint.get("callbacks", {}).values():
        if not isinstance(state, dict) or "dirpath" not in state:
            continue
        state["dirpath"] = str(folder)
        for key in ("best_model_path", "last_model_path", "kth_best_model_path"):
            if state.get(key):
                state[key] = str(folder / Path(state[key]).name)
        best = state.get("best_k_models")
        if isinstance(best, dict):
            state["best_k_models"] = {str(folder / Path(path).name): score for path, score in best.items()}
        # A selected checkpoint that was not moved along cannot be evaluated.
        if state.get("best_model_path") and not Path(state["best_model_path"]).is_file():
            state["best_model_path"] = ""
