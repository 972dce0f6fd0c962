"""Losses on pairs of pictures in the global batch: triplet, contrastive, pairwise cosface and circle.

All of them compare the embeddings of every process (`gather`), so that the number of processes changes
neither the loss nor its gradient. Pictures without a partner of their own person, or without anybody else to
be told from, add nothing.
"""

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import CircleLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from clip3dreid.io.checks import choose
from clip3dreid.loss.cosine import cosines
from clip3dreid.loss.gather import gather
from clip3dreid.loss.term import Term, positive
from clip3dreid.types import Batch, Dimensions, Features

_DISTANCES = {
    "cosine": CosineSimilarity,
    # The field's Euclidean triplet takes features of any length; the library normalises unless told not to.
    "euclidean": lambda: LpDistance(normalize_embeddings=False),
    "unit_euclidean": LpDistance,
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
        self.miner = BatchHardMiner(distance=_DISTANCES[distance]())
        self.loss = TripletMarginLoss(
            margin=0 if margin is None else margin,
            smooth_loss=margin is None,
            distance=_DISTANCES[distance](),
            # The library's own average leaves out triplets that are already satisfied; the field's does not.
            reducer=MeanReducer(),
        )

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the pictures of the global batch, a scalar."""
        embedding, person = gather(features.embedding), gather(batch.person)
        loss: Tensor = self.loss(embedding, person, self.miner(embedding, person))
        return loss


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
        # The library's own average would leave out pictures whose loss has underflowed to 0.
        self.loss = CircleLoss(
            m=margin, gamma=positive("PairwiseCircle: scale", scale), reducer=MeanReducer()
        )

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the pictures of the global batch, a scalar."""
        loss: Tensor = self.loss(gather(features.embedding), gather(batch.person))
        return loss


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
    embedding, person = gather(features.embedding), gather(batch.person)
    same = person[:, None] == person
    itself = torch.eye(len(person), dtype=torch.bool, device=person.device)
    return cosines(embedding, embedding), same & ~itself, ~same


def _logsumexp(values: Tensor, keep: Tensor) -> Tensor:
    """Return the row-wise logsumexp (M,) of the kept values; minus infinity for a row with none."""
    return values.masked_fill(~keep, -torch.inf).logsumexp(1)
