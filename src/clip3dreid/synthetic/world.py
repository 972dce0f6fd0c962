"""A world of people who change clothes: who they are, where they are seen, how each picture is taken.

Everything follows from one seed: each person, outfit, camera, place and picture has an rng of its own,
`default_rng([seed, stream, …])`, so that nothing depends on who draws it or in which order, and training person 3
is the same in a world of 8 training people and in one of 80. Training people, test people and distractors come
from streams of their own, and so do the places behind them; cameras are shared. Another seed is another world: its
people, clothes, cameras and places are others.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip3dreid.body.measure import sample_betas
from clip3dreid.body.poses import Pose, jitter, sample, walk_sequence
from clip3dreid.synthetic.cameras import (
    Shot,
    SurveillanceCamera,
    misplaced,
    next_shot,
    sample_camera,
    sample_shot,
)
from clip3dreid.synthetic.people import Identity, Outfit, sample_identity, sample_outfit
from clip3dreid.synthetic.plan import Plan
from clip3dreid.synthetic.settings import WorldSettings

POPULATION = 2_000
"""Bodies of the world's own distribution among whom its people are tall or short."""


class Stream(IntEnum):
    """Say what an rng is for; part of every seed, so never renumbered."""

    PLAN = 0
    SHAPE = 1
    IDENTITY = 2
    OUTFIT = 3
    CAMERA = 4
    PLACE = 5
    WALK = 6
    POSE = 7
    SHOT = 8
    SENSOR = 9
    POPULATION = 10
    GREY = 11


class Part(IntEnum):
    """Whose people and places are apart."""

    TRAIN = 0
    TEST = 1
    DISTRACTORS = 2


class Person(NamedTuple):
    """Somebody in the world."""

    identity: Identity
    outfits: tuple[Outfit, ...]


@dataclass(frozen=True)
class World:
    """The people and cameras of a plan.

    Attributes:
        seed: of everything.
        plan: the pictures.
        settings: what people, clothes and cameras are drawn from.
        train_people: number of people who are only in the train split.
        test_people: likewise; who comes after them is a distractor.
        num_betas: K, of the body.
    """

    seed: int
    plan: Plan
    settings: WorldSettings
    train_people: int
    test_people: int
    num_betas: int

    def rng(self, stream: Stream, *place: int) -> np.random.Generator:
        """Return the rng of one thing."""
        return np.random.default_rng([self.seed, stream, *place])

    def part(self, person: int) -> tuple[Part, int]:
        """Return which part somebody belongs to, and the number there."""
        if person < self.train_people:
            return Part.TRAIN, person
        if person < self.train_people + self.test_people:
            return Part.TEST, person - self.train_people
        return Part.DISTRACTORS, person - self.train_people - self.test_people

    @cached_property
    def people(self) -> tuple[Person, ...]:
        """Everybody, in the order of the plan's indices. No outfit is worn by two."""
        worn: set[Outfit] = set()
        people = []
        for index, outfits in sorted(self.plan.outfits.items()):
            part = self.part(index)
            spread = self.settings.people
            betas = self._sample_betas(self.rng(Stream.SHAPE, *part), 1)[0]
            identity = sample_identity(self.rng(Stream.IDENTITY, *part), spread, betas)
            wardrobe = []
            for number in range(outfits):
                rng = self.rng(Stream.OUTFIT, *part, number)
                outfit = sample_outfit(rng, spread, self.settings.wardrobe)
                while outfit in worn:
                    outfit = sample_outfit(rng, spread, self.settings.wardrobe)
                worn.add(outfit)
                wardrobe.append(outfit)
            people.append(Person(identity, tuple(wardrobe)))
        return tuple(people)

    @cached_property
    def cameras(self) -> tuple[SurveillanceCamera, ...]:
        """Return all cameras, in the order of the plan's indices."""
        return tuple(
            sample_camera(self.rng(Stream.CAMERA, index), self.settings.camera)
            for index in range(self.plan.cameras)
        )

    def betas(self) -> Tensor:
        """Return the betas (N, K) of everybody."""
        return torch.tensor([person.identity.betas for person in self.people])

    def population(self) -> Tensor:
        """Return the betas (`POPULATION`, K) of others like them, to say who is tall."""
        return torch.from_numpy(self._sample_betas(self.rng(Stream.POPULATION), POPULATION))

    def _sample_betas(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
        """Draw shapes (count, K) as the world's people have them."""
        people = self.settings.people
        return sample_betas(
            rng,
            count,
            self.num_betas,
            stature_spread=people.stature_spread,
            shape_spread=people.shape_spread,
        )

    def shot(self, place: int) -> Shot:
        """Return how the picture at a place of the plan is taken; the frames of a walk share all but the box."""
        picture = self.plan.pictures[place]
        camera, settings = self.cameras[picture.camera], self.settings.shot
        if picture.sequence < 0:
            rng = self.rng(Stream.SHOT, 0, place)
            shot = sample_shot(rng, camera, settings)
            return misplaced(rng, shot) if picture.bad_box else shot
        shot = sample_shot(self.rng(Stream.SHOT, 1, picture.sequence), camera, settings)
        return next_shot(self.rng(Stream.SHOT, 1, picture.sequence, picture.step + 1), shot, settings)

    def pose(self, place: int, poses: npt.NDArray[np.float32] | None = None) -> Pose:
        """Return the pose at a place of the plan: a moment of a walk, one of `poses` (N, 24, 3), or one by chance."""
        picture = self.plan.pictures[place]
        if picture.sequence >= 0:
            rng = self.rng(Stream.WALK, picture.sequence)
            # The first numbers drawn decide the walk, so its length does not matter.
            walk = walk_sequence(picture.step + 1, rng, self.settings.frames_per_second)
            return Pose("walking", walk[picture.step])
        rng = self.rng(Stream.POSE, place)
        if poses is not None:
            return Pose("file", jitter(poses[int(rng.integers(len(poses)))], self.settings.pose_jitter, rng))
        return sample(self.settings.poses, rng, self.settings.pose_jitter)

    def where(self, place: int) -> tuple[Part, int, int]:
        """Return where the picture at a place of the plan is taken: whose places, which camera, which place."""
        picture = self.plan.pictures[place]
        chooser = (1, picture.sequence) if picture.sequence >= 0 else (0, place)
        number = int(self.rng(Stream.PLACE, 0, *chooser).integers(self.settings.places))
        return (Part.TRAIN if picture.split == "train" else Part.TEST), picture.camera, number
