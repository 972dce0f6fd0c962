"""What is decoded here is what Pillow decodes, to the bit; everything else is left to Pillow."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip3dreid.io import jpeg
from clip3dreid.io.pictures import MOST_PIXELS, UnreadablePicture, open_picture, read_rgb, upright_rgb
from tests.random_pictures import noise, smooth


def encoded(picture, **how) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **how)
    return file.getvalue()


def by_pillow(data: bytes):
    """What Pillow makes of a file, as every picture was read before; None where it refuses."""
    try:
        with open_picture(io.BytesIO(data)) as image:
            return upright_rgb(image, own=True)
    except Exception:
        return None


def decode(data: bytes):
    return jpeg.decode(data, MOST_PIXELS)


forms = st.fixed_dictionaries(
    {
        "quality": st.integers(1, 100),
        "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
        "progressive": st.booleans(),
        "optimize": st.booleans(),
        "restart_marker_blocks": st.integers(0, 5),
    }
)
sizes = st.integers(1, 70)
seeds = st.integers(0, 2**32 - 1)


def picture(height: int, width: int, seed: int):
    rng = np.random.default_rng(seed)
    if seed % 2:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@settings(deadline=None, max_examples=80)
@given(height=sizes, width=sizes, seed=seeds, how=forms)
def test_every_bit_is_pillows(height, width, seed, how):
    data = encoded(picture(height, width, seed), **how)
    decoded = decode(data)
    assert decoded is not None, "it is a plain file, and was left to Pillow"
    np.testing.assert_array_equal(decoded, by_pillow(data))


@settings(deadline=None, max_examples=150)
@given(
    height=sizes,
    width=sizes,
    seed=seeds,
    how=forms,
    draw=st.data(),
    damage=st.sampled_from(["bit", "cut", "end"]),
)
def test_a_damaged_file_is_what_it_is_to_pillow(height, width, seed, how, draw, damage):
    data = bytearray(encoded(picture(height, width, seed), **how))
    place = draw.draw(st.integers(0, len(data) - 1))
    if damage == "bit":
        data[place] ^= 1 << draw.draw(st.integers(0, 7))
    elif damage == "cut":
        del data[place : place + draw.draw(st.integers(1, 200))]
    else:
        del data[place:]
    decoded = decode(bytes(data))
    if decoded is not None:
        np.testing.assert_array_equal(decoded, by_pillow(bytes(data)))


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _cmyk() -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(20, 30)).convert("CMYK").save(file, "JPEG")
    return file.getvalue()


def _adobe_rgb() -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(20, 30)).save(file, "JPEG", keep_rgb=True)
    return file.getvalue()


def _several() -> bytes:
    file = io.BytesIO()
    first, second = (Image.fromarray(noise(20, 30)) for _ in range(2))
    first.save(file, "MPO", save_all=True, append_images=[second])
    return file.getvalue()


OTHERS = {
    "grey": encoded(noise(20, 30)[..., 0]),
    "cmyk": _cmyk(),
    "exif": encoded(noise(20, 30), exif=_exif(6)),
    "exif that turns nothing": encoded(noise(20, 30), exif=_exif(1)),
    "xmp": encoded(noise(20, 30), xmp=b"<tiff:Orientation>6</tiff:Orientation>"),
    "rgb": _adobe_rgb(),
    "several pictures": _several(),
    "something behind the end": encoded(noise(20, 30)) + b"\0",
    "no jpeg": b"\x89PNG",
    "nothing": b"",
    "a beginning": encoded(noise(20, 30))[:3],
    "a length beyond the end": jpeg.START + b"\xff\xe0\xff\xff\xff\xd9",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_file_is_left_to_pillow(kind, tmp_path):
    data = OTHERS[kind]
    assert decode(data) is None
    path, expected = tmp_path / "a.jpg", by_pillow(data)
    path.write_bytes(data)
    if expected is None:
        with pytest.raises(UnreadablePicture):
            read_rgb(path)
    else:
        np.testing.assert_array_equal(read_rgb(path), expected)


def test_a_colour_profile_and_a_comment_are_passed_over(tmp_path):
    data = encoded(smooth(30, 20), icc_profile=b"nobody reads it", comment=b"a comment")
    np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_a_picture_of_too_many_pixels_is_not_decoded_here():
    data = encoded(noise(20, 30))
    assert jpeg.decode(data, 599) is None
    assert jpeg.decode(data, 600) is not None


def test_an_opencv_that_decodes_otherwise_is_not_used(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(smooth(30, 20)))
    expected = by_pillow(path.read_bytes())
    real = jpeg._opencv
    monkeypatch.setattr(jpeg, "_opencv", lambda data: real(data) ^ 1)
    jpeg._decodes_as_pillow.cache_clear()
    try:
        assert decode(path.read_bytes()) is None
        np.testing.assert_array_equal(read_rgb(path), expected)
    finally:
        jpeg._decodes_as_pillow.cache_clear()


def test_files_are_read_the_fast_way(tmp_path, monkeypatch):
    path = tmp_path / "a.png"  # as some data sets call their JPEGs
    path.write_bytes(encoded(smooth(30, 20)))
    expected = by_pillow(path.read_bytes())

    def never(*_: object, **__: object) -> None:
        raise AssertionError("Pillow was asked")

    assert decode(path.read_bytes()) is not None  # the comparison with Pillow is made
    monkeypatch.setattr(Image, "open", never)
    np.testing.assert_array_equal(read_rgb(path), expected)
