"""A body put together from prisms of known girths, so that every measure has an analytic answer."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import percentileofscore
from torch import Tensor

from clip3dreid.body.measure import (
    DENSITY,
    MEASURES,
    girths,
    measure,
    percentiles,
    sample_betas,
    volume,
)
from clip3dreid.body.smpl import load_body

Outline = list[tuple[float, float]]


def ellipse(width: float, depth: float, corners: int = 180) -> Outline:
    """Corners of an ellipse with these half axes."""
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [(width * math.cos(a), depth * math.sin(a)) for a in angles]


def box(width: float, depth: float) -> Outline:
    return [(width, depth), (-width, depth), (-width, -depth), (width, -depth)]


def perimeter(outline: Outline) -> float:
    return sum(math.dist(a, b) for a, b in zip(outline, outline[1:] + outline[:1], strict=True))


def area(outline: Outline) -> float:
    pairs = zip(outline, outline[1:] + outline[:1], strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2


def prism(outline: Outline, low: float, high: float) -> tuple[Tensor, Tensor]:
    """An upright closed prism: vertices (V, 3), faces (F, 3) with outward normals."""
    count = len(outline)
    rings = [[(x, y, z) for x, z in outline] for y in (low, high)]
    vertices = torch.tensor([*rings[0], *rings[1], (0, low, 0), (0, high, 0)], dtype=torch.float64)
    i = torch.arange(count)
    j = (i + 1) % count
    bottom, top = torch.full_like(i, 2 * count), torch.full_like(i, 2 * count + 1)
    sides = [(i, i + count, j), (j, i + count, j + count), (i, j, bottom), (j + count, i + count, top)]
    return vertices, torch.cat([torch.stack(side, 1) for side in sides])


def edges_of(faces: Tensor) -> Tensor:
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return edges[edges[:, 0] < edges[:, 1]]


HIPS, WAIST, CHEST = box(0.20, 0.12), ellipse(0.13, 0.10), ellipse(0.18, 0.11)
# What the tape must pass over: it looks for the fullest chest and hips and for the narrowest waist.
UPPER_HIPS, UPPER_WAIST, LOWER_CHEST = box(0.17, 0.12), ellipse(0.16, 0.10), ellipse(0.15, 0.11)
THIGH, CALF, ARM = ellipse(0.08, 0.08), ellipse(0.05, 0.06), ellipse(0.16, 0.16)
HEAD = box(0.08, 0.10)
TORSO = [
    (HIPS, 0.785, 0.87, 3),
    (UPPER_HIPS, 0.87, 1.0, 3),
    (WAIST, 1.0, 1.1, 6),
    (UPPER_WAIST, 1.1, 1.22, 6),
    (LOWER_CHEST, 1.22, 1.26, 9),
    (CHEST, 1.26, 1.5, 9),
    (HEAD, 1.5, 1.7, 15),
]
"""Outline, lower and upper end in metres, the joint that moves it."""


class Mannequin:
    """Prisms hung on SMPL's joints. The only coefficient scales everything by 1 + 0.1 beta."""

    def __init__(self) -> None:
        self.phenotypes: dict[str, Tensor] = {}
        joints = torch.zeros(24, 3, dtype=torch.float64)
        heights = {0: 0.9, 1: 0.9, 2: 0.9, 4: 0.5, 5: 0.5, 7: 0.1, 8: 0.1, 12: 1.5, 15: 1.6}
        for joint, height in heights.items():
            joints[joint, 1] = height
        for left, right, across in (
            (1, 2, 0.1),
            (4, 5, 0.1),
            (7, 8, 0.1),
            (16, 17, 0.2),
            (18, 19, 0.5),
            (20, 21, 0.75),
        ):
            joints[left, 0], joints[right, 0] = across, -across
        joints[16:22, 1] = 1.4
        self.joints = joints
        vertices, faces, owners, start = [], [], [], 0

        def hang(piece: tuple[Tensor, Tensor], joint: int, shift: float = 0.0, lay: float = 0.0) -> None:
            nonlocal start
            points = piece[0] + torch.tensor([shift, 0, 0], dtype=torch.float64)
            if lay:
                # Lay it along x at the height of the shoulders; a turn keeps the outside outside.
                x, y, z = piece[0].unbind(1)
                points = torch.stack([lay * y, 1.4 - lay * x, z], 1)
            vertices.append(points)
            faces.append(piece[1] + start)
            owners.extend([joint] * len(points))
            start += len(points)

        for outline, low, high, joint in TORSO:
            hang(prism(outline, low, high), joint)
        for side, (hip, knee) in ((1, (1, 4)), (-1, (2, 5))):
            hang(prism(THIGH, 0.45, 0.78), hip, shift=0.1 * side)
            hang(prism(CALF, 0.0, 0.45), knee, shift=0.1 * side)
        for side, shoulder in ((1.0, 16), (-1.0, 17)):
            # From the middle of the chest outwards and deeper than it: a tape that caught the arms would show it.
            hang(prism(ARM, 0.0, 0.75), shoulder, lay=side)
        self.template, self.faces = torch.cat(vertices), torch.cat(faces)
        self.skinning_weights = torch.nn.functional.one_hot(torch.tensor(owners), 24).double()

    def rest(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        scale = (1 + 0.1 * betas[:, :1])[..., None]
        return self.template * scale, self.joints * scale


PIECES = [
    *((outline, high - low) for outline, low, high, _ in TORSO),
    *2 * [(THIGH, 0.33), (CALF, 0.45), (ARM, 0.75)],
]
KNOWN = {
    "stature": 1.7,
    "weight_index": DENSITY * sum(area(outline) * length for outline, length in PIECES) / 1.7**2,
    "shoulder_breadth": 0.4,
    "chest_girth": perimeter(CHEST),
    "waist_girth": perimeter(WAIST),
    "hip_girth": perimeter(HIPS),
    "thigh_girth": perimeter(THIGH),
    "calf_girth": perimeter(CALF),
    "upper_arm_girth": perimeter(ARM),
    "arm_length": 0.55,
    "leg_length": 0.9,
    "torso_length": 0.6,
    "neck_length": 0.1,
    "belly": 0.10 - 0.11,
}


@pytest.fixture(scope="module")
def mannequin() -> Mannequin:
    return Mannequin()


def test_the_known_answers_cover_every_measure() -> None:
    assert set(KNOWN) == set(MEASURES)


@pytest.mark.parametrize("name", KNOWN)
def test_measures_of_prisms_are_what_geometry_says(mannequin: Mannequin, name: str) -> None:
    found = measure(mannequin, torch.zeros(1, 1, dtype=torch.float64))[name]
    # Sharp corners cost a girth up to (2 pi / 36)^2 / 12.
    assert float(found) == pytest.approx(KNOWN[name], rel=3e-3)


def test_a_scaled_body_has_scaled_lengths_and_girths_in_every_row_of_a_batch(mannequin: Mannequin) -> None:
    betas = torch.tensor([[0.0], [2.0], [-1.0]], dtype=torch.float64)
    found = measure(mannequin, betas)
    for name, values in found.items():
        # Weight grows with the cube and is divided by the square.
        torch.testing.assert_close(values, values[0] * (1 + 0.1 * betas[:, 0]), msg=name)


def test_phenotypes_follow_the_betas_and_are_only_there_where_the_body_has_them() -> None:
    body = Mannequin()
    betas = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert {"gender", "muscularity"}.isdisjoint(measure(body, betas))
    body.phenotypes = {"gender": torch.tensor([0.5, 0.25]), "age": torch.tensor([0.5, 0.1])}
    found = measure(body, betas)
    # Squashed, so that nobody ties at an end: 0.5 stays, beyond it values approach 1.
    assert found["gender"].tolist() == pytest.approx([0.5, 0.5 + 0.5 * math.tanh(0.5)])
    assert "muscularity" not in found
    assert "age" not in found


@pytest.mark.parametrize(
    ("outline", "tolerance"),
    [(ellipse(0.15, 0.15), 1e-4), (ellipse(0.2, 0.1), 1e-4), (box(0.2, 0.1), 3e-3)],
    ids=["circle", "ellipse", "box"],
)
def test_a_tape_around_a_prism_is_its_perimeter_however_it_stands(outline: Outline, tolerance: float) -> None:
    vertices, faces = prism(outline, -1.0, 1.0)
    turn, _ = torch.linalg.qr(
        torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    normal = turn[:, 1]  # Where the prism's own axis goes.
    found = girths(vertices @ turn, edges_of(faces), (0.3 * normal)[:, None], normal[:, None])[:, 0]
    torch.testing.assert_close(found, torch.full_like(found, perimeter(outline)), rtol=tolerance, atol=0)


def test_a_tape_bridges_hollows() -> None:
    wide = box(0.2, 0.1)
    dented = [*wide[:1], (0.0, -0.05), *wide[1:]]  # A notch in the front.
    vertices, faces = prism(dented, -1.0, 1.0)
    up = torch.tensor([[[0.0, 1.0, 0.0]]], dtype=torch.float64)
    found = girths(vertices[None], edges_of(faces), 0.3 * up, up)
    assert float(found) == pytest.approx(perimeter(wide), rel=3e-3)
    assert perimeter(dented) > 1.03 * perimeter(wide)


def test_volume_does_not_depend_on_where_a_closed_mesh_stands() -> None:
    vertices, faces = prism(box(0.2, 0.1), -1.0, 1.0)
    moved = torch.stack([vertices, vertices + torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)])
    torch.testing.assert_close(volume(moved, faces), torch.full((2,), 0.16, dtype=torch.float64))


def test_every_measure_of_the_light_body_has_the_gradient_of_its_finite_differences() -> None:
    body = load_body("anny_light").double()
    betas = 0.5 * torch.randn(1, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = measure(body, betas)
    names = [name for name in found if name not in ("gender", "muscularity")]
    assert torch.autograd.gradcheck(
        lambda x: torch.stack([value for name, value in measure(body, x).items() if name in names]),
        (betas.requires_grad_(),),
        atol=1e-4,
    )


def test_bodies_measure_the_same_alone_and_in_a_batch() -> None:
    body = load_body("anny_light")
    betas = torch.from_numpy(sample_betas(np.random.default_rng(0), 70, shape_spread=2.5))
    together = measure(body, betas)
    for row in (0, 69):
        for name, values in measure(body, betas[row : row + 1]).items():
            torch.testing.assert_close(values[0], together[name][row], msg=name)


def test_the_light_body_keeps_the_order_of_people() -> None:
    betas = torch.from_numpy(sample_betas(np.random.default_rng(1), 40))
    full, light = (measure(load_body(name), betas) for name in ("anny", "anny_light"))
    for name, values in full.items():
        ranks = torch.stack([values, light[name]]).argsort(1).argsort(1).double()
        assert torch.corrcoef(ranks)[0, 1] > 0.98, name


def test_high_gender_is_the_female_end_of_the_shipped_body() -> None:
    betas = torch.from_numpy(sample_betas(np.random.default_rng(2), 100))
    found = measure(load_body("anny_light"), betas)
    for other in (found["waist_girth"] / found["hip_girth"], found["shoulder_breadth"] / found["stature"]):
        assert torch.corrcoef(torch.stack([found["gender"], other]))[0, 1] < -0.3


def test_percentiles_are_mid_ranks_also_among_ties() -> None:
    known, asked = torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 1.0, 2.0, 2.5, 5.0, 9.0])
    found = percentiles({"stature": asked}, {"stature": known})["stature"]
    expected = [percentileofscore(known, value, kind="mean") for value in asked]
    assert found.tolist() == pytest.approx(expected)


def test_betas_have_their_spreads_and_are_truncated_before_them() -> None:
    betas = sample_betas(np.random.default_rng(3), 4000, 4, stature_spread=0.5, shape_spread=2.5)
    assert betas.dtype == np.float32
    assert betas.shape == (4000, 4)
    assert np.abs(betas).max(0) == pytest.approx(2.5 * np.array([0.5, 2.5, 2.5, 2.5]), rel=0.03)
    assert (np.abs(betas).max(0) <= 2.5 * np.array([0.5, 2.5, 2.5, 2.5])).all()
    # A normal truncated at 2.5 standard deviations has 0.955 of its spread.
    assert betas.std(0) == pytest.approx(0.955 * np.array([0.5, 2.5, 2.5, 2.5]), rel=0.04)


def test_the_same_seed_draws_the_same_people() -> None:
    draws = [sample_betas(np.random.default_rng([7, 1]), 20) for _ in range(2)]
    assert np.array_equal(*draws)
    assert not np.array_equal(draws[0], sample_betas(np.random.default_rng([7, 2]), 20))
