"""Re-rank galleries: k-reciprocal encoding and query expansion, without any matrix of all pairs.

A re-ranking is called with the features of queries and gallery and gives a source of scores, which makes the
scores of a block of queries when asked for it. Re-ranked results are not comparable with plain ones, nor with
those of a gallery of another size: each picture's score depends on all the others.

k-reciprocal encoding needs of all pairs only each picture's nearest and farthest ones, which are found block
by block. Everything else is sparse: a picture's encoding has some dozens of entries, and two pictures share
one or they do not.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Fraction, Positive, Range, check
from clip3dreid.retrieval.settings import Distance
from clip3dreid.retrieval.similarity import Scores, SimilarityBlocks, full_precision, half_squares

Convention: TypeAlias = Literal["original", "torchreid", "fast_reid"]
_Sparse: TypeAlias = Any  # scipy.sparse.csr_array or csc_array: scipy has no types

MEMORY = 64 * 2**20
"""Bytes that one step of the encoding may take for each of its arrays."""
_CHUNK = 4
"""Queries whose shared entries are added up at once: their rows of sums fit into a core's cache, and pairs into
little memory even where a collapsed model makes every picture share every entry."""


class _Rule(NamedTuple):
    """What the codes of others do differently."""

    itself: int
    """1: a picture has k1 neighbours and itself; 0: it is one of the k1."""
    scaled: bool
    """Distances are divided by the distance to the farthest picture."""
    power: int
    """Exponent of the squared distance, after that division."""
    halved: bool
    """The distance that is mixed in is half the squared distance where the metric is the cosine."""


_RULES: dict[Convention, _Rule] = {
    "original": _Rule(itself=1, scaled=True, power=1, halved=False),
    "torchreid": _Rule(itself=1, scaled=True, power=2, halved=False),
    "fast_reid": _Rule(itself=0, scaled=False, power=1, halved=True),
}


@dataclasses.dataclass(frozen=True)
class KReciprocal:
    """Re-ranking with k-reciprocal encoding (Zhong et al., CVPR 2017).

    Queries and gallery are put together, N pictures with squared Euclidean distances d, of normalised
    features where the metric is the cosine. N(p, k) are the k nearest of p, and p itself.

    1. R(p, k) = {q in N(p, k): p in N(q, k)}, the k-reciprocal nearest neighbours.
    2. R*(p) = R(p, k1) and each R(q, k1 / 2), q in R(p, k1), of which more than 2/3 are in R(p, k1); k1 / 2
       is rounded half to even.
    3. V(p) has exp(-d(p, q) / max_r d(p, r)) where q in R*(p), 0 elsewhere, divided by the sum.
    4. V(p) becomes the mean of V(q) over the k2 nearest q of p, of which p is one.
    5. The Jaccard distance of p and g is 1 - m / (2 - m), m the sum of the smaller entries of V(p) and V(g).
    6. Final distance: (1 - lambda) Jaccard + lambda d(p, g) / max_r d(p, r), within 0..1.

    This is the released code (github.com/zhunzhong07/person-re-ranking); the paper writes "at least" 2/3 and
    k1 / 2 where the code has "more than" and rounds. Pictures at the same distance stand in the order queries,
    gallery, where the code's order is left to an unstable sort. Other codes differ:

    - `torchreid` (`torchreid/utils/rerank.py`) squares distances that are squared already, d ** 2 for d in 3
      and 6; with cosine, (1 - cosine) ** 2, which is the same once divided.
    - `fast_reid` (`fastreid/utils/compute_dist.py`, `evaluation/reid_evaluation.py`) counts p as one of its k
      nearest, does not divide by the maximum in 3, and mixes the raw distance in: 1 - cosine, or d. Final
      distances are then not within 0..1 with the Euclidean metric.
    - CLIP-ReID (`utils/reranking.py`) has the original's definition with k1 = 50, k2 = 15 on normalised
      features; it keeps V and the Jaccard distance in float16, whose steps are 0.0005 there.

    Args:
        k1: neighbours that may be reciprocal, at least 1.
        k2: pictures whose encodings are averaged, 1..k1; 1 leaves them as they are.
        lambda_: weight of the original distance, 0..1.
        convention: `original`, `torchreid` or `fast_reid`.

    Raises:
        InputError: for values outside these ranges.
    """

    k1: Positive = 20
    k2: Positive = 6
    lambda_: Fraction = 0.3
    convention: Convention = "original"

    def __post_init__(self) -> None:
        """Check the values."""
        check(self, "rerank.")
        if self.k2 > self.k1:
            raise InputError(
                f"rerank.k2={self.k2} must be at most rerank.k1={self.k1}; the paper uses 6 with k1=20"
            )

    def __call__(self, query: Tensor, gallery: Tensor, metric: Distance = "cosine") -> KReciprocalScores:
        """Encode all pictures.

        Half-precision features are multiplied in float32. Products and neighbours are found where the
        features are, the rest on the CPU. Takes (N, D) floats, some hundred bytes a picture and neighbour,
        and blocks of `MEMORY`.

        Args:
            query: (Q, D) floating-point features, finite; for `cosine` without zero rows. Any device.
            gallery: (G, D) features on the same device, G > 0.
            metric: `cosine` or `euclidean`.

        Returns:
            A `ranking.ScoreSource`: the negated final distances.
        """
        with full_precision(query.device):
            return KReciprocalScores(self, query, gallery, metric)


class KReciprocalScores:
    """Negated final distances of `KReciprocal`, made block by block.

    Args:
        settings: what to compute.
        query: (Q, D) features.
        gallery: (G, D) features.
        metric: `cosine` or `euclidean`.
    """

    def __init__(self, settings: KReciprocal, query: Tensor, gallery: Tensor, metric: Distance) -> None:
        rule = _RULES[settings.convention]
        features = _together(query, gallery, metric)
        nearest, distance, farthest = _nearest(features, features, settings.k1 + rule.itself)
        # Pictures that differ by rounding alone have no farthest one to divide by.
        noise = 64 * torch.finfo(features.dtype).eps * half_squares(features)
        unit = torch.where((farthest > noise) & rule.scaled, farthest, 1)
        encoding = _encode(
            features, nearest.cpu().numpy(), distance.cpu().numpy(), unit.cpu().numpy(), settings, rule
        )
        self._query_code = encoding[: len(query)]
        self._gallery_code = encoding[len(query) :].tocsc()
        self._similarity = SimilarityBlocks(query, gallery, metric)
        # Of half the squared distance, which similarities are.
        self._factor = (1 if rule.halved and metric == "cosine" else 2) / unit[: len(query)].cpu()
        self._lambda, self._power = settings.lambda_, rule.power

    def block(self, rows: Tensor) -> Scores:
        """Return the scores of some queries.

        Args:
            rows: (R,) row numbers of queries.

        Returns:
            (R, G) float32, float64 if the features are: higher is nearer, comparable within a row. It may be
            the same memory each time.
        """
        rows = rows.cpu()
        scores = self._mixed_in(rows)
        sums = np.zeros((_CHUNK, scores.shape[1]), scores.dtype)
        for start in range(0, len(rows), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            self._add_shared(scores[chunk], self._query_code[rows[chunk].numpy()], sums)
        return scores

    def _mixed_in(self, rows: Tensor) -> Scores:
        """Return (R, G): the score where no entry is shared, that is where the Jaccard distance is 1."""
        if not self._lambda:
            return np.full((len(rows), self._gallery_code.shape[0]), -1, self._gallery_code.dtype)
        scores, offsets = self._similarity.block(rows), self._similarity.offsets(rows)
        table = torch.from_numpy(scores)
        table.add_(-1 if offsets is None else torch.from_numpy(offsets)[:, None])
        table.mul_(self._factor[rows, None])
        if self._power == 2:
            table.square_().neg_()
        table.mul_(self._lambda).sub_(1 - self._lambda)
        return scores

    def _add_shared(self, scores: Scores, codes: _Sparse, sums: Scores) -> None:
        """Add 1 - Jaccard distance to the scores of pictures whose encoding shares an entry with a query.

        Args:
            scores: (R, G), changed in place.
            codes: (R, N) encodings of the queries, compressed rows.
            sums: (at least R, G) zeros, which it leaves as zeros.
        """
        lists = self._gallery_code
        first = lists.indptr[codes.indices].astype(np.int64)
        count = lists.indptr[codes.indices + 1] - first
        # Each entry of a query meets the list of all gallery pictures with that entry.
        place = np.arange(count.sum()) + np.repeat(first - count.cumsum() + count, count)
        row = np.repeat(np.arange(len(scores)), np.diff(codes.indptr))
        pair = np.repeat(row * scores.shape[1], count) + lists.indices[place]
        flat, score = sums.reshape(-1), scores.reshape(-1)
        np.add.at(flat, pair, np.minimum(np.repeat(codes.data, count), lists.data[place]))
        shared = flat[pair]
        # A pair stands here once for each entry that is shared. Each time it is given the same score.
        score[pair] = score[pair] + (1 - self._lambda) * shared / (2 - shared)
        flat[pair] = 0


@dataclasses.dataclass(frozen=True)
class QueryExpansion:
    """Query expansion: a query becomes the weighted mean of itself and its nearest gallery pictures.

    The neighbours' weights are cosine ** alpha, zero where the cosine is negative; the query's own is 1.
    With alpha 0 this is average query expansion (AQE; Chum et al., "Total recall", ICCV 2007), else alpha-QE
    (Radenović et al., "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2019). With the
    cosine, features are normalised before their mean is taken.

    With `gallery`, gallery pictures are expanded too, and neighbours are sought among queries and gallery
    together, as in fast-reid (`fastreid/evaluation/query_expansion.py`, k 5, alpha 3). Its k counts the
    picture itself, so its 5 is k=4 here; and it takes the mean of features as they are, not normalised ones.

    Args:
        k: neighbours to add, at least 1; all where there are fewer.
        alpha: exponent of the weights, at least 0.
        gallery: whether to expand the gallery too.

    Raises:
        InputError: for values outside these ranges.
    """

    k: Positive = 5
    alpha: Annotated[float, Range(0)] = 3.0
    gallery: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        check(self, "rerank.")

    def __call__(self, query: Tensor, gallery: Tensor, metric: Distance = "cosine") -> SimilarityBlocks:
        """Expand features.

        Args:
            query: (Q, D) floating-point features, finite; for `cosine` without zero rows. Any device.
            gallery: (G, D) features on the same device, G > 0.
            metric: `cosine` or `euclidean`.

        Returns:
            A `ranking.ScoreSource`: similarities of expanded features.

        Raises:
            InputError: if alpha is not 0 and the metric has no cosines to weigh with.
        """
        if self.alpha and metric != "cosine":
            raise InputError(
                f"rerank.alpha={self.alpha} weighs with cosines, but metric={metric}; choose metric=cosine or "
                "rerank.alpha=0"
            )
        with full_precision(query.device):
            features = _together(query, gallery, metric)
            query, gallery = features[: len(query)], features[len(query) :]
            if not self.gallery:
                return SimilarityBlocks(self._expand(query, gallery, metric), gallery, metric)
            features = self._expand(features, features, metric)
            return SimilarityBlocks(features[: len(query)], features[len(query) :], metric)

    def _expand(self, features: Tensor, pool: Tensor, metric: Distance) -> Tensor:
        """Return (A, D) features expanded from a pool (B, D), of which they may be part."""
        in_pool = features is pool
        nearest = _nearest(features, pool, self.k + in_pool)[0]
        expanded = torch.empty_like(features)
        step = max(1, MEMORY // (nearest.shape[1] * features.shape[1] * features.itemsize))
        for start in range(0, len(features), step):
            rows = slice(start, start + step)
            neighbours = pool[nearest[rows]]  # (R, K, D)
            cosine = (neighbours @ features[rows, :, None])[..., 0]
            weight = cosine.clamp(min=0).pow(self.alpha) if self.alpha else torch.ones_like(cosine)
            total = (weight[:, None] @ neighbours)[:, 0]
            mean = total if in_pool else total + features[rows]
            expanded[rows] = mean / (weight.sum(1, keepdim=True) + (not in_pool))
        # Opposite vectors may cancel; a cosine needs some direction.
        lost = (expanded == 0).all(1, keepdim=True) & (metric == "cosine")
        return torch.where(lost, features, expanded)


def _together(query: Tensor, gallery: Tensor, metric: Distance) -> Tensor:
    """Return (Q + G, D) float32 or float64 features, normalised where the metric is the cosine."""
    dtype = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
    features = torch.cat([query.detach().to(dtype), gallery.detach().to(dtype)])
    return torch.nn.functional.normalize(features) if metric == "cosine" else features


def _nearest(features: Tensor, pool: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find nearest and farthest pictures, in one pass over blocks of similarities.

    Args:
        features: (A, D).
        pool: (B, D) on the same device.
        k: how many nearest; all B where there are fewer.

    Returns:
        (A, K) int64 rows of the pool, nearest first, equally near ones in the pool's order; their (A, K)
        squared Euclidean distances; (A,) that of the farthest.
    """
    k = min(k, len(pool))
    # Higher is nearer: |a|^2 / 2 minus this is half the squared distance.
    similarity = SimilarityBlocks(features, pool, "euclidean")
    halves = half_squares(features)
    nearest = torch.empty(len(features), k, dtype=torch.int64, device=features.device)
    distance, farthest = features.new_empty(len(features), k), features.new_empty(len(features))
    step = max(1, MEMORY // (len(pool) * features.itemsize))
    for start in range(0, len(features), step):
        rows = slice(start, start + step)
        scores, half = similarity.tensor(rows), halves[rows]
        nearest[rows], value = _highest(scores, k)
        distance[rows] = 2 * (half[:, None] - value)
        farthest[rows] = 2 * (half - scores.amin(1))
    return nearest, distance, farthest


def _highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (R, k) columns and values of the highest scores (R, B) of each row, as the first of a stable sort."""
    value, column = scores.topk(min(k + 1, scores.shape[1]))
    # `topk` leaves open which of equal scores it takes. One more than needed shows whether that matters.
    tied = (value[:, 1:] == value[:, :-1]).any(1).nonzero()[:, 0]
    value, column = value[:, :k], column[:, :k]
    for rows in torch.split(tied, max(1, MEMORY // (8 * scores.shape[1]))):
        score, last = scores[rows], value[rows, -1:]
        above = score > last
        equal = score == last
        taken = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
        columns = taken.nonzero()[:, 1].reshape(len(rows), k)
        order = score.gather(1, columns).argsort(dim=1, descending=True, stable=True)
        column[rows] = columns.gather(1, order)
    return column, value


def _encode(
    features: Tensor,
    nearest: npt.NDArray[np.int64],
    distance: Scores,
    unit: Scores,
    settings: KReciprocal,
    rule: _Rule,
) -> _Sparse:
    """Return (N, N) compressed rows V: steps 1 to 4 of `KReciprocal`.

    Args:
        features: (N, D).
        nearest: (N, K) nearest pictures, itself among them.
        distance: (N, K) squared distances of these.
        unit: (N,) what to divide a picture's distances by.
        settings: k1 and k2.
        rule: the convention.
    """
    half = round(settings.k1 / 2) + 1
    neighbours = _mutual(_graph(nearest))
    close = _mutual(_graph(nearest[:, :half]))
    size = close.sum(1)
    order = np.argsort(nearest, axis=1)
    keys = (np.take_along_axis(nearest, order, 1) + np.arange(len(nearest))[:, None] * len(nearest)).ravel()
    known = np.take_along_axis(distance, order, 1).ravel()
    blocks = []
    # A row of either product has at most so many entries, of an index and a number each.
    step = max(1, MEMORY // (16 * nearest.shape[1] * half))
    for start in range(0, len(nearest), step):
        mutual = neighbours[start : start + step]
        # The relation is symmetric, so `close` is also its own transpose.
        common = (mutual @ close).multiply(mutual).tocsr()
        common.data = (3 * common.data > 2 * size[common.indices]).astype(common.data.dtype)
        common.eliminate_zeros()
        entries = (mutual + common @ close).tocsr()
        row = np.repeat(np.arange(start, start + entries.shape[0]), np.diff(entries.indptr))
        # Most entries are among the nearest, whose distances are known.
        key = row * len(nearest) + entries.indices
        place = np.searchsorted(keys, key).clip(max=len(keys) - 1)
        squared = known[place]
        other = np.flatnonzero(keys[place] != key)
        squared[other] = _distances(features, row[other], entries.indices[other])
        weight = np.exp(-((squared / unit[row]) ** rule.power))
        weight /= np.bincount(row - start, weight, entries.shape[0])[row - start]
        blocks.append(sparse.csr_array((weight, entries.indices, entries.indptr), entries.shape))
    encoding = sparse.vstack(blocks, format="csr")
    around = _graph(nearest[:, : settings.k2])
    mean: _Sparse = around.astype(encoding.dtype) @ encoding
    mean.data /= min(settings.k2, nearest.shape[1])
    return mean


def _graph(nearest: npt.NDArray[np.int64]) -> _Sparse:
    """Return (N, N) compressed rows: 1 where a picture is among another's nearest."""
    pictures, k = nearest.shape
    ones = np.ones(pictures * k, np.int32)
    rows = np.arange(0, pictures * k + 1, k)
    # A copy: sorting it must leave the order of `nearest` alone.
    columns = nearest.reshape(-1).astype(np.int32)
    graph = sparse.csr_array((ones, columns, rows), (pictures, pictures))
    graph.sort_indices()
    return graph


def _mutual(graph: _Sparse) -> _Sparse:
    return graph.multiply(graph.T.tocsr()).tocsr()


def _distances(features: Tensor, row: npt.NDArray[np.int64], column: npt.NDArray[Any]) -> Scores:
    """Return (P,) squared Euclidean distances of P pairs of features."""
    step = max(1, MEMORY // (4 * features.shape[1] * features.itemsize))
    parts = [features.new_empty(0)]
    for start in range(0, len(row), step):
        one, other = (
            torch.from_numpy(index[start : start + step]).to(features.device) for index in (row, column)
        )
        difference = features.index_select(0, one).sub_(features.index_select(0, other))
        parts.append(torch.linalg.vector_norm(difference, dim=1).square_())
    distances: Scores = torch.cat(parts).cpu().numpy()
    return distances
