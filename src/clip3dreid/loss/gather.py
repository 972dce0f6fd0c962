"""Gathering over processes, so that a pairwise loss sees the whole global batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_ROWS: ContextVar[tuple[int, ...] | None] = ContextVar("rows", default=None)


@contextmanager
def uneven(rows: Sequence[int] | None) -> Iterator[None]:
    """Have `gather` know inside the block how many rows each process has; nobody has to be asked at every step.

    Args:
        rows: in rank order; None: all have the same number.
    """
    token = _ROWS.set(None if rows is None else tuple(rows))
    try:
        yield
    finally:
        _ROWS.reset(token)


def part_of_mean(rows: Sequence[int], rank: int) -> float:
    """Return what a process's mean over its own rows is to be multiplied by before it is back-propagated.

    DistributedDataParallel takes the plain mean of the N processes' gradients, in which a row of a process with few
    of them counts more than another's. Times N b_r / B, b_r of B rows, every row counts 1 / B, as in one process. A
    loss that all processes compute of the gathered rows stays what it is: the factors have a mean of 1.

    Args:
        rows: b of each process, in rank order.
        rank: this process.
    """
    return len(rows) * rows[rank] / sum(rows)


def _everyone(local: Tensor) -> Tensor:
    rows = _ROWS.get() or (len(local),) * dist.get_world_size()
    most = max(rows)
    if len(local) < most:
        local = torch.cat([local, local.new_zeros(most - len(local), *local.shape[1:])])
    parts = [torch.empty_like(local) for _ in rows]
    dist.all_gather(parts, local.contiguous())
    return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows, rows = len(local), _ROWS.get()
        rank = dist.get_rank()
        ctx.start = rank * len(local) if rows is None else sum(rows[:rank])
        return _everyone(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Where all N processes compute the same loss, the sum over them is N times its gradient, and
        # DistributedDataParallel divides by N: what remains is the gradient of the one global loss.
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.rows]


def gather(local: Tensor) -> Tensor:
    """Concatenate a tensor over the processes, in rank order; with one process it returns it as it is.

    Gradients flow back to the process each row came from, summed over the processes that used it. A loss of
    the gathered rows that every process computes in full therefore has, under DistributedDataParallel's mean
    of gradients, the gradient it would have in one process with the whole batch.

    Args:
        local: (B, ...) this process's rows; the same shape in every process, but for the rows inside `uneven`.

    Returns:
        (N * B, ...) the rows of all N processes.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    return _Gather.apply(local) if local.requires_grad else _everyone(local)  # type: ignore[no-untyped-call]
