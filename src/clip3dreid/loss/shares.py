"""Strengths as shares: what a term sends into the backbone beside identity, and the weight that makes it so much."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clip3dreid.errors import InputError

log = logging.getLogger(__name__)

IDENTITY = "identity"
"""The term that all shares are shares of."""
MOMENTUM = 0.5
"""What a measurement leaves of the mean before it: about the last three count."""
OUTLIER = 10.0
"""A measurement counts as at most so many times the mean before it, and as no less than that part of it."""
FALL = 100.0
"""A term's gradient counts as no smaller than the largest that it had by this factor, or a term that has nothing left
to say would be multiplied until its noise is heard."""


class Sent(NamedTuple):
    """The gradient that one term sends into some parameters, at weight 1, for the batch of all processes."""

    norm: float
    """Euclidean norm over all the parameters, 0 or more; NaN or infinite where the term or its gradient is."""
    aligned: float
    """Cosine to identity's gradient, -1..1; NaN where one of the two is not there or 0."""
    reached: bool
    """Whether the term depends on the parameters at all, in any process."""


def gradients_sent(
    terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], scale: float = 1.0
) -> dict[str, Sent]:
    """Measure the gradient of each term, a backward pass each; nothing is added to any parameter's `.grad`.

    With several processes it is the gradient of the global batch, the mean over them, as DistributedDataParallel has
    it, and not the larger mean of their norms: the number of processes changes nothing.

    Args:
        terms: a scalar a term, whose graphs are kept.
        parameters: one at least.
        scale: what terms are multiplied with on the way back, against underflow in float16; norms are without it.
    """
    found: dict[str, Sent] = {}
    identity: Tensor | None = None
    for name in sorted(terms, key=lambda one: one != IDENTITY):  # identity first, the others as they stand
        gradient, reached = _gradient(terms[name], parameters, scale)
        identity = gradient if name == IDENTITY else identity
        beside = torch.zeros_like(gradient) if identity is None else identity
        norm, other, product = torch.stack(
            [gradient.norm(), beside.norm(), torch.dot(gradient, beside)]
        ).tolist()
        cosine = product / (norm * other) if norm * other > 0 else math.nan
        found[name] = Sent(norm / scale, cosine, reached)
    return {name: found[name] for name in terms}


def _gradient(term: Tensor, parameters: Sequence[nn.Parameter], scale: float) -> tuple[Tensor, bool]:
    """Return the gradient of all processes' batch as one vector, float32 or wider, and whether there is one."""
    parts: Sequence[Tensor | None] = [None] * len(parameters)
    if term.requires_grad:
        parts = torch.autograd.grad(term * scale, parameters, retain_graph=True, allow_unused=True)
    reached = any(part is not None for part in parts)
    wide = torch.promote_types(term.dtype, torch.float32)
    vector = torch.cat(
        [
            (torch.zeros_like(parameter) if part is None else part).detach().flatten().to(wide)
            for parameter, part in zip(parameters, parts, strict=True)
        ]
    )
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return vector, reached
    # All of it in one message, and an entry more that says whether there is any.
    message = torch.cat([vector, vector.new_tensor([float(reached)])])
    dist.all_reduce(message)
    return message[:-1] / dist.get_world_size(), bool(message[-1] > 0)


class Shares(nn.Module):
    """The weights of terms whose strength is given as a share of identity's gradient.

    A term's weight is `share * mean |g_identity| / mean |g_term|`, both at weight 1, times identity's own weight.
    Norms are averaged before they are divided: a mean of ratios would be ruled by the few batches where the term
    has next to no gradient, while the ratio of means is the share of what is sent over many steps.

    All that was measured is in buffers, so that a run that goes on has the weights it would have had.

    Args:
        shares: term -> share, above 0.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        super().__init__()
        self.shares = dict(shares)
        self._place = {name: place for place, name in enumerate((IDENTITY, *shares))}
        self._looked: set[str] = set()
        self._fallen: set[str] = set()
        self.mean: Tensor
        self.peak: Tensor
        self.counted: Tensor
        count = len(self._place)
        self.register_buffer("mean", torch.full((count,), math.nan))  # NaN: never looked at
        self.register_buffer("peak", torch.zeros(count))  # the largest that the mean was
        self.register_buffer("counted", torch.zeros(count, dtype=torch.int64))

    def waiting(self, names: Iterable[str]) -> bool:
        """Return whether a share, or identity, is among these terms and was never measured.

        The device is asked until it was, and not after.
        """
        for name in names:
            if name in self._place and name not in self._looked:
                if bool(self.mean[self._place[name]].isnan()):
                    return True
                self._looked.add(name)
        return False

    def update(self, sent: Mapping[str, Sent]) -> None:
        """Take a measurement in; what is not finite, and a gradient of 0, says nothing of a term's size.

        Raises:
            InputError: if identity or a term with a share does not depend on the backbone.
        """
        for name, one in sent.items():
            if name in self._place:
                self._check(name, one)
                if math.isfinite(one.norm):
                    self._take(name, one.norm)

    def weight(self, name: str, identity: float, otherwise: float) -> Tensor:
        """Return a term's weight, a scalar on the device.

        Args:
            name: of a term with a share.
            identity: weight of identity.
            otherwise: weight of the term while one of the two has not been measured.
        """
        here = self._place[name]
        size = torch.maximum(self.mean[here], self.peak[here] / FALL)
        known = (self.counted[here] > 0) & (self.counted[0] > 0)
        return torch.where(known, self.shares[name] * identity * self.mean[0] / size, otherwise)

    def _take(self, name: str, norm: float) -> None:
        place = self._place[name]
        mean, counted = float(self.mean[place]), int(self.counted[place])
        if norm == 0:
            self.mean[place] = 0.0 if math.isnan(mean) else mean
            return
        if counted:
            norm = min(max(norm, mean / OUTLIER), mean * OUTLIER)
        else:
            mean = norm
        # An exponential mean without the bias of its beginning (Kingma and Ba, ICLR 2015, section 3).
        mean += (1 - MOMENTUM) / (1 - MOMENTUM ** (counted + 1)) * (norm - mean)
        self.mean[place] = mean
        self.counted[place] = counted + 1
        self.peak[place] = max(float(self.peak[place]), mean)
        if name in self.shares and mean < float(self.peak[place]) / FALL and name not in self._fallen:
            self._fallen.add(name)
            log.warning(
                "loss.%s sends less than a %gth of the gradient that it sent: its weight grows no further for that, "
                "and its share stays below %g",
                name,
                FALL,
                self.shares[name],
            )

    def _check(self, name: str, one: Sent) -> None:
        if one.reached:
            return
        if name == IDENTITY:
            first = next(iter(self.shares))
            raise InputError(
                "loss.identity sends no gradient into the backbone, so nothing is a share of it; give "
                f"loss.{first}.weight and loss.{first}.share=null"
            )
        raise InputError(
            f"loss.{name}.share={self.shares[name]:g}, but the term sends no gradient into the backbone; give "
            f"loss.{name}.weight and loss.{name}.share=null"
        )
