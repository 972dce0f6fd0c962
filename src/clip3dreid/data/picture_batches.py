"""Make batches of pictures in a loader's worker, whole ones: each picture is written once, where it stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from clip3dreid.data.images import PictureRows, TestView, TrainView
from clip3dreid.io.opencv import one_thread
from clip3dreid.types import Batch

T = TypeVar("T")


class TrainPictures(Dataset[Batch]):
    """Augmented pictures with their class indices, by whole batches.

    Args:
        pictures: N of them.
        labels: (N, 3) int64: person, clothes (-1 unknown) and camera (-1 unknown) of each.
        view: augmentation.

    It is indexed by `(row, seed)`, as `IdentityBatches` yields them, so that what is drawn never depends on
    which worker draws.
    """

    def __init__(self, pictures: PictureRows, labels: npt.NDArray[np.int64], view: TrainView) -> None:
        self._pictures = pictures
        self._labels = labels
        self._view = view

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> Batch:
        shape = (len(indices), 3, self._view.height, self._view.width)
        images = batch_memory(shape)
        views = batch_memory(shape) if self._view.keep_view else None
        planes, before = images.numpy(), None if views is None else views.numpy()
        with one_thread:
            for place, (row, seed) in enumerate(indices):
                view = None if before is None else before[place]
                self._view.put(self._pictures[row], seed, planes[place], view)
        return labelled(images, self._labels, [row for row, _ in indices])._replace(view=views)


class EvaluationPictures(Dataset[Batch]):
    """Resized pictures that carry their row and nothing else, by whole batches; labels are looked up by row.

    Args:
        pictures: N of them.
        count: N.
        view: resizing.
    """

    def __init__(self, pictures: PictureRows, count: int, view: TestView) -> None:
        self._pictures, self._count, self._view = pictures, count, view

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        images = batch_memory((len(rows), 3, self._view.height, self._view.width))
        planes = images.numpy()
        with one_thread:
            for place, row in enumerate(rows):
                self._view.put(self._pictures[row], planes[place])
        return unlabelled(images, rows)


def labelled(images: Tensor, labels: npt.NDArray[np.int64], rows: Sequence[int]) -> Batch:
    """Return a batch of pictures with their rows and what (N, 3) labels say of these: person, clothes and camera."""
    # Columns of their own: workers send each tensor by itself.
    person, clothes, camera = (torch.from_numpy(labels[rows, column]) for column in range(3))
    return Batch(images, person, clothes, camera, torch.tensor(rows))


def unlabelled(images: Tensor, rows: Sequence[int]) -> Batch:
    """Return a batch of pictures with their rows, all else unknown."""
    person, clothes, camera = (torch.full((len(rows),), -1) for _ in range(3))
    return Batch(images, person, clothes, camera, torch.tensor(rows))


def as_it_is(batch: T) -> T:
    """Return a batch: what a loader does with one that its data set has made whole."""
    return batch


def batch_memory(shape: Sequence[int], pinned: bool = False) -> Tensor:
    """Return an uninitialised uint8 tensor for a batch: in a loader's worker where the training process sees it too.

    Args:
        shape: of it.
        pinned: where a CUDA device copies from by itself; of no meaning in a worker.
    """
    if get_worker_info() is None:
        return torch.empty(tuple(shape), dtype=torch.uint8, pin_memory=pinned)
    # As torch's own collation does it: what is not shared is copied once more to be sent.
    shared = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(tuple(shape))
