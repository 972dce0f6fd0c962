"""Say what a dashboard shows of a run."""

from __future__ import annotations

from dataclasses import dataclass

from clip3dreid.io.checks import Positive, check, choose

PANELS = (
    *("scores", "cmc", "ranked_lists", "clothes_failures", "distances", "words", "plans", "maps", "bodies"),
    "embedding_map",
)
"""Kinds of panels, in their order."""
LEFT_OUT = ("clothes_failures", "maps", "embedding_map")
"""Those that are shown where they are asked for, and in a report always."""


@dataclass(frozen=True)
class DashboardSettings:
    """What a dashboard shows of a run once it is tested.

    Args:
        queries: shown in ranked lists, a third each of the best, of the median and of the worst.
        top: gallery pictures beside each.
        without: kinds of panels to leave out, of `PANELS`.
        checkpoint: upload the run's checkpoints, to dashboards that keep files.
        trusted: packages of the user's own whose classes a checkpoint may be made of.

    Raises:
        InputError: if a value is none of these.
    """

    queries: Positive = 12
    top: Positive = 10
    without: tuple[str, ...] = LEFT_OUT
    checkpoint: bool = False
    trusted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self, "dashboard.")
        for name in self.without:
            choose("dashboard.without", name, PANELS)
