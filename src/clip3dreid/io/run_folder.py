"""Name what a run's folder holds."""

from __future__ import annotations

import shlex
from pathlib import Path

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
"""Where a run's folder has the checkpoint that it can go on from."""
PREVIOUS_CHECKPOINT = LAST_CHECKPOINT.with_name("previous.ckpt")
"""The one before it, taken where that one is damaged."""
EMA_CHECKPOINT = LAST_CHECKPOINT.with_name("ema.ckpt")
"""The average of the weights, where the run keeps one."""
CONFIG = "config.yaml"
"""Everything that a run was asked for, resolved."""
ENVIRONMENT = "environment.json"
"""What its numbers depend on besides: versions, machine, counts of the data."""
LABELS = "labels.parquet"
"""The words that guide it, where words do."""
RESULTS = "results.json"
"""Its scores; see `report.results`."""
QUERIES = "per_query"
"""Folder of what became of each query."""


def holds_checkpoint(folder: Path) -> bool:
    """Return whether a run can go on in a folder."""
    return any((folder / path).is_file() for path in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT))


def resume_argument(folder: Path) -> str:
    """Return the argument that goes on with a run, to be given to a shell."""
    return f"resume={shlex.quote(str(folder))}"
