import dataclasses
import json

import numpy as np
import pytest

from clip3dreid.body.people import (
    COMPLEXIONS,
    LOWER,
    UPPER,
    People,
    Wardrobe,
    sample_identity,
    sample_outfit,
)
from clip3dreid.errors import InputError


def test_the_same_seed_gives_the_same_person_and_outfit_and_another_seed_another() -> None:
    people, wardrobe = People(), Wardrobe()
    first, second, other = (
        sample_outfit(np.random.default_rng(seed), people, wardrobe) for seed in (1, 1, 2)
    )
    assert first == second != other
    identity = sample_identity(np.random.default_rng(1), people, np.arange(10.0))
    assert identity.betas == tuple(range(10))


def test_identities_and_outfits_are_plain_values() -> None:
    outfit = sample_outfit(np.random.default_rng(0), People(), Wardrobe())
    identity = sample_identity(np.random.default_rng(0), People(), np.zeros(10, np.float32))
    assert json.loads(json.dumps(dataclasses.asdict(outfit)))["upper"] == outfit.upper
    assert json.loads(json.dumps(dataclasses.asdict(identity)))["complexion"] == identity.complexion


def test_no_more_complexions_than_asked_for_and_none_names_a_person() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_identity(rng, People(complexions=3), np.zeros(10)).complexion for _ in range(300)]
    assert set(drawn) == {0, 1, 2}
    assert max(drawn.count(i) for i in range(3)) < 150
    assert len(COMPLEXIONS) == 5


def test_hair_and_skin_may_change_with_the_clothes() -> None:
    rng = np.random.default_rng(0)
    kept = sample_outfit(rng, People(), Wardrobe())
    drawn = {sample_outfit(rng, People(complexion_per_outfit=True), Wardrobe()).complexion for _ in range(50)}
    assert kept.complexion is None
    assert drawn == set(range(5))


def test_garments_follow_their_weights() -> None:
    rng = np.random.default_rng(0)
    wardrobe = Wardrobe(upper={"jacket": 1.0}, lower={"trousers": 3.0, "shorts": 1.0}, dress=0.0)
    outfits = [sample_outfit(rng, People(), wardrobe) for _ in range(300)]
    assert {outfit.upper for outfit in outfits} == {"jacket"}
    assert 0.65 < sum(outfit.lower == "trousers" for outfit in outfits) / 300 < 0.85
    every = [sample_outfit(rng, People(), Wardrobe()) for _ in range(300)]
    assert {outfit.upper for outfit in every} == set(UPPER)
    assert {outfit.lower for outfit in every} == set(LOWER)
    assert all(outfit.upper == "t_shirt" and outfit.lower == "skirt" for outfit in every if outfit.dress)


def test_looseness_sets_how_far_clothes_stand_off() -> None:
    def off(low: float, high: float) -> float:
        wardrobe = Wardrobe(looseness=(low, high))
        drawn = [sample_outfit(np.random.default_rng(s), People(), wardrobe) for s in range(50)]
        return float(np.mean([outfit.upper_stands_off for outfit in drawn]))

    assert off(0, 0) == 0
    assert off(1, 1) == pytest.approx(2 * off(0.5, 0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: People(complexions=6), "complexions=6 must be 1 to 5"),
        (lambda: People(shape_spread=-1), "must not be negative"),
        (lambda: Wardrobe(upper={"toga": 1.0}), "toga is unknown"),
        (lambda: Wardrobe(lower={"skirt": 0.0}), "one must be positive"),
        (lambda: Wardrobe(looseness=(1.0, 0.5)), "ascending"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
