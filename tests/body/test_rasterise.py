"""The z-buffer, against exact whole-number arithmetic and analytic shapes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import clip3dreid.body.rasterise as module
from clip3dreid.body.rasterise import Fragments, coverage, interpolate, rasterise
from clip3dreid.body.render import project
from clip3dreid.errors import InputError
from tests.body import meshes

TRIANGLE = torch.tensor([[0, 1, 2]])


def brute_force(points: np.ndarray, faces: np.ndarray, height: int, width: int, cull: bool) -> np.ndarray:
    """(H, W) face seen at each centre, by the edge functions of all faces at all centres, in whole numbers.

    Points must lie on the grid of 1/256 pixel. A centre on an edge belongs to the face if it is a left or top edge.
    """
    grid = np.rint(points[:, :2] * 256).astype(np.int64)
    x, y = np.meshgrid(np.arange(width) * 256 + 128, np.arange(height) * 256 + 128)
    nearest, seen = np.full((height, width), np.inf), np.full((height, width), -1)
    for number, face in enumerate(faces):
        (ax, ay), (bx, by), (cx, cy) = grid[face]
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area == 0 or (cull and area > 0):
            continue
        order = face if area > 0 else face[[0, 2, 1]]
        inside, inverse = np.ones((height, width), bool), np.zeros((height, width))
        for k in range(3):
            (px, py), (qx, qy) = grid[order[k]], grid[order[(k + 1) % 3]]
            edge = (qx - px) * (y - py) - (qy - py) * (x - px)
            inside &= (edge > 0) | ((edge == 0) & bool(qy < py or (qy == py and qx > px)))
            inverse += edge / abs(area) / points[order[(k + 2) % 3], 2]
        depth = np.where(inside, 1 / np.where(inside, inverse, 1), np.inf)
        closer = depth < nearest * (1 - 1e-6)
        nearest[closer], seen[closer] = depth[closer], number
    return seen


@pytest.mark.parametrize("cull", [True, False])
@pytest.mark.parametrize("grid", [2, 256])
def test_every_pixel_sees_the_face_that_whole_number_arithmetic_finds(cull: bool, grid: int) -> None:
    # On a grid of half pixels a good part of all centres lies on an edge or a vertex.
    rng = np.random.default_rng([grid, cull])
    points = np.concatenate(
        [rng.integers(-8 * grid, 40 * grid, (60, 2)) / grid, rng.uniform(1, 9, (60, 1))], 1
    )
    faces = rng.permuted(np.tile(np.arange(60), (50, 1)), axis=1)[:, :3]
    expected = brute_force(points, faces, 24, 32, cull)
    got = rasterise(torch.tensor(points)[None], torch.tensor(faces), 24, 32, cull)
    assert len(np.unique(expected)) > 10
    np.testing.assert_array_equal(got.face[0].numpy(), expected)


def test_faces_that_share_edges_leave_no_crack_and_draw_no_pixel_twice() -> None:
    vertices, faces = meshes.sphere(16, 24)
    points = project(vertices[None], meshes.camera(yaw=0.3, pitch=0.4), 90, 70)
    whole = coverage(points, faces, 90, 70)[0]
    # Each face as a mesh of its own. A sphere is convex, so its front faces never lie behind each other.
    alone = coverage(points[0][faces], TRIANGLE, 90, 70).sum(0)
    assert int(whole.sum()) > 1000
    torch.testing.assert_close(alone, whole.long(), rtol=0, atol=0)
    # No hole within a row either, wherever two faces meet.
    for row in whole:
        filled = row.nonzero()[:, 0]
        assert len(filled) == 0 or int(filled[-1] - filled[0]) + 1 == len(filled)


def test_a_fan_around_a_pixel_centre_covers_it_once() -> None:
    rim = torch.tensor([[math.cos(a), math.sin(a)] for a in torch.arange(9) * (2 * math.pi / 9)])
    points = torch.cat([torch.tensor([[4.5, 4.5]]), 4.5 + 3 * rim])
    points = torch.cat([points, torch.ones(10, 1)], 1)
    fan = torch.tensor([[0, 1 + k, 1 + (k + 1) % 9] for k in range(9)])
    hits = coverage(points[fan], TRIANGLE, 9, 9, cull=False).sum(0)
    assert hits[4, 4] == 1
    assert hits.max() == 1


def test_a_sphere_has_its_analytic_silhouette_and_depth() -> None:
    vertices, faces = meshes.sphere(96, 192)
    size, distance, field = 200, 4.0, 0.8
    points = project(vertices[None], meshes.camera(distance=distance, field_of_view=field), size, size)
    seen = rasterise(points, faces, size, size)
    focal = size / 2 / math.tan(field / 2)
    radius = focal / math.sqrt(distance**2 - 1)
    assert (seen.face >= 0).sum().item() == pytest.approx(math.pi * radius**2, rel=0.003)
    # Along the ray of a pixel: the nearer root of |origin + t ray|^2 = 1.
    offset = (torch.arange(size) + 0.5 - size / 2) / focal
    squared = offset[:, None] ** 2 + offset[None] ** 2 + 1
    inside = (offset[:, None] ** 2 + offset[None] ** 2).sqrt() < 0.95 * radius / focal
    depth = (distance - (distance**2 - squared * (distance**2 - 1)).clamp_min(0).sqrt()) / squared
    assert (seen.depth[0] - depth)[inside].abs().max() < 2e-3
    assert bool((seen.depth[0][seen.face[0] < 0] == torch.inf).all())


def test_a_box_seen_from_the_front_covers_its_near_side_and_nothing_more() -> None:
    vertices, faces = meshes.box((1.0, 2.0, 0.5))
    focal = 100 / 2 / math.tan(0.4)
    points = project(vertices[None], meshes.camera(distance=4.25, field_of_view=0.8), 100, 80)
    seen = rasterise(points, faces, 100, 80)
    half_width, half_height = 0.5 * focal / 4, 1.0 * focal / 4
    x, y = torch.arange(80) + 0.5 - 40, torch.arange(100) + 0.5 - 50
    expected = (y.abs() < half_height)[:, None] & (x.abs() < half_width)[None]
    torch.testing.assert_close(seen.face[0] >= 0, expected)
    torch.testing.assert_close(seen.depth[0][expected], torch.full((int(expected.sum()),), 4.0))


@pytest.mark.parametrize("near_first", [True, False])
def test_the_nearer_of_two_triangles_is_seen_whatever_their_order(near_first: bool) -> None:
    shape = torch.tensor([[1.0, 1], [1, 19], [19, 1]])
    near, far = (torch.cat([shape, torch.full((3, 1), depth)], 1) for depth in (2.0, 3.0))
    points = torch.cat([near, far] if near_first else [far, near])[None]
    seen = rasterise(points, torch.tensor([[0, 1, 2], [3, 4, 5]]), 20, 20)
    drawn = seen.face[seen.face >= 0]
    assert len(drawn) > 100
    assert bool((drawn == (0 if near_first else 1)).all())


def test_of_crossing_triangles_each_is_seen_where_it_is_nearer() -> None:
    left = torch.tensor([[0.0, 0, 1], [0, 20, 1], [20, 0, 3], [20, 20, 3]])
    right = left * torch.tensor([-1.0, 1, 1]) + torch.tensor([20.0, 0, 0])
    faces = torch.tensor([[0, 1, 2], [2, 1, 3], [4, 5, 6], [6, 5, 7]])
    seen = rasterise(torch.cat([left, right])[None], faces, 20, 20, cull=False)
    assert bool((seen.face[0, :, :10] < 2).all())
    assert bool((seen.face[0, :, 10:] >= 2).all())


def test_of_equally_near_faces_the_lowest_number_is_seen() -> None:
    points = torch.tensor([[1.0, 1, 2], [1, 19, 2], [19, 1, 2]]).repeat(3, 1)[None]
    faces = torch.tensor([[6, 7, 8], [3, 4, 5], [0, 1, 2]])
    seen = rasterise(points, faces, 20, 20).face
    assert set(seen.unique().tolist()) == {-1, 0}


def test_depths_one_part_in_a_million_apart_are_told_apart() -> None:
    points = torch.tensor([[1.0, 1, 4], [1, 19, 4], [19, 1, 4]], dtype=torch.float64).repeat(2, 1)
    points[3:, 2] -= 4e-6
    seen = rasterise(points[None], torch.tensor([[0, 1, 2], [3, 4, 5]]), 20, 20).face
    assert set(seen.unique().tolist()) == {-1, 1}


def layers(count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squares over the whole picture at shuffled depths."""
    depth = torch.from_numpy(np.random.default_rng(5).permutation(count)) / count + 1
    corners = torch.tensor([[0.0, 0], [0, size], [size, 0], [size, size]])
    points = torch.cat([corners.repeat(count, 1), depth.repeat_interleave(4)[:, None]], 1).float()
    faces = (torch.arange(count) * 4)[:, None, None] + torch.tensor([[0, 1, 2], [2, 1, 3]])
    return points[None], faces.view(-1, 3), depth


def test_more_than_two_million_pairs_of_face_and_pixel_are_sorted_out() -> None:
    points, faces, depth = layers(600, 64)
    assert 600 * 64 * 64 > 2 * 2**20 > 2 * module.MAX_PAIRS - 1
    seen = rasterise(points, faces, 64, 64)
    assert bool((torch.div(seen.face, 2, rounding_mode="floor") == depth.argmin()).all())
    torch.testing.assert_close(seen.depth, depth.min().float().expand(1, 64, 64))


@pytest.mark.parametrize("limit", [1, 7, 300])
def test_the_size_of_the_pieces_changes_nothing(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = meshes.sphere(8, 10)
    scale = torch.tensor([1.0, 0.5, 0.8])[:, None, None]
    points = project(vertices * scale, meshes.camera(3, yaw=0.2), 20, 16)
    expected = rasterise(points, faces, 20, 16)
    monkeypatch.setattr(module, "MAX_PAIRS", limit)
    for got, want in zip(rasterise(points, faces, 20, 16), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_slanted_plane_is_interpolated_in_perspective() -> None:
    corners = torch.tensor([[-2.0, -1, 3], [-2, -1, -6], [2, -1, 3], [2, -1, -6]], dtype=torch.float64)
    faces = torch.tensor([[0, 2, 1], [2, 3, 1]])
    view = meshes.camera(distance=5, field_of_view=1.0, dtype=torch.float64)
    seen = rasterise(project(corners[None], view, 120, 120), faces, 120, 120)
    drawn = seen.face[0] >= 0
    assert int(drawn.sum()) > 1000
    focal = 60 / math.tan(0.5)
    row, column = drawn.nonzero().unbind(1)
    depth = focal / (row + 0.5 - 60)  # the ground lies one metre below the camera
    expected = torch.stack([(column + 0.5 - 60) * depth / focal, -torch.ones_like(depth), 5 - depth], 1)
    torch.testing.assert_close(
        interpolate(corners, faces, seen)[0][drawn], expected.double(), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(seen.depth[0][drawn], depth.double(), rtol=1e-5, atol=0)


def test_weights_are_a_partition_of_one_and_empty_pixels_have_none() -> None:
    vertices, faces = meshes.sphere()
    seen = rasterise(project(vertices[None], meshes.camera(), 60, 40), faces, 60, 40)
    total = seen.barycentric.sum(3)
    torch.testing.assert_close(total, (seen.face >= 0).float())
    assert seen.barycentric.min() >= 0
    assert bool((interpolate(torch.ones(len(vertices), 2), faces, seen)[seen.face < 0] == 0).all())


def test_gradients_of_weights_and_depth_are_those_of_the_numbers() -> None:
    points = torch.tensor(
        [[[1.2, 0.7, 2], [0.3, 7.1, 3], [7.8, 6.2, 4]]], dtype=torch.float64, requires_grad=True
    )

    def drawn(moved: Tensor) -> tuple[Tensor, Tensor]:
        seen = rasterise(moved, TRIANGLE, 8, 8)
        inside = seen.face >= 0
        assert int(inside.sum()) > 10
        return seen.barycentric[inside], seen.depth[inside]

    assert torch.autograd.gradcheck(drawn, (points,))


def test_gradients_of_interpolation_are_those_of_the_numbers() -> None:
    vertices, faces = meshes.sphere(4, 5, torch.float64)
    points = project(vertices.expand(2, -1, -1), meshes.camera(2, yaw=0.4, dtype=torch.float64), 9, 7)
    seen = rasterise(points, faces, 9, 7)

    def colours(attributes: Tensor, barycentric: Tensor) -> Tensor:
        return interpolate(attributes, faces, Fragments(seen.face, barycentric, seen.depth))

    rng = np.random.default_rng(0)
    for shape in ((2, len(vertices), 2), (len(vertices), 2)):
        attributes = torch.tensor(rng.normal(size=shape), requires_grad=True)
        weights = seen.barycentric.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(colours, (attributes, weights))


@pytest.mark.parametrize(
    "corners",
    [
        [[5.0, 5, 2], [5, 5, 2], [5, 5, 2]],  # a point
        [[1.5, 1.5, 2], [5.5, 5.5, 2], [9.5, 9.5, 2]],  # a line through pixel centres
        [[-9.0, 1, 2], [-9, 9, 2], [-1, 1, 2]],  # left of the picture
        [[1.0, 21, 2], [1, 29, 2], [9, 21, 2]],  # below it
        [[1.0, 1, -2], [1, 9, -2], [9, 1, -2]],  # behind the camera
        [[1.0, 1, 2], [1, 9, 2], [9, 1, 0]],  # partly at the camera's own plane
        [[1.0, 1, 2], [1, 9, 2], [9, 1, -0.5]],  # partly behind it
        [[1.0, 1, 2], [1, 9, 2], [9, 1, 0.009]],
        [[1.0, 1, 2], [1, 9, math.nan], [9, 1, 2]],
        [[1.0, 1, 2], [1, 9, math.inf], [9, 1, 2]],
        [[1.0, 1, 2], [math.nan, 9, 2], [9, 1, 2]],
        [[1.0, 1, 2], [1, 9, 2], [1e5, 1, 2]],
        [[1.0, 1, 2], [9, 1, 2], [1, -1e5, 2]],
        [[1.0, 1, 2], [9, 1, 2], [1, 1e5, 2]],
        [[5.1, 5.1, 2], [5.1, 5.4, 2], [5.4, 5.1, 2]],  # between the centres
    ],
)
def test_faces_that_cannot_be_drawn_draw_nothing(corners: list[list[float]]) -> None:
    seen = rasterise(torch.tensor([corners]), TRIANGLE, 20, 20, cull=False)
    assert bool((seen.face == -1).all())
    assert bool((seen.barycentric == 0).all())
    assert bool((seen.depth == torch.inf).all())


def test_a_face_that_only_snapping_gives_an_area_has_finite_weights_and_gradients() -> None:
    ends = torch.tensor([[1.1669921875, 14.9443359375], [8.5009765625, 5.724609375]], dtype=torch.float64)
    corners = torch.cat([ends, ends.mean(0, keepdim=True)])  # exactly on a line
    points = torch.cat([corners, torch.full((3, 1), 2, dtype=torch.float64)], 1)[None].requires_grad_()
    seen = rasterise(points, TRIANGLE, 16, 16, cull=False)
    assert (seen.face >= 0).nonzero().tolist() == [[0, 9, 5]]
    torch.testing.assert_close(seen.barycentric[0, 9, 5], torch.full((3,), 1 / 3, dtype=torch.float64))
    (seen.barycentric[..., 0].sum() + seen.depth[seen.face >= 0].sum()).backward()
    assert points.grad is not None
    assert bool(points.grad.isfinite().all())


@pytest.mark.parametrize(("edge", "inside"), [(10.5035, True), (10.5, False), (10.4965, False)])
def test_a_vertex_goes_to_the_nearest_part_of_a_pixel(edge: float, inside: bool) -> None:
    points = torch.tensor([[[1.0, 0, 2], [1, 30, 2], [edge, 0, 2], [edge, 30, 2]]])
    seen = coverage(points, torch.tensor([[0, 1, 2], [2, 1, 3]]), 20, 20)[0]
    assert bool((seen[:, 10] == inside).all())
    assert bool(seen[:, 1:10].all())


def test_pieces_hold_everything_once_and_no_more_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 50)
    counts = torch.tensor(np.random.default_rng(3).integers(0, 20, 500))
    counts[7] = 400  # more than a piece on its own
    pieces = list(module._pieces(counts))
    assert [k for piece in pieces for k in range(piece.start, piece.stop)] == list(range(500))
    for piece in pieces:
        assert int(counts[piece][:-1].sum()) < 2 * 50
    assert list(module._pieces(counts[:0])) == []


def test_no_mesh_and_no_face_give_empty_pictures() -> None:
    assert rasterise(torch.zeros(0, 3, 3), TRIANGLE, 4, 5).face.shape == (0, 4, 5)
    assert bool((rasterise(torch.ones(1, 3, 3), TRIANGLE[:0], 4, 5).face == -1).all())


@pytest.mark.parametrize(
    ("points", "faces", "size"),
    [
        (torch.ones(3, 3), TRIANGLE, 4),
        (torch.ones(1, 3, 3, dtype=torch.int64), TRIANGLE, 4),
        (torch.ones(1, 3, 3), TRIANGLE.float(), 4),
        (torch.ones(1, 3, 3), TRIANGLE + 1, 4),
        (torch.ones(1, 3, 3), TRIANGLE - 1, 4),
        (torch.ones(1, 3, 3), TRIANGLE, 0),
    ],
)
def test_input_that_does_not_fit_is_refused(points: Tensor, faces: Tensor, size: int) -> None:
    with pytest.raises(InputError, match="give"):
        rasterise(points, faces, size, size)
