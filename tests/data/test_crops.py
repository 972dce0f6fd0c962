import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip3dreid.data.crops import CropBatches, cut_between_pictures
from clip3dreid.data.images import TestView
from clip3dreid.errors import InputError
from clip3dreid.io.pictures import read_rgb

VIEW = TestView(8, 4)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(1)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:200])
    return tmp_path, pl.Series([f"{name}.png" for name in "abcd"])


def test_batches_hold_what_can_be_read_and_say_what_cannot(files):
    crops = CropBatches(*files, None, [range(2), range(2, 4)], VIEW, skip=True)
    first, second = crops[0], crops[1]
    assert len(crops) == 2
    assert (first.rows.tolist(), second.rows.tolist()) == ([0], [2])
    assert np.array_equal(second.images[0].numpy(), VIEW(read_rgb(files[0] / files[1][2])))
    assert [row for row, _ in first.skipped + second.skipped] == [1, 3]
    assert "no such file" in second.skipped[0][1]
    nothing = CropBatches(*files, None, [range(1, 2)], VIEW, skip=True)[0]
    assert nothing.images.shape == (0, 3, 8, 4)


def test_boxes_are_cut_out_and_clipped_to_the_picture(files):
    boxes = np.array([[2, 3, 12, 23], [0, 0, 1, 1], [-5, -5, 99, 10], [0, 0, 1, 1]], np.int32)
    crops = CropBatches(*files, boxes, [range(1), range(2, 3)], VIEW, skip=False)
    assert np.array_equal(
        crops[0].images[0].numpy(), VIEW(read_rgb(files[0] / files[1][0])[3:23, 2:12].copy())
    )
    assert np.array_equal(crops[1].images[0].numpy(), VIEW(read_rgb(files[0] / files[1][2])[:10].copy()))


@pytest.mark.parametrize("box", [[20, 0, 25, 30], [5, 5, 5, 9], [9, 5, 3, 9], [-9, 0, -1, 5]])
def test_an_empty_box_is_an_unreadable_picture(files, box):
    boxes = np.array([box] * 4, np.int32)
    assert "lies outside" in CropBatches(*files, boxes, [range(1)], VIEW, skip=True)[0].skipped[0][1]
    with pytest.raises(InputError, match=r"lies outside.*20 x 30.*on_error=skip"):
        CropBatches(*files, boxes, [range(1)], VIEW, skip=False)[0]


def test_without_skipping_the_first_unreadable_picture_ends_it(files):
    with pytest.raises(InputError, match=r"b\.png.* with on_error=skip"):
        CropBatches(*files, None, [range(2)], VIEW, skip=False)[0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 12), st.data())
def test_batches_never_part_the_boxes_of_a_frame(boxes, size, data):
    paths = [str(frame) for frame, count in enumerate(boxes) for _ in range(count)]
    borders = [0, *np.cumsum(boxes).tolist()]
    start, stop = sorted(data.draw(st.tuples(st.sampled_from(borders), st.sampled_from(borders))))
    cuts = cut_between_pictures(pl.Series(paths), range(start, stop), size)
    assert [row for cut in cuts for row in cut] == list(range(start, stop))
    for cut in cuts:
        assert {cut.start, cut.stop} <= set(borders)
        assert len(cut) <= size or len({paths[row] for row in cut}) == 1
    if set(boxes) == {1}:  # as ever, for pictures of one person
        assert [len(cut) for cut in cuts] == [min(size, stop - first) for first in range(start, stop, size)]
