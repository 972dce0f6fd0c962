"""The words that data, models, losses and retrieval speak to each other: shapes are written here.

Letters in shapes: B pictures in a batch, H x W pixels, C x h x w a feature map, D the embedding's width.
"""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Pictures with their labels.

    In training `person` and `clothes` are class indices (0..people-1, 0..outfits-1); in evaluation all
    labels are looked up by `row` instead. -1 stands for unknown.
    """

    images: Tensor
    """(B, 3, H, W) RGB: uint8 0..255 as it leaves the loader's workers (a quarter of the bytes), float32
    0..1 once on the device. Not normalised: every model normalises in its own forward."""
    person: Tensor
    """(B,) int64."""
    clothes: Tensor
    """(B,) int64: an outfit of one person, so two people never share an index."""
    camera: Tensor
    """(B,) int64."""
    row: Tensor
    """(B,) int64: row of the table that the loader reads."""
    view: Tensor | None = None
    """(B, 3, H, W): the same pictures before erasing, for the teacher; None where there is no teacher."""


class Features(NamedTuple):
    """What a student makes of a batch."""

    map: Tensor
    """(B, C, h, w): the last feature map."""
    pooled: Tensor
    """(B, D): the map pooled over positions, before the neck."""
    embedding: Tensor
    """(B, D): the pooled feature after the batch-norm neck: the retrieval feature."""


class Dimensions(NamedTuple):
    """What a loss must know of the model and of the training people to build its heads."""

    channels: int
    """C, of the feature map."""
    width: int
    """D, of `pooled` and `embedding`."""
    people: int
    """Number of training people."""
    person_of_clothes: Tensor
    """(outfits,) int64: whose outfit each clothes index is. Empty where the data has no clothes labels."""
