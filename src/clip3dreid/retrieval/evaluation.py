"""From features and a table of labels to numbers that say which protocol they belong to."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.retrieval.metrics import PerQuery, summarise
from clip3dreid.retrieval.protocol import Protocol, data_name, encode, labels_of, select
from clip3dreid.retrieval.ranking import MEMORY, Distance, Job, SamePerson, plan, rank

NAMED = 10
"""How many queries without a positive are named; all are counted."""


class Counts(NamedTuple):
    """What a protocol makes of a data set, features aside."""

    queries: int
    """Queries that the protocol asks."""
    valid_queries: int
    """Those with at least one positive: the denominator of every number."""
    gallery: int
    """Gallery pictures that it asks them of."""
    positives_per_query: float
    """Mean over the valid queries, before any draw."""
    junk_per_query: float
    """Gallery pictures dropped, mean over all queries."""
    junk_share: float
    """The same as a share of the gallery, 0..1."""
    chance_r1: float
    """R1 to be expected of a random ranking, 0..1."""
    without_positive: tuple[str, ...]
    """The first ten queries that are not valid, by path, or by row where there are no paths."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A ranking under one protocol.

    Attributes:
        protocol: what was asked.
        metric: `cosine` or `euclidean`.
        counts: of the whole evaluation, whatever the share.
        rows: (q,) rows of the query table that this process's share holds, ascending.
        per_query: results of these queries.
    """

    protocol: Protocol
    metric: Distance
    counts: Counts
    rows: Tensor
    per_query: PerQuery

    def result(self, scores: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The numbers and everything that must stand beside them, JSON-ready.

        Args:
            scores: what `metrics.RetrievalScores` computed over all processes; by default the means over this
                process's share, which is all queries where there is one process.

        Returns:
            `r1`, `r5`, `r10`, `r20`, `map`, `minp` (fractions 0..1), the counts, `metric`, and the protocol's
            facts.
        """
        counts = self.counts._asdict()
        counts["without_positive"] = list(self.counts.without_positive)
        scores = summarise(self.per_query) if scores is None else scores
        return {**scores, **counts, "metric": self.metric, **self.protocol.facts()}


def evaluate(
    query_features: Tensor,
    query_table: pl.DataFrame,
    gallery_features: Tensor,
    gallery_table: pl.DataFrame,
    protocols: Mapping[str, Protocol],
    metric: Distance = "cosine",
    share: tuple[int, int] = (0, 1),
    memory: int = MEMORY,
) -> dict[str, Evaluation]:
    """Ranks the gallery for every query under each protocol.

    Args:
        query_features: (Q, D) float, on any device.
        query_table: Q rows with columns as in the manifest; missing columns count as unknown labels.
        gallery_features: (G, D) float, on the same device.
        gallery_table: G rows, likewise.
        protocols: name -> protocol.
        metric: `cosine` or `euclidean`.
        share: (process, processes): rank each `processes`-th query only. Every process still counts all of
            them, so `Evaluation.counts` and errors are the same everywhere; `RetrievalScores` adds up the
            rest.
        memory: bytes that a block of queries may take beside the features.

    Returns:
        name -> evaluation.

    Raises:
        InputError: if features are not finite, of unequal width, empty, zero where a cosine is asked for, or
            do not fit the tables; if there is no protocol; if a protocol does not fit the labels (`select`)
            or leaves no query a positive.
    """
    if metric not in ("cosine", "euclidean"):
        raise InputError(f"metric={metric!r} is not known; choose cosine or euclidean")
    if not protocols:
        raise InputError("no protocol is chosen; choose at least one, such as protocol=general")
    for side, features, table in (
        ("query", query_features, query_table),
        ("gallery", gallery_features, gallery_table),
    ):
        _check_features(side, features, table, metric)
    if query_features.shape[1] != gallery_features.shape[1]:
        raise InputError(
            f"query features are {query_features.shape[1]} wide and gallery features "
            f"{gallery_features.shape[1]}; both must come from one model"
        )
    pairs = SamePerson(*encode(query_table, gallery_table))
    prepared = [_prepare(protocol, pairs, query_table, gallery_table) for protocol in protocols.values()]
    rows = torch.arange(share[0], len(query_table), share[1])
    ranked = rank(query_features, gallery_features, pairs, [job for job, _ in prepared], metric, rows, memory)
    evaluations = {}
    for (name, protocol), (job, counts), per_query in zip(protocols.items(), prepared, ranked, strict=True):
        asked = job.queries[rows]
        evaluations[name] = Evaluation(protocol, metric, counts, rows[asked], per_query.at(asked))
    return evaluations


def count(protocol: Protocol, query_table: pl.DataFrame, gallery_table: pl.DataFrame) -> Counts:
    """Counts valid queries and junk under a protocol, without any features.

    Raises:
        InputError: as `evaluate` does where the protocol and the labels do not fit.
    """
    for side, table in (("query", query_table), ("gallery", gallery_table)):
        if table.is_empty():
            raise InputError(f"there are no {side} pictures to evaluate on")
    pairs = SamePerson(*encode(query_table, gallery_table))
    return _prepare(protocol, pairs, query_table, gallery_table)[1]


def _prepare(
    protocol: Protocol, pairs: SamePerson, query_table: pl.DataFrame, gallery_table: pl.DataFrame
) -> tuple[Job, Counts]:
    job = plan(protocol, pairs, select(protocol, query_table, gallery_table))
    queries, valid, gallery = (int(mask.sum()) for mask in (job.queries, job.valid, job.gallery))
    junk = int(job.junk.sum())
    if not valid:
        reason = (
            f"its rule {protocol.rule} drops all {junk} gallery pictures of the queries' own people"
            if junk
            else f"no person of its {queries} queries is among its {gallery} gallery pictures"
        )
        raise InputError(
            f"protocol {protocol.name}: no query of {data_name(query_table)} has a positive, because "
            f"{reason}; choose another protocol or check the labels"
        )
    without = (job.queries & ~job.valid).nonzero()[:NAMED, 0].tolist()
    return job, Counts(
        queries,
        valid,
        gallery,
        positives_per_query=int(job.positives.sum()) / valid,
        junk_per_query=junk / queries,
        junk_share=junk / queries / gallery,
        chance_r1=_chance_r1(job, pairs),
        without_positive=tuple(_name(query_table, row) for row in without),
    )


def _chance_r1(job: Job, pairs: SamePerson) -> float:
    """Mean over the valid queries of the share of positives among what is ranked."""
    positives, own = job.positives[job.valid], (job.positives + job.junk)[job.valid]
    pictures = torch.bincount(pairs.gallery.person[job.gallery])
    if job.protocol.draws:
        positives, own, pictures = (x.clamp(max=job.protocol.per_person) for x in (positives, own, pictures))
    return float((positives / (pictures.sum() - own + positives)).double().mean())


def _name(table: pl.DataFrame, row: int) -> str:
    return labels_of(table, "path")[row] or f"row {row}"


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
    wide = torch.promote_types(features.dtype, torch.float32)
    norms = torch.linalg.vector_norm(features.detach(), dim=1, dtype=wide).cpu()
    wrong = (~norms.square().isfinite()).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        what = "numbers too large to square" if features[row].isfinite().all() else "NaN or infinity"
        raise InputError(
            f"{len(wrong)} of {len(features)} {side} features hold {what}, first {_name(table, row)}; "
            "the model or the file is broken"
        )
    if metric == "cosine" and not norms.all():
        zero = (norms == 0).nonzero()[:, 0]
        raise InputError(
            f"{len(zero)} of {len(features)} {side} features are all zero, first "
            f"{_name(table, int(zero[0]))}; they have no direction: use metric=euclidean or mend the model"
        )


# Arrays of a feature file, after `query_` or `gallery_`, and the manifest column that each becomes.
_ARRAYS = {
    "pids": "person",
    "camids": "camera",
    "clothes": "clothes",
    "tracklets": "tracklet",
    "frames": "frame",
    "sets": "query_set",
    "paths": "path",
}
_REQUIRED = ("pids", "camids")


def load_features(path: Path | str) -> tuple[Tensor, pl.DataFrame, Tensor, pl.DataFrame]:
    """Reads features that any model made, with their labels, from an NPZ file.

    The file holds `query_features` (Q, D), `query_pids` (Q,) and `query_camids` (Q,), and the same for
    `gallery_` (G rows). `…_clothes`, `…_tracklets`, `…_frames`, `…_sets` (the manifest's `query_set`) and
    `…_paths` are optional. Labels are whole numbers or strings; -1 or an empty string is unknown. Clothes
    need only tell the outfits of one person apart. Gallery items with pid -1 are left out: Market-1501's
    junk, which counts neither as a hit nor as a miss.

    Args:
        path: the file; pickled objects in it are refused.

    Returns:
        query features (Q, D), query table, gallery features (G, D), gallery table; columns of the tables are
        the manifest's.

    Raises:
        InputError: if the file cannot be read, an array is missing, holds something else than labels or
            features, or differs in length from the features.
    """
    path = Path(path)
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"features={path} cannot be read as an NPZ file: {error}") from error
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise InputError(f"features={path} is one array; expected an NPZ file, as np.savez writes it")
    with loaded:
        query_features, query_table = _load_side(path, loaded, "query")
        gallery_features, gallery_table = _load_side(path, loaded, "gallery")
    known = labels_of(gallery_table, "person").is_not_null()
    kept = torch.from_numpy(known.to_numpy().copy())
    return query_features, query_table, gallery_features[kept], gallery_table.filter(known)


def _load_side(path: Path, arrays: np.lib.npyio.NpzFile, side: str) -> tuple[Tensor, pl.DataFrame]:
    needed = [f"{side}_{name}" for name in ("features", *_REQUIRED)]
    if missing := [name for name in needed if name not in arrays.files]:
        raise InputError(f"features={path} lacks {missing}; it holds {sorted(arrays.files)}")
    features = _array(path, arrays, f"{side}_features")
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise InputError(
            f"features={path}: {side}_features is {features.dtype} of shape {features.shape}; expected real "
            "numbers, one row a picture"
        )
    table = {"path": pl.Series([f"{side}[{row}]" for row in range(len(features))], dtype=pl.String)}
    for suffix, column in _ARRAYS.items():
        name = f"{side}_{suffix}"
        if name in arrays.files:
            table[column] = _labels(path, name, _array(path, arrays, name), len(features))
        elif column != "path":
            table[column] = pl.Series([None] * len(features), dtype=pl.String)
    # An outfit is one person's in the manifest, and files often number them anew for each person.
    table["clothes"] = table["person"] + "_" + table["clothes"]
    table["frame"] = table["frame"].cast(pl.Int64, strict=False)
    dtype = features.dtype if features.dtype in (np.float16, np.float32, np.float64) else np.dtype(np.float32)
    return torch.from_numpy(features.astype(dtype, copy=False)), pl.DataFrame(table)


def _array(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = arrays[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"features={path}: {name} cannot be read ({error}); save plain arrays of numbers or strings"
        ) from error
    return array


def _labels(path: Path, name: str, array: npt.NDArray[Any], length: int) -> pl.Series:
    """Labels as strings, unknown ones as null."""
    if array.shape != (length,):
        raise InputError(f"features={path}: {name} has shape {array.shape}, but there are {length} features")
    if array.dtype.kind not in "iuUS":
        raise InputError(
            f"features={path}: {name} is {array.dtype}; labels are whole numbers or strings, -1 or '' unknown"
        )
    labels = pl.Series(np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array).cast(pl.String)
    unknown = labels.is_in(["-1", ""])
    return labels.set(unknown, None)
