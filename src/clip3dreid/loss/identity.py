"""Cross-entropy over the training people."""

import torch.nn.functional as F
from torch import Tensor, nn

from clip3dreid.loss.term import Term, fraction
from clip3dreid.types import Batch, Dimensions, Features


class CrossEntropy(Term):
    """Softmax cross-entropy of a linear head on the embedding, with label smoothing.

    The target of a picture of person y is `(1 - smoothing) [k = y] + smoothing / people` for each person k.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7;
    bias and initial weights (normal, standard deviation 0.001) as in the base recipe of Gu et al., CVPR 2022.
    """

    def __init__(self, dimensions: Dimensions, *, smoothing: float) -> None:
        """Builds the head.

        Args:
            dimensions: width of the embedding and number of people.
            smoothing: 0 (plain cross-entropy) .. 1 (a uniform target).

        Raises:
            InputError: if `smoothing` lies outside 0..1.
        """
        super().__init__()
        self.smoothing = fraction("CrossEntropy: smoothing", smoothing)
        self.head = nn.Linear(dimensions.width, dimensions.people)
        nn.init.normal_(self.head.weight, std=0.001)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy over the batch, a scalar."""
        logits = self.head(features.embedding)  # (B, people)
        return F.cross_entropy(logits, batch.person, label_smoothing=self.smoothing)
