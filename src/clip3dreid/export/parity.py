"""How close an exported file is to the model, and how fast."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.data.images import TestView, to_unit
from clip3dreid.data.listing import list_pictures
from clip3dreid.export.formats import Array, Opened, prepare
from clip3dreid.export.settings import ExportSettings
from clip3dreid.inference.model import ReidModel
from clip3dreid.io.pictures import read_rgb

COSINE = 1 - 1e-4
"""Least cosine, for each picture and output, of what a file and the model make of it."""
RELATIVE = 1e-3
"""Largest difference, as a fraction of the output's largest value: features may all point the same way."""
BATCHES = (1, 2, 5)
"""Pictures, or clips, in a batch when a file is checked: files take any number of them."""
MOST_PICTURES = 32


class Parity(NamedTuple):
    """How close a file is to the model, over all pictures and outputs."""

    cosine: float
    """The least."""
    difference: float
    """The largest, absolute."""
    relative: float
    """The largest, as a fraction of the largest value of the same output."""
    pictures: int
    """Clips, of a file that takes these."""

    @property
    def good(self) -> bool:
        """Return whether the file may be used for the model; NaN is not."""
        return self.cosine >= COSINE and self.relative <= RELATIVE


def drawn(count: int, height: int, width: int) -> Array:
    """Return pictures to compare on, always the same: by turns smooth ones with a figure in them, and noise.

    Args:
        count: N.
        height: H, in pixels.
        width: W, in pixels.

    Returns:
        (N, 3, H, W) uint8.
    """
    pictures = []
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    for number in range(count):
        rng = np.random.default_rng(number)
        if number % 2:
            pictures.append(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
            continue
        colours = rng.uniform(0, 1, (5, 3, 1, 1))
        slope = rng.uniform(0, 1)
        ramp = slope * rows + (1 - slope) * columns
        picture = colours[0] * ramp + colours[1] * (1 - ramp)
        # Head, trunk, legs: ellipses with soft edges, by centre and radius down the picture.
        for colour, (centre, radius) in zip(
            colours[2:], ((0.15, 0.1), (0.4, 0.2), (0.78, 0.24)), strict=True
        ):
            wide = rng.uniform(0.15, 0.4)
            inside = 1 - ((rows - centre) / radius) ** 2 - ((columns - rng.uniform(0.4, 0.6)) / wide) ** 2
            weight = 1 / (1 + np.exp(-8 * inside))
            picture = picture * (1 - weight) + colour * weight
        pictures.append((255 * picture).round().astype(np.uint8))
    return np.stack(pictures)


def crops(folder: Path, height: int, width: int, square: bool = False) -> Array:
    """Return real pictures to compare on: up to 32, spread evenly over a folder and what is below it.

    Args:
        folder: of pictures of single people.
        height: H, in pixels, that they are resized to.
        width: W, in pixels.
        square: as in `TestView`.

    Returns:
        (N, 3, H, W) uint8.

    Raises:
        InputError: if there is none, or one cannot be read.
    """
    listing = list_pictures(folder)
    found = listing.table["path"]
    rows = np.unique(np.linspace(0, len(found) - 1, MOST_PICTURES).round().astype(int))
    view = TestView(height, width, square)
    advice = "replace it, or give another pictures=FOLDER"
    return np.stack([view(read_rgb(listing.root / found[int(row)], advice)) for row in rows])


def as_clips(pictures: Array, frames: int) -> Array:
    """Put pictures together to clips, in their order; the last one is filled up from the first on.

    Args:
        pictures: (N, 3, H, W), at least one.
        frames: T, of a clip; 1: they stay pictures.

    Returns:
        (ceil(N / T), T, 3, H, W); (N, 3, H, W) for T = 1.
    """
    if frames == 1:
        return pictures
    clips = -(-len(pictures) // frames)
    rows = np.arange(clips * frames) % len(pictures)
    return pictures[rows].reshape(clips, frames, *pictures.shape[1:])


def compare(opened: Opened, model: ReidModel, settings: ExportSettings, pictures: Array) -> Parity:
    """Compare a file with the model, batch by batch, each fed as its own contract asks.

    Args:
        opened: the file.
        model: what it was made from.
        settings: what was asked for.
        pictures: (N, 3, H, W) uint8 of the model's size, or clips (N, T, 3, H, W).
    """
    cosine, difference, relative = 1.0, 0.0, 0.0
    seen = _seen(model, torch.from_numpy(pictures), settings)
    wanted: dict[str, Array] = {}
    for name in settings.outputs:
        value = seen[name]
        wanted[name] = (F.normalize(value, dim=1) if settings.unit_length else value).double().numpy()
    for part in _batches(len(pictures)):
        given = opened.run(prepare(pictures[part], opened.contract))
        for output, whole in wanted.items():
            ours, theirs = whole[part], given[output].astype(np.float64)
            lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            # numpy's minimum and maximum pass NaN on.
            cosine = float(np.minimum(cosine, ((ours * theirs).sum(1) / lengths).min()))
            off = np.abs(ours - theirs).max()
            difference = float(np.maximum(difference, off))
            relative = float(np.maximum(relative, off / np.abs(whole).max()))
    return Parity(cosine, difference, relative, len(pictures))


def _seen(model: ReidModel, images: Tensor, settings: ExportSettings) -> dict[str, Tensor]:
    """Return the outputs in the model's own way, which knows nothing of the graph; it normalises by itself."""
    if images.ndim == 4:
        found = {"embedding": model.embed(images, flip=settings.flip)}
        return found | ({"joint": model.joint(images)} if "joint" in settings.outputs else {})
    with torch.no_grad():
        # Clip by clip: a batch of long ones would take the memory of as many pictures.
        clips = [model.forward(to_unit(clip[None]), flip=settings.flip) for clip in images]
    return {name: torch.cat([getattr(clip, name) for clip in clips]) for name in settings.outputs}


def _batches(count: int) -> Iterator[slice]:
    """Yield consecutive pieces of 1, 2 and 5 pictures by turns; the last may be smaller."""
    start = 0
    for size in itertools.cycle(BATCHES):
        if start >= count:
            return
        yield slice(start, min(start + size, count))
        start += size


def latency(runners: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the median time of each, in seconds, taken by turns: what else the machine does hits all alike.

    Args:
        runners: what to run, by name.
        seconds: when to stop; the first round warms up, unless it took that long.
    """
    taken: dict[str, list[float]] = {name: [] for name in runners}
    begin = time.perf_counter()
    while True:
        for name, run in runners.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
        if time.perf_counter() - begin >= seconds:
            break
    return {name: statistics.median(values[1:] or values) for name, values in taken.items()}
