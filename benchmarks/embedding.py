"""How the time of embedding a data set grows with its pictures: `python benchmarks/embedding.py`.

The same tiny picture, read over and over, goes through a teacher that costs nothing, so what is timed is reading and
keeping: `embed.embed_pictures` with `cache=memory`. Twice the pictures should take twice the time.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

from clip3dreid.data.manifest import Manifest
from clip3dreid.guidance.embeddings import embed_pictures


class Free(torch.nn.Module):
    """A teacher that has its answers ready."""

    width, device, name, fingerprint = 512, torch.device("cpu"), "free", "0" * 64

    def view(self, planes):
        """Return the picture as it is."""
        return planes

    def forward(self, images):
        """Nothing at all."""
        return torch.zeros(len(images), self.width)


def seconds(root, pictures, batch):
    table = pl.DataFrame({"path": ["0.png"] * pictures})
    settings = {"cache": "memory", "folder": root, "batch": batch, "workers": 0}
    start = time.perf_counter()
    embed_pictures(Free(), Manifest("tiny", root, table), table, progress=lambda done: None, **settings)
    return time.perf_counter() - start


def main(sizes, batch):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(np.zeros((8, 4, 3), np.uint8)).save(Path(folder) / "0.png")
        seconds(Path(folder), 1000, batch)
        for pictures in sizes:
            taken = seconds(Path(folder), pictures, batch)
            print(
                f"{pictures:,} pictures: {taken:.2f} s, {1e6 * taken / pictures:.0f} microseconds a picture"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 20_000, 40_000, 80_000])
    parser.add_argument("--batch", type=int, default=64)
    main(**vars(parser.parse_args()))
