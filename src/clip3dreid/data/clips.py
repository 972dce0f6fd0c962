"""Which frames of a tracklet make a clip, in training and in evaluation.

Source: Gu et al., CVPR 2022, released code (Simple-CCReID), which published scores of CCVID rest on; one frame of
each segment: Wang et al., ECCV 2016 (TSN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip3dreid.data.images import PictureRows, TestView, TrainView
from clip3dreid.data.picture_batches import batch_memory, labelled, unlabelled
from clip3dreid.data.raw_batches import RawBatch, draw, gather
from clip3dreid.data.sampling import share
from clip3dreid.data.tracklets import Tracklets
from clip3dreid.io.checks import Count, Positive, check
from clip3dreid.io.opencv import one_thread
from clip3dreid.types import Batch, Guided

Ints = npt.NDArray[np.int64]
Sampling = Literal["stride", "segments"]
"""How a training clip is drawn: at equal distances from a random frame on, or one frame of each of equal segments."""


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut out of tracklets.

    Args:
        frames: T, of a clip.
        stride: how many frames further the next frame of a clip is.
        piece: training tracklets are cut into pieces of so many frames, each of which gives one clip an epoch; 0:
            they are not.
        sampling: see `Sampling`; evaluation always takes all clips by `stride`.

    Raises:
        InputError: if a value is none of these.
    """

    frames: Positive = 8
    stride: Positive = 4
    piece: Count = 64
    sampling: Sampling = "stride"

    def __post_init__(self) -> None:
        check(self, "datamodule.clips.")

    @property
    def size(self) -> dict[str, int]:
        """Return what evaluation must know of the clips that a model was trained on, as plain data."""
        return {"frames": self.frames, "stride": self.stride}


def cut(length: int, piece: int) -> list[range]:
    """Cut a tracklet into pieces for training; the last one takes what is left over, and a short one stays whole.

    Args:
        length: frames, 1 or more.
        piece: frames of a piece; 0: the tracklet stays whole.
    """
    count = length // piece if piece else 0
    ends = [*(piece * number for number in range(1, count)), length]
    return [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def is_looped(length: int, frames: int) -> bool:
    """Return whether a clip of so many frames is longer than the tracklet, which then begins anew."""
    return length < frames


def random_clip(length: int, settings: ClipSettings, rng: np.random.Generator) -> Ints:
    """Draw a training clip.

    With `stride`, a tracklet that is too short for it gives one frame of each segment, as with `segments`: as many
    segments as a clip has frames, all of the same length, and what is left over at the end is not drawn from. One
    that is shorter than a clip is looped from its first frame on.

    Args:
        length: frames of the tracklet or piece, 1 or more.
        settings: of the clip.
        rng: of the draw.

    Returns:
        (T,) which frames, counted from 0.
    """
    frames, stride = settings.frames, settings.stride
    if is_looped(length, frames):
        return np.arange(frames) % length
    if settings.sampling == "stride" and length >= frames * stride:
        first = rng.integers(length - (frames - 1) * stride)
        return first + stride * np.arange(frames)
    segment = length // frames
    return segment * np.arange(frames) + rng.integers(segment, size=frames)


def all_clips(length: int, frames: int, stride: int) -> Ints:
    """Return the clips that evaluation looks at; together they hold every frame of a tracklet.

    Every block of `frames` x `stride` frames gives `stride` interleaved clips; what is left over is such a block
    of the largest smaller stride; the last frames, fewer than a clip has, are looped.

    Args:
        length: of the tracklet, 1 or more.
        frames: T, of a clip.
        stride: in a whole block.

    Returns:
        (ceil(length / T), T) which frames, counted from 0.
    """
    block = frames * stride
    last = length % block // frames
    strides = [stride] * (length // block) + ([last] if last else [])
    clips, first = [], 0
    for one in strides:
        clips += [np.arange(first + begin, first + frames * one, one) for begin in range(one)]
        first += frames * one
    if rest := length - first:
        clips.append(first + np.arange(frames) % rest)
    return np.stack(clips).astype(np.int64)


def clip_counts(tracklets: Tracklets, frames: int) -> Ints:
    """Return (M,) how many clips of so many frames `all_clips` makes of each tracklet."""
    return -(-tracklets.lengths // frames)


class Pieces(NamedTuple):
    """The N pieces that training tracklets are cut into."""

    rows: Ints
    """(F,) rows of the table of frames, tracklet after tracklet, in order of time."""
    first: Ints
    """(N,) where in `rows` each piece begins."""
    lengths: Ints
    """(N,) frames of each."""

    @property
    def row(self) -> Ints:
        """Return (N,) the row of a frame of each piece, whose labels are the piece's."""
        return self.rows[self.first]

    def looped(self, frames: int) -> int:
        """Return how many pieces are shorter than a clip of so many frames."""
        return int((self.lengths < frames).sum())


def pieces(tracklets: Tracklets, piece: int) -> Pieces:
    """Cut tracklets into pieces for training, as `cut` does each."""
    cuts = [
        (start + one.start, len(one))
        for start, length in zip(tracklets.starts.tolist(), tracklets.lengths.tolist(), strict=False)
        for one in cut(length, piece)
    ]
    first, lengths = np.array(cuts, dtype=np.int64).reshape(-1, 2).T
    return Pieces(tracklets.rows, first, lengths)


class _Drawn(NamedTuple):
    """Clips of a batch."""

    frames: Ints
    """(B, T) rows of the table of frames."""
    middle: list[int]
    """(B,) those of the middle frames."""
    seeds: list[int]
    """(B,) of the augmentation."""


class _Clips(Dataset[Any]):
    """Clips to train on, one of each piece, before anything is read; see `TrainClips`."""

    def __init__(
        self,
        pictures: PictureRows,
        pieces: Pieces,
        labels: Ints,
        view: TrainView,
        settings: ClipSettings,
        guided: Guided = "middle",
        pinned: bool = False,
    ) -> None:
        self._pictures, self._pieces, self._labels = pictures, pieces, labels
        self._view, self._settings, self._all = view, settings, guided == "all"
        self._pinned = pinned

    def __len__(self) -> int:
        return len(self._pieces.first)

    def _draw(self, indices: Sequence[tuple[int, int]]) -> _Drawn:
        clips, (rows, first, lengths) = [], self._pieces
        for piece, seed in indices:
            # The augmentation's own draws follow from the seed too: this one stands apart from them.
            rng = np.random.default_rng([seed, 1])
            clips.append(rows[first[piece] + random_clip(int(lengths[piece]), self._settings, rng)])
        frames = np.stack(clips)
        middle = frames[:, frames.shape[1] // 2].tolist()
        return _Drawn(frames, middle, [seed for _, seed in indices])

    def _labelled(self, images: Tensor, drawn: _Drawn) -> Batch:
        batch = labelled(_pictures_of_one(images), self._labels, drawn.middle)
        return batch._replace(frames=torch.from_numpy(drawn.frames)) if self._all else batch


class TrainClips(_Clips):
    """Augmented clips with their class indices, one of each piece, by whole batches.

    All frames of a clip are augmented by one seed: the same crop, mirroring, erasing and colours. Frames of differing
    sizes become one size before.

    Args:
        pictures: all frames, by row.
        pieces: of the training table.
        labels: (F, 3) int64 of the frames: person, clothes (-1 unknown) and camera (-1 unknown).
        view: augmentation of a picture.
        settings: of clips.
        guided: whose map guides see, as in `ClipStudent`: teachers are asked of the same frames.
        pinned: of no meaning here.

    It is indexed by `(piece, seed)`, so that what is drawn never depends on which worker draws. Images of a batch are
    (B, T, 3, H, W), or (B, 3, H, W) for T = 1, and its rows are those of the middle frames; the view of a teacher is
    the middle frame's, (B, 3, H, W), or all frames'.
    """

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> Batch:
        drawn = self._draw(indices)
        shape = (*drawn.frames.shape, 3, self._view.height, self._view.width)
        images = batch_memory(shape)
        views = None
        if self._view.keep_view:
            views = batch_memory(shape if self._all else (shape[0], *shape[2:]))
        planes, before = images.numpy(), None if views is None else views.numpy()
        with one_thread:
            for place, (rows, seed) in enumerate(zip(drawn.frames.tolist(), drawn.seeds, strict=True)):
                for frame, row in enumerate(rows):
                    kept = None
                    if before is not None and (self._all or frame == shape[1] // 2):
                        kept = before[place, frame] if self._all else before[place]
                    self._view.put(self._pictures[row], seed, planes[place, frame], kept)
        batch = self._labelled(images, drawn)
        return batch if views is None else batch._replace(view=_pictures_of_one(views))


class RawTrainClips(_Clips):
    """Clips whose augmentation is left to the device, by whole batches; arguments as of `TrainClips`.

    Images of a batch are (B, T, H, W, 3), or (B, H, W, 3) for T = 1, and there is one `Draw` for each clip.
    """

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> RawBatch:
        drawn = self._draw(indices)
        images = gather(self._pictures, drawn.frames.flatten().tolist(), self._view, self._pinned)
        images = torch.unflatten(images, 0, drawn.frames.shape)
        return RawBatch(self._labelled(images, drawn), draw(self._view, drawn.seeds))


def _pictures_of_one(clips: Tensor) -> Tensor:
    """Return clips of one frame as pictures, which any student takes."""
    return clips[:, 0] if clips.shape[1] == 1 and clips.ndim == 5 else clips


class EvaluationClips(Dataset[Batch]):
    """All clips of tracklets, each with the row of its tracklet and no label, by whole batches.

    Every clip has the same number of frames, so a batch of so many clips takes the same memory, however long
    tracklets are. What a tracklet is compared by is the mean over its clips, which whoever ranks them normalises
    after that, and not before.

    Args:
        pictures: all frames, by row.
        tracklets: of a part of the manifest.
        view: resizing of a picture.
        settings: of clips.

    Images of a batch are (B, T, 3, H, W), or (B, 3, H, W) for T = 1.
    """

    def __init__(
        self, pictures: PictureRows, tracklets: Tracklets, view: TestView, settings: ClipSettings
    ) -> None:
        self._pictures, self._view = pictures, view
        clips = [
            start + all_clips(int(length), settings.frames, settings.stride)
            for start, length in zip(tracklets.starts, tracklets.lengths, strict=False)
        ]
        self.tracklet = np.repeat(np.arange(len(clips)), clip_counts(tracklets, settings.frames))
        """(N,) the tracklet of each of the N clips, ascending."""
        self._rows = tracklets.rows[np.concatenate(clips)]

    def __len__(self) -> int:
        return len(self._rows)

    def share(self, rank: int, world_size: int) -> Ints:
        """Return the clips of a process: those of whole tracklets, as near to 1/N of all as these allow."""
        first = np.searchsorted(self.tracklet, self.tracklet)
        mine = share(len(self), rank, world_size)
        return np.flatnonzero((first >= mine.start) & (first < mine.stop))

    def __getitems__(self, clips: Sequence[int]) -> Batch:
        shape = (len(clips), self._rows.shape[1], 3, self._view.height, self._view.width)
        images = batch_memory(shape)
        planes = images.numpy()
        with one_thread:
            for place, clip in enumerate(clips):
                for frame, row in enumerate(self._rows[clip].tolist()):
                    self._view.put(self._pictures[row], planes[place, frame])
        return unlabelled(_pictures_of_one(images), self.tracklet[clips].tolist())
