"""Render a world: from places of a plan to finished pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip3dreid.body.poses import Pose, ground
from clip3dreid.body.smpl import BodyModel
from clip3dreid.synthetic.backgrounds import canvas_size
from clip3dreid.synthetic.cameras import Shot
from clip3dreid.synthetic.garments import Dresser
from clip3dreid.synthetic.photograph import Paint, Photograph, Subject, bare_bodies, photograph
from clip3dreid.synthetic.sensor import encode
from clip3dreid.synthetic.truth import flat
from clip3dreid.synthetic.world import Part, Stream, World
from clip3dreid.synthetic.writing import RenderedImage, Renderer

GREYS = (0.35, 0.85)
"""Albedo of textureless bodies."""


_Pose: TypeAlias = Callable[[Sequence[int], Tensor], tuple[Subject, Paint]]
"""From places of the plan and poses (B, 24, 3) to who is to be photographed, and their colours."""


@dataclass(frozen=True)
class RendererFactory:
    """Make a renderer; handed to every process, so it holds plain values alone.

    Attributes:
        world: what is drawn.
        body: makes the body model.
        height: of a picture, pixels.
        width: of a picture, pixels.
        antialias: every picture is drawn so many times as high and wide, and averaged.
        poses: (N, 24, 3) to choose from, or None for the world's own.
    """

    world: World
    body: Callable[[], BodyModel]
    height: int
    width: int
    antialias: int
    poses: npt.NDArray[np.float32] | None = None

    def __call__(self) -> Renderer:
        """Return a function from places of the plan to finished pictures."""
        body = self.body().requires_grad_(False)
        kinds = {picture.bare for picture in self.world.plan.pictures}
        pose_all = {bare: self._bodies(body) if bare else self._people(Dresser(body)) for bare in kinds}
        # Neighbours in the plan are often at the same place.
        canvas = lru_cache(maxsize=64)(self.canvas)

        def render(places: Sequence[int]) -> list[RenderedImage]:
            done: dict[int, RenderedImage] = {}
            for bare, pose in pose_all.items():
                # Figures of one kind share a mesh, so each kind is photographed by itself.
                some = [place for place in places if self.world.plan.pictures[place].bare == bare]
                done |= zip(some, self._take(some, bare, pose, canvas), strict=True)
            return [done[place] for place in places]

        return render

    def _take(
        self,
        places: Sequence[int],
        bare: bool,
        pose_all: _Pose,
        canvas: Callable[[Part, int, int, bool], npt.NDArray[np.uint8]],
    ) -> list[RenderedImage]:
        """Take the pictures of places where everybody is bare, or nobody."""
        if not places:
            return []
        world, cameras = self.world, self.world.cameras
        poses = [world.pose(place, self.poses) for place in places]
        shots = [world.shot(place) for place in places]
        with torch.no_grad():
            figure, paint = pose_all(places, torch.from_numpy(np.stack([pose.axis_angle for pose in poses])))
            taken = photograph(
                figure,
                paint,
                cameras=[cameras[world.plan.pictures[place].camera] for place in places],
                shots=shots,
                backgrounds=[canvas(*world.where(place), bare) for place in places],
                height=self.height,
                width=self.width,
                rngs=[world.rng(Stream.SENSOR, place) for place in places],
                antialias=self.antialias,
            )
        return [
            self._rendered(place, poses[index], shots[index], taken, index)
            for index, place in enumerate(places)
        ]

    def canvas(self, part: Part, camera: int, where: int, bare: bool) -> npt.NDArray[np.uint8]:
        """Draw one of the places that a camera sees, larger than a picture; behind bare bodies it shows no place."""
        rng = self.world.rng(Stream.PLACE, 1, part, camera, where)
        settings = self.world.settings
        backgrounds = settings.bare_backgrounds if bare else settings.backgrounds
        return backgrounds(
            rng, "train" if part == Part.TRAIN else "test", *canvas_size(self.height, self.width)
        )

    def _people(self, dresser: Dresser) -> _Pose:
        def pose_all(places: Sequence[int], poses: Tensor) -> tuple[Subject, Paint]:
            pictures = [self.world.plan.pictures[place] for place in places]
            people = [self.world.people[picture.person] for picture in pictures]
            outfits = [
                person.outfits[picture.outfit] for person, picture in zip(people, pictures, strict=True)
            ]
            worn = dresser.wear([person.identity for person in people], outfits)
            betas = torch.tensor([person.identity.betas for person in people])
            figure = dresser.dress(betas, poses, worn)
            return figure, lambda points, person: dresser.paint(points, person, worn)

        return pose_all

    def _bodies(self, body: BodyModel) -> _Pose:
        def pose_all(places: Sequence[int], poses: Tensor) -> tuple[Subject, Paint]:
            people = [self.world.people[self.world.plan.pictures[place].person] for place in places]
            vertices = body(torch.tensor([person.identity.betas for person in people]), poses).vertices
            vertices = vertices + ground(vertices)[:, None]
            greys = [float(self.world.rng(Stream.GREY, place).uniform(*GREYS)) for place in places]
            return bare_bodies(vertices, body.faces, greys)

        return pose_all

    def _rendered(self, place: int, pose: Pose, shot: Shot, taken: Photograph, index: int) -> RenderedImage:
        picture = self.world.plan.pictures[place]
        lossless = PurePosixPath(picture.path).suffix == ".png"
        quality = None if lossless else self.world.cameras[picture.camera].quality
        facts = {
            "pose_kind": pose.kind,
            "pose": pose.axis_angle.reshape(-1).tolist(),
            "box": taken.box[index].tolist(),
            "visible": float(taken.visible[index]),
        }
        return RenderedImage(
            encode(taken.image[index], quality), facts | flat(dataclasses.asdict(shot), "shot")
        )
