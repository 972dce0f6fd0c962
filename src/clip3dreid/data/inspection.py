"""Describe what a data set holds: counts beside the published ones, labels, pictures' sizes, unreadable files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from clip3dreid.data.manifest import Manifest
from clip3dreid.io.pictures import picture_size, read_rgb, unreadable

REPORT_VERSION = 1
SHOWN = 20
"""How many unreadable pictures the table lists; the dictionary has them all."""
BLOCK = 256
"""Pictures a thread looks at before it takes the next ones: a task each would cost more than the work."""

Table = tuple[str, list[str], list[list[Any]]]
"""Title, header, rows."""


class Spread(NamedTuple):
    """Least, median and most of a quantity."""

    least: float
    median: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:g} / {self.median:g} / {self.most:g}"


class PartCounts(NamedTuple):
    """What a part of a data set holds; None where no picture of it has the label."""

    pictures: int
    people: int
    clothes: int | None
    cameras: int | None
    tracklets: int | None
    pictures_per_person: Spread


class PublishedComparison(NamedTuple):
    """A published count beside what is on disk."""

    part: str
    what: str
    published: int
    found: int | None
    remembered: bool
    """True where no readable source for the published count was found: a difference proves nothing."""


class Unreadable(NamedTuple):
    """A picture that the decoder refuses."""

    path: str
    reason: str


class Sizes(NamedTuple):
    """Sizes of the readable pictures in pixels, as they stand after their EXIF orientation is honoured."""

    distinct: int
    width: Spread
    height: Spread
    most_common: str


@dataclasses.dataclass(frozen=True)
class DataReport:
    """The facts about a data set.

    Attributes:
        name: the data set's name.
        root: where it lies.
        counts: by part: `train`, `val`, `val_query`, `val_gallery`, `test`, `query`, `query X` for each query
            set X, `gallery`, and `all`; parts without pictures are left out.
        published: published counts beside those found.
        sizes: of the pictures; None if none is readable.
        unreadable: pictures that cannot be opened, or decoded where `decoded`.
        decoded: whether whole pictures were decoded, or only their headers read.
        names_in_train_and_test: how many person names stand in both. Where a data set restarts its numbers
            these are different people (its notes say so); anywhere else they are the same.
        notes: the reader's.
    """

    name: str
    root: Path
    counts: dict[str, PartCounts]
    published: tuple[PublishedComparison, ...]
    sizes: Sizes | None
    unreadable: tuple[Unreadable, ...]
    decoded: bool
    names_in_train_and_test: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it, with a version."""
        return {
            "version": REPORT_VERSION,
            "name": self.name,
            "root": str(self.root),
            "counts": {part: _plain(counts) for part, counts in self.counts.items()},
            "published": [_plain(comparison) for comparison in self.published],
            "sizes": None if self.sizes is None else _plain(self.sizes),
            "unreadable": [_plain(picture) for picture in self.unreadable],
            "decoded": self.decoded,
            "names_in_train_and_test": self.names_in_train_and_test,
            "notes": list(self.notes),
        }

    def tables(self) -> list[Table]:
        """Return the report as tables to print: title, header and rows, all strings."""
        tables: list[Table] = [self._counts_table()]
        if self.published:
            tables.append(self._published_table())
        tables.append(self._pictures_table())
        if self.unreadable:
            rows = [list(picture) for picture in self.unreadable[:SHOWN]]
            if len(self.unreadable) > SHOWN:
                rows.append([f"and {len(self.unreadable) - SHOWN} more", ""])
            tables.append(("Unreadable pictures", ["path", "reason"], rows))
        if self.notes:
            tables.append(("Notes", ["note"], [[note] for note in self.notes]))
        return tables

    def _counts_table(self) -> Table:
        header = ["part", "pictures", "people", "clothes", "cameras", "tracklets", "pictures a person"]
        rows = [
            [part, *(_number(count) for count in counts[:-1]), str(counts.pictures_per_person)]
            for part, counts in self.counts.items()
        ]
        return f"{self.name} in {self.root} (a person: least / median / most)", header, rows

    def _published_table(self) -> Table:
        rows = [[c.part, c.what, _number(c.published), _number(c.found), _verdict(c)] for c in self.published]
        return "Published counts", ["part", "of", "published", "found", "difference"], rows

    def _pictures_table(self) -> Table:
        rows = [["unreadable" if self.decoded else "unreadable headers", _number(len(self.unreadable))]]
        if self.sizes:
            rows += [
                ["width, pixels", str(self.sizes.width)],
                ["height, pixels", str(self.sizes.height)],
                ["distinct sizes", _number(self.sizes.distinct)],
                ["most common size", self.sizes.most_common],
            ]
        rows.append(["person names in both train and test", _number(self.names_in_train_and_test)])
        return "Pictures (least / median / most)", ["fact", "value"], rows


def describe_data(manifest: Manifest, decode: bool = False, workers: int = 4) -> DataReport:
    """Find out what a data set holds on disk.

    Args:
        manifest: the data set.
        decode: decode every picture in full, which finds truncated files; otherwise only headers are read.
        workers: threads that read pictures.

    Returns:
        The report. Nothing in it is an error: differences from published counts are for people to judge.
    """
    counts = {part: _count(rows) for part, rows in _parts(manifest.table) if not rows.is_empty()}
    sizes, unreadable, mixed = _look(manifest, decode, workers)
    names = [set(manifest.part(split)["person"]) for split in ("train", "test")]
    return DataReport(
        name=manifest.name,
        root=manifest.root,
        counts=counts,
        published=tuple(
            PublishedComparison(p.part, p.what, p.count, _found(counts, p.part, p.what), p.remembered)
            for p in manifest.published
        ),
        sizes=sizes,
        unreadable=unreadable,
        decoded=decode,
        names_in_train_and_test=len(names[0] & names[1]),
        notes=(*manifest.notes, *mixed),
    )


def _parts(table: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield the parts whose counts are published anywhere, in the order in which they are read."""
    split, role, query_set = pl.col("split"), pl.col("role"), pl.col("query_set")
    yield "train", table.filter(split == "train")
    for name, prefix in (("val", "val_"), ("test", "")):
        rows = table.filter(split == name)
        queries = rows.filter(role == "query")
        yield name, rows
        yield f"{prefix}query", queries
        for one in queries["query_set"].drop_nulls().unique().sort():
            yield f"{prefix}query {one}", queries.filter(query_set == one)
        yield f"{prefix}gallery", rows.filter(role == "gallery")
    yield "all", table


def _count(rows: pl.DataFrame) -> PartCounts:
    def distinct(*columns: str) -> int:
        return rows.select(columns).drop_nulls().n_unique()

    def label(*columns: str) -> int | None:
        return distinct(*columns) or None

    # Person numbers may restart in another split, so 1 of train and 1 of test count as two people.
    person = ("data_set", "split", "person")
    per_person = rows.group_by(person).agg(pl.col("path").n_unique())["path"]
    return PartCounts(
        pictures=distinct("data_set", "path"),
        people=distinct(*person),
        clothes=label("data_set", "split", "clothes"),
        cameras=label("data_set", "camera"),
        tracklets=label(*person, "tracklet"),
        pictures_per_person=_spread(per_person),
    )


def _found(counts: dict[str, PartCounts], part: str, what: str) -> int | None:
    """Return a count of a part; 0 where the part has no pictures, None where it has no such label."""
    if part not in counts:
        return 0
    number: int | None = getattr(counts[part], what)
    return number


def _look(
    manifest: Manifest, decode: bool, workers: int
) -> tuple[Sizes | None, tuple[Unreadable, ...], list[str]]:
    paths = manifest.table["path"].unique().sort().to_list()
    blocks = [paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK)]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        looks = list(chain.from_iterable(pool.map(lambda b: _look_at(manifest.root, b, decode), blocks)))
    unreadable = tuple(look for look in looks if isinstance(look, Unreadable))
    sizes = [look for look in looks if not isinstance(look, Unreadable)]
    mixed = _of_several_sizes(manifest.table, paths, looks)
    if not sizes:
        return None, unreadable, mixed
    ((width, height), times), *_ = Counter(sizes).most_common(1)
    return (
        Sizes(
            distinct=len(set(sizes)),
            width=_spread(pl.Series([size[0] for size in sizes])),
            height=_spread(pl.Series([size[1] for size in sizes])),
            most_common=f"{width} x {height} ({times / len(sizes):.0%})",
        ),
        unreadable,
        mixed,
    )


def _of_several_sizes(
    table: pl.DataFrame, paths: Sequence[str], looks: Sequence[tuple[int, int] | Unreadable]
) -> list[str]:
    """Return a note where the frames of a tracklet differ in size, which clips need not mind: they are resized."""
    rows = [
        (path, f"{look[0]} x {look[1]}")
        for path, look in zip(paths, looks, strict=True)
        if not isinstance(look, Unreadable)
    ]
    sizes = pl.DataFrame(rows, schema={"path": pl.String, "size": pl.String}, orient="row")
    frames = table.filter(pl.col("tracklet").is_not_null()).join(sizes, on="path")
    keys = ("data_set", "split", "role", "person", "camera", "tracklet")
    counts = frames.group_by(keys).agg(pl.col("size").n_unique())
    several = counts.filter(pl.col("size") > 1)
    if several.is_empty():
        return []
    return [
        f"{len(several)} of {len(counts)} tracklets have frames of several sizes, which clips resize to one"
    ]


def _look_at(root: Path, paths: Sequence[str], decode: bool) -> list[tuple[int, int] | Unreadable]:
    """Return width and height of each picture, or why it cannot be read."""
    looks: list[tuple[int, int] | Unreadable] = []
    for path in paths:
        try:
            size = picture_size(root / path)
            if decode:
                # As training does it, so that a picture that passes here cannot fail there.
                read_rgb(root / path)
        # Decoders raise whatever they like on broken bytes; all of it means that the picture is unreadable.
        except Exception as error:
            looks.append(Unreadable(path, unreadable(path, error).reason))
        else:
            looks.append(size)
    return looks


def _spread(values: pl.Series) -> Spread:
    least, median, most = (float(v) for v in (values.min(), values.median(), values.max()))  # type: ignore[arg-type]
    return Spread(least, median, most)


def _plain(record: Any) -> Any:
    """Return a named tuple as a dictionary, all the way down."""
    if hasattr(record, "_asdict"):
        return {key: _plain(value) for key, value in record._asdict().items()}
    return record


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _verdict(comparison: PublishedComparison) -> str:
    """Return what to make of a published count: nothing of one that is only remembered."""
    missed = None if comparison.found is None else comparison.found - comparison.published
    difference = {None: "no such label", 0: "none"}.get(missed, f"{missed or 0:+,}")
    return f"{difference} (published count remembered, no source)" if comparison.remembered else difference
