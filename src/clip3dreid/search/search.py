"""Search a gallery by picture, by several pictures of one person, or by words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.inference.model import ReidModel
from clip3dreid.io.table_files import BOX
from clip3dreid.report.search_sheet import Row, ShownPicture, draw_search
from clip3dreid.search.engine import Exact, Gallery, Index
from clip3dreid.search.filters import Filter
from clip3dreid.search.query import MakeTeacher, Query, picture_queries, text_queries
from clip3dreid.search.settings import Queries, SearchSettings, TextQueries
from clip3dreid.search.shard_index import shard_feature
from clip3dreid.search.shards import Shards

log = logging.getLogger(__name__)

SEARCH_VERSION = 1

Engine = Callable[[Gallery, str], Index]
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
    """

    gallery: Path
    root: Path
    model: str
    searched: int
    score: str
    where: Mapping[str, Any]
    answers: Sequence[Answer]

    def as_json(self) -> dict[str, Any]:
        """Return all hits of all queries, JSON-ready."""
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
        >>> model = clip3dreid.load("runs/mine")  # doctest: +SKIP
        >>> result = search(Path("shards/crops"), model, TextQueries(("a tall woman",)))  # doctest: +SKIP
        >>> result.answers[0].hits.select("rank", "score", "path")  # doctest: +SKIP
    """
    settings = settings or SearchSettings()
    shards = gallery if isinstance(gallery, Shards) else Shards(Path(gallery))
    model = _same_model(model, shards)
    where = {label: value for label, value in (settings.where or {}).items() if value is not None}
    allowed = Filter(**where)  # what is wrong with it is said before pictures are embedded
    if isinstance(queries, TextQueries):
        column, score = "joint", "fit"
        asked = text_queries(model, queries.texts, settings.synonyms or {}, teacher)
    else:
        column, score = "embedding", "cosine"
        asked = picture_queries(model, queries, flip=bool(shards.facts["flip"]))
    vectors = torch.stack([query.vector for query in asked])
    top = min(settings.top, len(shards))
    best = engine(shards, column).search(vectors, top, allowed)
    answers = [
        Answer(query, _hits(shards, query, rows, scores))
        for query, rows, scores in zip(asked, best.rows, best.scores, strict=True)
    ]
    root = Path(str(shards.facts["root"]))
    return SearchResult(shards.folder, root, model.name, len(shards), score, where, answers)


def _same_model(model: ReidModel, shards: Shards) -> ReidModel:
    """Return a model with the feature that shards hold, if it is the one that made them."""
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


def _hits(shards: Shards, query: Query, rows: Tensor, scores: Tensor) -> pl.DataFrame:
    """Return `rank`, `score`, and the shards' labels of what was found for a query."""
    known = rows >= 0
    factor, offset = query.scale
    values = (scores[known].double() * factor + offset).tolist()
    labels = shards.labels[rows[known].tolist()]
    return labels.with_columns(
        rank=pl.int_range(1, pl.len() + 1), score=pl.Series(values, dtype=pl.Float64)
    ).select("rank", "score", *labels.columns)


def _shown(root: Path, hit: Mapping[str, Any]) -> ShownPicture:
    box = tuple(hit[side] for side in BOX) if BOX[0] in hit else None
    who = f"person {hit['person']}" if hit.get("person") is not None else Path(hit["path"]).name
    where = f"camera {hit['camera']}" if hit.get("camera") is not None else ""
    return ShownPicture(
        root / hit["path"], box, (f"{hit['rank']}. {hit['score']:.3f}", who, *([where] if where else []))
    )
