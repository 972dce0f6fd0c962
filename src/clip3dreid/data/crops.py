"""Crops in batches, for a model that only looks: decoded in the loader's workers, unreadable ones told."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip3dreid.data.images import TestView
from clip3dreid.data.listing import Listing
from clip3dreid.io.files import in_turn
from clip3dreid.io.pictures import Pixels, UnreadablePicture, read_rgb
from clip3dreid.io.table_files import BOX

ADVICE = "replace it, or leave it out with on_error=skip"
"""What extraction can do about a picture that cannot be read."""


class CropBatch(NamedTuple):
    """Some consecutive rows of a list of pictures."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    rows: Tensor
    """(B,) int64, ascending."""
    skipped: list[tuple[int, str]]
    """Row and reason of those that could not be read."""


def cut_between_pictures(paths: pl.Series, rows: range, size: int) -> list[range]:
    """Cut consecutive rows into batches, so that those of one picture, which is decoded for them once, stay together.

    Args:
        paths: (N,) files of all rows.
        rows: that are cut.
        size: the most in a batch; more only where one picture has more.

    Returns:
        The rows of each batch, in order.
    """
    # Of these rows alone: there may be many such pieces of a long list.
    part = paths[rows.start : rows.stop]
    ends = [*(part != part.shift()).fill_null(True).arg_true().to_list(), len(part)]
    cuts, start = [], 0
    while start < len(part):
        place = bisect.bisect_right(ends, start + size) - 1
        end = ends[place] if ends[place] > start else ends[place + 1]
        cuts.append(range(rows.start + start, rows.start + end))
        start = end
    return cuts


class _PackedTexts:
    """Texts (N,) in one piece of memory: forked workers that touch a million objects copy all of their memory."""

    def __init__(self, texts: pl.Series) -> None:
        self._ends = np.cumsum(texts.str.len_bytes().to_numpy(), dtype=np.int64)
        self._bytes = bytearray(0)
        for text in in_turn(texts):
            self._bytes += text.encode()

    def __getitem__(self, row: int) -> str:
        return self._bytes[self._ends[row - 1] if row else 0 : self._ends[row]].decode()


class Crops:
    """Crops by row, read from their files each time.

    Args:
        root: of the files.
        paths: (N,) of them, relative to it.
        boxes: (N, 4) left, top, right and bottom in pixels of the upright picture; None: whole pictures.
        view: resizing.
        advice: what to do about one that cannot be read, for the message.
    """

    def __init__(
        self,
        root: Path,
        paths: pl.Series,
        boxes: npt.NDArray[np.int32] | None,
        view: TestView,
        advice: str = ADVICE,
    ) -> None:
        self._root, self._paths = root, _PackedTexts(paths)
        self._boxes, self._view, self._advice = boxes, view, advice

    @classmethod
    def listed(cls, listing: Listing, view: TestView, advice: str = ADVICE) -> Crops:
        """Return the crops of a list of pictures, with the boxes that it may have; arguments as of the class."""
        return Crops(listing.root, listing.table["path"], _boxes(listing.table), view, advice)

    def planes(self, row: int) -> Tensor:
        """Return a crop, resized: (3, H, W) uint8.

        Raises:
            UnreadablePicture: if it cannot be read.
        """
        return torch.from_numpy(self._view(self._crop(row, self._decoded(row))))

    def _path(self, row: int) -> str:
        return str(self._root / self._paths[row])

    def _decoded(self, row: int) -> Pixels:
        return read_rgb(self._path(row), self._advice)

    def _crop(self, row: int, rgb: Pixels) -> Pixels:
        if self._boxes is None:
            return rgb
        left, top, right, bottom = self._boxes[row].clip(0, (rgb.shape[1], rgb.shape[0]) * 2).tolist()
        if left >= right or top >= bottom:
            size = f"{rgb.shape[1]} x {rgb.shape[0]}"
            reason = f"the box {self._boxes[row].tolist()} lies outside {self._path(row)}, {size} pixels"
            raise UnreadablePicture(f"{reason}; correct it, or leave it out with on_error=skip", reason)
        return np.ascontiguousarray(rgb[top:bottom, left:right])


def _boxes(table: pl.DataFrame) -> npt.NDArray[np.int32] | None:
    return table.select(BOX).to_numpy() if BOX[0] in table.columns else None


class CropBatches(Crops, Dataset[CropBatch]):
    """Batches of crops; the dataset's items are whole batches, so that they are the same however they are shared out.

    Args:
        root: as of `Crops`.
        paths: likewise; one that stands in several rows of a batch, one after the other, is decoded once.
        boxes: likewise.
        batches: rows of each batch.
        view: as of `Crops`.
        skip: leave unreadable pictures out, and say so; else they end the run.
        advice: as of `Crops`.
    """

    def __init__(
        self,
        root: Path,
        paths: pl.Series,
        boxes: npt.NDArray[np.int32] | None,
        batches: Sequence[range],
        view: TestView,
        skip: bool,
        advice: str = ADVICE,
    ) -> None:
        super().__init__(root, paths, boxes, view, advice)
        self._batches, self._skip = batches, skip

    @classmethod
    def of(
        cls, listing: Listing, batches: Sequence[range], view: TestView, *, skip: bool, advice: str = ADVICE
    ) -> Self:
        """Return the crops of a list of pictures, with the boxes that it may have; arguments as of the class."""
        table = listing.table
        return cls(listing.root, table["path"], _boxes(table), batches, view, skip, advice)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> CropBatch:
        images, rows, skipped = [], [], []
        path, rgb = "", np.empty(0, np.uint8)
        for row in self._batches[index]:
            try:
                if (here := self._path(row)) != path:
                    path, rgb = here, self._decoded(row)
                images.append(self._view(self._crop(row, rgb)))
                rows.append(row)
            except UnreadablePicture as error:
                if not self._skip:
                    raise
                skipped.append((row, error.reason))
        shape = (0, 3, self._view.height, self._view.width)
        planes = np.stack(images) if images else np.empty(shape, np.uint8)
        return CropBatch(torch.from_numpy(planes), torch.tensor(rows, dtype=torch.int64), skipped)
