"""Which frames of a tracklet make a clip, in training and in evaluation.

Source: Gu et al., CVPR 2022, released code (Simple-CCReID), which published scores of CCVID rest on; one frame of
each segment: Wang et al., ECCV 2016 (TSN).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip3dreid.data.images import TestView, TrainView
from clip3dreid.data.picture_batches import batch_memory, labelled, unlabelled
from clip3dreid.data.tracklets import Tracklets
from clip3dreid.io.checks import Count, Positive, check
from clip3dreid.io.opencv import one_thread
from clip3dreid.io.pictures import Pixels
from clip3dreid.types import Batch

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


Read = Callable[[int], Pixels]
"""From a row of the table of frames to its picture, (h, w, 3) uint8 RGB."""


class TrainClips(Dataset[Batch]):
    """Augmented clips with their class indices, one of each piece, by whole batches.

    All frames of a clip are augmented by one seed: the same crop, mirroring, erasing and colours. Frames of differing
    sizes become one size before.

    Args:
        read: see `Read`.
        tracklets: of the training table.
        person: (M,) int64 class indices of the tracklets.
        clothes: (M,) int64 class indices, -1 unknown.
        camera: (M,) int64, -1 unknown.
        view: augmentation of a picture.
        settings: of clips.

    Attributes:
        tracklet: (N,) the tracklet of each of the N pieces.

    It is indexed by `(piece, seed)`, so that what is drawn never depends on which worker draws. Images of a batch are
    (B, T, 3, H, W) and its rows pieces; the view of a teacher is the middle frame's, (B, 3, H, W), as the map that
    guides see by default.
    """

    def __init__(
        self,
        read: Read,
        tracklets: Tracklets,
        person: Ints,
        clothes: Ints,
        camera: Ints,
        view: TrainView,
        settings: ClipSettings,
    ) -> None:
        self._read, self._view, self._settings = read, view, settings
        self._rows = tracklets.rows
        lengths = np.diff(tracklets.starts)
        pieces = [
            (number, start + piece.start, len(piece))
            for number, (start, length) in enumerate(zip(tracklets.starts, lengths, strict=False))
            for piece in cut(int(length), settings.piece)
        ]
        self.tracklet, self._first, self._lengths = np.array(pieces, dtype=np.int64).reshape(-1, 3).T
        self._labels = np.stack([person, clothes, camera], axis=1)[self.tracklet]

    @property
    def looped(self) -> int:
        """Return how many pieces are shorter than a clip."""
        return int((self._lengths < self._settings.frames).sum())

    def __len__(self) -> int:
        return len(self.tracklet)

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> Batch:
        shape = (len(indices), self._settings.frames, 3, self._view.height, self._view.width)
        images = batch_memory(shape)
        views = batch_memory((shape[0], *shape[2:])) if self._view.keep_view else None
        planes, before = images.numpy(), None if views is None else views.numpy()
        with one_thread:
            for place, (piece, seed) in enumerate(indices):
                for frame, row in enumerate(self._drawn(piece, seed)):
                    view = None if before is None or frame != shape[1] // 2 else before[place]
                    self._view.put(self._read(int(row)), seed, planes[place, frame], view)
        return labelled(images, self._labels, [piece for piece, _ in indices])._replace(view=views)

    def _drawn(self, piece: int, seed: int) -> Ints:
        """Return the rows of a clip's frames."""
        # The augmentation's own draws follow from the seed too: this one stands apart from them.
        rng = np.random.default_rng([seed, 1])
        chosen = random_clip(int(self._lengths[piece]), self._settings, rng)
        rows: Ints = self._rows[self._first[piece] + chosen]
        return rows


class EvaluationClips(Dataset[Batch]):
    """All clips of tracklets, each with the row of its tracklet and no label, by whole batches.

    Every clip has the same number of frames, so a batch of so many clips takes the same memory, however long
    tracklets are; `average_clips` puts together what belongs together.

    Args:
        read: see `Read`.
        tracklets: of a part of the manifest.
        view: resizing of a picture.
        settings: of clips.
    """

    def __init__(self, read: Read, tracklets: Tracklets, view: TestView, settings: ClipSettings) -> None:
        self._read, self._view = read, view
        lengths = np.diff(tracklets.starts)
        self.looped = int((lengths % settings.frames > 0).sum())
        """How many tracklets end in a clip that is looped."""
        clips = [
            start + all_clips(int(length), settings.frames, settings.stride)
            for start, length in zip(tracklets.starts, lengths, strict=False)
        ]
        self.tracklet = np.repeat(np.arange(len(clips)), [len(one) for one in clips])
        """(N,) the tracklet of each of the N clips."""
        self._rows = tracklets.rows[np.concatenate(clips)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, clips: Sequence[int]) -> Batch:
        shape = (len(clips), self._rows.shape[1], 3, self._view.height, self._view.width)
        images = batch_memory(shape)
        planes = images.numpy()
        with one_thread:
            for place, clip in enumerate(clips):
                for frame, row in enumerate(self._rows[clip]):
                    self._view.put(self._read(int(row)), planes[place, frame])
        return unlabelled(images, self.tracklet[clips].tolist())


def average_clips(features: Tensor, tracklet: Tensor | Sequence[int], tracklets: int) -> Tensor:
    """Average features of clips over each tracklet; whoever ranks them normalises after that, and not before.

    Args:
        features: (N, D), of any floating type.
        tracklet: (N,) whose clip each is.
        tracklets: M, how many there are.

    Returns:
        (M, D) float32.

    Raises:
        ValueError: if a tracklet has no clip.
    """
    rows = torch.as_tensor(tracklet, device=features.device)
    counts = torch.bincount(rows, minlength=tracklets)
    if len(counts) > tracklets or not bool(counts.all()):
        raise ValueError(f"{tracklets} tracklets need clips each, and these are of {int((counts > 0).sum())}")
    sums = features.new_zeros(tracklets, features.shape[1], dtype=torch.float32)
    return sums.index_add_(0, rows, features.float()) / counts[:, None]
