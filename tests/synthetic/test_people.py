import dataclasses

import numpy as np
import pytest

from clip3dreid.errors import InputError
from clip3dreid.synthetic.people import (
    COMPLEXIONS,
    HAIR_STYLES,
    LOWER,
    PALETTE,
    UPPER,
    Identity,
    Outfit,
    People,
    Wardrobe,
    sample_identity,
    sample_outfit,
)


def outfits(count: int, people: People | None = None, wardrobe: Wardrobe | None = None) -> list[Outfit]:
    rng = np.random.default_rng(0)
    return [sample_outfit(rng, people or People(), wardrobe or Wardrobe()) for _ in range(count)]


def test_the_same_seed_gives_the_same_outfit_and_another_seed_another() -> None:
    first, second, other = (
        sample_outfit(np.random.default_rng(seed), People(), Wardrobe()) for seed in (1, 1, 2)
    )
    assert first == second != other


def test_the_order_of_names_in_a_configuration_does_not_matter() -> None:
    one = Wardrobe(upper={"jacket": 1.0, "t_shirt": 2.0})
    other = Wardrobe(upper={"t_shirt": 2.0, "jacket": 1.0})
    assert outfits(20, wardrobe=one) == outfits(20, wardrobe=other)


def test_betas_are_kept_as_they_are() -> None:
    assert sample_identity(np.random.default_rng(1), People(), np.arange(10.0)).betas == tuple(range(10))


def test_complexions_in_use_are_about_equally_frequent() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_identity(rng, People(complexions=3), np.zeros(10)).complexion for _ in range(300)]
    assert set(drawn) == {0, 1, 2}
    assert max(drawn.count(index) for index in range(3)) < 150


def test_there_are_five_complexions_with_known_hair_styles() -> None:
    assert len(COMPLEXIONS) == 5
    assert {look.style for look in COMPLEXIONS} <= set(HAIR_STYLES)


def test_complexion_stays_with_the_person_unless_it_is_redrawn_with_the_clothes() -> None:
    assert {outfit.complexion for outfit in outfits(50)} == {None}
    assert {outfit.complexion for outfit in outfits(100, People(complexion_per_outfit=True))} == set(range(5))


def test_garments_follow_their_weights() -> None:
    wardrobe = Wardrobe(upper={"jacket": 1.0}, lower={"trousers": 3.0, "shorts": 1.0}, dress=0.0)
    drawn = outfits(300, wardrobe=wardrobe)
    assert {outfit.upper for outfit in drawn} == {"jacket"}
    assert 0.65 < sum(outfit.lower == "trousers" for outfit in drawn) / 300 < 0.85


def test_everything_in_the_wardrobe_is_worn_some_day() -> None:
    drawn = outfits(400)
    assert {outfit.upper for outfit in drawn} == set(UPPER)
    assert {outfit.lower for outfit in drawn} == set(LOWER)
    dresses = [outfit for outfit in drawn if outfit.dress]
    assert dresses
    assert all(outfit.lower == "skirt" for outfit in dresses)
    assert {outfit.upper for outfit in dresses} <= {"t_shirt", "long_sleeve"}


def test_looseness_stays_in_its_range_and_fills_it() -> None:
    drawn = outfits(200, wardrobe=Wardrobe(looseness=(0.5, 0.9)))
    for name in ("upper_looseness", "lower_looseness"):
        values = [getattr(outfit, name) for outfit in drawn]
        assert 0.5 <= min(values) < 0.55
        assert 0.85 < max(values) <= 0.9


def test_without_jitter_cloth_has_the_colours_of_the_palette() -> None:
    wardrobe = Wardrobe(palette=3, hue_jitter=0, lightness_jitter=0)
    known = np.array([colour for _, colour in PALETTE[:3]])
    worn = np.array([outfit.upper_colour for outfit in outfits(40, wardrobe=wardrobe)])
    distance = np.abs(worn[:, None] - known).sum(2)
    assert distance.min(1).max() < 1e-6
    assert set(distance.argmin(1)) == {0, 1, 2}


def test_colours_stay_colours_however_much_they_vary() -> None:
    for outfit in outfits(200, wardrobe=Wardrobe(hue_jitter=1, lightness_jitter=2)):
        for name, value in dataclasses.asdict(outfit).items():
            if name.endswith("colour"):
                assert all(0 <= part <= 1 for part in value), (name, value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: People(complexions=6), "complexions=6"),
        (lambda: People(complexions=0), "complexions=0"),
        (lambda: People(shape_spread=-1), "shape_spread"),
        (lambda: People(stature_spread=float("nan")), "stature_spread"),
        (lambda: Wardrobe(upper={"toga": 1.0}), "upper=toga is unknown"),
        (lambda: Wardrobe(lower={"skirt": 0.0}), "above 0"),
        (lambda: Wardrobe(patterns={"plain": float("nan")}), "patterns"),
        (lambda: Wardrobe(bags={}), "bags"),
        (lambda: Wardrobe(dress=1.5), "dress=1.5"),
        (lambda: Wardrobe(looseness=(1.0, 0.5)), "ascending"),
        (lambda: Wardrobe(palette=0), "palette=0"),
        (lambda: dataclasses.replace(outfits(1)[0], upper="toga"), "outfit.upper=toga"),
        (lambda: Identity((0.0,), 9), "complexion=9"),
    ],
)
def test_settings_and_tables_that_make_no_sense_are_one_line(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
