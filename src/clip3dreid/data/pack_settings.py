"""Settings of a pack, checked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Count, Positive, check


@dataclass(frozen=True)
class PackSettings:
    """How the pictures of data sets are packed.

    Attributes:
        out: folder of the pack; what is there of the same is kept.
        height: H of the pictures, in pixels: that of the trainings it is for (`datamodule.height`).
        width: W of them.
        square: pad pictures with black to squares before they are resized, as `datamodule.square` does.
        workers: processes; 0 works in this one. The pack does not depend on it.
        verify: make nothing; compare every byte of a pack, and its files with those on disk.

    Raises:
        InputError: if a value is none of these, or H is not W though pictures are padded to squares.
    """

    out: Path
    height: Positive = 384
    width: Positive = 192
    square: bool = False
    workers: Count = 4
    verify: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        check(self)
        if self.square and self.height != self.width:
            raise InputError(
                f"square=true pads pictures to squares, and height and width say {self.height}x{self.width}; make "
                "the two equal, or set square=false"
            )
