"""Search by LanceDB: an index on disk, in an object store or on a server, for galleries of millions."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.io.files import inside, reason_of
from clip3dreid.io.locks import at_work
from clip3dreid.io.spelling import label
from clip3dreid.search.engine import Searchable
from clip3dreid.search.filters import FRAME, Clause, Filter, identifier, nothing_left, unknown_label
from clip3dreid.search.top_k import TopK, unit

log = logging.getLogger(__name__)

INDEX_VERSION = 2
KINDS = ("IvfRq", "IvfFlat", "IvfSq")
# Beside the labels, which keep their names.
ROW, VECTOR, DISTANCE = "_gallery_row", "_gallery_vector", "_distance"
SPELLED = "_spelled_"
"""Before the name of a label: a column with it in the one spelling that filters ask for, where its own is another."""
_SEEN = 1000
"""Rows that are looked at for labels to name in a message."""
WAIT = timedelta(days=1)
"""How long a server may take to build an index."""


class Lance:
    """Searches near the query, not everywhere: nearly all of the nearest, at a fraction of the work.

    The index is built where there is none, in memory that does not grow with the gallery, and marked finished by a
    table of its own, written last: what a killed build left is built anew. The mark holds the model's fingerprint and
    a digest of the pictures and labels; an index of another model or others is refused. Labels are in it: once built,
    it is searched, filtered and its hits are named without a look at the gallery. One process builds, any number
    search: in a folder others wait until it has built, elsewhere nobody keeps them apart. Tables of the same names
    that are not of this program are refused.

    Vectors are put into lists about centres, and the lists nearest to the query are read. A filter is applied before
    the search: the fewer rows it allows, the more lists are read, in the end all of them, so that what it allows is
    found.

    Args:
        gallery: what to search.
        column: which of its vectors.
        uri: a folder, an object store (`s3://…`, `gs://…`, `az://…`) or a server (`db://…`, key in LANCEDB_API_KEY);
            by default the folder `lance` in the gallery's.
        name: of the gallery there: two galleries in one place need two names.
        kind: `IvfRq` keeps a bit a value (RaBitQ; Gao & Long, SIGMOD 2024) and compares the best anew with the whole
            vectors; `IvfFlat` keeps whole vectors twice; `IvfSq` a byte a value.
        lists: how many there are; by default the root of the number of rows.
        probes: lists that are read for a query: more find more, and take longer.
        refine: how many times k candidates are compared anew; null for none.
        index_from: smaller galleries are searched exactly, without an index.
        connection: further arguments of `lancedb.connect`, such as `region` and `host_override` of a server or
            `storage_options` of an object store.
        rebuild: build anew, as after another extraction under the same labels.

    Raises:
        InputError: if LanceDB is not installed, a setting or the gallery does not fit, the place cannot be read or
            written, or holds an index of another model or other labels, or something else under its name.
    """

    holds_labels = True

    def __init__(
        self,
        gallery: Searchable,
        column: str,
        *,
        uri: str | None = None,
        name: str = "gallery",
        kind: str = "IvfRq",
        lists: int | None = None,
        probes: int = 512,
        refine: int | None = 10,
        index_from: int = 20_000,
        connection: Mapping[str, Any] | None = None,
        rebuild: bool = False,
    ) -> None:
        choose("engine.kind", kind, KINDS)
        for key, value in (("lists", lists), ("probes", probes), ("refine", refine)):
            if value is not None:
                check_number(f"engine.{key}", value, Range(1), whole=True)
        self._client = _client()
        self._width = gallery.width(column)
        self._asked_lists, self._index_from = lists, index_from
        self._kind, self._probes, self._refine = kind, probes, refine
        self._place = str(inside(gallery.folder, "lance")) if uri is None else uri
        self._name = f"{name}_{column}"
        wanted = _stamp(gallery, column)
        with _explained(self._place):
            self._database = self._client.connect(self._place, **(connection or {}))
            stamp = None if rebuild else self._finished()
            if stamp is None:
                with self._alone():
                    # Whoever was at work there may have built it.
                    stamp = None if rebuild else self._finished()
                    if stamp is None:
                        self._build(gallery, column, wanted)
            if stamp is not None:
                _refuse_others(f"{self._place}, {self._name}", stamp, wanted)
            self._table = self._database.open_table(self._name)
            self._rows = int(self._table.count_rows())
        self._names = [name for name in self._table.schema.names if name not in (ROW, VECTOR)]
        self._allowed: dict[str, int] = {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep a folder to this process, and anything but an index of ours from being replaced."""
        if "://" in self._place:
            self._refuse_foreign()
            yield
            return
        folder = Path(self._place).expanduser()
        with at_work(folder, "builds an index", wait=True, tidy=True):
            for name in (self._name, self._mark):
                inside(folder, f"{name}.lance")
            self._refuse_foreign()
            yield

    def _refuse_foreign(self) -> None:
        """Check that a table that is to be replaced is of this program."""
        for name, columns in ((self._name, {ROW, VECTOR}), (self._mark, {"stamp"})):
            try:
                held = set(self._database.open_table(name).schema.names)
            except ValueError:  # none, or one that was never finished, which holds nothing
                continue
            if not columns <= held:
                raise InputError(
                    f"{self._place} holds a table {name} that is no index of this program; give another "
                    "engine.name or engine.uri"
                )

    def search(self, query: Tensor, k: int, where: Filter) -> TopK:
        """Search as `engine.Index.search` does; rows whose scores tie stand in gallery order.

        Raises:
            InputError: as there, or if the place can no longer be read.
        """
        check_number("k", k, Range(1), whole=True)
        if query.dim() != 2 or query.shape[1] != self._width:
            raise InputError(
                f"queries are {tuple(query.shape)}, the gallery's vectors {self._width} wide; "
                "both must come from one model"
            )
        vectors = unit(query.cpu(), "query").float().numpy()
        with _explained(self._place):
            condition, allowed = self._condition(where)
        rows, scores = torch.full((len(query), k), -1), torch.full((len(query), k), -torch.inf)

        def answer(place: int) -> None:
            found = self._search_one(vectors[place], k, condition, allowed)
            rows[place, : len(found)] = torch.from_numpy(found[ROW].to_numpy().copy())
            scores[place, : len(found)] = torch.from_numpy(found["score"].to_numpy().copy())

        with _explained(self._place), ThreadPoolExecutor(os.cpu_count()) as workers:
            list(workers.map(answer, range(len(query))))
        return TopK(rows.to(query.device), scores.to(query.device))

    def __len__(self) -> int:
        """Return the number of gallery rows."""
        return self._rows

    def labels_at(self, rows: Sequence[int]) -> pl.DataFrame:
        """Return the labels of gallery rows: see `engine.LabelledIndex.labels_at`."""
        shown = [name for name in self._names if not name.startswith(SPELLED)]
        with _explained(self._place):
            if not rows:
                return pl.DataFrame(
                    pl.from_arrow(self._table.search().select(shown).limit(1).to_arrow())
                ).clear()
            listed = ", ".join(map(str, rows))
            asked = self._table.search().where(f"{ROW} IN ({listed})").select([ROW, *shown]).limit(len(rows))
            found = pl.DataFrame(pl.from_arrow(asked.to_arrow()))
        wanted = pl.DataFrame({ROW: rows}, schema={ROW: pl.Int64})
        return wanted.join(found, on=ROW, how="left", maintain_order="left").select(shown)

    def check(self, where: Filter) -> None:
        """Refuse a filter: see `engine.LabelledIndex.check`."""
        with _explained(self._place):
            self._condition(where)

    def _condition(self, where: Filter) -> tuple[str | None, int]:
        """Return a filter as SQL, None where it allows everything, and how many rows it allows.

        Raises:
            InputError: if it names a label that is not there, or leaves nothing.
        """
        nested = {field.name for field in self._table.schema if field.type.num_fields}
        stored = {
            name: SPELLED + name if SPELLED + name in self._names else name
            for name in self._names
            if not name.startswith(SPELLED) and name not in nested
        }
        clauses = list(where.clauses(stored))
        if not clauses:
            return None, self._rows
        whole = " AND ".join(clause.sql for clause in clauses)
        if whole not in self._allowed:
            if not (allowed := int(self._table.count_rows(whole))):
                raise self._reason(clauses, stored)
            self._allowed[whole] = allowed
        return whole, self._allowed[whole]

    def _reason(self, clauses: Sequence[Clause], stored: Mapping[str, str]) -> InputError:
        """Return why a filter leaves nothing."""
        before: list[Clause] = []
        for clause in clauses:
            column = stored[clause.column]
            known = f"{identifier(column)} IS NOT NULL"
            if not self._table.count_rows(known):
                return unknown_label(clause.column)
            sql = [one.sql for one in before]
            if not self._table.count_rows(" AND ".join([*sql, clause.sql])):
                seen = self._table.search().where(" AND ".join([*sql, known])).select([column]).limit(_SEEN)
                there = pl.DataFrame(pl.from_arrow(seen.to_arrow()))[column].unique().sort().cast(pl.String)
                left = self._table.count_rows(" AND ".join(sql)) if sql else self._rows
                return nothing_left(clause, there.to_list(), [one.text for one in before], left)
            before.append(clause)
        raise AssertionError("one of them leaves nothing")

    @property
    def _lists(self) -> int:
        return min(self._asked_lists or round(math.sqrt(self._rows)), self._rows)

    @property
    def _indexed(self) -> bool:
        return self._rows >= self._index_from

    def _search_one(self, vector: Any, k: int, condition: str | None, allowed: int) -> pl.DataFrame:
        """Return `ROW` and `score` of one query, nearest first."""
        # As many candidates as without the filter.
        probes = math.ceil(self._probes * self._rows / allowed)
        found = self._ask(vector, k, condition, probes)
        if len(found) < min(k, allowed) and probes < self._lists:
            found = self._ask(vector, k, condition, self._lists)
        return found

    def _ask(self, vector: Any, k: int, condition: str | None, probes: int) -> pl.DataFrame:
        asked = self._table.search(vector, vector_column_name=VECTOR).distance_type("dot").limit(k)
        asked = asked.select([ROW, DISTANCE])
        if condition is not None:
            asked = asked.where(condition, prefilter=True)
        if self._indexed:
            asked = asked.nprobes(min(probes, self._lists))
            if self._refine is not None:
                asked = asked.refine_factor(self._refine)
        found = pl.DataFrame(pl.from_arrow(asked.to_arrow()))
        score = (1 - pl.col(DISTANCE)).cast(pl.Float32)
        return found.select(ROW, score=score).sort("score", ROW, descending=[True, False])

    def _finished(self) -> dict[str, Any] | None:
        """Return what the mark of a finished build says; None where there is none."""
        if not {self._name, self._mark} <= _tables(self._database):
            return None
        said = self._database.open_table(self._mark).search().limit(1).to_arrow()["stamp"].to_pylist()
        found: dict[str, Any] | None = json.loads(said[0]) if said else None
        return found

    @property
    def _mark(self) -> str:
        return f"{self._name}_finished"

    def _build(self, gallery: Searchable, column: str, stamp: dict[str, Any]) -> None:
        self._rows = len(gallery.labels)
        log.info("%s: building the index of %d rows", self._place, self._rows)
        # The mark goes first: from here on the index is unfinished.
        for name in (self._mark, self._name):
            if name in _tables(self._database):
                self._database.drop_table(name)
        arrow = importlib.import_module("pyarrow")
        failures: list[InputError] = []
        stored = _Labels(gallery.labels)
        batches = _batches(arrow, gallery, column, stored, failures)
        try:
            reader = arrow.RecordBatchReader.from_batches(_schema(arrow, gallery, column, stored), batches)
            table = self._database.create_table(self._name, reader)
        except (RuntimeError, ValueError, OSError):
            # What the engine makes of an error of the gallery says less than the error.
            if failures:
                raise failures[0] from None
            raise
        if table.count_rows() != self._rows:
            raise InputError(f"{gallery.folder} has other numbers of vectors and labels; extract it anew")
        if self._indexed:
            kinds = importlib.import_module("lancedb.index")
            config = getattr(kinds, self._kind)(distance_type="dot", num_partitions=self._lists)
            table.create_index(VECTOR, config=config, wait_timeout=WAIT)
            # By which labels of hits are looked up, instead of in every row.
            table.create_index(ROW, config=kinds.BTree(), wait_timeout=WAIT)
        self._database.create_table(self._mark, [{"stamp": json.dumps(stamp)}])


def _client() -> Any:
    try:
        return importlib.import_module("lancedb")
    except ImportError as error:
        raise InputError(
            "engine=lance needs LanceDB, which is not installed; pip install 'clip3dreid[lance]'"
        ) from error


@contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        yield
    # All that LanceDB raises for a place that is not there, full or damaged.
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"engine.uri={place}: LanceDB says {reason_of(error)}; mend the place or choose another"
        ) from error


def _tables(database: Any) -> set[str]:
    names: set[str] = set()
    token = None
    while True:
        page = database.list_tables(page_token=token)
        names |= set(page.tables)
        token = page.page_token
        if not token:
            return names


def _stamp(gallery: Searchable, column: str) -> dict[str, Any]:
    """Return what an index is built from; shards say it without being opened."""
    if (shards := gallery.facts.get("shards")) is not None:
        held = json.dumps(shards)
    else:
        held = gallery.labels.select(_labels(gallery.labels)).write_csv()
    return {
        "version": INDEX_VERSION,
        "fingerprint": str(gallery.facts["fingerprint"]),
        "column": column,
        "width": gallery.width(column),
        "labels": hashlib.blake2b(held.encode(errors="surrogateescape"), digest_size=16).hexdigest(),
    }


def _refuse_others(where: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found == wanted:
        return
    told = {
        "version": "was built by another version of this program",
        "fingerprint": f"was built with another model ({str(found.get('fingerprint'))[:12]}…)",
    }
    why = next(
        (told[key] for key in told if found.get(key) != wanted[key]),
        "was built from other labels or pictures",
    )
    raise InputError(f"{where} {why}; give engine.rebuild=true, or another engine.name or engine.uri")


def _labels(table: pl.DataFrame) -> list[str]:
    """Return the columns that are stored to filter by: those that a filter can name."""
    return [name for name, kind in table.schema.items() if not kind.is_nested() and "`" not in name]


class _Labels:
    """The columns that are stored beside the vectors: labels as they are, and what filters ask for.

    Args:
        table: G rows of labels.
    """

    def __init__(self, table: pl.DataFrame) -> None:
        columns = [pl.col(name) for name in table.columns if "`" not in name]
        spellings: dict[str, pl.Expr] = {}
        for name in _labels(table):
            texts = table[name].cast(pl.String).drop_nulls().unique()
            usual = {text: label(text) for text in texts}
            if name == FRAME:
                if table.schema[name] != pl.Int64:
                    spellings[name] = pl.col(name).cast(pl.Int64, strict=False)
            elif table.schema[name] != pl.String or any(text != usual[text] for text in usual):
                spellings[name] = pl.col(name).cast(pl.String).replace_strict(usual, default=None)
        self._columns = [*columns, *(one.alias(SPELLED + name) for name, one in spellings.items())]

    def of(self, rows: pl.DataFrame) -> Any:
        """Return some rows as they are stored, an Arrow table."""
        return rows.select(self._columns).to_arrow().combine_chunks()


def _schema(arrow: Any, gallery: Searchable, column: str, stored: _Labels) -> Any:
    vector = arrow.list_(arrow.float32(), gallery.width(column))
    return arrow.schema([*stored.of(gallery.labels.head(0)).schema, (ROW, arrow.int64()), (VECTOR, vector)])


def _batches(
    arrow: Any, gallery: Searchable, column: str, stored: _Labels, failures: list[InputError]
) -> Iterator[Any]:
    """Yield the gallery in blocks; an error of it is also put into `failures`."""
    schema = _schema(arrow, gallery, column, stored)
    start = 0
    try:
        for block in gallery.blocks(column):
            vectors = unit(block.cpu(), "gallery", start).float().numpy()
            labels = stored.of(gallery.labels[start : start + len(block)])
            columns = [own.combine_chunks() for own in labels.itercolumns()]
            flat = arrow.FixedSizeListArray.from_arrays(vectors.reshape(-1), gallery.width(column))
            rows = arrow.array(np.arange(start, start + len(block)))
            yield arrow.record_batch([*columns, rows, flat], schema=schema)
            start += len(block)
    except InputError as error:
        failures.append(error)
        raise
