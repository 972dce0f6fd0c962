"""Hold what a training is told of its guides, and `clip3dreid label` of its labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Count, Positive, Seed, check

Level = Literal["person", "image"]
"""Whose words labels are: a person's, or each picture's by itself."""
Calibration = Literal["zscore", "none"]
"""Of a word's scores over the training pictures; `none` leaves similarities as they are."""
TeacherCache = Literal["disk", "memory", "off", "off_erased"]
"""Where the teacher's embeddings are kept; `off` and `off_erased` have it look at every augmented picture."""
FRESH: tuple[TeacherCache, ...] = ("off", "off_erased")
"""Without a cache: the augmented picture before erasing, or the very one that the student sees."""


def check_kept(cache: str) -> None:
    """Check that a cache keeps embeddings, for what needs each of them once and for all.

    Raises:
        InputError: if it is one of `FRESH`, or none that there is.
    """
    if cache not in ("memory", "disk"):
        raise InputError(f"model.teacher.cache={cache} keeps nothing; choose memory or disk")


@dataclass(frozen=True)
class TeacherUse:
    """Say where a teacher's embeddings of the training pictures are kept.

    Args:
        cache: `disk`: each picture is embedded once, as it is on disk; `memory`: once a run; else at every step.
        cache_dir: of `disk`; one for a data set, further data sets lie beside it under their names.

    Raises:
        InputError: if a value is none of these.
    """

    cache: TeacherCache = "disk"
    cache_dir: Path = Path("cache/teacher")

    def __post_init__(self) -> None:
        check(self, "model.teacher.")


@dataclass(frozen=True)
class LabelSettings:
    """Say which words guide a training.

    Args:
        path: labels that `clip3dreid label` wrote, perhaps edited; None: the teacher chooses now.
        calibration: of its scores.
        level: whose words it chooses.
        tokens: `descriptor`: one text token a word; `words`: those of the sentence that says all of them.
        shuffled: a control: everybody gets somebody else's words.

    Raises:
        InputError: if a value is none of these.
    """

    path: Path | None = None
    calibration: Calibration = "zscore"
    level: Level = "person"
    tokens: Literal["descriptor", "words"] = "descriptor"
    shuffled: bool = False

    def __post_init__(self) -> None:
        check(self, "labels.")


@dataclass(frozen=True)
class BodySettings:
    """Say which textureless bodies guide a training.

    Args:
        root: folder of `clip3dreid synthesize layout=bodies`.
        batch: pictures of the global batch, beside those of people.
        batch_norm: `separate`: each stream by its own statistics, running ones from people alone; or `shared`.
        dressed: whether `root` may show clothed people, `layout.dress=dressed` or `mixed`.
        shuffled: a control: every body gets another's shape.

    Raises:
        InputError: if a value is none of these.
    """

    root: Path
    batch: Positive = 16
    batch_norm: Literal["separate", "shared"] = "separate"
    dressed: bool = False
    shuffled: bool = False

    def __post_init__(self) -> None:
        check(self, "bodies.")


@dataclass(frozen=True)
class ShapeSettings:
    """Say how a shape teacher guides a training.

    Args:
        level: whose shape: a person's, the mean over all pictures weighted by certainty; or each picture's by itself.
        shuffled: a control: everybody gets somebody else's shape.

    Raises:
        InputError: if a value is none of these.
    """

    level: Level = "person"
    shuffled: bool = False

    def __post_init__(self) -> None:
        check(self, "shapes.")


@dataclass(frozen=True)
class LabelRun:
    """Say what `clip3dreid label` does.

    Args:
        out: folder of labels, page and figures.
        format: `parquet`, or `csv` for editing; both can be read again.
        level: whose words the teacher chooses.
        calibration: of its scores.
        overwrite: replace labels that are there.
        device: `auto`, or a name that torch knows.
        batch: pictures at a time.
        workers: loader processes.
        seed: of the draw of held-out people, who are not labelled.

    Raises:
        InputError: if a value is none of these.
    """

    out: Path
    format: Literal["parquet", "csv"] = "parquet"
    level: Level = "person"
    calibration: Calibration = "zscore"
    overwrite: bool = False
    device: str = "auto"
    batch: Positive = 64
    workers: Count = 4
    seed: Seed = 1

    def __post_init__(self) -> None:
        check(self)
