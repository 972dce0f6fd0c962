"""Pictures: from RGB to what a network sees.

The base recipe's augmentation (Simple-CCReID's: resize, enlarge and crop, mirror, erase) is written here
and not taken from albumentations 2.0.8: its `Erasing` never covers more than 15 % of a crop twice as high as
wide, its down-scaling is an area filter where published numbers rest on Pillow's antialiased bilinear one,
and it takes about twice the time. `TrainView.extra` adds its transforms by config; nothing else imports it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from copy import copy
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from clip3dreid.data.resizing import fit, resize
from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.io.opencv import one_thread
from clip3dreid.io.pictures import Pixels, read_rgb

if TYPE_CHECKING:
    import albumentations

ERASE_ATTEMPTS = 100

ADVICE = "replace it, or leave it out with data.on_error=skip"
"""What a run on a data set can do about a picture that cannot be read."""


class Draw(NamedTuple):
    """What `TrainView` does to one picture once it is resized, in this order; whole numbers, in pixels."""

    enlarged: bool
    """Whether it is enlarged, and a window cut out of that."""
    down: int
    """The window's first row."""
    right: int
    """The window's first column."""
    flipped: bool
    """Whether it is mirrored left and right."""
    top: int
    """Of the rectangle that is erased."""
    left: int
    height: int
    """0: nothing is erased."""
    width: int


class PictureRows(Protocol):
    """Pictures by row: an array of them, files, or a pack."""

    def __getitem__(self, row: int, /) -> Pixels:
        """Return (h, w, 3) uint8 RGB, which is not to be changed."""
        ...


def pack_paths(paths: Sequence[Path]) -> npt.NDArray[np.bytes_]:
    """Pack paths into one array: a forked worker that touches 100,000 objects copies all of their memory."""
    return np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)


class FileRows:
    """Pictures that are read from their files each time.

    Args:
        paths: N files.
        advice: what to do about a picture that cannot be read, for the message.
    """

    def __init__(self, paths: Sequence[Path], advice: str = ADVICE) -> None:
        self._paths = pack_paths(paths)
        self._advice = advice

    def __getitem__(self, row: int) -> Pixels:
        """Return (h, w, 3) uint8 RGB.

        Raises:
            UnreadablePicture: if it cannot be read.
        """
        return read_rgb(os.fsdecode(self._paths[row]), self._advice)


def _check_size(square: bool, height: int, width: int) -> None:
    for key, value in {"height": height, "width": width}.items():
        check_number(f"datamodule.{key}", value, Range(1), whole=True)
    choose("datamodule.square", square, (True, False))
    if square and height != width:
        raise InputError(
            f"datamodule.square=true pads pictures to squares, and datamodule.height and datamodule.width say "
            f"{height}x{width}; make the two equal, or set datamodule.square=false"
        )


def _split(rgb: Pixels, planes: Pixels) -> None:
    """Copy contiguous (H, W, 3) to (3, H, W); several times faster than numpy's transposed copy."""
    cv2.split(rgb, [planes[0], planes[1], planes[2]])


class _Scratch(threading.local):
    """Memory for what lies between two steps, a thread's own: new memory would take longer than most steps."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, int], Pixels] = {}

    def get(self, height: int, width: int) -> Pixels:
        """Return (height, width, 3) uint8, the same each time."""
        if (height, width) not in self._pieces:
            self._pieces = {**self._pieces, (height, width): np.empty((height, width, 3), np.uint8)}
        return self._pieces[height, width]


_ENLARGED, _READY = _Scratch(), _Scratch()


def keep(
    paths: Sequence[Path],
    height: int,
    width: int,
    workers: int,
    square: bool = False,
    advice: str = ADVICE,
) -> Pixels:
    """Decode and resize pictures once for all epochs: (N, H, W, 3) uint8, 3 H W bytes each.

    What `TrainView` makes of them is the same to the bit, since resizing is the first thing it does. Workers that are
    forked share the memory.

    Args:
        paths: N files.
        height: H, in pixels.
        width: W, in pixels.
        workers: threads (decoders let go of Python's lock).
        square: of the view that they are kept for.
        advice: what to do about a picture that cannot be read, for the message.

    Raises:
        UnreadablePicture: if one cannot be read.
    """
    kept = np.empty((len(paths), height, width, 3), np.uint8)

    def put(row: int) -> None:
        kept[row] = fit(read_rgb(paths[row], advice), height, width, square)

    with one_thread, ThreadPool(max(workers, 1)) as pool:
        pool.map(put, range(len(paths)), chunksize=16)
    return kept


class TestView:
    """What evaluation sees: the picture, resized.

    Args:
        height: H, in pixels.
        width: W, in pixels.
        square: pad the picture with black to a square before it is resized, so that it keeps its proportions.

    Raises:
        InputError: if it is to be padded to a square, and H is not W.
    """

    __test__ = False  # pytest takes the name for a test

    def __init__(self, height: int, width: int, square: bool = False) -> None:
        _check_size(square, height, width)
        self.height = height
        self.width = width
        self.square = square

    def __call__(self, rgb: Pixels) -> Pixels:
        """Resize a picture.

        Args:
            rgb: (h, w, 3) uint8.

        Returns:
            (3, H, W) uint8.
        """
        planes = np.empty((3, self.height, self.width), np.uint8)
        with one_thread:
            self.put(rgb, planes)
        return planes

    def put(self, rgb: Pixels, planes: Pixels) -> None:
        """Resize a picture into (3, H, W); whoever calls it keeps OpenCV to one thread (`one_thread`)."""
        _split(fit(rgb, self.height, self.width, self.square), planes)


class TrainView:
    """The base recipe's augmentation, a function of the picture and a seed alone.

    Args:
        height: H, in pixels.
        width: W, in pixels.
        enlarge: factor, at least 1, that the resized picture grows by before an H x W window is cut out.
        enlarge_probability: of enlarging and cropping; otherwise the whole picture stays.
        flip_probability: of mirroring left and right.
        erase_probability: of erasing one rectangle.
        erase_area: smallest and largest area of the rectangle as a fraction of the picture, drawn uniformly.
        erase_aspect: smallest and largest height / width of the rectangle, drawn uniformly.
        erase_fill: RGB in 0..1 that the rectangle is filled with.
        keep_view: whether to return the picture before erasing as well, for a teacher.
        extra: albumentations transforms applied between mirroring and erasing; they must keep the size.
        square: as in `TestView`; padding comes first, so that what is cut, extra and erased counts in the square.

    Raises:
        InputError: if a value is out of its range, it is to be padded to a square and H is not W, or `extra`
            changes the picture's shape or type.

    Source: Gu et al., "Clothes-Changing Person Re-identification with RGB Modality Only" (CVPR 2022),
    released code; erasing: Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), Algorithm 1, where
    a rectangle that does not fit is drawn again, here up to 100 times.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        enlarge: float = 1.125,
        enlarge_probability: float = 0.5,
        flip_probability: float = 0.5,
        erase_probability: float = 0.5,
        erase_area: Sequence[float] = (0.02, 0.4),
        erase_aspect: Sequence[float] = (0.3, 3.33),
        erase_fill: Sequence[float] = (0.5975, 0.5640, 0.5065),
        keep_view: bool = False,
        extra: Sequence[albumentations.BasicTransform] = (),
        square: bool = False,
    ) -> None:
        _check_size(square, height, width)
        self.height = height
        self.width = width
        self.square = square
        check_number("train_view.enlarge", enlarge, Range(1))
        self.enlarged = round(height * enlarge), round(width * enlarge)
        self.probability = enlarge_probability, flip_probability, erase_probability
        self.keep_view = keep_view
        for name, chance in zip(("enlarge", "flip", "erase"), self.probability, strict=True):
            check_number(f"train_view.{name}_probability", chance, Range(0, 1))
        ordered = len(erase_area) == 2 and 0 < erase_area[0] <= erase_area[1] < 1
        _require(ordered, "erase_area", erase_area, "two fractions in order, between 0 and 1")
        ordered = len(erase_aspect) == 2 and 0 < erase_aspect[0] <= erase_aspect[1]
        _require(ordered, "erase_aspect", erase_aspect, "two positive ratios in order")
        colour = len(erase_fill) == 3 and all(0 <= value <= 1 for value in erase_fill)
        _require(colour, "erase_fill", erase_fill, "red, green and blue within 0..1")
        self.erase_area = erase_area[0], erase_area[1]
        self.erase_aspect = erase_aspect[0], erase_aspect[1]
        self.fill = np.rint(np.multiply(erase_fill, 255)).astype(np.uint8)[:, None, None]
        self._extra = _compose(extra, height, width) if extra else None

    @property
    def has_extra(self) -> bool:
        """Return whether there are transforms beside the recipe's, which are a CPU's to do."""
        return self._extra is not None

    def keeping_view(self) -> TrainView:
        """Return the same augmentation that also returns the picture before erasing."""
        view = copy(self)
        view.keep_view = True
        return view

    def __call__(self, rgb: Pixels, seed: int) -> tuple[Pixels, Pixels | None]:
        """Augment a picture.

        Args:
            rgb: (h, w, 3) uint8.
            seed: not negative; the same picture and seed give the same result in every process.

        Returns:
            The picture, (3, H, W) uint8, and the same before erasing, or None without `keep_view`.
        """
        picture = np.empty((3, self.height, self.width), np.uint8)
        view = np.empty_like(picture) if self.keep_view else None
        with one_thread:
            self.put(rgb, seed, picture, view)
        return picture, view

    def put(self, rgb: Pixels, seed: int, picture: Pixels, view: Pixels | None) -> None:
        """Augment a picture into memory that is there; else as a call.

        Whoever calls it keeps OpenCV to one thread (`one_thread`).

        Args:
            rgb: (h, w, 3) uint8.
            seed: as of a call.
            picture: (3, H, W) for the picture.
            view: (3, H, W) for the same before erasing; None: it is not wanted.
        """
        draw = self.draw(seed)
        rgb = fit(rgb, self.height, self.width, self.square)
        if draw.enlarged:
            large = resize(rgb, *self.enlarged, _ENLARGED.get(*self.enlarged))
            rgb = large[draw.down : draw.down + self.height, draw.right : draw.right + self.width]
        if draw.flipped:
            rgb = cv2.flip(rgb, 1, _READY.get(self.height, self.width))
        elif draw.enlarged:
            ready = _READY.get(self.height, self.width)
            np.copyto(ready, rgb)
            rgb = ready
        if self._extra is not None:
            self._extra.set_random_seed(seed)
            rgb = self._extra(image=np.ascontiguousarray(rgb))["image"]
        _split(rgb, picture)
        if view is not None:
            np.copyto(view, picture)
        _, _, _, _, top, left, height, width = draw
        picture[:, top : top + height, left : left + width] = self.fill

    def draw(self, seed: int) -> Draw:
        """Draw what is done to a picture; the same seed draws the same in every process."""
        rng = np.random.default_rng(seed)
        # All are drawn whether used or not, so that changing one probability leaves the other draws alone.
        enlarge, down, right, flip, erase = rng.random(5).tolist()
        enlarge_probability, flip_probability, erase_probability = self.probability
        height, width = self.enlarged
        rectangle = self._rectangle(rng) if erase < erase_probability else (0, 0, 0, 0)
        return Draw(
            enlarge < enlarge_probability,
            int(down * (height - self.height + 1)),
            int(right * (width - self.width + 1)),
            flip < flip_probability,
            *rectangle,
        )

    def _rectangle(self, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Return top, left, height and width of what is erased; empty if no draw fitted into the picture."""
        for _ in range(ERASE_ATTEMPTS):
            area = rng.uniform(*self.erase_area) * self.height * self.width
            aspect = rng.uniform(*self.erase_aspect)
            height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if height < self.height and width < self.width:
                top = int(rng.integers(self.height - height + 1))
                left = int(rng.integers(self.width - width + 1))
                return top, left, height, width
        return 0, 0, 0, 0


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise InputError(f"train_view: {name} is {value}, but must be {wanted}")


def _compose(
    extra: Sequence[albumentations.BasicTransform], height: int, width: int
) -> albumentations.Compose:
    # Only here: the import takes over a second, and the base recipe does without.
    import albumentations

    transforms = albumentations.Compose(list(extra))
    blank = np.zeros((height, width, 3), np.uint8)
    result = transforms(image=blank)["image"]
    kept = result.shape == blank.shape and result.dtype == blank.dtype
    made = f"{result.dtype} {tuple(result.shape)}"
    _require(kept, "the result of extra", made, f"uint8 {blank.shape}: leave out transforms that change it")
    return transforms


def to_unit(images: Tensor) -> Tensor:
    """Turn bytes 0..255 into float32 0..1, on the images' device; floats are taken to be in 0..1 already.

    Args:
        images: (B, 3, H, W), uint8 or floating point.

    Returns:
        (B, 3, H, W) float32.
    """
    return images.float() if images.is_floating_point() else images.float().div_(255)
