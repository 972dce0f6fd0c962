import re

import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from clip3dreid.errors import InputError
from clip3dreid.model.resnet import InstanceBatchNorm, ResNet

# Published sizes of torchvision's networks, their classifier included (1000 x D weights and 1000 biases).
TORCHVISION_PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160}
HUGGING_FACE = {
    18: {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    50: {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]},
}


def hugging_face_name(name: str) -> str:
    """Name in `transformers.ResNetModel` of one of our tensors."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    if stem := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"embedder.embedder.{kinds[stem[1]]}.{stem[2]}"
    stage, block, rest = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name).groups()
    prefix = f"encoder.stages.{int(stage) - 1}.layers.{block}"
    if shortcut := re.fullmatch(r"downsample\.(\d)\.(\w+)", rest):
        return f"{prefix}.shortcut.{('convolution', 'normalization')[int(shortcut[1])]}.{shortcut[2]}"
    kind, number, tensor = re.fullmatch(r"(conv|bn)(\d)\.(\w+)", rest).groups()
    return f"{prefix}.layer.{int(number) - 1}.{kinds[kind]}.{tensor}"


def with_statistics(network: ResNet) -> ResNet:
    """Random running statistics, so that evaluation depends on them."""
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_outputs_equal_those_of_transformers_on_the_same_weights(depth):
    torch.manual_seed(0)
    ours = with_statistics(ResNet(depth, last_stride=2)).double().eval()
    theirs = ResNetModel(ResNetConfig(**HUGGING_FACE[depth])).double().eval()
    state = {hugging_face_name(name): tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    output = ours(images)
    expected = theirs(images).last_hidden_state
    assert output.map.shape == (2, HUGGING_FACE[depth]["hidden_sizes"][-1], 3, 2)
    torch.testing.assert_close(output.map, expected, rtol=1e-10, atol=1e-10)
    assert output.token is None


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_parameters_are_torchvisions_without_the_classifier(depth):
    with torch.device("meta"):
        network = ResNet(depth)
    width = 512 * network.layer4[0].expansion
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == TORCHVISION_PARAMETERS[depth] - 1000 * width - 1000


@torch.no_grad()
def test_last_stride_one_doubles_the_map_and_changes_the_last_stage_alone():
    torch.manual_seed(0)
    coarse, fine = ResNet(50, last_stride=2, width=8).eval(), ResNet(50, last_stride=1, width=8).eval()
    fine.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 64, 32)
    third = {}
    for name, network in (("coarse", coarse), ("fine", fine)):
        network.layer3.register_forward_hook(lambda *args, name=name: third.__setitem__(name, args[2]))
    assert coarse(images).map.shape == (1, 256, 2, 1)
    assert fine(images).map.shape == (1, 256, 4, 2)
    assert torch.equal(third["coarse"], third["fine"])


def test_convolutions_start_he_normal_by_fan_out():
    torch.manual_seed(0)
    weight = ResNet(18).layer4[0].conv1.weight  # 256 channels in, 512 out
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


@torch.no_grad()
def test_ibn_norms_half_of_the_channels_by_picture_and_half_by_batch():
    network = with_statistics(ResNet(18, width=8, ibn=True)).double().eval()
    mixed = {name for name, module in network.named_modules() if isinstance(module, InstanceBatchNorm)}
    assert mixed == {f"layer{stage}.{block}.bn1" for stage in (1, 2, 3) for block in (0, 1)}
    norm = network.layer2[0].bn1
    norm.IN.weight.uniform_(0.5, 2)
    norm.BN.bias.normal_()
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    own = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    learnt = x[:, 8:] - norm.BN.running_mean.view(-1, 1, 1)
    learnt = learnt / (norm.BN.running_var.view(-1, 1, 1) + 1e-5).sqrt() + norm.BN.bias.view(-1, 1, 1)
    found = norm(x)
    torch.testing.assert_close(found[:, :8], own[:, :8] * norm.IN.weight.view(-1, 1, 1))
    torch.testing.assert_close(found[:, 8:], learnt)


def test_ibn_has_as_many_parameters_as_without():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in ResNet(50, ibn=ibn).parameters()) for ibn in (False, True)]
    assert counts[0] == counts[1]


@torch.no_grad()
def test_ceil_pool_looks_at_other_places_of_a_map_of_the_same_size():
    torch.manual_seed(0)
    plain, ceil = ResNet(18, width=8).eval(), ResNet(18, width=8, ceil_pool=True).eval()
    ceil.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 32)
    found = ceil(images).map
    assert found.shape == plain(images).map.shape
    assert not torch.allclose(found, plain(images).map)
    x = ceil.bn1(ceil.conv1(images)).relu()
    # Windows of 3 begin at 0, 2, 4 …; the last row and column have windows of 2.
    windows = torch.nn.functional.pad(x, (0, 1, 0, 1), value=-1).unfold(2, 3, 2).unfold(3, 3, 2)
    torch.testing.assert_close(ceil.maxpool(x), windows.amax((4, 5)))


def test_width_scales_every_stage():
    with torch.device("meta"):
        small, full = ResNet(18, width=32), ResNet(18)
    for (name, a), (_, b) in zip(small.named_parameters(), full.named_parameters(), strict=True):
        expected = [n if i == 1 and n == 3 else n // 2 for i, n in enumerate(b.shape[:2])]
        assert list(a.shape) == expected + list(b.shape[2:]), name


@pytest.mark.parametrize("options", [{"depth": 49}, {"depth": 50, "last_stride": 3}])
def test_unknown_depths_and_strides_are_refused(options):
    with pytest.raises(
        InputError,
        match=r"depth=49 is unknown; choose 18, 34, |last_stride=3 is unknown; choose 1 or 2",
    ):
        ResNet(**options)


@pytest.mark.parametrize("width", [0, -8, 7.5, True])
def test_a_width_that_holds_no_channel_is_named(width):
    with pytest.raises(InputError, match=r"width=\S+ must be a whole number, 1 or more"):
        ResNet(18, width=width)
