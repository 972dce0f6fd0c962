from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.model.mobilenet_names import mobilenet_names
from clip3dreid.model.student import Student
from clip3dreid.model.weights import load_pretrained
from tests.conftest import student_config

# Table 2 of Sandler et al., CVPR 2018: expansion, channels, blocks, stride of the first of them.
TABLE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def student(output_stride: int = 32, **changes: object) -> Student:
    node = student_config("mobilenet_v2").student
    node.backbone.config.output_stride = output_stride
    return instantiate(node, **changes)


class File:
    """An ImageNet file of random weights, in torchvision's names, filled as the network below asks for them."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.state: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self.state:
            values = torch.randn(shape, generator=self.rng)
            if name.endswith("running_var"):
                values = values.abs() + 0.5
            elif len(shape) == 4:
                values /= (shape[1] * shape[2] * shape[3]) ** 0.5 / 1.5
            self.state[name] = values
        return self.state[name]

    def layer(self, x: Tensor, conv: str, norm: str, out: int, size: int, **how: int) -> Tensor:
        weight = self.get(f"{conv}.weight", out, x.shape[1] // how.get("groups", 1), size, size)
        x = F.conv2d(x, weight, padding=how.get("dilation", 1) * (size // 2), **how)
        mean, var, scale, shift = (
            self.get(f"{norm}.{name}", out)[:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        self.state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def forward(self, x: Tensor, output_stride: int = 32) -> Tensor:
        """The network as torchvision has it, in functions; with a stride of 16 the last one becomes a dilation."""
        x = F.relu6(self.layer(x, "features.0.0", "features.0.1", 32, 3, stride=2))
        number, reached, dilation = 0, 2, 1
        for expansion, channels, blocks, first in TABLE:
            for repeat in range(blocks):
                number += 1
                stride, here = first if repeat == 0 else 1, dilation
                if stride == 2 and reached == output_stride:
                    stride, dilation = 1, 2
                reached *= stride
                at, before, wide = f"features.{number}.conv", x, x.shape[1] * expansion
                part = 0
                if expansion > 1:
                    x = F.relu6(self.layer(x, f"{at}.0.0", f"{at}.0.1", wide, 1))
                    part = 1
                x = F.relu6(
                    self.layer(
                        x,
                        f"{at}.{part}.0",
                        f"{at}.{part}.1",
                        wide,
                        3,
                        stride=stride,
                        dilation=here,
                        groups=wide,
                    )
                )
                x = self.layer(x, f"{at}.{part + 1}", f"{at}.{part + 2}", channels, 1)
                if repeat > 0:
                    x = before + x
        return F.relu6(self.layer(x, "features.18.0", "features.18.1", 1280, 1))


def in_a_row(state: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The same file in the names of before: a block's convolutions, norms and activations in one row."""
    renamed = OrderedDict()
    for name, tensor in state.items():
        words = name.split(".")
        if len(words) > 3 and words[2] == "conv":
            layers = 2 if words[1] == "1" else 3
            if words[4].isdigit():
                words[3:5] = [str(3 * int(words[3]) + int(words[4]))]
            else:
                words[3] = str(3 * (layers - 1) + int(words[3]) - (layers - 1))
        renamed[".".join(words)] = tensor
    return renamed


def write(path: Path, state: OrderedDict[str, Tensor], classifier: str | None) -> Path:
    head = (
        {}
        if classifier is None
        else {f"{classifier}.weight": torch.ones(9, 1280), f"{classifier}.bias": torch.ones(9)}
    )
    torch.save(OrderedDict(state) | head, path)
    return path


@pytest.mark.parametrize("output_stride", [32, 16])
@pytest.mark.parametrize("layout", ["torchvision", "in a row"])
@torch.no_grad()
def test_an_imagenet_file_gives_the_features_of_the_network_it_was_trained_as(
    tmp_path: Path, layout: str, output_stride: int
) -> None:
    file = File()
    images = torch.rand(2, 3, 96, 64)
    ours = student(output_stride).eval()
    expected = file.forward((images - ours.mean) / ours.std, output_stride)
    assert len(file.state) == 52 * 6  # convolutions, each with the five tensors of its norm
    assert "features.17.conv.1.1.running_var" in file.state
    state = file.state if layout == "torchvision" else in_a_row(file.state)
    path = write(
        tmp_path / "mobilenet.pth", state, "classifier.1" if layout == "torchvision" else "classifier"
    )
    loaded = load_pretrained(ours, path)
    found = ours(images)
    assert found.map.shape == (2, 1280, 96 // output_stride, 64 // output_stride)
    scale = expected.abs().max()
    assert scale > 0.1
    torch.testing.assert_close(found.map / scale, expected / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooled, expected.mean((2, 3)), rtol=0, atol=1e-5 * float(scale))
    assert loaded == {f"backbone.{name}" for name in ours.backbone.state_dict()}


def test_of_other_networks_nothing_is_renamed() -> None:
    assert mobilenet_names(["features.0.weight", "features.18.weight", "classifier.1.weight"]) == {}


def test_another_width_is_refused_by_name(tmp_path: Path) -> None:
    file = File()
    file.forward(torch.rand(1, 3, 32, 32))
    file.state["features.18.0.weight"] = torch.zeros(640, 320, 1, 1)
    path = write(tmp_path / "mobilenet.pth", file.state, None)
    with pytest.raises(InputError, match=r"of another shape: backbone\.model\.conv_1x1\.convolution\.weight"):
        load_pretrained(student(), path)
    del file.state["features.5.conv.2.weight"]
    with pytest.raises(
        InputError, match=r"missing: backbone\.model\.layer\.3\.reduce_1x1\.convolution\.weight"
    ):
        load_pretrained(student(), write(path, file.state, None))


def test_running_statistics_move_by_torchs_tenth_and_not_to_the_last_batch() -> None:
    ours = student(ghost_group=None)
    norm = ours.backbone.model.conv_stem.first_conv.normalization
    images = torch.rand(4, 3, 64, 32)
    kept: list[Tensor] = []
    hook = norm.register_forward_hook(lambda module, given, made: kept.append(given[0].detach()))
    ours.train()(images)
    hook.remove()
    torch.testing.assert_close(norm.running_mean, 0.1 * kept[0].mean((0, 2, 3)))
