"""Pictures without a data set: a folder of crops, a table of crops in pictures, or a tracker's boxes in frames."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

import polars as pl

from clip3dreid.data.box_files import format_of
from clip3dreid.data.box_settings import Boxes
from clip3dreid.data.boxes import read_boxes
from clip3dreid.data.manifest import LATER, SCHEMA, load
from clip3dreid.data.video_files import with_places
from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.formats import decoding
from clip3dreid.io.pictures import SUFFIXES, find_pictures
from clip3dreid.io.spelling import labels
from clip3dreid.io.table_files import SUFFIXES as TABLES
from clip3dreid.io.table_files import forward_slashes, read_table, take_boxes, understood, whole_numbers

log = logging.getLogger(__name__)


class Listing(NamedTuple):
    """Crops to look at, in the order in which they are listed."""

    root: Path
    """Folder that paths are relative to."""
    table: pl.DataFrame
    """`path`, and of the box, the manifest's columns and `confidence` those that are known; labels are strings."""

    @classmethod
    def of(cls, root: Path, table: pl.DataFrame) -> Listing:
        """Return the pictures of a manifest's table.

        Columns of `manifest.LATER` are left out where nothing is known: what was extracted before there were such is
        the same, and is not made anew.
        """
        return cls(root, table.drop(one for one in LATER if table[one].null_count() == len(table)))


def list_pictures(place: Path | Boxes) -> Listing:
    """List the pictures of a folder, at any depth, those that a table names, or the boxes of a detector or tracker.

    Args:
        place: a folder; or a CSV or Parquet file with the column `path`, or `video` and `frame` (from 0), relative to
            the file's folder. It may have the box of a person in a larger picture (see `table_files.take_boxes`),
            which in videos it must, and any of the manifest's label
            columns, which search can filter by. Other columns are left out, and named in the log. A manifest that
            `inspect_data` wrote knows where its pictures are, wherever it lies. Files of boxes
            (`box_settings.BoxFormat`) are told by their content and name; `Boxes` says which of them are taken.

    Returns:
        Crops: a folder's sorted by path, a table's in its own order, boxes frame by frame. Pictures in formats that
        are not read are among them: whoever opens them says so. Other files are counted in the log.

    Raises:
        InputError: if there is nothing, no picture in it, the table lacks a column or holds other values, or as
            `boxes.read_boxes`.
    """
    if isinstance(place, Boxes) or (place.exists() and format_of(place) is not None):
        return Listing(*read_boxes(place if isinstance(place, Boxes) else Boxes(place)))
    if place.is_dir():
        return Listing(place, pl.DataFrame({"path": _walk(place)}))
    if not place.is_file():
        raise InputError(
            f"pictures={place} is not there; give a folder of pictures, a table with a column path, or boxes"
        )
    if _is_manifest(place):
        manifest = load(place)
        return Listing.of(manifest.root, manifest.table)
    return Listing(place.parent, _read_table(place))


def folders_as_tracklets(listing: Listing) -> Listing:
    """Take each folder of pictures for a tracklet, by its path from the list's own folder, where nothing says others.

    Args:
        listing: of a folder; one with a column `tracklet` stays as it is.
    """
    table = listing.table
    if "tracklet" in table.columns:
        return listing
    inside = table["path"].str.replace(r"/?[^/]*$", "")
    return listing._replace(table=table.with_columns(tracklet=inside.replace("", listing.root.name or ".")))


def _is_manifest(path: Path) -> bool:
    """Return whether a file is a saved manifest, which knows where its pictures are."""
    try:
        with decoding(path, "a manifest", ""):
            facts = json.loads(pl.read_parquet_metadata(path)["clip3dreid"])
            return isinstance(facts, dict) and {"root", "published"} <= facts.keys()
    except InputError:
        return False


def _walk(folder: Path) -> list[str]:
    name = f"pictures={folder}"
    listed = find_pictures(folder, name)
    for what in listed.left_out():
        # Those of formats that are not read are listed all the same, so that on_error decides about them.
        log.info("%s: %s", name, what)
    if not listed.pictures and not listed.unread:
        raise InputError(f"{name} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return sorted([*listed.pictures, *listed.unread])


def _read_table(path: Path) -> pl.DataFrame:
    name = f"pictures={path}"
    if path.suffix.lower() not in TABLES:
        raise InputError(
            f"{name} is neither a table that is read nor boxes of a known format; a table ends in "
            f"{', '.join(TABLES)}, and boxes.format=mot, coco, supervision or yolo says what boxes are"
        )
    table = with_places(understood(read_table(path, name), name), path.parent, name)
    if "path" not in table.columns:
        raise InputError(f"{name} has no column path; its columns are {some(table.columns, 8)}")
    box, table = take_boxes(table, name)
    known = [column for column in SCHEMA if column in table.columns]
    if others := [column for column in table.columns if column not in known]:
        log.info("%s: columns that mean nothing here are left out: %s", name, ", ".join(others))
    columns = [_column(table, column, name, path.parent) for column in known]
    if nulls := columns[known.index("path")].null_count():
        raise InputError(f"{name}: {nulls} rows have no path")
    return pl.DataFrame([*([] if box is None else box.get_columns()), *columns])


def _column(table: pl.DataFrame, column: str, name: str, folder: Path) -> pl.Series:
    """Return a column as the manifest has it."""
    if column == "path":
        return forward_slashes(table[column].cast(pl.String), folder)
    return whole_numbers(table[column], name) if column == "frame" else labels(table[column])
