"""Multiply queries and gallery: the one matrix product under ranking, re-ranking and top-k search.

Half-precision features are multiplied in float32, and reduced matrix precision (TF32, autocast) is switched
off: a number must not depend on how the model was trained. The product runs where the features are.

`write_similarities` multiplies queries with gallery rows, `gallery_terms` has what makes cosines or distances of it.
`SimilarityBlocks` holds a whole gallery and gives full rows, a block of queries at a time; `search` streams galleries
of any size through the two functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

from clip3dreid.retrieval.settings import Distance

Scores: TypeAlias = npt.NDArray[Any]
"""float32 or float64, finite; higher is nearer."""

CONVERTED = 8 * 2**20
"""Bytes of the gallery that are converted to the product's precision at a time."""
COPIED = 32 * 2**20
"""Bytes up to which a gallery is converted and normalised once."""
_MANY = 2
"""Times the width: fewer queries' scores are multiplied by the lengths faster than a gallery is copied."""
_SQUARED = 256
"""Rows that are squared at a time: they should stay in a core's cache."""


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Multiply in the precision of the operands, without TF32, autocast or gradients, and undo it after."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class GalleryTerms(NamedTuple):
    """What makes similarities of the products with n gallery rows."""

    factor: Tensor | None = None
    """(n,) by which products are multiplied; None: by nothing."""
    offset: Tensor | None = None
    """(n,) what is added to products; None: nothing."""


def gallery_terms(gallery: Tensor, metric: Literal["cosine", "product", "euclidean"]) -> GalleryTerms:
    """Return what makes similarities of the products of queries with gallery rows.

    With queries of length 1, `cosine` gives cosines; a row of length 0 has an infinite factor. `euclidean` gives
    minus half the squared distance, up to half the square of each query's own length, which changes nothing in its
    ranking. `product` leaves products as they are.

    Args:
        gallery: (n, D) float32 or float64.
        metric: what the similarity is.
    """
    if metric == "cosine":
        return GalleryTerms(factor=torch.linalg.vector_norm(gallery, dim=1).reciprocal_())
    if metric == "euclidean":
        return GalleryTerms(offset=half_squares(gallery).neg_())
    return GalleryTerms()


def half_squares(features: Tensor) -> Tensor:
    """Return half the squared length of each feature (n, D) as (n,); whole numbers stay exact."""
    squares = features.new_empty(len(features))
    for start in range(0, len(features), _SQUARED):
        rows = slice(start, start + _SQUARED)
        # Not einsum: it takes five times as long.
        torch.sum(features[rows].square(), 1, out=squares[rows])
    return squares.div_(2)


def write_similarities(query: Tensor, gallery: Tensor, terms: GalleryTerms, out: Tensor) -> None:
    """Write the similarities of all pairs.

    Args:
        query: (R, D), of length 1 where the similarity is a cosine.
        gallery: (n, D) of the same type, on the same device.
        terms: of these gallery rows.
        out: (R, n) where to.
    """
    if terms.offset is None:
        torch.mm(query, gallery.T, out=out)
    else:
        torch.addmm(terms.offset, query, gallery.T, out=out)
    if terms.factor is not None:
        out.mul_(terms.factor)


class SimilarityBlocks:
    """Cosines, or negated Euclidean distances, of queries with a whole gallery; a `ranking.ScoreSource`.

    Within a row a score is the cosine, or minus half the squared distance up to an addend of the query's own
    (`offsets`), which changes nothing in its ranking.

    Args:
        query: (Q, D) floating-point features, finite; for `cosine` without zero rows. Any device.
        gallery: (G, D) features on the same device.
        metric: `cosine` or `euclidean`.
    """

    def __init__(self, query: Tensor, gallery: Tensor, metric: Distance = "cosine") -> None:
        self.dtype = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
        self._query, self._gallery, self._metric = query.detach(), gallery.detach(), metric
        bytes_of_a_row = gallery.shape[1] * self.dtype.itemsize
        self._rows = max(1, CONVERTED // bytes_of_a_row)
        small = len(gallery) * bytes_of_a_row <= COPIED
        self._buffer = gallery.new_empty(0, len(gallery), dtype=self.dtype)
        with full_precision(gallery.device):
            if small:
                self._gallery = self._gallery.to(self.dtype)
            # Filled in, not concatenated: pieces that stay would break up the memory between the converted parts.
            values = gallery.new_empty(len(gallery), dtype=self.dtype)
            for columns, part in self._parts(self._rows):
                if metric == "euclidean":
                    values[columns] = half_squares(part)
                else:
                    torch.linalg.vector_norm(part, dim=1, out=values[columns])
            if metric == "euclidean":
                self._terms = GalleryTerms(offset=values.neg_())
            elif small and len(query) > _MANY * gallery.shape[1]:
                self._gallery = self._gallery / values[:, None]
                self._terms = GalleryTerms()
            else:
                # Applied to the product: a normalised copy of the features could be larger than a block.
                self._terms = GalleryTerms(factor=values.reciprocal_())

    def tensor(self, rows: Tensor | slice) -> Tensor:
        """Return the scores of some queries on the device of the features.

        Args:
            rows: (R,) row numbers of queries, or a slice of them.

        Returns:
            (R, G) float32, float64 if the features are: higher is nearer. It is the same memory each time: take what
            is needed before asking for the next.
        """
        query = self._query[rows if isinstance(rows, slice) else rows.to(self._query.device)]
        if len(query) > len(self._buffer):
            self._buffer = self._buffer.new_empty(len(query), len(self._gallery))
        scores = self._buffer[: len(query)]
        factor, offset = self._terms
        with full_precision(self._query.device):
            query = query.to(self.dtype)
            if self._metric == "cosine":
                query = torch.nn.functional.normalize(query)
            at_once = len(self._gallery) if self._gallery.dtype == self.dtype else self._rows
            for columns, part in self._parts(at_once):
                terms = GalleryTerms(
                    None if factor is None else factor[columns], None if offset is None else offset[columns]
                )
                write_similarities(query, part, terms, scores[:, columns])
        return scores

    def block(self, rows: Tensor) -> Scores:
        """Return the scores of some queries as an array: see `tensor`."""
        array: Scores = self.tensor(rows).cpu().numpy()
        return array

    def offsets(self, rows: Tensor) -> Scores | None:
        """Return (R,) what to add to rows of a block so that scores of different queries compare; None: nothing."""
        if self._metric == "cosine":
            return None
        with full_precision(self._query.device):
            query = self._query[rows.to(self._query.device)].to(self.dtype)
            addends: Scores = half_squares(query).neg_().cpu().numpy()
        return addends

    def _parts(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield columns of the scores, and the features of so many gallery rows in the product's precision.

        Converted features are in the same memory each time.
        """
        as_is = self._gallery.dtype == self.dtype
        room = self._gallery.new_empty(0 if as_is else rows, self._gallery.shape[1], dtype=self.dtype)
        for start in range(0, len(self._gallery), max(1, rows)):
            columns = slice(start, start + rows)
            part = self._gallery[columns]
            yield columns, part if as_is else room[: len(part)].copy_(part)
