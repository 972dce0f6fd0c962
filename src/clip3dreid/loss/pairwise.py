"""Losses on pairs of pictures in the global batch: triplet, contrastive, pairwise cosface and circle.

All of them compare the embeddings of every process (`gather`), so that the number of processes changes
neither the loss nor its gradient. Pictures without a partner of their own person, or without anybody else to
be told from, add nothing. Pairs are chosen by masks over the whole table and not by their number, which the host
would have to wait for.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from clip3dreid.io.checks import choose
from clip3dreid.loss.cosine import cosines
from clip3dreid.loss.gather import gather
from clip3dreid.loss.term import Term, positive
from clip3dreid.types import Batch, Dimensions, Features

_DISTANCES: Mapping[str, Callable[[Tensor], Tensor]] = {
    # Less the 1, which a difference of two distances does not see.
    "cosine": lambda embedding: -cosines(embedding, embedding),
    "euclidean": lambda embedding: torch.cdist(embedding, embedding),
    "unit_euclidean": lambda embedding: torch.cdist(F.normalize(embedding), F.normalize(embedding)),
}


class Triplet(Term):
    """Batch-hard triplet loss: for each picture its farthest positive and its nearest negative.

    With a margin `mean(max(0, d(positive) - d(negative) + margin))`; without one the soft margin
    `mean(log(1 + exp(d(positive) - d(negative))))`.

    Source: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017, equation 5
    and the soft margin below it; on the cosine distance 1 - cos as in the code of Gu et al., CVPR 2022; on the
    Euclidean distance of features of length 1, the root of twice that, as in the partial release of Liu et al.,
    CVPR 2024.
    """

    def __init__(self, dimensions: Dimensions, *, margin: float | None, distance: str) -> None:
        """Choose the distance.

        Args:
            dimensions: unused; a triplet needs no head.
            margin: in units of the distance; None for the soft margin.
            distance: "cosine" (1 - cos, in 0..2), "euclidean" (of features as they are) or "unit_euclidean" (of
                features brought to length 1, in 0..2).

        Raises:
            InputError: if `distance` is none of them.
        """
        super().__init__()
        choose("Triplet: distance", distance, _DISTANCES)
        self.margin = margin
        self.distance = _DISTANCES[distance]

    # pytorch-metric-learning's chooses triplets by their number, which waits for the device.

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the pictures of the global batch that have a positive and a negative, a scalar."""
        embedding = gather(features.embedding)
        positives, negatives = _partners(gather(batch.person))
        distance = self.distance(embedding)
        farthest = distance.detach().masked_fill(~positives, -torch.inf).argmax(1, keepdim=True)
        nearest = distance.detach().masked_fill(~negatives, torch.inf).argmin(1, keepdim=True)
        behind = (distance.gather(1, farthest) - distance.gather(1, nearest)).squeeze(1)
        per_picture = F.softplus(behind) if self.margin is None else F.relu(behind + self.margin)
        # Satisfied triplets count in the mean, as they do in the field.
        whole = positives.any(1) & negatives.any(1)
        return torch.where(whole, per_picture, 0).sum() / whole.sum().clamp(min=1)


class PairwiseCircle(Term):
    """Circle loss on pairs: `softplus(logsumexp(negatives) + logsumexp(positives))` for each picture.

    A negative pair of cosine s counts `scale [s + m]+ (s - m)`, a positive one
    `-scale [1 + m - s]+ (s - (1 - m))`; the factors in brackets carry no gradient.

    Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020,
    equation 6.
    """

    def __init__(self, dimensions: Dimensions, *, scale: float, margin: float) -> None:
        """Keep scale and margin.

        Args:
            dimensions: unused; pairs need no head.
            scale: gamma of the paper, above 0.
            margin: m of the paper.

        Raises:
            InputError: if `scale` is not above 0.
        """
        super().__init__()
        self.scale = positive("PairwiseCircle: scale", scale)
        self.margin = margin

    # pytorch-metric-learning's chooses pairs by boolean indices, whose number waits for the device.

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the pictures of the global batch, a scalar."""
        cosine, positives, negatives = _pairs(features, batch)
        fixed, m = cosine.detach(), self.margin
        apart = _logsumexp(self.scale * F.relu(fixed + m) * (cosine - m), negatives)
        together = _logsumexp(-self.scale * F.relu(1 + m - fixed) * (cosine - (1 - m)), positives)
        return F.softplus(apart + together).mean()


class PairwiseCosFace(Term):
    """CosFace on pairs: `softplus(logsumexp(scale (negatives + margin)) + logsumexp(-scale positives))`.

    Source: the additive-margin case of the unified loss of Sun et al., "Circle Loss", CVPR 2020, equation 1.
    """

    # pytorch-metric-learning has no such loss.

    def __init__(self, dimensions: Dimensions, *, scale: float, margin: float) -> None:
        """Keep scale and margin.

        Args:
            dimensions: unused; pairs need no head.
            scale: factor on the cosines, above 0.
            margin: added to the cosines of negative pairs.

        Raises:
            InputError: if `scale` is not above 0.
        """
        super().__init__()
        self.scale = positive("PairwiseCosFace: scale", scale)
        self.margin = margin

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the pictures of the global batch, a scalar."""
        cosine, positives, negatives = _pairs(features, batch)
        apart = _logsumexp(self.scale * (cosine + self.margin), negatives)
        together = _logsumexp(-self.scale * cosine, positives)
        return F.softplus(apart + together).mean()


class Contrastive(Term):
    """Supervised contrastive loss: each positive against all negatives.

    For a picture with positives P and negatives N, s being scaled cosines, the mean over p in P of
    `-log(exp(s_p) / (exp(s_p) + sum over N of exp(s_n)))`: a positive does not compete with the other
    positives. The mean over pictures leaves out those without a positive.

    Source: the code of Gu et al., CVPR 2022, after Khosla et al., "Supervised Contrastive Learning",
    NeurIPS 2020, whose denominator holds the other positives too.
    """

    # pytorch-metric-learning: ContrastiveLoss is the hinge on distances and SupConLoss keeps the other
    # positives in the denominator; NTXentLoss with PerAnchorReducer agrees, but makes a table of positive x
    # negative pairs (3.7 GB for a batch of 512 with 8 pictures a person).

    def __init__(self, dimensions: Dimensions, *, scale: float) -> None:
        """Keep the scale.

        Args:
            dimensions: unused; pairs need no head.
            scale: factor on the cosines (one over the temperature), above 0.

        Raises:
            InputError: if `scale` is not above 0.
        """
        super().__init__()
        self.scale = positive("Contrastive: scale", scale)

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the pictures of the global batch that have a positive, a scalar."""
        cosine, positives, negatives = _pairs(features, batch)
        logits = self.scale * cosine
        log_probability = F.logsigmoid(logits - _logsumexp(logits, negatives)[:, None])
        counts = positives.sum(1)
        per_picture = -(log_probability * positives).sum(1) / counts.clamp(min=1)
        return per_picture.sum() / (counts > 0).sum().clamp(min=1)


def _pairs(features: Features, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return cosines and bool masks of positive and negative pairs, (M, M) over the global batch."""
    embedding = gather(features.embedding)
    return cosines(embedding, embedding), *_partners(gather(batch.person))


def _partners(person: Tensor) -> tuple[Tensor, Tensor]:
    """Return bool masks (M, M) of positive and negative pairs of people (M,)."""
    same = person[:, None] == person
    itself = torch.eye(len(person), dtype=torch.bool, device=person.device)
    return same & ~itself, ~same


def _logsumexp(values: Tensor, keep: Tensor) -> Tensor:
    """Return the row-wise logsumexp (M,) of the kept values; minus infinity for a row with none."""
    return values.masked_fill(~keep, -torch.inf).logsumexp(1)
