"""TinyViT: convolutions at high resolution, attention in windows below.

Source: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", ECCV 2022. Names of tensors
are those of the published weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.model.backbone import Backbone, BackboneOutput

STAGES = 4
EXPANSION = 4
"""Width inside a block over its own, of convolutions and of the two linear layers alike."""


class TinyViT(Backbone):
    """Four stages at 1/4, 1/8, 1/16 and 1/32 of the picture: the first of convolutions, the others of attention.

    The map (B, widths[3], H/32, W/32), sizes rounded up, is the last stage's after its layer norm; there is no class
    token. Pictures may be of any size: maps are padded to whole windows, as the published network does.

    Args:
        widths: channels of the four stages.
        depths: blocks of each.
        heads: of attention in each; the first stage has none and ignores its number.
        windows: side, in positions, of the squares that attention stays in; likewise.
        drop_path: probability of leaving out the last block's branches in training, rising from 0 at the first.

    Raises:
        InputError: if the four are not of four numbers, heads do not divide widths, or `drop_path` is not in 0..1.

    Source: Wu et al., ECCV 2022, section 3.3 and table 2; the authors' released code.
    """

    example_size = (224, 224)

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        windows: Sequence[int],
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check(widths, depths, heads, windows, drop_path)
        self.patch_embed = nn.Sequential(OrderedDict(seq=_stem(widths[0])))
        last = max(sum(depths) - 1, 1)
        chances = (drop_path * block / last for block in range(sum(depths)))
        stages = []
        for stage in range(STAGES):
            width = widths[stage]
            blocks = [
                _ConvolutionBlock(width, next(chances))
                if stage == 0
                else _AttentionBlock(width, heads[stage], windows[stage], next(chances))
                for _ in range(depths[stage])
            ]
            down = _Downsample(width, widths[stage + 1]) if stage < STAGES - 1 else nn.Identity()
            stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks), downsample=down)))
        self.layers = nn.Sequential(*stages)
        self.norm_head = nn.LayerNorm(widths[-1])
        self.map_channels = widths[-1]
        self.apply(_initialise)

    def forward(self, images: Tensor) -> BackboneOutput:
        """Map normalised pictures (B, 3, H, W) to the map."""
        found = self.layers(self.patch_embed(images))
        return BackboneOutput(self.norm_head(found.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), None)


def _check(
    widths: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int],
    windows: Sequence[int],
    drop_path: float,
) -> None:
    for name, values in (("widths", widths), ("depths", depths), ("heads", heads), ("windows", windows)):
        if len(values) != STAGES or min(values) < 1:
            raise InputError(f"TinyViT: {name} is {list(values)}; give {STAGES} numbers, 1 or more")
    if any(width % count for width, count in zip(widths[1:], heads[1:], strict=True)):
        raise InputError(f"TinyViT: heads {list(heads)} must divide widths {list(widths)}")
    if not 0 <= drop_path < 1:
        raise InputError(f"TinyViT: drop_path is {drop_path}; give a value in 0..1, below 1")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class _Convolution(nn.Sequential):
    """A convolution without bias and its batch norm; the size of the map is kept, or halved and rounded up."""

    def __init__(self, width: int, out: int, side: int = 1, stride: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(width, out, side, stride, side // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=convolution, bn=nn.BatchNorm2d(out)))


def _stem(width: int) -> nn.Sequential:
    return nn.Sequential(
        _Convolution(3, width // 2, 3, stride=2), nn.GELU(), _Convolution(width // 2, width, 3, stride=2)
    )


class _DropPath(nn.Module):
    """Leaves a branch out, picture by picture, in training; what stays is scaled so that the mean is the same."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.keep = 1 - chance

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.keep == 1:
            return branch
        return branch * branch.new_empty(len(branch), 1, 1, 1).bernoulli_(self.keep) / self.keep


class _ConvolutionBlock(nn.Module):
    """An inverted bottleneck (Sandler et al., CVPR 2018) with GELU, after the sum as well."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.conv1 = _Convolution(width, inner)
        self.conv2 = _Convolution(inner, inner, 3, groups=inner)
        self.conv3 = _Convolution(inner, width)
        self.drop_path = _DropPath(drop_path)
        # A block begins as the identity.
        nn.init.zeros_(self.conv3.get_parameter("bn.weight"))

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.drop_path(self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))
        return F.gelu(x + branch)


class _Downsample(nn.Module):
    """From one stage to the next: half the resolution, another width."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1 = _Convolution(width, out)
        self.conv2 = _Convolution(out, out, 3, stride=2, groups=out)
        self.conv3 = _Convolution(out, out)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return halved


class _Attention(nn.Module):
    """Self-attention among the positions of a window, with a learnt bias for each distance of rows and columns."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))
        # Of numpy, which needs no compiler of torch's where tensors are without data.
        row, column = np.divmod(np.arange(window**2), window)
        rows, columns = (np.abs(np.subtract.outer(place, place)) for place in (row, column))
        self.apart: Tensor
        self.register_buffer("apart", torch.tensor(rows * window + columns), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (windows, N, C) to the same shape."""
        count, width = x.shape[1:]
        # Of each head its query, key and value lie together.
        parts = self.qkv(self.norm(x)).view(-1, count, self.heads, 3, width // self.heads)
        query, key, value = parts.permute(3, 0, 2, 1, 4)  # (windows, heads, N, C / heads)
        scores = query @ key.mT * (width // self.heads) ** -0.5 + self.attention_biases[:, self.apart]
        gathered = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, count, width)
        projected: Tensor = self.proj(gathered)
        return projected


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return mixed


class _AttentionBlock(nn.Module):
    """Attention in windows, a 3x3 convolution that lets neighbouring windows speak, and two linear layers."""

    def __init__(self, width: int, heads: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.attn = _Attention(width, heads, window)
        self.local_conv = _Convolution(width, width, 3, groups=width)
        self.mlp = _Perceptron(width)
        self.drop_path = _DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        attended = self._attend(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.local_conv(x + self.drop_path(attended))
        mixed: Tensor = self.drop_path(self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return x + mixed

    def _attend(self, x: Tensor) -> Tensor:
        """Map (B, h, w, C) to the same shape: windows are cut out, attended to each by itself, and put back."""
        height, width, channels = x.shape[1:]
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        windows = x.reshape(-1, rows, side, columns, side, channels).transpose(2, 3)
        found: Tensor = self.attn(windows.reshape(-1, side * side, channels))
        whole = found.view(-1, rows, columns, side, side, channels).transpose(2, 3)
        return whole.reshape(-1, rows * side, columns * side, channels)[:, :height, :width]
