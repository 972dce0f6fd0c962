"""Say of which parts a retrieval feature is made. Nothing here loads torch: commands check it first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, alternatives, check_number, choose, weighed


class Part(NamedTuple):
    """One part that a retrieval feature can have."""

    head: str | None
    """First part of the names of the tensors that make it (`Term.heads`); None: the student alone makes it."""
    loss: str
    """The loss term that teaches it."""


PARTS: Mapping[str, Part] = {
    "embedding": Part(None, "any"),
    "teacher": Part("teacher", "loss.global (source=embedding)"),
    "joint": Part("joint", "loss.local (projection=student)"),
    "betas": Part("shape", "loss.shape or loss.body"),
}
"""By name, in the order in which they stand in a feature."""


@dataclass(frozen=True)
class Feature:
    """The parts of a retrieval feature, each with its weight in the similarity.

    `inference.features.compose` has the formula. A part of weight 0 is left out; the embedding alone is itself,
    whatever its weight.

    Args:
        parts: (name, weight) of each part; put into the order of `PARTS`.
        key: what messages call it.

    Raises:
        InputError: if a part is unknown or twice there, a weight is no number of 0 or more, or nothing is left.
    """

    parts: tuple[tuple[str, float], ...]

    def __init__(self, parts: Sequence[tuple[str, float]], key: str = "feature") -> None:
        names = [name for name, _ in parts]
        for name, weight in parts:
            choose(key, name, PARTS)
            check_number(f"{key}.{name}", weight, Range(0))
        if len(set(names)) < len(names):
            raise InputError(f"{key} names a part twice; give it once, with a weight: {{{names[0]}: 2}}")
        weights = {name: float(weight) for name, weight in parts if weight > 0}
        if not weights:
            raise InputError(f"{key} has no part with a weight above 0; give one of {alternatives(PARTS)}")
        if len(weights) == 1:
            weights = dict.fromkeys(weights, 1.0)
        object.__setattr__(self, "parts", tuple((name, weights[name]) for name in PARTS if name in weights))

    def __str__(self) -> str:
        return weighed(self.weights)

    @property
    def weights(self) -> dict[str, float]:
        """Return part -> weight, as cards and results record it."""
        return dict(self.parts)

    def check_learnt(self, heads: Collection[str], name: str, key: str = "feature") -> None:
        """Check that something makes every part.

        Args:
            heads: names of the tensors that a model is shipped with.
            name: what messages call the model.
            key: what they call the feature.

        Raises:
            InputError: naming the first part that the model has not learnt.
        """
        for part in self.weights:
            head, loss = PARTS[part]
            if head is not None and f"{head}.weight" not in heads:
                raise InputError(
                    f"{key}={self}: {name} does not know {part}, which {loss} teaches; leave {part} out, or train "
                    "with that loss"
                )


EMBEDDING = Feature((("embedding", 1.0),))
"""The embedding alone, as where nothing is said."""

FeatureLike = Feature | str | Sequence[str] | Mapping[str, float]
"""A feature, the names of its parts, all of weight 1, or names with weights."""


def as_feature(given: Any, key: str = "feature") -> Feature:
    """Return a feature however it was given: as such, as a name, a list of names, or weights by name.

    Args:
        given: a `FeatureLike`, perhaps out of a config or a file.
        key: what messages call it.

    Raises:
        InputError: if it is none, or as `Feature`.
    """
    if isinstance(given, Feature):
        return given
    if isinstance(given, Mapping):
        return Feature(list(given.items()), key)
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple):
        raise InputError(
            f"{key}={given} must name parts: [embedding,betas], or with weights {{embedding: 1, betas: 0.5}}"
        )
    return Feature([(name, 1.0) for name in names], key)


def feature_of(facts: Mapping[str, Any], name: str) -> Feature:
    """Return the feature that a card or shards record; the embedding where they are from before there was one.

    Args:
        facts: what a file says of itself.
        name: of the file, for messages.

    Raises:
        InputError: if it is none.
    """
    recorded = facts.get("feature")
    return EMBEDDING if recorded is None else as_feature(recorded, f"{name}: its feature")
