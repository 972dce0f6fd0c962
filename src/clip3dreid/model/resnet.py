"""ResNet for re-identification: parameters named as torchvision names them, the last stride a choice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.model.backbone import Backbone, BackboneOutput


class InstanceBatchNorm(nn.Module):
    """Instance norm for the first half of the channels, batch norm for the others.

    Source: Pan et al., ECCV 2018, figure 3 (IBN-a). Names of tensors are those of the published weights.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = width // 2
        self.IN = nn.InstanceNorm2d(self.first, affine=True)
        self.BN = nn.BatchNorm2d(width - self.first)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        instance, batch = x[:, : self.first].contiguous(), x[:, self.first :].contiguous()
        return torch.cat([self.IN(instance), self.BN(batch)], 1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, ibn: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = InstanceBatchNorm(width) if ibn else nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al., CVPR 2016, figure 5 right).

    The stride is in the 3x3 convolution, as in torchvision's weights ("v1.5"), not in the first 1x1.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, ibn: bool = False) -> None:
        super().__init__()
        out = self.expansion * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = InstanceBatchNorm(width) if ibn else nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, 4 x width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if channels == out and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


# Depth: the kind of block and how many of it in each of the four stages (He et al., table 1).
STAGES: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(Backbone):
    """ResNet up to its last feature map.

    Args:
        depth: 18, 34, 50 or 101.
        last_stride: of the last stage: 2 as on ImageNet (map H/32 x W/32), 1 as is usual in
            re-identification (H/16 x W/16; Luo et al., CVPRW 2019). Weights fit either.
        width: channels of the first stage; 64 is the published network, less makes a small one that can
            only be trained from scratch.
        ibn: the network of Pan et al., ECCV 2018 (IBN-a): half of the channels behind the first convolution of every
            block but the last stage's have instance norm.
        ceil_pool: the max pooling behind the first convolution has no padding and rounds sizes up, as in fast-reid
            since its version 0.3; the map has the same size, and looks at other places. Weights fit either.

    Weights start as torchvision's do: convolutions He-normal by their output, batch norms at identity.

    Raises:
        InputError: if the depth or the stride is not one of those.
    """

    def __init__(
        self,
        depth: int,
        last_stride: int = 1,
        width: int = 64,
        ibn: bool = False,
        ceil_pool: bool = False,
    ) -> None:
        super().__init__()
        choose("ResNet: depth", depth, STAGES)
        choose("ResNet: last_stride", last_stride, (1, 2))
        check_number("width", width, Range(1), whole=True)
        block, (first, second, third, fourth) = STAGES[depth]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=0 if ceil_pool else 1, ceil_mode=ceil_pool)
        out = block.expansion * width
        self.map_channels = 8 * out
        self.layer1 = _stage(block, width, width, first, 1, ibn)
        self.layer2 = _stage(block, out, 2 * width, second, 2, ibn)
        self.layer3 = _stage(block, 2 * out, 4 * width, third, 2, ibn)
        self.layer4 = _stage(block, 4 * out, 8 * width, fourth, last_stride)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> BackboneOutput:
        """Map normalised pictures (B, 3, H, W) to the map (B, C, h, w); C is 512 x expansion x width / 64."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return BackboneOutput(self.layer4(self.layer3(self.layer2(self.layer1(x)))), None)


def _stage(
    block: type[BasicBlock | Bottleneck],
    channels: int,
    width: int,
    blocks: int,
    stride: int,
    ibn: bool = False,
) -> nn.Sequential:
    rest = (block(block.expansion * width, width, 1, ibn) for _ in range(blocks - 1))
    return nn.Sequential(block(channels, width, stride, ibn), *rest)
