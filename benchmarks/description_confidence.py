"""How often descriptions are right, beside how sure they say they are.

    python benchmarks/description_confidence.py WORLD=RUN [WORLD=RUN ...]

WORLD is a rendered world in LTCC's layout, RUN a run with loss.local that was trained on it. Every picture of people
who were never trained on is described; each group's best word is compared with `truth.parquet`. Printed: a row a
tenth of stated confidence, and the mean cross-entropy of the truth by temperature, by which
`CONFIDENCE_TEMPERATURE` was chosen (development worlds alone).
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

import clip3dreid
from clip3dreid.data.datasets import ltcc
from clip3dreid.inference.heads import CONFIDENCE_TEMPERATURE


def groups_of(world: Path, run: Path) -> list[tuple[Tensor, Tensor]]:
    """Return for each group of words (N, W) scores, and (N,) which word is right."""
    manifest = ltcc.read(world)
    table = manifest.part("test")
    truth = pl.read_parquet(world / "truth.parquet").unique("path")
    table = table.select("path").join(truth, on="path", how="left", maintain_order="left")
    model = clip3dreid.load(run)
    scores = model.word_scores(model.joint(manifest.files(table)))
    parts = scores.split([len(words) for words in model.groups.values()], dim=1)
    return [
        (part, torch.tensor([words.index(said) for said in table[f"word_{group}"]]))
        for (group, words), part in zip(model.groups.items(), parts, strict=True)
    ]


def main() -> None:
    found = [
        group
        for pair in sys.argv[1:]
        for group in groups_of(*(Path(part) for part in pair.split("=", maxsplit=1)))
    ]
    for temperature in (1.0, 1.5, 2.0, 2.5, 3.0):
        loss = np.mean([F.cross_entropy(scores / temperature, right).item() for scores, right in found])
        print(f"temperature {temperature}: cross-entropy {loss:.4f}")
    likely = [(scores / CONFIDENCE_TEMPERATURE).softmax(1).max(1) for scores, _ in found]
    said = torch.cat([best.values for best in likely]).numpy()
    right = torch.cat([best.indices == truth for best, (_, truth) in zip(likely, found, strict=True)]).numpy()
    print(f"all: said {said.mean():.0%}, right {right.mean():.0%}, {len(said)} words")
    for tenth in range(2, 10):
        of_these = (said * 10).astype(int) == tenth
        if of_these.any():
            means = f"said {said[of_these].mean():.0%}, right {right[of_these].mean():.0%}"
            print(f"from {tenth}0 %: {means}, {of_these.sum()} words")


if __name__ == "__main__":
    main()
