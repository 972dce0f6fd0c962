"""RenderedImage places: the same by the same chance, different by another, and no colour bar."""

import cv2
import numpy as np
import pytest

from clip3dreid.synthetic.background_scenes import KINDS, PLACES, scene


def draw(seed: int, kind: str | None = None, height: int = 83, width: int = 96) -> np.ndarray:
    return scene(np.random.default_rng([3, seed]), height, width, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_chance_draws_the_same_place_and_another_one_another(kind: str) -> None:
    one, same, other = draw(1, kind), draw(1, kind), draw(2, kind)
    assert one.shape == (83, 96, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, same)
    assert np.abs(one.astype(float) - other).mean() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_looks_alike_on_a_canvas_of_twice_the_size(kind: str) -> None:
    large = draw(1, kind, 332, 384)
    small = draw(1, kind, 166, 192).astype(float)
    reduced = cv2.resize(large, (192, 166), interpolation=cv2.INTER_AREA).astype(float)
    difference = np.abs(reduced - small).mean()
    other = np.abs(draw(2, kind, 166, 192) - small).mean()
    assert difference < 0.35 * other


def test_places_are_drawn_by_default_and_each_of_them() -> None:
    drawn = [draw(seed).tobytes() for seed in range(30)]
    assert len(set(drawn)) == 30
    # The kind is chosen by the first number drawn; naming it changes nothing else.
    kinds = {kind for seed in range(30) for kind in KINDS if draw(seed, kind).tobytes() == drawn[seed]}
    assert kinds == set(PLACES)


@pytest.mark.parametrize("kind", PLACES)
def test_places_are_neither_black_nor_white_nor_garish(kind: str) -> None:
    for seed in range(5):
        picture = draw(seed, kind).astype(float)
        assert 40 < picture.mean() < 225
        assert (picture.max(2) - picture.min(2)).mean() < 90


def test_a_place_has_structure_and_a_plain_background_has_little() -> None:
    def detail(kind: str) -> float:
        return float(
            np.mean([np.abs(np.diff(draw(seed, kind).astype(float), axis=1)).mean() for seed in range(4)])
        )

    assert min(detail(kind) for kind in PLACES) > 1.5 * detail("plain")
