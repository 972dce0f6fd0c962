"""The student: the network that is trained, evaluated and shipped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number
from clip3dreid.model.backbone import Backbone, BackboneOutput
from clip3dreid.model.normalisation import freeze, use_ghost
from clip3dreid.types import Features


def _own_precision(features: Tensor) -> AbstractContextManager[object]:
    """Return what switches mixed precision off where it is on: an exported graph has nothing of it."""
    kind = features.device.type
    mixed = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if mixed else nullcontext()


class Student(nn.Module):
    """Pictures to retrieval features: normalisation, backbone, pooling, reduction if any, batch-norm neck.

    The embedding is the neck's output, if there is one, for losses and retrieval alike (Gu et al., CVPR 2022,
    released code: scale drawn from N(1, 0.02), shift 0 and trained).

    Args:
        backbone: from pictures to a feature map.
        pooling: from that to one feature a picture.
        mean: of R, G and B, that the backbone was pretrained with. This and `std` live here and nowhere
            else: pictures come in 0..1, and a checkpoint carries the two in its config.
        std: likewise.
        neck_bias: train the neck's shift; without it the neck is that of Luo et al., CVPRW 2019, whose
            shift stays 0.
        neck_dim: width of the embedding, by a linear layer without shift between pooling and neck, for galleries of
            many millions; None: that of the pooling.
        neck: False leaves the neck out: embedding and pooled feature are one and the same, for losses and
            retrieval (the partial release of Liu et al., CVPR 2024, builds a neck and never calls it).
        ghost_group: normalise over groups of this many pictures (see `normalisation.use_ghost`); None: over
            the batch.
        freeze_batch_norm: keep the backbone's batch norms as loaded (see `normalisation.freeze`). The neck
            is trained either way.

    Attributes:
        channels: C, of the map.
        width: D, of the pooled feature (reduced, where it is) and the embedding.

    Parameters that neither map nor embedding depends on (a published model's own pooling head, say) are
    frozen: distributed training stops at a parameter without a gradient.

    Raises:
        InputError: if mean or std is not three numbers, `neck_dim` is below 1, or the pooling does not suit the
            backbone.
    """

    mean: Tensor
    std: Tensor
    takes_clips = False
    """Whether it looks at clips of several frames, (B, T, 3, H, W)."""

    def __init__(
        self,
        backbone: Backbone,
        pooling: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        neck_bias: bool = True,
        ghost_group: int | None = None,
        freeze_batch_norm: bool = False,
        neck: bool = True,
        neck_dim: int | None = None,
    ) -> None:
        super().__init__()
        numbers = all(isinstance(one, int | float) for one in (*mean, *std))
        if not numbers or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError(f"mean={mean} and std={std} must be three numbers each, std positive")
        # Not part of the state: the config is their one home, and weights fit whatever the normalisation.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.backbone = backbone
        self.pooling = pooling
        self.neck: nn.Module = nn.Identity()
        self.reduction: nn.Module = nn.Identity()
        self.channels, self.width = self._said() or self._measure()
        if neck_dim is not None:
            check_number("neck_dim", neck_dim, Range(1), whole=True)
            self.reduction = nn.Linear(self.width, neck_dim, bias=False)
            nn.init.kaiming_normal_(self.reduction.weight, mode="fan_out")
            self.width = neck_dim
        if neck:
            self.neck = nn.BatchNorm1d(self.width)
            nn.init.normal_(self.neck.weight, 1.0, 0.02)
            self.neck.bias.requires_grad_(neck_bias)
        if freeze_batch_norm:
            freeze(self.backbone)
        if ghost_group is not None:
            use_ghost(self, ghost_group)

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return self.mean.device

    def forward(self, images: Tensor) -> Features:
        """Embed pictures.

        Args:
            images: (B, 3, H, W) RGB, floating point, 0..1, not normalised; of any precision, which need not be the
                network's.

        Returns:
            In the network's precision the map (B, C, h, w), the pooled feature (B, D) and the embedding (B, D); in
            mixed precision the map alone may be in another.

        Raises:
            TypeError: if the pictures are still bytes 0..255.
        """
        features: BackboneOutput = self.backbone(self._normalised(images))
        return self._embedded(features.map, self.pooling(features))

    def _normalised(self, images: Tensor) -> Tensor:
        """Return pictures (…, 3, H, W) as the backbone takes them; refuses bytes, as `forward`."""
        if not images.is_floating_point():
            raise TypeError(f"pictures must be floating point in 0..1, not {images.dtype}")
        # Normalised first: half precision tells neighbouring values of a bright picture no longer apart.
        return ((images - self.mean) / self.std).to(self.mean.dtype)

    def _embedded(self, map_: Tensor, pooled: Tensor) -> Features:
        """Take pooled features (B, D') through reduction and neck."""
        # Poolings may answer in float32, and under autocast in half precision. What follows is made in the network's
        # own: a rounded embedding would rank other pictures first.
        with _own_precision(pooled):
            pooled = self.reduction(pooled.to(self.mean.dtype))
            return Features(map=map_, pooled=pooled, embedding=self.neck(pooled))

    def _said(self) -> tuple[int, int] | None:
        """Return C and D where backbone and pooling say them: for a run torch loads its compiler, for seconds."""
        channels, pooling = self.backbone.map_channels, self.pooling
        if channels is None or type(self).forward is not Student.forward:
            return None
        if isinstance(times := getattr(pooling, "per_channel", None), int):
            return channels, channels * times
        # One that was made for another map is found out by trying.
        fits = getattr(pooling, "channels", None) == channels
        return (
            (channels, width)
            if fits and isinstance(width := getattr(pooling, "features", None), int)
            else None
        )

    def _measure(self) -> tuple[int, int]:
        """Find C and D, and freeze parameters that no output depends on, on tensors without data."""
        state = {name: tensor.to("meta") for name, tensor in self.named_buffers()}
        trained = {name: tensor for name, tensor in self.named_parameters() if tensor.requires_grad}
        state |= {name: tensor.detach().to("meta") for name, tensor in self.named_parameters()}
        inputs = [state[name].requires_grad_() for name in trained]
        images = torch.zeros(1, 3, *self.backbone.example_size, device="meta")
        self.eval()  # a single picture has no batch statistics
        with torch.enable_grad():
            features: Features = torch.func.functional_call(self, state, images)
            outputs = features.map.sum() + features.embedding.sum()
            gradients = torch.autograd.grad(outputs, inputs, allow_unused=True)
        self.train()
        for parameter, gradient in zip(trained.values(), gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        return features.map.shape[1], features.pooled.shape[1]
