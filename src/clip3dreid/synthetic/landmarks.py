"""One frame for all bodies: where on a standard person each vertex lies.

Garments end at a height or at a place along an arm. Bodies differ, and so do body models; so every vertex of a model
is given its place on one standard person of 1.69 m in a T-pose, whose joints lie at the numbers below. Places are
interpolated over a face, so borders drawn from them are smooth lines however coarse the mesh.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clip3dreid.body.smpl import BodyModel

SOLE, ANKLE, KNEE, HIP, NECK, TOP = 0.0, 0.077, 0.510, 0.889, 1.445, 1.694
"""Heights above the ground, metres: the lowest point, joints, the crown."""
SHOULDER, ELBOW, WRIST = 0.175, 0.433, 0.664
"""Of the left arm's joints from the middle plane, metres."""
HALF_HEAD, FACE, NAPE = 0.083, 0.156, -0.057
"""The head's half width, and its front and back before the pelvis joint, metres."""
WAIST = 1.01
ARMPIT = 0.195
"""Half width beyond which, above the waist, it is an arm."""


def interpolate_levels(value: Tensor, at: Tensor, to: Tensor) -> Tensor:
    """Map linearly, piece by piece, what takes `at` to `to`, and goes on straight beyond both ends.

    Args:
        value: (..., N).
        at: (N_k,) or (..., N_k) ascending.
        to: as `at`.
    """
    batch = (value[..., 0] + at[..., 0] + to[..., 0]).shape
    at, to = (levels.expand(*batch, levels.shape[-1]).contiguous() for levels in (at, to))
    value = value.expand(*batch, value.shape[-1]).contiguous()
    place = torch.searchsorted(at, value).clamp(1, at.shape[-1] - 1)
    low_at, high_at, low_to, high_to = (
        levels.gather(-1, index) for levels in (at, to) for index in (place - 1, place)
    )
    return low_to + (value - low_at) / (high_at - low_at) * (high_to - low_to)


def standard_places(body: BodyModel) -> Tensor:
    """Return places (V, 3) of a model's vertices on the standard person: left, height, forward; metres."""
    rest = body.rest(torch.zeros(1, body.num_betas, device=body.template.device))
    points, joints = rest.vertices[0], rest.joints[0]
    x, y = joints[:, 0].abs(), joints[:, 1]
    heights = torch.stack(
        [points[:, 1].amin(), y[7:9].mean(), y[4:6].mean(), y[1:3].mean(), y[12], points[:, 1].amax()]
    )
    height = interpolate_levels(points[:, 1], heights, points.new_tensor([SOLE, ANKLE, KNEE, HIP, NECK, TOP]))
    arm = torch.stack([x.new_zeros(()), x[16:18].mean(), x[18:20].mean(), x[20:22].mean()])
    across = interpolate_levels(points[:, 0].abs(), arm, arm.new_tensor([0, SHOULDER, ELBOW, WRIST]))
    head = body.skinning_weights[:, 15]
    skull = points[head > 0.9]
    on_head = points[:, 0].abs() * HALF_HEAD / skull[:, 0].abs().amax()
    bounds = torch.stack([skull[:, 2].amin(), skull[:, 2].amax()])
    forward = points[:, 2] - joints[0, 2]
    face = interpolate_levels(points[:, 2], bounds, bounds.new_tensor([NAPE, FACE]))
    across, forward = torch.lerp(across, on_head, head), torch.lerp(forward, face, head)
    # A leg is not an arm, however far apart the feet stand.
    leg = body.skinning_weights[:, [1, 2, 4, 5, 7, 8, 10, 11]].sum(1)
    across = torch.where(leg > 0.5, points[:, 0].abs(), across)
    return torch.stack([across * points[:, 0].sign(), height, forward], 1)
