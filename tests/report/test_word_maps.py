import numpy as np

from clip3dreid.report.word_maps import MOST, draw_word_map

GREY = np.full((64, 32, 3), 100, np.uint8)


def test_red_says_where_a_word_comes_from_and_how_much_of_it() -> None:
    mass = np.zeros((4, 2), np.float32)
    mass[1, 0], mass[3, 1], mass[2, 0] = MOST, MOST * 3, MOST / 2
    drawn = np.asarray(draw_word_map(GREY, mass, height=128)).astype(int)
    assert drawn.shape == (128, 64, 3)
    cells = drawn[16::32, 16::32]
    redness = cells[..., 0] - cells[..., 1]
    assert redness[1, 0] == redness[3, 1] == redness.max() > 100  # more than the most looks like the most
    assert 0 < redness[2, 0] < redness[1, 0]
    assert (redness[mass == 0] == 0).all()
    # Positions have edges: nothing of a neighbour shines through.
    np.testing.assert_array_equal(drawn[32:64, :32], np.broadcast_to(cells[1, 0], (32, 32, 3)))


def test_the_picture_is_seen_through_the_red() -> None:
    half = GREY.copy()
    half[:, 16:] = 250
    drawn = np.asarray(draw_word_map(half, np.full((1, 1), 1, np.float32), height=64)).astype(int)
    assert drawn[32, 28, 1] > drawn[32, 4, 1] + 20
