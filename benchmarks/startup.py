"""Processor time of every command until it has answered: help, a mistyped key, data that are not there.

    python benchmarks/startup.py                  # every command
    python benchmarks/startup.py --training WORLD # a training until its first step

Prints seconds of processor time (user and system, of the process alone), the least of three starts. WORLD has the
layout of LTCC, and few pictures: a teacher looks at all of them first.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from clip3dreid.config.commands import command_names

STARTS = 3
MISTYPED = "no_such_key=1"
NO_DATA = {
    "train": ["+experiment=ltcc", "method=ce", "model.pretrained=null", "data.root=/nowhere"],
    "evaluate": ["checkpoint=/nowhere", "data=ltcc", "data.root=/nowhere"],
    "inspect_data": ["data=ltcc", "data.root=/nowhere"],
    "label": ["data=ltcc", "data.root=/nowhere"],
    "extract": ["checkpoint=/nowhere", "data=ltcc", "data.root=/nowhere", "out=out"],
    "search": ["gallery=/nowhere", "checkpoint=/nowhere", "picture=/nowhere.jpg"],
    "export": ["checkpoint=/nowhere", "out=out"],
    "compare": ["/nowhere"],
    "blur_faces": ["source=/nowhere", "out=out"],
    "pretrain_teacher": ["worlds=/nowhere", "out=out"],
    "weights": ["convert=/nowhere", "out=out.safetensors"],
    "synthesize": ["layout=ltcc", "out=out", "backgrounds=/nowhere"],
}
"""Command -> words that name something which is not there."""
SMALL = (
    "model/student=resnet18",
    "model.pretrained=null",
    "datamodule.people=2",
    "datamodule.pictures=2",
    "datamodule.workers=0",
    "trainer=cpu",
    "logger=csv",
)
TRAININGS = (
    ("method=ce",),
    (
        "method=clip3dreid",
        "model/teacher=body_clip",
        "model.teacher.cache=memory",
        "loss=[identity,triplet,local,global]",
    ),
)
"""Trainings that are timed until their first step."""


def seconds(*words: str) -> float:
    """Processor time of one start."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "clip3dreid", *words],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_to_first_step(world: str, *words: str) -> float:
    """Processor time of a training until the line that it says before its first step."""
    command = [sys.executable, "-m", "clip3dreid", "train", "data=ltcc", f"data.root={world}", *SMALL, *words]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*command, "output=json"],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        if not any('"event": "start"' in line for line in process.stdout):
            raise SystemExit(f"{world} cannot be trained on: {' '.join(command)}")
        used = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        process.kill()
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def training(world: str) -> None:
    """Print how long a training takes until its first step."""
    print("| until the first step | seconds |")
    print("|---|---|")
    for words in TRAININGS:
        least = min(seconds_to_first_step(world, *words) for _ in range(STARTS))
        print(f"| train {' '.join(words)} | {least:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--training", metavar="WORLD")
    world = parser.parse_args().training
    if world is not None:
        training(str(Path(world).absolute()))
        return
    print("| command | `--help` | a mistyped key | nothing there |")
    print("|---|---|---|---|")
    for name in command_names():
        lines = [["--help"], [MISTYPED], NO_DATA.get(name)]
        times = [
            "" if line is None else f"{min(seconds(name, *line) for _ in range(STARTS)):.2f}"
            for line in lines
        ]
        print(f"| {name} | {' | '.join(times)} |")
    print(f"| (none: the list) | {min(seconds() for _ in range(STARTS)):.2f} | | |")


if __name__ == "__main__":
    main()
