"""Processor time of every command until it has answered: help, a mistyped key, data that are not there.

    python benchmarks/startup.py

Prints seconds of processor time (user and system, of the process alone), the least of three starts.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile

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


def main() -> None:
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
