import pytest
import torch
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.model.normalisation import GhostBatchNorm1d, GhostBatchNorm2d
from clip3dreid.model.osnet import OSNet, _Block, _Gate, _LightConvolution
from clip3dreid.model.pooling import FullyConnected
from clip3dreid.model.student import Student
from tests.conftest import student_config

# Millions of parameters at test time (Zhou et al., ICCV 2019 and TPAMI 2021; torchreid's model zoo).
PUBLISHED = {
    "osnet_x1_0": 2.2,
    "osnet_x0_75": 1.3,
    "osnet_x0_5": 0.6,
    "osnet_x0_25": 0.2,
    "osnet_ain_x1_0": 2.2,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_students_have_as_many_parameters_as_published_and_512_features(name: str) -> None:
    with torch.device("meta"):
        student = instantiate(student_config(name).student)
    count = sum(parameter.numel() for parameter in student.parameters())
    assert round(count / 1e6, 1) == PUBLISHED[name]
    assert student.width == 512
    assert isinstance(student.neck, nn.Identity)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(("height", "width"), [(256, 128), (64, 32), (100, 52)])
def test_the_map_is_a_sixteenth_of_the_picture(height: int, width: int) -> None:
    found = OSNet(4).eval()(torch.rand(2, 3, height, width))
    assert found.map.shape == (2, 32, *((-(-side // 4)) // 4 for side in (height, width)))
    assert found.token is None


def random_double(module: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return module.double().eval()


@torch.no_grad()
def test_a_light_convolution_mixes_channels_then_looks_around_in_each() -> None:
    light = random_double(_LightConvolution(3))
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    mixed = torch.einsum("oc,bchw->bohw", light.pointwise.weight[..., 0, 0], x)
    around = torch.zeros_like(mixed)
    padded = F.pad(mixed, (1, 1, 1, 1))
    for row in range(3):
        for column in range(3):
            share = light.depthwise.weight[:, 0, row, column].view(1, -1, 1, 1)
            around += share * padded[:, :, row : row + 5, column : column + 4]
    mean, var, scale, shift = (
        tensor.view(-1, 1, 1)
        for tensor in (light.norm.running_mean, light.norm.running_var, light.norm.weight, light.norm.bias)
    )
    torch.testing.assert_close(light(x), ((around - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0))


@torch.no_grad()
def test_a_gate_weighs_each_channel_by_the_means_of_all() -> None:
    gate = random_double(_Gate(32))
    assert gate.squeeze.weight.shape == (2, 32, 1, 1)
    x = torch.randn(2, 32, 3, 5, dtype=torch.float64)
    hidden = F.linear(x.mean((2, 3)), gate.squeeze.weight.flatten(1), gate.squeeze.bias).clamp(min=0)
    weights = 1 / (1 + (-F.linear(hidden, gate.excite.weight.flatten(1), gate.excite.bias)).exp())
    torch.testing.assert_close(gate(x), x * weights[..., None, None])


@pytest.mark.parametrize("instance_norm", [False, True])
@pytest.mark.parametrize("width", [8, 16], ids=["with a shortcut of its own", "plain shortcut"])
@torch.no_grad()
def test_a_block_adds_four_streams_through_one_gate_to_its_input(width: int, instance_norm: bool) -> None:
    block = random_double(_Block(width, 16, instance_norm))
    x = torch.randn(2, width, 6, 4, dtype=torch.float64)
    reduced = block.reduce(x)
    assert [len(stream) for stream in block.streams] == [1, 2, 3, 4]
    mixed = sum(block.gate(stream(reduced)) for stream in block.streams)
    expanded = torch.einsum("oc,bchw->bohw", block.expand.conv.weight[..., 0, 0], mixed)
    if instance_norm:
        deviation = (expanded.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        expanded = (expanded - expanded.mean((2, 3), keepdim=True)) / deviation
        expanded = expanded * block.expand.norm.weight.view(-1, 1, 1) + block.expand.norm.bias.view(-1, 1, 1)
    else:
        expanded = block.expand.norm(expanded)
    torch.testing.assert_close(block(x), (expanded + block.shortcut(x)).clamp(min=0))


def test_instance_norms_stand_where_the_search_put_them() -> None:
    normed = {
        name for name, module in OSNet(4, True).named_modules() if isinstance(module, nn.InstanceNorm2d)
    }
    places = ["stages.0.0", "stages.0.1", "stages.1.1", "stages.2.0"]
    assert normed == {"stem.norm", *(f"{place}.expand.norm" for place in places)}
    assert not any(isinstance(module, nn.InstanceNorm2d) for module in OSNet(4).modules())


def test_ghost_groups_reach_every_batch_norm_the_poolings_too() -> None:
    node = student_config("osnet_x0_25").student
    student = instantiate(node, ghost_group=2)
    kinds = {
        type(module) for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    assert kinds == {GhostBatchNorm1d, GhostBatchNorm2d}
    student(torch.rand(4, 3, 64, 32)).embedding.square().sum().backward()
    assert not [name for name, parameter in student.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(("width", "said"), [(0, "width=0"), (5, "width=5 must be even"), (2.5, "width=2.5")])
def test_a_width_that_cannot_be_is_refused_in_one_line(width: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        OSNet(width)  # type: ignore[arg-type]


def test_its_sizes_are_said_as_trying_finds_them_and_a_pooling_for_another_map_is_refused() -> None:
    def student(channels: int) -> Student:
        return Student(OSNet(16), FullyConnected(channels, 24), mean=[0.5] * 3, std=[0.5] * 3, neck=False)

    made = student(128)
    assert made._said() == made._measure() == (128, 24)
    with pytest.raises(RuntimeError, match="128"):
        student(130)
