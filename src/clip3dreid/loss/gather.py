"""Gathering over processes, so that a pairwise loss sees the whole global batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _everyone(local: Tensor) -> Tensor:
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        return _everyone(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Where all N processes compute the same loss, the sum over them is N times its gradient, and
        # DistributedDataParallel divides by N: what remains is the gradient of the one global loss.
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.rows
        return gradient[start : start + ctx.rows]


def gather(local: Tensor) -> Tensor:
    """Concatenate a tensor over the processes, in rank order; with one process it returns it as it is.

    Gradients flow back to the process each row came from, summed over the processes that used it. A loss of
    the gathered rows that every process computes in full therefore has, under DistributedDataParallel's mean
    of gradients, the gradient it would have in one process with the whole batch.

    Args:
        local: (B, ...) this process's rows; the same shape in every process.

    Returns:
        (N * B, ...) the rows of all N processes.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    return _Gather.apply(local) if local.requires_grad else _everyone(local)  # type: ignore[no-untyped-call]
