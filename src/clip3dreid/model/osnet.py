"""OSNet: residual blocks of four streams with receptive fields of 3, 5, 7 and 9, mixed by a gate that they share.

Source: Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019, and "Learning
Generalisable Omni-Scale Representations for Person Re-Identification", TPAMI 2021 (OSNet-AIN).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number
from clip3dreid.model.backbone import Backbone, BackboneOutput

STREAMS = 4
"""Of a block; stream t is t light convolutions deep (Zhou et al., ICCV 2019, equation 2, T = 4)."""
REDUCTION, SQUEEZE = 4, 16
"""Width of a block over that of its streams, and of a stream over that of the gate's hidden layer."""
STAGES = (4, 6, 8)
"""Width of the three stages over that of the stem (Zhou et al., ICCV 2019, table 1)."""
INSTANCE_NORMS = ((True, True), (False, True), (True, False))
"""Blocks of OSNet-AIN with instance norm inside the residual, stage by stage, as its search found them."""


class OSNet(Backbone):
    """OSNet up to its last feature map (B, 8 x width, H/16, W/16), before the average and the linear layer.

    Args:
        width: channels of the stem: 64 is x1.0, 48 x0.75, 32 x0.5, 16 x0.25.
        instance_norm: the network of the TPAMI paper, OSNet-AIN: instance norm in the stem and in four of the six
            blocks, for pictures of cameras that it was not trained on.

    Weights start as a ResNet's do: convolutions He-normal by their output, norms at identity.

    Raises:
        InputError: if the width is not an even whole number.
    """

    def __init__(self, width: int = 64, instance_norm: bool = False) -> None:
        super().__init__()
        check_number("width", width, Range(2), whole=True)
        if width % 2:
            raise InputError(f"OSNet: width={width} must be even, for the streams of its second stage")
        self.stem = _Convolution(3, width, 7, stride=2, instance_norm=instance_norm)
        self.map_channels = STAGES[-1] * width
        before, stages, transitions = width, [], []
        for factor, normed in zip(STAGES, INSTANCE_NORMS, strict=True):
            out = factor * width
            blocks = [
                _Block(before if number == 0 else out, out, instance_norm and inside)
                for number, inside in enumerate(normed)
            ]
            stages.append(nn.Sequential(*blocks))
            transitions.append(_Convolution(out, out))
            before = out
        self.stages = nn.ModuleList(stages)
        # The last stage is followed by a convolution alone, the others by one and a halving.
        self.transitions = nn.ModuleList(transitions)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> BackboneOutput:
        """Map normalised pictures (B, 3, H, W) to the map."""
        x = F.max_pool2d(self.stem(images), 3, stride=2, padding=1)
        for number, (stage, transition) in enumerate(zip(self.stages, self.transitions, strict=True)):
            x = transition(stage(x))
            if number < len(STAGES) - 1:
                x = F.avg_pool2d(x, 2)
        return BackboneOutput(x, None)


class _Convolution(nn.Module):
    """A convolution without bias, its norm, and ReLU unless it is linear."""

    def __init__(
        self,
        width: int,
        out: int,
        side: int = 1,
        stride: int = 1,
        linear: bool = False,
        instance_norm: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, side, stride, side // 2, bias=False)
        self.norm: nn.Module = nn.InstanceNorm2d(out, affine=True) if instance_norm else nn.BatchNorm2d(out)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(x))
        return normed if self.linear else F.relu(normed)


class _LightConvolution(nn.Module):
    """A 3x3 convolution in two: 1x1 across channels, then 3x3 in each (ICCV 2019, section 3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.depthwise(self.pointwise(x))))


class _Gate(nn.Module):
    """Weights in 0..1 for the channels of a stream, out of its mean over positions (ICCV 2019, equation 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(width // SQUEEZE, 1)
        self.squeeze = nn.Conv2d(width, hidden, 1)
        self.excite = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map a stream (B, C, h, w) to what the gate lets through of it."""
        mean = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))


class _Block(nn.Module):
    """A bottleneck whose middle is the gated sum of the streams (ICCV 2019, figure 4b)."""

    def __init__(self, width: int, out: int, instance_norm: bool) -> None:
        super().__init__()
        inner = out // REDUCTION
        self.reduce = _Convolution(width, inner)
        self.streams = nn.ModuleList(
            nn.Sequential(*(_LightConvolution(inner) for _ in range(depth)))
            for depth in range(1, STREAMS + 1)
        )
        self.gate = _Gate(inner)
        self.expand = _Convolution(inner, out, linear=True, instance_norm=instance_norm)
        self.shortcut = _Convolution(width, out, linear=True) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to (B, out, h, w)."""
        reduced = self.reduce(x)
        mixed = sum(self.gate(stream(reduced)) for stream in self.streams)
        return F.relu(self.expand(mixed) + self.shortcut(x))
