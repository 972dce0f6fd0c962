"""A gallery in memory, as engines read it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor


class MemoryGallery:
    """Blocks of uneven sizes of random features, with labels; people are clusters."""

    def __init__(
        self, folder: Path, rows: int = 300, width: int = 16, seed: int = 0, fingerprint: str = "model"
    ) -> None:
        rng = np.random.default_rng(seed)
        person = rng.integers(max(1, rows // 5), size=rows)
        centres = rng.standard_normal((rows, width))
        vectors = centres[person] + 0.5 * rng.standard_normal((rows, width))
        self.folder = folder
        self.facts = {"fingerprint": fingerprint}
        self.vectors = torch.from_numpy(vectors).float() * 3
        self.labels = pl.DataFrame(
            {
                "path": [f"{i}.jpg" for i in range(rows)],
                "person": person.astype(str),
                "camera": rng.choice(["1", "2", "o'brien", None], rows).tolist(),
                "clothes": pl.Series([None] * rows, dtype=pl.String),
                "frame": rng.integers(1000, size=rows),
                "Odd Name!": rng.choice(["x", "y' OR 1=1 --"], rows),
                "words": [["tall", "thin"]] * rows,
            }
        )

    def width(self, name: str) -> int:
        assert name == "embedding"
        return self.vectors.shape[1]

    def blocks(self, name: str) -> Iterator[Tensor]:
        assert name == "embedding"
        yield from torch.split(self.vectors, 97)
