"""Anybody's own pictures: a table of them, or folders of people."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl

from clip3dreid.data.manifest import Manifest, build
from clip3dreid.data.sources import OnError
from clip3dreid.data.tree import SHOWN, Tree, holds_pictures, look_alike
from clip3dreid.data.video_files import crops_of_videos
from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose, some
from clip3dreid.io.spelling import labels
from clip3dreid.io.table_files import forward_slashes, read_table, understood
from clip3dreid.io.video_places import is_picture_file

PARTS = {
    "train": ("train", "train"),
    "query": ("test", "query"),
    "gallery": ("test", "gallery"),
    "val_query": ("val", "query"),
    "val_gallery": ("val", "gallery"),
}
PART_NAMES: dict[str, Collection[str]] = {
    "train": ("training",),
    "query": ("queries", "probe", "probes"),
    "gallery": ("galleries",),
    "val_query": ("valid_query", "validation_query", "val_queries", "val_probe"),
    "val_gallery": ("valid_gallery", "validation_gallery", "val_galleries"),
}
"""What else the parts' folders are called, written small and with underscores. `test` and `val` alone are none: they
do not say which pictures ask and which are searched."""
SPLITS: dict[str, Collection[str]] = {
    "train": ("training",),
    "val": ("valid", "validation"),
    "test": ("testing",),
}
ROLES: dict[str, Collection[str]] = {
    "train": ("training",),
    "query": ("queries", "probe"),
    "gallery": ("galleries",),
}


def read(
    root: Path,
    name: str = "custom",
    query_per_person: int = 0,
    split_seed: int = 0,
    tracklets: bool = False,
    on_error: OnError = "fail",
) -> Manifest:
    """Read a table of pictures, one of people in videos, or a folder `part/person/picture`.

    A table (CSV or Parquet) has the manifest's columns or some of them: `path` (relative to the table's
    folder), `person`, `split` (train, val, test) and `role` (train, query, gallery) are needed, `camera`,
    `clothes`, `tracklet`, `frame`, `query_set`, `location` and `scale` may be there. With `video` (relative to
    the table's folder), `frame` (from 0) and a box (`table_files.take_boxes`) in the place of `path`, pictures are
    cut out of the frames of videos when they are asked for. A folder's parts are `train`, `query`, `gallery`,
    `val_query` and `val_gallery`; it labels neither cameras nor clothes. People are free strings, spelled by the one
    rule for labels (`spelling.label`). Columns and parts may go by other common names. Pictures without query or
    gallery can be split by `query_per_person`.

    Args:
        root: the table or the folder.
        name: what to call the data set; two of them in one run need two names.
        query_per_person: draw so many pictures (or tracklets) of each person of the gallery as queries, but leave
            at least one; 0 draws none. Only for data that has no queries of its own.
        split_seed: of the draw.
        tracklets: folders are `part/person/tracklet/frame`, and a path in a table may be a folder of frames, which
            is a tracklet by its name in the column `tracklet`, or else by its path; of videos every row says its own.
        on_error: what is done about rows of videos that cannot be read, beyond a video's end, or whose box lies
            outside its frame: `fail` refuses them, `skip` leaves them out with a note. Pictures of files of their own
            are not looked at.

    Raises:
        InputError: if the layout or a column is another, pictures or videos are not there, a folder of frames holds
            none, rows are refused, or queries have no gallery.
    """
    choose("on_error", on_error, ("fail", "skip"))
    tree = Tree(name, root)
    is_table = root.is_file()
    if is_table:
        table, notes = _from_table(tree, tracklets, on_error)
    else:
        table, notes = _from_folders(tree, query_per_person, tracklets)
    if query_per_person:
        unit = "tracklet" if tracklets else "path"
        table = _draw_queries(tree, table, query_per_person, split_seed, unit)
        notes.append(f"{query_per_person} queries a person drawn from the gallery (split_seed {split_seed})")
    for split in ("test", "val"):
        roles = set(table.filter(pl.col("split") == split)["role"])
        if len(roles) == 1:
            raise InputError(
                f"{name}: the {split} split of {root} has only {roles.pop()} pictures; add the others, or "
                "draw queries from the gallery with data.query_per_person=1"
            )
    return build(name, root.parent, table, notes) if is_table else tree.manifest(table, notes)


def from_table(table: pl.DataFrame, root: Path, name: str = "custom") -> Manifest:
    """Make a manifest of a table in memory, as `read` does of a file.

    Args:
        table: likewise, its paths relative to `root`; without `split`, all but the role `train` is `test`.
        root: folder of the pictures.
        name: what to call the data set.

    Raises:
        InputError: as `read`.
    """
    table = understood(table, name)
    if "split" not in table.columns and "role" in table.columns:
        train = _known(table["role"], ROLES) == "train"
        table = table.with_columns(split=pl.when(train).then(pl.lit("train")).otherwise(pl.lit("test")))
    table, notes = crops_of_videos(table, root, f"{name}: the table", tracked=False, on_error="fail")
    labelled, more = _labelled(table, name, "the table", root, "root")
    return build(name, root, labelled, [*notes, *more])


def _from_table(tree: Tree, tracklets: bool, on_error: OnError) -> tuple[pl.DataFrame, list[str]]:
    what, folder = f"{tree.name}: {tree.root}", tree.root.parent
    table = understood(read_table(tree.root, what), what)
    table, notes = crops_of_videos(table, folder, what, tracked=tracklets, on_error=on_error)
    if tracklets and "path" in table.columns:
        table = _with_frames(tree, table)
    labelled, more = _labelled(table, tree.name, str(tree.root), folder, "the table's folder")
    return labelled, [*notes, *more]


def _with_frames(tree: Tree, table: pl.DataFrame) -> pl.DataFrame:
    """Put a row for each frame in the place of a row whose path is a folder."""
    home = Tree(tree.name, tree.root.parent)
    paths = [path and path.rstrip("/") for path in forward_slashes(table["path"].cast(pl.String), home.root)]
    held = {path: home.held(path) for path in paths if path and (home.root / path).is_dir()}
    if empty := sorted(path for path, frames in held.items() if not frames):
        raise InputError(
            f"{tree.name}: {len(empty)} tracklets of {tree.root} have no pictures: {some(empty, SHOWN)}; put their "
            "frames there, or take the rows out"
        )
    folders = pl.Series([path if path in held else None for path in paths], dtype=pl.String)
    named = table["tracklet"].cast(pl.String) if "tracklet" in table.columns else folders
    frames = pl.Series([held.get(path, [path]) for path in paths], dtype=pl.List(pl.String))
    return table.with_columns(path=frames, tracklet=named.fill_null(folders)).explode("path")


def _labelled(
    table: pl.DataFrame, name: str, place: str, folder: Path, relative_to: str
) -> tuple[pl.DataFrame, list[str]]:
    """Return a table of pictures that are there, with notes on its labels.

    Args:
        table: with columns by their names here.
        name: of the data set.
        place: what messages call the table.
        folder: that paths are relative to.
        relative_to: what messages call the folder.
    """
    what = f"{name}: {place}"
    if absent := [column for column in ("path", "person", "split", "role") if column not in table.columns]:
        raise InputError(f"{what} has no column {', '.join(absent)}; it has {some(table.columns, 8)}")
    if "data_set" in table.columns and table["data_set"].n_unique() > 1:
        raise InputError(f"{what} holds several data sets; keep one to a table")
    table = table.with_columns(path=forward_slashes(table["path"].cast(pl.String), folder))
    paths = table["path"].drop_nulls().unique().sort()
    if lost := [path for path in paths if not is_picture_file(folder / path)]:
        raise InputError(
            f"{name}: {len(lost)} pictures of {place} are not in {folder}: {some(lost, SHOWN)}; paths are "
            f"relative to {relative_to}"
        )
    table = table.with_columns(_known(table["split"], SPLITS), _known(table["role"], ROLES))
    return _own_clothes(table)


def _known(column: pl.Series, others: dict[str, Collection[str]]) -> pl.Series:
    """Return a column of few words, which may be spelled in other common ways."""
    words = {other: word for word, known in others.items() for other in (word, *known)}
    column = column.cast(pl.String)
    found = {text: words.get(text.strip().casefold(), text) for text in column.drop_nulls().unique()}
    return column.replace(found)


def _own_clothes(table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Make outfits belong to one person each: tables often number them anew for every person."""
    if "clothes" not in table.columns:
        return table, []
    # Spelled first: what is put together of two labels is spelled by no rule any more.
    table = table.with_columns(clothes=labels(table["clothes"]))
    person = labels(table["person"])
    owners = (
        table.with_columns(person=person)
        .drop_nulls("clothes")
        .group_by("split", "clothes")
        .agg(pl.col("person").n_unique())
    )
    if (owners["person"] < 2).all():
        return table, []
    owned = person + "_" + table["clothes"]
    return table.with_columns(clothes=owned), [
        "people share clothes labels, so they are read as person_clothes"
    ]


def _from_folders(tree: Tree, query_per_person: int, tracklets: bool) -> tuple[pl.DataFrame, list[str]]:
    parts, others = _parts(tree)
    if not parts and query_per_person and others:
        # A flat folder of people is a gallery to draw queries from.
        parts = {"": "gallery"}
    elif others and parts:
        raise InputError(
            f"{tree.name}: {len(others)} folders of {tree.root} hold pictures and are no part: {some(others, 3)}; "
            f"the parts are {', '.join(PARTS)}: rename them, or move them away"
        )
    elif not parts:
        raise InputError(f"{tree.name}: {_no_parts(tree, others)}")
    depth = 2 if tracklets else 1
    rows = [
        {
            "path": path,
            "person": path.split("/")[-1 - depth],
            "split": PARTS[part][0],
            "role": PARTS[part][1],
            "tracklet": path.rpartition("/")[0] if tracklets else None,
        }
        for folder, part in parts.items()
        for path in tree.pictures(folder, depth)
    ]
    empty = [path for folder in parts for path in tree.without_pictures(folder, depth)] if tracklets else []
    notes = [f"{len(empty)} tracklets have no frames: {some(empty, 3)}"] if empty else []
    return pl.DataFrame(rows, schema_overrides={"tracklet": pl.String}), notes


def _parts(tree: Tree) -> tuple[dict[str, str], list[str]]:
    """Return the folders that are parts, with the part's name, and the others that hold pictures.

    Raises:
        InputError: if two folders are the same part.
    """
    known = {_key(other): part for part, names in PART_NAMES.items() for other in (part, *names)}
    parts: dict[str, str] = {}
    others = []
    for folder in tree.folders():
        part = known.get(_key(folder))
        if part is None and holds_pictures(tree.root / folder):
            others.append(folder)
        elif part in parts.values():
            first = next(name for name, own in parts.items() if own == part)
            raise InputError(f"{tree.name}: {first} and {folder} of {tree.root} are both {part}; join them")
        elif part is not None:
            parts[folder] = part
    return parts, others


def _key(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")


def _no_parts(tree: Tree, others: list[str]) -> str:
    """Return why a folder holds no part, in one line."""
    where = tree.root
    expected = "expected are folders train/PERSON, or query/PERSON and gallery/PERSON"
    if not where.is_dir():
        return f"the data root {where} is not there; {look_alike(where, [])}"
    if others:
        return (
            f"{where} holds pictures in {some(others, 3)} and none of the parts {', '.join(PARTS)}; {expected}. "
            "If these are people, put them into train/ to train on them, or draw queries with data.query_per_person=1"
        )
    return f"no pictures in the folders of {where}; {expected}"


def _draw_queries(tree: Tree, table: pl.DataFrame, per_person: int, seed: int, unit: str) -> pl.DataFrame:
    """Make queries of some of the gallery's pictures or tracklets of each person, leaving at least one there."""
    if "query" in set(table["role"]):
        raise InputError(f"{tree.name}: {tree.root} has queries of its own; leave data.query_per_person at 0")
    generator = np.random.default_rng(seed)
    table = table.sort("split", "person", "path")
    table = table.with_columns(unit=pl.struct("split", "person", unit).rank("dense"))
    gallery = table.filter(pl.col("role") == "gallery")
    drawn: list[int] = []
    for _, pictures in gallery.group_by("split", "person", maintain_order=True):
        units = pictures["unit"].unique(maintain_order=True)
        count = min(per_person, len(units) - 1)
        drawn += generator.choice(units.to_numpy(), count, replace=False).tolist()
    query = (pl.col("role") == "gallery") & pl.col("unit").is_in(drawn)
    return table.with_columns(role=pl.when(query).then(pl.lit("query")).otherwise("role")).drop("unit")
