"""Take whatever a picture may be: files, images of Pillow, arrays and tensors, one or many, become batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from clip3dreid.data.box_settings import Boxes
from clip3dreid.data.images import TestView, to_unit
from clip3dreid.errors import InputError
from clip3dreid.io.pictures import Pixels, read_rgb, unreadable, upright_rgb

PictureLike = str | Path | Image.Image | npt.NDArray[np.uint8] | Tensor
"""A file; an image of Pillow; (H, W, 3) uint8 RGB; or a tensor (3, H, W) RGB, uint8 or floating point 0..1."""
_InMemory = PictureLike | Iterable[PictureLike]
Pictures = _InMemory | Boxes
"""One picture, several, or an array (N, H, W, 3) or tensor (N, 3, H, W) of them; sizes may differ.
Or boxes in frames."""

# How far floats may leave 0..1: resampling overshoots by rounding, normalised pictures by far more.
_SLACK = 1e-3


def batches(pictures: _InMemory, size: int, view: TestView, device: torch.device) -> Iterator[Tensor]:
    """Yield pictures as a model takes them.

    Args:
        pictures: N of them; a tensor of the view's size is taken as it is.
        size: pictures at a time, B.
        view: resizes the others.
        device: of the model.

    Returns:
        Batches (B, 3, H, W) float32 in 0..1 on the device, the last one perhaps smaller.

    Raises:
        InputError: if a picture cannot be read or is none, naming it.
    """
    if isinstance(pictures, Tensor) and pictures.shape[1:] == (3, view.height, view.width):
        # Ready as they are, on the device perhaps.
        for start in range(0, len(pictures), size):
            yield to_unit(_checked(pictures[start : start + size], f"picture from {start} on").to(device))
        return
    listed = _listed(pictures)
    for start in range(0, len(listed), size):
        planes = [
            planes_of(one, f"picture {start + i}", view) for i, one in enumerate(listed[start : start + size])
        ]
        if len({part.dtype for part in planes}) > 1:
            planes = [to_unit(part) for part in planes]
        yield to_unit(torch.stack(planes).to(device))


def planes_of(picture: PictureLike, name: str, view: TestView) -> Tensor:
    """Return one picture as a model sees it.

    Args:
        picture: a file, or in memory.
        name: what messages call it.
        view: resizes it, unless it is a tensor of that size.

    Returns:
        (3, H, W) on the CPU, uint8 or floating point in 0..1.

    Raises:
        InputError: if it cannot be read or is none.
    """
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or len(picture) != 3 or not picture.numel():
            raise InputError(
                f"{name} is a tensor {tuple(picture.shape)}, but must be (3, H, W) or (N, 3, H, W)"
            )
        picture = _checked(picture.detach().cpu(), name)
        if picture.shape[1:] == (view.height, view.width):
            return picture
        if picture.is_floating_point():  # what resizes pictures in training and evaluation takes bytes
            picture = picture.float().clamp(0, 1).mul(255).round().to(torch.uint8)
        rgb = picture.permute(1, 2, 0).contiguous().numpy()
    elif isinstance(picture, np.ndarray):
        shaped = picture.ndim == 3 and picture.shape[2] == 3 and picture.size
        if picture.dtype != np.uint8 or not shaped:
            raise InputError(
                f"{name} is an array {picture.shape} of {picture.dtype}, but must be (H, W, 3) of "
                "uint8, red first"
            )
        rgb = np.ascontiguousarray(picture)
    elif isinstance(picture, Image.Image):
        rgb = _from_pillow(picture, name)
    elif isinstance(picture, str | Path):
        rgb = read_rgb(Path(picture).expanduser(), "give one that can be read")
    else:
        raise InputError(
            f"{name} is a {type(picture).__name__}; give a path, an image of Pillow, an array "
            "(H, W, 3) of uint8 or a tensor (3, H, W)"
        )
    return torch.from_numpy(view(rgb))


def _listed(images: _InMemory) -> Sequence[PictureLike]:
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | Path | Image.Image) or not isinstance(images, Iterable):
        return [images]
    return list(images)


def _checked(pictures: Tensor, name: str) -> Tensor:
    """Return pictures as they are, if they are bytes or floats in 0..1."""
    if pictures.is_floating_point():
        low, high = (float(value) for value in pictures.aminmax())
        if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN is refused too
            raise InputError(
                f"{name} has values from {low:.3g} to {high:.3g}, but floats must be in 0..1 and not "
                "normalised: the model does that"
            )
    elif pictures.dtype != torch.uint8:
        raise InputError(
            f"{name} is a tensor of {pictures.dtype}, but must be uint8 or floating point in 0..1"
        )
    return pictures


def _from_pillow(image: Image.Image, name: str) -> Pixels:
    """Return it as `read_rgb` has it from a file, and as little of the image itself is changed."""
    try:
        return upright_rgb(image)
    except Exception as error:  # files are decoded only here, and decoders raise a dozen types
        raise InputError(f"{name} cannot be decoded: {unreadable('', error).reason}") from error
