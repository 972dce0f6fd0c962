"""Compute what people are compared by: the one formula of evaluation, of `ReidModel` and of exported files."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.types import Features


class RetrievalFeatures(NamedTuple):
    """What pictures are compared by, and what the student makes of them."""

    embedding: Tensor
    """(B, D) float32, not of length 1: the cosine compares them."""
    upright: Features
    """Of the pictures as they are, in the student's precision; words and bodies come of these."""


def retrieval_features(
    student: Callable[[Tensor], Features], images: Tensor, *, flip: bool, at_once: bool = False
) -> RetrievalFeatures:
    """Compute retrieval features: the embedding of a picture, that of its mirror image added.

    Args:
        student: in evaluation mode.
        images: (B, 3, H, W) RGB in 0..1, on the student's device.
        flip: add the mirror image's embedding.
        at_once: take both through the student in one batch: faster for single pictures, with twice the memory.
    """
    if flip and at_once:
        both = student(torch.stack([images, images.flip(-1)]).flatten(0, 1))
        # By shape, not by len(), which would fix the size of the batch in an exported model.
        views = zip(*(torch.unflatten(part, 0, (2, -1)).unbind() for part in both), strict=True)
        upright, mirrored = (Features(*view) for view in views)
        return RetrievalFeatures(upright.embedding.float() + mirrored.embedding.float(), upright)
    upright = student(images)
    embedding = upright.embedding.float()
    if flip:
        embedding = embedding + student(images.flip(-1)).embedding.float()
    return RetrievalFeatures(embedding, upright)


def joint_features(map_: Tensor, projection: Callable[[Tensor], Tensor]) -> Tensor:
    """Project feature maps (B, C, h, w) into the teacher's space, (B, d) float32 of length 1.

    The projection is linear: that of the mean is the mean of the projections of all positions, at a fraction of the
    work.
    """
    return F.normalize(projection(map_.float().mean((2, 3))), dim=1)
