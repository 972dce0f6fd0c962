"""Cross-entropy over the training people."""

import torch.nn.functional as F
from torch import Tensor, nn

from clip3dreid.loss.term import Term, fraction
from clip3dreid.types import Batch, Dimensions, Features


def linear_classifier(width: int, classes: int) -> nn.Linear:
    """Build a linear classifier of embeddings of `width` numbers.

    Bias and initial weights (normal, standard deviation 0.001) are those of the base recipe of Gu et al., CVPR 2022.
    """
    head = nn.Linear(width, classes)
    nn.init.normal_(head.weight, std=0.001)
    nn.init.zeros_(head.bias)
    return head


class CrossEntropy(Term):
    """Softmax cross-entropy of a linear head on the embedding, with label smoothing.

    The target of a picture of person y is `(1 - smoothing) [k = y] + smoothing / people` for each person k.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7; the
    head as in the base recipe of Gu et al., CVPR 2022.
    """

    def __init__(self, dimensions: Dimensions, *, smoothing: float) -> None:
        """Build the head.

        Args:
            dimensions: width of the embedding and number of people.
            smoothing: 0 (plain cross-entropy) .. 1 (a uniform target).

        Raises:
            InputError: if `smoothing` lies outside 0..1.
        """
        super().__init__()
        self.smoothing = fraction("CrossEntropy: smoothing", smoothing)
        self.head = linear_classifier(dimensions.width, dimensions.people)

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean cross-entropy over the batch, a scalar."""
        logits = self.head(features.embedding)  # (B, people)
        return F.cross_entropy(logits, batch.person, label_smoothing=self.smoothing)
