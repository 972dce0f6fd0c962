"""Blur, sampling, noise, colours and compression, each against what it should do to simple pictures."""

import dataclasses
import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from clip3dreid.synthetic.cameras import (
    CameraSettings,
    Shot,
    ShotSettings,
    SurveillanceCamera,
    sample_camera,
    sample_shot,
)
from clip3dreid.synthetic.sensor import encode, expose

STILL: Shot = dataclasses.replace(
    sample_shot(
        np.random.default_rng(0),
        sample_camera(np.random.default_rng(0), CameraSettings()),
        ShotSettings(occluder=0),
    ),
    motion=(0.0, 0.0),
)


def camera(**changes: object) -> SurveillanceCamera:
    """A perfect camera but for the changes."""
    perfect = {
        "blur": 0.0,
        "noise": 0.0,
        "resolution": 1.0,
        "gamma": 1.0,
        "saturation": 1.0,
        "cast": (1.0, 1.0, 1.0),
    }
    one = sample_camera(np.random.default_rng(0), CameraSettings())
    return dataclasses.replace(one, **(perfect | changes))  # type: ignore[arg-type]


def flat(*colour: float, height: int = 256, width: int = 128) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.float32), (height, width, 3)).copy()


def texture(height: int = 256, width: int = 128) -> np.ndarray:
    return np.random.default_rng(4).random((height, width, 3), dtype=np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_perfect_camera_changes_nothing() -> None:
    picture = texture()
    np.testing.assert_array_equal(expose(picture, camera(), STILL, rng()), np.rint(picture * 255))


def test_a_cast_multiplies_the_channels() -> None:
    image = expose(flat(0.5, 0.5, 0.5), camera(cast=(1.2, 1.0, 0.8)), STILL, rng())
    np.testing.assert_allclose(image.mean((0, 1)), np.array([0.6, 0.5, 0.4]) * 255, atol=0.51)


def test_gamma_brightens_the_middle_and_keeps_black_and_white() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[:, None, None].repeat(8, 1).repeat(3, 2)
    image = expose(ramp, camera(gamma=1.25), STILL, rng())
    np.testing.assert_allclose(image[:, 0, 0], 255 * np.linspace(0, 1, 256) ** 0.8, atol=0.6)


def test_without_saturation_all_is_grey_of_the_same_luminance() -> None:
    image = expose(flat(0.8, 0.3, 0.2), camera(saturation=0.0), STILL, rng())
    expected = 255 * (0.299 * 0.8 + 0.587 * 0.3 + 0.114 * 0.2)
    np.testing.assert_allclose(image.reshape(-1, 3), expected, atol=0.51)


def test_noise_has_its_standard_deviation_at_middle_grey_and_half_of_it_in_common() -> None:
    image = expose(flat(0.5, 0.5, 0.5), camera(noise=0.04), STILL, rng()) / 255
    assert image.mean() == pytest.approx(0.5, abs=0.002)
    np.testing.assert_allclose(image.std((0, 1)), 0.04, rtol=0.03)
    correlation = np.asarray(np.corrcoef(image.reshape(-1, 3).T))
    np.testing.assert_allclose(correlation[np.triu_indices(3, 1)], 0.5, atol=0.03)


def test_noise_grows_with_the_light_as_photons_do() -> None:
    dark, bright = (
        (expose(flat(*[level] * 3), camera(noise=0.02), STILL, rng()) / 255).std() for level in (0.1, 0.8)
    )
    assert bright / dark == pytest.approx(math.sqrt(1.3 / 0.6), rel=0.05)


def test_noise_comes_from_the_source_of_chance_alone() -> None:
    one, same, other = (expose(texture(), camera(noise=0.05), STILL, rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).mean() > 0.5


@pytest.mark.parametrize("height", [256, 384])
def test_defocus_is_a_gaussian_that_grows_with_the_picture(height: int) -> None:
    picture = texture(height, height // 2)
    image = expose(picture, camera(blur=2.0), STILL, rng())
    sigma = 2.0 * height / 256
    expected = ndimage.gaussian_filter(picture, (sigma, sigma, 0), mode="mirror")
    inner = (slice(20, -20), slice(20, -20))
    np.testing.assert_allclose(image[inner] / 255, expected[inner], atol=0.004)


def test_motion_smears_along_its_direction_by_its_length() -> None:
    dot = flat(0, 0, 0)
    dot[128, 64] = 1
    image = expose(dot, camera(), dataclasses.replace(STILL, motion=(10.0, 0.0)), rng())[..., 0].astype(float)
    rows, columns = image.nonzero()
    assert set(rows) == {128}
    across = (image[128] * np.arange(128)).sum() / image[128].sum()
    spread = math.sqrt((image[128] * (np.arange(128) - across) ** 2).sum() / image[128].sum())
    assert across == pytest.approx(64, abs=0.1)
    # A bar of length L has a standard deviation of L / sqrt(12).
    assert spread == pytest.approx(10 / math.sqrt(12), rel=0.08)
    assert image.sum() == pytest.approx(255, rel=0.05)
    assert columns.max() - columns.min() <= 12


def test_low_resolution_loses_detail_and_keeps_the_mean() -> None:
    image = expose(texture(), camera(resolution=0.25), STILL, rng())
    assert image.shape == (256, 128, 3)
    assert image.mean() == pytest.approx(255 * texture().mean(), rel=0.01)
    # 16 pixels in one: a quarter of the standard deviation, and a little less between them.
    assert image.std() < 0.26 * 255 * texture().std()


def test_noise_is_as_coarse_as_the_sensor() -> None:
    image = expose(flat(0.5, 0.5, 0.5), camera(noise=0.05, resolution=0.25), STILL, rng())[..., 0].astype(
        float
    )
    neighbours = np.corrcoef(image[:, :-1].ravel(), image[:, 1:].ravel())[0, 1]
    assert neighbours > 0.8


def test_what_is_too_bright_is_white() -> None:
    assert (expose(flat(1.7, 2.0, 1.2), camera(), STILL, rng()) == 255).all()


def test_encoding_twice_gives_the_same_bytes() -> None:
    image = np.rint(texture() * 255).astype(np.uint8)
    for quality in (None, 80):
        assert encode(image, quality) == encode(image.copy(), quality)


def test_a_png_keeps_every_pixel_and_a_jpeg_is_smaller_the_lower_its_quality() -> None:
    image = expose(texture(), camera(blur=3.0), STILL, rng())
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(image, None)))), image)
    low, high = encode(image, 40), encode(image, 90)
    assert len(low) < len(high)
    with Image.open(io.BytesIO(high)) as decoded:
        assert (decoded.format, decoded.mode, decoded.size) == ("JPEG", "RGB", (128, 256))
        assert np.abs(np.asarray(decoded).astype(float) - image).mean() < 4
