"""From a feature map (B, C, h, w) to one feature a picture (B, D).

A pooling that says `per_channel` has that many features for each channel, whatever the size of the map; one that says
`channels` and `features` makes so many of that many.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.model.backbone import BackboneOutput


class Average(nn.Module):
    """Mean over positions: (B, C)."""

    per_channel = 1

    def forward(self, features: BackboneOutput) -> Tensor:
        """Pool the map."""
        return F.adaptive_avg_pool2d(features.map, 1).flatten(1)


class Maximum(nn.Module):
    """Maximum over positions: (B, C)."""

    per_channel = 1

    def forward(self, features: BackboneOutput) -> Tensor:
        """Pool the map."""
        return F.adaptive_max_pool2d(features.map, 1).flatten(1)


class MaximumAverage(nn.Module):
    """Maximum, then mean, side by side: (B, 2C); the base recipe's (Gu et al., CVPR 2022, released code)."""

    per_channel = 2

    def forward(self, features: BackboneOutput) -> Tensor:
        """Pool the map."""
        pooled = (F.adaptive_max_pool2d(features.map, 1), F.adaptive_avg_pool2d(features.map, 1))
        return torch.cat(pooled, 1).flatten(1)


class GeneralisedMean(nn.Module):
    """Mean of the p-th powers to the power 1/p: (B, C); p is learnt (Radenovic et al., TPAMI 2018, eq. 3).

    Args:
        p: to begin with; 1 is the mean, a large one approaches the maximum.
        eps: smaller activations, negative ones included, count as this.
    """

    per_channel = 1

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), float(p)))
        self.eps = eps

    def forward(self, features: BackboneOutput) -> Tensor:
        """Pool the map; always in float32, since powers leave the range of half precision."""
        p = self.p.float()
        return features.map.float().clamp(min=self.eps).pow(p).mean((2, 3)).pow(1.0 / p)


class WeighedPositions(nn.Module):
    """Sum over positions, each with a weight of its own that is learnt, and a linear layer: (B, width).

    Weights belong to places, so the map must always have the same number of positions: pictures of one size. They
    begin as draws from a standard normal distribution.

    Args:
        positions: h x w of the map.
        channels: C of the map.
        width: of the feature.

    Source: the partial release of Liu et al., CVPR 2024.
    """

    def __init__(self, positions: int, channels: int, width: int) -> None:
        super().__init__()
        _check_sizes(self, positions=positions, channels=channels, width=width)
        self.weight = nn.Parameter(torch.randn(positions))
        self.reduce = nn.Linear(channels, width)

    def forward(self, features: BackboneOutput) -> Tensor:
        """Pool the map.

        Raises:
            InputError: if its positions or channels are others than it was made for.
        """
        maps = features.map.flatten(2)
        wanted = self.reduce.in_features, len(self.weight)
        if maps.shape[1:] != wanted:
            raise InputError(
                f"pooling WeighedPositions is made for {wanted[0]} channels and {wanted[1]} positions, the map has "
                f"{maps.shape[1]} and {maps.shape[2]}; change datamodule.height and datamodule.width, or the pooling"
            )
        reduced: Tensor = self.reduce(maps @ self.weight)
        return reduced


class FullyConnected(nn.Module):
    """Mean over positions, a linear layer, batch norm and ReLU: (B, width), none of it negative.

    It is the feature of OSNet (Zhou et al., ICCV 2019) and of torchreid's networks `fc512`, for losses and retrieval
    alike; with it a student has no neck.

    Args:
        channels: C of the map.
        width: of the feature.

    Raises:
        InputError: if one of them is below 1.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        _check_sizes(self, channels=channels, width=width)
        self.channels, self.features = channels, width
        self.linear = nn.Linear(channels, width)
        self.norm = nn.BatchNorm1d(width)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: BackboneOutput) -> Tensor:
        """Pool the map."""
        return F.relu(self.norm(self.linear(F.adaptive_avg_pool2d(features.map, 1).flatten(1))))


class ClassToken(nn.Module):
    """The backbone's own summary of the picture, its class token: (B, C)."""

    def forward(self, features: BackboneOutput) -> Tensor:
        """Take the token.

        Raises:
            InputError: if the backbone has none.
        """
        return _token(self, features)


class ProjectedToken(nn.Module):
    """The class token, and beside it a linear map of it: (B, C + width).

    CLIP's token before and after its projection into the space of pictures and texts is the feature of CLIP-ReID (Li
    et al., AAAI 2023, released code).

    Args:
        channels: C of the token.
        width: of the projection.

    Raises:
        InputError: if one of them is below 1.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        _check_sizes(self, channels=channels, width=width)
        self.projection = nn.Parameter(torch.randn(channels, width) * channels**-0.5)

    def forward(self, features: BackboneOutput) -> Tensor:
        """Take the token.

        Raises:
            InputError: if the backbone has none.
        """
        token = _token(self, features)
        return torch.cat([token, token @ self.projection], 1)


def _token(pooling: nn.Module, features: BackboneOutput) -> Tensor:
    if features.token is None:
        name = type(pooling).__name__
        raise InputError(f"pooling {name} needs a backbone with a class token; this one has none")
    return features.token


def _check_sizes(pooling: nn.Module, **sizes: int) -> None:
    if min(sizes.values()) < 1:
        *most, last = (f"{key} {value}" for key, value in sizes.items())
        raise InputError(f"{type(pooling).__name__}: {', '.join(most)} and {last} must be at least 1")
