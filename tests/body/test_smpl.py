from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from clip3dreid.body.official import load_smpl
from clip3dreid.body.smpl import BodyModel, load_body, read_arrays, rotation_matrices, shipped
from clip3dreid.errors import InputError


@pytest.fixture(scope="module")
def light() -> BodyModel:
    return load_body("anny_light")


def random_pose(count: int, seed: int = 0) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(0, 0.4, (count, 24, 3)), dtype=torch.float32)


def random_betas(count: int, seed: int = 1) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(0, 2, (count, 10)), dtype=torch.float32)


def altered(tmp_path: Path, **changes: object) -> Path:
    arrays = dict[str, object](read_arrays("anny_light")) | changes
    path = tmp_path / "body.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_rotations_are_those_of_scipy_and_smooth_at_zero() -> None:
    turns = np.random.default_rng(0).normal(0, 1.5, (50, 3))
    turns[0], turns[1] = 0, 1e-9
    found = rotation_matrices(torch.as_tensor(turns))
    np.testing.assert_allclose(found.numpy(), Rotation.from_rotvec(turns).as_matrix(), atol=1e-12)
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation_matrices, zero)


@pytest.mark.usefixtures("smplx")
@pytest.mark.parametrize("correctives", [False, True])
def test_smplx_agrees_on_the_same_file(tmp_path: Path, correctives: bool) -> None:
    path = shipped("anny_light")
    if correctives:
        directions = np.random.default_rng(2).normal(0, 0.002, (1200, 3, 207)).astype(np.float32)
        path = altered(tmp_path, posedirs=directions)
    betas, pose, shift = random_betas(4), random_pose(4), torch.randn(4, 3, generator=torch.manual_seed(0))
    ours, theirs = load_body(path)(betas, pose, shift), load_smpl(path)(betas, pose, shift)
    torch.testing.assert_close(ours.vertices, theirs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.joints, theirs[1], atol=1e-5, rtol=0)


def test_no_pose_is_the_zero_pose(light: BodyModel) -> None:
    betas = random_betas(2)
    torch.testing.assert_close(
        light(betas).vertices, light(betas, torch.zeros(2, 24, 3)).vertices, atol=1e-5, rtol=0
    )


def test_turning_the_root_turns_everything_about_the_pelvis(light: BodyModel) -> None:
    betas, pose = random_betas(1), torch.zeros(1, 24, 3)
    pose[0, 0] = torch.tensor([0.3, -1.1, 0.4])
    rest, turned = light(betas), light(betas, pose)
    rotation = rotation_matrices(pose[:, 0])
    pelvis = rest.joints[:, :1]
    expected = (rest.vertices - pelvis) @ rotation.transpose(1, 2) + pelvis
    torch.testing.assert_close(turned.vertices, expected, atol=1e-5, rtol=0)


def test_gradients_in_shape_pose_and_place(light: BodyModel) -> None:
    body = load_body("anny_light").double()
    some = slice(0, 1200, 150)
    inputs = [random_betas(1).double(), random_pose(1).double(), torch.zeros(1, 3, dtype=torch.float64)]
    for value in inputs:
        value.requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: body(*a).vertices[:, some], inputs, fast_mode=True)


def test_shapes_that_do_not_fit_are_refused(light: BodyModel) -> None:
    with pytest.raises(InputError, match=r"takes \(B, 10\)"):
        light(torch.zeros(1, 9))
    with pytest.raises(InputError, match="pose is"):
        light(torch.zeros(1, 10), torch.zeros(1, 23, 3))
    with pytest.raises(InputError, match="shape components"):
        load_body("anny_light", num_betas=11)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": None}, "has no weights"),
        ({"v_template": np.zeros((1200, 2), np.float32)}, "v_template is"),
        ({"J_regressor": np.zeros((23, 1200), np.float32)}, "J_regressor is"),
        ({"shapedirs": np.full((1200, 3, 10), np.nan, np.float32)}, "not all finite"),
        ({"f": np.full((4, 3), 1200)}, "vertices that do not exist"),
        ({"weights": np.zeros((1200, 24), np.float32)}, "do not sum to 1"),
        ({"kintree_table": np.zeros((2, 24), np.int64)}, "tree of 24 joints"),
    ],
)
def test_a_file_that_is_no_body_is_refused_by_name(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = altered(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        load_body(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        load_body(tmp_path / "none.npz")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(shipped("anny_light").read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be read"):
        load_body(broken)
