"""Read what a training logged step by step: `metrics.csv`, and `metrics.1.csv` … of its earlier parts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from clip3dreid.io.formats import decoding
from clip3dreid.report.figures import Line

_WHAT, _ADVICE = "what a training logged", "leave the file out, or copy it anew"
_EARLIER = re.compile(r"metrics\.(\d+)\.csv")


def read_log(folder: Path) -> dict[str, Line]:
    """Read the values of a run over its steps.

    A run that went on from a checkpoint did its last steps again: of a step the later part counts.

    Args:
        folder: of the run.

    Returns:
        Name -> its values over steps, in the order of the names; empty where nothing was logged.

    Raises:
        InputError: if a file is damaged.
    """
    parts = [
        _read_part(path)
        for place in sorted({path.parent for path in folder.rglob("metrics*.csv")})
        for path in sorted(place.glob("metrics*.csv"), key=_number)
        if path.name == "metrics.csv" or _EARLIER.fullmatch(path.name)
    ]
    lines: dict[str, Line] = {}
    for part in parts:
        if part.is_empty():
            continue
        first = int(part["step"].to_numpy().min())
        for name, line in lines.items():
            kept = line.x < first
            lines[name] = Line(line.x[kept], line.y[kept])
        for name in part.columns:
            values = part.select("step", name).drop_nulls() if name != "step" else None
            if values is not None and len(values):
                before = lines.get(name, Line(np.empty(0), np.empty(0)))
                new = values.sort("step", maintain_order=True).to_numpy().T
                lines[name] = Line(*(np.concatenate(both) for both in zip(before, new, strict=True)))
    return {name: lines[name] for name in sorted(lines) if len(lines[name].x)}


def _read_part(path: Path) -> pl.DataFrame:
    """Return the finite numbers of a file, each column float64, beside the step they are of."""
    with decoding(path, _WHAT, _ADVICE):
        table = pl.read_csv(path, infer_schema=False, truncate_ragged_lines=True)
        numbers = table.select(pl.all().cast(pl.Float64, strict=False))
        finite = numbers.select(pl.when(pl.all().is_finite()).then(pl.all()))
        if "step" not in finite.columns:
            raise ValueError("it has no column step")
    return finite.drop_nulls("step")


def _number(path: Path) -> float:
    found = _EARLIER.fullmatch(path.name)
    return int(found[1]) if found else float("inf")
