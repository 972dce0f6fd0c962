"""Poses of people whom a surveillance camera sees: standing, walking, carrying, turning, sitting down, on the phone.

A pose is (24, 3) axis-angle in radians over SMPL's joints, the root's first; the rest pose is a T, so arms at the
sides are rotations of the shoulders about z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clip3dreid.errors import InputError
from clip3dreid.io.checks import check_weights
from clip3dreid.io.formats import read_npz

if TYPE_CHECKING:  # the kinds of poses are asked for before torch is loaded
    from torch import Tensor

Array = npt.NDArray[np.float32]

(PELVIS, L_HIP, R_HIP, SPINE1, L_KNEE, R_KNEE, SPINE2, L_ANKLE, R_ANKLE, SPINE3) = range(10)
NECK, L_COLLAR, R_COLLAR, HEAD, L_SHOULDER, R_SHOULDER, L_ELBOW, R_ELBOW = range(12, 20)

# Radians about each axis that a living person reaches, generously; the root may turn any way.
_REACH = {
    PELVIS: (7.0, 7.0, 7.0),
    L_HIP: (2.4, 1.2, 1.2),
    R_HIP: (2.4, 1.2, 1.2),
    L_KNEE: (2.8, 0.6, 0.6),
    R_KNEE: (2.8, 0.6, 0.6),
    L_SHOULDER: (2.6, 2.6, 2.6),
    R_SHOULDER: (2.6, 2.6, 2.6),
    L_ELBOW: (2.9, 2.9, 2.9),
    R_ELBOW: (2.9, 2.9, 2.9),
}
LIMITS: Array = np.array(
    [[(-reach, reach) for reach in _REACH.get(joint, (1.6, 1.6, 1.6))] for joint in range(24)], np.float32
)
"""(24, 3, 2) radians, lowest and highest."""


class Pose(NamedTuple):
    """A pose and its name."""

    kind: str
    axis_angle: Array
    """(24, 3) radians."""


def _arms_down(pose: Array, left: float = 1.28, right: float = 1.28) -> None:
    pose[L_SHOULDER, 2], pose[R_SHOULDER, 2] = -left, right


def at_ease() -> Array:
    """Return (24, 3) axis-angle in radians: upright, the arms a little off the body, so that its outline is seen."""
    pose = np.zeros((24, 3), np.float32)
    _arms_down(pose, 1.05, 1.05)
    return pose


def standing(rng: np.random.Generator) -> Array:
    """Return (24, 3): upright, the weight on one leg or both, elbows a little bent."""
    pose = np.zeros((24, 3), np.float32)
    _arms_down(pose, rng.uniform(1.2, 1.34), rng.uniform(1.2, 1.34))
    lean = rng.uniform(-0.05, 0.05)
    pose[L_HIP, 2], pose[R_HIP, 2] = 0.03 + lean, -0.03 + lean
    bent = rng.integers(3)
    if bent < 2:
        pose[(L_HIP, R_HIP)[bent], 0] = -0.15
        pose[(L_KNEE, R_KNEE)[bent], 0] = 0.28
    pose[L_ELBOW, 1], pose[R_ELBOW, 1] = -rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.4)
    return pose


def walking(phase: float, speed: float = 1.3, arm_swing: float = 1.0) -> Array:
    """Return one moment of a walk.

    Joint angles follow the textbook shape of a gait cycle (Winter, "Biomechanics and Motor Control of Human
    Movement"): a hip that swings as a cosine, a knee that bends a little after the heel strikes and much in the
    swing, a foot that points down at push-off; the amplitudes are our own, and grow with speed.

    Args:
        phase: radians, 0 where the left heel strikes.
        speed: m/s, about 0.6 to 2.
        arm_swing: 0 (still) .. 1.5.

    Returns:
        (24, 3).
    """
    pose = np.zeros((24, 3), np.float32)
    vigour = float(np.clip(speed / 1.3, 0.4, 1.5)) ** 0.5
    for hip, knee, ankle, at in ((L_HIP, L_KNEE, L_ANKLE, phase), (R_HIP, R_KNEE, R_ANKLE, phase + math.pi)):
        # Forward is a negative rotation about x.
        pose[hip, 0] = -vigour * (0.10 + 0.38 * math.cos(at))
        swing = max(0.0, math.sin(at + math.pi + 0.35)) ** 1.5
        early = 0.25 * math.exp(-((((at + math.pi) % (2 * math.pi)) - math.pi - 0.7) ** 2) / 0.3)
        pose[knee, 0] = 0.06 + vigour * (0.95 * swing + early)
        pose[ankle, 0] = vigour * 0.22 * math.sin(at - 2.6)
    sway = 0.05 * vigour
    pose[PELVIS] = (0.02, -0.10 * vigour * math.cos(phase), sway * 0.4 * math.sin(phase))
    pose[SPINE2, 1] = 0.16 * vigour * math.cos(phase)
    pose[SPINE1, 0] = 0.05 * vigour
    _arms_down(pose)
    reach = 0.42 * vigour * arm_swing * math.cos(phase)
    # With the arm hanging, turning the shoulder about y swings it forward and back; each against its own leg.
    pose[L_SHOULDER, 1], pose[R_SHOULDER, 1] = reach, reach
    pose[L_ELBOW, 1] = -(0.25 + 0.25 * arm_swing * max(0.0, -math.cos(phase)))
    pose[R_ELBOW, 1] = 0.25 + 0.25 * arm_swing * max(0.0, math.cos(phase))
    return pose


def _walk(rng: np.random.Generator) -> Array:
    return walking(rng.uniform(0, 2 * math.pi), rng.uniform(0.7, 1.7), rng.uniform(0.4, 1.2))


def carrying(rng: np.random.Generator) -> Array:
    """Return (24, 3): walking with a weight in one hand, that arm straight and still, the trunk leaning away."""
    pose = walking(rng.uniform(0, 2 * math.pi), rng.uniform(0.7, 1.3), 0.5)
    left = bool(rng.integers(2))
    shoulder, elbow, sign = (L_SHOULDER, L_ELBOW, -1) if left else (R_SHOULDER, R_ELBOW, 1)
    pose[shoulder] = (0, 0, sign * 1.36)
    pose[elbow] = (0, sign * 0.05, 0)
    pose[SPINE2, 2] = sign * 0.08
    return pose


def turning(rng: np.random.Generator) -> Array:
    """Return (24, 3): the head and shoulders turned against the hips."""
    pose = _walk(rng) if rng.random() < 0.5 else standing(rng)
    turn = rng.choice([-1, 1]) * rng.uniform(0.2, 0.5)
    pose[SPINE1, 1] += 0.3 * turn
    pose[SPINE3, 1] += 0.4 * turn
    pose[NECK, 1] += 0.6 * turn
    return pose


def sitting_down(rng: np.random.Generator) -> Array:
    """Return (24, 3): on the way to a seat; hips and knees bent, the trunk forward."""
    pose = standing(rng)
    depth = rng.uniform(0.4, 1.1)
    pose[[L_HIP, R_HIP], 0] = -1.15 * depth
    pose[[L_KNEE, R_KNEE], 0] = 1.35 * depth
    pose[[L_ANKLE, R_ANKLE], 0] = -0.25 * depth
    pose[PELVIS, 0] = 0.35 * depth
    pose[SPINE2, 0] = 0.2 * depth
    pose[L_SHOULDER, 1], pose[R_SHOULDER, 1] = -0.4 * depth, 0.4 * depth
    return pose


def phone(rng: np.random.Generator) -> Array:
    """Return (24, 3): standing or walking with one forearm raised, to look at a screen or to hold it to the ear."""
    pose = _walk(rng) if rng.random() < 0.5 else standing(rng)
    left = bool(rng.integers(2))
    shoulder, elbow, sign = (L_SHOULDER, L_ELBOW, -1) if left else (R_SHOULDER, R_ELBOW, 1)
    at_ear = bool(rng.integers(2))
    pose[shoulder] = (0, sign * (0.5 if at_ear else 0.35), sign * 1.15)
    pose[elbow] = (0, sign * (2.2 if at_ear else 1.4), 0)
    pose[HEAD, 0] = 0.05 if at_ear else 0.35
    return pose


KINDS: dict[str, Callable[[np.random.Generator], Array]] = {
    "standing": standing,
    "walking": _walk,
    "carrying": carrying,
    "turning": turning,
    "sitting_down": sitting_down,
    "phone": phone,
}
"""What a person may be doing."""


def jitter(pose: Array, sigma: float, rng: np.random.Generator) -> Array:
    """Return the pose with normal noise of `sigma` radians on every joint but the root, inside `LIMITS`."""
    noise = rng.normal(0.0, sigma, pose.shape).astype(np.float32)
    noise[0] = 0
    moved: Array = np.clip(pose + noise, LIMITS[..., 0], LIMITS[..., 1])
    return moved


def sample(kinds: Mapping[str, float], rng: np.random.Generator, sigma: float = 0.03) -> Pose:
    """Draw a pose.

    Args:
        kinds: kind -> weight; see `KINDS`.
        rng: where the numbers come from.
        sigma: of `jitter`, radians.

    Raises:
        InputError: if a kind is unknown or no weight is positive.
    """
    check_weights("poses", kinds, KINDS)
    weights = np.array(list(kinds.values()), float)
    kind = str(rng.choice(list(kinds), p=weights / weights.sum()))
    return Pose(kind, jitter(KINDS[kind](rng), sigma, rng))


def walk_sequence(frames: int, rng: np.random.Generator, frames_per_second: float = 25.0) -> Array:
    """Return (frames, 24, 3): a walk from frame to frame, its speed, start and arm swing drawn once."""
    speed, start, swing = rng.uniform(0.8, 1.6), rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.2)
    # Two steps a cycle; a step of 0.7 m at 1.3 m/s, longer when faster.
    cycles_per_second = 0.93 * (speed / 1.3) ** 0.5
    advance = 2 * math.pi * cycles_per_second / frames_per_second
    return np.stack([walking(start + advance * i, speed, swing) for i in range(frames)])


def check(poses: npt.NDArray[Any], where: str) -> None:
    """Check that `poses` is (N, 24, 3), finite and inside `LIMITS`; `where` is named in it."""
    if poses.ndim != 3 or poses.shape[1:] != (24, 3) or not len(poses):
        raise InputError(f"{where}: poses are {poses.shape} and must be (N, 24, 3) axis-angle in radians")
    if not np.isfinite(poses).all():
        frame = int((~np.isfinite(poses)).any((1, 2)).argmax())
        raise InputError(f"{where}: pose {frame} is not finite; remove it")
    outside = ((poses < LIMITS[..., 0]) | (poses > LIMITS[..., 1])).any((0, 2))
    if outside.any():
        joint = int(outside.argmax())
        worst = float(np.abs(poses[:, joint]).max())
        raise InputError(
            f"{where}: joint {joint} is turned by {worst:.1f} radians, more than a person can; are the poses degrees?"
        )


def load_poses(path: Path | str) -> Array:
    """Read poses from an `.npz`: AMASS's `poses` (N, 72, 156 or 165), or an estimator's `body_pose` (N, 69 or 63).

    The root's turn is dropped: AMASS has z up, and the camera chooses the view.

    Returns:
        (N, 24, 3); hands at rest.

    Raises:
        InputError: if the file is unreadable, has neither key, or holds impossible poses.
    """
    path = Path(path).expanduser()
    names = ("poses", "body_pose", "pose_body")
    arrays = read_npz(path, path, "give a file of SMPL poses", keys=names)
    key = next((key for key in names if key in arrays), None)
    if key is None:
        raise InputError(f"{path} has no poses or body_pose; give AMASS or SMPL poses")
    values = arrays[key]
    if values.ndim < 2 or not len(values) or values.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: {key} is {values.dtype} of shape {values.shape} and must hold numbers, a row a pose"
        )
    values = values.astype(np.float32)
    values = values.reshape(len(values), -1)
    skip = 3 if key == "poses" else 0
    body = values[:, skip:]
    if body.shape[1] < 63:
        raise InputError(f"{path}: {key} holds {values.shape[1]} numbers a pose and must hold 63 or more")
    poses = np.zeros((len(values), 24, 3), np.float32)
    poses[:, 1:22] = body[:, :63].reshape(-1, 21, 3)
    check(poses, str(path))
    return poses


def ground(vertices: Tensor) -> Tensor:
    """Return (B, 3) metres: the shift of (B, V, 3) vertices that puts the lowest on y = 0."""
    lift = vertices.new_zeros(len(vertices), 3)
    lift[:, 1] = -vertices[..., 1].amin(1)
    return lift
