"""The manifest: one table of facts for every data set.

A row is one picture in one role. The columns are `SCHEMA`; labels are strings as the data set spells them, by the one
rule of `spelling.label`, so that nothing is renumbered before it has to be, and null means "the data set does not
say". Protocols decide what to do with the facts; `training_labels` makes the class indices that training needs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose
from clip3dreid.io.files import reason_of
from clip3dreid.io.formats import decoding, read_table, write_table
from clip3dreid.io.pictures import require_utf8
from clip3dreid.io.spelling import alike, labels, merged
from clip3dreid.io.table_files import whole_numbers

SCHEMA_VERSION = 1

SCHEMA: dict[str, type[pl.DataType]] = {
    "path": pl.String,  # relative to the manifest's root, with forward slashes
    "person": pl.String,  # unique within (data_set, split) only: test people may reuse training numbers
    "camera": pl.String,
    "clothes": pl.String,  # an outfit of one person: two people never share a value
    "tracklet": pl.String,
    "frame": pl.Int64,
    "split": pl.String,
    "role": pl.String,
    "query_set": pl.String,  # where a data set has several sets of queries, as PRCC's B and C
    "data_set": pl.String,
    "location": pl.String,  # where the camera stands, as MEVID's indoors and outdoors
    "scale": pl.String,  # how large the person is, in classes of the data set
}
_KIND, _AGAIN, _FACTS = "a manifest of this project", "make it anew from the data", "clip3dreid"
LATER = ("location", "scale")
"""Columns that files of earlier programs lack."""
REQUIRED = ("path", "person", "split", "role", "data_set")
SPLITS = ("train", "val", "test")
ROLES = ("train", "query", "gallery")
LABELS = ("person", "camera", "clothes", "tracklet", "query_set", "location", "scale")
"""Columns that hold labels."""


@dataclasses.dataclass(frozen=True)
class Published:
    """A count that somebody printed about a data set, to be compared with what is on disk."""

    part: str
    """`train`, `val`, `test`, `query` or `gallery` of the test split, `val_query`, `val_gallery`,
    `query X` of a query set, or `all`."""
    what: str
    """`pictures`, `people`, `clothes`, `cameras` or `tracklets`."""
    count: int
    remembered: bool = False
    """True where no readable source was found: such a count is printed, never held against the data."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A data set as a table.

    Attributes:
        name: the data set's name, also in the column `data_set`.
        root: the folder that the column `path` is relative to.
        table: one row a picture and role, columns as in `SCHEMA`.
        notes: what the reader found out and a person should know ("MSMT17 V2, faces blurred").
        published: counts to compare with.
    """

    name: str
    root: Path
    table: pl.DataFrame
    notes: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()

    def part(self, split: str, role: str | None = None) -> pl.DataFrame:
        """Return rows of a split (`train`, `val`, `test`), and of a role in it where one is given."""
        chosen = pl.col("split") == split
        return self.table.filter(chosen if role is None else chosen & (pl.col("role") == role))

    def files(self, table: pl.DataFrame | None = None) -> list[Path]:
        """Return absolute paths of the pictures of `table` (by default of all rows), in its order."""
        return [self.root / path for path in (self.table if table is None else table)["path"]]

    def renamed(self, name: str) -> Manifest:
        """Return the same data set under another name, as two copies of one set need to be told apart."""
        if name == self.name:
            return self
        return self.replace(name=name, table=self.table.with_columns(data_set=pl.lit(name)))

    def replace(self, **changes: Any) -> Manifest:
        """Return a copy with some attributes changed, validated again."""
        changed = dataclasses.replace(self, **changes)
        validate(changed.table, changed.name)
        return changed


def build(
    name: str,
    root: Path,
    rows: Iterable[dict[str, Any]] | pl.DataFrame,
    notes: Sequence[str] = (),
    published: Sequence[Published] = (),
) -> Manifest:
    """Make a validated manifest from rows.

    Args:
        name: the data set's name, written into the column `data_set`.
        root: the folder that paths are relative to.
        rows: mappings from column names to values; missing columns are null.
        notes: as in `Manifest`.
        published: as in `Manifest`.

    Returns:
        The manifest, rows sorted by split, role and path so that the order of a directory listing never
        matters.

    Raises:
        InputError: if there are no rows, a column is unknown, or a value breaks `validate`.
    """
    frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(list(rows), infer_schema_length=None)
    if frame.is_empty():
        raise InputError(f"{name}: no pictures found in {root}; check the data root")
    if unknown := sorted(set(frame.columns) - set(SCHEMA)):
        raise InputError(f"{name}: unknown columns {unknown}; the columns are {list(SCHEMA)}")
    frame = frame.with_columns(pl.lit(name).alias("data_set"))
    missing = [pl.lit(None).alias(column) for column in SCHEMA if column not in frame.columns]
    frame = frame.with_columns(missing)
    frame = frame.with_columns(whole_numbers(frame["frame"], name))
    try:
        table = frame.select(pl.col(c).cast(t) for c, t in SCHEMA.items())
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{name}: a column has values of the wrong kind: {reason_of(error)}") from error
    require_utf8([str(root)], name)
    table, spelled = _spelled(table)
    table = table.sort("split", "role", "query_set", "path")
    validate(table, name)
    return Manifest(name, root, table, (*notes, *spelled), tuple(published))


def _spelled(table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Spell labels by the one rule, and say of people and cameras where that was, or may be, in question."""
    notes = []
    spelled = table.with_columns(labels(table[column]) for column in LABELS)
    for column in ("person", "camera"):
        notes += merged(table[column], column)
        notes += alike(spelled[column].drop_nulls().unique(), column)
    return spelled, notes


def validate(table: pl.DataFrame, name: str) -> None:
    """Check that a table can be trusted.

    Raises:
        InputError: if a required value is null, a split or role is unknown, a training row has another
            role than `train` (or the reverse), a picture stands twice in one role, or an outfit belongs to
            two people of a split.
    """
    for column in REQUIRED:
        if nulls := table[column].null_count():
            raise InputError(f"{name}: {nulls} rows have no {column}; every picture needs one")
    for column, allowed in (("split", SPLITS), ("role", ROLES)):
        for value in table[column].unique().sort():
            choose(f"{name}: {column}", value, allowed)
    mixed = table.filter((pl.col("split") == "train") != (pl.col("role") == "train"))
    if not mixed.is_empty():
        raise InputError(
            f"{name}: {mixed['path'][0]} is split {mixed['split'][0]} but role {mixed['role'][0]}; "
            "training pictures have role train, all others query or gallery"
        )
    keys = ["data_set", "split", "role", "query_set", "path"]
    twice = table.filter(pl.struct(keys).is_duplicated())
    if not twice.is_empty():
        raise InputError(
            f"{name}: {twice['path'][0]} stands more than once among the {twice['role'][0]} rows"
        )
    shared = (
        table.filter(pl.col("clothes").is_not_null())
        .group_by("data_set", "split", "clothes")
        .agg(pl.col("person").unique().sort())
        .filter(pl.col("person").list.len() > 1)
    )
    if not shared.is_empty():
        raise InputError(
            f"{name}: outfit {shared['clothes'][0]!r} belongs to people {shared['person'][0].to_list()}; "
            "an outfit is one person's, so name it by person and clothes, as in '12_3'"
        )


def save(manifest: Manifest, path: Path) -> None:
    """Write a manifest as Parquet, atomically; root, notes and schema version go into its metadata."""
    facts = {
        "version": SCHEMA_VERSION,
        "name": manifest.name,
        "root": str(manifest.root),
        "notes": list(manifest.notes),
        "published": [dataclasses.astuple(count) for count in manifest.published],
    }
    write_table(path, manifest.table, {_FACTS: json.dumps(facts)})


def load(path: Path, root: Path | None = None) -> Manifest:
    """Read a manifest that `save` wrote.

    Args:
        path: the Parquet file.
        root: where the pictures are now; by default where they were when the manifest was saved.

    Raises:
        InputError: if the file is not a manifest, is damaged or has another schema version.
    """
    table, metadata = read_table(path, _KIND, _AGAIN)
    with decoding(path, _KIND, _AGAIN):
        facts = json.loads(metadata[_FACTS])
        version = facts["version"]
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has manifest version {version}, this program reads {SCHEMA_VERSION}; {_AGAIN}"
        )
    with decoding(path, _KIND, _AGAIN):
        # Files of before these columns were thought of say nothing about them.
        unsaid = [pl.lit(None).alias(column) for column in LATER if column not in table.columns]
        table = table.with_columns(unsaid).select(
            pl.col(column).cast(kind) for column, kind in SCHEMA.items()
        )
        name, was, notes = str(facts["name"]), Path(facts["root"]), tuple(map(str, facts["notes"]))
        published = tuple(Published(*count) for count in facts["published"])
    # Files of earlier versions may spell labels otherwise.
    table, _ = _spelled(table)
    validate(table, name)
    return Manifest(name, root or was, table, notes, published)


def concatenate(manifests: Sequence[Manifest]) -> Manifest:
    """Join manifests of different data sets; people stay apart because `data_set` tells them apart.

    Raises:
        InputError: if two manifests have the same name.
    """
    if len(manifests) == 1:
        return manifests[0]
    names = [manifest.name for manifest in manifests]
    if len(set(names)) < len(names):
        raise InputError(f"data sets {names} cannot be joined: a name stands twice")
    tables = [
        manifest.table.with_columns(path=pl.concat_str(pl.lit(f"{manifest.root.absolute()}/"), "path"))
        for manifest in manifests
    ]
    return Manifest(
        "+".join(names),
        Path("/"),
        pl.concat(tables),
        tuple(f"{manifest.name}: {note}" for manifest in manifests for note in manifest.notes),
    )


class TrainingLabels(NamedTuple):
    """Class indices of the rows of a training table, 0-based, in the order of the sorted names."""

    person: npt.NDArray[np.int64]
    """(N,) 0..people-1."""
    clothes: npt.NDArray[np.int64]
    """(N,) 0..outfits-1; all -1 where any row has no clothes label."""
    camera: npt.NDArray[np.int64]
    """(N,) 0..cameras-1; -1 unknown."""
    people: tuple[str, ...]
    """Name of each person index, `data_set/person`."""
    person_of_clothes: npt.NDArray[np.int64]
    """(outfits,) person index of each clothes index; empty where clothes are unknown."""
    without_clothes: int
    """How many of the rows have no clothes label."""


def training_labels(table: pl.DataFrame) -> TrainingLabels:
    """Renumber people, clothes and cameras of a training table, once, for the whole program.

    People of different data sets are different people, and so are their outfits and cameras. A data set
    without clothes labels makes the clothes of the whole table unknown: an outfit loss on half of the people
    would be a different method.
    """

    def names(column: str) -> pl.Series:
        return table.select(pl.concat_str("data_set", column, separator="/")).to_series()

    def encode(values: pl.Series) -> tuple[npt.NDArray[np.int64], list[str]]:
        known = values.drop_nulls().unique().sort()
        codes = values.replace_strict(known, np.arange(len(known)), default=-1, return_dtype=pl.Int64)
        return codes.to_numpy(), known.to_list()

    person, people = encode(names("person"))
    camera, _ = encode(names("camera"))
    without_clothes = table["clothes"].null_count()
    if without_clothes:
        clothes, person_of_clothes = np.full(len(table), -1), np.empty(0, np.int64)
    else:
        clothes, outfits = encode(names("clothes"))
        person_of_clothes = np.empty(len(outfits), np.int64)
        person_of_clothes[clothes] = person
    return TrainingLabels(person, clothes, camera, tuple(people), person_of_clothes, without_clothes)
