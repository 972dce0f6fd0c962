"""Draw who is in the rendered world and what they wear: plain values, drawn by chance.

What lasts about a person is the body (`betas`) and one of a few complexions, too few to name anybody. What changes is
the outfit. Both are plain frozen values that go into a table.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, check_weights, choose

Colour = tuple[float, float, float]
"""RGB, 0..1."""

HAIR_STYLES = ("short", "bob", "long", "bun", "bald")
UPPER = ("t_shirt", "long_sleeve", "jacket", "long_coat")
LOWER = ("trousers", "shorts", "skirt")
PATTERNS = ("plain", "horizontal_stripes", "vertical_stripes", "checks", "logo")
BAGS = ("none", "backpack", "shoulder_bag")

PALETTE: tuple[tuple[str, Colour], ...] = (
    ("black", (0.07, 0.07, 0.08)),
    ("white", (0.90, 0.90, 0.89)),
    ("navy", (0.10, 0.14, 0.30)),
    ("grey", (0.46, 0.47, 0.49)),
    ("denim", (0.25, 0.36, 0.54)),
    ("red", (0.70, 0.11, 0.13)),
    ("beige", (0.76, 0.67, 0.53)),
    ("olive", (0.35, 0.37, 0.20)),
    ("sky", (0.49, 0.68, 0.86)),
    ("charcoal", (0.21, 0.22, 0.24)),
    ("burgundy", (0.38, 0.08, 0.15)),
    ("green", (0.13, 0.42, 0.24)),
    ("mustard", (0.80, 0.60, 0.14)),
    ("pink", (0.87, 0.57, 0.66)),
    ("brown", (0.38, 0.25, 0.16)),
    ("teal", (0.10, 0.44, 0.48)),
    ("purple", (0.40, 0.22, 0.50)),
    ("orange", (0.85, 0.40, 0.12)),
    ("blue", (0.12, 0.30, 0.70)),
    ("cream", (0.92, 0.87, 0.74)),
    ("yellow", (0.92, 0.82, 0.25)),
    ("light_grey", (0.71, 0.72, 0.73)),
    ("mint", (0.62, 0.82, 0.70)),
    ("magenta", (0.72, 0.16, 0.45)),
)
"""Colours of cloth, commonest first."""


@dataclass(frozen=True)
class Complexion:
    """Skin and hair: what of a person lasts beside the body."""

    skin: Colour
    hair: Colour
    style: str
    """One of `HAIR_STYLES`."""


COMPLEXIONS = (
    Complexion((0.83, 0.63, 0.51), (0.19, 0.12, 0.08), "short"),
    Complexion((0.52, 0.35, 0.25), (0.06, 0.05, 0.05), "long"),
    Complexion((0.89, 0.71, 0.60), (0.62, 0.46, 0.25), "bob"),
    Complexion((0.35, 0.23, 0.17), (0.05, 0.04, 0.04), "bun"),
    Complexion((0.75, 0.56, 0.43), (0.34, 0.32, 0.30), "bald"),
)
"""All there are; a person has one of the first `People.complexions`."""


@dataclass(frozen=True)
class Identity:
    """A person."""

    betas: tuple[float, ...]
    """(K,) shape coefficients."""
    complexion: int
    """Index into `COMPLEXIONS`."""

    def __post_init__(self) -> None:
        """Check the index."""
        _check_complexion(self.complexion)


@dataclass(frozen=True)
class Outfit:
    """What a person wears on a day; colours are RGB, 0..1."""

    upper: str
    """One of `UPPER`; of a dress, how its sleeves are: `t_shirt` or `long_sleeve`."""
    lower: str
    """One of `LOWER`; of a dress `skirt`."""
    dress: bool
    """The upper garment goes on below as a skirt of the same cloth."""
    upper_colour: Colour
    lower_colour: Colour
    second_colour: Colour
    """Of stripes, checks and the logo of the upper garment, and of a dress's belt."""
    inner_colour: Colour
    """What an open jacket or coat shows."""
    shoe_colour: Colour
    bag_colour: Colour
    pattern: str
    """Of the upper garment, one of `PATTERNS`."""
    lower_pattern: str
    pattern_size: float
    """Metres from one stripe to the next of its colour."""
    upper_looseness: float
    """Factor on how far the garment stands off the body: 0 skin-tight, 1 regular."""
    lower_looseness: float
    upper_length: float
    """0 (shortest of its kind) .. 1 (longest)."""
    lower_length: float
    open_front: bool
    """Of a jacket or a coat."""
    collar: float
    """0 (round, high) .. 1 (low, pointed)."""
    shoe_height: float
    """0 (shoe) .. 1 (boot)."""
    bag: str
    """One of `BAGS`."""
    bag_side: int
    """1: a shoulder bag hangs on the person's left, -1: on the right."""
    complexion: int | None = None
    """Index into `COMPLEXIONS`: takes the place of the person's own, where it is redrawn with every outfit."""

    def __post_init__(self) -> None:
        """Check the names, so that a table written by hand fails here and not in a picture."""
        for name, known in (
            ("upper", UPPER),
            ("lower", LOWER),
            ("pattern", PATTERNS),
            ("lower_pattern", PATTERNS),
            ("bag", BAGS),
        ):
            choose(f"outfit.{name}", getattr(self, name), known)
        if self.complexion is not None:
            _check_complexion(self.complexion)


def _check_complexion(index: int) -> None:
    check_number("complexion", index, Range(0, len(COMPLEXIONS) - 1), whole=True)


@dataclass
class People:
    """How much people differ."""

    shape_spread: float | Sequence[float] = (5.0, 5.0, 5.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0)
    """Standard deviation of the shape components beyond stature, one for all or one for each; 1 is realistic, and
    then nothing can be learned from small crops."""
    stature_spread: float = 1.0
    """Standard deviation of the first component, stature, which a crop does not show."""
    complexions: int = 5
    """How many of `COMPLEXIONS` are in use, from the first: few, so that they alone cannot name a person."""
    complexion_per_outfit: bool = False
    """Redraw skin and hair with every outfit, so that nothing but the body lasts."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number("world.people.complexions", self.complexions, Range(1, len(COMPLEXIONS)), whole=True)
        check_number("world.people.stature_spread", self.stature_spread, Range(0))
        for spread in np.atleast_1d(self.shape_spread).tolist():
            check_number("world.people.shape_spread", spread, Range(0))


@dataclass
class Wardrobe:
    """How much clothes differ. Weights need not sum to 1, and what is left out is never worn."""

    upper: Mapping[str, float] = field(
        default_factory=lambda: {"t_shirt": 3.0, "long_sleeve": 3.0, "jacket": 0.6, "long_coat": 0.1}
    )
    lower: Mapping[str, float] = field(default_factory=lambda: {"trousers": 3.0, "shorts": 2.0, "skirt": 0.4})
    patterns: Mapping[str, float] = field(
        default_factory=lambda: {"plain": 3.0} | dict.fromkeys(PATTERNS[1:], 1.0)
    )
    bags: Mapping[str, float] = field(
        default_factory=lambda: {"none": 10.0, "backpack": 1.0, "shoulder_bag": 1.0}
    )
    dress: float = 0.02
    """Probability."""
    lower_pattern: float = 0.12
    """Probability that trousers, shorts or a skirt have a pattern."""
    looseness: tuple[float, float] = (0.0, 0.25)
    """Range of the factor on how far garments stand off the body."""
    palette: int = len(PALETTE)
    """How many colours of `PALETTE` are in use, from the commonest."""
    hue_jitter: float = 0.015
    """Standard deviation, as a part of the colour circle."""
    lightness_jitter: float = 0.12
    """Standard deviation of the logarithm of a colour's lightness."""
    open_front: float = 0.5
    """Probability that a jacket or coat is open."""
    boots: float = 0.2
    """Probability."""
    pattern_size: tuple[float, float] = (0.035, 0.12)
    """Metres from one stripe to the next of its colour."""

    def __post_init__(self) -> None:
        """Check names and numbers."""
        tables = (("upper", UPPER), ("lower", LOWER), ("patterns", PATTERNS), ("bags", BAGS))
        for name, known in tables:
            check_weights(f"world.wardrobe.{name}", getattr(self, name), known)
        for name in ("looseness", "pattern_size"):
            span = tuple(float(value) for value in getattr(self, name))
            lowest = 0.0 if name == "looseness" else 0.005
            if len(span) != 2 or not lowest <= span[0] <= span[1] < math.inf:
                raise InputError(
                    f"world.wardrobe.{name} is {span}; give two ascending numbers from {lowest:g}"
                )
            setattr(self, name, span)
        for name in ("dress", "lower_pattern", "open_front", "boots"):
            check_number(f"world.wardrobe.{name}", getattr(self, name), Range(0, 1))
        check_number("world.wardrobe.palette", self.palette, Range(1, len(PALETTE)), whole=True)
        for name in ("hue_jitter", "lightness_jitter"):
            check_number(f"world.wardrobe.{name}", getattr(self, name), Range(0))


def sample_identity(rng: np.random.Generator, people: People, betas: npt.ArrayLike) -> Identity:
    """Make a person of given shape coefficients (K,), with a complexion drawn by chance."""
    shape = tuple(float(beta) for beta in np.asarray(betas, np.float64).reshape(-1))
    return Identity(shape, int(rng.integers(people.complexions)))


def sample_outfit(rng: np.random.Generator, people: People, wardrobe: Wardrobe) -> Outfit:
    """Draw what somebody wears, without a look at who it is."""
    upper, lower = _choice(rng, wardrobe.upper), _choice(rng, wardrobe.lower)
    dress = bool(rng.random() < wardrobe.dress)
    if dress:
        upper, lower = ("t_shirt", "long_sleeve")[int(rng.integers(2))], "skirt"
    pattern = _choice(rng, wardrobe.patterns)
    lower_pattern = _choice(rng, wardrobe.patterns) if rng.random() < wardrobe.lower_pattern else "plain"
    upper_colour = _cloth(rng, wardrobe)
    return Outfit(
        upper=upper,
        lower=lower,
        dress=dress,
        upper_colour=upper_colour,
        lower_colour=_cloth(rng, wardrobe),
        second_colour=_contrasting(rng, wardrobe, upper_colour),
        inner_colour=_contrasting(rng, wardrobe, upper_colour),
        shoe_colour=_leather(rng, wardrobe),
        bag_colour=_cloth(rng, wardrobe),
        pattern=pattern,
        lower_pattern=lower_pattern,
        pattern_size=float(rng.uniform(*wardrobe.pattern_size)),
        upper_looseness=float(rng.uniform(*wardrobe.looseness)),
        lower_looseness=float(rng.uniform(*wardrobe.looseness)),
        upper_length=float(rng.random()),
        lower_length=float(rng.random()),
        open_front=bool(rng.random() < wardrobe.open_front),
        collar=float(rng.random()),
        shoe_height=float(rng.uniform(0.6, 1.0) if rng.random() < wardrobe.boots else rng.uniform(0, 0.25)),
        bag=_choice(rng, wardrobe.bags),
        bag_side=int(rng.choice([-1, 1])),
        complexion=int(rng.integers(people.complexions)) if people.complexion_per_outfit else None,
    )


def _choice(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """Draw one of the names; their order in the mapping does not matter."""
    names = sorted(weights)
    shares = np.array([float(weights[name]) for name in names])
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def _cloth(rng: np.random.Generator, wardrobe: Wardrobe) -> Colour:
    """Draw a colour of the palette, not quite the same each time."""
    base = PALETTE[int(rng.integers(wardrobe.palette))][1]
    hue, lightness, saturation = colorsys.rgb_to_hls(*base)
    hue = (hue + float(rng.normal()) * wardrobe.hue_jitter) % 1
    lightness = min(0.94, lightness * math.exp(float(rng.normal()) * wardrobe.lightness_jitter))
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return red, green, blue


def _leather(rng: np.random.Generator, wardrobe: Wardrobe) -> Colour:
    """Draw a colour of shoes: mostly black, white, brown or grey, else any."""
    usual = dict(PALETTE)
    names = ("black", "black", "white", "brown", "grey", "navy", "beige", "")
    name = names[int(rng.integers(len(names)))]
    return usual[name] if name else _cloth(rng, wardrobe)


def _contrasting(rng: np.random.Generator, wardrobe: Wardrobe, other: Colour) -> Colour:
    """Draw a colour that can be told from another: the farthest of three."""
    tries = [_cloth(rng, wardrobe) for _ in range(3)]
    return max(tries, key=lambda colour: math.dist(colour, other))
