"""Look at tracklets: all clips of each, as evaluation does, and the mean of what is said of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, Unpack, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from clip3dreid.data.clip_batches import ClipBatches
from clip3dreid.data.images import TestView, to_unit
from clip3dreid.data.listing import list_pictures
from clip3dreid.data.tracklets import as_people_count
from clip3dreid.errors import InputError
from clip3dreid.inference.looking import Looking, check_looking, unseen
from clip3dreid.inference.pictures import PictureLike, planes_of
from clip3dreid.io.progress import progress as shown
from clip3dreid.model.card import ClipSize

if TYPE_CHECKING:  # a model looks by this
    from clip3dreid.inference.model import ReidModel

log = logging.getLogger(__name__)

TrackletLike = str | Path | Sequence[PictureLike] | npt.NDArray[np.uint8] | Tensor
"""The frames of one person, in order of time: a folder of them, whose names are compared as people count; a list of
pictures; an array (T, H, W, 3) of uint8; or a tensor (T, 3, H, W), uint8 or floating point 0..1."""
TrackletLikes = TrackletLike | Iterable[TrackletLike]
"""N tracklets, or one that is no list: a folder, an array or a tensor."""


Frames = list[PictureLike] | npt.NDArray[np.uint8] | Tensor
"""Of one tracklet."""


class ClipMeans:
    """The mean of vectors over the clips of each tracklet, as clips come; as evaluation has it, to which it adds up.

    Args:
        widths: name -> columns of each vector.
        tracklets: M.
    """

    def __init__(self, widths: Mapping[str, int], tracklets: int) -> None:
        self._sums = {name: torch.zeros(tracklets, width) for name, width in widths.items()}
        self.clips = torch.zeros(tracklets, dtype=torch.int64)
        """(M,) how many have come of each."""

    def add(self, rows: Tensor, vectors: Mapping[str, Tensor]) -> None:
        """Take in what is said of some clips.

        Args:
            rows: (B,) whose each is.
            vectors: name -> (B, columns) on the CPU, those of `widths`.
        """
        for name, sums in self._sums.items():
            sums.index_add_(0, rows, vectors[name].float())
        self.clips.index_add_(0, rows, torch.ones(len(rows), dtype=torch.int64))

    def means(self) -> dict[str, Tensor]:
        """Return name -> (M, columns) float32, NaN of a tracklet without clips; `joint` again of length 1."""
        made = {name: sums / self.clips[:, None] for name, sums in self._sums.items()}
        if "joint" in made:
            made["joint"] = F.normalize(made["joint"], dim=1)
        return made


class SeenTracklets(NamedTuple):
    """What was looked at."""

    vectors: dict[str, Tensor]
    """Those of the model's `widths`, (N, columns) each; NaN where no frame could be read."""
    names: list[str]
    """(N,) folders, or `tracklet 3`."""
    middle: list[Path | None]
    """(N,) file of the middle frame; None where it is none."""


def look_at_tracklets(
    model: ReidModel, tracklets: TrackletLikes, clips: ClipSize | None = None, **how: Unpack[Looking]
) -> SeenTracklets:
    """Look at tracklets.

    Args:
        model: that looks.
        tracklets: N of them; frames are read when they are looked at.
        clips: how they are cut; None: as the model was trained, and frame by frame where that was on pictures.
        how: of `Looking`, but for maps. `batch_size` counts frames.

    Raises:
        InputError: if a tracklet has no frames or is none, a frame cannot be read, or none of all can.
    """
    check_looking(how)
    if how.get("maps", False):
        raise InputError("tracklets have no maps, which are a frame's; leave maps out, or look at pictures")
    names, frames = _frames_of(tracklets)
    size = clips or model.clips
    batches = ClipBatches(
        _Frames(frames, names, model.view).planes,
        np.arange(sum(map(len, frames))),
        _starts(frames),
        frames=size.frames,
        stride=size.stride,
        batch=how.get("batch_size", 64),
        skip=how.get("on_error", "fail") == "skip",
    )
    # Somebody may have called train(), and one batch would then change the running statistics.
    model.eval()
    # What is in memory would be copied to each process.
    files = all(
        isinstance(one, list) and all(isinstance(frame, str | Path) for frame in one) for one in frames
    )
    workers = min(how.get("workers", 0), max(0, len(batches) - 1)) if files else 0
    loader: Any = DataLoader(batches, batch_size=None, num_workers=workers)
    means, lost, done = ClipMeans(model.widths, len(frames)), [], 0
    watch = shown("looking at clips", len(batches)) if how.get("progress") else nullcontext(unseen)
    with watch as update, torch.no_grad():
        for batch in loader:
            lost += batch.lost
            if len(batch.rows):
                seen = model(to_unit(batch.images.to(model.device)), flip=how.get("flip")).cpu()
                means.add(batch.rows, {name: getattr(seen, name) for name in model.widths})
            update(done := done + 1)
    if lost:
        tracklet, row, reason = lost[0]
        place = f"frame {row - int(_starts(frames)[tracklet])} of {names[tracklet]}"
        log.warning(
            "%d of %d frames could not be read, first %s: %s", len(lost), sum(map(len, frames)), place, reason
        )
        if not bool(means.clips.any()):
            raise InputError(f"no frame could be read, first {place}: {reason}; give others")
    middles = [one[len(one) // 2] for one in frames]
    return SeenTracklets(
        means.means(), names, [Path(one) if isinstance(one, str | Path) else None for one in middles]
    )


def _starts(frames: Sequence[Frames]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(list(map(len, frames)))]).astype(np.int64)


class _Frames:
    """Frames of all tracklets by row, each made what a model sees when it is asked for."""

    def __init__(self, frames: Sequence[Frames], names: Sequence[str], view: TestView) -> None:
        self._frames, self._names, self._view = frames, names, view
        self._starts = _starts(frames)

    def planes(self, row: int) -> Tensor:
        """Return a frame, (3, H, W)."""
        tracklet = int(np.searchsorted(self._starts, row, "right")) - 1
        frame = row - int(self._starts[tracklet])
        name = f"frame {frame} of {self._names[tracklet]}"
        return planes_of(self._frames[tracklet][frame], name, self._view)


def _frames_of(tracklets: TrackletLikes) -> tuple[list[str], list[Frames]]:
    """Return what each tracklet is called, and its frames."""
    alone = isinstance(tracklets, str | Path) or (_is_array(tracklets) and tracklets.ndim == 4)
    listed = [tracklets] if alone else list(cast("Iterable[TrackletLike]", tracklets))
    names: list[str] = []
    frames: list[Frames] = []
    for number, one in enumerate(listed):
        name = f"tracklet {number}"
        made: Frames
        if isinstance(one, str | Path):
            name, made = str(one), _folder(Path(one).expanduser())
        elif _is_array(one):
            if one.ndim != 4:
                raise InputError(
                    f"{name} has shape {tuple(one.shape)}; a tracklet is an array (T, H, W, 3), a tensor "
                    "(T, 3, H, W) or a list of pictures"
                )
            made = one
        elif isinstance(one, Iterable):
            made = list(cast("Iterable[PictureLike]", one))
        else:
            raise InputError(
                f"{name} is a {type(one).__name__}; a tracklet is a folder of frames, a list of pictures, an array "
                "(T, H, W, 3) or a tensor (T, 3, H, W)"
            )
        if not len(made):
            raise InputError(f"{name} has no frames; give one or more")
        names.append(name)
        frames.append(made)
    return names, frames


def _is_array(one: Any) -> TypeGuard[npt.NDArray[np.uint8] | Tensor]:
    return isinstance(one, np.ndarray | Tensor)


def _folder(folder: Path) -> list[PictureLike]:
    """Return the frames of a folder, in order of time."""
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder; a tracklet is a folder of frames, and pictures that are one are a list in the "
            "list of tracklets"
        )
    listing = list_pictures(folder)
    paths = listing.table["path"].to_list()
    if len(parents := sorted({str(Path(path).parent) for path in paths})) > 1:
        raise InputError(
            f"{folder} has frames in {len(parents)} folders, first {parents[0]} and {parents[1]}; a tracklet is one "
            "folder of frames: give each of them"
        )
    return [listing.root / path for path in sorted(paths, key=as_people_count)]
