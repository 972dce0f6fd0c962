"""Make what is behind people: scenes drawn by chance, or pictures from a folder.

A canvas is a camera's view of a place; the background of a picture is a window of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from clip3dreid.errors import InputError
from clip3dreid.io.checks import check_weights
from clip3dreid.io.pictures import SUFFIXES, Pixels, find_pictures, read_rgb
from clip3dreid.synthetic.background_scenes import KINDS, PLACES, scene

log = logging.getLogger(__name__)

SPLITS = ("train", "test")


class Backgrounds(Protocol):
    """Where canvases come from. Those of the training and the test split never show the same place."""

    def __call__(self, rng: np.random.Generator, split: str, height: int, width: int) -> Pixels:
        """Return a canvas (height, width, 3) uint8 RGB for `split` `train` or `test`, by chance."""


def canvas_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width of a canvas whose windows are about as sharp as pictures of H x W pixels."""
    return round(1.3 * height), round(3 * width)


def window(canvas: Pixels, place: tuple[float, float, float], height: int, width: int) -> Pixels:
    """Return a part of a canvas, as large as a picture.

    Args:
        canvas: (h, w, 3).
        place: across and down, 0..1 over all places that fit, and the part's height as a part of the canvas's.
        height: H, pixels.
        width: W, pixels.

    Returns:
        (H, W, 3). Its pixels are square on the canvas too; it is smaller than asked where the canvas is too narrow.
    """
    across, down, zoom = place
    rows, columns = canvas.shape[:2]
    tall = min(zoom * rows, columns * height / width)
    wide = tall * width / height
    left, top = across * (columns - wide), down * (rows - tall)
    # A shift and a scale, so that places between pixels work; averaging first where the canvas is much finer.
    shrink = max(1, round(tall / height))
    if shrink > 1:
        size = (max(1, columns // shrink), max(1, rows // shrink))
        canvas = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
        left, wide = (value * size[0] / columns for value in (left, wide))
        top, tall = (value * size[1] / rows for value in (top, tall))
    matrix = np.array(
        [[wide / width, 0, left + wide / width / 2 - 0.5], [0, tall / height, top + tall / height / 2 - 0.5]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut: Pixels = cv2.warpAffine(
        canvas, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return cut


@dataclass(frozen=True)
class Procedural:
    """Places drawn by chance; no two rngs give the same one.

    Attributes:
        kinds: how often each kind is drawn, relative to the others.

    Raises:
        InputError: if a kind is unknown, a weight is negative, or all are 0.
    """

    kinds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(PLACES, 1.0))

    def __post_init__(self) -> None:
        check_weights("backgrounds.kinds", self.kinds, KINDS)
        object.__setattr__(self, "kinds", {str(kind): float(weight) for kind, weight in self.kinds.items()})

    def __call__(self, rng: np.random.Generator, split: str, height: int, width: int) -> Pixels:
        """See `Backgrounds`. The caller's rngs must differ between the splits."""
        shares = np.cumsum(list(self.kinds.values()))
        place = np.searchsorted(shares, rng.random() * shares[-1], side="right")
        return scene(rng, height, width, list(self.kinds)[int(place)])


@dataclass(frozen=True)
class Pictures:
    """Parts of a folder's pictures; every second one (by name) belongs to the test split.

    Attributes:
        root: the folder; pictures in folders below it count too.

    Raises:
        InputError: if it is missing, or has fewer than two pictures.
    """

    root: str
    files: tuple[Path, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise InputError(f"the folder of backgrounds {root} is not there; give a folder of pictures")
        listed = find_pictures(root, f"the folder of backgrounds {root}")
        for what in listed.left_out():
            log.warning("the folder of backgrounds %s: %s", root, what)
        files = [root / path for path in listed.pictures]
        if len(files) < len(SPLITS):
            raise InputError(
                f"the folder of backgrounds {root} has {len(files)} pictures, and training and test need one each; "
                f"add some ({', '.join(sorted(SUFFIXES))})"
            )
        object.__setattr__(self, "files", tuple(files))

    def __call__(self, rng: np.random.Generator, split: str, height: int, width: int) -> Pixels:
        """See `Backgrounds`.

        Raises:
            InputError: if a picture cannot be read.
        """
        files = self.files[SPLITS.index(split) :: len(SPLITS)]
        path = files[int(rng.integers(len(files)))]
        picture = Image.fromarray(read_rgb(path, "replace or remove this background"))
        # The largest part with the canvas's shape, at a place by chance.
        tall = min(picture.height, picture.width * height / width)
        wide = tall * width / height
        left, top = rng.random(2) * [picture.width - wide, picture.height - tall]
        return np.asarray(
            picture.resize((width, height), Image.Resampling.BILINEAR, (left, top, left + wide, top + tall))
        )
