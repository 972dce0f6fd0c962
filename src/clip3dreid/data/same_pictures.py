"""Pictures that are queries and gallery at once: such a query finds itself, and its score says nothing."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple, TypeVar

import polars as pl

from clip3dreid.io.video_places import video_place

T = TypeVar("T")

THREADS = 16
"""They wait for the disk, not for a core."""


class SamePictures(NamedTuple):
    """Queries and gallery with the column `picture`, which is equal where a picture is."""

    query: pl.DataFrame
    gallery: pl.DataFrame
    sizes_asked: int
    """Files whose size was looked up."""
    files_read: int
    """Files that were read, since another of the same person and size is on the other side."""


def mark_same_pictures(root: Path, query: pl.DataFrame, gallery: pl.DataFrame) -> SamePictures:
    """Find gallery pictures that are a query of the same person, by path or, of files of their own, byte for byte.

    Only files of people on both sides are looked at, and only those read that have the size of one on the other side.
    A file that is empty or cannot be read is like no other: whoever decodes it says so.

    Args:
        root: folder that paths are relative to.
        query: rows of a manifest.
        gallery: rows of the same manifest.

    Returns:
        The tables with `picture`: the path of the first of the files that are equal.
    """
    both = set(query["person"].unique()) & set(gallery["person"].unique())
    sides = [
        set(table.filter(pl.col("person").is_in(both)).select("person", "path").unique().iter_rows())
        for table in (query, gallery)
    ]
    people: dict[str, set[str]] = defaultdict(set)
    for person, path in sides[0] | sides[1]:
        people[path].add(person)
    # Crops of videos are known by their paths: the bytes of a video say nothing of one.
    paths = sorted(path for path in people if video_place(root / path) is None)
    sizes: dict[str, int | None] = dict(
        zip(paths, _each(lambda path: _size(root / path), paths), strict=True)
    )

    def shared(values: Mapping[str, int | bytes | None]) -> list[list[str]]:
        """Return groups of one person's files with the same value that are on both sides."""
        groups: dict[tuple[str, int | bytes], set[str]] = defaultdict(set)
        for path, value in values.items():
            if value is not None:
                for person in people[path]:
                    groups[person, value].add(path)
        return [
            sorted(group)
            for (person, _), group in groups.items()
            if len(group) > 1 and all(any((person, path) in side for path in group) for side in sides)
        ]

    candidates = sorted({path for group in shared(sizes) for path in group})
    digests = dict(zip(candidates, _each(lambda path: _digest(root / path), candidates), strict=True))
    same = {path: digests[path] for group in shared(digests) for path in group}
    first: dict[bytes | None, str] = {}
    for path in sorted(same):
        first.setdefault(same[path], path)
    named = {path: first[digest] for path, digest in same.items()}
    picture = pl.col("path").replace(named).alias("picture")
    return SamePictures(
        query.with_columns(picture), gallery.with_columns(picture), len(paths), len(candidates)
    )


def _each(function: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    if not paths:
        return []
    with ThreadPool(min(THREADS, len(paths))) as pool:
        return pool.map(function, paths, chunksize=64)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size or None
    except OSError:
        return None


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
