"""ResNets that look at the frames of a clip together: I3D, AP3D and non-local blocks in a network of pictures.

Frames are pictures side by side, (B x T, C, h, w), the T frames of a clip in a row: every layer that looks at
one frame at a time is that of the network of pictures, under its name, so its weights fit as they are. What
looks across frames is beside it, and begins by adding nothing: a clip then gives what its frames give one by
one.

C2D, the base recipe's usual choice, has no such layer: it is `ResNet` with frames pooled over time (`ClipStudent`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.model.backbone import BackboneOutput
from clip3dreid.model.resnet import Bottleneck, ResNet

KINDS = ("i3d", "ap3d", "none")
"""How blocks look across frames."""
_WITH_TIME: tuple[tuple[int, ...], ...] = ((), (0, 2), (0, 2, 4), ())
_WITH_NON_LOCAL: tuple[tuple[int, ...], ...] = ((), (1, 3), (1, 3, 5), ())
"""Blocks of the four stages that look across frames, and those with a non-local block behind them: the places
of Gu et al., ECCV 2020, section 4.3."""


def by_clip(frames: Tensor, length: int) -> Tensor:
    """View (B x T, ...) as (B, T, ...)."""
    return frames.reshape(-1, length, *frames.shape[1:])


class _InTime(Protocol):
    """Something across frames that stands in for a 3x3 convolution of single frames."""

    def __call__(self, frames: Tensor, spatial: nn.Conv2d, length: int) -> Tensor: ...


class Inflated(nn.Module):
    """A 3x3x3 convolution: that of single frames is its middle, and its two other slices are here, zero at first.

    Source: Carreira and Zisserman, CVPR 2017, section 2.3; that the middle alone begins as the network of pictures is
    from Gu et al., ECCV 2020, released code.

    Args:
        channels: of the input.
        width: of the output.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, channels, 2, 3, 3))

    def forward(self, frames: Tensor, spatial: nn.Conv2d, length: int) -> Tensor:
        """Map (B x T, channels, h, w) to (B x T, width, h / stride, w / stride); beyond its ends a clip is black."""
        before, after = self.weight.unbind(2)
        kernel = torch.stack([before, spatial.weight, after], 2)
        clips = by_clip(frames, length).transpose(1, 2)
        stride, padding = spatial.stride[0], cast(int, spatial.padding[0])
        seen = F.conv3d(clips, kernel, stride=(1, stride, stride), padding=(1, padding, padding))
        return seen.transpose(1, 2).flatten(0, 1)


class Aligned(nn.Module):
    """AP3D: each frame is joined by its two neighbours, rebuilt to lie as it does (Gu et al., ECCV 2020).

    With x_i the feature at position i of a frame and z_j those of a neighbour, the neighbour is rebuilt
    (equations 1 to 3) as y_i = sum_j softmax_j(s cos(g(x_i), g(z_j))) z_j, and weighed (equation 4) by
    sigmoid(w . (p(x_i) * q(y_i))), through whose maps p and q no gradient reaches the features. A 3x1x1
    convolution over the neighbour before, the frame and the neighbour behind is added to the frame (figure 4
    c). Beyond its ends a clip is black.

    Args:
        channels: C, of the frames behind the convolution of single frames.
        temperature: s.
        attention: weigh what was rebuilt.
    """

    def __init__(self, channels: int, temperature: float = 4.0, attention: bool = True) -> None:
        super().__init__()
        check_number("temperature", temperature, Range(0, above=True))
        narrow = max(1, channels // 16)
        self.temperature = temperature
        self.meaning = nn.Conv2d(channels, narrow, 1, bias=False)
        self.attention = attention
        if attention:
            self.of_frame = nn.Conv2d(channels, narrow, 1, bias=False)
            self.of_neighbour = nn.Conv2d(channels, narrow, 1, bias=False)
            self.weigh = nn.Conv2d(narrow, 1, 1, bias=False)
        self.temporal = nn.Parameter(torch.zeros(channels, channels, 3))

    def forward(self, frames: Tensor, spatial: nn.Conv2d, length: int) -> Tensor:
        """Map (B x T, channels, h, w) to (B x T, C, h / stride, w / stride)."""
        seen: Tensor = spatial(frames)
        before, after = self.neighbours(seen, length)
        # Three 1x1 convolutions, of three frames each, as one.
        kernel = self.temporal.transpose(1, 2).flatten(1)[..., None, None]
        return seen + F.conv2d(torch.cat([before, seen, after], 1), kernel)

    def neighbours(self, frames: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return, for each frame (B x T, C, h, w), the one before and the one behind, rebuilt to lie as it does."""
        meaning = F.normalize(self.meaning(frames), dim=1)
        return self._rebuilt(frames, meaning, length, 1), self._rebuilt(frames, meaning, length, -1)

    def _rebuilt(self, frames: Tensor, meaning: Tensor, length: int, shift: int) -> Tensor:
        other, other_meaning = (_shifted(one, length, shift) for one in (frames, meaning))
        rebuilt = _attention(_tokens(meaning), _tokens(other_meaning), _tokens(other), self.temperature)
        neighbour = _frames(rebuilt, frames)
        if not self.attention:
            return neighbour
        alike = self.of_frame(frames.detach()) * self.of_neighbour(neighbour.detach())
        return neighbour * torch.sigmoid(self.weigh(alike))


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return softmax(scale q k^T) v of (N, L, c), (N, S, c) and (N, S, C); as one head, as ONNX wants it."""
    one = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=scale)
    return one[:, 0]


def _tokens(frames: Tensor) -> Tensor:
    """View (N, C, h, w) as (N, h x w, C)."""
    return frames.flatten(2).transpose(1, 2)


def _frames(tokens: Tensor, like: Tensor) -> Tensor:
    """View (N, h x w, C) as (N, C, h, w), with the sides of other frames."""
    return tokens.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[2:])


def _shifted(frames: Tensor, length: int, shift: int) -> Tensor:
    """Return, in the place of each frame, the one before (shift 1) or behind (-1); black beyond a clip's ends."""
    clips = by_clip(frames, length)
    nothing = torch.zeros_like(clips[:, :1])
    parts = [nothing, clips[:, :-1]] if shift > 0 else [clips[:, 1:], nothing]
    return torch.cat(parts, 1).flatten(0, 1)


class NonLocal(nn.Module):
    """Every position of every frame looks at all positions of the clip (Wang et al., CVPR 2018, equation 6).

    z = W y + x with y = softmax(q(x) k(x)^T) v(x); keys and values are taken at every second place along both sides
    (their figure 2 and section 3.3, subsampled by maximum pooling). The batch norm of W begins at 0.

    Args:
        channels: C, of the map; q, k and v have half of it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(1, channels // 2)
        self.query = nn.Conv2d(channels, narrow, 1)
        self.key = nn.Conv2d(channels, narrow, 1)
        self.value = nn.Conv2d(channels, narrow, 1)
        self.out = nn.Conv2d(narrow, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm.weight)

    def forward(self, frames: Tensor, length: int) -> Tensor:
        """Map (B x T, C, h, w) to the same shape."""
        query = self._positions(self.query(frames), length)
        key = self._positions(F.max_pool2d(self.key(frames), 2), length)
        value = self._positions(F.max_pool2d(self.value(frames), 2), length)
        seen = _attention(query, key, value, 1.0)
        seen = seen.reshape(frames.shape[0], -1, seen.shape[2])
        added: Tensor = self.norm(self.out(_frames(seen, frames)))
        return frames + added

    def _positions(self, frames: Tensor, length: int) -> Tensor:
        """View (B x T, C, h, w) as (B, T x h x w, C)."""
        return by_clip(_tokens(frames), length).flatten(1, 2)


class ClipBottleneck(Bottleneck):
    """A bottleneck whose middle looks across frames."""

    def __init__(self, block: Bottleneck, time: Inflated | Aligned) -> None:
        nn.Module.__init__(self)
        for name, part in block.named_children():
            self.add_module(name, part)
        if block.downsample is None:
            self.downsample = None
        self.time = time

    def forward(self, x: Tensor, length: int = 1) -> Tensor:
        """Map (B x T, channels, h, w) to (B x T, 4 x width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(cast(_InTime, self.time)(y, self.conv2, length)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class ClipResNet(ResNet):
    """ResNet-50 or -101 some of whose blocks look across the frames of a clip; with random weights, as `ResNet`.

    Args:
        time: `i3d` (`Inflated`), `ap3d` (`Aligned`), or `none`, where non-local blocks alone do.
        non_local: non-local blocks behind every second block of the middle stages.
        depth: 50 or 101; the second and third stage's first five blocks have what looks across frames.
        last_stride: as in `ResNet`.
        width: as in `ResNet`.
        temperature: as in `Aligned`.
        attention: as in `Aligned`.

    Raises:
        InputError: if one of them is none of those.
    """

    looks_across_frames = True

    def __init__(
        self,
        time: str,
        non_local: bool = False,
        depth: int = 50,
        last_stride: int = 1,
        width: int = 64,
        temperature: float = 4.0,
        attention: bool = True,
    ) -> None:
        choose("ClipResNet: depth", depth, (50, 101))
        choose("ClipResNet: time", time, KINDS)
        if time == "none" and not non_local:
            raise InputError(
                "ClipResNet: nothing looks across frames with time=none and non_local=false; "
                "set non_local=true, or take model/student=c2d_resnet50"
            )
        super().__init__(depth, last_stride, width)
        for number, (in_time, with_non_local) in enumerate(zip(_WITH_TIME, _WITH_NON_LOCAL, strict=True), 1):
            blocks: list[nn.Module] = []
            for place, block in enumerate(cast(Sequence[Bottleneck], getattr(self, f"layer{number}"))):
                if time != "none" and place in in_time:
                    middle = block.conv2.out_channels
                    kind = (
                        Inflated(block.conv2.in_channels, middle)
                        if time == "i3d"
                        else Aligned(middle, temperature, attention)
                    )
                    blocks.append(ClipBottleneck(block, kind))
                else:
                    blocks.append(block)
                if non_local and place in with_non_local:
                    blocks.append(NonLocal(block.conv3.out_channels))
            setattr(self, f"layer{number}", nn.Sequential(*blocks))

    def forward(self, images: Tensor, length: int = 1) -> BackboneOutput:
        """Map normalised frames (B x T, 3, H, W), T = `length`, to the map (B x T, C, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x, length) if isinstance(block, ClipBottleneck | NonLocal) else block(x)
        return BackboneOutput(x, None)

    def completed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make of the tensors of a network of pictures, or of the base recipe's video networks, those that fit.

        Tensors of pictures keep their place behind non-local blocks, and what looks across frames stays as it is.
        Of Simple-CCReID's files, whose every convolution is one of clips, single frames' are taken as such.

        Args:
            state: by our names, without the part's (`layer2.0.conv2.weight`).
        """
        found = super().completed(_ours(state) if any(re.search(_THEIRS, name) for name in state) else state)
        own = self.state_dict()
        across = {name: own[name] for name in self._across()}
        if not across.keys() & found.keys():
            found = {self._shifted(name): tensor for name, tensor in found.items()} | across
        return found

    def _across(self) -> list[str]:
        """Return the names of tensors that look across frames."""
        return [
            f"{place}.{name}"
            for place, part in self.named_modules()
            if isinstance(part, Inflated | Aligned | NonLocal)
            for name in part.state_dict()
        ]

    def _shifted(self, name: str) -> str:
        """Return where a tensor of a network of pictures stands among the non-local blocks."""
        match = re.match(r"layer(\d)\.(\d+)\.(.*)", name)
        if match is None:
            return name
        stage = cast(nn.Sequential, getattr(self, f"layer{match[1]}"))
        places = [place for place, block in enumerate(stage) if not isinstance(block, NonLocal)]
        if int(match[2]) >= len(places):
            return name
        return f"layer{match[1]}.{places[int(match[2])]}.{match[3]}"


# Simple-CCReID's video networks: where their names differ from these.
_RULES = (
    (r"\.conv2\.spatial_conv3d\.", ".conv2."),
    (r"\.conv2\.temporal_conv3d\.weight$", ".time.temporal"),
    (r"\.conv2\.APM\.semantic_mapping\.", ".time.meaning."),
    (r"\.conv2\.APM\.x_mapping\.", ".time.of_frame."),
    (r"\.conv2\.APM\.n_mapping\.", ".time.of_neighbour."),
    (r"\.conv2\.APM\.contrastive_att_net\.0\.", ".time.weigh."),
    (r"\.theta\.", ".query."),
    (r"\.phi\.0\.", ".key."),
    (r"\.g\.0\.", ".value."),
    (r"\.W\.0\.", ".out."),
    (r"\.W\.1\.", ".norm."),
)


_THEIRS = r"\.conv2\.(conv3d|spatial_conv3d)\.|\.(theta|phi\.0)\."


def _ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the base recipe's video networks, and take theirs apart as they are here."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".conv2.conv3d.weight"):
            place = name.removesuffix("conv2.conv3d.weight")
            before, middle, after = tensor.unbind(2)
            found[f"{place}conv2.weight"] = middle
            found[f"{place}time.weight"] = torch.stack([before, after], 2)
            continue
        for pattern, ours in _RULES:
            name = re.sub(pattern, ours, name)
        found[name] = tensor.flatten(2) if name.endswith(".time.temporal") else tensor
    return found
