"""Features that are orthogonal to the directions in which clothes move them, with no classifier to play against."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.loss.gather import gather
from clip3dreid.loss.term import Term, fraction
from clip3dreid.types import Batch, Dimensions, Features

UPPER, LOWER = (0.15, 0.5), (0.5, 0.9)
"""Where clothes hang on a person crop, from its top: fractions of its height."""
MIDDLE = (0.25, 0.75)
"""Where the person stands in it, from its left: fractions of its width."""
STATISTICS = 12
"""Colour statistics of a picture: mean and deviation of three channels above and below."""
RIDGE = 1e-3
"""Share of the mean variance that is added to the variance of each colour statistic before they are regressed on."""


class ClothesOrthogonal(Term):
    """The share of the feature that lies in the subspace of clothes.

    The subspace is estimated on the way, from what changes within a person and never from what differs between
    people, so that an outfit which one training person alone wears does not make that person's shape a matter of
    clothes:

    - `outfits`: from the differences between a person's outfits, each the mean of its pictures in the batch;
    - `colours`: from what the colours of the upper and lower body explain, by linear regression, of the differences
      between a person's pictures; needs no clothes labels.

    Its leading directions q_k carry clothes of variance l_k. With z the embedding, centred over the batch and of
    length 1, and v_k the variance of q_k z in the batch, the loss is

        mean over pictures of sum_k min(1, l_k / v_k) (q_k z)^2, between 0 and 1.

    What it is guarded against:

    - Short features: z has length 1, so shrinking gains nothing.
    - Identity that happens to lie there: a direction weighs the share of its variance that clothes explain, which
      falls to 0 when there are no more clothes in it. Without it the leading directions of whatever noise is left
      would be punished for ever.
    - A beginning that knows nothing: the estimate starts at 0 and so does every weight; the first batches count
      little.
    - Batches in which nobody changes: they leave the estimate as it is.

    What it is not guarded against: clothes that are no linear part of the embedding, and pose or view, which differ
    between two outfits' pictures too and are taken for clothes as far as few pictures do not average them out.

    Observed: `subspace`, the share of the feature's variance that lies in the subspace, and `clothes`, the share that
    clothes explain there, both 0..1.

    Source: that identity should be orthogonal to a low-rank subspace of clothes is the idea of Ortho-ReID ("Learning
    Instance-Adaptive Low-Rank Orthogonal Subspaces for Clothes-Changing Person Re-Identification", ICML 2026,
    arXiv 2606.11661), whose subspace comes from texts about each picture; that colours can stand for clothes labels
    is that of Pathak and Rawat, "Colors See, Colors Ignore", ICCV 2025 (CSCI), who learn a colour token beside
    that of identity and keep the two apart. Directions found from differences within a person are those of nuisance
    attribute projection in speaker recognition (Solomonoff, Campbell, Boardman, ICASSP 2005). Estimate, weights and
    loss are ours.
    """

    def __init__(
        self, dimensions: Dimensions, *, clothes: Literal["outfits", "colours"], rank: int, momentum: float
    ) -> None:
        """Start with no subspace.

        Args:
            dimensions: width D of the embedding, and whose outfit each clothes index is.
            clothes: `outfits` or `colours`, what tells clothes.
            rank: most directions of the subspace, 1..D-1; colours give STATISTICS at most.
            momentum: share of the estimate that a batch keeps, 0..1; 0 knows the last batch only, 1 never learns.

        Raises:
            InputError: if a value is out of range, or `outfits` has no two outfits of a person to compare.
        """
        super().__init__()
        choose("ClothesOrthogonal: clothes", clothes, ("outfits", "colours"))
        check_number("ClothesOrthogonal: rank", rank, Range(1, dimensions.width - 1), whole=True)
        self.momentum = fraction("ClothesOrthogonal: momentum", momentum)
        self.clothes = clothes
        self.rank = rank
        if clothes == "outfits":
            _check_outfits(dimensions.person_of_clothes)
            self.register_buffer("directions", torch.zeros(rank, dimensions.width))
        else:
            self.register_buffer("colours", torch.zeros(STATISTICS, STATISTICS))
            self.register_buffer("shared", torch.zeros(STATISTICS, dimensions.width))

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the global batch, 0..1, a scalar; update the estimate first."""
        unit = centred(gather(features.embedding))  # (B, D) of the global batch
        person = gather(batch.person)
        with torch.no_grad():
            if self.clothes == "outfits":
                directions = self._compare(unit, person, gather(batch.clothes))
            else:
                directions = self._regress(unit, person, gather(colour_statistics(batch.images)))
        loss, observed = share_in(unit, directions.to(unit.dtype))
        self.observed |= observed
        return loss

    def _compare(self, unit: Tensor, person: Tensor, clothes: Tensor) -> Tensor:
        """Return the directions (rank, D), each of length sqrt(l_k), of what outfits of a person differ in."""
        held = cast(Tensor, self.directions)
        apart, changed = outfit_differences(unit, person, clothes)
        keep = torch.where(changed.any(), self.momentum, 1.0)
        scaled = apart * ((1 - keep) / changed.sum().clamp(min=1)).sqrt()
        held.copy_(leading(torch.cat([keep.sqrt() * held, scaled.to(held.dtype)]), self.rank))
        return held

    def _regress(self, unit: Tensor, person: Tensor, statistics: Tensor) -> Tensor:
        """Return the directions (at most rank, D), likewise, of what colours explain of a person's differences."""
        colours, shared = cast(Tensor, self.colours), cast(Tensor, self.shared)
        told, moved = (_within(rows, person).to(shared.dtype) for rows in (statistics, unit))
        keep = torch.where(told.any(), self.momentum, 1.0)
        for held, new in ((colours, told.T @ told), (shared, told.T @ moved)):
            held.mul_(keep).add_((1 - keep) * finite(new) / len(unit))
        spread = colours.diagonal().mean().clamp(min=torch.finfo(colours.dtype).tiny)
        ridged = colours + RIDGE * spread * torch.eye(STATISTICS, dtype=colours.dtype, device=colours.device)
        factor = torch.linalg.cholesky_ex(ridged).L
        explained = torch.linalg.solve_triangular(factor, shared, upper=False)
        return leading(explained, min(self.rank, STATISTICS))


def centred(embedding: Tensor) -> Tensor:
    """Return the embeddings (B, D) less their mean, of length 1."""
    return F.normalize(embedding - embedding.mean(0))


def share_in(unit: Tensor, directions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of features against directions of clothes, and what is observed of both.

    Args:
        unit: (B, D) of length 1, mean about 0.
        directions: (K, D) orthogonal rows, the square of whose lengths is the variance that clothes have there; rows
            of zeros say nothing.

    Returns:
        The loss, 0..1, a scalar; `subspace` and `clothes` as `ClothesOrthogonal` has them.
    """
    along = unit @ F.normalize(directions).T  # (B, K)
    squares = along.square()
    variance = squares.detach().mean(0)
    of_clothes = torch.minimum(directions.square().sum(1), variance)  # more than there is cannot be clothes'
    weights = of_clothes / variance.clamp(min=torch.finfo(variance.dtype).tiny)
    return (squares @ weights).mean(), {"subspace": variance.sum(), "clothes": of_clothes.sum()}


def outfit_differences(vectors: Tensor, person: Tensor, clothes: Tensor) -> tuple[Tensor, Tensor]:
    """Return how the mean of each picture's outfit differs from the mean of its person.

    Args:
        vectors: (B, D).
        person: (B,) int64.
        clothes: (B,) int64, -1 where it is not known: such a picture belongs to no mean.

    Returns:
        (B, D), rows of zeros for people in a single outfit and for unknown ones; and (B,) bool, who has two or more.
    """
    # A row for each picture and not for each outfit, so that nobody waits for the device to count them.
    known = clothes >= 0
    of_person = (person[:, None] == person) & known
    of_outfit = of_person & (clothes[:, None] == clothes)
    changed = known & (of_outfit.sum(1) < of_person.sum(1))
    apart = _means(of_outfit, vectors) - _means(of_person, vectors)
    return torch.where(changed[:, None], apart, 0), changed


def colour_statistics(images: Tensor) -> Tensor:
    """Return the mean and standard deviation of red, green and blue in the upper and the lower body.

    Args:
        images: (B, 3, H, W) RGB, of any scale.

    Returns:
        (B, STATISTICS) float32 or wider, without gradient.
    """
    images = images.detach()
    images = images if images.dtype == torch.float64 else images.float()
    parts = [
        images[:, :, _cut(images.shape[2], rows), _cut(images.shape[3], MIDDLE)] for rows in (UPPER, LOWER)
    ]
    return torch.cat(
        [moment for part in parts for moment in (part.mean((2, 3)), part.std((2, 3), correction=0))], dim=1
    )


def leading(rows: Tensor, count: int) -> Tensor:
    """Return the leading directions of `rows.T @ rows`: (count, D) orthogonal, each as long as its eigenvalue's root.

    Args:
        rows: (R, D); the work is that of a symmetric R x R eigenproblem, whatever D. Values that are not finite count
            as 0, so that a broken batch is told by its losses.
        count: how many; those beyond R are zeros.
    """
    exact = finite(
        rows
    ).double()  # squares of small float32 values have no float32, and LAPACK answers them with NaN
    values, vectors = torch.linalg.eigh(exact @ exact.T)
    # What rounding leaves of directions that are not there would have a length of 0 and yet a direction.
    there = values > len(rows) * torch.finfo(rows.dtype).eps ** 2 * values[-1]
    found = ((vectors * there).flip(1)[:, :count].T @ exact).to(rows.dtype)
    return F.pad(found, (0, 0, 0, count - len(found)))


def finite(values: Tensor) -> Tensor:
    """Return the values with zeros in place of those that are not finite."""
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _means(member: Tensor, vectors: Tensor) -> Tensor:
    """Return the mean of each row's members (B, D); zeros where it has none."""
    weights = member.to(vectors.dtype)
    return weights @ vectors / weights.sum(1, keepdim=True).clamp(min=1)


def _within(vectors: Tensor, person: Tensor) -> Tensor:
    """Return the vectors (B, D) less the mean of their person."""
    return vectors - _means(person[:, None] == person, vectors)


def _cut(length: int, part: tuple[float, float]) -> slice:
    """Return the pixels of a part, at least one."""
    first = int(part[0] * length)
    return slice(first, max(int(part[1] * length), first + 1))


def _check_outfits(person_of_clothes: Tensor) -> None:
    """Raise InputError unless somebody has two outfits."""
    if len(person_of_clothes) == 0:
        raise InputError(
            "ClothesOrthogonal: clothes=outfits needs clothes labels on every training picture, and the data lacks "
            "some or all; set loss.clothes_orthogonal.term.clothes=colours, or label them"
        )
    if int(person_of_clothes.bincount().max()) < 2:
        raise InputError(
            "ClothesOrthogonal: clothes=outfits compares outfits of one person, and nobody in the training data has "
            "two; set loss.clothes_orthogonal.term.clothes=colours, or leave the loss out"
        )
