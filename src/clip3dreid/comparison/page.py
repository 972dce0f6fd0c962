"""Write a comparison: `compare.md`, every number in `compare.json`, the figure in `compare.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clip3dreid.comparison.compare import ComparisonResult
from clip3dreid.comparison.runs import SCORES, Run
from clip3dreid.comparison.statistics import Runs
from clip3dreid.io.files import atomic, write_json, write_text
from clip3dreid.report.ablation import Variant, page
from clip3dreid.retrieval.bootstrap import LEVEL

COMPARE_VERSION = 2
PAGE, NUMBERS, FIGURE = "compare.md", "compare.json", "compare.png"


def write(comparison: ComparisonResult, folder: Path) -> Path:
    """Write page, numbers and figure of a comparison.

    Args:
        comparison: what `compare` gave.
        folder: made if need be.

    Returns:
        The page.

    Raises:
        InputError: if they cannot be written.
    """
    settings, chance = comparison.settings, comparison.chance_r1
    with atomic(folder / FIGURE) as temporary:
        comparison.draw().savefig(temporary, dpi=130)
    write_json(folder / NUMBERS, as_json(comparison))
    text = page(
        comparison.variants,
        settings.baseline,
        level=LEVEL,
        resamples=settings.resamples,
        facts={**comparison.facts, **({} if chance is None else {"chance R1": f"{100 * chance:.1f} %"})},
        notes=comparison.notes,
        runs=[_line(run) for members in comparison.runs.values() for run in members.values()],
        figure=FIGURE,
    )
    write_text(folder / PAGE, text)
    return folder / PAGE


def as_json(comparison: ComparisonResult) -> dict[str, Any]:
    """Return everything that page and figure show, JSON-ready; fractions, not per cent."""
    settings, runs = comparison.settings, comparison.runs
    return {
        "version": COMPARE_VERSION,
        **comparison.facts,
        "chance_r1": comparison.chance_r1,
        "baseline": settings.baseline,
        "level": LEVEL,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "variants": [
            _variant_json(variant, runs[variant.name], runs[settings.baseline])
            for variant in comparison.variants
        ],
        "notes": list(comparison.notes),
    }


def _variant_json(variant: Variant, members: Runs, others: Runs) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "variant": variant.name,
        "feature": dict(next(iter(members.values())).feature),
        # The baseline is nobody's partner of its own.
        "pairs": [
            {"seed": seed, "root": root}
            for seed, root in members
            if (seed, root) in others and members is not others
        ],
        "step": variant.step,
        "picture": variant.picture,
    }
    for key, title in SCORES.items():
        score = variant.scores[title]
        facts[key] = {
            "mean": score.mean,
            "sd": score.sd,
            "difference": score.difference,
            "people": score.people,
            "seeds": score.seeds,
            "differences": score.differences,
        }
    return facts | {"runs": [_run_json(run) for run in members.values()]}


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "folder": str(run.folder),
        "seed": run.pair[0],
        "root": run.pair[1],
        **{key: run.mean(key) for key in SCORES},
        "queries": len(run.queries),
        "people": run.queries["person"].n_unique(),
        "step_seconds": run.step_seconds,
        "pictures_per_step": run.pictures,
    }


def _line(run: Run) -> list[str]:
    scores = (f"{100 * run.mean(key):.1f}" for key in SCORES)
    return [run.variant, str(run.pair[0]), run.pair[1], *scores, str(run.folder)]
