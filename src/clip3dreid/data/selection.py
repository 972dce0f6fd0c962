"""Select the rows of a manifest that a run uses: people held out to choose checkpoints, pictures that can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import polars as pl

from clip3dreid.data.manifest import Manifest
from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.pictures import UnreadablePicture, read_rgb
from clip3dreid.io.ranks import ALONE, Ranks


def hold_out(manifest: Manifest, people: int, seed: int) -> Manifest:
    """Move some training people to the `val` split, with queries and a gallery of their own.

    One picture, drawn at random, of each combination of person, outfit and camera becomes a query (the way
    LTCC was made); the person's other pictures are gallery. A person with a single picture is gallery only,
    and someone whose pictures are all of different combinations has one query. Frames of a tracklet stay together:
    where there are tracklets, they are drawn instead of pictures.

    Args:
        manifest: a data set with training people.
        people: how many of them to hold out; 0 returns the manifest unchanged.
        seed: of the draw.

    Returns:
        The manifest with those people's rows in split `val`; any `val` rows that it had are dropped, since
        people who were held out on purpose take their place.

    Raises:
        InputError: if fewer than two people would stay in training.
    """
    if people == 0:
        return manifest
    train = manifest.part("train")
    names = train["person"].unique().sort().to_list()
    if people < 0 or len(names) - people < 2:
        raise InputError(
            f"data.val_people={people}, but {manifest.name} has {len(names)} training people and at least "
            "2 must stay; lower data.val_people"
        )
    rng = np.random.default_rng(seed)
    chosen = [names[i] for i in rng.permutation(len(names))[:people]]
    held = train.filter(pl.col("person").is_in(chosen))
    ones = held.select("person", "clothes", "camera", pl.col("tracklet").fill_null(pl.col("path"))).rows()
    places = {one: place for place, one in enumerate(dict.fromkeys(ones))}
    lots = rng.permutation(len(places))[[places[one] for one in ones]]
    held = held.with_columns(draw=pl.Series(lots))
    first = pl.col("draw").rank("dense").over("person", "clothes", "camera") == 1
    alone = pl.col("draw").n_unique().over("person") == 1
    # Someone with one picture of each combination would be queries alone: all but one of them are gallery then.
    scattered = first.all().over("person")
    first &= ~scattered | (pl.col("draw").rank("dense").over("person") == 1)
    role = pl.when(first & ~alone).then(pl.lit("query")).otherwise(pl.lit("gallery"))
    held = held.with_columns(split=pl.lit("val"), role=role).drop("draw")
    rest = manifest.table.filter(pl.col("split") != "val").filter(
        (pl.col("split") != "train") | ~pl.col("person").is_in(chosen)
    )
    note = f"{people} of {len(names)} training people held out for validation (seed {seed})"
    return manifest.replace(table=pl.concat([rest, held]), notes=(*manifest.notes, note))


def drop_unreadable(
    manifest: Manifest,
    workers: int,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Manifest:
    """Return the manifest without the pictures that cannot be decoded; a note counts and names them.

    Args:
        manifest: any data set.
        workers: threads that decode.
        progress: called with the number of pictures done so far, of several processes as if all were as fast.
        ranks: processes of which each decodes a share.
    """
    files = manifest.files()
    rows = ranks.mine(range(len(files)))
    report = None if progress is None else lambda done: progress(min(len(files), done * ranks.size))
    unreadable = set(find_unreadable([files[row] for row in rows], workers, report))
    told = ranks.all_tell("unreadable", [row for row in rows if files[row] in unreadable])
    bad = {row for theirs in told for row in theirs}
    if not bad:
        return manifest
    keep = pl.Series([row not in bad for row in range(len(files))])
    note = f"{len(bad)} unreadable pictures skipped: {some(sorted(files[row].name for row in bad), 10)}"
    return manifest.replace(table=manifest.table.filter(keep), notes=(*manifest.notes, note))


def find_unreadable(
    paths: Sequence[Path], workers: int, progress: Callable[[int], None] | None = None
) -> list[Path]:
    """Decode every picture and return those that cannot be read, in their order.

    Args:
        paths: files.
        workers: threads (decoders let go of Python's lock).
        progress: called with the number of pictures done so far.
    """

    def unreadable(path: Path) -> bool:
        try:
            read_rgb(path)
        except UnreadablePicture:
            return True
        return False

    bad_paths = []
    with ThreadPool(max(workers, 1)) as pool:
        results = pool.imap(unreadable, paths, chunksize=16)
        for done, (path, bad) in enumerate(zip(paths, results, strict=True), start=1):
            if bad:
                bad_paths.append(path)
            if progress is not None:
                progress(done)
    return bad_paths
