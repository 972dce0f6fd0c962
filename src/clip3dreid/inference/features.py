"""Compute what people are compared by: the one formula of evaluation, of `ReidModel` and of exported files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.inference.parts import EMBEDDING, PARTS, Feature
from clip3dreid.types import Features

Projection = Callable[[Tensor], Tensor]
"""Maps (B, in) to (B, out), linearly."""


class RetrievalFeatures(NamedTuple):
    """What pictures are compared by, and what the student makes of them."""

    feature: Tensor
    """(B, F) float32: what the cosine compares; the embedding itself, or of length 1 and made of several parts."""
    embedding: Tensor
    """(B, D) float32, not of length 1."""
    upright: Features
    """Of the pictures as they are, in the student's precision; words and bodies come of these."""


@dataclass(frozen=True)
class Layer:
    """A linear layer, float32 whatever goes in."""

    weight: Tensor
    """(out, in) float32."""
    bias: Tensor
    """(out,) float32."""

    def __call__(self, features: Tensor) -> Tensor:
        """Map (B, in) to (B, out), float32 under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight, self.bias)


def retrieval_features(
    student: Callable[[Tensor], Features],
    images: Tensor,
    *,
    flip: bool,
    at_once: bool = False,
    feature: Feature = EMBEDDING,
    layers: Mapping[str, Projection] | None = None,
) -> RetrievalFeatures:
    """Compute retrieval features: of each picture, or of it and its mirror image.

    With the mirror image the embedding is the sum of both. The other parts are of the mean of both: as their heads
    are linear, it is the mean of what the heads say of each.

    Args:
        student: in evaluation mode.
        images: (B, 3, H, W) RGB in 0..1, on the student's device.
        flip: look at the mirror images too.
        at_once: take both through the student in one batch: faster for single pictures, with twice the memory.
        feature: what the feature is made of.
        layers: part -> what makes it, as `part_layers` returns it; None: there are none.
    """
    views = _views(student, images, flip=flip, at_once=at_once)
    embedding = views[0].embedding.float()
    for view in views[1:]:
        embedding = embedding + view.embedding.float()
    made = compose(feature, embedding, views, layers or {})
    return RetrievalFeatures(made, embedding, views[0])


def _views(
    student: Callable[[Tensor], Features], images: Tensor, *, flip: bool, at_once: bool
) -> list[Features]:
    """Return what the student makes of pictures and, where they are asked for, of their mirror images."""
    if flip and at_once:
        both = student(torch.stack([images, images.flip(-1)]).flatten(0, 1))
        # By shape, not by len(), which would fix the size of the batch in an exported model.
        halves = zip(*(torch.unflatten(part, 0, (2, -1)).unbind() for part in both), strict=True)
        return [Features(*half) for half in halves]
    return [student(images), *([student(images.flip(-1))] if flip else [])]


def compose(
    feature: Feature, embedding: Tensor, views: Sequence[Features], layers: Mapping[str, Projection]
) -> Tensor:
    """Make a feature of its parts.

    Each part p of weight w_p is brought to length 1 and multiplied by sqrt(w_p / sum of all weights); the parts are
    then put side by side. The result has length 1, and the cosine of two of them is the mean of the parts' cosines,
    weighted by w: the root makes the similarity linear in the weights. The embedding alone stays as it is.

    Args:
        feature: the parts.
        embedding: (B, D) float32, summed over the views.
        views: what the student makes of the pictures, and of their mirror images or not.
        layers: part -> what makes it.

    Returns:
        (B, F) float32, F the sum of the parts' widths.
    """
    if feature == EMBEDDING:
        return embedding
    total = sum(weight for _, weight in feature.parts)
    made = []
    for part, weight in feature.parts:
        vectors = embedding
        if part == "joint":
            vectors = layers[part](_mean([view.map.float().mean((2, 3)) for view in views]))
        elif part != "embedding":
            vectors = layers[part](embedding / len(views))
        made.append(sqrt(weight / total) * F.normalize(vectors, dim=1))
    return torch.cat(made, dim=1)


def _mean(vectors: Sequence[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else torch.stack(list(vectors)).mean(0)


def part_layers(feature: Feature, heads: Mapping[str, Tensor]) -> dict[str, Layer]:
    """Return the linear layers that make the parts of a feature, but for the embedding.

    Shape coefficients are compared in deviations of the training bodies from their mean, where a model is shipped
    with these (`shape.usual`, `shape.spread`): a component with spread 0 was not learnt and is left out. Without them
    they are compared as they are, in deviations of the body file's population.

    Args:
        feature: the parts, which the heads make (`Feature.check_learnt`).
        heads: tensors by name, as a model is shipped with them.

    Raises:
        InputError: if no component of the shape was learnt.
    """
    layers = {}
    for part in feature.weights:
        if (head := PARTS[part].head) is not None:
            weight, bias = heads[f"{head}.weight"].float(), heads[f"{head}.bias"].float()
            layers[part] = _standardised(weight, bias, heads) if part == "betas" else Layer(weight, bias)
    return layers


def _standardised(weight: Tensor, bias: Tensor, heads: Mapping[str, Tensor]) -> Layer:
    if "shape.spread" not in heads:
        return Layer(weight, bias)
    usual, spread = heads["shape.usual"].float(), heads["shape.spread"].float()
    learnt = spread > 0
    if not learnt.any():
        raise InputError("feature: this model has learnt no component of the shape; leave betas out")
    weight, bias, usual, spread = weight[learnt], bias[learnt], usual[learnt], spread[learnt]
    return Layer(weight / spread[:, None], (bias - usual) / spread)


def feature_width(feature: Feature, width: int, layers: Mapping[str, Layer]) -> int:
    """Return F, the columns of a feature.

    Args:
        feature: its parts.
        width: D, of the embedding.
        layers: of `part_layers`.
    """
    return sum(len(layers[part].bias) if part in layers else width for part in feature.weights)


def joint_features(map_: Tensor, projection: Projection) -> Tensor:
    """Project feature maps (B, C, h, w) into the teacher's space, (B, d) float32 of length 1.

    The projection is linear: that of the mean is the mean of the projections of all positions, at a fraction of the
    work.
    """
    return F.normalize(projection(map_.float().mean((2, 3))), dim=1)
