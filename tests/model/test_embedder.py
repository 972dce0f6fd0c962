from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.model.embedder import Embedder, Network, Pixels, Takes


class Flat:
    """A network of no file: every pixel is an entry, or with `map` a place of its map."""

    def __init__(self, *, batch: int | None = None, mixes: bool = False, map: bool = False) -> None:
        self.path, self.files, self.takes_bytes = Path("flat"), (), False
        self.takes = Takes(batch, None, None)
        self.device = torch.device("cpu")
        self.mixes, self.map = mixes, map
        self.batches: list[int] = []

    def __call__(self, values: Tensor) -> Tensor:
        self.batches.append(len(values))
        if self.mixes:
            values = values - values.mean(0) * (len(values) > 1)
        return values if self.map else values.flatten(1)

    def to(self, device: torch.device) -> None:
        raise NotImplementedError

    def describe(self) -> str:
        return "flat"


IMAGES = torch.randint(0, 256, (7, 3, 6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pixels_are_what_the_network_was_trained_on() -> None:
    images = torch.tensor([51, 102, 204], dtype=torch.uint8).view(1, 3, 1, 1)
    pixels = Pixels("bgr", 255, (4.0, 2.0, 1.0), (2.0, 4.0, 5.0))
    torch.testing.assert_close(pixels(images).flatten(), torch.tensor([100.0, 25.0, 10.0]))
    pixels = Pixels("rgb", 1, (0.2, 0.0, 0.3), (0.5, 1.0, 0.25))
    torch.testing.assert_close(pixels(images).flatten(), torch.tensor([0.0, 0.4, 2.0]))
    # Bytes and fractions of them are one and the same picture.
    torch.testing.assert_close(pixels(images / 255), pixels(images))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": "grey"}, "pixels.channels=grey is unknown; choose rgb or bgr"),
        ({"range": 2}, "pixels.range=2 is unknown; choose 1 or 255"),
        ({"mean": (0.5,)}, "three numbers each"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"std": ("a", 1.0, 1.0)}, "must be a number"),
    ],
)
def test_pixels_of_no_kind_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pixels(**wrong)


@pytest.mark.parametrize(
    ("network", "batches"),
    [
        pytest.param(Flat(), [7], id="any"),
        pytest.param(Flat(batch=1), [1] * 7, id="one"),
        pytest.param(Flat(batch=3), [3, 3, 3], id="three, the last filled up"),
        pytest.param(Flat(mixes=True), [1] * 7, id="any, but not the same"),
    ],
)
def test_pictures_go_in_batches_that_give_what_single_ones_give(network: Flat, batches: list[int]) -> None:
    made = Embedder(network, Pixels(range=255), (6, 4))
    network.batches.clear()
    torch.testing.assert_close(made(IMAGES), IMAGES.float().flatten(1))
    assert network.batches == batches
    assert made.width == 3 * 6 * 4


def test_a_map_is_no_vector() -> None:
    network: Network = Flat(map=True)
    with pytest.raises(InputError, match="its output for 1 pictures is 1x3x6x4, no vector a picture"):
        Embedder(network, Pixels(), (6, 4))


def test_pictures_of_another_size_are_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 3, 6, 4\)"):
        Embedder(Flat(), Pixels(), (6, 4))(IMAGES[..., :3])
