"""The plan of a world: its pictures one by one, before any is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np


class PlannedPicture(NamedTuple):
    """A planned picture."""

    path: str
    """Inside the data set, with forward slashes."""
    split: str
    """`train` or `test`."""
    role: str
    """`train`, `query` or `gallery`, or `left_out` where the real set's readers leave it out."""
    person: int
    """Index of the person in the world."""
    outfit: int
    """Which of the person's outfits, from 0."""
    camera: int
    """Index of the camera in the world."""
    frame: int
    """Number of the picture as its name states it."""
    person_label: str
    """The person as the data set calls him or her; numbers may start anew in the test split."""
    clothes_label: str
    """The outfit, `person_outfit`, also where the data set does not say it."""
    camera_label: str
    """The camera as the data set counts it; where it names none, as the world does, from 1."""
    sequence: int = -1
    """Which walk past a camera the picture is a frame of; -1 for a picture of its own."""
    step: int = 0
    """The frame's place in its sequence, from 0."""
    bad_box: bool = False
    """True where the detector failed: the box misses much of the person."""
    bare: bool = False
    """True for a grey body without clothes and texture."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The pictures of a data set, and the lists that lie beside them.

    Attributes:
        pictures: in the order in which they are made.
        side_files: path inside the data set -> text.
    """

    pictures: tuple[PlannedPicture, ...]
    side_files: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def textureless(self) -> bool:
        """Return whether nobody wears anything."""
        return all(picture.bare for picture in self.pictures)

    @property
    def cameras(self) -> int:
        """Number of cameras in the world."""
        return 1 + max(picture.camera for picture in self.pictures)

    @property
    def outfits(self) -> dict[int, int]:
        """Person -> number of outfits."""
        counts: dict[int, int] = {}
        for picture in self.pictures:
            counts[picture.person] = max(counts.get(picture.person, 0), picture.outfit + 1)
        return counts


class PeopleCounts(NamedTuple):
    """How many people a world has; nobody is in both splits."""

    train: int
    test: int


Layout: TypeAlias = Callable[[PeopleCounts, np.random.Generator], Plan]
"""From the numbers of people and an rng to a plan."""
