"""Look at a run's tracklets as its evaluation does, clip by clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from clip3dreid.data.clips import ClipSettings
from clip3dreid.data.evaluation_sets import EvaluationSet
from clip3dreid.data.images import FileRows, to_unit
from clip3dreid.data.tracklets import Tracklets
from clip3dreid.inference.looking import Looking
from clip3dreid.inference.model import Outputs, ReidModel
from clip3dreid.inference.tracklets import look_at_tracklets
from clip3dreid.model.card import ClipSize


@dataclass(frozen=True)
class TestTracklets:
    """Queries and gallery that are tracklets, with their frames.

    Attributes:
        root: of the data set.
        read: (F,) paths of all frames.
        together: which of them belong to each of the M tracklets, queries first.
        size: of clips, as the model was trained on.
    """

    __test__ = False  # no test, whatever pytest thinks of the name

    root: Path
    read: pl.Series
    together: Tracklets
    size: ClipSettings

    @cached_property
    def _pictures(self) -> FileRows:
        return FileRows([self.root / path for path in self.read])

    def look(
        self,
        model: ReidModel,
        rows: Sequence[int] | None = None,
        *,
        flip: bool | None = None,
        batch: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> Outputs:
        """Compute what a model says of tracklets: the mean over the clips of each.

        Args:
            model: trained on such clips.
            rows: R of the tracklets; None: all.
            flip: look at mirror images too.
            batch: frames at a time.
            workers: processes that decode.
            progress: show a bar.

        Returns:
            On the CPU, R rows each: `embedding`, `joint` of length 1, and `betas`.
        """
        wanted = list(range(len(self.together.lengths))) if rows is None else list(rows)
        # A tracklet that stands twice is looked at once.
        once = sorted(set(wanted))
        paths = self.read.to_list()
        frames = [[self.root / paths[frame] for frame in self.together.frames(row).tolist()] for row in once]
        how: Looking = {"flip": flip, "batch_size": batch, "workers": workers, "progress": progress}
        vectors = look_at_tracklets(model, frames, ClipSize(**self.size.size), **how).vectors
        again = np.searchsorted(once, wanted)
        made = {name: of_all[again] for name, of_all in vectors.items()}
        return Outputs(made["embedding"], made.get("joint"), made.get("betas"))

    def around_middle(self, model: ReidModel, rows: Sequence[int]) -> Tensor:
        """Return the clip around each tracklet's middle frame, which stands at T // 2.

        Args:
            model: whose view resizes frames.
            rows: R of the tracklets.

        Returns:
            (R, T, 3, H, W) RGB 0..1, on the model's device; (R, 3, H, W) for T = 1.
        """
        clips = []
        for row in rows:
            frames = self.together.frames(row)
            chosen = frames[middle_clip(len(frames), self.size.frames, self.size.stride)]
            clips.append(np.stack([model.view(self._pictures[frame]) for frame in chosen.tolist()]))
        images = to_unit(torch.from_numpy(np.stack(clips)).to(model.device))
        return images[:, 0] if self.size.frames == 1 else images

    def ends(self, row: int) -> list[tuple[Path, int]]:
        """Return the first and the last frame of a tracklet, with their numbers from 1, but for the middle one."""
        frames = self.together.frames(row)
        numbers = {0: 0, len(frames) - 1: 0}
        numbers.pop(len(frames) // 2, None)
        return [(self.root / self.read[int(frames[number])], number + 1) for number in numbers]


def middle_clip(length: int, frames: int, stride: int) -> npt.NDArray[np.int64]:
    """Return a clip around a tracklet's middle frame, number `length` // 2.

    Args:
        length: of the tracklet.
        frames: T, of a clip.
        stride: of a clip; the largest smaller one where the tracklet is too short for it. One that is shorter than a
            clip is looped.

    Returns:
        (T,) which frames, counted from 0.
    """
    stride = max(1, min(stride, length // frames))
    return (length // 2 + stride * (np.arange(frames) - frames // 2)) % length


def tracklets_of(root: Path, found: EvaluationSet, size: ClipSettings | None) -> TestTracklets | None:
    """Return the tracklets of an evaluation set of a data set; None where it is one of pictures.

    Args:
        root: of the data set.
        found: its queries and gallery.
        size: of clips.
    """
    if found.tracklets is None or size is None:
        return None
    return TestTracklets(root, found.read, found.tracklets, size)
