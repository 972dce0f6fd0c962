"""Hold finished runs against a baseline: what each method is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip3dreid.comparison.runs import check_comparable, find_runs, headline, order_variants, under
from clip3dreid.comparison.settings import CompareSettings
from clip3dreid.comparison.statistics import Runs, variant_of, without_partner
from clip3dreid.io.checks import weighed
from clip3dreid.report.ablation import Variant, draw, header, rows
from clip3dreid.report.results import ALONE
from clip3dreid.report.tables import html_table, text_table
from clip3dreid.retrieval.bootstrap import LEVEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class ComparisonResult:
    """What came of a comparison, which prints as a table.

    Attributes:
        settings: that it was made with.
        facts: what the numbers belong to: `data`, `protocol`, `checkpoint`, and `metric` and `shots` where known.
        chance_r1: R1 of a random order, 0..1, mean over the runs; None where it is not recorded.
        variants: in the order of the table.
        runs: variant -> its runs, in the same order.
        notes: what the reader must know, such as pairs that are missing.
    """

    settings: CompareSettings
    facts: Mapping[str, Any]
    chance_r1: float | None
    variants: Sequence[Variant]
    runs: Mapping[str, Runs]
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """Return what is compared, in one line."""
        data, protocol, checkpoint = (self.facts[key] for key in ("data", "protocol", "checkpoint"))
        return f"{data}, {protocol}, {checkpoint} checkpoint: difference to {self.settings.baseline}"

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows: scores in per cent, differences in points, what is not known blank."""
        return header(self.variants, self.settings.baseline, LEVEL), rows(self.variants)

    def draw(self) -> Figure:
        """Draw the differences with their intervals, a row a variant."""
        return draw(self.variants, self.settings.baseline, level=LEVEL, title=self.title)

    def __repr__(self) -> str:
        """Return the table but for times, which compare on equal machines alone, and what the reader must know."""
        return "\n".join([self.title, text_table(*self._scores()), *(f"  {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        """Return the same for a notebook."""
        return html_table(self.title, *self._scores(), self.notes)

    def _scores(self) -> tuple[list[str], list[list[str]]]:
        names, cells = self.table
        return names[:-2], [row[:-2] for row in cells]


def compare(runs: Sequence[Path], settings: CompareSettings) -> ComparisonResult:
    """Compare finished runs with those of a baseline, in pairs of equal seed and data.

    `comparison.page.write` makes a page of the result.

    Args:
        runs: run folders, or folders that hold some anywhere below.
        settings: what is compared with what, and how.

    Raises:
        InputError: if there are no finished runs, or if they cannot be compared.

    Example:
        >>> from clip3dreid.comparison.compare import compare
        >>> from clip3dreid.comparison.settings import CompareSettings
        >>> found = compare([Path("runs/ablation")], CompareSettings(baseline="ce"))  # doctest: +SKIP
        >>> {variant.name: variant.scores["R1"].difference for variant in found.variants}  # doctest: +SKIP
    """
    baseline = settings.baseline
    finished, skipped = find_runs(runs, settings.checkpoint, settings.feature)
    order = order_variants(finished, baseline, settings.order)
    protocol = headline(finished[0]) if settings.protocol is None else settings.protocol
    chosen = [under(run, protocol) for run in finished]
    check_comparable(chosen)
    grouped = {name: {run.pair: run for run in chosen if run.variant == name} for name in order}
    variants = [
        variant_of(
            name,
            grouped[name],
            grouped[baseline],
            baseline=baseline,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        for name in order
    ]
    chance = [run.chance_r1 for run in chosen if run.chance_r1 is not None]
    facts = {"data": chosen[0].data, "protocol": protocol, "checkpoint": settings.checkpoint}
    facts |= {key: chosen[0].setting[key] for key in ("metric", "shots") if key in chosen[0].setting}
    return ComparisonResult(
        settings,
        facts,
        float(np.mean(chance)) if chance else None,
        variants,
        grouped,
        [*_features(grouped), *without_partner(grouped, baseline), *skipped],
    )


def _features(grouped: Mapping[str, Runs]) -> list[str]:
    """Return a note on each variant whose pictures were compared by more than the embedding alone."""
    found = {name: next(iter(members.values())).feature for name, members in grouped.items()}
    return [
        f"{name} compares pictures by {weighed(feature)}; feature=embedding compares the embeddings alone"
        for name, feature in found.items()
        if feature != ALONE
    ]
