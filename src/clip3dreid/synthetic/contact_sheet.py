"""Draw contact sheets: a world at a glance."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from PIL import Image

from clip3dreid.data.truth_file import TRUTH, WRITE_ANEW, has_truth, read_truth
from clip3dreid.errors import InputError
from clip3dreid.io.pictures import read_rgb

GAP = 4
"""Pixels between people, and between outfits."""


def contact_sheet(
    world: Path, target: Path, *, split: str = "train", people: int = 8, height: int = 160, columns: int = 12
) -> None:
    """Draw people in their clothes, a row each, as many pictures of each outfit as fit.

    Args:
        world: folder that `synthesize` wrote.
        target: picture to write.
        split: `train` or `test`.
        people: rows at most.
        height: of a picture, pixels.
        columns: pictures of a person at most.

    Raises:
        InputError: if the folder is no world or its split is empty.
    """
    if not has_truth(world):
        raise InputError(f"{world} holds no {TRUTH}; write a world there with clip3dreid synthesize")
    table = read_truth(world, columns=("path", "split", "bad_box", "person_index", "outfit_index"))
    table = table.filter((pl.col("split") == split) & ~pl.col("bad_box"))
    chosen = table["person_index"].unique().sort().to_list()[:people]
    if not chosen:
        raise InputError(f"{world} has no people in split {split}")
    rows = []
    for person in chosen:
        pictures = table.filter(pl.col("person_index") == person)
        outfits = pictures["outfit_index"].unique().sort().to_list()
        share = max(1, columns // len(outfits))
        rows.append(
            [
                [world / path for path in _spread(pictures.filter(pl.col("outfit_index") == outfit), share)]
                for outfit in outfits[:columns]
            ]
        )
    first = read_rgb(rows[0][0][0], WRITE_ANEW)
    width = round(first.shape[1] * height / first.shape[0])
    across = max(sum(len(outfit) * width + GAP for outfit in row) for row in rows)
    sheet = Image.new("RGB", (across - GAP, len(rows) * (height + GAP) - GAP), "white")
    for line, row in enumerate(rows):
        x = 0
        for outfit in row:
            for path in outfit:
                picture = Image.fromarray(read_rgb(path, WRITE_ANEW))
                sheet.paste(picture.resize((width, height)), (x, line * (height + GAP)))
                x += width
            x += GAP
    sheet.save(target, quality=92)


def _spread(table: pl.DataFrame, count: int) -> list[str]:
    """Return paths of at most `count` pictures, evenly from all."""
    paths: list[str] = table["path"].to_list()
    step = len(paths) / min(count, len(paths))
    return [paths[int(i * step)] for i in range(min(count, len(paths)))]
