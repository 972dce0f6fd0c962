"""Settings of a blurred copy, checked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from clip3dreid.io.checks import Count, Range, check


@dataclass(frozen=True)
class BlurSettings:
    """How faces are blurred, and how the copy is made.

    Attributes:
        margin: how far the blur reaches beyond a box on each side, as a fraction of its width and height.
        strength: standard deviation of the Gaussian kernel, as a fraction of the longer side of what is blurred.
        workers: processes; 0 works in this one. The copy does not depend on it.
        on_error: `fail` at a picture that cannot be read, or `skip` it: leave it out of the copy and count.
        overwrite: begin anew where the folder holds another copy. Only the files that this copy lists are removed,
            and where another file would be written over it is refused all the same.

    Raises:
        InputError: if a value is none of these.
    """

    margin: Annotated[float, Range(0)] = 0.1
    strength: Annotated[float, Range(0, above=True)] = 0.2
    workers: Count = 4
    on_error: Literal["fail", "skip"] = "fail"
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        check(self)
