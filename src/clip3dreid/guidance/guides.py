"""Compose what guides a training beside the people's pictures.

A guide is a class in a file of its own: `words.py` (text tokens of people's labels), `teacher.py` (the teacher's view
of each picture), `bodies.py` (textureless bodies of known shape). To add a kind of guide, write a file with

- a type that says what the losses are told of the whole training, such as a NamedTuple of tensors; a loss names it in
  its `needs`, and reads it with `dimensions.guide(TYPE)`;
- a class that is a `Guide`: it `gives` that type; `prepare` refuses at once what can be refused at once, and returns
  what computes the rest; where the losses want something of every picture, a module in `Given.targets` makes it, and
  it is found in `Batch.targets` under its name.

An object of the class is given to `guide` beside the others; on the command line `+guides.NAME._target_=…` does so.
Nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import nn

from clip3dreid.data.bodies import BodyStream
from clip3dreid.errors import InputError
from clip3dreid.language.labels import WordLabels
from clip3dreid.loss.term import Need

Same = Mapping[tuple[str, str], str]
"""Part and key of a checkpoint's card that a resumed run must find again -> where in the config it comes from."""


class Given(NamedTuple):
    """What one guide gives a training."""

    says: object
    """What losses build their heads from, of the type that the guide `gives`."""
    facts: Mapping[str, Any]
    """What a checkpoint must say of the guide, as plain values."""
    targets: Mapping[str, nn.Module] = {}
    """Name in `Batch.targets` -> what makes (B, ...) of a batch."""
    bodies: BodyStream | None = None
    """A second stream of pictures."""
    keep_view: bool = False
    """Whether training views must keep the picture as it is before erasing (`Batch.view`)."""
    labels: WordLabels | None = None
    """The labels that words come from, before any shuffling."""
    lines: tuple[str, ...] = ()
    """What a run says of the guide when it begins, each a few words; what two guides share is said once."""


class Guide(Protocol):
    """What every kind of guide is."""

    gives: Need
    """The type of what it says; it guides where a loss needs that."""
    same: Same
    """What a resumed run must find again."""

    def prepare(self) -> Callable[[], Given]:
        """Read what is quickly read, and refuse what can be refused at once.

        Returns:
            What computes the rest, which may take minutes.

        Raises:
            InputError: if something is missing or does not fit.
        """
        ...


@dataclass(frozen=True)
class Guides:
    """The guides that the losses of a run need, together.

    Attributes:
        says: for `Dimensions.guides`.
        targets: name in `Batch.targets` -> what makes (B, ...) of a batch.
        bodies: the second stream of pictures; None where no loss asks for it.
        keep_view: whether training views must keep the picture as it is before erasing.
        labels: the labels that the words come from, before any shuffling; None without words.
        facts: what a checkpoint must say of its guides, as plain values.
        same: what a resumed run must find again, also of guides that no loss needs now.
        lines: what a run says of them when it begins, each a few words.
    """

    says: tuple[object, ...] = ()
    targets: Mapping[str, nn.Module] = field(default_factory=dict)
    bodies: BodyStream | None = None
    keep_view: bool = False
    labels: WordLabels | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    same: Same = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def guide(needs: frozenset[Need], guides: Sequence[Guide]) -> Guides:
    """Read, embed and label whatever the losses need, and nothing else.

    What is refused at once is refused first: a teacher's pass over all pictures may take minutes.

    Args:
        needs: of `loss.weighted.needs`.
        guides: all kinds that there are, one of a type.

    Returns:
        What they give.

    Raises:
        InputError: if files are missing or do not fit each other, or a loss needs what no guide gives.
    """
    if missing := needs - {one.gives for one in guides}:
        names = ", ".join(sorted(kind.__name__ for kind in missing))
        raise InputError(f"no guide gives the {names} that a loss needs; add one as guides.NAME")
    steps = [one.prepare() for one in guides if one.gives in needs]
    given = [step() for step in steps]
    return Guides(
        says=tuple(one.says for one in given),
        targets={name: make for one in given for name, make in one.targets.items()},
        bodies=next((one.bodies for one in given if one.bodies is not None), None),
        keep_view=any(one.keep_view for one in given),
        labels=next((one.labels for one in given if one.labels is not None), None),
        facts={name: fact for one in given for name, fact in one.facts.items()},
        same={place: where for one in guides for place, where in one.same.items()},
        lines=tuple(dict.fromkeys(line for one in given for line in one.lines)),
    )


# The people's pictures themselves, whatever guides.
_PICTURES: Same = {
    ("training", "sha256"): "what is trained on (data.root, or labels, people or pictures in it)"
}


def check_same_training(card: Mapping[str, Any], now: Mapping[str, Any], same: Same) -> None:
    """Check that a run goes on with the people and guides that it began with: else it would be another training.

    Args:
        card: of the run's checkpoint.
        now: the card that the next one would have.
        same: of `Guides`.

    Raises:
        InputError: naming what differs.
    """
    for (part, key), where in {**same, **_PICTURES}.items():
        before, here = (facts.get(part, {}).get(key) for facts in (card, now))
        # Checkpoints of before there was a checksum of the training pictures say nothing of them.
        if before != here and not (part == "training" and before is None):
            raise InputError(
                f"{where} is not what this run began with ({str(before)[:12]} then, {str(here)[:12]} now); "
                "restore it, or start a new run"
            )
