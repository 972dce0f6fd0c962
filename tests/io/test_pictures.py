"""Decoding is checked against pictures made here."""

import io
import os
import struct
import zlib

import numpy as np
import PIL
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clip3dreid.errors import InputError
from clip3dreid.io import pictures
from clip3dreid.io.pictures import (
    BACKGROUND,
    MOST_PIXELS,
    SUFFIXES,
    UNREAD_SUFFIXES,
    UnreadablePicture,
    find_pictures,
    kind_of,
    open_picture,
    read_rgb,
    tally,
    upright_rgb,
)
from tests.random_pictures import noise, smooth


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(tmp_path, orientation):
    upright = smooth(32, 16)
    # How a camera stores a picture so that the tag's instruction makes it upright again.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), upright)


def test_jpeg_data_under_a_png_name_is_read_as_what_it_is(tmp_path):
    picture = smooth(32, 16)
    Image.fromarray(picture).save(tmp_path / "a.png", "JPEG", quality=95, subsampling=0)
    Image.fromarray(picture).save(tmp_path / "b.jpg", "JPEG", quality=95, subsampling=0)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), read_rgb(tmp_path / "b.jpg"))
    assert np.abs(read_rgb(tmp_path / "a.png").astype(int) - picture).mean() < 5


# Pillow before 13 cannot read what it writes as YCbCr: it takes the three bytes of a pixel for four.
YCBCR = pytest.param(
    "YCbCr",
    marks=pytest.mark.xfail(
        int(PIL.__version__.split(".")[0]) < 13, raises=UnreadablePicture, strict=True, reason="Pillow < 13"
    ),
)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", YCBCR])
def test_every_mode_becomes_three_channels_of_the_same_colour(tmp_path, mode):
    # Black, white and a grey survive every mode but the two-level one, where grey may be either.
    grey = 0 if mode == "1" else 128
    picture = np.zeros((9, 6, 3), np.uint8)
    picture[3:6], picture[6:] = grey, 255
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    Image.fromarray(picture).convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / f"a.{suffix}")
    rgb = read_rgb(tmp_path / f"a.{suffix}")
    assert rgb.dtype == np.uint8
    np.testing.assert_allclose(rgb, picture, atol=1)


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    picture = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_rgb(tmp_path / "a.jpg"), picture, atol=6)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png")[..., 1], deep // 256)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_truncated_picture_is_refused_by_name(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise(64, 32)).save(whole)
    (tmp_path / f"half.{suffix}").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(UnreadablePicture, match=rf"half\.{suffix}.*; replace it") as caught:
        read_rgb(tmp_path / f"half.{suffix}")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadablePicture, match=r"a\.png"):
        read_rgb(tmp_path / "a.png")


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UnreadablePicture, match=r"gone\.png"):
        read_rgb(tmp_path / "gone.png")


def test_the_suffix_is_no_part_of_a_message_and_advice_is_the_askers(tmp_path):
    with pytest.raises(UnreadablePicture) as caught:
        read_rgb(tmp_path / "nope.jpg", "give another")
    assert (
        str(caught.value)
        == f"cannot read the picture {tmp_path}/nope.jpg: there is no such file; give another"
    )
    assert caught.value.reason == "there is no such file"
    with pytest.raises(UnreadablePicture, match=r"it is a folder; replace it$"):
        read_rgb(tmp_path)


GREY = np.linspace(0, 65535, 64).round().astype(np.uint16)[:, None].repeat(8, 1)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", GREY),
        ("a.tif", GREY),
        ("b.tif", GREY.astype(np.int32)),
        ("c.tif", (GREY >> 8).astype(np.int32)),
        ("d.tif", GREY.astype(np.float32)),
        ("e.tif", (GREY / 257).astype(np.float32)),
        ("f.tif", (GREY / 65535).astype(np.float32)),
    ],
)
def test_one_grey_picture_is_one_whatever_numbers_hold_it(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    expected = np.stack([(GREY >> 8).astype(np.uint8)] * 3, -1)
    np.testing.assert_allclose(read_rgb(tmp_path / name).astype(int), expected, atol=1)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [("u1", 255), ("u2", 65535), ("i4", 255), ("i4", 65535), ("f4", 1), ("f4", 255), ("f4", 65535)]
    ),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["PNG", "TIFF"]),
)
def test_grey_of_any_type_keeps_its_share_of_the_range(kind, seed, form):
    dtype, top = kind
    if form == "PNG" and dtype not in ("u1", "u2"):
        form = "TIFF"
    share = np.random.default_rng(seed).random((5, 4))
    share[0, 0] = 1  # the range is told by the largest value
    values = (share * top).astype(dtype) if dtype == "f4" else np.rint(share * top).astype(dtype)
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    file.seek(0)
    with Image.open(file) as image:
        rgb = upright_rgb(image)
    assert rgb.shape == (5, 4, 3)
    assert (rgb[..., 0] == rgb[..., 1]).all()
    np.testing.assert_allclose(rgb[..., 2], share * 255, atol=1.01)


@pytest.mark.parametrize("values", [[0.0, 1e6], [-0.5, 1.0], [0.0, float("nan")], [0.0, float("inf")]])
def test_grey_of_no_known_range_is_refused_with_its_range(tmp_path, values):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(
        UnreadablePicture, match=r"a\.tif: it has values from .* to .*, whose range is not known"
    ):
        read_rgb(tmp_path / "a.tif")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["RGBA", "LA", "RGBa", "La", "PA", "P", "RGB", "L"]))
def test_the_colour_under_transparent_pixels_is_never_seen(seed, mode):
    rng = np.random.default_rng(seed)
    grey = mode in ("LA", "La", "L")
    shown, hidden, other = rng.choice(250, 3, replace=False).astype(np.uint8).tolist()
    clear = rng.random((6, 5)) < 0.5
    clear[0, 0], clear[5, 4] = True, False
    seen = []
    for below in (hidden, other):
        value = np.where(clear, below, shown).astype(np.uint8)
        if mode in ("P", "RGB", "L"):  # one colour stands for transparency
            picture = Image.fromarray(value).convert(mode) if mode != "P" else Image.fromarray(value)
            if mode == "P":
                picture = Image.frombytes("P", (5, 6), value.tobytes())
                picture.putpalette(list(np.repeat(np.arange(256), 3)))
            picture.info["transparency"] = (below,) * 3 if mode == "RGB" else below
        else:
            layers = np.dstack([value] * (1 if grey else 3) + [np.where(clear, 0, 255).astype(np.uint8)])
            straight = Image.fromarray(layers)
            picture = straight.convert(mode) if mode not in ("PA",) else straight.convert("PA")
        seen.append(upright_rgb(picture))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[0][clear] == BACKGROUND).all()
    if mode != "PA":  # whose palette may shift colours
        assert (seen[0][~clear] == shown).all()


def test_half_transparent_colour_is_mixed_with_the_background(tmp_path):
    Image.fromarray(np.full((2, 2, 4), (200, 100, 0, 128), np.uint8)).save(tmp_path / "a.png")
    share = 128 / 255
    mixed = np.rint(np.array([200, 100, 0]) * share + 255 * (1 - share))
    np.testing.assert_allclose(read_rgb(tmp_path / "a.png")[0, 0], mixed, atol=1)


def test_opaque_pictures_with_an_alpha_channel_keep_their_colour(tmp_path):
    rgba = np.dstack([noise(8, 4), np.full((8, 4), 255, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), rgba[..., :3])


def test_an_image_of_somebody_else_is_not_changed():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(noise(8, 4)).save(file, "PNG", exif=exif)
    with Image.open(file) as image:
        assert upright_rgb(image).shape == (4, 8, 3)
        assert (image.size, image.getexif().get(0x0112)) == ((4, 8), 6)


def test_other_formats_are_refused_whatever_they_are_named_and_start_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.tga")
    for content in (eps, (tmp_path / "a.tga").read_bytes(), b"%PDF-1.4"):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(UnreadablePicture, match=r"not a picture of a format that is read \(JPEG, PNG"):
            read_rgb(tmp_path / "a.jpg")


def _png(path, width, height):
    """A picture of nothing, packed as tightly as can be."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(("width", "height"), [(8001, 10_000), (13_300, 13_300), (50_000, 50_000)])
def test_too_many_pixels_are_refused_by_their_number_before_anything_is_decoded(
    tmp_path, monkeypatch, width, height
):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    assert width * height > MOST_PIXELS
    _png(tmp_path / "bomb.png", width, height)
    with pytest.raises(UnreadablePicture) as caught:
        read_rgb(tmp_path / "bomb.png")
    line = str(caught.value)
    assert f"{width} x {height} pixels" in line or f"{width * height:,} pixels" in line
    assert f"more than {MOST_PIXELS:,} are not decoded" in line


def test_an_image_with_too_many_pixels_is_refused_too(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 31)
    upright_rgb(Image.new("RGB", (31, 1)))
    with pytest.raises(UnreadablePicture, match="it has 8 x 4 pixels"):
        upright_rgb(Image.new("RGB", (8, 4)))


@given(
    st.text(st.characters(exclude_characters="/\0."), max_size=5),
    st.sampled_from(sorted(SUFFIXES | UNREAD_SUFFIXES)),
)
def test_the_suffix_tells_in_any_case(stem, suffix):
    kind = "picture" if suffix in SUFFIXES else "unread"
    for spelled in (suffix, suffix.upper(), suffix.title()):
        assert kind_of("x" + stem + spelled) == kind
    assert kind_of("x" + stem + suffix + ".txt") == "other"
    assert kind_of("x" + stem) == "other"


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_that_is_listed_can_be_read(tmp_path, suffix):
    mode = "L" if suffix in (".pgm", ".gif") else "1" if suffix == ".pbm" else "RGB"
    Image.new(mode, (4, 6), 0).save(tmp_path / f"a{suffix}")
    assert read_rgb(tmp_path / f"a{suffix}").shape == (6, 4, 3)
    with open_picture(tmp_path / f"a{suffix}") as picture:
        assert picture.size == (4, 6)


def test_a_folder_is_sorted_out_at_any_depth_and_counted(tmp_path):
    for name in (
        "b.JPG",
        "a/z.jfif",
        "a/x.heic",
        "a/n.txt",
        "m.txt",
        "Thumbs.db",
        ".DS_Store",
        ".git/1.png",
        "b.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "again").symlink_to(tmp_path)
    found = find_pictures(tmp_path, "x")
    assert found.pictures == ["a/z.jfif", "b.JPG"]
    assert found.unread == ["a/x.heic"]
    assert found.others == [".DS_Store", ".git/", "Thumbs.db", "a/n.txt", "b.txt", "m.txt"]
    assert found.left_out() == [
        "1 pictures are in formats that are not read: 1 *.heic such as a/x.heic",
        "6 other files are passed over: 3 *.txt such as a/n.txt, 1 *.db such as Thumbs.db, 1 folders such as .git/, "
        "1 hidden such as .DS_Store",
    ]


def test_a_tally_names_a_few_kinds_and_says_that_there_are_more():
    assert tally([f"{i}.x{i}" for i in range(9)]).endswith("such as 4.x4, …")
    assert tally(["LICENSE", "a/LICENSE"]) == "2 LICENSE such as LICENSE" or tally(["LICENSE"]) == "1 LICENSE"


def test_names_that_are_not_utf8_are_refused_by_number(tmp_path):
    for byte in (b"\xe9", b"\xe8"):
        (tmp_path / os.fsdecode(b"caf" + byte + b".png")).touch()
    with pytest.raises(
        InputError, match=r"x: 2 file names are not UTF-8: 'caf\\udce8\.png', .*; rename them"
    ):
        find_pictures(tmp_path, "x")


def test_a_folder_that_cannot_be_entered_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    def refuse(place):
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="cannot be looked into: Permission denied"):
        find_pictures(tmp_path, "x")
