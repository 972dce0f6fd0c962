"""The 3D identity space: the embedding is to know what a shape teacher says of the person."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from clip3dreid.io.checks import choose
from clip3dreid.loss.term import Need, Term
from clip3dreid.types import Batch, Dimensions, Features, ShapeTargets


class ShapeAlignment(Term):
    """Squared error of a linear head on the embedding against a shape teacher's answers, standardised.

    Mean over pictures and coefficients: 1 for a head that always answers with the mean person. Observed: `explained`,
    the share of the answers' variance in the batch that the head explains, at most 1.

    Source: ours. Liu et al., CVPR 2024 (CLIP3DReID), align the student with the 3D identity space through a second
    stream of textureless bodies (`loss.body.BodyShape`); a frozen network that knows dressed people's shapes needs no
    second stream, and guides by the very pictures that identity is learnt from.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({ShapeTargets})
    teaches: ClassVar[frozenset[str]] = frozenset({"shape"})
    compares: ClassVar[frozenset[str]] = frozenset({"betas"})

    def __init__(self, dimensions: Dimensions, *, weighting: Literal["uniform", "certainty"]) -> None:
        """Build the head.

        Args:
            dimensions: width of the embedding, and the shape teacher's answers.
            weighting: `uniform`: all answers count alike; `certainty`: in proportion to how sure the teacher is.

        Raises:
            InputError: if `weighting` is unknown.
        """
        super().__init__()
        choose("ShapeAlignment: weighting", weighting, ("uniform", "certainty"))
        targets = dimensions.guide(ShapeTargets)
        self.by, self.coefficients = targets.by, targets.coefficients
        self.head = nn.Linear(dimensions.width, targets.answers.shape[1])
        certain = targets.certainty if weighting == "certainty" else torch.ones_like(targets.certainty)
        # Found anew by every run, and no part of what was learnt.
        for name, values in {
            **{"answers": targets.answers, "certainty": certain},
            **{"usual": targets.usual, "spread": targets.spread},
        }.items():
            self.register_buffer(name, values.clone().float(), persistent=False)

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the batch, a scalar."""
        who = batch.person if self.by == "person" else batch.row
        found = self.head(features.embedding)
        target = cast(Tensor, self.answers)[who].to(found.dtype)
        error: Tensor = (found - target).square()
        with torch.no_grad():
            unexplained = error.mean() / (target - target.mean(0)).square().mean().clamp(min=1e-6)
            self.observed["explained"] = 1 - unexplained
        certainty = cast(Tensor, self.certainty)[who].to(found.dtype)
        return (certainty * error).mean()

    def heads(self) -> dict[str, Tensor]:
        """Return the way from the embedding to shape coefficients, and how these are standardised.

        A coefficient that the shape teacher does not say, stature for one, is the usual one for everybody: its row of
        `shape.weight` is 0, and so is its `shape.spread`. Nothing where the answers are no coefficients.
        """
        if not self.coefficients:
            return {}
        usual, spread = cast(Tensor, self.usual), cast(Tensor, self.spread)
        index = list(self.coefficients)
        weight = torch.zeros(len(usual), self.head.in_features, device=usual.device)
        weight[index] = spread[index, None] * self.head.weight.detach()
        bias = usual.clone()
        bias[index] += spread[index] * self.head.bias.detach()
        return {"shape.weight": weight, "shape.bias": bias, "shape.usual": usual, "shape.spread": spread}
