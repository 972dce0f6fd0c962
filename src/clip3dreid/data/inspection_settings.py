"""Settings of an inspection, checked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clip3dreid.io.checks import Count, Seed, check


@dataclass(frozen=True)
class InspectionSettings:
    """How a data set is inspected.

    Attributes:
        decode: decode every picture in full, which finds truncated files; otherwise only headers are read.
        workers: threads that read pictures.
        seed: of the draw of held-out people.
        out: JSON file for everything that is printed; None: none.
        manifest: Parquet file for the manifest; None: none.
        sheet: picture of some people, a strip of frames of each; None: none.

    Raises:
        InputError: if a value is none of these.
    """

    decode: bool = True
    workers: Count = 4
    seed: Seed = 1
    out: Path | None = None
    manifest: Path | None = None
    sheet: Path | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check(self)
