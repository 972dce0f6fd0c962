"""Make of any image network what embeds pictures: bytes in, one vector a picture out.

A `Network` is what a library makes of files (`networks.py`); an `Embedder` shows it pictures as it wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.checks import check
from clip3dreid.io.formats import decoding
from clip3dreid.model.backbone import exactly


@dataclass(frozen=True)
class Pixels:
    """Say what pixels a network wants: `(value - mean) / std` of each channel, where white is `range`.

    Args:
        channels: their order.
        range: 255 or 1.
        mean: of the channels in their order, in units of `range`.
        std: likewise, above 0.

    Raises:
        InputError: if a value is none of these.
    """

    channels: Literal["rgb", "bgr"] = "rgb"
    range: Literal[1, 255] = 1
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        check(self, "pixels.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(
                f"pixels.mean={list(self.mean)} and pixels.std={list(self.std)} must be three numbers each, std "
                "above 0"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Map RGB pictures (B, 3, H, W), uint8 0..255 or floating 0..1, to what the network wants, float32."""
        values = images.float() if images.dtype == torch.uint8 else images.float() * 255
        if self.range == 1:
            values = values / 255
        if self.channels == "bgr":
            values = values.flip(1)
        mean, std = torch.tensor([list(self.mean), list(self.std)], device=values.device).view(2, 3, 1, 1)
        wanted: Tensor = (values - mean) / std
        return wanted

    @property
    def are_bytes(self) -> bool:
        """Return whether every pixel is a whole number from 0 to 255."""
        return self.range == 255 and not any(self.mean) and set(self.std) == {1.0}

    def describe(self) -> str:
        """Return all that decides the result."""
        return (
            f"{self.channels} 0..{self.range} mean {[*map(float, self.mean)]} std {[*map(float, self.std)]}"
        )


class Takes(NamedTuple):
    """What a network's input must be; None where anything will do."""

    batch: int | None
    height: int | None
    width: int | None


class Network(Protocol):
    """What a library makes of the files of a network."""

    @property
    def path(self) -> Path:
        """Return the file or folder that was given."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """Return all files that its answers depend on."""
        ...

    @property
    def takes(self) -> Takes:
        """Return what its input must be."""
        ...

    @property
    def takes_bytes(self) -> bool:
        """Return whether its input is bytes."""
        ...

    @property
    def device(self) -> torch.device:
        """Return where it runs."""
        ...

    def __call__(self, values: Tensor) -> Tensor:
        """Map (B, 3, H, W) float32 to the output (B, ...) float32, without gradient, on the network's device."""
        ...

    def to(self, device: torch.device) -> None:
        """Go to a device, if it can."""
        ...

    def describe(self) -> str:
        """Return what besides the files decides an answer."""
        ...


class Embedder:
    """A network that embeds pictures of one size.

    Two grey pictures are shown to it at once: they say how long a vector is, and whether a batch gives what single
    pictures give. A network for one picture at a time is shown one at a time.

    Args:
        network: what to show them to.
        pixels: as it wants them.
        size: height and width of the pictures.

    Attributes:
        width: d.

    Raises:
        InputError: if it wants another size or other pixels, or gives no vector of finite numbers.
    """

    def __init__(self, network: Network, pixels: Pixels, size: tuple[int, int]) -> None:
        self.network, self.pixels, self.size = network, pixels, size
        self._check_input()
        # Whatever is done one by one is done in batches of the only size that there is.
        self._at_once = network.takes.batch or 1
        noise = torch.Generator().manual_seed(0)
        two = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=noise)
        with decoding(network.path, f"a network for {size[0]}x{size[1]} pixels", "set another view"):
            apart = torch.cat([self(two[:1]), self(two[1:])])
        self.width = apart.shape[1]
        if not bool(torch.isfinite(apart).all()):
            raise InputError(
                f"{network.path} gives NaN or infinity for a picture of noise; get another file of this network"
            )
        if network.takes.batch is None and self._batches(two, apart):
            self._at_once = 0

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return self.network.device

    def to(self, device: torch.device) -> None:
        """Move the network, if its library can."""
        self.network.to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Embed pictures, without gradient.

        Args:
            images: (B, 3, *size) RGB, uint8 0..255 or floating 0..1, not normalised.

        Returns:
            (B, d) float32, as the network gives them, on the device of the pictures.

        Raises:
            ValueError: if the pictures have another size.
        """
        if images.shape[1:] != (3, *self.size):
            raise ValueError(
                f"pictures must be (B, 3, {self.size[0]}, {self.size[1]}), not {tuple(images.shape)}"
            )
        with exactly(self.device):
            values = self.pixels(images.to(self.device))
            step = self._at_once or len(values)
            parts = [self._vectors(part, step) for part in torch.split(values, step)]
        return torch.cat(parts).to(images.device)

    def describe(self) -> str:
        """Return all that decides an embedding besides the files."""
        return f"{type(self.network).__name__} {self.network.describe()}, {self.pixels.describe()}"

    def _vectors(self, values: Tensor, step: int) -> Tensor:
        """Return one vector a picture; a batch that is too small is filled up with its last picture."""
        count = len(values)
        if count < step:
            values = torch.cat([values, values[-1:].expand(step - count, -1, -1, -1)])
        output = self.network(values)
        shape = tuple(output.shape)
        if len(shape) < 2 or len(output) != len(values) or sum(side != 1 for side in shape[1:]) > 1:
            raise InputError(
                f"{self.network.path}: its output for {len(values)} pictures is {'x'.join(map(str, shape))}, no "
                "vector a picture; choose one that is with output=NAME or a number"
            )
        return output.flatten(1)[:count].float()

    def _batches(self, two: Tensor, apart: Tensor) -> bool:
        """Return whether two pictures at once give what they give apart: a file may hold one picture's shapes."""
        self._at_once = 0
        try:
            together = self(two)
        except Exception:  # of any library, about any layer
            return False
        finally:
            self._at_once = 1
        return together.shape == apart.shape and torch.allclose(
            together, apart, rtol=1e-3, atol=1e-3 * float(apart.abs().max())
        )

    def _check_input(self) -> None:
        takes, path = self.network.takes, self.network.path
        wanted = (takes.height or self.size[0], takes.width or self.size[1])
        if wanted != self.size:
            raise InputError(
                f"{path} takes pictures of {wanted[0]}x{wanted[1]} pixels and is shown "
                f"{self.size[0]}x{self.size[1]}; set its view.height={wanted[0]} and view.width={wanted[1]}"
            )
        if self.network.takes_bytes and not self.pixels.are_bytes:
            raise InputError(
                f"{path} takes bytes; set its pixels.range=255 pixels.mean=[0,0,0] pixels.std=[1,1,1]"
            )
