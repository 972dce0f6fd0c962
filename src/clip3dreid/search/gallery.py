"""A gallery in Python: pictures go in and out, people are found in it, and it is kept as shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, Unpack

import numpy as np
import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.inference.looking import Looking, look_at
from clip3dreid.inference.model import Outputs, ReidModel
from clip3dreid.inference.pictures import Pictures
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.io.files import identify
from clip3dreid.io.spelling import label
from clip3dreid.model.card import ClipSize
from clip3dreid.search.engine import Index
from clip3dreid.search.filters import Filter
from clip3dreid.search.query import (
    MakeTeacher,
    Query,
    is_text,
    person_query,
    person_tracklets,
    queries_of,
    seen_queries,
    text_queries,
)
from clip3dreid.search.search import Engine, SearchResult, answered, same_model
from clip3dreid.search.settings import ShardSettings
from clip3dreid.search.shard_index import shard_clips, shard_facts
from clip3dreid.search.shard_writer import ShardWriter, examine
from clip3dreid.search.shards import WORDS, Shards
from clip3dreid.search.swap import replacing, restore
from clip3dreid.search.top_k import TopK, top_k, unit

_KEPT = ("embedding", "joint")
"""Vectors that are searched."""
_USUAL: Mapping[str, str | None] = MappingProxyType({})
"""Synonyms: those that are known, and none of one's own."""


class Gallery:
    """People to be found: pictures with labels and what a model says of them, in memory.

    Pictures are added and removed at any time; nothing is built anew but an engine's index, where one was chosen.

    Args:
        model: that looks at pictures, those of queries too.
        flip: look at mirror images too; None: as the model says.
        engine: what searches, such as `search.lance.LanceDB` with its settings filled in; None: an exact search in
            memory, which needs no index.

    Attributes:
        model: the same.
        labels: one row a picture: `path`, `words` where the model knows some, and what else was said.

    Example:
        >>> import clip3dreid
        >>> model = clip3dreid.load("model")
        >>> gallery = clip3dreid.Gallery.from_pictures(model, "crops.csv")
        >>> hits = gallery.search("someone.jpg", top=10, where={"camera": 2})
        >>> hits.save("found.jpg")
    """

    def __init__(self, model: ReidModel, *, flip: bool | None = None, engine: Engine | None = None) -> None:
        self.model = model
        self.folder, self._saved = Path(), False
        self._flip = model.flip if flip is None else flip
        self._clips: ClipSize | None = None
        self._added = 0
        self._engine = engine
        self._indices: dict[str, Index] = {}
        self._vectors = {name: _Rows(width) for name, width in model.widths.items() if name in _KEPT}
        schema: dict[str, Any] = {"path": pl.String}
        if model.groups and "joint" in self._vectors:
            schema[WORDS] = pl.List(pl.String)
        self._tables = [pl.DataFrame(schema=schema)]

    @classmethod
    def from_pictures(cls, model: ReidModel, pictures: Pictures, **options: Any) -> Self:
        """Make a gallery of pictures.

        Args:
            model: that looks at them.
            pictures: as of `add`.
            options: of `Gallery` and of `add`.

        Example:
            >>> Gallery.from_pictures(model, "crops")
            Gallery(8 pictures; model)
        """
        own = {key: options.pop(key) for key in ("flip", "engine") if key in options}
        gallery = cls(model, **own)
        gallery.add(pictures, **options)
        return gallery

    @classmethod
    def open(cls, folder: Path | str, model: ReidModel, *, engine: Engine | None = None) -> Self:
        """Read a gallery that `save`, or `extract`, has written.

        Args:
            folder: of the shards.
            model: the one that filled it.
            engine: as of `Gallery`.

        Raises:
            InputError: if there is none, it is damaged, or of another model.

        Example:
            >>> gallery.save("kept")
            >>> Gallery.open("kept", model)
            Gallery(8 pictures, 2 of person, 2 of camera; model)
        """
        place = Path(folder).expanduser().resolve()
        restore(place)
        shards = Shards(place)
        gallery = cls(same_model(model, shards), flip=bool(shards.facts["flip"]), engine=engine)
        gallery._clips = shard_clips(shards.facts, shards.folder)
        root = Path(str(shards.facts["root"]))
        paths = [str(root / path) for path in shards.labels["path"]]
        gallery._vectors = {
            name: rows for name, rows in gallery._vectors.items() if name in shards.facts["vectors"]
        }
        for name, rows in gallery._vectors.items():
            for block in shards.blocks(name):
                rows.append(_of_length_one(block.float()))
        gallery._tables = [
            shards.labels.drop("row", strict=False).with_columns(path=pl.Series(paths, dtype=pl.String))
        ]
        gallery.folder, gallery._saved, gallery._added = shards.folder, True, len(paths)
        return gallery

    @property
    def labels(self) -> pl.DataFrame:
        """Return one row a picture, in the order in which they were added."""
        if len(self._tables) > 1:
            self._tables = [pl.concat(self._tables, how="diagonal_relaxed")]
        return self._tables[0]

    @property
    def flip(self) -> bool:
        """Return whether mirror images are looked at too, those of queries as well."""
        return self._flip

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the vectors are, as engines read it."""
        outputs = [*self._vectors, *([WORDS] if self._knows_words else [])]
        return shard_facts(self.model, outputs, source="a gallery", flip=self._flip, clips=self._clips)

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return sum(map(len, self._tables))

    def __repr__(self) -> str:
        """Return what is in it."""
        known = [
            f"{self.labels[name].n_unique()} of {name}"
            for name in ("person", "camera", "clothes")
            if name in self.labels.columns
        ]
        return f"Gallery({len(self):,} pictures{', ' if known else ''}{', '.join(known)}; {self.model.name})"

    def width(self, name: str) -> int:
        """Return the number of columns of a vector.

        Raises:
            InputError: if pictures have none of this name.
        """
        choose("the gallery's vectors", name, self._vectors)
        return self._vectors[name].width

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Yield all rows of a vector, of length 1."""
        yield self._vectors[name].all

    def add(self, pictures: Pictures, labels: Mapping[str, Any] | None = None, **how: Unpack[Looking]) -> int:
        """Add pictures.

        Args:
            pictures: a folder, a table with a column `path`, a pattern such as `crops/*.jpg`; or whatever
                `ReidModel.embed` takes.
            labels: column -> a value for all, or one for each picture: `{"person": "7", "camera": [1, 2]}`. A table's
                own labels are kept beside.
            how: `batch_size`, `workers`, `progress`, `on_error` (`inference.looking.Looking`); here files are decoded
                by two processes and unreadable ones skipped, unless something else is said.

        Returns:
            How many were added.

        Raises:
            InputError: if there is none, one cannot be read, or labels do not fit. Nothing is added then.

        Example:
            >>> gallery.add(["a.jpg", "b.jpg"], {"person": [7, 8], "camera": 3})
            2
            >>> len(gallery)
            10
        """
        if "flip" in how:
            raise InputError("flip is the whole gallery's: Gallery(model, flip=…)")
        asked: Looking = {"workers": 2, "on_error": "skip"}
        asked.update(how)
        asked["flip"] = self._flip
        seen = look_at(self.model, pictures, **asked)
        table = seen.table.with_columns(_columns(labels or {}, len(seen.table)))[seen.rows]
        if not seen.batches:
            return 0
        # Pictures in memory have no name, and whoever is found needs one.
        names = [path or f"picture {self._added + row}" for row, path in enumerate(table["path"])]
        table = table.with_columns(path=pl.Series(names, dtype=pl.String))
        columns = {
            name: torch.cat([getattr(batch, name) for batch in seen.batches]) for name in self._vectors
        }
        if self._knows_words:
            words = self.model.best_words(columns["joint"])
            table = table.with_columns(pl.Series(WORDS, words, pl.List(pl.String)))
        new = {name: unit(rows, "picture") for name, rows in columns.items()}
        for name, rows in self._vectors.items():
            rows.append(new[name])
        self._tables.append(table)
        self._added += len(table)
        self._indices, self._saved = {}, False
        return len(table)

    def remove(self, **labels: Any) -> int:
        """Remove pictures by their labels, as `where` of `search` chooses them: `remove(person="7")`.

        Returns:
            How many were removed.

        Raises:
            InputError: if nothing is said, a label is unknown, or no picture has it.

        Example:
            >>> gallery.remove(person=20), len(gallery)
            (4, 4)
        """
        gone = Filter(**labels).mask(self.labels)
        if gone is None:
            raise InputError("say which pictures are to go: remove(person=7)")
        for rows in self._vectors.values():
            rows.keep(~gone)
        self._tables = [self.labels.filter(pl.Series((~gone).numpy()))]
        self._indices, self._saved = {}, False
        return int(gone.sum())

    def search(
        self,
        query: Any,
        *,
        top: int = 10,
        where: Mapping[str, Any] | None = None,
        person: bool = False,
        synonyms: Mapping[str, str | None] | None = _USUAL,
        teacher: MakeTeacher | None = None,
    ) -> SearchResult:
        """Find people.

        Args:
            query: a picture or several, each a query of its own; what `model.look(…, flip=gallery.flip)` has said of
                some; or a description in words, which is a text that is no file's name.
            top: hits of each query.
            where: label -> a value or several: only pictures that have them are found.
            person: the pictures show one person, and are one query. In a gallery of tracklets they are looked at as
                one, and so is a folder of frames.
            synonyms: what people say -> the word of the model's vocabulary, beside the usual ones
                (`language.synonyms.with_usual`).
            teacher: loads the model's teacher, for texts without a word that the model knows.

        Raises:
            InputError: if the gallery is empty, nothing is left by the filter, or the query cannot be read.

        Example:
            >>> hits = gallery.search("someone.jpg", top=3)
            >>> one = gallery.search(["a.jpg", "b.jpg"], person=True, where={"camera": [1, 2]})
            >>> described = gallery.search("a tall, heavyset man")
            >>> [word for _, word in described.answers[0].query.understood]
            ['tall', 'heavyset', 'masculine']
        """
        if is_text(query):
            return self.search_text(query, top=top, where=where, synonyms=synonyms, teacher=teacher)
        chosen, allowed = self._asked_among(top, where)
        if isinstance(query, Outputs):
            asked = seen_queries(self.model, query)
        elif person and self._clips is not None:
            asked = [person_tracklets(self.model, query, self._clips, flip=self._flip)]
        else:
            asked = queries_of(self.model, query, flip=self._flip)
        if person and len(asked) > 1:
            asked = [person_query(asked)]
        return self._find(asked, "embedding", "cosine", top, chosen, allowed)

    def search_text(
        self,
        text: str,
        *,
        top: int = 10,
        where: Mapping[str, Any] | None = None,
        synonyms: Mapping[str, str | None] | None = _USUAL,
        teacher: MakeTeacher | None = None,
    ) -> SearchResult:
        """Find people by a description, also where a file is called so: no file is opened.

        Args:
            text: the description.
            top: as of `search`, like all that follow.
            where: likewise.
            synonyms: likewise.
            teacher: likewise.

        Raises:
            InputError: as `search`, or if the text is empty.

        Example:
            >>> len(gallery.search_text("a tall man", top=3).answers[0].hits)
            3
        """
        chosen, allowed = self._asked_among(top, where)
        asked = text_queries(self.model, [text], synonyms, teacher)
        if not asked:
            raise InputError("the text is empty; say what the person looks like")
        return self._find(asked, "joint", "fit", top, chosen, allowed)

    def _asked_among(self, top: int, where: Mapping[str, Any] | None) -> tuple[dict[str, Any], Filter]:
        """Return the filter without what allows everything, and the same as one; what is wrong is said first."""
        check_number("top", top, Range(1), whole=True)
        if not len(self):
            raise InputError("the gallery is empty; add pictures first")
        chosen = {key: value for key, value in (where or {}).items() if value is not None}
        return chosen, Filter(**chosen)

    def _find(
        self,
        asked: Sequence[Query],
        column: str,
        score: str,
        top: int,
        chosen: Mapping[str, Any],
        allowed: Filter,
    ) -> SearchResult:
        vectors = torch.stack([one.vector for one in asked])
        index = self._index(column)
        best = index.search(vectors, min(top, len(self)), allowed)
        return answered(self, index, Path(), self.model, asked, best, score, chosen)

    def save(self, folder: Path | str, settings: ShardSettings | None = None) -> None:
        """Write the gallery as shards, which `open`, `clip3dreid search` and anything that reads Parquet take.

        An earlier gallery of the same model there is replaced, whole or not at all.

        Args:
            folder: made if need be.
            settings: how shards are stored; None: as `extract` stores them by default.

        Raises:
            InputError: if the gallery is empty, or the folder holds another model's or cannot be written.

        Example:
            >>> gallery.save("kept")
        """
        if not len(self):
            raise InputError("the gallery is empty, and is not saved; add pictures first")
        place, settings = Path(folder).expanduser().resolve(), settings or ShardSettings()
        words = self.labels[WORDS].to_list() if self._knows_words else None
        table, facts = self.labels.drop(WORDS, strict=False), self.facts
        with replacing(place) as stage:
            examine(place, facts, settings)
            writer = ShardWriter(
                stage,
                table,
                identify(Path(), table["path"], missing_ok=True),
                facts,
                settings,
                notes={"model": self.model.name, "root": str(Path.cwd())},
            )
            for number in writer.missing():
                rows = writer.rows(number)
                part = slice(rows.start, rows.stop)
                vectors = {name: one.all[part].numpy() for name, one in self._vectors.items()}
                writer.put(number, np.array(rows), vectors, None if words is None else words[part], [])
        self.folder, self._saved = place, True

    @property
    def _knows_words(self) -> bool:
        # Shards may have the vector without them.
        return WORDS in self._tables[0].columns

    def _index(self, column: str) -> Index:
        self.width(column)
        if self._engine is None:
            return _Live(self._vectors[column], self.labels)
        if not self._saved:
            raise InputError(
                "an engine's index is of a gallery on disk: save it first, with all that was added"
            )
        if column not in self._indices:
            self._indices[column] = self._engine(self, column)
        return self._indices[column]


class _Rows:
    """Rows of numbers that grow: room is doubled, so that adding costs what is added."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._room = torch.empty(0, width)
        self._count = 0

    @property
    def all(self) -> Tensor:
        """Return (n, width)."""
        return self._room[: self._count]

    def append(self, rows: Tensor) -> None:
        """Add rows (m, width)."""
        need = self._count + len(rows)
        if need > len(self._room):
            room = torch.empty(max(need, 2 * len(self._room)), self.width)
            room[: self._count] = self.all
            self._room = room
        self._room[self._count : need] = rows
        self._count = need

    def keep(self, which: Tensor) -> None:
        """Drop all but some rows (n,) bool."""
        left = self.all[which]
        self._room, self._count = left, len(left)


def _of_length_one(rows: Tensor) -> Tensor:
    """Return rows (n, D) for a product to be their cosine: those of `extract` are not of length 1.

    What a gallery has saved stays as it is, to the bit.
    """
    saved = (rows.norm(dim=1) - 1).abs().amax() < 1e-6 if len(rows) else True
    return rows if saved else unit(rows, "picture")


class _Live:
    """An exact search of rows of length 1 as they are now."""

    def __init__(self, rows: _Rows, labels: pl.DataFrame) -> None:
        self._rows, self._labels = rows, labels

    def search(self, query: Tensor, k: int, where: Filter) -> TopK:
        """Search as `engine.Index` does."""
        return top_k(unit(query, "query"), self._rows.all, k, "product", where.mask(self._labels))


def _columns(labels: Mapping[str, Any], count: int) -> list[pl.Series | pl.Expr]:
    """Return labels as columns, in the one spelling of manifests."""
    made: list[pl.Series | pl.Expr] = []
    for name, given in labels.items():
        if name in ("path", WORDS):
            raise InputError(f"labels: {name} is the gallery's own; choose another name")
        values = list(given) if isinstance(given, list | tuple | pl.Series | np.ndarray) else [given] * count
        if len(values) != count:
            raise InputError(
                f"labels: {len(values)} of {name} for {count} pictures; give one each, or one for all"
            )
        if name == "frame":
            made.append(pl.Series(name, values, dtype=pl.Int64))
        else:
            spelled = [None if value is None else label(str(value)) for value in values]
            made.append(pl.Series(name, spelled, dtype=pl.String))
    return made
