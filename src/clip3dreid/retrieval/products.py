"""Scores of plain features: one matrix product a block of queries.

Half-precision features are multiplied in float32, and reduced matrix precision (TF32, autocast) is switched
off: a number must not depend on how the model was trained. The product runs where the features are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clip3dreid.retrieval.counting import Scores
from clip3dreid.retrieval.ranking import Distance, full_precision

CONVERTED = 8 * 2**20
"""Bytes of the gallery that are squared, or converted to the product's precision, at a time."""
COPIED = 32 * 2**20
"""Bytes up to which a gallery is converted and normalised once."""


class Products:
    """Cosines, or negated Euclidean distances, of queries and gallery, as a source of scores.

    Within a row a score is the cosine, or minus half the squared distance up to an addend of the query's own
    (`offsets`), which changes nothing in its ranking.

    Args:
        query: (Q, D) floating-point features, finite; for `cosine` without zero rows. Any device.
        gallery: (G, D) features on the same device.
        metric: `cosine` or `euclidean`.
    """

    def __init__(self, query: Tensor, gallery: Tensor, metric: Distance = "cosine") -> None:
        self.dtype = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
        self._query, self._gallery = query.detach(), gallery.detach()
        a_row = gallery.shape[1] * self.dtype.itemsize
        self._rows = max(1, CONVERTED // a_row)
        small = len(gallery) * a_row <= COPIED
        self._buffer = gallery.new_empty(0, len(gallery), dtype=self.dtype)
        self._factor = self._offset = None
        with full_precision(gallery.device):
            if small:
                self._gallery = self._gallery.to(self.dtype)
            # Filled in, not concatenated: pieces that stay would break up the memory between the converted parts.
            values = gallery.new_empty(len(gallery), dtype=self.dtype)
            if metric == "euclidean":
                for columns, part in self._parts(self._rows):
                    torch.sum(part.square(), 1, out=values[columns])
                self._offset = values.div_(-2)
                return
            for columns, part in self._parts(self._rows):
                torch.linalg.vector_norm(part, dim=1, out=values[columns])
            if small:
                self._gallery = self._gallery / values[:, None]
            else:
                # Applied to the product: a normalised copy of the features could be larger than a block.
                self._factor = values.reciprocal_()

    def block(self, rows: Tensor) -> Scores:
        """Scores of some queries.

        Args:
            rows: (R,) row numbers of queries.

        Returns:
            (R, G) float32, float64 if the features are: higher is nearer. On the CPU it is the same memory
            each time: take what is needed before asking for the next.
        """
        if len(rows) > len(self._buffer):
            self._buffer = self._buffer.new_empty(len(rows), len(self._gallery))
        scores = self._buffer[: len(rows)]
        with full_precision(self._query.device):
            query = self._query[rows.to(self._query.device)].to(self.dtype)
            if self._offset is None:
                query = torch.nn.functional.normalize(query)
            whole = len(self._gallery) if self._gallery.dtype == self.dtype else self._rows
            for columns, part in self._parts(whole):
                out = scores[:, columns]
                if self._offset is None:
                    torch.mm(query, part.T, out=out)
                else:
                    torch.addmm(self._offset[columns], query, part.T, out=out)
            if self._factor is not None:
                scores.mul_(self._factor)
        array: Scores = scores.cpu().numpy()
        return array

    def offsets(self, rows: Tensor) -> Scores | None:
        """(R,) what to add to the rows of a block so that scores of different queries compare; None: nothing."""
        if self._offset is None:
            return None
        with full_precision(self._query.device):
            query = self._query[rows.to(self._query.device)].to(self.dtype)
            halves: Scores = query.square().sum(1).div_(-2).cpu().numpy()
        return halves

    def _parts(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yields columns of the scores, and the features of so many gallery rows in the product's precision.

        Converted features are in the same memory each time.
        """
        as_is = self._gallery.dtype == self.dtype
        room = self._gallery.new_empty(0 if as_is else rows, self._gallery.shape[1], dtype=self.dtype)
        for start in range(0, len(self._gallery), rows):
            columns = slice(start, start + rows)
            part = self._gallery[columns]
            yield columns, part if as_is else room[: len(part)].copy_(part)
