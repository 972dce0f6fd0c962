"""Runs that are stopped and go on, compared with ones that were left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# Where a checkpoint lies is part of what Lightning keeps of its callbacks; the last score is written and never read.
_PLACES = (
    "dirpath",
    "best_model_path",
    "last_model_path",
    "kth_best_model_path",
    "best_k_models",
    "current_score",
)


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings and sequences as one mapping."""
    if isinstance(value, Mapping):
        return {k: v for name, inner in value.items() for k, v in flat(inner, f"{key}/{name}").items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {k: v for place, inner in enumerate(value) for k, v in flat(inner, f"{key}/{place}").items()}
    return {key: value}


def differences(one: Path, other: Path) -> list[str]:
    """Keys of two runs' last checkpoints (weights, optimiser, schedule, progress) that are not equal to the bit."""

    def content(run: Path) -> dict[str, Any]:
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        return {k: v for k, v in flat(state).items() if not any(place in k for place in _PLACES)}

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return torch.equal(a, b)
        return bool(a == b)

    here, there = content(one), content(other)
    absent = object()
    keys = sorted({*here, *there})
    return [key for key in keys if not equal(here.get(key, absent), there.get(key, absent))]


def evaluations(run: Path) -> Any:
    """The scores of a run."""
    return json.loads((run / "results.json").read_text())["evaluations"]


def assert_same(one: Path, other: Path) -> None:
    """Two runs ended with equal bits and equal scores."""
    assert differences(one, other) == []
    assert evaluations(one) == evaluations(other)


class Killer:
    """Runs a training that is killed at random moments and resumed until it ends.

    Args:
        folder: to work in.
        arguments: of the training, without its folder.
        seed: of the moments.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], seed: int) -> None:
        self.folder, self.arguments = folder, list(arguments)
        self.rng = random.Random(seed)
        self.kills = 0

    def start(self, *arguments: str, log: str) -> subprocess.Popen[bytes]:
        """Starts the command in a session of its own."""
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "clip3dreid.train", *arguments],
                cwd=self.folder, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def undisturbed(self, name: str = "whole") -> Path:
        """Trains in one go."""
        status = self.start(*self.arguments, f"hydra.run.dir={name}", log=f"{name}.log").wait()
        assert status == 0, (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]
        return self.folder / name

    def killed(self, signum: int, kills: int, span: float, name: str = "killed") -> Path:
        """Trains with interruptions, each within `span` seconds after training has begun; status by status."""
        run, log = self.folder / name, self.folder / f"{name}.log"
        log.touch()
        while not (run / "results.json").exists():
            going_on = any((run / "checkpoints" / file).exists() for file in ("last.ckpt", "previous.ckpt"))
            arguments = [f"resume={name}"] if going_on else [*self.arguments, f"hydra.run.dir={name}"]
            seen = log.read_bytes().count(b"folder ")
            process = self.start(*arguments, log=f"{name}.log")
            while process.poll() is None and log.read_bytes().count(b"folder ") <= seen:
                time.sleep(0.01)
            time.sleep(self.rng.random() * span)
            if self.kills < kills and process.poll() is None:
                self.kills += 1
                if signum == signal.SIGKILL:
                    # A machine that goes down takes all processes of a run with it.
                    os.killpg(process.pid, signum)
                else:
                    os.kill(process.pid, signum)
                expected = {-signum, 128 + signum, 0}
            else:
                expected = {0}
            status = process.wait()
            assert status in expected, log.read_text(errors="replace")[-3000:]
        return run
