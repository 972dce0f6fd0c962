"""Inspect a data set: what it holds on disk, and what each protocol makes of it.

The report joins `data` and `retrieval`, which know nothing of each other; so it stands on the floor that uses both.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clip3dreid.data.evaluation_sets import EvaluationSet, evaluation_sets
from clip3dreid.data.inspection import DataReport, Table, describe_data
from clip3dreid.data.manifest import ROLES, SPLITS, Manifest
from clip3dreid.data.selection import hold_out
from clip3dreid.data.sources import DataSpec, read_manifest
from clip3dreid.data.tracklets import KEYS, spread
from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.report.search_sheet import Row, ShownPicture, check_sheet, draw_search
from clip3dreid.report.tables import html_table, text_table
from clip3dreid.retrieval.protocol import ProtocolSet
from clip3dreid.retrieval.protocol_counts import count

log = logging.getLogger(__name__)

_PEOPLE = 4
"""Of a part of a data set that a sheet shows."""
_FRAMES = 8
"""That it shows of each."""
_HEIGHT = 160
"""Pixels of each."""


@dataclass(frozen=True)
class ProtocolReport:
    """What a protocol makes of a split, features aside."""

    split: str
    protocol: str
    description: str
    same_picture: str
    of: Literal["pictures", "tracklets"]
    """What is asked and found."""
    counts: Mapping[str, Any]
    """As `retrieval.evaluation.count` gives them."""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        facts = dataclasses.asdict(self)
        return {key: facts[key] for key in facts if key != "counts"} | dict(self.counts)


@dataclass(frozen=True, repr=False)
class Inspection:
    """What was found out about a data set, which prints as tables."""

    manifest: Manifest
    """With people held out, where that was asked for."""
    data: DataReport
    protocols: tuple[ProtocolReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as JSON can hold it, with a version."""
        return self.data.to_dict() | {"protocols": [report.to_dict() for report in self.protocols]}

    def tables(self) -> list[Table]:
        """Return the report as tables to print: title, header and rows."""
        tables = self.data.tables()
        if self.protocols:
            columns = {
                "queries": "queries",
                "valid": "valid_queries",
                "in gallery": "queries_in_gallery",
                "gallery": "gallery",
                "positives a query": "positives_per_query",
                "junk a query": "junk_per_query",
            }
            shares = {"junk, % of gallery": "junk_share", "chance R1, %": "chance_r1"}
            rows = [
                [
                    report.split,
                    report.protocol,
                    report.of,
                    *(report.counts[key] for key in columns.values()),
                    *(100 * report.counts[key] for key in shares.values()),
                ]
                for report in self.protocols
            ]
            described = {report.protocol: report.description for report in self.protocols}
            tables.append(("Protocols", ["split", "protocol", "of", *columns, *shares], rows))
            tables.append(("", ["protocol", "what it does"], [list(pair) for pair in described.items()]))
        return tables

    def __repr__(self) -> str:
        """Return the tables and remarks."""
        tables = [f"{title}\n{text_table(header, rows)}".strip() for title, header, rows in self.tables()]
        return "\n".join([*tables, *self.remarks()])

    def _repr_html_(self) -> str:
        """Return the same for a notebook."""
        *tables, (title, header, rows) = self.tables()
        parts = [html_table(*table, notes=()) for table in tables]
        return "".join([*parts, html_table(title, header, rows, self.remarks())])

    def draw(self, path: Path) -> None:
        """Write a picture of some people of every part: a strip of frames of a tracklet, or pictures of each.

        Args:
            path: of the picture; its suffix is one of `report.search_sheet.SUFFIXES`.

        Raises:
            InputError: if it has another suffix, or cannot be written.

        Example:
            >>> from clip3dreid.training.inspection import inspect
            >>> inspect(manifest).draw(Path("ltcc.jpg"))  # doctest: +SKIP
        """
        check_sheet(path)
        draw_search(path, strips(self.manifest), height=_HEIGHT, columns=_FRAMES)

    def remarks(self) -> list[str]:
        """Return what to know of queries that find themselves, and of those that nothing can be found for."""
        remarks = []
        for report in self.protocols:
            counts = report.counts
            if themselves := counts["queries_in_gallery"]:
                remarks.append(
                    f"{report.split}, {report.protocol}: {themselves} of {counts['queries']} queries are in the "
                    f"gallery themselves, by path or bytes (same_picture={report.same_picture}): "
                    + some(counts["in_gallery"], total=themselves)
                )
            if alone := counts["queries"] - counts["valid_queries"]:
                remarks.append(
                    f"{report.split}, {report.protocol}: {alone} queries without a positive: "
                    + some(counts["without_positive"], total=alone)
                )
        return remarks


def inspect(
    source: DataSpec | Manifest,
    protocols: Mapping[str, ProtocolSet] | None = None,
    *,
    decode: bool = True,
    workers: int = 4,
    seed: int = 1,
) -> Inspection:
    """Find out what a data set holds, and what each protocol makes of it.

    Args:
        source: a data set on disk, as it is asked for, or its manifest.
        protocols: split (`test` or `val`) -> the protocols to try on it; None: none.
        decode: decode every picture in full, which finds truncated files; otherwise only headers are read.
        workers: threads that read pictures.
        seed: of the draw of held-out people, where the source asks for some.

    Returns:
        The report. Nothing in it is an error: differences from published counts are for people to judge, and a
        protocol that does not fit the labels is left out with a line in the log.

    Raises:
        InputError: if the root is not there or does not look like this data set, or too many people are to be held
            out.
    """
    manifest = source if isinstance(source, Manifest) else _read(source, seed)
    data = describe_data(manifest, decode, workers)
    reports = [
        report
        for split, chosen in (protocols or {}).items()
        for report in _try_protocols(manifest, split, chosen)
    ]
    return Inspection(manifest, data, tuple(reports))


def strips(manifest: Manifest) -> list[Row]:
    """Return what a sheet shows of some people of every part, one after another.

    Args:
        manifest: the data set.

    Returns:
        Rows without a query, whose text says who is seen: up to `_PEOPLE` people at equal distances of each part,
        and of each the frames of a tracklet, or pictures, at equal distances.
    """
    rows = []
    for split, role in ((split, role) for split in SPLITS for role in ROLES):
        part = manifest.part(split, role)
        if part.is_empty():
            continue
        by_number = part.sort("frame", "path", nulls_last=True)
        people = by_number.partition_by("data_set", "person")
        people.sort(key=lambda own: (own["data_set"][0], own["person"][0]))
        for own in spread(people, _PEOPLE):
            # A tracklet is known by its camera too.
            shown, first = own, own.filter(own["tracklet"].is_not_null()).head(1).select(*KEYS)
            if len(first):
                shown = own.join(first, on=KEYS, how="semi", nulls_equal=True, maintain_order="left")
            facts = shown.row(0, named=True)
            named = ["person", *(("camera", "clothes", "tracklet") if len(first) else ())]
            said = [f"{name} {facts[name]}" for name in named if facts[name] is not None]
            what = "frames" if len(first) else "pictures"
            # `train` is both.
            text = ", ".join([*dict.fromkeys((split, role)), *said, f"{len(shown)} {what}"])
            files = spread(manifest.files(shown), _FRAMES)
            rows.append(Row(text, [], [ShownPicture(file) for file in files]))
    return rows


def _read(spec: DataSpec, seed: int) -> Manifest:
    return hold_out(read_manifest(spec), spec.val_people, seed)


def _try_protocols(manifest: Manifest, split: str, protocols: ProtocolSet) -> list[ProtocolReport]:
    """Return what each protocol makes of a split: valid queries, and what share of the gallery is junk."""
    reports = []
    for of, found in _sets(manifest, split):
        for name, protocol in protocols.protocols.items():
            try:
                counts = count(protocol, found.query, found.gallery)._asdict()
            except InputError as error:
                log.warning("%s", error)
            else:
                about = (protocol.description, protocol.same_picture)
                reports.append(ProtocolReport(split, name, *about, of, counts))
    return reports


def _sets(manifest: Manifest, split: str) -> Iterator[tuple[Literal["pictures", "tracklets"], EvaluationSet]]:
    """Yield the pictures of a split, and its tracklets where all pictures belong to some."""
    for found in evaluation_sets([manifest], split):
        yield "pictures", found
    table = manifest.part(split)
    if table["tracklet"].null_count() == 0:
        try:
            of_clips = evaluation_sets([manifest], split, clips=True)
        except InputError:  # the report's faults say of what
            return
        for found in of_clips:
            yield "tracklets", found
