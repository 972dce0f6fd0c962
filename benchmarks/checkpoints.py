"""What a checkpoint costs that is forced to the disk, read back and has its predecessor kept, beside Lightning's own.

    python benchmarks/checkpoints.py [FOLDER] [megabytes]

All write the same content in turn; the least and the median of seven are printed, and what plain writing with and
without forcing it to the disk takes: the floor. Of an asynchronous one it is the time that training stands still, and
below how much longer the steps of a small network take while one is being written.
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


def steps_until(done: Callable[[], bool]) -> float:
    """Seconds that a training step of a small network takes, over the steps until something is done."""
    network = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(20)))
    optimizer = torch.optim.Adam(network.parameters())
    begun, count = time.perf_counter(), 0
    while not done() or not count:
        network(torch.ones(16, 256)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        count += 1
    return (time.perf_counter() - begun) / count


def main() -> None:
    place = sys.argv[1] if len(sys.argv) > 1 else None
    megabytes = float(sys.argv[2]) if len(sys.argv) > 2 else 134
    count = int(megabytes * 1e6 / 4 / 50)
    checkpoint = {"state_dict": {str(number): torch.randn(count) for number in range(50)}, "global_step": 1}
    content = os.urandom(int(megabytes * 1e6))
    beside = CheckpointFiles(asynchronous=True)
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        ways: dict[str, Callable[[], None]] = {
            "plain write": lambda: plain(folder / "plain", content, force=False),
            "plain write, forced to the disk": lambda: plain(folder / "plain", content, force=True),
            "Lightning": lambda: TorchCheckpointIO().save_checkpoint(checkpoint, folder / "theirs.ckpt"),
            "clip3dreid": lambda: CheckpointFiles().save_checkpoint(checkpoint, folder / "last.ckpt"),
            "clip3dreid, asynchronous": lambda: beside.save_checkpoint(checkpoint, folder / "last.ckpt"),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        alone, while_written = [], []
        for _ in range(ROUNDS):
            for way, call in ways.items():
                times[way].append(clocked(call))
            while_written.append(steps_until(lambda: beside._thread is None or not beside._thread.is_alive()))
            beside.wait()
            end = time.perf_counter() + 1
            alone.append(steps_until(lambda end=end: time.perf_counter() > end))  # type: ignore[misc]
    print(f"{megabytes:g} MB, seconds: least, median")
    for way, own in times.items():
        print(f"  {way:34s} {min(own):6.3f} {statistics.median(own):6.3f}")
    usual, then = statistics.median(alone), statistics.median(while_written)
    print(f"a step: {1000 * usual:.1f} ms, while one is written {1000 * then:.1f} ms")


if __name__ == "__main__":
    main()
