"""Hold the scores of a model, and show them: as a table, as polars, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars

from clip3dreid.inference.parts import EMBEDDING, Feature
from clip3dreid.report.tables import html_table, percent, score_notes, text_table
from clip3dreid.training.settings import RankingSettings

_SPREAD = ("r1", "map", "minp")
"""Scores that have intervals."""


@dataclass(frozen=True, repr=False)
class Evaluated:
    """The scores of a model, which print as a table.

    Attributes:
        model: name of the file of its weights, or features.
        ranking: how queries and galleries were compared.
        results: data set -> protocol -> scores, 0..1, and what they were measured on; features without a data set
            are one, "".
        queries: data set -> protocol -> what became of each query; see `retrieval.evaluation.query_table`.
        notes: data set -> what must be known of it.
        trained_on: names of the data sets that the model was trained on, as far as its file says.
        feature: what pictures were compared by.
        alone: the results of the embedding alone, where `feature` is more; else empty.
        alone_queries: likewise.
        split: whose people.
        computed: whether the model computed the features here; else they were given.
    """

    model: str
    ranking: RankingSettings
    results: Mapping[str, Mapping[str, Mapping[str, Any]]]
    queries: Mapping[str, Mapping[str, polars.DataFrame]]
    notes: Mapping[str, Sequence[str]]
    trained_on: Sequence[str] | None = None
    feature: Feature = EMBEDDING
    alone: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    alone_queries: Mapping[str, Mapping[str, polars.DataFrame]] = field(default_factory=dict)
    split: str = "test"
    computed: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the queries, ready for JSON: what the command writes to `out`."""
        first, *others = self.results
        ranked = {"metric": self.ranking.metric}
        scores = {"notes": list(self.notes[first]), "results": self.results[first]}
        if not self.computed:
            return {"features": self.model, **ranked, **({"data": first} if first else {}), **scores}
        also = {name: {"notes": list(self.notes[name]), "results": self.results[name]} for name in others}
        about = {"checkpoint": self.model, "trained_on": self.trained_on, **ranked}
        compared = {"flip": self.ranking.flip, "feature": self.feature.weights}
        facts = {**about, **compared, "data": first, **scores}
        beside = {"embedding_alone": dict(self.alone)} if self.alone else {}
        return facts | ({"also": also} if also else {}) | beside

    def by_feature(self) -> Iterator[Compared]:
        """Yield all scores: each data set's by what the model is compared by, and by the embedding alone."""
        for data, results in self.results.items():
            yield Compared(data, self.feature, results, self.queries[data])
            if data in self.alone:
                yield Compared(data, EMBEDDING, self.alone[data], self.alone_queries[data])

    def to_polars(self) -> polars.DataFrame:
        """Return a row for each data set, feature and protocol.

        Returns:
            `data`, `feature` (null where features were given), `protocol`, `queries`, `valid_queries`, `gallery`
            (numbers of pictures), `people` (with valid queries), and in 0..1 `r1`, `r5`, `r10`, `r20`, `map`, `minp`
            and `chance_r1`. Behind `r1`, `map` and `minp` stand `…_low` and `…_high`, their 95 % intervals over
            people; null where there is one person alone.
        """
        rows = []
        for one in self.by_feature():
            for name, scores in one.results.items():
                row = {
                    "data": one.data,
                    "feature": str(one.feature) if self.computed else None,
                    "protocol": name,
                    **{key: scores[key] for key in ("queries", "valid_queries", "gallery")},
                    "people": one.queries[name]["person"].n_unique(),
                }
                for key in ("r1", "r5", "r10", "r20", "map", "minp", "chance_r1"):
                    row[key] = scores[key]
                    if key in _SPREAD:
                        row[f"{key}_low"], row[f"{key}_high"] = (scores["interval"] or {}).get(
                            key, (None, None)
                        )
                rows.append(row)
        nullable = {f"{key}_{end}": polars.Float64 for key in _SPREAD for end in ("low", "high")}
        return polars.DataFrame(rows, schema_overrides={"feature": polars.String, **nullable})

    def __repr__(self) -> str:
        """Return the scores as a table, in per cent with 95 % intervals, and by what they were measured."""
        notes = (f"  {note}" for note in self._notes())
        return "\n".join([self._title(), text_table(*self._table()), *notes])

    def _repr_html_(self) -> str:
        """Return the same for a notebook."""
        return html_table(self._title(), *self._table(), self._notes())

    def _title(self) -> str:
        data = ", ".join(name for name in self.results if name)
        return ", ".join([*([f"{data} ({self.split})"] if data else []), self.model, self.ranking.metric])

    def _table(self) -> tuple[list[str], list[list[Any]]]:
        """Return header and rows; what is the same in all of them is left out."""
        table = self.to_polars()
        told = [key for key in ("data", "feature") if table[key].n_unique() > 1]
        rows = []
        for row in table.to_dicts():
            bounds = {key: (row[f"{key}_low"], row[f"{key}_high"]) for key in _SPREAD}
            scores = [
                percent(row[key], None if bounds.get(key, (None,))[0] is None else bounds[key])
                for key in ("r1", "r5", "r10", "map", "minp")
            ]
            asked, valid = row["queries"], row["valid_queries"]
            queries = valid if valid == asked else f"{valid} of {asked}"
            counts = [row["protocol"], queries, row["gallery"], row["people"]]
            rows.append([*(row[key] for key in told), *counts, *scores])
        header = ["protocol", "queries", "gallery", "people", "R1", "R5", "R10", "mAP", "mINP"]
        return [*told, *header], rows

    def _notes(self) -> list[str]:
        lines: list[str] = []
        for data, results in self.results.items():
            lines += score_notes(results, self.notes[data], intervals=False)
        spread = "R1, mAP, mINP: 95 % intervals over query people"
        return [*dict.fromkeys(lines), *([spread] if self.to_polars()["r1_low"].count() else [])]


class Compared(NamedTuple):
    """The scores of one data set."""

    data: str
    """Its name; empty: features that any model made."""
    feature: Feature
    """What pictures were compared by."""
    results: Mapping[str, Mapping[str, Any]]
    """Protocol -> scores."""
    queries: Mapping[str, polars.DataFrame]
    """Protocol -> what became of each query."""
