import math
from pathlib import Path

import numpy as np
import pytest
import torch

from clip3dreid.body import poses
from clip3dreid.body.smpl import load_body
from clip3dreid.errors import InputError


@pytest.mark.parametrize("kind", sorted(poses.KINDS))
def test_every_kind_is_possible_repeatable_and_varied(kind: str) -> None:
    drawn = np.stack([poses.KINDS[kind](np.random.default_rng(seed)) for seed in range(20)])
    poses.check(drawn, kind)
    np.testing.assert_array_equal(drawn[3], poses.KINDS[kind](np.random.default_rng(3)))
    assert drawn.std(0).max() > 0.05


def ankles(phase: float, **keys: float) -> np.ndarray:
    body = load_body("anny_light")
    pose = torch.as_tensor(poses.walking(phase, **keys))[None]
    return body(torch.zeros(1, 10), pose).joints[0, [7, 8]].numpy()


def test_a_walk_steps_forward_with_the_left_foot_at_phase_zero_and_the_right_half_a_cycle_later() -> None:
    left, right = ankles(0.0)
    assert left[2] - right[2] > 0.3
    left, right = ankles(math.pi)
    assert right[2] - left[2] > 0.3


def test_the_second_half_of_a_walk_mirrors_the_first() -> None:
    body = load_body("anny_light")
    first, second = (
        body(torch.zeros(1, 10), torch.as_tensor(poses.walking(phase))[None]).joints[0].numpy()
        for phase in (0.7, 0.7 + math.pi)
    )
    np.testing.assert_allclose(first[7, 1:], second[8, 1:], atol=0.02)
    np.testing.assert_allclose(first[4, 1:], second[5, 1:], atol=0.02)


def test_the_swinging_knee_bends_more_than_the_standing_one() -> None:
    cycle = np.stack([poses.walking(phase) for phase in np.linspace(0, 2 * math.pi, 50)])
    assert cycle[:, poses.L_KNEE, 0].min() >= 0
    assert cycle[:, poses.L_KNEE, 0].max() > 0.8
    assert np.median(cycle[:, poses.L_KNEE, 0]) < 0.4


def test_faster_walks_take_longer_steps_and_still_arms_stay() -> None:
    slow, fast = (ankles(0.0, speed=speed) for speed in (0.7, 1.8))
    assert fast[0, 2] - fast[1, 2] > 1.2 * (slow[0, 2] - slow[1, 2])
    still = np.stack([poses.walking(p, arm_swing=0.0) for p in (0.0, 1.0, 2.0)])
    assert np.ptp(still[:, poses.L_SHOULDER], axis=0).max() == 0


def test_hands_hang_beside_the_hips_when_standing() -> None:
    body = load_body("anny_light")
    pose = torch.as_tensor(poses.standing(np.random.default_rng(0)))[None]
    joints = body(torch.zeros(1, 10), pose).joints[0]
    assert joints[20, 1] < joints[12, 1] - 0.35  # wrists well below the neck
    assert 0.12 < joints[20, 0] < 0.45
    assert -0.45 < joints[21, 0] < -0.12


def test_sitting_down_lowers_the_hips() -> None:
    body = load_body("anny_light")
    drawn = [poses.sitting_down(np.random.default_rng(seed)) for seed in range(8)]
    out = body(torch.zeros(8, 10), torch.as_tensor(np.stack(drawn)))
    height = out.joints[:, 0, 1] - out.vertices[..., 1].amin(1)
    standing = body(torch.zeros(1, 10)).joints[0, 0, 1] - body(torch.zeros(1, 10)).vertices[0, :, 1].min()
    assert bool((height < standing - 0.02).all())
    assert float(height.min()) < standing - 0.1


def test_feet_are_put_on_the_ground() -> None:
    vertices = torch.randn(3, 50, 3, generator=torch.manual_seed(0))
    shifted = vertices + poses.ground(vertices)[:, None]
    torch.testing.assert_close(shifted[..., 1].amin(1), torch.zeros(3))
    torch.testing.assert_close(shifted[..., [0, 2]], vertices[..., [0, 2]])


def test_samples_follow_their_weights_and_unknown_kinds_are_refused() -> None:
    rng = np.random.default_rng(0)
    kinds = [poses.sample({"standing": 1, "walking": 3, "phone": 0}, rng).kind for _ in range(400)]
    assert kinds.count("phone") == 0
    assert 0.65 < kinds.count("walking") / 400 < 0.85
    with pytest.raises(InputError, match="poses=flying is unknown; choose standing, "):
        poses.sample({"flying": 1}, rng)
    with pytest.raises(InputError, match="no weight is positive"):
        poses.sample({"walking": 0}, rng)


def test_a_sequence_walks_on_smoothly() -> None:
    walk = poses.walk_sequence(40, np.random.default_rng(0))
    assert walk.shape == (40, 24, 3)
    assert np.abs(np.diff(walk, axis=0)).max() < 0.35
    assert np.ptp(walk[:, poses.L_HIP, 0]) > 0.4


def test_poses_of_amass_and_of_estimators_are_read(tmp_path: Path) -> None:
    body = np.random.default_rng(0).normal(0, 0.2, (5, 63)).astype(np.float32)
    np.savez(tmp_path / "amass.npz", poses=np.concatenate([np.ones((5, 3)), body, np.zeros((5, 90))], 1))
    np.savez(tmp_path / "estimated.npz", body_pose=np.concatenate([body, np.zeros((5, 6))], 1))
    for name in ("amass", "estimated"):
        found = poses.load_poses(tmp_path / f"{name}.npz")
        np.testing.assert_allclose(found[:, 1:22].reshape(5, 63), body, atol=1e-6)
        assert not found[:, 0].any()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"poses": np.full((2, 72), np.nan)}, "not finite"),
        ({"poses": np.full((2, 72), 30.0)}, "are the poses degrees"),
        ({"poses": np.zeros((2, 30))}, "must hold 63"),
        ({"other": np.zeros((2, 72))}, "has no poses"),
    ],
)
def test_impossible_poses_are_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "poses.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        poses.load_poses(path)
    assert str(path) in str(caught.value)


def test_jitter_keeps_the_root_and_the_limits() -> None:
    base = poses.standing(np.random.default_rng(0))
    moved = poses.jitter(base, 3.0, np.random.default_rng(1))
    np.testing.assert_array_equal(moved[0], base[0])
    poses.check(moved[None], "jitter")
    assert (moved[1:] != base[1:]).all()
