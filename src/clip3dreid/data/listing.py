"""Pictures without a data set: a folder of crops, or a table of crops in pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import polars as pl

from clip3dreid.data.layout import PICTURES
from clip3dreid.data.manifest import SCHEMA, load
from clip3dreid.errors import InputError
from clip3dreid.formats import decoding, read_table

BOX = ("left", "top", "right", "bottom")
"""Columns of a crop in a picture, in pixels; right and bottom lie outside."""


class Listing(NamedTuple):
    """Crops to look at, in the order in which they are listed."""

    root: Path
    """Folder that paths are relative to."""
    table: pl.DataFrame
    """`path`, and of the box and the manifest's columns those that are known; labels are strings."""


def list_pictures(place: Path) -> Listing:
    """Lists the pictures of a folder, at any depth, or those that a table names.

    Args:
        place: a folder; or a CSV or Parquet file with the column `path`, relative to the file's folder. It may have
            `left`, `top`, `right` and `bottom`, the box of a person in a larger picture, and any of the manifest's
            label columns, which search can filter by. Other columns are left out. A manifest that `inspect_data`
            wrote knows where its pictures are, wherever it lies.

    Returns:
        Crops: a folder's sorted by path, a table's in its own order.

    Raises:
        InputError: if there is nothing, no picture in it, or the table lacks a column or holds other values.
    """
    if place.is_dir():
        return Listing(place, pl.DataFrame({"path": _walk(place)}))
    if not place.is_file():
        raise InputError(
            f"pictures={place} is not there; give a folder of pictures, or a table with a column path"
        )
    if _is_manifest(place):
        manifest = load(place)
        return Listing(manifest.root, manifest.table)
    return Listing(place.parent, _read_table(place))


def _is_manifest(path: Path) -> bool:
    """Whether a file is a saved manifest, which knows where its pictures are."""
    try:
        with decoding(path, "a manifest", ""):
            facts = json.loads(pl.read_parquet_metadata(path)["clip3dreid"])
            return isinstance(facts, dict) and {"root", "published"} <= facts.keys()
    except InputError:
        return False


def _walk(folder: Path) -> list[str]:
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for where, folders, files in os.walk(folder, followlinks=True, onerror=_cannot_enter):
        status = Path(where).stat()
        if (
            status.st_dev,
            status.st_ino,
        ) in seen:  # a link to a folder that was visited, its own parent perhaps
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            (Path(where) / name).relative_to(folder).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURES
        ]
    if not found:
        raise InputError(f"pictures={folder} holds no pictures ({', '.join(sorted(PICTURES))})")
    for path in found:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"pictures={folder}: the name {path!a} is not UTF-8; rename it") from error
    return sorted(found)


def _cannot_enter(error: OSError) -> None:
    raise InputError(
        f"{error.filename} cannot be looked into: {error.strerror}; make it readable, or move it away"
    )


def _read_table(path: Path) -> pl.DataFrame:
    advice = "give a CSV or Parquet file"
    readers = {
        ".csv": lambda: pl.read_csv(path, infer_schema=False, glob=False),  # person 007 stays 007
        ".parquet": lambda: read_table(path, "a table of pictures", advice, sealed=False)[0],
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"pictures={path} is no folder and no table; a table ends in .csv or .parquet")
    with decoding(f"pictures={path}", "a table of pictures", advice):
        table = readers[path.suffix.lower()]()
    if "path" not in table.columns or table.is_empty():
        raise InputError(
            f"pictures={path} has no column path, or no rows; its columns are {', '.join(table.columns)}"
        )
    boxed = [name for name in BOX if name in table.columns]
    if boxed and len(boxed) < len(BOX):
        raise InputError(f"pictures={path} has {', '.join(boxed)} alone; a box has {', '.join(BOX)}")
    kinds: dict[str, type[pl.DataType]] = {**dict.fromkeys(boxed, pl.Int32), **SCHEMA}
    try:
        table = table.select(pl.col(name).cast(kinds[name]) for name in kinds if name in table.columns)
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"pictures={path}: a column has values of the wrong kind: {' '.join(str(error).split())[:200]}"
        ) from error
    for name in ("path", *boxed):
        if nulls := table[name].null_count():
            raise InputError(f"pictures={path}: {nulls} rows have no {name}")
    return table
