"""The cosine classifier that the margin heads and the clothes losses share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unit_rows(weight: Tensor) -> Tensor:
    """Fill `weight` (classes, D) in place with random rows of length 1, and return it.

    A cosine does not see the length of a row, but the optimiser does: the longer the row, the smaller the
    turn that a step of given size makes. Unit rows are what the field's learning rates were found with.
    """
    with torch.no_grad():
        weight.uniform_(-1, 1)
        return weight.copy_(F.normalize(weight))


def cosines(features: Tensor, weight: Tensor) -> Tensor:
    """Return the cosines (B, classes) of `features` (B, D) with the rows of `weight` (classes, D)."""
    return F.linear(F.normalize(features), F.normalize(weight))


class CosineClassifier(nn.Module):
    """A linear classifier on the unit sphere: no bias, rows and features L2-normalised."""

    def __init__(self, width: int, classes: int) -> None:
        """Draw `classes` random unit rows of `width` numbers."""
        super().__init__()
        self.weight = nn.Parameter(unit_rows(torch.empty(classes, width)))

    def forward(self, features: Tensor) -> Tensor:
        """Return the cosines (B, classes) of `features` (B, D); scale and margin are the loss's."""
        return cosines(features, self.weight)
