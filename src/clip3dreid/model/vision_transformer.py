"""A vision transformer for pictures of people: its grid of positions need not be square, its patches may overlap.

Source: Dosovitskiy et al., ICLR 2021; He et al., "TransReID", ICCV 2021, section 3.1 (overlapping patches); Radford
et al., ICML 2021 (CLIP's form). Names of tensors are those of timm.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number
from clip3dreid.model.backbone import Backbone, BackboneOutput

EXPANSION = 4
"""Width inside a block's perceptron over its own."""


class VisionTransformer(Backbone):
    """Patches, a class token, blocks of attention and perceptron, and a norm of all tokens.

    The map (B, C, h, w) is the patches' tokens, `token` the class token; of H x W pixels h is
    (H - patch) // stride + 1, and w likewise.

    Args:
        height: H, in pixels, of the pictures that positions are learnt for. For pictures of another size they are
            interpolated (bicubic).
        width: W, likewise.
        channels: C.
        depth: blocks.
        heads: of attention.
        patch: side of a patch, in pixels.
        stride: from one patch to the next, in pixels; less than `patch` makes them overlap.
        eps: of the layer norms.
        clip: CLIP's form: a norm before the first block, no bias in the patches, x * sigmoid(1.702 x) for GELU.

    Raises:
        InputError: if a number is out of its range, heads do not divide channels, or no patch fits into the picture.
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int = 768,
        depth: int = 12,
        heads: int = 12,
        patch: int = 16,
        stride: int = 16,
        eps: float = 1e-6,
        clip: bool = False,
    ) -> None:
        super().__init__()
        sizes = {
            "height": height,
            "width": width,
            "channels": channels,
            "depth": depth,
            "heads": heads,
            "patch": patch,
            "stride": stride,
        }
        for key, number in sizes.items():
            check_number(f"VisionTransformer: {key}", number, Range(1), whole=True)
        if channels % heads:
            raise InputError(f"VisionTransformer: heads={heads} must divide channels={channels}")
        self.patch, self.stride = patch, stride
        self.example_size = height, width
        self.grid = self._grid(height, width)
        self.patch_embed = nn.Conv2d(3, channels, patch, stride, bias=not clip)
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1] + 1, channels))
        self.norm_pre = nn.LayerNorm(channels, eps) if clip else nn.Identity()
        self.blocks = nn.Sequential(*(_Block(channels, heads, eps, clip) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels, eps)
        self.apply(_initialise)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor) -> BackboneOutput:
        """Map normalised pictures (B, 3, H, W) to map and token.

        Raises:
            InputError: if a picture is smaller than a patch.
        """
        grid = self._grid(*images.shape[-2:])
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, h w, C)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1)
        tokens = self.norm(self.blocks(self.norm_pre(tokens + self._positions(grid))))
        # By shape, not by len(), which would fix the size of the batch in an exported model.
        found = tokens[:, 1:].transpose(1, 2).reshape(*tokens.shape[::2], *grid)
        return BackboneOutput(found, tokens[:, 0])

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches."""
        if min(height, width) < self.patch:
            raise InputError(
                f"VisionTransformer: no patch of {self.patch}x{self.patch} fits into a picture of {height}x{width}"
            )
        return (height - self.patch) // self.stride + 1, (width - self.patch) // self.stride + 1

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Return (1, 1 + h w, C)."""
        if grid == self.grid:
            return self.pos_embed
        learnt = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, *self.grid)
        resized = F.interpolate(learnt, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], 1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Attention(nn.Module):
    """Self-attention of all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to the same shape."""
        # All queries lie before all keys, and these before all values; in each, head by head.
        parts = 3, self.heads, x.shape[2] // self.heads
        query, key, value = self.qkv(x).unflatten(2, parts).permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, C / heads)
        projected: Tensor = self.proj(gathered.transpose(1, 2).flatten(2))
        return projected


class _Block(nn.Module):
    """Attention and a perceptron, each with a norm before it and a sum behind it."""

    def __init__(self, width: int, heads: int, eps: float, clip: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, EXPANSION * width),
                act=_QuickGELU() if clip else nn.GELU(),
                fc2=nn.Linear(EXPANSION * width, width),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to the same shape."""
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed
