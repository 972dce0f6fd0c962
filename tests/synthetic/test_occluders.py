"""Things before a person: they cover what they should, and stay the same."""

import dataclasses

import numpy as np
import pytest

from clip3dreid.synthetic.occluders import KINDS, Occluder, occlude


def thing(kind: str, position: float = 0.5, size: float = 0.3, seed: int = 1) -> Occluder:
    return Occluder(kind, position, size, (0.6, 0.3, 0.2), seed)


def cover(kind: str, position: float = 0.5, size: float = 0.3, seed: int = 1) -> np.ndarray:
    return occlude(thing(kind, position, size, seed), 256, 128)[..., 3] / 255


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_thing_looks_the_same(kind: str) -> None:
    np.testing.assert_array_equal(occlude(thing(kind), 64, 32), occlude(thing(kind), 64, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_thing_hides_more_and_none_hides_all(kind: str) -> None:
    small, large = cover(kind, size=0.15).mean(), cover(kind, size=0.45).mean()
    assert 0.005 < small < large < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_looks_alike_at_every_size_of_picture(kind: str) -> None:
    large = occlude(thing(kind), 256, 128)[..., 3].astype(float)
    small = occlude(thing(kind), 128, 64)[..., 3].astype(float)
    averaged = large.reshape(128, 2, 64, 2).mean((1, 3))
    assert np.abs(averaged - small).mean() < 6


def test_a_post_stands_where_it_is_put_from_top_to_bottom() -> None:
    hidden = cover("post", position=0.25, size=0.3)
    assert hidden[:, 32].min() == 1
    assert hidden[:, 64:].max() == 0
    # A pillar is two thirds of its size wide.
    assert hidden.mean() == pytest.approx(0.2, abs=0.015)


def test_a_desk_covers_its_part_of_the_bottom() -> None:
    hidden = cover("desk", size=0.4)
    assert hidden[-1].min() == 1
    assert hidden[: int(256 * 0.5)].max() == 0
    assert hidden.mean() == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(("position", "edge"), [(0.1, 0), (0.9, -1)])
def test_a_passer_by_is_cut_by_the_nearer_edge(position: float, edge: int) -> None:
    hidden = cover("passer_by", position=position)
    assert hidden[128:, edge].mean() > 0.95
    assert hidden[:, -1 - edge].max() == 0


def test_plants_differ_by_their_seed() -> None:
    one, other = (occlude(dataclasses.replace(thing("plant"), seed=seed), 64, 32) for seed in (1, 2))
    assert (one != other).any()
