import pytest
import torch
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.model.teacher_view import Letterbox, Native, Squash

VIEWS = [Letterbox(32), Squash(32), Native(32, 16)]


def pictures(height: int, width: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)
    return images if dtype == torch.uint8 else (images / 255).to(dtype)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.describe())
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_a_view_keeps_dtype_and_range_and_has_its_size(view, dtype):
    shown = view(pictures(75, 31, dtype))
    assert shown.shape == (2, 3, *view.size)
    assert shown.dtype == dtype
    assert shown.min() >= 0
    assert shown.max() <= (255 if dtype == torch.uint8 else 1)


def test_a_letterbox_pads_a_tall_picture_left_and_right_and_touches_no_pixel_of_it():
    images = pictures(32, 13)
    shown = Letterbox(32)(images)
    assert torch.equal(shown[..., 9:22], images)
    assert not shown[..., :9].any()
    assert not shown[..., 22:].any()


def test_a_letterbox_pads_a_wide_picture_above_and_below():
    images = pictures(12, 32, torch.float32)
    shown = Letterbox(32)(images)
    assert torch.equal(shown[:, :, 10:22], images)
    assert not shown[:, :, :10].any()
    assert not shown[:, :, 22:].any()


@pytest.mark.parametrize("side", [16, 64])
def test_a_letterbox_pads_first_and_resizes_the_square(side):
    images = pictures(48, 20, torch.float32)
    square = torch.zeros(2, 3, 48, 48)
    square[..., 14:34] = images
    expected = F.interpolate(square, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(Letterbox(side)(images), expected)


@pytest.mark.parametrize(("view", "size"), [(Squash(24), (24, 24)), (Native(40, 24), (40, 24))])
def test_squash_and_native_resize_the_whole_picture(view, size):
    images = pictures(64, 20, torch.float32)
    expected = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(view(images), expected)
    assert view.size == size


def test_bytes_are_rounded_and_not_cut():
    images = pictures(64, 20)
    fractions = Squash(24)(images.float() / 255)
    assert torch.equal(Squash(24)(images), (fractions * 255).round().to(torch.uint8))


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.describe())
def test_a_picture_that_fits_is_passed_on_as_it_is(view):
    images = pictures(*view.size)
    assert torch.equal(view(images), images)


def test_bicubic_overshoot_stays_in_range_on_the_edge_of_black_and_white():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 1
    shown = Squash(32)(images)
    assert shown.min() == 0
    assert shown.max() == 1


def test_views_that_give_other_pixels_describe_themselves_otherwise():
    views = [Letterbox(32), Letterbox(64), Squash(32), Native(32, 32), Native(64, 32), Native(32, 64)]
    assert len({view.describe() for view in views}) == len(views)
    assert Letterbox(32).describe() == Letterbox(32).describe()


@pytest.mark.parametrize("make", [lambda: Letterbox(0), lambda: Squash(-1), lambda: Native(16, 0)])
def test_an_empty_view_is_refused(make):
    with pytest.raises(InputError, match=r"is empty; set model\.teacher\.view"):
        make()


def test_what_is_no_batch_of_pictures_is_refused():
    with pytest.raises(TypeError, match=r"not torch\.int64"):
        Squash(8)(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\)"):
        Squash(8)(torch.zeros(3, 8, 8))
