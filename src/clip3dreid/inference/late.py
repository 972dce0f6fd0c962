"""Bring tensors from a device to the CPU while both go on working."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def at_once(device: torch.device) -> bool:
    """Return whether a device's tensors are the CPU's own, or cannot come to it while it goes on."""
    return device.type in ("cpu", "mps")


class Late:
    """Tensors on their way to the CPU.

    To be read once the device has other work: an event tells that it has passed the copies, and all that was given to
    it since goes on.

    Args:
        tensors: without gradient, all on one device.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        device = tensors[0].device
        self._event = None
        if at_once(device):
            self._copies = [tensor.cpu() for tensor in tensors]
            return
        # Pinned: a copy to other memory is one that the host waits for.
        places = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        self._copies = [
            place.copy_(tensor, non_blocking=True) for place, tensor in zip(places, tensors, strict=True)
        ]
        self._event = torch.get_device_module(device).Event()
        self._event.record()

    @property
    def there(self) -> bool:
        """Return whether they can be read without an event to wait for."""
        return self._event is None

    def read(self) -> list[Tensor]:
        """Return the tensors on the CPU, in pinned memory where they come from a device."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies
