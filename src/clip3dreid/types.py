"""The words that data, models, losses and retrieval speak to each other: shapes are written here.

Letters in shapes: B pictures or clips in a batch, T frames of a clip, H x W pixels, C x h x w a feature map, D the
embedding's width, d the width of the teacher's joint space, P training people, K shape coefficients of a body, V its
vertices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeVar

from torch import Tensor

T = TypeVar("T")

Guided = Literal["middle", "all"]
"""Which frames of a clip guides are about: frame T // 2, or all of them."""


class Features(NamedTuple):
    """What a student makes of a batch."""

    map: Tensor
    """(B, C, h, w): the last feature map."""
    pooled: Tensor
    """(B, D): the map pooled over positions, before the neck."""
    embedding: Tensor
    """(B, D): the pooled feature after the batch-norm neck: the retrieval feature."""


class BodyBatch(NamedTuple):
    """Textureless bodies with known shapes: the second stream of a training step."""

    images: Tensor
    """(S, 3, H, W), as `Batch.images`."""
    betas: Tensor
    """(S, K) float32: shape coefficients of the body file."""
    body: Tensor
    """(S,) int64, 0..bodies-1: pictures of the same body share it."""


class Batch(NamedTuple):
    """Pictures with their labels.

    In training `person` and `clothes` are class indices (0..people-1, 0..outfits-1); in evaluation all
    labels are looked up by `row` instead. -1 stands for unknown.
    """

    images: Tensor
    """(B, 3, H, W) RGB: uint8 0..255 as it leaves the loader's workers (a quarter of the bytes), float32
    0..1 once on the device. Not normalised: every model normalises in its own forward. Of clips of T > 1 frames
    (B, T, 3, H, W)."""
    person: Tensor
    """(B,) int64."""
    clothes: Tensor
    """(B,) int64: an outfit of one person, so two people never share an index."""
    camera: Tensor
    """(B,) int64."""
    row: Tensor
    """(B,) int64: row of the table that the loader reads: of clips in training that of the middle frame, in
    evaluation that of the tracklet."""
    view: Tensor | None = None
    """(B, 3, H, W): the same pictures before erasing, for the teacher; None where there is no teacher. Of clips the
    middle frame, or (B, T, 3, H, W) where guides are about all frames."""
    bodies: BodyBatch | None = None
    """The second stream, where a loss asks for it; its size has nothing to do with B."""
    targets: Mapping[str, Tensor] = {}
    """What guides say of each picture, (B, ...) by the guide's name, where a loss asks for it: `teacher` (B, d)
    float32 of length 1, the teacher's embeddings; and what losses count of a batch before it goes to the device."""
    frames: Tensor | None = None
    """(B, T) int64: rows of all frames of clips, where guides are about all of them; None elsewhere."""


class TextTargets(NamedTuple):
    """The text tokens that people's labels stand for, in the teacher's space."""

    embeddings: Tensor
    """(E, d) float32 of length 1: a table of tokens."""
    tokens: Tensor
    """(U, L) int64: the tokens of each person (or picture), rows of `embeddings`; -1 where there are fewer."""
    confidence: Tensor
    """(U, L) float32, 0 or more: the lead of a chosen word over its group's second; 1 where nobody knows."""
    by: Literal["person", "row"]
    """What the U rows are: people by class index, or training pictures by row."""
    words: Tensor
    """(W, d) float32 of length 1: the whole vocabulary, word by word, group by group."""
    group_sizes: tuple[int, ...] = ()
    """How many of the W words each group has, in their order; empty where nobody knows the groups."""


class TeacherSpace(NamedTuple):
    """Where the teacher's image embeddings lie."""

    width: int
    """d."""
    mean: Tensor
    """(d,): mean of the training pictures' embeddings."""


class BodySpace(NamedTuple):
    """The body model's shape space and the training bodies in it."""

    template: Tensor
    """(V, 3) metres: the mean body in the rest pose, y up."""
    directions: Tensor
    """(V, 3, K) metres for each unit of each coefficient."""
    mean: Tensor
    """(K,) of the training bodies' coefficients."""
    deviation: Tensor
    """(K,) their standard deviations, above 0."""
    bodies: int
    """How many bodies there are to train on."""


class ShapeTargets(NamedTuple):
    """What a shape teacher says of the training people."""

    answers: Tensor
    """(U, A) float32, standardised over the U."""
    certainty: Tensor
    """(U, A) float32, above 0, mean 1 over the U: the inverse of the variance that it sees in its answer."""
    by: Literal["person", "row"]
    """What the U rows are: people by class index, or training pictures by row."""
    coefficients: tuple[int, ...]
    """(A,) which shape coefficients the answers are; empty where they are none."""
    usual: Tensor
    """(K,) the body's coefficients where nothing is known of somebody."""
    spread: Tensor
    """(K,) a coefficient is usual + spread * answer; 0 where it is not among the answers."""


class Dimensions(NamedTuple):
    """What a loss must know of the model, the training people and the guides to build its heads."""

    channels: int
    """C, of the feature map."""
    width: int
    """D, of `pooled` and `embedding`."""
    people: int
    """P, number of training people."""
    person_of_clothes: Tensor
    """(outfits,) int64: whose outfit each clothes index is. Empty where the data has no clothes labels."""
    guides: tuple[object, ...] = ()
    """What guides say of the whole training (`TextTargets`, `TeacherSpace`, `BodySpace`, `ShapeTargets`), at most one
    of a type."""

    def guide(self, kind: type[T]) -> T:
        """Return what the guide of a type says.

        Args:
            kind: the type, which a term names in its `needs`.

        Raises:
            ValueError: if there is none: a defect of whoever asks without naming it.
        """
        for one in self.guides:
            if isinstance(one, kind):
                return one
        raise ValueError(f"no guide gives a {kind.__name__}; a term that asks for it names it in `needs`")
