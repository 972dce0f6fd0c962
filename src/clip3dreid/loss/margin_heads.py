"""Identity heads with a margin between cosines: ArcFace, CosFace and Circle."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip3dreid.loss.cosine import CosineClassifier, cosines, unit_rows
from clip3dreid.loss.term import Term, positive
from clip3dreid.types import Batch, Dimensions, Features


class ArcFace(Term):
    """Cross-entropy of scaled cosines, with an additive margin on the angle to the own person.

    Beyond the angle pi - margin, where cos(angle + margin) would rise again, the own cosine is
    lowered by `margin * sin(margin)` instead, so that the loss falls with the angle everywhere.

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
    equation 3.
    """

    # Not pytorch-metric-learning's: it goes through acos, whose gradient is NaN for a feature that
    # points exactly along its person's row.

    def __init__(self, dimensions: Dimensions, *, scale: float, margin: float) -> None:
        """Build the head.

        Args:
            dimensions: width of the embedding and number of people.
            scale: factor on the cosines, above 0.
            margin: radians.

        Raises:
            InputError: if `scale` is not above 0.
        """
        super().__init__()
        self.scale = positive("ArcFace: scale", scale)
        self.margin = margin
        self.head = CosineClassifier(dimensions.width, dimensions.people)

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean cross-entropy over the batch, a scalar."""
        cosine = self.head(features.embedding)  # (B, people)
        rows = batch.person[:, None]
        target = cosine.gather(1, rows)
        sine = (1 - target.square()).clamp(min=torch.finfo(target.dtype).eps).sqrt()
        turned = target * math.cos(self.margin) - sine * math.sin(self.margin)
        lowered = target - self.margin * math.sin(self.margin)
        target = torch.where(target > math.cos(math.pi - self.margin), turned, lowered)
        return F.cross_entropy(self.scale * cosine.scatter(1, rows, target), batch.person)


class CosFace(Term):
    """Cross-entropy of scaled cosines, with the margin taken off the own person's cosine.

    Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018, equation 4.
    """

    def __init__(self, dimensions: Dimensions, *, scale: float, margin: float) -> None:
        """Build the head.

        Args:
            dimensions: width of the embedding and number of people.
            scale: factor on the cosines, above 0.
            margin: taken off a cosine.

        Raises:
            InputError: if `scale` is not above 0.
        """
        super().__init__()
        self.scale = positive("CosFace: scale", scale)
        self.margin = margin
        # (D, people), under the name that checkpoints have.
        self.loss = nn.ParameterDict({"W": nn.Parameter(torch.empty(dimensions.width, dimensions.people))})
        unit_rows(self.loss["W"].T)

    # pytorch-metric-learning's finds the own person's cosines by a boolean index, which waits for the device.

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean cross-entropy over the batch, a scalar."""
        cosine = cosines(features.embedding, self.loss["W"].T)  # (B, people)
        rows = batch.person[:, None]
        target = cosine.gather(1, rows) - self.margin
        return F.cross_entropy(self.scale * cosine.scatter(1, rows, target), batch.person)


class Circle(Term):
    """Circle loss with a classifier: cosines weighted by how far each still is from its optimum.

    The own person's logit is `scale [1 + m - c]+ (c - (1 - m))`, another person's `scale [c + m]+ (c - m)`;
    the factors in brackets carry no gradient.

    Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020,
    equations 5 and 6 with class-level labels.
    """

    # pytorch-metric-learning has the pairwise form alone.

    def __init__(self, dimensions: Dimensions, *, scale: float, margin: float) -> None:
        """Build the head.

        Args:
            dimensions: width of the embedding and number of people.
            scale: gamma of the paper, above 0.
            margin: m of the paper.

        Raises:
            InputError: if `scale` is not above 0.
        """
        super().__init__()
        self.scale = positive("Circle: scale", scale)
        self.margin = margin
        self.head = CosineClassifier(dimensions.width, dimensions.people)

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean cross-entropy over the batch, a scalar."""
        cosine = self.head(features.embedding)  # (B, people)
        fixed, m = cosine.detach(), self.margin
        target = F.one_hot(batch.person, cosine.shape[1]).bool()
        logits = torch.where(
            target,
            F.relu(1 + m - fixed) * (cosine - (1 - m)),
            F.relu(fixed + m) * (cosine - m),
        )
        return F.cross_entropy(self.scale * logits, batch.person)
