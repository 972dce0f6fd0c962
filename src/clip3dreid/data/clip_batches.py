"""Tracklets in batches of clips, for a model that only looks: as many frames at a time however long they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip3dreid.data.clips import all_clips
from clip3dreid.data.images import to_unit
from clip3dreid.io.pictures import UnreadablePicture

Ints = npt.NDArray[np.int64]


class Lost(NamedTuple):
    """A frame that could not be read."""

    tracklet: int
    """Whose it is."""
    row: int
    """Of the frame, in the table of frames."""
    reason: str


class ClipBatch(NamedTuple):
    """Some consecutive clips."""

    images: Tensor
    """(B, T, 3, H, W), uint8 or floats in 0..1; (B, 3, H, W) for T = 1."""
    rows: Tensor
    """(B,) int64 whose clip each is, ascending."""
    lost: list[Lost]
    """Frames that could not be read."""


class ClipBatches(Dataset[ClipBatch]):
    """Batches of all clips of tracklets, which evaluation looks at (`clips.all_clips`).

    An item is a whole batch, and nothing is read before it is asked for. A frame that cannot be read is left out: its
    clip goes on with the frames that are left, from the first on, as a tracklet does that is shorter than a clip. A
    clip without any frame is none.

    Args:
        planes: from the row of a frame to (3, H, W), uint8 or floats in 0..1.
        rows: (F,) rows of frames, tracklet after tracklet, in order of time.
        starts: (M + 1,) where in `rows` each tracklet begins, and the last one ends; none is empty.
        frames: T, of a clip.
        stride: of a clip.
        batch: the most frames in a batch, which is of one clip at least.
        parts: of the tracklets, in order: a batch never holds clips of two of them; None: they are one part.
        skip: leave unreadable frames out, and say so; else they end the run.

    Attributes:
        counts: how many batches each part has.
    """

    def __init__(
        self,
        planes: Callable[[int], Tensor],
        rows: Ints,
        starts: Ints,
        *,
        frames: int,
        stride: int,
        batch: int,
        parts: Sequence[range] | None = None,
        skip: bool = False,
    ) -> None:
        self._planes, self._rows, self._starts = planes, rows, starts
        self._frames, self._stride, self._skip = frames, stride, skip
        # Where the clips of each tracklet begin, all of them counted.
        self._first = np.concatenate([[0], np.cumsum(-(-np.diff(starts) // frames))])
        size = max(1, batch // frames)
        cuts = [self._cut(part, size) for part in ([range(len(starts) - 1)] if parts is None else parts)]
        self.counts = list(map(len, cuts))
        self._batches = [one for part in cuts for one in part]

    def _cut(self, part: range, size: int) -> list[range]:
        first, last = int(self._first[part.start]), int(self._first[part.stop])
        return [range(start, min(start + size, last)) for start in range(first, last, size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> ClipBatch:
        clips, whose = [], []
        lost: list[Lost] = []
        batch = self._batches[index]
        tracklet, numbers = -1, np.empty((0, self._frames), np.int64)
        for clip in batch:
            if (owner := int(np.searchsorted(self._first, clip, "right")) - 1) != tracklet:
                tracklet = owner
                length = int(self._starts[owner + 1] - self._starts[owner])
                numbers = self._starts[owner] + all_clips(length, self._frames, self._stride)
            frames = self._read(tracklet, self._rows[numbers[clip - self._first[tracklet]]].tolist(), lost)
            if frames:
                clips.append([frames[place % len(frames)] for place in range(self._frames)])
                whose.append(tracklet)
        if not clips:
            return ClipBatch(torch.empty(0), torch.empty(0, dtype=torch.int64), lost)
        flat = [frame for clip in clips for frame in clip]
        if len({frame.dtype for frame in flat}) > 1:
            flat = [to_unit(frame) for frame in flat]
        images = torch.stack(flat)
        if self._frames > 1:
            images = images.reshape(len(clips), self._frames, *images.shape[1:])
        return ClipBatch(images, torch.tensor(whose), lost)

    def _read(self, tracklet: int, rows: Sequence[int], lost: list[Lost]) -> list[Tensor]:
        """Return the frames of a clip that can be read, each decoded once, and add the others to a list."""
        seen: dict[int, Tensor] = {}
        for row in dict.fromkeys(rows):
            try:
                seen[row] = self._planes(row)
            except UnreadablePicture as error:
                if not self._skip:
                    raise
                lost.append(Lost(tracklet, row, error.reason))
        # A tracklet that is shorter than a clip has its frames several times; what is left of them is looped anew.
        return list(seen.values())
