"""Keep on the device what is read later, so that no step waits: means of losses, and the state before a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class LossMeans:
    """Means over the batches of an epoch, added up where the values are and read once."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, names: tuple[str, ...], values: Tensor, count: int) -> None:
        """Take in a batch.

        Args:
            names: of the values; those that come together in one batch come together in others.
            values: (N,) on any device, without gradient.
            count: pictures of the batch, by which it counts.
        """
        weighted = values.to(torch.promote_types(values.dtype, torch.float32)) * count
        self._sums[names] = self._sums[names] + weighted if names in self._sums else weighted
        self._counts[names] = self._counts.get(names, 0) + count

    def read(self) -> list[tuple[dict[str, float], int]]:
        """Return the means by name, with the pictures that they are of, and begin anew; waits for the device.

        Names that came in some batches alone have fewer pictures.
        """
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for names, total in self._sums.items():
            for name, value in zip(names, total.cpu(), strict=True):
                sums[name] = sums[name] + value if name in sums else value
                counts[name] = counts.get(name, 0) + self._counts[names]
        self._sums, self._counts = {}, {}
        return [
            ({name: float(sums[name] / count) for name in sums if counts[name] == count}, count)
            for count in sorted(set(counts.values()), reverse=True)
        ]


class _Slot(NamedTuple):
    """Where one tensor of an optimiser's state is, and what it was."""

    state: dict[str, Any]
    key: str


class KeptState:
    """Parameters, buffers and the optimiser's state as they were before a step, on their own devices.

    Costs the memory of what it keeps, a second time, and a copy of it a step, which needs no host.

    Attributes:
        step: steps of the optimiser that the parameters had seen; -1: nothing is kept.
    """

    def __init__(self) -> None:
        self._weights = _Copies()
        self._buffers = _Copies()
        self._slots: list[_Slot] = []
        self.step = -1

    def keep(self, module: nn.Module, buffers: Iterable[Tensor], optimizer: Optimizer, step: int) -> None:
        """Keep what is there now.

        Args:
            module: whose trained parameters are kept.
            buffers: that a forward pass may alter.
            optimizer: of the parameters.
            step: steps of the optimiser until now; parameters are copied where there was one since the last call.
        """
        self._buffers.take(buffers)
        if step == self.step:
            return
        self.step = step
        self._slots = [
            _Slot(state, key)
            for state in optimizer.state.values()
            for key, value in state.items()
            if isinstance(value, Tensor)
        ]
        trained = (parameter.detach() for parameter in module.parameters() if parameter.requires_grad)
        self._weights.take([*trained, *(slot.state[slot.key] for slot in self._slots)])

    def restore(self, optimizer: Optimizer) -> None:
        """Put everything back; what the optimiser did not know then it forgets."""
        self._buffers.give_back()
        self._weights.give_back()
        known = {(id(slot.state), slot.key) for slot in self._slots}
        for state in optimizer.state.values():
            for key in [key for key in state if (id(state), key) not in known]:
                del state[key]


class _Copies:
    """Copies of tensors, made anew only where these have changed their shapes."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._copies: list[Tensor] = []

    def take(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [_local(tensor) for tensor in tensors]
        if [_kind(tensor) for tensor in self._tensors] != [_kind(copy) for copy in self._copies]:
            self._copies = [tensor.clone() for tensor in self._tensors]
        else:
            _copy(self._copies, self._tensors)

    def give_back(self) -> None:
        _copy(self._tensors, self._copies)


def _copy(places: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy tensors in few kernels: those of one device and type go together, counts of optimisers apart."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for place, tensor in zip(places, tensors, strict=True):
        there, here = groups.setdefault((tensor.device, tensor.dtype), ([], []))
        there.append(place)
        here.append(tensor)
    for there, here in groups.values():
        torch._foreach_copy_(there, here)


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor; any other as it is."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device
