"""What a run's folder holds, by name."""

from pathlib import Path

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
"""Where a run's folder has the checkpoint that it can go on from."""
PREVIOUS_CHECKPOINT = LAST_CHECKPOINT.with_name("previous.ckpt")
"""The one before it, taken where that one is damaged."""
