import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from clip3dreid.body.official import load_smpl, load_smplx
from clip3dreid.body.smpl import load_body, read_arrays
from clip3dreid.errors import InputError


@pytest.fixture
def chumpy(monkeypatch: pytest.MonkeyPatch) -> type:
    """A stand-in for chumpy at the time of writing; reading finds no such module."""
    module = types.ModuleType("chumpy.ch")

    class Ch:
        def __init__(self, x: np.ndarray) -> None:
            self.x = x

    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    module.Ch = Ch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    monkeypatch.setitem(sys.modules, "chumpy.ch", module)
    return Ch


@pytest.mark.usefixtures("smplx")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_an_official_pickle_is_read_without_chumpy(
    tmp_path: Path, chumpy: type, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = read_arrays("anny_light")
    official: dict[str, object] = {
        "v_template": chumpy(arrays["v_template"].astype(np.float64)),
        "shapedirs": chumpy(arrays["shapedirs"].astype(np.float64)),
        "posedirs": np.zeros((1200, 3, 207)),
        "J_regressor": scipy.sparse.csc_matrix(arrays["J_regressor"]),
        "weights": chumpy(arrays["weights"].astype(np.float64)),
        "kintree_table": np.array([[2**32 - 1, *arrays["kintree_table"][0, 1:]], range(24)], np.uint32),
        "f": arrays["f"].astype(np.uint32),
        "bs_type": "lrotmin",
    }
    path = tmp_path / "SMPL_NEUTRAL.pkl"
    path.write_bytes(pickle.dumps(official, protocol=protocol))
    monkeypatch.delitem(sys.modules, "chumpy")
    monkeypatch.delitem(sys.modules, "chumpy.ch")
    betas, pose = torch.randn(2, 10, generator=torch.manual_seed(0)), torch.full((2, 24, 3), 0.1)
    expected = load_body("anny_light")(betas, pose)
    for body in (load_body(path), load_smpl(path)):
        vertices, joints = body(betas, pose)
        torch.testing.assert_close(vertices, expected.vertices, atol=2e-5, rtol=0)
        torch.testing.assert_close(joints, expected.joints, atol=2e-5, rtol=0)


def fake_smplx(path: Path) -> Path:
    """A file of SMPL-X's keys over the full body: smplx looks up vertex numbers of the real one."""
    arrays = read_arrays("anny")
    vertices = len(arrays["v_template"])
    parents = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
    for wrist, start in ((20, 25), (21, 40)):
        parents += [wrist if i % 3 == 0 else start + i - 1 for i in range(15)]
    regressor, weights = np.zeros((55, vertices)), np.zeros((vertices, 55))
    regressor[:22], weights[:, :22] = arrays["J_regressor"][:22], arrays["weights"][:, :22]
    owner = arrays["weights"].astype(float)
    for hand, joints in ((22, range(25, 40)), (23, range(40, 55))):
        regressor[list(joints)] = arrays["J_regressor"][hand]
        weights[:, 28 if hand == 22 else 43] += owner[:, hand]
    regressor[22:25] = arrays["J_regressor"][15]
    np.savez(
        path,
        v_template=arrays["v_template"],
        shapedirs=np.concatenate([arrays["shapedirs"].astype(float), np.zeros((vertices, 3, 390))], -1),
        posedirs=np.zeros((vertices, 3, 486)),
        J_regressor=regressor,
        weights=weights / weights.sum(1, keepdims=True),
        kintree_table=np.array([parents, range(55)]),
        f=arrays["f"],
        joint2num=np.array({"a": 1}, dtype=object),
    )
    return path


@pytest.mark.usefixtures("smplx")
def test_smplx_takes_the_same_pose_and_gives_the_same_joints(tmp_path: Path) -> None:
    body = load_smplx(fake_smplx(tmp_path / "SMPLX_NEUTRAL.npz"))
    betas, pose = torch.randn(2, 10, generator=torch.manual_seed(0)), torch.zeros(2, 24, 3)
    pose[:, 1:22] = 0.1
    expected = load_body("anny")(betas, pose)
    vertices, joints = body(betas, pose)
    torch.testing.assert_close(joints, expected.joints, atol=2e-4, rtol=0)
    torch.testing.assert_close(vertices, expected.vertices, atol=2e-3, rtol=0)
    assert body.skinning_weights.shape == (13718, 24)
    torch.testing.assert_close(body.skinning_weights.sum(1), torch.ones(13718), atol=1e-4, rtol=0)
    assert (body.num_betas, body.num_vertices) == (10, 13718)


def test_no_path_says_where_files_come_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"smpl\.is\.tue\.mpg\.de"):
        load_smpl(None)
    with pytest.raises(InputError, match=r"smpl-x\.is\.tue\.mpg\.de"):
        load_smplx(tmp_path / "missing.npz")
    with pytest.raises(InputError, match="use body=smpl"):
        load_smplx(_smpl_as_npz(tmp_path))


def _smpl_as_npz(folder: Path) -> Path:
    path = folder / "smpl.npz"
    np.savez(path, posedirs=np.zeros((1200, 3, 207)), **read_arrays("anny_light"))
    return path


@pytest.mark.parametrize(
    ("key", "change", "told"),
    [
        ("kintree_table", lambda array: array + 10**6, "no tree of joints"),
        ("kintree_table", lambda array: array[:, ::-1], "no tree of joints"),
        ("f", lambda array: array + 7, "vertices that do not exist"),
        ("posedirs", lambda array: array[:2], r"posedirs is \(2, 3, 486\) and must be \(4, 3, 486\)"),
        ("shapedirs", lambda array: array[..., 0], r"shapedirs is \(4, 3\)"),
        ("weights", lambda array: array * np.nan, "not all finite"),
        ("v_template", lambda array: array[0, 0], r"v_template is \(\)"),
    ],
)
def test_a_smplx_file_whose_arrays_do_not_fit_is_one_line(
    tmp_path: Path, key: str, change: Callable[[np.ndarray], np.ndarray], told: str
) -> None:
    arrays = {
        "v_template": np.zeros((4, 3)),
        "shapedirs": np.zeros((4, 3, 20)),
        "posedirs": np.zeros((4, 3, 486)),
        "J_regressor": np.zeros((55, 4)),
        "weights": np.full((4, 55), 1 / 55),
        "kintree_table": np.array([[-1, *range(54)], range(55)]),
        "f": np.array([[0, 1, 2]]),
    }
    path = tmp_path / "SMPLX_NEUTRAL.npz"
    np.savez(path, **(arrays | {key: change(arrays[key])}))
    with pytest.raises(InputError, match=told) as error:
        load_smplx(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_without_smplx_its_reader_says_how_it_is_had_and_on_which_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "smplx", None)
    with pytest.raises(InputError, match=r"clip3dreid\[smpl\].*make install-smpl.*non-commercial research"):
        load_smpl(_smpl_as_npz(tmp_path))
