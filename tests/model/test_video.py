"""Networks of clips against the network of pictures, plain loops, and networks built of `Conv3d`."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.video import Aligned, ClipResNet, Inflated, NonLocal

KINDS = (("i3d", False), ("ap3d", False), ("none", True), ("ap3d", True))
LENGTH, HEIGHT, WIDTH = 4, 64, 32


def frames(clips: int = 2, channels: int = 3, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(clips * LENGTH, channels, height, width, generator=generator, dtype=torch.float64)


def stirred(network: nn.Module) -> nn.Module:
    """Random weights everywhere, also where a network begins with zeros, and statistics that matter."""
    generator = torch.Generator().manual_seed(6)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.add_(noise * (0.3 / math.sqrt(max(1, tensor[0].numel() if tensor.ndim > 1 else 1))))
    return network.double().eval()


def network(kind: tuple[str, bool]) -> ClipResNet:
    torch.manual_seed(0)
    return ClipResNet(kind[0], non_local=kind[1], width=4).double().eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_from_weights_of_pictures_a_clip_begins_as_its_frames_one_by_one(kind: tuple[str, bool]) -> None:
    pictures = stirred(ResNet(50, width=4))
    clips = network(kind)
    clips.load_state_dict(clips.completed(pictures.state_dict()))
    images = frames()
    assert not torch.equal(images[0], images[1])
    torch.testing.assert_close(clips(images, LENGTH).map, pictures(images).map)


@torch.no_grad()
def test_a_still_clip_gives_the_picture_in_frames_that_have_both_neighbours() -> None:
    """Carreira and Zisserman's test of inflation: a kernel spread over time sums to that of pictures."""
    torch.manual_seed(1)
    spatial = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    block = Inflated(3, 5)
    whole = spatial.weight.clone()
    spatial.weight.copy_(whole / 3)
    block.weight.copy_((whole / 3).unsqueeze(2).expand(-1, -1, 2, -1, -1))
    still = torch.randn(1, 3, 6, 4).expand(5, -1, -1, -1)
    seen = block(still, spatial, 5)
    expected = F.conv2d(still, whole, padding=1)
    torch.testing.assert_close(seen[1:4], expected[1:4])
    torch.testing.assert_close(seen[0], expected[0] * 2 / 3)  # before the first frame it is black


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_an_inflated_convolution_is_that_of_torch_in_three_dimensions(stride: int) -> None:
    torch.manual_seed(2)
    spatial = nn.Conv2d(3, 5, 3, stride, padding=1, bias=False)
    block = Inflated(3, 5)
    block.weight.normal_()
    plain = nn.Conv3d(3, 5, 3, (1, stride, stride), padding=1, bias=False)
    before, after = block.weight.unbind(2)
    plain.weight.copy_(torch.stack([before, spatial.weight, after], 2))
    images = torch.randn(2 * LENGTH, 3, 8, 6)
    expected = plain(images.view(2, LENGTH, 3, 8, 6).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(block(images, spatial, LENGTH), expected)


def rebuilt(frame: Tensor, neighbour: Tensor | None, block: Aligned) -> Tensor:
    """Equations 1 to 4 of Gu et al., ECCV 2020, position by position; (C, h, w) each."""
    channels, height, width = frame.shape
    out = torch.zeros_like(frame)
    if neighbour is None:
        return out
    places = [(i, j) for i in range(height) for j in range(width)]
    g = block.meaning.weight[:, :, 0, 0]
    for i in places:
        mine = g @ frame[:, *i]
        likeness = []
        for j in places:
            other = g @ neighbour[:, *j]
            likeness.append(block.temperature * float(mine @ other) / float(mine.norm() * other.norm()))
        total = sum(math.exp(one) for one in likeness)
        y = sum(
            (math.exp(one) / total * neighbour[:, *j] for one, j in zip(likeness, places, strict=True)),
            torch.zeros(channels, dtype=frame.dtype),
        )
        if block.attention:
            p = block.of_frame.weight[:, :, 0, 0] @ frame[:, *i]
            q = block.of_neighbour.weight[:, :, 0, 0] @ y
            weight = float((block.weigh.weight[0, :, 0, 0] * p * q).sum())
            y = y / (1 + math.exp(-weight))
        out[:, *i] = y
    return out


@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_an_appearance_preserving_convolution_is_that_of_its_equations(attention: bool) -> None:
    torch.manual_seed(3)
    block = Aligned(32, temperature=3.0, attention=attention).double()
    block.temporal.normal_()
    spatial = nn.Conv2d(4, 32, 3, stride=2, padding=1, bias=False).double()
    images = frames(2, 4, 6, 4)
    seen = spatial(images)
    found = block(images, spatial, LENGTH)
    for clip in range(2):
        own = seen[clip * LENGTH : (clip + 1) * LENGTH]
        for t in range(LENGTH):
            before = rebuilt(own[t], own[t - 1] if t > 0 else None, block)
            after = rebuilt(own[t], own[t + 1] if t + 1 < LENGTH else None, block)
            three = zip(block.temporal.unbind(2), (before, own[t], after), strict=True)
            expected = own[t] + sum(torch.einsum("oc,chw->ohw", kernel, one) for kernel, one in three)
            torch.testing.assert_close(found[clip * LENGTH + t], expected)


def test_no_gradient_reaches_frames_through_the_weight_of_what_was_rebuilt() -> None:
    torch.manual_seed(4)
    block = Aligned(32).double()
    nn.init.normal_(block.weigh.weight)
    plain = Aligned(32, attention=False).double()
    plain.meaning = block.meaning
    seen = frames(1, 32, 3, 2).requires_grad_()
    weighed, unweighed = block.neighbours(seen, LENGTH), plain.neighbours(seen, LENGTH)
    weights = [(a / b).detach().nan_to_num() for a, b in zip(weighed, unweighed, strict=True)]
    assert weights[0][LENGTH // 2].std() > 0.01
    constant = sum((w * b).square().sum() for w, b in zip(weights, unweighed, strict=True))
    (expected,) = torch.autograd.grad(constant, seen, retain_graph=True)
    whole = sum(a.square().sum() for a in weighed)
    (found,) = torch.autograd.grad(whole, seen, retain_graph=True)
    torch.testing.assert_close(found, expected)
    assert all(one.grad_fn is not None for one in weighed)
    whole.backward()
    assert block.of_frame.weight.grad.abs().max() > 0


@torch.no_grad()
def test_a_non_local_block_is_that_of_its_equation() -> None:
    block = NonLocal(6)
    stirred(block)
    images = frames(2, 6, 5, 7)  # the last row and column are in no square of four
    found = block(images, LENGTH)

    def mapped(layer: nn.Conv2d, x: Tensor) -> Tensor:
        return layer.weight[:, :, 0, 0] @ x + layer.bias

    for clip in range(2):
        own = images[clip * LENGTH : (clip + 1) * LENGTH]
        keys, values = [], []
        for frame in own:
            for top in range(0, 4, 2):
                for left in range(0, 6, 2):
                    cells = [frame[:, top + i, left + j] for i in (0, 1) for j in (0, 1)]
                    keys.append(torch.stack([mapped(block.key, x) for x in cells]).amax(0))
                    values.append(torch.stack([mapped(block.value, x) for x in cells]).amax(0))
        for t, (i, j) in ((0, (0, 0)), (2, (3, 5)), (3, (1, 2))):
            x = own[t, :, i, j]
            weights = torch.stack([mapped(block.query, x) @ key for key in keys]).softmax(0)
            y = mapped(block.out, (weights[:, None] * torch.stack(values)).sum(0))
            norm = block.norm
            y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            torch.testing.assert_close(found[clip * LENGTH + t, :, i, j], x + y)


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other() -> None:
    for kind in KINDS:
        clips = stirred(network(kind))
        images = frames(2)
        together = clips(images, LENGTH).map
        torch.testing.assert_close(together[:LENGTH], clips(images[:LENGTH], LENGTH).map)
        # And frames of one do: turned round, a clip is another one.
        backwards = clips(images[:LENGTH].flip(0), LENGTH).map.flip(0)
        assert (kind[0] == "none") == torch.allclose(backwards, together[:LENGTH])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_everything_that_is_trained(kind: tuple[str, bool]) -> None:
    clips = stirred(network(kind)).train()
    clips(frames(), LENGTH).map.square().sum().backward()
    for name, parameter in clips.named_parameters():
        assert parameter.grad is not None, name
        # A key's bias shifts all likenesses alike, and a softmax does not see it.
        assert parameter.grad.abs().max() > 0 or name.endswith("key.bias"), name


class Recorded(nn.Module):
    """A base-recipe block in `Conv3d`, by its names: (B, C, T, h, w)."""

    def __init__(self, channels: int, width: int, stride: int, kind: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        side = (1, stride, stride)
        if kind == "i3d":
            self.conv2 = nn.ModuleDict({"conv3d": nn.Conv3d(width, width, 3, side, 1, bias=False)})
        elif kind == "ap3d":
            narrow = width // 16
            one = {name: nn.Conv3d(width, narrow, 1, bias=False) for name in MAPPINGS}
            one["contrastive_att_net"] = nn.Sequential(nn.Conv3d(narrow, 1, 1, bias=False), nn.Sigmoid())
            self.conv2 = nn.ModuleDict(
                {
                    "APM": nn.ModuleDict(one),
                    "spatial_conv3d": nn.Conv3d(width, width, (1, 3, 3), side, (0, 1, 1), bias=False),
                    "temporal_conv3d": nn.Conv3d(width, width, (3, 1, 1), (3, 1, 1), bias=False),
                }
            )
        else:
            self.conv2 = nn.Conv3d(width, width, (1, 3, 3), side, (0, 1, 1), bias=False)
        self.kind = kind
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(4 * width)
        self.downsample = None
        if channels != 4 * width or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv3d(channels, 4 * width, 1, side, bias=False), nn.BatchNorm3d(4 * width)
            )

    def middle(self, x: Tensor) -> Tensor:
        if self.kind == "none":
            return self.conv2(x)
        if self.kind == "i3d":
            return self.conv2["conv3d"](x)
        x = self.conv2["spatial_conv3d"](x)
        parts = self.conv2["APM"]
        clips, channels, length, height, width = x.shape
        meaning = F.normalize(parts["semantic_mapping"](x), dim=1)
        threes = []
        for t in range(length):
            three = []
            for other in (t - 1, t, t + 1):
                if other == t:
                    three.append(x[:, :, t])
                elif not 0 <= other < length:
                    three.append(torch.zeros_like(x[:, :, t]))
                else:
                    mine, theirs = meaning[:, :, t].flatten(2), meaning[:, :, other].flatten(2)
                    like = (4 * mine.transpose(1, 2) @ theirs).softmax(2)
                    y = (x[:, :, other].flatten(2) @ like.transpose(1, 2)).view(
                        clips, channels, height, width
                    )
                    p, q = parts["x_mapping"](x[:, :, t, None]), parts["n_mapping"](y[:, :, None])
                    three.append(y * parts["contrastive_att_net"](p * q)[:, :, 0])
            threes += three
        return x + self.conv2["temporal_conv3d"](torch.stack(threes, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.middle(y)).relu()
        return (self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))).relu()


MAPPINGS = ("semantic_mapping", "x_mapping", "n_mapping")


class RecordedNonLocal(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 2
        self.theta = nn.Conv3d(channels, narrow, 1)
        self.phi = nn.Sequential(nn.Conv3d(channels, narrow, 1), nn.MaxPool3d((1, 2, 2)))
        self.g = nn.Sequential(nn.Conv3d(channels, narrow, 1), nn.MaxPool3d((1, 2, 2)))
        self.W = nn.Sequential(nn.Conv3d(narrow, channels, 1), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).flatten(2) for part in (self.theta, self.phi, self.g))
        seen = v @ (q.transpose(1, 2) @ k).softmax(2).transpose(1, 2)
        return x + self.W(seen.unflatten(2, x.shape[2:]))


class RecordedNetwork(nn.Module):
    """The base recipe's video network with the names of its checkpoints, built here of torch's own layers."""

    def __init__(self, kind: str, non_local: bool, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        channels = width
        for stage, (blocks, stride) in enumerate(((3, 1), (4, 2), (6, 2), (3, 1))):
            layers: list[nn.Module] = []
            for place in range(blocks):
                in_time = stage in (1, 2) and place % 2 == 0 and place < blocks
                narrow = width * 2**stage
                layers.append(
                    Recorded(channels, narrow, stride if place == 0 else 1, kind if in_time else "none")
                )
                channels = 4 * narrow
                if non_local and stage in (1, 2) and place % 2 == 1:
                    layers.append(RecordedNonLocal(channels))
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm1d(channels)

    def maps(self, clips: Tensor) -> Tensor:
        x = F.max_pool3d(self.bn1(self.conv1(clips)).relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        return x

    def forward(self, clips: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, C): maximum over a frame, mean over frames, batch norm."""
        return self.bn(self.maps(clips).flatten(3).amax(3).mean(2))


@pytest.fixture(params=KINDS, ids=str)
def recorded(request: pytest.FixtureRequest) -> tuple[tuple[str, bool], RecordedNetwork]:
    torch.manual_seed(8)
    kind: tuple[str, bool] = request.param
    there = RecordedNetwork(*kind, width=8)
    return kind, there


@torch.no_grad()
def test_tensors_of_the_base_recipes_networks_give_what_its_layers_give(
    recorded: tuple[tuple[str, bool], RecordedNetwork],
) -> None:
    kind, there = recorded
    stirred(there)
    state = {name: tensor for name, tensor in there.state_dict().items() if not name.startswith("bn.")}
    assert {tensor.ndim for name, tensor in state.items() if "conv" in name} == {5}
    here = ClipResNet(kind[0], non_local=kind[1], width=8).double().eval()
    here.load_state_dict(here.completed(state))
    images = frames()
    clips = images.view(2, LENGTH, 3, HEIGHT, WIDTH).transpose(1, 2)
    expected = there.maps(clips).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(here(images, LENGTH).map, expected)


@torch.no_grad()
def test_a_network_of_single_frames_of_the_base_recipe_is_one_of_pictures() -> None:
    there = stirred(RecordedNetwork("none", False, width=4))
    state = {name: tensor for name, tensor in there.state_dict().items() if not name.startswith("bn.")}
    images = frames()
    clips = images.view(2, LENGTH, 3, HEIGHT, WIDTH).transpose(1, 2)
    expected = there.maps(clips).transpose(1, 2).flatten(0, 1)
    for here in (ResNet(50, width=4), ClipResNet("ap3d", non_local=True, width=4)):
        here.double().eval().load_state_dict(here.completed(state))
        found = here(images, LENGTH) if here.looks_across_frames else here(images)
        torch.testing.assert_close(found.map, expected)


def test_a_file_of_its_own_is_taken_as_it_is() -> None:
    for kind in KINDS:
        own = stirred(network(kind)).state_dict()
        found = network(kind).completed(own)
        assert found.keys() == own.keys()
        assert all(found[name] is tensor for name, tensor in own.items())


def test_what_is_no_network_of_clips_is_refused() -> None:
    with pytest.raises(InputError, match=r"nothing looks across frames .* model/student=c2d_resnet50"):
        ClipResNet("none")
    with pytest.raises(InputError, match="time=p3d"):
        ClipResNet("p3d")
    with pytest.raises(InputError, match="depth=18"):
        ClipResNet("i3d", depth=18)
    with pytest.raises(InputError, match="temperature=0"):
        ClipResNet("ap3d", temperature=0)
