"""The 3D identity space: from the embedding of a textureless body back to its shape."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.io.checks import choose
from clip3dreid.loss.identity import linear_classifier
from clip3dreid.loss.term import Need, Term, fraction, not_negative
from clip3dreid.types import Batch, BodyBatch, BodySpace, Dimensions, Features

MILLIMETRES = 1000.0


def _second_stream(batch: Batch, bodies: Features | None) -> tuple[BodyBatch, Features]:
    """Return labels and features of the bodies, both of which must be there."""
    if batch.bodies is None or bodies is None:
        raise ValueError("this term needs Batch.bodies and their features")
    return batch.bodies, bodies


def vertices_of(betas: Tensor, template: Tensor, directions: Tensor) -> Tensor:
    """Return rest-pose vertices (S, V, 3), metres, of shape coefficients (S, K); see `BodySpace` for the others."""
    return template + (betas @ directions.flatten(0, 1).T).view(len(betas), *template.shape)


def unit_stature(vertices: Tensor) -> Tensor:
    """Return bodies (S, V, 3), y up, scaled so that each is 1 high."""
    height = vertices[..., 1].amax(1) - vertices[..., 1].amin(1)
    return vertices / height[:, None, None]


def vertex_distance(found: Tensor, true: Tensor) -> Tensor:
    """Return mean distance (S,) between the same vertices of two meshes (S, V, 3), in their unit.

    Where two vertices coincide, the gradient is 0 and not undefined.
    """
    squared = (found - true).square().sum(-1)
    apart = squared > 0
    distance = torch.where(apart, squared, 1.0).sqrt()
    return torch.where(apart, distance, 0.0).mean(-1)


class BodyShape(Term):
    """Shape coefficients and mesh of textureless bodies, found from their embedding by a linear head.

    Parts: `beta`, squared error of the standardised coefficients, mean over them (1 for a head that always
    answers with the mean body); `vertex`, mean distance of the rest-pose vertices times `vertex_weight`;
    `consistency`, on the people's pictures, where its weight is above 0: variance within a person of the
    standardised coefficients, mean over pictures and coefficients, times `consistency`: whatever the clothes, it is
    the same body, and the bare bodies keep the answer from being the same for all. Observed: `vertex_mm`, the
    distance in millimetres at true size, and `mean_body_mm`, that of the mean body.

    Source: Liu et al., CVPR 2024 (CLIP3DReID), whose student reconstructs synthetic SMPL bodies. Ours are: the
    linear head; standardised coefficients, since in a body file's units one component can outweigh all others; and
    bodies of stature 1 in the vertex distance, since a crop does not show how tall somebody is.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({BodySpace})
    teaches: ClassVar[frozenset[str]] = frozenset({"shape"})

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        vertex_weight: float,
        scale: Literal["stature", "metres"],
        consistency: float = 0.0,
    ) -> None:
        """Build the head.

        Args:
            dimensions: width of the embedding, and the shape space.
            vertex_weight: of the vertex distance within this term, 0 or more.
            scale: `stature`: bodies are scaled to stature 1 before they are compared; `metres`: they are not.
            consistency: weight of the variance within a person, 0 or more.

        Raises:
            InputError: if a value is out of its range.
        """
        super().__init__()
        choose("BodyShape: scale", scale, ("stature", "metres"))
        self.vertex_weight = not_negative("BodyShape: vertex_weight", vertex_weight)
        self.consistency = not_negative("BodyShape: consistency", consistency)
        self.scale = scale
        space = dimensions.guide(BodySpace)
        self.head = nn.Linear(dimensions.width, len(space.mean))
        for name in ("template", "directions", "mean", "deviation"):
            # The body file is their home; a checkpoint names the file.
            self.register_buffer(name, getattr(space, name).clone().float(), persistent=False)

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> dict[str, Tensor]:
        """Return the parts that take part."""
        labels, shown = _second_stream(batch, bodies)
        mean, deviation = cast(Tensor, self.mean), cast(Tensor, self.deviation)
        target = (labels.betas.to(mean) - mean) / deviation
        standardised = self.head(shown.embedding)
        parts = {"beta": F.mse_loss(standardised, target)}
        parts |= self._vertex(mean + deviation * standardised, labels.betas.to(mean))
        if self.consistency:
            parts["consistency"] = self.consistency * _variance_within(
                self.head(features.embedding), batch.person
            )
        return parts

    def _vertex(self, found: Tensor, true: Tensor) -> dict[str, Tensor]:
        space = cast(Tensor, self.template), cast(Tensor, self.directions)
        meshes = vertices_of(found, *space), vertices_of(true, *space)
        with torch.no_grad():
            mean_body = vertices_of(cast(Tensor, self.mean)[None], *space)
            distances = {
                "vertex_mm": vertex_distance(*meshes),
                "mean_body_mm": vertex_distance(mean_body, meshes[1]),
            }
            self.observed |= {name: MILLIMETRES * value.mean() for name, value in distances.items()}
        if not self.vertex_weight:
            return {}
        if self.scale == "stature":
            meshes = unit_stature(meshes[0]), unit_stature(meshes[1])
        return {"vertex": self.vertex_weight * vertex_distance(*meshes).mean()}

    def heads(self) -> dict[str, Tensor]:
        """Return `shape.weight` and `shape.bias`, with the standardisation folded in, and what it was."""
        mean, deviation = cast(Tensor, self.mean), cast(Tensor, self.deviation)
        return {
            "shape.weight": deviation[:, None] * self.head.weight,
            "shape.bias": mean + deviation * self.head.bias,
            "shape.usual": mean,
            "shape.spread": deviation,
        }


class BodyIdentity(Term):
    """Cross-entropy over the textureless bodies, told apart like people: the second stream without its shapes.

    A control, no part of the method: it shows the student the same extra pictures and tells it nothing of shape
    coefficients, so that what guidance brings can be told from what more pictures bring.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({BodySpace})

    def __init__(self, dimensions: Dimensions, *, smoothing: float) -> None:
        """Build the head.

        Args:
            dimensions: width of the embedding, and how many bodies there are.
            smoothing: of the labels, 0..1.

        Raises:
            InputError: if `smoothing` lies outside 0..1.
        """
        super().__init__()
        self.smoothing = fraction("BodyIdentity: smoothing", smoothing)
        self.head = linear_classifier(dimensions.width, dimensions.guide(BodySpace).bodies)

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean cross-entropy over the bodies, a scalar."""
        labels, shown = _second_stream(batch, bodies)
        return F.cross_entropy(self.head(shown.embedding), labels.body, label_smoothing=self.smoothing)


def _variance_within(values: Tensor, person: Tensor) -> Tensor:
    """Return variance of values (B, K) around the mean of their person, mean over pictures and K: a scalar."""
    same = (person[:, None] == person).to(values.dtype)
    means = same @ values / same.sum(1, keepdim=True)
    return (values - means).square().mean()
