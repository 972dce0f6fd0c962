"""Say which boxes of a detector or tracker are looked at, checked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from clip3dreid.io.checks import Count, Range, check

BoxFormat = Literal["mot", "coco", "supervision", "yolo"]
"""MOTChallenge's text, COCO's JSON, the table of supervision's `CSVSink`, YOLO's text for each frame."""


@dataclass(frozen=True)
class Boxes:
    """Boxes of people in frames, in a file of a detector or tracker; they stand wherever pictures may.

    Args:
        path: the file; of YOLO the folder with a text for each frame, of MOTChallenge the sequence's folder too.
        format: how it is written; None: told by its content and name.
        frames: folder of the frames; None: where the format has it by custom.
        classes: names or numbers of the classes that are taken; None: people.
        least_confidence: of a box that is taken; None: any will do.
        least_size: pixels of the shorter side of what a frame shows of a box.
        first_frame: number of the first frame in a table that names no files.

    Raises:
        InputError: if a value is none of these.

    Example:
        >>> from clip3dreid import Boxes
        >>> boxes = Boxes("MOT17-02/det/det.txt", least_confidence=0.5, least_size=20)
    """

    path: Path | str
    format: BoxFormat | None = None
    frames: Path | str | None = None
    classes: tuple[str | int, ...] | None = None
    least_confidence: float | None = None
    least_size: Annotated[float, Range(0)] = 0
    first_frame: Count = 0

    def __post_init__(self) -> None:
        check(self, "boxes.")

    @property
    def place(self) -> Path:
        """Return where the boxes are."""
        return Path(self.path).expanduser()

    @property
    def folder(self) -> Path | None:
        """Return where the frames are said to be."""
        return None if self.frames is None else Path(self.frames).expanduser()
