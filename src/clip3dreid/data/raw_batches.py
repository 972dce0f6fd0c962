"""Batches of whole pictures whose augmentation is left to the training device.

A loader's worker copies pictures, as they lie in memory or in a pack, and draws what is to be done to each; the
device does it to the whole batch. What is drawn for a seed is what `TrainView` draws for it, so both ways show a
training the same windows, mirror images and rectangles; pictures that are enlarged may differ by a grey level, as
OpenCV interpolates with weights of 11 bits. No step of it waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from clip3dreid.data.bodies import BodyTable
from clip3dreid.data.images import PictureRows, TestView, TrainView, to_unit
from clip3dreid.data.picture_batches import batch_memory, labelled, unlabelled
from clip3dreid.data.resizing import fit
from clip3dreid.errors import InputError
from clip3dreid.io.opencv import one_thread
from clip3dreid.types import Batch, BodyBatch


class RawBatch(NamedTuple):
    """A batch on its way to the device."""

    batch: Batch | BodyBatch
    """Whose `images` are (B, H, W, 3) uint8, resized and no more; of clips (B, T, H, W, 3)."""
    draws: Tensor | None
    """(B, 8) int32: a `Draw` for each; None: nothing is done to them."""

    def pin_memory(self) -> RawBatch:
        """Return the batch with all tensors pinned: a copy of any other waits for what the device has still to do."""
        pinned = {name: _pinned(value) for name, value in self.batch._asdict().items()}
        return RawBatch(self.batch._replace(**pinned), _pinned(self.draws))


def _pinned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _pinned(one) for name, one in value.items()}
    return value.pin_memory() if isinstance(value, Tensor) else value


def check_on_device(view: TrainView, key: str = "datamodule.train_view") -> None:
    """Check that a device can do all that a view does.

    Args:
        view: any.
        key: that it was given as, for the message.

    Raises:
        InputError: if it has albumentations transforms.
    """
    if view.has_extra:
        raise InputError(
            f"{key}.extra has transforms for the CPU, and datamodule.augment_on=device leaves them to the device; "
            f"set datamodule.augment_on=worker, or {key}.extra=[]"
        )


def gather(
    pictures: PictureRows, rows: Sequence[int], view: TestView | TrainView, pinned: bool = False
) -> Tensor:
    """Copy pictures into one tensor, once: in a loader's worker to memory that the training process sees too.

    Args:
        pictures: of any size.
        rows: B of them.
        view: whose size they get; nothing else is done to them.
        pinned: to memory that a CUDA device copies from by itself.

    Returns:
        (B, H, W, 3) uint8.
    """
    images = batch_memory((len(rows), view.height, view.width, 3), pinned)
    filled = images.numpy()
    with one_thread:
        for place, row in enumerate(rows):
            filled[place] = fit(pictures[row], view.height, view.width, view.square)
    return images


def draw(view: TrainView, seeds: Sequence[int]) -> Tensor:
    """Return (B, 8) int32: what `view` draws for each of B seeds."""
    return torch.tensor([view.draw(seed) for seed in seeds], dtype=torch.int32)


class RawTrainPictures(Dataset[RawBatch]):
    """Training pictures by whole batches, as `picture_batches.TrainPictures` has them one by one.

    Args:
        pictures: N of them.
        labels: (N, 3) int64: person, clothes and camera of each.
        view: augmentation.
        pinned: as of `gather`.

    Raises:
        InputError: as `check_on_device`.
    """

    def __init__(
        self, pictures: PictureRows, labels: npt.NDArray[np.int64], view: TrainView, pinned: bool = False
    ) -> None:
        check_on_device(view)
        self._pictures, self._labels, self._view, self._pinned = pictures, labels, view, pinned

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> RawBatch:
        rows, seeds = map(list, zip(*indices, strict=True))
        images = gather(self._pictures, rows, self._view, self._pinned)
        return RawBatch(labelled(images, self._labels, rows), draw(self._view, seeds))


class RawBodyPictures(Dataset[RawBatch]):
    """Pictures of bodies by whole batches, as `bodies.BodyPictures` has them one by one.

    Args:
        table: whose bodies they show.
        view: augmentation.
        pictures: N of them.
        pinned: as of `gather`.

    Raises:
        InputError: as `check_on_device`.
    """

    def __init__(
        self, table: BodyTable, view: TrainView, pictures: PictureRows, pinned: bool = False
    ) -> None:
        check_on_device(view, "bodies.view")
        self._pictures, self._view, self._pinned = pictures, view, pinned
        self._betas, self._body = table.betas, table.body

    def __len__(self) -> int:
        return len(self._body)

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> RawBatch:
        rows, seeds = map(list, zip(*indices, strict=True))
        betas, body = torch.from_numpy(self._betas[rows]), torch.from_numpy(self._body[rows])
        images = gather(self._pictures, rows, self._view, self._pinned)
        return RawBatch(BodyBatch(images, betas, body), draw(self._view, seeds))


class RawEvaluationPictures(Dataset[RawBatch]):
    """Evaluation pictures by whole batches, as `picture_batches.EvaluationPictures` has them one by one.

    Args:
        pictures: N of them.
        count: N.
        view: resizing.
        pinned: as of `gather`.
    """

    def __init__(self, pictures: PictureRows, count: int, view: TestView, pinned: bool = False) -> None:
        self._pictures, self._count, self._view, self._pinned = pictures, count, view, pinned

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, rows: Sequence[int]) -> RawBatch:
        images = gather(self._pictures, rows, self._view, self._pinned)
        return RawBatch(unlabelled(images, rows), None)


def finish(raw: RawBatch, view: TrainView) -> Batch | BodyBatch:
    """Make of a raw batch on the device what networks take; nothing here waits for the device.

    Args:
        raw: its tensors on one device.
        view: augmentation, of which size, factor, colour and `keep_view` are asked here.

    Returns:
        The batch with `images` (B, 3, H, W) float32 0..1, and `view` where `keep_view` asks for it. All frames of a
        clip are augmented alike.
    """
    batch = raw.batch
    *shape, _, _, _ = batch.images.shape
    planes = batch.images.flatten(0, len(shape) - 1).permute(0, 3, 1, 2)
    if raw.draws is None:
        return batch._replace(images=torch.unflatten(to_unit(planes.contiguous()), 0, shape))
    draws = raw.draws if len(shape) == 1 else raw.draws.repeat_interleave(shape[1], 0)
    before, after = (torch.unflatten(images, 0, shape) for images in augment(planes, draws, view))
    if not isinstance(batch, Batch) or not view.keep_view:
        return batch._replace(images=after)
    # Of a clip the teacher sees what guides are about.
    guided = before if len(shape) == 1 or batch.frames is not None else before[:, shape[1] // 2]
    return batch._replace(images=after, view=guided)


def augment(planes: Tensor, draws: Tensor, view: TrainView) -> tuple[Tensor, Tensor]:
    """Enlarge and crop, mirror and erase a batch as drawn.

    Args:
        planes: (B, 3, H, W) uint8.
        draws: (B, 8) int32 on the same device: a `Draw` for each.
        view: which drew them.

    Returns:
        (B, 3, H, W) float32 0..1 before erasing, and the same after it: another tensor.
    """
    enlarged, down, right, flipped, top, left, height, width = draws.unsqueeze(2).unbind(1)  # (B, 1) each
    y = torch.arange(view.height, device=planes.device)[None]
    x = torch.arange(view.width, device=planes.device)[None]
    mirrored = torch.where(flipped.bool(), view.width - 1 - x, x)  # (B, W)
    across = _place(mirrored, right, enlarged, view.width, view.enlarged[1])
    below = _place(y, down, enlarged, view.height, view.enlarged[0])
    shape = -1, view.height, view.width
    grid = torch.stack((across[:, None].expand(shape), below[:, :, None].expand(shape)), 3)  # (B, H, W, 2)
    sampled = F.grid_sample(planes.float(), grid, padding_mode="border", align_corners=False)
    # To whole grey levels, which a picture that is not enlarged has at once.
    before = sampled.round_().div_(255)
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    erased = rows[:, :, None] & columns[:, None, :]  # (B, H, W)
    after = before.clone()
    for channel, value in enumerate(view.fill.flatten().tolist()):
        after[:, channel].masked_fill_(erased, value / 255)
    return before, after


def _place(pixel: Tensor, offset: Tensor, enlarged: Tensor, size: int, large: int) -> Tensor:
    """Return where in the picture a pixel of what is cut out lies: -1..1 from edge to edge, as grids have it."""
    centre = pixel + 0.5
    return torch.where(enlarged.bool(), (centre + offset) * (2 / large), centre * (2 / size)) - 1
