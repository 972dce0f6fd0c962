"""Surveillance cameras and the pictures they take, as numbers: what is drawn by chance, before anything is rendered.

A camera keeps its place, light, colours and sensor; a shot is one picture with it. Lengths are in statures of the
person in the picture and not in metres, so that a crop, which is scaled to the person, says nothing about how tall
he or she is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.synthetic.occluders import KINDS, Occluder
from clip3dreid.synthetic.people import Colour

Interval: TypeAlias = tuple[float, float]
"""Lowest and highest value; values between are equally likely."""


def _check_bounds(settings: CameraSettings | ShotSettings) -> None:
    """Check numbers and intervals against the bounds of their annotations; a configuration's lists become pairs.

    Raises:
        InputError: naming the first field that is out of its bounds.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        kind, bounds = get_args(hint)
        value = getattr(settings, name)
        single = kind is float
        try:
            pair = (float(value), float(value)) if single else (float(value[0]), float(value[1]))
            good = (single or len(value) == 2) and bounds.least <= pair[0] <= pair[1] <= bounds.most
        except (TypeError, ValueError, IndexError, KeyError):
            good = False
        if not good:
            wanted = "a number" if single else "two numbers, the lower one first,"
            raise InputError(f"{type(settings).__name__}.{name} is {value}; give {wanted}{bounds}")
        object.__setattr__(settings, name, pair[0] if single else pair)


def draw(rng: np.random.Generator, span: Interval) -> float:
    """Draw a number from a range, as a plain float."""
    return float(rng.uniform(*span))


@dataclass(frozen=True)
class CameraSettings:
    """What the cameras of a world are drawn from; see `SurveillanceCamera` for what the numbers mean."""

    pitch: Annotated[Interval, Range(-10, 60)] = (2.0, 8.0)
    """Degrees that a camera looks down by."""
    distance: Annotated[Interval, Range(1.5, 100)] = (4.5, 7.5)
    """Statures between camera and person."""
    field_of_view: Annotated[Interval, Range(5, 120)] = (35.0, 50.0)
    """Degrees, vertical."""
    back: Annotated[Interval, Range(0, 1)] = (0.35, 0.65)
    """Part of a camera's pictures that show people from behind."""
    light_yaw: Annotated[Interval, Range(-180, 180)] = (-50.0, 50.0)
    """Degrees between the light and the camera as seen from the person; above 90 the light is behind the person."""
    light_elevation: Annotated[Interval, Range(10, 90)] = (35.0, 75.0)
    """Degrees above the horizon."""
    ambient: Annotated[Interval, Range(0, 1)] = (0.6, 0.75)
    """Part of the light that comes from everywhere."""
    brightness: Annotated[Interval, Range(0.1, 3)] = (1.0, 1.15)
    """Strength of all light together."""
    adaptation: Annotated[Interval, Range(0, 1)] = (0.3, 0.8)
    """How much of a scene's brightness the exposure makes up for; 0 is a fixed exposure, 1 makes all scenes alike."""
    cast: Annotated[float, Range(0, 0.5)] = 0.02
    """Standard deviation of the colour gains."""
    gamma: Annotated[Interval, Range(0.3, 3)] = (0.95, 1.05)
    """Above 1 the middle tones are brighter."""
    saturation: Annotated[Interval, Range(0, 2)] = (0.9, 1.05)
    """0 is black and white."""
    blur: Annotated[Interval, Range(0, 20)] = (0.1, 0.3)
    """Pixels of a picture 256 pixels high: standard deviation of the defocus."""
    noise: Annotated[Interval, Range(0, 0.5)] = (0.002, 0.006)
    """Standard deviation of the sensor's noise at middle grey, where white is 1."""
    resolution: Annotated[Interval, Range(0.05, 1)] = (0.8, 1.0)
    """Pixels that the sensor has for each pixel of the picture, along one side."""
    quality: Annotated[Interval, Range(1, 100)] = (55.0, 92.0)
    """Of the JPEG files."""
    shadow: Annotated[Interval, Range(0, 1)] = (0.3, 0.9)
    """How strong shadows on the ground are; 0 is none."""

    def __post_init__(self) -> None:
        _check_bounds(self)


@dataclass(frozen=True)
class SurveillanceCamera:
    """A camera with its place, light and sensor. Angles in radians; `dataclasses.asdict` is ready for JSON."""

    pitch: float
    """How far it looks down at a person at `distance`."""
    distance: float
    """Statures, typical."""
    field_of_view: float
    """Vertical."""
    back: float
    """Probability that a person is seen from behind."""
    light_yaw: float
    """Of the light about the vertical, relative to the camera; above 0 it comes from the picture's right."""
    light_elevation: float
    ambient: float
    """0..1, part of the light."""
    brightness: float
    adaptation: float
    """0 (fixed exposure) .. 1."""
    light_colour: Colour
    """RGB of the light; mean 1."""
    cast: Colour
    """RGB gains of the sensor; mean 1."""
    gamma: float
    saturation: float
    blur: float
    """Pixels in a picture 256 pixels high."""
    noise: float
    """Standard deviation at middle grey."""
    resolution: float
    """0..1, of the picture's."""
    quality: int
    """JPEG, 1..100."""
    shadow: float
    """0..1."""


def sample_camera(rng: np.random.Generator, settings: CameraSettings) -> SurveillanceCamera:
    """Draw a camera by chance.

    Args:
        rng: the same number of draws is made whatever the settings.
        settings: ranges.
    """

    def gains(sigma: float) -> Colour:
        gain = np.exp(sigma * rng.standard_normal(3))
        red, green, blue = (gain / gain.mean()).tolist()
        return red, green, blue

    return SurveillanceCamera(
        pitch=math.radians(draw(rng, settings.pitch)),
        distance=draw(rng, settings.distance),
        field_of_view=math.radians(draw(rng, settings.field_of_view)),
        back=draw(rng, settings.back),
        light_yaw=math.radians(draw(rng, settings.light_yaw)),
        light_elevation=math.radians(draw(rng, settings.light_elevation)),
        ambient=draw(rng, settings.ambient),
        brightness=draw(rng, settings.brightness),
        adaptation=draw(rng, settings.adaptation),
        light_colour=gains(settings.cast / 2),
        cast=gains(settings.cast),
        gamma=draw(rng, settings.gamma),
        saturation=draw(rng, settings.saturation),
        blur=draw(rng, settings.blur),
        noise=draw(rng, settings.noise),
        resolution=draw(rng, settings.resolution),
        quality=round(draw(rng, settings.quality)),
        shadow=draw(rng, settings.shadow),
    )


@dataclass(frozen=True)
class ShotSettings:
    """How the pictures of a camera differ."""

    view_range: Annotated[float, Range(0, 90)] = 20.0
    """Degrees: people are seen within so much of straight from the front or from behind."""
    distance: Annotated[Interval, Range(0.2, 5)] = (0.75, 1.35)
    """Factor on the camera's distance."""
    offset: Annotated[Interval, Range(-0.4, 0.4)] = (-0.25, 0.25)
    """Where in the frame the person is, as a part of its side from the middle."""
    light_turn: Annotated[Interval, Range(-180, 180)] = (-10.0, 10.0)
    """Degrees that the light stands elsewhere than the camera's."""
    light_change: Annotated[Interval, Range(0.1, 3)] = (0.95, 1.05)
    """Factor on the strength of the light."""
    margin: Annotated[float, Range(0, 0.5)] = 0.04
    """What the box is larger than the person by on each side, as a part of its height and width."""
    box_shift: Annotated[float, Range(0, 0.3)] = 0.006
    """Standard deviation of the box's place, as a part of its size."""
    box_scale: Annotated[float, Range(0, 0.3)] = 0.01
    """Standard deviation of the logarithm of its height and width."""
    narrowest_box: Annotated[float, Range(0, 2)] = 0.4
    """No box is narrower than this part of its height, as detectors give them; 0 keeps to the person."""
    motion: Annotated[Interval, Range(0, 40)] = (0.0, 0.5)
    """Pixels of a picture 256 pixels high: how far the picture smears, sideways for the most part."""
    occluder: Annotated[float, Range(0, 1)] = 0.02
    """Probability that something stands before the person."""
    occluder_size: Annotated[Interval, Range(0, 1)] = (0.15, 0.45)
    """Part of the picture's height or width that it takes."""
    occluders: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    """How often each kind is seen, relative to the others."""
    zoom: Annotated[Interval, Range(0.05, 1)] = (0.6, 0.85)
    """Part of the scene's height that lies behind the person."""

    def __post_init__(self) -> None:
        _check_bounds(self)
        for kind, weight in self.occluders.items():
            choose("ShotSettings.occluders", kind, KINDS)
            check_number(f"ShotSettings.occluders.{kind}", weight, Range(0))
        weights = {str(kind): float(weight) for kind, weight in self.occluders.items()}
        if self.occluder and not sum(weights.values()):
            raise InputError("ShotSettings.occluders are all 0; give one a weight, or set occluder to 0")
        object.__setattr__(self, "occluders", weights)


@dataclass(frozen=True)
class Shot:
    """One picture with a camera. Angles in radians; `dataclasses.asdict` is ready for JSON."""

    yaw: float
    """Where the camera stands about the person: 0 sees the front, pi the back, pi/2 the person's left side."""
    pitch: float
    distance: float
    """Statures."""
    offset: tuple[float, float]
    """Right and up of the frame's middle, as a part of its side."""
    light_yaw: float
    """Relative to the camera."""
    light_strength: float
    margin: float
    box_shift: tuple[float, float]
    """Right and down, as a part of the box's width and height."""
    box_scale: tuple[float, float]
    """Factors on its width and height."""
    narrowest_box: float
    """Width over height."""
    motion: tuple[float, float]
    """Right and down, pixels in a picture 256 pixels high."""
    occluder: Occluder | None
    window: tuple[float, float, float]
    """Place of the background's part, across and down, 0..1, and its height as a part of the scene's."""


def sample_shot(rng: np.random.Generator, camera: SurveillanceCamera, settings: ShotSettings) -> Shot:
    """Draw a shot by chance.

    Args:
        rng: where the numbers come from.
        camera: what takes it.
        settings: ranges.
    """
    factor = draw(rng, settings.distance)
    # Who is farther away is seen from a lower angle, since a camera keeps its height.
    pitch = math.asin(min(max(math.sin(camera.pitch) / factor, -0.9), 0.9))
    behind = math.pi if rng.random() < camera.back else 0.0
    turn = math.radians(draw(rng, (-settings.view_range, settings.view_range)))
    shot = Shot(
        yaw=behind + turn,
        pitch=pitch,
        distance=camera.distance * factor,
        offset=(draw(rng, settings.offset), draw(rng, settings.offset)),
        light_yaw=camera.light_yaw + math.radians(draw(rng, settings.light_turn)),
        light_strength=camera.brightness * draw(rng, settings.light_change),
        margin=settings.margin,
        box_shift=(0.0, 0.0),
        box_scale=(1.0, 1.0),
        narrowest_box=settings.narrowest_box,
        motion=(0.0, 0.0),
        occluder=_sample_occluder(rng, settings),
        window=(float(rng.random()), float(rng.random()), draw(rng, settings.zoom)),
    )
    return next_shot(rng, shot, settings)


def next_shot(rng: np.random.Generator, shot: Shot, settings: ShotSettings) -> Shot:
    """Return the next frame of a sequence: the same view, light, background and occluder in a new box.

    Walking is the caller's: `dataclasses.replace` changes view and distance.

    Args:
        rng: where the numbers come from.
        shot: the frame before.
        settings: as the frame before.
    """
    shift, scale = rng.normal(0, settings.box_shift, 2), np.exp(rng.normal(0, settings.box_scale, 2))
    length, turn = draw(rng, settings.motion), rng.normal(0, 0.3)
    return dataclasses.replace(
        shot,
        box_shift=(float(shift[0]), float(shift[1])),
        box_scale=(float(scale[0]), float(scale[1])),
        motion=(length * math.cos(turn), length * math.sin(turn)),
    )


def misplaced(rng: np.random.Generator, shot: Shot) -> Shot:
    """Return the same picture with a box that misses much of the person, as when a detector fails."""
    across, down = (
        float(sign * size)
        for sign, size in zip(rng.choice((-1, 1), 2), rng.uniform(0.3, 0.6, 2), strict=True)
    )
    scale = (float(rng.uniform(0.6, 1.5)), float(rng.uniform(0.6, 1.5)))
    return dataclasses.replace(shot, box_shift=(across, down), box_scale=scale)


def _sample_occluder(rng: np.random.Generator, settings: ShotSettings) -> Occluder | None:
    present = rng.random() < settings.occluder
    kinds = [kind for kind, weight in settings.occluders.items() if weight > 0]
    position, size = float(rng.random()), draw(rng, settings.occluder_size)
    colour = rng.uniform(0.08, 0.7) * np.clip(rng.normal(1, 0.25, 3), 0.4, 1.4)
    seed, choice = int(rng.integers(2**31)), rng.random()
    if not present:
        return None
    shares = np.cumsum([settings.occluders[kind] for kind in kinds])
    kind = kinds[int(np.searchsorted(shares, choice * shares[-1], side="right"))]
    red, green, blue = colour.tolist()
    return Occluder(kind, position, size, (red, green, blue), seed)
