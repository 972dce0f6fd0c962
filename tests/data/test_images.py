"""Geometry is checked against cases worked by hand or slow plain versions."""

import subprocess
import sys

import albumentations
import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip3dreid.config.folder import conf_dir
from clip3dreid.data.images import (
    TestView,
    TrainView,
    keep,
    to_unit,
)
from clip3dreid.data.resizing import squared
from clip3dreid.errors import InputError
from clip3dreid.io.pictures import read_rgb
from tests.random_pictures import noise, smooth


def train_view(height=48, width=24, **changes):
    settings = {
        "enlarge": 1.125,
        "enlarge_probability": 0,
        "flip_probability": 0,
        "erase_probability": 0,
        "erase_area": (0.02, 0.4),
        "erase_aspect": (0.3, 3.33),
        "erase_fill": (1.0, 0.0, 0.5),
    }
    return TrainView(height, width, **(settings | changes))


class TestResizing:
    @pytest.mark.parametrize(
        ("source", "tolerance"),
        [((128, 64), 1), ((200, 100), 1), ((384, 192), 0), ((720, 300), 0), ((300, 300), 0), ((100, 500), 0)],
    )
    def test_resize_is_pillows_antialiased_bilinear_one(self, source, tolerance):
        picture = noise(*source)
        expected = np.asarray(Image.fromarray(picture).resize((192, 384), Image.Resampling.BILINEAR))
        got = TestView(384, 192)(picture)
        assert got.shape == (3, 384, 192)
        assert got.dtype == np.uint8
        assert np.abs(got.transpose(1, 2, 0).astype(int) - expected).max() <= tolerance

    def test_fine_stripes_become_grey_when_shrunk(self):
        stripes = np.zeros((120, 60, 3), np.uint8)
        stripes[::2] = 255
        assert np.abs(TestView(40, 20)(stripes).astype(int)[:, 1:-1] - 127.5).max() < 20


class TestSquares:
    @given(height=st.integers(1, 40), width=st.integers(1, 40))
    def test_a_square_is_the_picture_in_the_middle_of_black(self, height, width):
        picture = np.full((height, width, 3), (9, 8, 7), np.uint8)
        square = squared(picture)
        side = max(height, width)
        assert square.shape == (side, side, 3)
        filled = (square == (9, 8, 7)).all(2)
        assert filled.sum() == height * width
        assert not square[~filled].any()
        rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
        for place, length in ((rows, height), (columns, width)):
            before, after = place[0], side - 1 - place[-1]
            assert len(place) == length
            assert after - before in (0, 1)

    def test_views_pad_before_they_resize(self):
        picture = smooth(120, 44)
        by_hand = np.zeros((120, 120, 3), np.uint8)
        by_hand[:, 38:82] = picture
        expected = TestView(48, 48)(by_hand)
        np.testing.assert_array_equal(TestView(48, 48, square=True)(picture), expected)
        np.testing.assert_array_equal(train_view(48, 48, square=True)(picture, 3)[0], expected)
        assert (TestView(48, 48)(picture) != expected).any()

    def test_what_is_cut_out_and_erased_counts_in_the_square(self):
        # As high as wide, so that rectangles of the whole height fit that would not fit into the crop itself.
        picture = np.full((96, 24, 3), 77, np.uint8)
        options = {"erase_probability": 1, "erase_area": (0.3, 0.3), "erase_aspect": (1.0, 1.0)}
        got, _ = train_view(96, 96, square=True, **options)(picture, 0)
        erased = (got == np.array([255, 0, 128], np.uint8)[:, None, None]).all(0)
        assert erased.any(0).sum() == erased.any(1).sum() == round((0.3 * 96 * 96) ** 0.5)

    def test_pictures_that_are_kept_are_padded_once(self, tmp_path):
        paths = [tmp_path / f"{number}.png" for number in range(2)]
        for path, size in zip(paths, ((70, 30), (30, 70)), strict=True):
            Image.fromarray(noise(*size)).save(path)
        held = keep(paths, 48, 48, 1, square=True)
        view = train_view(48, 48, square=True, enlarge_probability=1, flip_probability=0.5)
        for seed, (path, kept) in enumerate(zip(paths, held, strict=True)):
            np.testing.assert_array_equal(view(kept, seed)[0], view(read_rgb(path), seed)[0])

    def test_squares_must_be_square_and_asked_for_by_true(self):
        for make in (lambda *size, **how: TestView(*size, **how), train_view):
            with pytest.raises(InputError, match=r"datamodule\.square=true .* say 48x24; make the two equal"):
                make(48, 24, square=True)
            with pytest.raises(InputError, match=r"datamodule\.square=no is unknown; choose true or false"):
                make(48, 48, square="no")


class TestTrainViewGeometry:
    def test_without_any_chance_it_is_the_test_view(self):
        picture = noise(100, 40)
        got, view = train_view()(picture, 3)
        np.testing.assert_array_equal(got, TestView(48, 24)(picture))
        assert view is None

    def test_flip_is_an_exact_mirror_image(self):
        picture = noise(48, 24)
        got, _ = train_view(flip_probability=1)(picture, 3)
        np.testing.assert_array_equal(got, picture[:, ::-1].transpose(2, 0, 1))

    def test_crop_is_a_window_of_the_enlarged_picture_and_reaches_every_corner(self):
        picture = smooth(48, 24)
        large = cv2.resize(picture, (27, 54)).transpose(2, 0, 1)
        places = set()
        for seed in range(300):
            got, _ = train_view(enlarge_probability=1)(picture, seed)
            fits = [
                (top, left)
                for top in range(7)
                for left in range(4)
                if np.array_equal(large[:, top : top + 48, left : left + 24], got)
            ]
            assert len(fits) == 1
            places.update(fits)
        assert len(places) == 7 * 4

    def test_erased_rectangle_keeps_to_its_area_aspect_and_colour_and_leaves_the_view_alone(self):
        picture = np.full((96, 48, 3), 77, np.uint8)
        areas, aspects = [], []
        augment = train_view(96, 48, erase_probability=1, keep_view=True)
        for seed in range(400):
            got, view = augment(picture, seed)
            assert (view == 77).all()
            erased = (got != 77).any(0)
            rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert erased.sum() == height * width
            np.testing.assert_array_equal(np.unique(got[:, erased], axis=1).ravel(), [255, 0, 128])
            areas.append(height * width / erased.size)
            aspects.append(height / width)
            # Rounding to whole pixels moves each side by half a pixel at most.
            assert (height - 0.5) * (width - 0.5) <= 0.4 * erased.size
            assert (height + 0.5) * (width + 0.5) >= 0.02 * erased.size
            assert (height - 0.5) / (width + 0.5) <= 3.33
            assert (height + 0.5) / (width - 0.5) >= 0.3
        assert min(areas) < 0.04
        # albumentations' own Erasing stops at 0.15 for such a crop.
        assert max(areas) > 0.35
        assert min(aspects) < 0.6
        assert max(aspects) > 2.8

    def test_impossible_rectangle_erases_nothing(self):
        picture = noise(48, 24)
        augment = train_view(erase_probability=1, erase_area=(0.9, 0.9), erase_aspect=(9, 9))
        np.testing.assert_array_equal(augment(picture, 0)[0], picture.transpose(2, 0, 1))

    def test_view_is_the_picture_that_the_same_seed_gives_without_erasing(self):
        picture = noise(48, 24)
        rest = {"enlarge_probability": 0.5, "flip_probability": 0.5}
        for seed in range(20):
            got, view = train_view(erase_probability=1, keep_view=True, **rest)(picture, seed)
            np.testing.assert_array_equal(view, train_view(**rest)(picture, seed)[0])
            assert (got != view).any()

    def test_probabilities_are_kept_and_independent(self):
        picture = noise(48, 24) // 2
        picture[:, 12:] += 128
        mirrored = picture[:, ::-1].transpose(2, 0, 1)
        augment = train_view(
            enlarge_probability=0.5, flip_probability=0.3, erase_probability=0.7, keep_view=True
        )
        seen = []
        for seed in range(3000):
            got, view = augment(picture, seed)
            flipped = view[:, :, :10].mean() > view[:, :, 14:].mean()
            whole = np.array_equal(view, mirrored if flipped else mirrored[:, :, ::-1])
            seen.append((whole, flipped, (got != view).any()))
        whole, flipped, erased = np.array(seen).T
        # Standard deviations are below 0.011: the tolerances are over three of them.
        assert abs(erased.mean() - 0.7) < 0.04
        assert abs(whole.mean() - 0.5) < 0.04
        assert abs(flipped[whole].mean() - 0.3) < 0.05
        assert abs(erased[flipped].mean() - erased[~flipped].mean()) < 0.08
        assert abs(erased[whole].mean() - erased[~whole].mean()) < 0.08

    def test_same_seed_same_picture_and_order_does_not_matter(self):
        pictures = [noise(60, 30) for _ in range(4)]
        augment = train_view(enlarge_probability=0.5, flip_probability=0.5, erase_probability=0.5)
        forth = [augment(picture, 10 + i)[0] for i, picture in enumerate(pictures)]
        back = [augment(picture, 10 + i)[0] for i, picture in reversed(list(enumerate(pictures)))]
        np.testing.assert_array_equal(forth, back[::-1])
        assert any((augment(pictures[0], seed)[0] != forth[0]).any() for seed in range(4))

    def test_augmentation_does_not_touch_global_random_state(self):
        np.random.seed(1)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        train_view(erase_probability=1)(noise(48, 24), 5)
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"enlarge": 0.9}, r"train_view\.enlarge=0\.9 must be a number, 1 or more"),
            ({"flip_probability": 1.5}, "flip_probability"),
            ({"erase_area": (0.4, 0.02)}, "erase_area"),
            ({"erase_aspect": (0.3,)}, "erase_aspect"),
            ({"erase_fill": (152, 143, 129)}, "erase_fill"),
        ],
    )
    def test_value_out_of_range_is_named(self, changes, named):
        with pytest.raises(InputError, match=named):
            train_view(**changes)


class TestExtraTransforms:
    def test_albumentations_transform_is_seeded_and_reaches_picture_and_view(self):
        jitter = albumentations.RandomBrightnessContrast(p=1)
        augment = train_view(extra=[jitter], keep_view=True, erase_probability=1)
        picture = noise(48, 24)
        first, view = augment(picture, 2**62 + 5)
        augment(picture, 6)
        again, _ = augment(picture, 2**62 + 5)
        np.testing.assert_array_equal(first, again)
        assert (view != picture.transpose(2, 0, 1)).any()
        assert (augment(picture, 7)[1] != view).any()

    def test_transform_that_changes_the_size_is_refused(self):
        with pytest.raises(InputError, match="extra"):
            train_view(extra=[albumentations.Transpose(p=1)])

    def test_base_recipe_does_not_import_albumentations(self):
        code = "import sys, clip3dreid.data.images; print('albumentations' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


def test_to_unit_divides_bytes_and_leaves_floats():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    unit = to_unit(images)
    assert unit.dtype == torch.float32
    assert torch.equal(unit, torch.tensor([0.0, 51 / 255, 1.0]))
    assert torch.equal(to_unit(unit), unit)
    assert torch.equal(images, torch.tensor([0, 51, 255], dtype=torch.uint8))


class TestConfig:
    @pytest.mark.parametrize(("name", "rule"), [("default", "distinct"), ("base_recipe", "chunks")])
    def test_loader_builds_the_base_recipes_view(self, name, rule):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            datamodule = compose(
                overrides=[f"+datamodule={name}", "datamodule.height=64", "datamodule.width=32"]
            ).datamodule
        assert (datamodule.people, datamodule.pictures, datamodule.sampler) == (8, 8, rule)
        augment = instantiate(datamodule.train_view)
        assert (augment.height, augment.width) == (64, 32)
        assert augment.probability == (0.5, 0.5, 0.5)
        assert augment.erase_area == (0.02, 0.4)
        assert instantiate(datamodule.test_view)(noise(10, 5)).shape == (3, 64, 32)
        # The released code's fill, in normalised units, undone: mean + std x fill.
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        fill = (mean + std * [0.4914, 0.4822, 0.4465]) * 255
        np.testing.assert_allclose(augment.fill.ravel(), fill, atol=0.51)

    def test_extra_transforms_can_be_given_on_the_command_line(self):
        override = "datamodule.train_view.extra=[{_target_: albumentations.ColorJitter, p: 1}]"
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            datamodule = compose(overrides=["+datamodule=default", override]).datamodule
        picture = smooth(384, 192)
        got, _ = instantiate(
            datamodule.train_view, enlarge_probability=0, flip_probability=0, erase_probability=0
        )(picture, 1)
        assert (got != picture.transpose(2, 0, 1)).any()
