"""Search a gallery by picture, by several pictures of one person, or by words."""

from __future__ import annotations

import functools
import io
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from PIL import Image
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.inference.model import ReidModel
from clip3dreid.io.files import atomic, write_json
from clip3dreid.io.table_files import BOX
from clip3dreid.report.search_sheet import SUFFIXES, Row, ShownPicture, draw_search
from clip3dreid.search.engine import Exact, Index, LabelledIndex, Searchable, holds_labels
from clip3dreid.search.filters import Filter
from clip3dreid.search.query import MakeTeacher, Query, picture_queries, text_queries
from clip3dreid.search.settings import Queries, SearchSettings, TextQueries
from clip3dreid.search.shard_index import shard_clips, shard_feature
from clip3dreid.search.shards import Shards
from clip3dreid.search.top_k import TopK

log = logging.getLogger(__name__)

SEARCH_VERSION = 1
_SHOWN = 5
_WHO = ("person", "tracklet")

Engine = Callable[[Searchable, str], Index]
"""From a gallery and the name of one of its vectors to what searches it."""


class Answer(NamedTuple):
    """What was found for one query."""

    query: Query
    hits: pl.DataFrame
    """`rank`, `score`, and the gallery's labels, best first."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        gallery: folder of the shards.
        root: folder that the paths of hits are relative to.
        model: where the model was loaded from.
        searched: pictures in the gallery.
        score: what the scores are: `cosine`, or `fit` of words.
        where: the filter, without what allows everything.
        answers: one a query.

    Example:
        >>> hits = gallery.search("someone.jpg", top=2)
        >>> hits  # doctest: +ELLIPSIS
        1 query in 8 pictures, by cosine
        someone.jpg
            1.  1.000  ...020_1_c1_000001.png  person 20
            2. ...
    """

    gallery: Path
    root: Path
    model: str
    searched: int
    score: str
    where: Mapping[str, Any]
    answers: Sequence[Answer]

    def as_json(self) -> dict[str, Any]:
        """Return all hits of all queries, JSON-ready.

        Example:
            >>> len(gallery.search("someone.jpg", top=3).as_json()["queries"][0]["hits"])
            3
        """
        return {
            "version": SEARCH_VERSION,
            "gallery": str(self.gallery),
            "model": self.model,
            "score": self.score,
            "where": dict(self.where),
            "searched": self.searched,
            "queries": [
                {
                    "query": query.name,
                    "words": [word for _, word in query.understood],
                    "hits": hits.to_dicts(),
                }
                for query, hits in self.answers
            ],
        }

    def to_polars(self) -> pl.DataFrame:
        """Return all hits of all queries: `query`, `rank`, `score`, and the gallery's labels.

        Example:
            >>> gallery.search(["a.jpg", "b.jpg"], top=3).to_polars().columns
            ['query', 'rank', 'score', 'path', 'words', 'person', 'camera']
        """
        tables = [hits.select(pl.lit(query.name).alias("query"), pl.all()) for query, hits in self.answers]
        return pl.concat(tables)

    def __repr__(self) -> str:
        """Return the best hits of each query, a line each."""
        asked = "1 query" if len(self.answers) == 1 else f"{len(self.answers)} queries"
        lines = [f"{asked} in {self.searched:,} pictures, by {self.score}"]
        for query, hits in self.answers[:_SHOWN]:
            lines.append(
                f"{query.name}{': ' + ', '.join(w for _, w in query.understood) if query.understood else ''}"
            )
            for hit in hits.head(_SHOWN).to_dicts():
                box = f" {list(box)}" if (box := _box(hit)) else ""
                who = "".join(f"  {word} {hit[word]}" for word in _WHO if hit.get(word) is not None)
                lines.append(f"  {hit['rank']:>3}. {hit['score']:6.3f}  {hit['path']}{box}{who}")
        return "\n".join(lines)

    def save(self, path: Path | str) -> None:
        """Write all hits: drawn, where the path ends in `.jpg`, `.png` or `.webp`, as JSON or CSV otherwise.

        Raises:
            InputError: if the suffix is another, or it cannot be written.

        Example:
            >>> hits = gallery.search("someone.jpg")
            >>> hits.save("found.jpg")
            >>> hits.save("found.csv")
        """
        place = Path(path).expanduser()
        suffix = place.suffix.lower()
        if suffix in SUFFIXES:
            self.draw(place)
        elif suffix == ".json":
            write_json(place, self.as_json())
        elif suffix == ".csv":
            with atomic(place) as temporary:
                self.to_polars().select(pl.exclude(pl.List)).write_csv(temporary)
        else:
            raise InputError(f"{place} must end in {', '.join(SUFFIXES)}, .json or .csv")

    def picture(self) -> Image.Image:
        """Return queries and hits as one picture.

        Example:
            >>> gallery.search("someone.jpg").picture().mode
            'RGB'
        """
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "found.png"
            self.draw(place)
            with Image.open(place) as image:
                image.load()
                return image

    def show(self) -> None:
        """Show queries and hits in the viewer of this machine."""
        self.picture().show()

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows."""
        written = io.BytesIO()
        self.picture().save(written, "PNG")
        return written.getvalue()

    def draw(self, path: Path) -> None:
        """Draw queries and hits; where there is no room for all of them, the log says so.

        Args:
            path: of the picture; its suffix is one of `report.search_sheet.SUFFIXES`.

        Raises:
            InputError: if it cannot be written.
        """
        rows = [
            Row(
                query.name,
                [ShownPicture(file) for file in query.pictures],
                [_shown(self.root, hit) for hit in hits.to_dicts()],
            )
            for query, hits in self.answers
        ]
        if (drawn := draw_search(path, rows)) < len(rows):
            log.warning("%s has room for the first %d of %d queries", path, drawn, len(rows))


def search(
    gallery: Shards | Path | str,
    model: ReidModel,
    queries: Queries,
    settings: SearchSettings | None = None,
    *,
    engine: Engine = Exact,
    teacher: MakeTeacher | None = None,
) -> SearchResult:
    """Search a gallery.

    Args:
        gallery: what `extract` has filled.
        model: the model that filled it.
        queries: what is looked for.
        settings: how many hits, and among what; None: as they are by default.
        engine: what compares (`search.engine`, `search.lance`).
        teacher: loads the model's teacher, for texts without a word that the model knows.

    Returns:
        The hits of each query.

    Raises:
        InputError: if gallery, model or query are missing or do not fit.

    Example:
        >>> import clip3dreid
        >>> from clip3dreid.search.search import search
        >>> from clip3dreid.search.settings import TextQueries
        >>> model = clip3dreid.load("model")
        >>> result = search("shards/crops", model, TextQueries(("a tall woman",)))
        >>> result.answers[0].hits["rank"].to_list()
        [1, 2, 3, 4, 5, 6, 7, 8]
    """
    return Searcher(gallery, model, engine=engine, teacher=teacher).search(queries, settings)


class Searcher:
    """A gallery that is open, with its model: what is loaded and built for one search serves the next.

    Args:
        gallery: what `extract` has filled.
        model: the model that filled it.
        engine: what compares, as of `search`; made for a vector when it is first asked for.
        teacher: as of `search`; loaded at most once.

    Attributes:
        shards: the gallery.
        model: the same, with the gallery's feature.

    Raises:
        InputError: if there is no gallery, it is damaged, or of another model.

    Example:
        >>> from clip3dreid.search.search import Searcher
        >>> from clip3dreid.search.settings import PictureQueries
        >>> searcher = Searcher("shards/crops", model)
        >>> [len(searcher.search(PictureQueries((Path(name),))).answers) for name in ("a.jpg", "b.jpg")]
        [1, 1]
    """

    def __init__(
        self,
        gallery: Shards | Path | str,
        model: ReidModel,
        *,
        engine: Engine = Exact,
        teacher: MakeTeacher | None = None,
    ) -> None:
        lazy = holds_labels(engine)
        self.shards = gallery if isinstance(gallery, Shards) else Shards(Path(gallery), lazy=lazy)
        self.model = same_model(model, self.shards)
        self._engine = engine
        self._teacher = None if teacher is None else functools.cache(teacher)
        self._indices: dict[str, Index] = {}

    def search(self, queries: Queries, settings: SearchSettings | None = None) -> SearchResult:
        """Find people, as the function `search` does."""
        settings = settings or SearchSettings()
        where = {label: value for label, value in (settings.where or {}).items() if value is not None}
        allowed = Filter(**where)  # what is wrong with it is said before pictures are embedded
        if isinstance(queries, TextQueries):
            column, score = "joint", "fit"
            asked = text_queries(self.model, queries.texts, settings.synonyms, self._teacher)
        else:
            column, score = "embedding", "cosine"
            facts = self.shards.facts
            clips = shard_clips(facts, self.shards.folder)
            asked = picture_queries(self.model, queries, flip=bool(facts["flip"]), clips=clips)
        vectors = torch.stack([query.vector for query in asked])
        index = self._index(column)
        best = index.search(vectors, min(settings.top, len(_labelled(index, self.shards))), allowed)
        root = Path(str(self.shards.facts["root"]))
        return answered(self.shards, index, root, self.model, asked, best, score, where)

    def __len__(self) -> int:
        """Return the number of pictures in the gallery."""
        return len(_labelled(self._index("embedding"), self.shards))

    def check(self, where: Filter) -> None:
        """Refuse a filter that names a label that is not there, or leaves nothing.

        Raises:
            InputError: naming what is wrong with it.
        """
        index = self._index("embedding")
        if isinstance(index, LabelledIndex):
            index.check(where)
        else:
            where.mask(self.shards.labels)

    def _index(self, column: str) -> Index:
        if column not in self._indices:
            self._indices[column] = self._engine(self.shards, column)
        return self._indices[column]


def _labelled(index: Index, gallery: Searchable) -> LabelledIndex | pl.DataFrame:
    """Return what has the labels of a gallery: its index, or it."""
    return index if isinstance(index, LabelledIndex) else gallery.labels


def answered(
    gallery: Searchable,
    index: Index,
    root: Path,
    model: ReidModel,
    asked: Sequence[Query],
    best: TopK,
    score: str,
    where: Mapping[str, Any],
) -> SearchResult:
    """Return what was found of a gallery, with its labels.

    Args:
        gallery: that was searched.
        index: that found it.
        root: of its pictures.
        model: that looked.
        asked: the queries.
        best: rows and cosines of each.
        score: what the scores are called.
        where: what was filtered by.
    """
    labels = _labelled(index, gallery)
    answers = [
        Answer(query, _hits(labels, query, rows, scores))
        for query, rows, scores in zip(asked, best.rows, best.scores, strict=True)
    ]
    return SearchResult(gallery.folder, root, model.name, len(labels), score, where, answers)


def same_model(model: ReidModel, shards: Shards) -> ReidModel:
    """Return a model with the feature that shards hold, if it is the one that made them.

    Raises:
        InputError: if it is not.
    """
    feature = shard_feature(shards.facts, shards.folder)
    try:
        model = model.with_feature(feature)
    except InputError as error:
        raise InputError(
            f"{shards.folder} holds {feature}, which {model.name} cannot compute: its pictures were looked at by "
            f"another model ({shards.facts['model']}); give that model, or extract anew"
        ) from error
    if model.fingerprint != shards.facts["fingerprint"]:
        theirs, ours = shards.facts["fingerprint"][:12], model.fingerprint[:12]
        raise InputError(
            f"{shards.folder} was made by another model ({shards.facts['model']}, {theirs}…) than {model.name} "
            f"({ours}…), and their features cannot be compared; give that model, or extract anew"
        )
    return model


def _hits(gallery: LabelledIndex | pl.DataFrame, query: Query, rows: Tensor, scores: Tensor) -> pl.DataFrame:
    """Return `rank`, `score`, and the gallery's labels of what was found for a query."""
    known = rows >= 0
    factor, offset = query.scale
    values = (scores[known].double() * factor + offset).tolist()
    found = rows[known].tolist()
    labels = gallery[found] if isinstance(gallery, pl.DataFrame) else gallery.labels_at(found)
    return labels.with_columns(
        rank=pl.int_range(1, pl.len() + 1), score=pl.Series(values, dtype=pl.Float64)
    ).select("rank", "score", *labels.columns)


def _shown(root: Path, hit: Mapping[str, Any]) -> ShownPicture:
    who = [f"{word} {hit[word]}" for word in _WHO if hit.get(word) is not None] or [Path(hit["path"]).name]
    box = _box(hit)
    where = [f"frame {hit['frame']}"] if box and hit.get("frame") is not None else []
    where = [f"camera {hit['camera']}", *where] if hit.get("camera") is not None else where
    caption = (f"{hit['rank']}. {hit['score']:.3f}", who[0], *([", ".join(where)] if where else []))
    return ShownPicture(root / hit["path"], box, caption)


def _box(hit: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of a hit, None where it is a whole picture."""
    left, top, right, bottom = (hit.get(side) for side in BOX)
    return None if left is None else (left, top, right, bottom)  # type: ignore[return-value]
