"""Whatever a picture may be, and what is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clip3dreid.data.images import TestView, read_rgb
from clip3dreid.errors import InputError
from clip3dreid.inference.model import ReidModel
from tests.inference.models import HEIGHT, JOINT, WIDTH, D, noise, seen


def test_every_kind_of_picture_gives_the_same_features(model: ReidModel, pictures: list[Path]) -> None:
    wanted = model.embed(pictures)
    arrays = [read_rgb(path) for path in pictures]
    tensors = [torch.tensor(array).permute(2, 0, 1) for array in arrays]
    kinds: list[Any] = [
        [str(path) for path in pictures],
        (path for path in pictures),
        [Image.open(path) for path in pictures],
        arrays,
        [array[..., ::-1].copy()[..., ::-1] for array in arrays],  # not contiguous
        tensors,
        [tensor.float() / 255 for tensor in tensors],
        [pictures[0], tensors[1].double() / 255, arrays[2]],
        seen(pictures),
        (seen(pictures) * 255).round().to(torch.uint8),
        np.stack([TestView(HEIGHT, WIDTH)(array).transpose(1, 2, 0) for array in arrays]),
    ]
    for number, kind in enumerate(kinds):
        assert torch.equal(model.embed(kind), wanted), number
    larger: list[Any] = [
        pictures[1], str(pictures[1]), Image.open(pictures[1]), arrays[1], tensors[1], tensors[1][None],
        tensors[1][None].float() / 255, arrays[1][None],
    ]  # fmt: skip
    for number, single in enumerate(larger):
        torch.testing.assert_close(model.embed(single), wanted[1:2], msg=str(number))


def test_a_pillow_image_is_read_as_its_file_is(model: ReidModel, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise(0, 32, 64)).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(noise(1, 64, 32)[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    Image.fromarray(noise(2, 64, 32)).convert("RGBA").save(tmp_path / "clear.png")
    for name in ("turned", "deep", "clear"):
        path = tmp_path / f"{name}.png"
        assert torch.equal(model.embed(Image.open(path)), model.embed(path)), name


def test_no_pictures_are_no_rows(model: ReidModel) -> None:
    assert model.embed([]).shape == (0, D)
    assert model.embed(torch.empty(0, 3, HEIGHT, WIDTH)).shape == (0, D)
    assert model.joint([]).shape == (0, JOINT)
    assert model.describe([]) == []
    assert model.shape([]).vertices.shape == (0, 1200, 3)
    with pytest.raises(InputError, match="no picture of the person"):
        model.describe_person([])


BAD_PICTURES: list[tuple[Any, str]] = [
    (["nowhere.png"], r"nowhere\.png"),
    ([noise(0, 8, 8), noise(0, 8, 8).astype(np.float32)], r"picture 1 is an array \(8, 8, 3\) of float32"),
    (noise(0, 8, 8)[..., 0], r"picture 0 is an array \(8, 8\)"),
    (noise(0, 8, 8)[:0], r"picture 0 is an array \(0, 8, 3\)"),
    (torch.rand(8, 8, 3), r"picture 0 is a tensor \(8, 8, 3\)"),
    (torch.rand(2, 1, 8, 8), r"picture 0 is a tensor \(1, 8, 8\)"),
    (torch.rand(3, 8, 8) * 255, r"picture 0 has values .* must be in 0\.\.1"),
    (torch.randn(70, 3, HEIGHT, WIDTH), r"picture from 0 on has values .* not normalised"),
    (torch.full((3, 8, 8), torch.nan), r"picture 0 has values from nan"),
    (torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.int64), "torch.int64, but must be uint8"),
    ([None], "picture 0 is a NoneType"),
    (7, "picture 0 is a int"),
]


@pytest.mark.parametrize(("images", "told"), BAD_PICTURES, ids=[told[:30] for _, told in BAD_PICTURES])
def test_what_is_no_picture_is_refused_by_number(model: ReidModel, images: Any, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        model.embed(images)
    assert "\n" not in str(error.value)


def test_a_damaged_pillow_image_and_a_batch_of_none_are_refused(
    model: ReidModel, pictures: list[Path], tmp_path: Path
) -> None:
    whole = pictures[1].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="picture 0 cannot be decoded"):
        model.embed(Image.open(tmp_path / "cut.png"))
    with pytest.raises(InputError, match="batch_size=0 must be a whole number, 1 or more"):
        model.embed(pictures, batch_size=0)


def test_what_cannot_be_read_is_no_matter_of_a_config_key(model: ReidModel, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for path, message in (
        (tmp_path / "nope.jpg", "; give one that can be read$"),
        (tmp_path / "x", "x holds no pictures"),
        ([tmp_path / "x"], "; give one that can be read$"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            model.embed(path)
        assert "on_error" not in str(caught.value)


def test_cut_outs_that_look_the_same_have_the_same_features(model: ReidModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = np.zeros((64, 32, 4), np.uint8)
    layers[10:50, 8:24] = 255
    layers[10:50, 8:24, :3] = rng.integers(0, 255, (40, 16, 3))
    other = np.where(layers[..., 3:] == 0, np.array([255, 0, 255, 0], np.uint8), layers)
    for name, picture in (("a", layers), ("b", other)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    first, second = model.embed([tmp_path / "a.png", tmp_path / "b.png"])
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.embed(Image.fromarray(other))[0], first, atol=1e-5, rtol=1e-4)
