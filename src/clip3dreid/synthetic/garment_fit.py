"""Fit outfits to people: where garments end on the standard person, and how far they stand off."""

from __future__ import annotations

from dataclasses import dataclass

from clip3dreid.synthetic.landmarks import ANKLE, ELBOW, HIP, KNEE, SHOULDER, WAIST, WRIST
from clip3dreid.synthetic.people import COMPLEXIONS, Colour, Identity, Outfit

NEVER = 9.0
"""Metres: a border that no point lies beyond."""


@dataclass(frozen=True)
class Upper:
    """A kind of upper garment; metres, each from the shortest to the longest."""

    sleeve: tuple[float, float]
    """Where the sleeve ends, from the middle plane."""
    hem: tuple[float, float]
    """Height of the hem, of a coat of its tail."""
    ease: float
    """How far it stands off the trunk at looseness 1."""
    sleeve_ease: float
    neckline: tuple[float, float]
    """Height of the border at the neck in front, from a high collar to a low one."""


_SHORT, _LONG = SHOULDER + 0.42 * (ELBOW - SHOULDER), SHOULDER + 0.85 * (ELBOW - SHOULDER)
UPPER = {
    "t_shirt": Upper((_SHORT, _LONG), (0.93, 0.83), 0.014, 0.013, (1.425, 1.385)),
    "long_sleeve": Upper((WRIST - 0.03, WRIST + 0.005), (0.93, 0.83), 0.015, 0.011, (1.43, 1.385)),
    "jacket": Upper((WRIST - 0.01, WRIST + 0.02), (0.93, 0.80), 0.030, 0.020, (1.475, 1.44)),
    "long_coat": Upper((WRIST, WRIST + 0.03), (0.66, 0.36), 0.038, 0.024, (1.475, 1.44)),
}

_EASE = {"trousers": 0.013, "shorts": 0.020, "skirt": 0.010}


@dataclass(frozen=True)
class FittedOutfit:
    """An outfit on somebody: heights and widths on the standard person, metres."""

    outfit: Outfit
    skin: Colour
    hair: Colour
    style: str
    sleeve: float
    upper_hem: float
    upper_ease: float
    sleeve_ease: float
    neckline: float
    neck_point: float
    """How much lower the border is in the middle of the chest: a V."""
    waist: float
    leg_hem: float
    lower_ease: float
    shoe_top: float
    tube: bool
    """A skirt or the tail of a coat hangs around the legs."""
    tail: bool
    """It is the coat's."""
    tube_top: float
    tube_hem: float
    tube_ease: float
    tube_flare: float
    """How much wider at the hem."""

    @property
    def outdoor(self) -> bool:
        """Return whether it is a jacket or a coat."""
        return self.outfit.upper in ("jacket", "long_coat")


def _between(span: tuple[float, float], share: float) -> float:
    return span[0] + share * (span[1] - span[0])


def fit(identity: Identity, outfit: Outfit) -> FittedOutfit:
    """Put an outfit on a person, by the numbers."""
    look = COMPLEXIONS[identity.complexion if outfit.complexion is None else outfit.complexion]
    cut = UPPER[outfit.upper]
    tail, skirt = outfit.upper == "long_coat", outfit.lower == "skirt"
    outdoor = outfit.upper in ("jacket", "long_coat")
    hem = _between(cut.hem, outfit.upper_length)
    skirt_hem = _between((0.62, 0.20), outfit.lower_length)
    # A skirt longer than the coat would need a second tube: the coat is worn over one that ends above its hem.
    leg_hem = {
        "trousers": ANKLE - 0.03 + 0.02 * outfit.lower_length,
        "shorts": _between((KNEE + 0.22, KNEE - 0.03), outfit.lower_length),
        "skirt": NEVER,
    }[outfit.lower]
    upper_ease = 0.003 + cut.ease * outfit.upper_looseness
    lower_ease = 0.003 + _EASE[outfit.lower] * outfit.lower_looseness
    loose = outfit.upper_looseness if tail else outfit.lower_looseness
    return FittedOutfit(
        outfit=outfit,
        skin=look.skin,
        hair=look.hair,
        style=look.style,
        sleeve=_between(cut.sleeve, outfit.upper_length),
        upper_hem=HIP + 0.02 if tail else HIP + 0.05 if outfit.dress else hem,
        upper_ease=0.6 * upper_ease if outfit.dress else upper_ease,
        sleeve_ease=0.002 + cut.sleeve_ease * outfit.upper_looseness,
        neckline=_between(cut.neckline, outfit.collar),
        neck_point=0.10 * max(0.0, outfit.collar - 0.55) if not outdoor else 0.0,
        waist=WAIST,
        leg_hem=leg_hem,
        lower_ease=lower_ease,
        shoe_top=_between((0.062, 0.30), outfit.shoe_height),
        tube=tail or skirt,
        tail=tail,
        tube_top=1.16 if tail else WAIST + 0.03,
        tube_hem=hem if tail else skirt_hem,
        tube_ease=upper_ease if tail else 0.7 * lower_ease,
        tube_flare=0.015 + 0.035 * loose if tail else 0.01 + 0.10 * loose * (HIP - skirt_hem),
    )
