"""Files of other programs, made here: their names, random values, and the network they describe, in functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


class File:
    """Random weights under the names that the functions below ask for."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self.state:
            values = torch.randn(shape, generator=self.rng)
            if name.endswith("running_var"):
                values = values.abs() + 0.5
            elif len(shape) > 1:
                values = values * 1.5 / (values[0].numel() ** 0.5)
            self.state[name] = values
        return self.state[name]

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean, var, scale, shift = (
            self.get(f"{name}.{tensor}", x.shape[1]).view(shape)
            for tensor in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def instance_norm(self, x: Tensor, name: str) -> Tensor:
        scale, shift = (
            self.get(f"{name}.{tensor}", x.shape[1])[:, None, None] for tensor in ("weight", "bias")
        )
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def layer_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight, bias = self.get(f"{name}.weight", x.shape[-1]), self.get(f"{name}.bias", x.shape[-1])
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def linear(self, x: Tensor, weight: str, bias: str, out: int) -> Tensor:
        return x @ self.get(weight, out, x.shape[-1]).T + self.get(bias, out)


def osnet(file: File, x: Tensor, width: int, adaptive: bool) -> Tensor:
    """The test feature of torchreid's OSNet, or of its OSNet-AIN, of normalised pictures; its names."""

    def layer(
        x: Tensor, name: str, out: int, relu: bool = True, norm: Callable[..., Tensor] | None = None
    ) -> Tensor:
        x = F.conv2d(x, file.get(f"{name}.conv.weight", out, x.shape[1], 1, 1))
        x = (norm or file.batch_norm)(x, f"{name}.bn")
        return F.relu(x) if relu else x

    def light(x: Tensor, name: str) -> Tensor:
        channels = x.shape[1]
        x = F.conv2d(x, file.get(f"{name}.conv1.weight", channels, channels, 1, 1))
        x = F.conv2d(x, file.get(f"{name}.conv2.weight", channels, 1, 3, 3), padding=1, groups=channels)
        return F.relu(file.batch_norm(x, f"{name}.bn"))

    def gated(x: Tensor, name: str) -> Tensor:
        channels = x.shape[1]
        hidden = max(channels // 16, 1)
        weights = x.mean((2, 3))
        weights = weights @ file.get(f"{name}.fc1.weight", hidden, channels, 1, 1)[..., 0, 0].T
        weights = (weights + file.get(f"{name}.fc1.bias", hidden)).relu()
        weights = weights @ file.get(f"{name}.fc2.weight", channels, hidden, 1, 1)[..., 0, 0].T
        weights = (weights + file.get(f"{name}.fc2.bias", channels)).sigmoid()
        return weights[..., None, None] * x

    def block(x: Tensor, name: str, out: int, inside: bool) -> Tensor:
        reduced = layer(x, f"{name}.conv1", out // 4)
        mixed = torch.zeros_like(reduced)
        for stream in range(4):
            y = reduced
            for depth in range(stream + 1):
                place = f"conv2.{stream}.layers.{depth}" if adaptive else f"conv2{'abcd'[stream]}.{depth}"
                y = light(y, f"{name}.{'conv2a' if place == 'conv2a.0' else place}")
            mixed = mixed + gated(y, f"{name}.gate")
        if inside:
            mixed = F.conv2d(mixed, file.get(f"{name}.conv3.conv.weight", out, out // 4, 1, 1))
            mixed = file.instance_norm(mixed, f"{name}.IN")
        else:
            mixed = layer(mixed, f"{name}.conv3", out, relu=False)
        return F.relu(mixed + (x if x.shape[1] == out else layer(x, f"{name}.downsample", out, relu=False)))

    norm = file.instance_norm if adaptive else file.batch_norm
    x = F.conv2d(x, file.get("conv1.conv.weight", width, 3, 7, 7), stride=2, padding=3)
    x = F.max_pool2d(F.relu(norm(x, "conv1.bn")), 3, 2, 1)
    for stage, normed in enumerate(((True, True), (False, True), (True, False))):
        for number, inside in enumerate(normed):
            x = block(x, f"conv{stage + 2}.{number}", (4, 6, 8)[stage] * width, adaptive and inside)
        if stage < 2:
            name = f"pool{stage + 2}.0" if adaptive else f"conv{stage + 2}.2.0"
            x = F.avg_pool2d(layer(x, name, x.shape[1]), 2)
    x = layer(x, "conv5", x.shape[1]).mean((2, 3))
    return F.relu(file.batch_norm(file.linear(x, "fc.0.weight", "fc.0.bias", 12), "fc.1"))


def attention(file: File, x: Tensor, weights: tuple[str, str], heads: int) -> Tensor:
    """Self-attention of tokens (B, N, C), head by head; queries, keys and values in one matrix."""
    size = x.shape[2] // heads
    parts = file.linear(x, *weights, 3 * x.shape[2]).split(x.shape[2], 2)
    found = []
    for head in range(heads):
        query, key, value = (part[..., head * size : (head + 1) * size] for part in parts)
        found.append((query @ key.mT / size**0.5).softmax(2) @ value)
    return torch.cat(found, 2)


def transreid(file: File, x: Tensor, channels: int = 8, heads: int = 2, depth: int = 2) -> Tensor:
    """The feature of TransReID's baseline before its neck; its names, patches of 4 every 4 pixels."""
    x = F.conv2d(
        x,
        file.get("base.patch_embed.proj.weight", channels, 3, 4, 4),
        file.get("base.patch_embed.proj.bias", channels),
        stride=4,
    )
    x = x.flatten(2).mT
    x = torch.cat([file.get("base.cls_token", 1, 1, channels).expand(len(x), 1, -1), x], 1)
    x = x + file.get("base.pos_embed", 1, x.shape[1], channels)
    for number in range(depth):
        at = f"base.blocks.{number}"
        y = file.layer_norm(x, f"{at}.norm1", 1e-6)
        y = attention(file, y, (f"{at}.attn.qkv.weight", f"{at}.attn.qkv.bias"), heads)
        x = x + file.linear(y, f"{at}.attn.proj.weight", f"{at}.attn.proj.bias", channels)
        y = file.layer_norm(x, f"{at}.norm2", 1e-6)
        y = F.gelu(file.linear(y, f"{at}.mlp.fc1.weight", f"{at}.mlp.fc1.bias", 4 * channels))
        x = x + file.linear(y, f"{at}.mlp.fc2.weight", f"{at}.mlp.fc2.bias", channels)
    return file.layer_norm(x, "base.norm", 1e-6)[:, 0]


def clip_reid(
    file: File, x: Tensor, channels: int = 8, heads: int = 2, depth: int = 2
) -> tuple[Tensor, Tensor]:
    """The two features of CLIP-ReID before its necks; its names, patches of 4 every 3 pixels, projected to 6."""
    at = "image_encoder"
    x = F.conv2d(x, file.get(f"{at}.conv1.weight", channels, 3, 4, 4), stride=3).flatten(2).mT
    x = torch.cat([file.get(f"{at}.class_embedding", channels).expand(len(x), 1, -1), x], 1)
    x = file.layer_norm(
        x + file.get(f"{at}.positional_embedding", x.shape[1], channels), f"{at}.ln_pre", 1e-5
    )
    for number in range(depth):
        block = f"{at}.transformer.resblocks.{number}"
        y = file.layer_norm(x, f"{block}.ln_1", 1e-5)
        y = attention(file, y, (f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias"), heads)
        x = x + file.linear(y, f"{block}.attn.out_proj.weight", f"{block}.attn.out_proj.bias", channels)
        y = file.layer_norm(x, f"{block}.ln_2", 1e-5)
        y = file.linear(y, f"{block}.mlp.c_fc.weight", f"{block}.mlp.c_fc.bias", 4 * channels)
        y = y * (1.702 * y).sigmoid()
        x = x + file.linear(y, f"{block}.mlp.c_proj.weight", f"{block}.mlp.c_proj.bias", channels)
    token = file.layer_norm(x, f"{at}.ln_post", 1e-5)[:, 0]
    return token, token @ file.get(f"{at}.proj", channels, 6)
