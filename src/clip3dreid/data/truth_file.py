"""Read and write `truth.parquet`: what is known of every picture of a rendered world, a row each.

The file's one owner. It stands below the world's renderer, because training reads the file too: shapes of bodies,
words of people. `synthetic.truth` joins its rows, and its version is that of the `world.json` beside it.

Columns: `path`, `split`, `role` (`left_out` where the real set's reader leaves the picture out), `person`, `clothes`,
`camera`, `frame` as the data set's reader spells them, `tracklet`, `bad_box`, `person_index`, `outfit_index`,
`camera_index`; of the person `betas`, `measure_…`, `word_…`, `identity_…`; `outfit_…`, where anything is worn;
`camera_…`; of the picture alone `pose_kind`, `pose` (72 numbers), `box`, `visible`, `shot_…`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import polars as pl

from clip3dreid.io.formats import decoding, read_table, write_table

TRUTH = "truth.parquet"
"""Name of the file in the world's folder."""
WRITE_ANEW = "write the world anew with clip3dreid synthesize"
"""What to do about a file that cannot be read."""


def has_truth(world: Path) -> bool:
    """Return whether a folder holds the file."""
    return (world / TRUTH).is_file()


def read_truth(
    world: Path,
    *,
    columns: Collection[str] | None = None,
    needs: Collection[str] = (),
    kind: str = "the truth about a world",
    advice: str = WRITE_ANEW,
) -> pl.DataFrame:
    """Read the file of a world, and compare its checksums.

    Args:
        world: the folder.
        columns: to read; None: all.
        needs: columns that must be there, beside those to read.
        kind: what it is read as, for messages.
        advice: what to do about another.

    Raises:
        InputError: if there is no such file, it is damaged, or it lacks a column.
    """
    table, _ = read_table(world / TRUTH, kind, advice, columns=columns, needs=needs)
    return table


def shows_clothes(world: Path, advice: str = WRITE_ANEW) -> bool:
    """Return whether people of a world wear anything; textureless bodies do not.

    Raises:
        InputError: if the file cannot be read.
    """
    path = world / TRUTH
    with decoding(path, "the truth about a world", advice):
        columns = pl.scan_parquet(path, glob=False).collect_schema()
    # The number of the outfit stands there for bodies too.
    return any(name.startswith("outfit_") and name != "outfit_index" for name in columns)


def write_truth(path: Path, table: pl.DataFrame) -> None:
    """Write the file, with checksums, whole or not at all.

    Args:
        path: of the file; a writer's temporary name will do.
        table: with the columns above.

    Raises:
        InputError: if it cannot be written.
    """
    write_table(path, table)
