"""Evaluate features with a table of labels: numbers that say which protocol they belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias, get_args
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose
from clip3dreid.retrieval.galleries import galleries, in_order
from clip3dreid.retrieval.metrics import NUMBERS, PerQuery, intervals, numbers, summarise
from clip3dreid.retrieval.open_set import OpenSet
from clip3dreid.retrieval.protocol import Protocol, encode, labels_of
from clip3dreid.retrieval.protocol_counts import ProtocolCounts, count, name_of, prepare, ranked_pictures
from clip3dreid.retrieval.ranking import CPU, GalleryShare, Job, SamePerson, ScoreSource, rank
from clip3dreid.retrieval.settings import Distance, open_set_rates
from clip3dreid.retrieval.similarity import SimilarityBlocks, full_precision

FeatureRows: TypeAlias = Tensor | npt.NDArray[np.floating[Any]]
"""(rows, D) features, one row a picture."""

CHECKED = 512
"""Features that are checked at a time: half-precision ones are widened for it."""


class Reranking(Interface):
    """A re-ranking with its settings: a dataclass, whose fields are stored with every number."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __call__(self, query: Tensor, gallery: Tensor, metric: Distance) -> ScoreSource:
        """Score anew the features (Q, D) and (G, D) of all query and gallery pictures."""
        ...  # pragma: no cover


class EvaluationSummary(NamedTuple):
    """What all processes' shares of an evaluation say together."""

    scores: Mapping[str, Any]
    """As `metrics.summarise`."""
    numbers: Tensor
    """(valid queries, 8) as `metrics.numbers`, in the order of rows."""
    tpr_at_fpr: Mapping[str, float] | None
    """As `OpenSet.tpr_at_fpr`; None where it was not asked for."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A ranking under one protocol.

    Attributes:
        protocol: what was asked.
        metric: `cosine` or `euclidean`.
        counts: of the whole evaluation, whatever the share.
        rows: (q,) rows of the query table that this process's share holds, ascending.
        per_query: results of these queries.
        person: (q,) codes of the people of these queries.
        rerank: `method` and settings of the re-ranking; None: there was none.
        open_set: this share's pairs, where they were asked for.
    """

    protocol: Protocol
    metric: Distance
    counts: ProtocolCounts
    rows: Tensor
    per_query: PerQuery
    person: Tensor
    rerank: Mapping[str, Any] | None = None
    open_set: OpenSet | None = None

    def summary(self) -> EvaluationSummary:
        """Return what this process's share alone says: all there is to say where there is one process."""
        tpr = None if self.open_set is None else self.open_set.tpr_at_fpr()
        return EvaluationSummary(summarise(self.per_query), self.numbers(), tpr)

    def numbers(self) -> Tensor:
        """Return (valid queries, 8) of this process's share, as `metrics.numbers`."""
        return numbers(self.rows, self.person, self.per_query)

    def result(self, summary: EvaluationSummary | None = None) -> dict[str, Any]:
        """Return the numbers and everything that must stand beside them, JSON-ready.

        Args:
            summary: over all processes, from `distributed.gather_evaluation`; by default `Evaluation.summary`.

        Returns:
            `r1`, `r5`, `r10`, `r20`, `map`, `minp` (fractions 0..1), `interval` of r1, map and minp (see
            `metrics.intervals`), `tpr_at_fpr` (see `OpenSet`), the counts, `metric`, `rerank`, and the protocol's
            facts. `tpr_at_fpr` and `rerank` are None where they were not asked for.
        """
        summary = self.summary() if summary is None else summary
        counts = self.counts._asdict()
        for named in ("without_positive", "in_gallery"):
            counts[named] = list(counts[named])
        return {
            **summary.scores,
            "interval": intervals(summary.numbers),
            "tpr_at_fpr": summary.tpr_at_fpr,
            **counts,
            "metric": self.metric,
            "rerank": None if self.rerank is None else dict(self.rerank),
            **self.protocol.facts(),
        }


def evaluate(
    query_features: FeatureRows,
    query_table: pl.DataFrame,
    gallery_features: FeatureRows,
    gallery_table: pl.DataFrame,
    protocols: Mapping[str, Protocol],
    *,
    metric: Distance = "cosine",
    share: tuple[int, int] = (0, 1),
    memory: int | None = None,
    rerank: Reranking | None = None,
    open_set: Sequence[float] | None = None,
    gallery_share: GalleryShare | None = None,
) -> dict[str, Evaluation]:
    """Rank the gallery for every query under each protocol, where the features are.

    A re-ranking is made once, of all query and gallery pictures; each protocol then ranks by its scores the
    gallery pictures that it leaves.

    Args:
        query_features: (Q, D) float, an array, or a tensor on any device.
        query_table: Q rows with columns as in the manifest; missing columns count as unknown labels.
        gallery_features: (G, D) float, likewise, on the same device.
        gallery_table: G rows, likewise.
        protocols: name -> protocol.
        metric: `cosine` or `euclidean`.
        share: (process, processes): rank each `processes`-th query only. Every process still counts all of
            them, so `Evaluation.counts` and errors are the same everywhere; `distributed.gather_evaluation`
            puts the rest together.
        memory: bytes that a block of queries may take beside the features; None: as `ranking.rank`.
        rerank: what makes scores of the features; None: their plain cosines or distances.
        open_set: false positive rates at which to report the true positive rate; None: none.
        gallery_share: which rows of the gallery `gallery_features` are, where processes hold it together: each has
            all queries and all labels, and gets all results. Not with `share`, a re-ranking, `open_set` or a protocol
            of several galleries.

    Returns:
        name -> evaluation.

    Raises:
        InputError: if features are not finite, of unequal width, empty, zero where a cosine is asked for, or
            do not fit the tables; if there is no protocol; if a protocol does not fit the labels (`select`)
            or leaves no query a positive; if `open_set` holds no rates, or is asked for of a re-ranking.

    Example:
        >>> import numpy as np
        >>> import polars as pl
        >>> from clip3dreid.retrieval.evaluation import evaluate
        >>> from clip3dreid.retrieval.protocol import Protocol, same_camera
        >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> query_table = pl.DataFrame({"person": ["ann", "bob"], "camera": [1, 1]})
        >>> gallery = np.array([[0.9, 0.1], [0.5, 0.6], [0.1, 0.9], [0.8, 0.3]])
        >>> gallery_table = pl.DataFrame({"person": ["ann", "ann", "bob", "cat"], "camera": [1, 2, 2, 2]})
        >>> general = Protocol("general", same_camera, "the query's own camera is dropped")
        >>> found = evaluate(query, query_table, gallery, gallery_table, {"general": general})["general"]
        >>> found.result()["r1"], found.result()["map"]
        (0.5, 0.75)
        >>> found.per_query.first_hit.tolist()
        [2.0, 1.0]
    """
    choose("metric", metric, get_args(Distance))
    if not protocols:
        raise InputError("no protocol is chosen; choose at least one, such as protocol=general")
    if gallery_share is not None and not shareable(protocols, rerank, open_set):
        raise InputError(
            "a gallery in parts is ranked without re-ranking, open_set and several galleries; leave them out"
        )
    if any(protocol.gallery_people for protocol in protocols.values()):
        how = {"metric": metric, "memory": memory, "rerank": rerank}
        sides = query_features, query_table, gallery_features, gallery_table
        return _evaluate_galleries(*sides, protocols, share, open_set, how)
    rates = open_set_rates(open_set, reranked=rerank is not None)
    query, gallery = torch.as_tensor(query_features), torch.as_tensor(gallery_features)
    _check_features("query", query, query_table, metric)
    held = gallery_table if gallery_share is None else gallery_table[gallery_share.columns.tolist()]
    if len(held) or gallery_share is None:  # a process may have no part of a small gallery
        _check_features("gallery", gallery, held, metric)
    if query.shape[1] != gallery.shape[1]:
        raise InputError(
            f"query features are {query.shape[1]} wide and gallery features {gallery.shape[1]}; both must come from "
            "one model"
        )
    pairs = SamePerson(*encode(query_table, gallery_table))
    prepared = [prepare(protocol, pairs, query_table, gallery_table) for protocol in protocols.values()]
    jobs = [job for job, _ in prepared]
    rows = torch.arange(share[0], len(query_table), share[1])
    with full_precision(query.device):
        similarity = SimilarityBlocks(query, gallery, metric)
        source = similarity if rerank is None else rerank(query, gallery, metric)
        observers = {} if rates is None else _observers(rates, jobs, pairs, similarity)
        # A re-ranking's scores are on the CPU; MPS has no float64 to add ranks up in.
        device = query.device if rerank is None and query.device.type != "mps" else CPU
        ranked = rank(
            source, pairs, jobs, rows, memory, similarity.dtype.itemsize, observers, device, gallery_share
        )
    evaluations = {}
    for index, ((name, protocol), (job, counts)) in enumerate(zip(protocols.items(), prepared, strict=True)):
        asked = job.queries[rows]
        evaluations[name] = Evaluation(
            protocol,
            metric,
            counts,
            rows[asked],
            ranked[index].at(asked),
            pairs.query.person[rows[asked]],
            None if rerank is None else facts_of(rerank),
            observers.get(index),
        )
    return evaluations


def shareable(
    protocols: Mapping[str, Protocol], rerank: Reranking | None, open_set: Sequence[float] | None
) -> bool:
    """Return whether a gallery may be held in parts: whether scores are asked for one query and picture at a time."""
    several = any(protocol.gallery_people for protocol in protocols.values())
    return rerank is None and open_set is None and not several


def _evaluate_galleries(
    query_features: FeatureRows,
    query_table: pl.DataFrame,
    gallery_features: FeatureRows,
    gallery_table: pl.DataFrame,
    protocols: Mapping[str, Protocol],
    share: tuple[int, int],
    open_set: Sequence[float] | None,
    how: Mapping[str, Any],
) -> dict[str, Evaluation]:
    """Evaluate protocols of which some rank people in several galleries, each of which is ranked by itself."""
    query, gallery = torch.as_tensor(query_features), torch.as_tensor(gallery_features)
    whole = {name: protocol for name, protocol in protocols.items() if not protocol.gallery_people}
    found: dict[str, Evaluation] = {}
    if whole:
        sides = query, query_table, gallery, gallery_table
        found = evaluate(*sides, whole, share=share, open_set=open_set, **how)
    for name in protocols.keys() - whole.keys():
        protocol = protocols[name]
        if open_set is not None:
            raise InputError(
                f"protocol {name} has several galleries (gallery_people={protocol.gallery_people}), and open_set "
                "wants one; leave one of them out"
            )
        plain = dataclasses.replace(protocol, gallery_people=0)
        parts, rows = [], []
        for one in galleries(protocol, query_table, gallery_table):
            tables = query_table[one.query.tolist()], gallery_table[one.gallery.tolist()]
            asked = evaluate(
                *(
                    query[one.query.to(query.device)],
                    tables[0],
                    gallery[one.gallery.to(gallery.device)],
                    tables[1],
                ),
                {name: plain},
                share=share,
                **how,
            )[name]
            parts.append(asked.per_query)
            rows.append(one.query[asked.rows])
            found[name] = asked
        per_query, ascending = in_order(parts, rows)
        pairs, _ = encode(query_table, gallery_table)
        found[name] = dataclasses.replace(
            found[name],
            protocol=protocol,
            counts=count(protocol, query_table, gallery_table),
            rows=ascending,
            per_query=per_query,
            person=pairs.person[ascending],
        )
    return {name: found[name] for name in protocols}


def facts_of(rerank: Reranking) -> dict[str, Any]:
    """Return what is stored with a re-ranked number: the `method` and its settings; JSON-ready."""
    return {
        "method": type(rerank).__name__,
        **{field.name.rstrip("_"): getattr(rerank, field.name) for field in dataclasses.fields(rerank)},
    }


def _observers(
    rates: Sequence[float], jobs: Sequence[Job], pairs: SamePerson, similarity: SimilarityBlocks
) -> dict[int, OpenSet]:
    dtype = np.dtype(str(similarity.dtype).removeprefix("torch."))
    observers = {}
    for index, job in enumerate(jobs):
        ranked, positives = ranked_pictures(job, pairs)
        negatives = int((ranked - positives).sum()) * max(1, job.protocol.draws)
        observers[index] = OpenSet(rates, negatives, similarity.offsets, dtype)
    return observers


def query_table(scored: Tensor, table: pl.DataFrame) -> pl.DataFrame:
    """Return what a protocol made of each valid query.

    Args:
        scored: (valid queries, 8) as `metrics.numbers`, of all processes, in the order of rows.
        table: the query table.

    Returns:
        A row for each: `query` (path; null where there are no paths), `person`, `first_hit` (rank from 1),
        `r1` (1 if that is 1), `ap`, `inp` (0..1), `positives` and `junk` (numbers). Where galleries are drawn,
        the first hit and scores are means over the draws.
    """
    columns = dict(zip(NUMBERS, scored.unbind(1), strict=True))
    rows = columns["row"].long().tolist()
    return pl.DataFrame(
        {
            "query": labels_of(table, "path")[rows],
            "person": labels_of(table, "person")[rows],
            **{name: columns[name].numpy() for name in ("first_hit", "r1", "ap", "inp")},
            **{name: columns[name].long().numpy() for name in ("positives", "junk")},
        }
    )


def _check_features(side: str, features: Tensor, table: pl.DataFrame, metric: Distance) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise InputError(
            f"{side} features are {features.dtype} of shape {tuple(features.shape)}; expected floating-point "
            "numbers, one row a picture"
        )
    if len(features) != len(table):
        raise InputError(
            f"there are {len(features)} {side} features for {len(table)} pictures; give one for each"
        )
    if not features.numel():
        raise InputError(
            f"the {side} features are empty (shape {tuple(features.shape)}); nothing can be ranked"
        )
    norms = _norms(features.detach()).cpu()
    wrong = (~norms.square().isfinite()).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        what = "numbers too large to square" if features[row].isfinite().all() else "NaN or infinity"
        raise InputError(
            f"{len(wrong)} of {len(features)} {side} features hold {what}, first {name_of(table, row)}; "
            "the model or the file is broken"
        )
    if metric == "cosine" and not norms.all():
        zero = (norms == 0).nonzero()[:, 0]
        raise InputError(
            f"{len(zero)} of {len(features)} {side} features are all zero, first "
            f"{name_of(table, int(zero[0]))}; they have no cosine; compute them anew, or mend the model"
        )


def _norms(features: Tensor) -> Tensor:
    """Return (N,) lengths, float32 or float64."""
    wide = torch.promote_types(features.dtype, torch.float32)
    norms = features.new_empty(len(features), dtype=wide)
    for start in range(0, len(features), CHECKED):
        part = slice(start, start + CHECKED)
        torch.linalg.vector_norm(features[part].to(wide), dim=1, out=norms[part])
    return norms
