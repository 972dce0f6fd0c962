"""Estimate what a training, an extraction and a search of a size take, from measured figures.

All of it is proportion: of pictures, of gallery rows, of columns. What does not grow in proportion (an index that is
searched, a training that several devices share) is said to be the best case. The figures' names and units are those
of `conf/measured`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Positive, Range, check, check_number

MILLION = 1_000_000
COLUMNS = 512
"""Of the features that searches were measured with."""
SHARD = 4096
"""Rows of a shard."""
GIB = 2**30
AT_MOST = 100 * MILLION
"""Crops up to which anything here was thought through."""

Above = Annotated[float, Range(0, above=True)]


class Figure(NamedTuple):
    """A number that was measured, or that somebody gives."""

    value: float
    source: str


class Line(NamedTuple):
    """One estimate."""

    what: str
    value: float
    unit: str
    basis: str
    """Which figures it comes from."""


class Limit(NamedTuple):
    """Something that breaks at this size."""

    what: str
    remedy: str


@dataclass(frozen=True)
class SizeSettings:
    """What is estimated.

    Args:
        pictures: to train on; None: there is no training.
        people: in them.
        epochs: over them.
        gpus: devices that share the work.
        gallery: crops to be extracted and searched.
        columns: of a feature.
        dtype: of the features.
        kilobytes: of a crop's file.
        memory: GiB of a machine that searches.
        out: JSON file for everything that is printed; None: none.

    Raises:
        InputError: if a value is none of these.
    """

    pictures: Positive | None = None
    people: Positive | None = None
    epochs: Positive = 60
    gpus: Annotated[int, Range(1, 64)] = 1
    gallery: Annotated[int, Range(1, AT_MOST)] = MILLION
    columns: Positive = 4096
    dtype: Literal["float32", "float16"] = "float32"
    kilobytes: Above = 10.0
    memory: Above = 64.0
    out: Path | None = None

    def __post_init__(self) -> None:
        check(self)

    @property
    def itemsize(self) -> int:
        """Return the bytes of a number of a feature."""
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True)
class Sizing:
    """What came of it."""

    lines: list[Line]
    limits: list[Limit]
    figures: Mapping[str, Figure]
    settings: SizeSettings

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return header and rows."""
        rows = [[line.what, _rounded(line.value), line.unit, line.basis] for line in self.lines]
        return ["what", "estimate", "unit", "from"], rows

    def sources(self) -> tuple[list[str], list[list[Any]]]:
        """Return header and rows of the figures that were used."""
        used = {name for line in self.lines for name in line.basis.split(", ")}
        rows = [[name, f"{one.value:g}", one.source] for name, one in self.figures.items() if name in used]
        return ["figure", "value", "source"], rows

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        asked = dataclasses.asdict(self.settings)
        return {
            "asked": {key: value for key, value in asked.items() if key != "out"},
            "estimates": [line._asdict() for line in self.lines],
            "limits": [limit._asdict() for limit in self.limits],
            "figures": {name: one._asdict() for name, one in self.figures.items()},
        }


def figures_of(measured: Mapping[str, Any], own: Mapping[str, float | None]) -> dict[str, Figure]:
    """Return the figures to estimate by: measured ones, and somebody's own in their place.

    Args:
        measured: `figures`: name -> `value` and `source`, as `conf/measured` has them; `machine` they are of.
        own: name -> value; None leaves the measured one.

    Raises:
        InputError: if a value is no number above 0, or a name is unknown.
    """
    found = {}
    for name, one in measured["figures"].items():
        check_number(f"measured.figures.{name}.value", one["value"], Range(0, above=True))
        found[name] = Figure(float(one["value"]), f"{one['source']} ({measured['machine']})")
    for name, value in own.items():
        if name not in found:
            raise InputError(f"own.{name} is no figure; those are {', '.join(found)}")
        if value is not None:
            check_number(f"own.{name}", value, Range(0, above=True))
            found[name] = Figure(float(value), f"yours: own.{name}")
    return found


def size(settings: SizeSettings, figures: Mapping[str, Figure]) -> Sizing:
    """Estimate times, memory and disk.

    Args:
        settings: what is asked for.
        figures: as `figures_of` returns them.
    """
    rate = {name: one.value for name, one in figures.items()}
    crops, gpus = settings.gallery, settings.gpus
    millions, wide = crops / MILLION, settings.columns / COLUMNS
    features = crops * settings.columns * settings.itemsize
    # An index holds float32 and a bit a value.
    index = crops * settings.columns * (4 + 1 / 8)
    lines = []
    if settings.pictures is not None:
        seconds = settings.pictures * settings.epochs / (rate["train"] * gpus)
        lines.append(Line("training", seconds / 3600, "hours, at best", "train"))
        cores = math.ceil(rate["train"] * gpus / rate["decode"])
        lines.append(Line("cores that decode for it", cores, "cores", "train, decode"))
    if settings.people is not None:
        # Weights, gradients and Adam's two moments.
        head = settings.people * settings.columns * 4 * 4
        lines.append(Line("identity head with its optimizer", head / GIB, "GiB a device", "arithmetic"))
    cores = math.ceil(rate["extract"] * gpus / rate["decode"])
    lines += [
        Line("listing before the first crop", millions * rate["list_seconds"], "s a process", "list_seconds"),
        Line("memory of the list", millions * rate["list_mib"] / 1024, "GiB a process", "list_mib"),
        Line("extraction", crops / (rate["extract"] * gpus) / 3600, "hours, at best", "extract"),
        Line("cores that decode for it", cores, "cores", "extract, decode"),
        Line("files of crops", crops * settings.kilobytes * 1000 / GIB, "GiB", "arithmetic"),
        Line("shards", features / GIB, "GiB", "arithmetic"),
        Line("shards", math.ceil(crops / SHARD), "files", "arithmetic"),
        Line("exact search, memory", features / GIB, "GiB", "arithmetic"),
        Line("exact search, one query", millions * wide * rate["exact_one_ms"], "ms", "exact_one_ms"),
        Line("exact search, each of many", millions * wide * rate["exact_ms"], "ms", "exact_ms"),
        Line("index beside the shards", index / GIB, "GiB", "arithmetic"),
        Line("index, building", millions * wide * rate["lance_build_s"] / 3600, "hours", "lance_build_s"),
        # Lists are as many as the root of the rows, and so many of them are read whatever the rows.
        Line(
            "index, one query",
            math.sqrt(millions) * wide * rate["lance_one_ms"],
            "ms, at best",
            "lance_one_ms",
        ),
        Line("index, memory", millions * wide * rate["lance_mib"] / 1024, "GiB, at most", "lance_mib"),
    ]
    return Sizing(lines, _limits(settings, features), figures, settings)


def _limits(settings: SizeSettings, features: int) -> list[Limit]:
    """Return what breaks at this size, in the order of docs/scale.md."""
    crops, people = settings.gallery, settings.people or 0
    told = {
        "a list of crops in every process": (
            crops > 5 * MILLION,
            "extract from a table in shards: backend=ray",
        ),
        "a file a crop": (crops > 20 * MILLION, "keep crops in Parquet or tar shards: backend=ray"),
        f"{settings.columns:,} columns": (
            settings.columns > 1024 and crops > MILLION,
            "train with model.student.neck_dim=512",
        ),
        "exact search in memory": (
            features > settings.memory * GIB,
            "engine=lance, engine.stream=true, or dtype=float16",
        ),
        "an exact query every time": (crops > MILLION, "engine=lance"),
        "shards opened for a search": (crops > 2 * MILLION, "engine=lance, which holds the labels"),
        "one identity head on every device": (
            people * settings.columns * 16 > 8 * GIB,
            "neck_dim=512, trainer=fsdp, or a head in shards (docs/scale.md)",
        ),
    }
    return [Limit(what, remedy) for what, (broken, remedy) in told.items() if broken]


def _rounded(value: float) -> str:
    """Return a number with two digits that mean something, whole ones in full."""
    if value == int(value) and value < 1e7:
        return f"{int(value):,}"
    digits = max(0, 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"
