"""Say what is reported of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Count, Positive, Seed, check, choose

PARTS = (
    *("scores", "cmc", "training", "ranked_lists", "clothes_failures", "distances", "words", "plans", "maps"),
    *("bodies", "embedding_map", "configuration", "environment", "cost"),
)
"""Parts of the report of one run, in their order."""


@dataclass(frozen=True)
class ReportSettings:
    """What is reported, and how.

    Args:
        format: `html`, one page that needs nothing else; or `markdown`, with figures beside it.
        checkpoint: `last`, `ema` where weights were averaged, or `best` where held-out people selected one.
        queries: how many of the best, of the median and of the worst queries are shown.
        top: gallery pictures beside each.
        people: on the embedding map.
        without: parts to leave out, of `PARTS`.
        baseline: of several runs, the variant that the others are compared with.
        device: where the model runs: `auto`, `cpu` or `cuda`.
        batch: pictures at a time.
        workers: processes that decode pictures.
        trusted: packages of the user's own whose classes a checkpoint may be made of.
        seed: of what is drawn: people on the map, queries whose distances are counted where there are many.

    Raises:
        InputError: if a value is none of these.
    """

    format: Literal["html", "markdown"] = "html"
    checkpoint: Literal["last", "ema", "best"] = "last"
    queries: Positive = 4
    top: Positive = 10
    people: Positive = 20
    without: tuple[str, ...] = ()
    baseline: str = "ce"
    device: str = "auto"
    batch: Positive = 64
    workers: Count = 2
    trusted: tuple[str, ...] = ()
    seed: Seed = 1

    def __post_init__(self) -> None:
        check(self)
        for name in self.without:
            choose("without", name, PARTS)


class PublishedScore(NamedTuple):
    """What somebody printed about a method."""

    data: str
    protocol: str
    method: str
    r1: float | None
    """Per cent, as printed; None: not given."""
    map: float | None
    """Likewise."""
    source: str
    """Where it was read."""


def published_scores(node: Any) -> list[PublishedScore]:
    """Make published scores of plain data: data set -> protocol -> rows of method, R1, mAP and source.

    Raises:
        InputError: if a row has another form.
    """
    found = []
    for data, protocols in (node or {}).items():
        for protocol, rows in (protocols or {}).items():
            for row in rows or ():
                where = f"published_scores.{data}.{protocol}"
                if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 4:
                    raise InputError(
                        f"{where}: {row} must be [method, R1, mAP, source], null for an unknown score"
                    )
                method, r1, average, source = row
                if any(not (score is None or isinstance(score, int | float)) for score in (r1, average)):
                    raise InputError(f"{where}: {method} must have numbers in per cent, or null")
                names = (str(data), str(protocol), str(method))
                found.append(PublishedScore(*names, r1, average, str(source)))
    return found
