"""What a checkpoint costs that is forced to the disk, read back and has its predecessor kept, beside Lightning's own.

    python benchmarks/checkpoints.py [FOLDER] [megabytes]

Both write the same content in turn; the least and the median of seven are printed, and what plain writing with and
without forcing it to the disk takes: the floor.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from clip3dreid.training.checkpoints import CheckpointFiles

ROUNDS = 7


def clocked(call: Callable[[], None]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def plain(path: Path, content: bytes, force: bool) -> None:
    with path.open("wb") as file:
        file.write(content)
        if force:
            file.flush()
            os.fsync(file.fileno())


def main() -> None:
    place = sys.argv[1] if len(sys.argv) > 1 else None
    megabytes = float(sys.argv[2]) if len(sys.argv) > 2 else 134
    count = int(megabytes * 1e6 / 4 / 50)
    checkpoint = {"state_dict": {str(number): torch.randn(count) for number in range(50)}, "global_step": 1}
    content = os.urandom(int(megabytes * 1e6))
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        ways: dict[str, Callable[[], None]] = {
            "plain write": lambda: plain(folder / "plain", content, force=False),
            "plain write, forced to the disk": lambda: plain(folder / "plain", content, force=True),
            "Lightning": lambda: TorchCheckpointIO().save_checkpoint(checkpoint, folder / "theirs.ckpt"),
            "clip3dreid": lambda: CheckpointFiles().save_checkpoint(checkpoint, folder / "last.ckpt"),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, call in ways.items():
                times[way].append(clocked(call))
    print(f"{megabytes:g} MB, seconds: least, median")
    for way, own in times.items():
        print(f"  {way:34s} {min(own):6.2f} {statistics.median(own):6.2f}")


if __name__ == "__main__":
    main()
