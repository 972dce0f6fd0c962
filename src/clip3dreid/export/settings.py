"""Settings of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clip3dreid.errors import InputError
from clip3dreid.inference.parts import Feature, as_feature
from clip3dreid.io.checks import Positive, Seconds, check


@dataclass(frozen=True)
class ExportSettings:
    """Say what exported files take and give, and how they are checked.

    Args:
        outputs: `embedding`, `joint` (see `ReidModel.joint`), or both.
        feature: what `embedding` is made of, anything that `inference.parts.as_feature` takes; None: the model's own.
        flip: look at the mirror image too.
        unit_length: embeddings of length 1; `joint` always is.
        normalise: `inside` the file, or `outside`, by the caller.
        input: `float32`, values 0..1, or `uint8`, bytes 0..255.
        pictures: folder of crops to compare files and model on, besides drawn pictures.
        timing: seconds to measure speed for, at each size of batch; 0: not at all.
        threads: of torch and of onnxruntime, while files are checked and timed.

    Raises:
        InputError: if a value is none of these.
    """

    outputs: tuple[Literal["embedding", "joint"], ...] = ("embedding",)
    feature: Feature | None = None
    flip: bool = True
    unit_length: bool = False
    normalise: Literal["inside", "outside"] = "inside"
    input: Literal["float32", "uint8"] = "float32"
    pictures: Path | None = None
    timing: Seconds = 5.0
    threads: Positive = 1

    def __post_init__(self) -> None:
        check(self)
        if self.feature is not None:
            object.__setattr__(self, "feature", as_feature(self.feature))
        if not self.outputs or len(set(self.outputs)) < len(self.outputs):
            raise InputError("outputs must name at least one output, each once, as outputs=[embedding]")
        if self.normalise == "outside" and self.input == "uint8":
            raise InputError("bytes cannot be normalised outside; give input=float32 or normalise=inside")
        if self.pictures is not None and not self.pictures.is_dir():
            raise InputError(
                f"pictures={self.pictures} is no folder; give one of person crops, or leave it out"
            )
