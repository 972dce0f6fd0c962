"""Networks that are asked about pictures, and never trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from clip3dreid.model.teacher_view import View


class FrozenNetwork(nn.Module, ABC):
    """A frozen network that says something of pictures: no part of parameters, buffers or state of whoever owns it.

    Attributes:
        name: for people to read.
        view: how pictures are fitted to the network's input.
        width: d, columns of what it says.
    """

    name: str
    view: View
    width: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Return where the network is."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hexadecimal digest of all that decides what it says."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W), uint8 0..255 or floating 0..1, to (B, d) float32."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever is asked for."""
        return super().train(False)
