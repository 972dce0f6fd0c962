import numpy as np
from PIL import Image

from clip3dreid.report.overlays import overlay, plan_sheet, tile_sheet


def test_a_box_stands_around_the_highest_position() -> None:
    values = np.zeros((4, 2))
    values[2, 1] = 1
    found = np.asarray(overlay(Image.new("RGB", (40, 80), "grey"), values))
    white = np.argwhere((found == 255).all(2))
    assert white.min(0).tolist() == [40, 20]
    assert white.max(0).tolist() == [59, 39]
    # The highest position is yellow, far ones blue.
    assert found[50, 30, 0] > found[50, 30, 2] + 30
    assert found[5, 5, 2] > found[5, 5, 1]


def test_a_map_of_zeros_is_drawn_without_a_box() -> None:
    found = np.asarray(overlay(Image.new("RGB", (40, 80), "grey"), np.zeros((4, 2))))
    assert not (found == 255).all(2).any()


def test_a_sheet_has_a_tile_a_word_and_one_of_the_crop() -> None:
    crop = Image.new("RGB", (64, 128), "grey")
    mass = np.random.default_rng(1).uniform(0.1, 1, (16, 8, 4))
    sheet = plan_sheet(crop, mass, [f"word {number}" for number in range(16)], height=120, columns=9)
    one = tile_sheet([(crop.resize((60, 120)), "the crop")])
    assert sheet.width == 9 * (one.width - 6) + 6
    assert sheet.height == 2 * (one.height - 6) + 6


def test_the_strongest_of_all_words_alone_is_all_yellow() -> None:
    plan = np.full((2, 4, 2), 0.01)
    plan[0, 0, 0] = 1.0  # strong
    plan[1, 3, 1] = 0.02  # hardly more than even
    mass = plan / plan.mean((1, 2), keepdims=True)
    sheet = np.asarray(plan_sheet(Image.new("RGB", (40, 80), "grey"), mass, ["a", "b"], height=80)).astype(
        int
    )
    tile = 112 + 6
    first, second = (sheet[6:86, 6 + place * tile : 6 + place * tile + 112] for place in (1, 2))
    yellow = [(part[..., 0] - part[..., 2])[:, 36:76].max() for part in (first, second)]
    assert yellow[0] > 80 > yellow[1]


def test_a_word_without_mass_is_shown_as_nothing() -> None:
    mass = np.zeros((2, 4, 2))
    mass[0] = 1
    assert plan_sheet(Image.new("RGB", (40, 80)), mass, ["a", "b"]).width > 100
