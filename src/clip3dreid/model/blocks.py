"""Find the repeated blocks of a network, and compute them anew in the backward pass rather than keep all of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the members of the outermost lists and sequences of a network that are made of several modules.

    Of a ResNet these are the residual blocks, of a transformer its layers, of one in stages (Swin) the stages.
    """
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += [block for block in child if next(block.children(), None) is not None]
        else:
            found += repeated_blocks(child)
    return found


def recompute(backbone: nn.Module) -> int:
    """Have the repeated blocks of a network keep their inputs alone for the backward pass, in place.

    Each is computed a second time there: about a third more arithmetic for memory that no longer grows with what is
    inside the blocks. Losses, gradients, random draws, running statistics and names of weights are those of before.

    Args:
        backbone: a network.

    Returns:
        The number of blocks.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    blocks = repeated_blocks(backbone)
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward)
    return len(blocks)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _StatisticsUnmoved(block)

    if not block.training:
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


class _StatisticsUnmoved(AbstractContextManager[None]):
    """Keeps running statistics inside the block, which have seen this batch before; entered once a backward pass.

    By their momentum: the same tensors must be there to be saved as in the first pass.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        self._kept = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]

    def __enter__(self) -> None:
        for norm in self._norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, counted) in zip(self._norms, self._kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted
