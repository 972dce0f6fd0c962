"""How a teacher sees pictures: what becomes of a tall crop before a network that was trained on squares.

Resampling is torch's bicubic with antialiasing, clamped to the range of pictures; where the size fits already, pixels
are passed on as they are.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.errors import InputError


class View(Protocol):
    """From pictures to the pictures that a teacher is shown."""

    size: tuple[int, int]
    """Height and width of what it is shown, in pixels."""

    def __call__(self, images: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W), uint8 0..255 or floating 0..1, to (B, 3, *size) of the same dtype."""
        ...

    def describe(self) -> str:
        """Return all that decides the result: part of a teacher's fingerprint."""
        ...


class Letterbox:
    """Pads with zeros to a square, the picture in its middle, and resizes that (as the method's released code does).

    Padding comes before normalisation, so the network sees black bars. Of an odd number of pixels to pad, the
    greater half goes right or below.

    Args:
        size: side of the square, in pixels.

    Raises:
        InputError: if the size is not positive.
    """

    def __init__(self, size: int) -> None:
        self.size = _checked(size, size)

    def __call__(self, images: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W), uint8 0..255 or floating 0..1, to (B, 3, size, size) of the same dtype."""
        height, width = images.shape[-2:]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        if height != width:
            images = F.pad(images, (left, side - width - left, top, side - height - top))
        return _resized(images, self.size)

    def describe(self) -> str:
        """Return all that decides the result."""
        return f"letterbox {self.size[0]}x{self.size[1]}, black, bicubic antialiased"


class Squash:
    """Resizes to a square whatever the picture's shape: people get wide, no pixel is wasted.

    Args:
        size: side of the square, in pixels.

    Raises:
        InputError: if the size is not positive.
    """

    def __init__(self, size: int) -> None:
        self.size = _checked(size, size)

    def __call__(self, images: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W), uint8 0..255 or floating 0..1, to (B, 3, size, size) of the same dtype."""
        return _resized(images, self.size)

    def describe(self) -> str:
        """Return all that decides the result."""
        return f"squash {self.size[0]}x{self.size[1]}, bicubic antialiased"


class Native(Squash):
    """Resizes to a height and a width, those of crops of people: the teacher interpolates its positions.

    Args:
        height: pixels.
        width: pixels.

    Raises:
        InputError: if one of them is not positive.
    """

    def __init__(self, height: int, width: int) -> None:
        self.size = _checked(height, width)

    def describe(self) -> str:
        """Return all that decides the result."""
        return f"native {self.size[0]}x{self.size[1]}, bicubic antialiased"


def _checked(height: int, width: int) -> tuple[int, int]:
    if height < 1 or width < 1:
        raise InputError(
            f"a teacher's view of {height}x{width} pixels is empty; set model.teacher.view to 1 or more"
        )
    return height, width


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"pictures must be (B, 3, H, W), not {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"pictures must be uint8 0..255 or floating point 0..1, not {images.dtype}")
    if images.shape[-2:] == size:
        return images
    # In float32 whatever comes in: CUDA resamples no bytes, and halves lose digits.
    resampled = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
    if images.dtype == torch.uint8:
        return resampled.round().clamp(0, 255).to(torch.uint8)
    return resampled.clamp(0, 1).to(images.dtype)
