"""Anybody's own pictures: a table of them, or folders of people."""

from pathlib import Path

import numpy as np
import polars as pl

from clip3dreid.data.layout import Tree, shorten
from clip3dreid.data.manifest import Manifest, build
from clip3dreid.errors import InputError
from clip3dreid.formats import decoding, read_table

PARTS = {
    "train": ("train", "train"),
    "query": ("test", "query"),
    "gallery": ("test", "gallery"),
    "val_query": ("val", "query"),
    "val_gallery": ("val", "gallery"),
}
READERS = {".csv": "csv", ".parquet": "parquet"}


def read(root: Path, name: str = "custom", query_per_person: int = 0, split_seed: int = 0) -> Manifest:
    """Reads a table of pictures, or a folder `part/person/picture`.

    A table (CSV or Parquet) has the manifest's columns or some of them: `path` (relative to the table's
    folder), `person`, `split` (train, val, test) and `role` (train, query, gallery) are needed, `camera`,
    `clothes`, `tracklet`, `frame` and `query_set` may be there. A folder's parts are `train`, `query`,
    `gallery`, `val_query` and `val_gallery`; it labels neither cameras nor clothes. People are free strings
    and stay as they are written. Pictures without query or gallery can be split by `query_per_person`.

    Args:
        root: the table or the folder.
        name: what to call the data set; two of them in one run need two names.
        query_per_person: draw so many pictures of each person of the gallery as queries, but leave at least
            one; 0 draws none. Only for data that has no queries of its own.
        split_seed: of the draw.

    Raises:
        InputError: if the layout or a column is another, pictures are not there, or queries have no gallery.
    """
    tree = Tree(name, root)
    is_table = root.is_file()
    table, notes = _from_table(tree) if is_table else _from_folders(tree, query_per_person)
    if query_per_person:
        table = _draw_queries(tree, table, query_per_person, split_seed)
        notes.append(f"{query_per_person} queries a person drawn from the gallery (split_seed {split_seed})")
    for split in ("test", "val"):
        roles = set(table.filter(pl.col("split") == split)["role"])
        if len(roles) == 1:
            raise InputError(
                f"{name}: the {split} split of {root} has only {roles.pop()} pictures; add the others, or "
                "draw queries from the gallery with data.query_per_person=1"
            )
    return build(name, root.parent if is_table else root, table, notes)


def _from_table(tree: Tree) -> tuple[pl.DataFrame, list[str]]:
    kind = tree.option("a table's suffix", tree.root.suffix.lower(), READERS)
    with decoding(f"{tree.name}: {tree.root}", kind, "write it anew"):
        # Everything stays a string, so that person 007 does not become 7.
        table = (
            pl.read_csv(tree.root, infer_schema=False, glob=False)
            if kind == "csv"
            else read_table(tree.root, kind, "write it anew", sealed=False)[0]
        )
    if absent := [column for column in ("path", "person", "split", "role") if column not in table.columns]:
        raise InputError(
            f"{tree.name}: {tree.root} has no column {', '.join(absent)}; it has {', '.join(table.columns)}"
        )
    if "data_set" in table.columns and table["data_set"].n_unique() > 1:
        raise InputError(f"{tree.name}: {tree.root} holds several data sets; keep one to a table")
    folder = tree.root.parent
    if lost := [path for path in table["path"].drop_nulls().unique().sort() if not (folder / path).is_file()]:
        raise InputError(
            f"{tree.name}: {len(lost)} pictures of {tree.root} are not in {folder}: {shorten(lost)}; paths "
            "are relative to the table's folder"
        )
    table = table.with_columns(pl.col(column).cast(pl.String) for column in ("person", "split", "role"))
    return _own_clothes(table)


def _own_clothes(table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Makes outfits belong to one person each: tables often number them anew for every person."""
    if "clothes" not in table.columns:
        return table, []
    owners = table.drop_nulls("clothes").group_by("split", "clothes").agg(pl.col("person").n_unique())
    if (owners["person"] < 2).all():
        return table, []
    owned = pl.concat_str("person", pl.col("clothes").cast(pl.String), separator="_")
    return table.with_columns(clothes=owned), [
        "people share clothes labels, so they are read as person_clothes"
    ]


def _from_folders(tree: Tree, query_per_person: int) -> tuple[pl.DataFrame, list[str]]:
    parts = {part: place for part, place in PARTS.items() if (tree.root / part).is_dir()}
    if not parts and query_per_person and tree.root.is_dir():
        # A flat folder of people is a gallery to draw queries from.
        parts = {"": PARTS["gallery"]}
    if not parts:
        tree.choose({"train": ["train/"], "test": ["query/", "gallery/"]})
    rows = [
        {"path": path, "person": path.split("/")[-2], "split": split, "role": role}
        for part, (split, role) in parts.items()
        for path in tree.pictures(part, depth=1)
    ]
    return pl.DataFrame(rows), []


def _draw_queries(tree: Tree, table: pl.DataFrame, per_person: int, seed: int) -> pl.DataFrame:
    """Makes queries of some gallery pictures of each person, leaving at least one in the gallery."""
    if "query" in set(table["role"]):
        raise InputError(f"{tree.name}: {tree.root} has queries of its own; leave data.query_per_person at 0")
    generator = np.random.default_rng(seed)
    table = table.sort("split", "person", "path").with_row_index("row")
    gallery = table.filter(pl.col("role") == "gallery")
    drawn: list[int] = []
    for _, pictures in gallery.group_by("split", "person", maintain_order=True):
        count = min(per_person, len(pictures) - 1)
        drawn += generator.choice(pictures["row"].to_numpy(), count, replace=False).tolist()
    query = pl.col("row").is_in(drawn)
    return table.with_columns(role=pl.when(query).then(pl.lit("query")).otherwise("role")).drop("row")
