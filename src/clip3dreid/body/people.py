"""Who is in the embedded world and what they wear: plain values, drawn from a seed."""

from __future__ import annotations

import colorsys
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from clip3dreid.errors import InputError

Colour = tuple[float, float, float]
"""RGB, 0..1."""


@dataclass(frozen=True)
class Complexion:
    """What of a person lasts beside the body: few enough that it cannot name anybody."""

    skin: Colour
    hair: Colour
    style: str
    """`short`, `bob`, `long`, `bun` or `bald`."""


COMPLEXIONS = (
    Complexion((0.85, 0.66, 0.55), (0.20, 0.13, 0.09), "short"),
    Complexion((0.55, 0.37, 0.26), (0.06, 0.05, 0.05), "long"),
    Complexion((0.90, 0.74, 0.64), (0.62, 0.46, 0.24), "bob"),
    Complexion((0.36, 0.23, 0.17), (0.05, 0.04, 0.04), "bun"),
    Complexion((0.76, 0.58, 0.44), (0.40, 0.38, 0.36), "bald"),
)
"""All there are. One per person; `People.complexions` says how many of them are in use."""

UPPER = ("t_shirt", "long_sleeve", "jacket", "long_coat")
LOWER = ("trousers", "shorts", "skirt")
PATTERNS = ("plain", "horizontal_stripes", "vertical_stripes", "checks", "logo")
BAGS = ("none", "backpack", "shoulder_bag")

# Metres that a garment stands off the body at looseness 1.
STANDS_OFF = {
    "t_shirt": 0.012,
    "long_sleeve": 0.014,
    "jacket": 0.028,
    "long_coat": 0.034,
    "dress": 0.010,
    "trousers": 0.016,
    "shorts": 0.022,
    "skirt": 0.012,
}


@dataclass(frozen=True)
class Identity:
    """A person."""

    betas: tuple[float, ...]
    complexion: int
    """Index into `COMPLEXIONS`."""


@dataclass(frozen=True)
class Outfit:
    """What a person wears on a day; lengths in metres, colours RGB 0..1."""

    upper: str
    lower: str
    dress: bool
    """The upper garment's colour and pattern go on below as a skirt."""
    upper_colour: Colour
    lower_colour: Colour
    second_colour: Colour
    shoe_colour: Colour
    pattern: str
    pattern_size: float
    lower_pattern: str
    upper_stands_off: float
    lower_stands_off: float
    skirt_length: float
    """0 (just below the hips) .. 1 (ankles)."""
    bag: str
    bag_colour: Colour
    complexion: int | None
    """Overrides the person's own where hair is redrawn with every outfit."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a table."""
        return asdict(self)


@dataclass
class People:
    """How much people differ (`conf/world`)."""

    shape_spread: float = 2.5
    """Standard deviation of the shape components beyond stature; 1 is realistic, and then nothing can be learned from
    small crops."""
    stature_spread: float = 1.0
    complexions: int = 5
    """How many of `COMPLEXIONS` are in use, 1 to 5."""
    complexion_per_outfit: bool = False
    """Redraw skin and hair with every outfit, so that nothing but the body lasts."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not 1 <= self.complexions <= len(COMPLEXIONS):
            raise InputError(f"world.people.complexions={self.complexions} must be 1 to {len(COMPLEXIONS)}")
        if self.shape_spread < 0 or self.stature_spread < 0:
            raise InputError("world.people: spreads must not be negative")


def _even(names: tuple[str, ...]) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


@dataclass
class Wardrobe:
    """How much clothes differ (`conf/world`); weights need not sum to 1."""

    upper: dict[str, float] = field(default_factory=lambda: _even(UPPER))
    lower: dict[str, float] = field(default_factory=lambda: _even(LOWER))
    patterns: dict[str, float] = field(default_factory=lambda: _even(PATTERNS))
    bags: dict[str, float] = field(default_factory=lambda: _even(BAGS))
    dress: float = 0.1
    """Probability."""
    looseness: tuple[float, float] = (0.3, 1.3)
    """Range of the factor on how far garments stand off the body; 0 is skin-tight."""

    def __post_init__(self) -> None:
        """Checks the names and numbers."""
        for name, known in (("upper", UPPER), ("lower", LOWER), ("patterns", PATTERNS), ("bags", BAGS)):
            weights = getattr(self, name)
            if unknown := set(weights) - set(known):
                raise InputError(
                    f"world.wardrobe.{name}: {', '.join(sorted(unknown))} is unknown; choose from {', '.join(known)}"
                )
            if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
                raise InputError(
                    f"world.wardrobe.{name}: weights must not be negative, and one must be positive"
                )
        low, high = self.looseness
        if not 0 <= low <= high:
            raise InputError(
                f"world.wardrobe.looseness={list(self.looseness)} must be two ascending numbers from 0"
            )


def _choice(rng: np.random.Generator, weights: dict[str, float]) -> str:
    names = sorted(weights)
    shares = np.array([weights[name] for name in names], float)
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def _colour(rng: np.random.Generator) -> Colour:
    """A colour of cloth: greys, blacks and whites as often as people wear them, any hue otherwise."""
    if rng.random() < 0.3:
        grey = float(rng.choice([0.08, 0.2, 0.45, 0.7, 0.9]) * rng.uniform(0.9, 1.08))
        return grey, grey, min(1.0, grey * float(rng.uniform(0.95, 1.1)))
    red, green, blue = colorsys.hsv_to_rgb(
        float(rng.random()), float(rng.uniform(0.3, 0.95)), float(rng.uniform(0.2, 0.9))
    )
    return red, green, blue


def sample_identity(rng: np.random.Generator, people: People, betas: np.ndarray) -> Identity:
    """A person with the given betas (K,)."""
    return Identity(tuple(float(beta) for beta in betas), int(rng.integers(people.complexions)))


def sample_outfit(rng: np.random.Generator, people: People, wardrobe: Wardrobe) -> Outfit:
    """What somebody wears; independent of who it is."""
    upper, lower = _choice(rng, wardrobe.upper), _choice(rng, wardrobe.lower)
    dress = bool(rng.random() < wardrobe.dress)
    low, high = wardrobe.looseness
    loose_upper, loose_lower = rng.uniform(low, high), rng.uniform(low, high)
    return Outfit(
        upper="t_shirt" if dress else upper,
        lower="skirt" if dress else lower,
        dress=dress,
        upper_colour=_colour(rng),
        lower_colour=_colour(rng),
        second_colour=_colour(rng),
        shoe_colour=_colour(rng),
        pattern=_choice(rng, wardrobe.patterns),
        pattern_size=float(rng.uniform(0.03, 0.08)),
        lower_pattern="plain" if rng.random() < 0.8 else _choice(rng, wardrobe.patterns),
        upper_stands_off=float(STANDS_OFF["dress" if dress else upper] * loose_upper),
        lower_stands_off=float(STANDS_OFF["skirt" if dress else lower] * loose_lower),
        skirt_length=float(rng.uniform(0.3, 0.8)),
        bag=_choice(rng, wardrobe.bags),
        bag_colour=_colour(rng),
        complexion=int(rng.integers(people.complexions)) if people.complexion_per_outfit else None,
    )
