"""The student of clips: frames of a walk to one retrieval feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from clip3dreid.io.checks import choose
from clip3dreid.model.backbone import Backbone, BackboneOutput
from clip3dreid.model.normalisation import GhostBatchNorm1d, GhostBatchNorm2d
from clip3dreid.model.student import Student
from clip3dreid.model.video import by_clip
from clip3dreid.types import Features, Guided

OverTime = Literal["average", "maximum", "attention"]
"""How the pooled features of frames become one."""


class AttentionOverTime(nn.Module):
    """Weighted mean over frames, by weights that are learnt: a_t = softmax_t(w . f_t).

    It begins as the mean. Source: Gao and Nevatia, arXiv:1805.02104, without their convolutions.

    Args:
        width: D, of a frame's feature.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, frames: Tensor) -> Tensor:
        """Map (B, T, D) to (B, D)."""
        weights: Tensor = self.score(frames).softmax(1)
        return (weights * frames).sum(1)


class ClipStudent(Student):
    """Clips to retrieval features: each frame through the backbone and pooled, then over time, then the neck.

    Frames go through the backbone side by side, so any backbone of pictures will do; one that `looks_across_frames`
    is told which belong together. A picture is a clip of one frame.

    Args:
        backbone: as in `Student`.
        pooling: as in `Student`, of a frame.
        mean: as in `Student`.
        std: as in `Student`.
        time: how frames become one: their `average` (Gu et al., CVPR 2022, released code), `maximum`, or `attention`
            (`AttentionOverTime`).
        guided: the map of `Features`: `middle`, that of frame T // 2, (B, C, h, w); `all`, those of all frames
            one above the other, (B, C, T x h, w), for losses to which a map is a set of positions.
        neck_bias: as in `Student`.
        ghost_group: clips to a group, so T times as many frames in the backbone.
        freeze_batch_norm: as in `Student`. Non-local blocks begin with a scale of 0, which it would keep: freeze only
            where weights have been trained with them.
        neck: as in `Student`.
        neck_dim: as in `Student`, behind the pooling over time.

    Raises:
        InputError: as `Student`, and if `time` or `guided` is none of those.
    """

    takes_clips = True

    def __init__(
        self,
        backbone: Backbone,
        pooling: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        time: OverTime = "average",
        guided: Guided = "middle",
        neck_bias: bool = True,
        ghost_group: int | None = None,
        freeze_batch_norm: bool = False,
        neck: bool = True,
        neck_dim: int | None = None,
    ) -> None:
        choose("model.student.time", time, ("average", "maximum", "attention"))
        choose("model.student.guided", guided, get_args(Guided))
        super().__init__(
            backbone, pooling, mean, std, neck_bias, ghost_group, freeze_batch_norm, neck, neck_dim
        )
        self.guided = guided
        reduction = self.reduction
        of_a_frame = reduction.in_features if isinstance(reduction, nn.Linear) else self.width
        self.time: nn.Module | None = AttentionOverTime(of_a_frame) if time == "attention" else None
        self._maximum = time == "maximum"
        self._clips = ghost_group
        self._grouped = 1

    def forward(self, images: Tensor) -> Features:
        """Embed clips.

        Args:
            images: (B, T, 3, H, W), or (B, 3, H, W) for T = 1; otherwise as in `Student`.

        Returns:
            In the network's precision the map of `guided`, the pooled feature (B, D) and the embedding (B, D).

        Raises:
            TypeError: if the pictures are still bytes 0..255.
        """
        length = images.shape[1] if images.ndim == 5 else 1
        self._group_frames(length)
        frames = self._normalised(images.flatten(0, 1) if images.ndim == 5 else images)
        across = {"length": length} if self.backbone.looks_across_frames else {}
        features: BackboneOutput = self.backbone(frames, **across)
        pooled = self.pooling(features)
        if images.ndim == 5:
            pooled = self._over_time(by_clip(pooled, length))
        return self._embedded(self._map(features.map, length), pooled)

    def _over_time(self, frames: Tensor) -> Tensor:
        """Pool (B, T, D) to (B, D)."""
        if self.time is not None:
            pooled: Tensor = self.time(frames)
            return pooled
        return frames.amax(1) if self._maximum else frames.mean(1)

    def _map(self, maps: Tensor, length: int) -> Tensor:
        """Take from (B x T, C, h, w) what guides see."""
        if length == 1:
            return maps
        clips = by_clip(maps, length)
        return clips[:, length // 2] if self.guided == "middle" else clips.transpose(1, 2).flatten(2, 3)

    def _group_frames(self, length: int) -> None:
        """Have groups of the backbone's batch norms be so many clips: their rows are frames."""
        if self._clips is None or length == self._grouped:
            return
        for module in self.backbone.modules():
            if isinstance(module, GhostBatchNorm1d | GhostBatchNorm2d):
                module.group = self._clips * length
        self._grouped = length

    def _measure(self) -> tuple[int, int]:
        """Find C and D, which are those of a student of pictures with the same parts."""
        frame = Student(self.backbone, self.pooling, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), neck=False)
        return frame.channels, frame.width
