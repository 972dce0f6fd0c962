"""Settings of a rendered world, checked before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from clip3dreid.body.poses import KINDS as POSE_KINDS
from clip3dreid.io.checks import Count, Positive, Range, check, check_weights
from clip3dreid.synthetic.backgrounds import Backgrounds, Procedural
from clip3dreid.synthetic.cameras import CameraSettings, ShotSettings
from clip3dreid.synthetic.people import People, Wardrobe
from clip3dreid.synthetic.plan import Layout


@dataclass(frozen=True)
class WorldSettings:
    """How people, clothes, cameras and pictures of a world differ (`conf/world`).

    Attributes:
        people: shapes and complexions.
        wardrobe: clothes.
        camera: what cameras are drawn from.
        shot: how the pictures of a camera differ.
        backgrounds: where places come from.
        bare_backgrounds: the same for textureless bodies.
        poses: kind (`body.poses.KINDS`) -> weight, for pictures that are no walk.
        pose_jitter: radians on every joint.
        places: how many places each camera sees in a split.
        frames_per_second: of walks.

    Raises:
        InputError: if a value makes no world.
    """

    people: People = field(default_factory=People)
    wardrobe: Wardrobe = field(default_factory=Wardrobe)
    camera: CameraSettings = field(default_factory=CameraSettings)
    shot: ShotSettings = field(default_factory=ShotSettings)
    backgrounds: Backgrounds = field(
        default_factory=lambda: Procedural({"wall": 1.0, "corridor": 1.0, "office": 1.0})
    )
    bare_backgrounds: Backgrounds = field(default_factory=lambda: Procedural({"plain": 1.0, "noise": 1.0}))
    poses: Mapping[str, float] = field(
        default_factory=lambda: {
            "standing": 4.0,
            "walking": 3.0,
            "carrying": 1.0,
            "turning": 1.0,
            "phone": 1.0,
        }
    )
    pose_jitter: Annotated[float, Range(0)] = 0.03
    places: Positive = 8
    frames_per_second: Annotated[float, Range(0, above=True)] = 25.0

    def __post_init__(self) -> None:
        """Check the values."""
        check(self, "world.")
        check_weights("world.poses", self.poses, POSE_KINDS)


@dataclass(frozen=True)
class SynthesisSettings:
    """What `synthesize` is to write (`conf/synthesize.yaml`).

    Attributes:
        layout: from the numbers of people and an rng to a plan, such as
            `partial(synthetic.layouts.ltcc, outfits=3, …)`.
        body: makes the body model, such as `partial(body.smpl.load_body, "anny_light")`. It is called once in every
            process, so it must be picklable.
        vocabulary: makes the `language.vocabulary.Vocabulary` whose words the truth tells; None: it tells none.
        world: how people, clothes, cameras and pictures differ.
        seed: of everything: another seed is another world, with other people.
        train_people: how many people are only in the training split.
        test_people: likewise; the layout's distractors come on top.
        height: of the pictures, pixels.
        width: of the pictures, pixels.
        antialias: every picture is drawn so many times as high and wide, and averaged.
        poses: `.npz` of SMPL poses instead of `world.poses`; walks stay.
        backgrounds: folder of pictures instead of `world.backgrounds`.
        workers: processes; 0 draws in this one. The files do not depend on it.
        overwrite: replace another world in the folder; anything else there is never touched.
        config: what `world.json` says that the world was made from, JSON-ready; None: these settings (`described`).

    Raises:
        InputError: if a value makes no world.
    """

    layout: Layout
    body: Callable[[], Any]
    vocabulary: Callable[[], Any] | None = None
    world: WorldSettings = field(default_factory=WorldSettings)
    seed: Count = 1
    train_people: Positive = 150
    test_people: Positive = 40
    height: Annotated[int, Range(16)] = 256
    width: Annotated[int, Range(8)] = 128
    antialias: Positive = 2
    poses: Path | None = None
    backgrounds: Path | None = None
    workers: Count = 2
    overwrite: bool = False
    config: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check(self)

    def described(self) -> dict[str, Any]:
        """Return all that decides how the world looks, JSON-ready, as `conf/synthesize.yaml` would say it.

        So a world is known again whether it was written from Python or from the command line.
        """
        names = (
            "seed",
            "train_people",
            "test_people",
            "height",
            "width",
            "antialias",
            "poses",
            "backgrounds",
        )
        plain = {name: _plain(getattr(self, name)) for name in names}
        world = {one.name: _plain(getattr(self.world, one.name)) for one in dataclasses.fields(self.world)}
        layout = _plain(self.layout) | {"_partial_": True}
        return plain | {
            "layout": layout,
            "body": _plain(self.body),
            "world": world,
            "language": _plain(self.vocabulary),
        }


def _plain(value: Any) -> Any:
    """Return a value as a config node has it: what is called or made is named by `_target_`, with its arguments."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, functools.partial):
        bound = inspect.signature(value.func).bind_partial(*value.args, **value.keywords)
        bound.apply_defaults()
        return {"_target_": _target(value.func)} | _plain(bound.arguments)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        arguments = {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.init}
        return {"_target_": _target(type(value))} | _plain(arguments)
    return {"_target_": _target(value if callable(value) and hasattr(value, "__qualname__") else type(value))}


def _target(made: Any) -> str:
    return f"{made.__module__}.{made.__qualname__}"
