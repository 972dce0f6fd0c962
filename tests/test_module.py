"""What the modules promise where several processes evaluate one model."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from clip3dreid.module import share_buffers


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    norm = nn.BatchNorm1d(3)
    # The statistics of a last training step, seen by this process alone.
    norm(torch.full((4, 3), float(rank + 1)) + torch.arange(4.0)[:, None])
    share_buffers(norm)
    torch.save(norm.state_dict(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_all_processes_evaluate_with_the_first_ones_running_statistics(tmp_path: Path) -> None:
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    # Mean 1 + 1.5 of the first process's step, with momentum 0.1.
    torch.testing.assert_close(first["running_mean"], torch.full((3,), 0.25))
    for name in first:
        assert torch.equal(first[name], second[name]), name
