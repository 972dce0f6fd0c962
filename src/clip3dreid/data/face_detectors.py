"""Find faces in pictures.

A detector is any picklable callable from an RGB picture to boxes; its `repr` goes into the report of a blurred copy
and tells whether an interrupted copy may be continued. Three come with the project, and none of them finds every
face: read the report, and look at the pictures in which no face was found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2

from clip3dreid.errors import InputError
from clip3dreid.io.pictures import Pixels


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


Detector: TypeAlias = Callable[[Pixels], list[Box]]
"""From an RGB picture (H, W, 3) uint8 to boxes."""


@dataclass(frozen=True)
class HaarCascade:
    """The boosted cascades that ship with OpenCV 4: nothing to download, and weak on small or turned faces.

    Attributes:
        cascades: file names in OpenCV's data folder; each sees the picture and its mirror image, since the
            profile cascade knows one side only.
        height: pictures lower than this many pixels are enlarged to it, since the cascades' window is 20 to
            24 pixels wide.
        step: factor between two scales of the search.
        neighbours: detections that must agree.
        reach: only this fraction of the height is searched, from the top: a crop's face is there, most false
            finds and most of the time are below.

    Source: Viola and Jones, "Rapid Object Detection using a Boosted Cascade of Simple Features" (CVPR 2001).
    """

    cascades: Sequence[str]
    height: int
    step: float
    neighbours: int
    reach: float

    def __call__(self, rgb: Pixels) -> list[Box]:
        """Return boxes of the faces found in `rgb`, (H, W, 3) uint8.

        Raises:
            InputError: if the OpenCV that is installed has no cascades (from version 5 on).
        """
        scale = max(self.height / len(rgb), 1.0)
        grey = cv2.cvtColor(rgb[: max(round(self.reach * len(rgb)), 1)], cv2.COLOR_RGB2GRAY)
        grey = cv2.equalizeHist(cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR))
        boxes = []
        for name in self.cascades:
            classifier = _classifier(name)
            for mirrored in (False, True):
                view = cv2.flip(grey, 1) if mirrored else grey
                faces = classifier.detectMultiScale(view, scaleFactor=self.step, minNeighbors=self.neighbours)
                for left, top, wide, high in faces:
                    left = grey.shape[1] - left - wide if mirrored else left
                    corners = (left, top, left + wide, top + high)
                    boxes.append(Box(*(round(corner / scale) for corner in corners)))
        return boxes


@functools.lru_cache
def _classifier(name: str) -> Any:
    file = Path(cv2.__file__).parent / "data" / name
    if not hasattr(cv2, "CascadeClassifier"):
        raise InputError(
            f"OpenCV {cv2.__version__} has no cascade detector any more; install 'opencv-python-headless<5', "
            "or choose detector=head_region or detector=yunet"
        )
    if not file.is_file():
        raise InputError(f"OpenCV {cv2.__version__} has no cascade {name} in {file.parent}; choose another")
    return cv2.CascadeClassifier(str(file))


@dataclass(frozen=True)
class YuNet:
    """OpenCV's small face network, whose weights the user supplies: better than the cascades on small faces.

    Attributes:
        model: ONNX file of YuNet, from the OpenCV model zoo.
        score: least confidence, 0..1.
        height: pictures lower than this many pixels are enlarged to it.

    Source: Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector" (Machine Intelligence
    Research 2023).
    """

    model: str
    score: float
    height: int

    def __call__(self, rgb: Pixels) -> list[Box]:
        """Return boxes of the faces found in `rgb`, (H, W, 3) uint8.

        Raises:
            InputError: if the model file is missing or is no such network.
        """
        height, width = rgb.shape[:2]
        scale = max(self.height / height, 1.0)
        size = round(width * scale), round(height * scale)
        network = _network(self.model, self.score)
        network.setInputSize(size)
        _, faces = network.detect(cv2.cvtColor(cv2.resize(rgb, size), cv2.COLOR_RGB2BGR))
        return [
            Box(*(round(float(corner) / scale) for corner in (left, top, left + wide, top + high)))
            for left, top, wide, high in ([] if faces is None else faces[:, :4])
        ]


@functools.lru_cache
def _network(model: str, score: float) -> Any:
    if not Path(model).is_file():
        raise InputError(
            f"detector.model={model} is not a file; fetch face_detection_yunet from the OpenCV model zoo"
        )
    try:
        return cv2.FaceDetectorYN.create(model, "", (320, 320), score)
    except cv2.error as error:
        raise InputError(f"detector.model={model} is not a YuNet in ONNX format: {error.err}") from error


@dataclass(frozen=True)
class HeadRegion:
    """No detector: the part of a tight upright crop where the head is, whatever it shows.

    It misses no head in such a crop and needs no model, but blurs hair and background too and says nothing
    about whether a face was visible.

    Attributes:
        left: edge of the region as a fraction of the width.
        right: likewise.
        top: edge as a fraction of the height.
        bottom: likewise; a standing adult's head takes an eighth of the body, and boxes leave room above it.
    """

    left: float
    right: float
    top: float
    bottom: float

    def __call__(self, rgb: Pixels) -> list[Box]:
        """Return the region's box in `rgb`, (H, W, 3) uint8."""
        height, width = rgb.shape[:2]
        corners = (self.left * width, self.top * height, self.right * width, self.bottom * height)
        return [Box(*(round(corner) for corner in corners))]
