"""Batch normalisation by group, and frozen: what makes numbers independent of the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


FEW = 4
"""Up to so many groups one after another are sooner done than all at once: that brings rows together and apart again,
two copies more of the batch each way, and a step of two groups of 32 took an H200 1.5 times as long."""


class GhostBatchNorm1d(nn.BatchNorm1d):
    """`BatchNorm1d` whose training statistics come from consecutive groups of the batch; see `use_ghost`."""

    group = 32

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C) or (B, C, L) to the same shape."""
        return _by_group(self, super().forward, input)


class GhostBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose training statistics come from consecutive groups of the batch; see `use_ghost`."""

    group = 32

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        return _by_group(self, super().forward, input)


def _by_group(
    norm: GhostBatchNorm1d | GhostBatchNorm2d, plain: Callable[[Tensor], Tensor], input: Tensor
) -> Tensor:
    """Normalise few groups one by one; many whole ones in one operation, and the rows left over in another."""
    if not norm.training or len(input) <= norm.group:
        return plain(input)
    if len(input) <= FEW * norm.group:
        first, *others = torch.split(input, norm.group)
        rest = (
            F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps) for x in others
        )
        return torch.cat([plain(first), *rest])
    whole = len(input) // norm.group * norm.group
    if whole == len(input):
        return _whole_groups(norm, input)
    return torch.cat([_whole_groups(norm, input[:whole]), _normalised(norm, input[whole:])])


def _normalised(norm: GhostBatchNorm1d | GhostBatchNorm2d, group: Tensor) -> Tensor:
    """Normalise a group that moves no running statistics: see `use_ghost`."""
    return F.batch_norm(group, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def _whole_groups(norm: GhostBatchNorm1d | GhostBatchNorm2d, input: Tensor) -> Tensor:
    """Normalise (G g, C, …) by groups of g: as g rows of G C channels, each of one group and channel.

    The rows are brought there and back by a copy each. Torch's operation does the rest, whatever G is.
    """
    groups, channels = len(input) // norm.group, input.shape[1]
    seen = None
    if norm.track_running_stats:
        assert norm.running_mean is not None
        seen = norm.running_mean.new_zeros(2, groups * channels)
    normalised = F.batch_norm(
        _regrouped(input, groups, beside=True),
        None if seen is None else seen[0],
        None if seen is None else seen[1],
        norm.weight.repeat(groups) if norm.affine else None,
        norm.bias.repeat(groups) if norm.affine else None,
        training=True,
        momentum=1.0,
        eps=norm.eps,
    )
    if seen is not None:
        _follow(norm, seen[:, :channels])
    return _regrouped(normalised, groups, beside=False)


def _regrouped(input: Tensor, groups: int, *, beside: bool) -> Tensor:
    moved: Tensor = _Moved.apply(input, groups, beside)  # type: ignore[no-untyped-call]
    return moved


class _Moved(torch.autograd.Function):
    """Rows of G groups as rows whose channels are those of all groups, or the way back, in the layout of the input.

    No view: those that an in-place operation follows are costly to go back through.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, groups: int, beside: bool) -> Tensor:
        last = input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last)
        last = last and not input.is_contiguous()
        ctx.groups, ctx.beside = groups, beside
        ctx.layout = torch.channels_last if last else torch.contiguous_format
        return _moved(input, groups, beside, ctx.layout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _moved(gradient, ctx.groups, not ctx.beside, ctx.layout), None, None


def _moved(input: Tensor, groups: int, beside: bool, layout: torch.memory_format) -> Tensor:
    """Copy (G g, C, …) to (g, G C, …), or the other way where not `beside`."""
    rows, channels, *rest = input.shape
    shape = (rows // groups, groups * channels) if beside else (rows * groups, channels // groups)
    made = torch.empty((*shape, *rest), dtype=input.dtype, device=input.device, memory_format=layout)
    apart, together = (input, made) if beside else (made, input)
    apart = torch.unflatten(apart, 0, (groups, -1))
    together = torch.unflatten(together, 1, (groups, -1)).transpose(0, 1)
    (together if beside else apart).copy_(apart if beside else together)
    return made


@torch.no_grad()
def _follow(norm: GhostBatchNorm1d | GhostBatchNorm2d, seen: Tensor) -> None:
    """Move the running statistics towards the mean and variance (2, C) of the first group alone: see `use_ghost`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    running, new = [norm.running_mean, norm.running_var], list(seen.unbind())
    if norm.momentum is None:  # a plain mean over all batches, as torch's own
        torch._foreach_lerp_(running, new, [1 / norm.num_batches_tracked] * 2)
    else:
        torch._foreach_lerp_(running, new, norm.momentum)


class FrozenBatchNorm1d(nn.BatchNorm1d):
    """`BatchNorm1d` that stays as it was loaded; see `freeze`."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` that stays as it was loaded; see `freeze`."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


def use_ghost(module: nn.Module, group: int) -> None:
    """Replace every plain batch norm inside `module` by one over groups of the batch, in place.

    In training, rows 0..group-1 are normalised by their own mean and variance, the next `group` rows by
    theirs, and so on: one process with N x group pictures computes what N processes with `group` pictures
    each compute, the first process having the first rows. A batch of at most `group` rows is one group;
    rows left over are a smaller group of their own.

    Running statistics are updated from the first group alone. That is what distributed training does: each
    process updates its own, and the first process's are those that are evaluated and saved. So the model that is
    evaluated does not depend on the number of processes either, as long as each has a multiple of `group` pictures.

    Evaluation is that of plain batch norm. Names and shapes of parameters do not change, so weights fit with
    or without groups.

    Args:
        module: the network.
        group: pictures to a group, at least 2.

    Raises:
        InputError: if `group` is less than 2.

    Source: Hoffer et al., NeurIPS 2017, algorithm 1; there the running statistics take all groups.
    """
    if group < 2:
        raise InputError(f"ghost_group {group} has no variance; give 2 or more, or null for plain batch norm")
    for norm in _replace(module, {nn.BatchNorm1d: GhostBatchNorm1d, nn.BatchNorm2d: GhostBatchNorm2d}):
        assert isinstance(norm, GhostBatchNorm1d | GhostBatchNorm2d)
        norm.group = group


def freeze(module: nn.Module) -> None:
    """Replace every plain batch norm inside `module` by one that never changes, in place.

    It normalises by its running statistics in training too, and its weight and bias are not trained.
    Names and shapes of parameters do not change, so weights can still be loaded.
    """
    for norm in _replace(module, {nn.BatchNorm1d: FrozenBatchNorm1d, nn.BatchNorm2d: FrozenBatchNorm2d}):
        norm.eval()
        norm.requires_grad_(False)


def _replace(module: nn.Module, kinds: dict[type[nn.Module], type[BatchNorm]]) -> list[BatchNorm]:
    """Put batch norms of other kinds, with the same tensors, in the place of those inside `module`."""
    made = []
    for name, child in list(module.named_children()):
        kind = kinds.get(type(child))
        if kind is None:
            made += _replace(child, kinds)
            continue
        assert isinstance(child, BatchNorm)
        new = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
        for key, parameter in child.named_parameters(recurse=False):
            setattr(new, key, parameter)
        for key, buffer in child.named_buffers(recurse=False):
            setattr(new, key, buffer)
        new.train(child.training)
        setattr(module, name, new)
        made.append(new)
    return made


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep running statistics inside the block, where batch norms in training normalise by the batch as ever.

    For a second stream of pictures that are not those the network will be evaluated on.
    """
    # Torch's own base class, so that norms synchronised over processes are among them.
    norms = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracks in zip(norms, tracked, strict=True):
            norm.track_running_stats = tracks
