"""Camera, light and pictures, against analytic shapes and other ways to compute them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip3dreid.body.render import (
    Camera,
    Light,
    Rendering,
    downsample,
    ground_shadow,
    project,
    rasterise,
    render,
    shade,
    vertex_normals,
)
from clip3dreid.errors import InputError
from tests.body import meshes


def look_at(
    points: np.ndarray, eye: np.ndarray, target: np.ndarray, field_of_view: float, size: int
) -> np.ndarray:
    """The textbook's camera: a view matrix from eye, target and the y axis."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, 1, 0])
    right /= np.linalg.norm(right)
    view = np.stack([right, np.cross(right, forward), forward])
    x, y, z = view @ (points - eye).T
    focal = size / 2 / np.tan(field_of_view / 2)
    return np.stack([size / 2 + focal * x / z, size / 2 - focal * y / z, z], 1)


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.7, 0.3), (-2.5, -0.4), (math.pi, 1.2)])
def test_projection_agrees_with_a_view_matrix(yaw: float, pitch: float) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    target = np.array([0.2, 0.9, -0.1])
    away = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
    expected = look_at(points, target + 5 * away, target, 0.7, 100)
    view = meshes.camera(1, yaw, pitch, 5, 0.7, tuple(target), torch.float64)
    got = project(torch.tensor(points)[None], view, 100, 100)[0]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


def test_from_the_front_the_left_hand_is_on_the_right_and_the_head_on_top() -> None:
    hand, head = project(torch.tensor([[[0.5, 0, 0], [0, 0.5, 0]]]), meshes.camera(), 100, 50)[0]
    assert hand[0] > 25
    assert hand[1] == 50
    assert head[1] < 50
    assert head[0] == 25


def test_a_camera_that_looks_down_sees_near_ground_low_in_the_picture() -> None:
    near, far = project(torch.tensor([[[0.0, 0, 1], [0, 0, -1]]]), meshes.camera(pitch=0.5), 100, 100)[0]
    assert near[1] > 50 > far[1]


def test_a_box_is_a_cut_out_of_the_frame() -> None:
    points = torch.tensor(np.random.default_rng(1).uniform(-1, 1, (1, 20, 3)))
    view = meshes.camera(dtype=torch.float64)
    frame = project(points, view, 200, 200)
    # The frame's pixels 40..120 across and 20..180 down, at half the width and the full height.
    cut = torch.tensor([[0.2, 0.1, 0.6, 0.9]], dtype=torch.float64)
    got = project(points, view, 160, 40, cut)
    torch.testing.assert_close(got[..., 0], (frame[..., 0] - 40) / 2)
    torch.testing.assert_close(got[..., 1], frame[..., 1] - 20)
    torch.testing.assert_close(got[..., 2], frame[..., 2])


def test_without_a_box_pixels_are_square_and_the_target_is_in_the_middle() -> None:
    points = torch.tensor([[[0.0, 0, 0], [0.3, 0.3, 0]]])
    middle, corner = project(points, meshes.camera(), 200, 100)[0, :, :2]
    torch.testing.assert_close(middle, torch.tensor([50.0, 100]))
    assert corner[0] - 50 == pytest.approx(100 - corner[1].item(), abs=1e-4)


def test_normals_of_a_sphere_are_its_points() -> None:
    vertices, faces = meshes.sphere(40, 80)
    assert (vertex_normals(vertices[None] * 3, faces)[0] - vertices).abs().max() < 0.02


def test_normals_are_weighted_by_area() -> None:
    # The corner of two triangles at right angles, one of twice the area of the other.
    vertices = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1]]])
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    torch.testing.assert_close(normals[0, 0], torch.tensor([1.0, 0, 2]) / math.sqrt(5))


def test_a_vertex_without_area_has_no_normal_and_no_gradient() -> None:
    vertices = torch.zeros(1, 3, 3, requires_grad=True)
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2]]))
    normals.sum().backward()
    assert bool((normals == 0).all())
    assert vertices.grad is not None
    assert bool(vertices.grad.isfinite().all())


def test_shading_is_lamberts_law() -> None:
    lamp = Light(
        torch.tensor([[0.0, 2, 0]]), torch.tensor([0.2]), torch.tensor([0.6]), torch.tensor([[1.0, 0.5, 1]])
    )
    normals = torch.tensor([[[[0.0, 3, 0], [0, 1, math.sqrt(3)], [0, -1, 0]]]])
    got = shade(torch.tensor([0.5, 0.5, 0]).expand(1, 1, 3, 3), normals, lamp)
    expected = torch.tensor([0.2 + 0.6, 0.2 + 0.3, 0.2])[:, None] * torch.tensor([0.5, 0.25, 0])
    torch.testing.assert_close(got[0, 0], expected)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_downsampling_averages_squares(factor: int) -> None:
    picture = torch.tensor(np.random.default_rng(2).random((2, 12, 6, 5)))
    expected = F.avg_pool2d(picture.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    torch.testing.assert_close(downsample(picture, factor), expected)
    torch.testing.assert_close(downsample(picture[..., 0], factor), expected[..., 0])


def scene(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Camera, Light]:
    """Three different ellipsoids above the ground, before different cameras and lights."""
    vertices, faces = meshes.sphere(20, 30, dtype)
    axes = torch.tensor([[0.5, 0.9, 0.4], [0.7, 0.8, 0.6], [0.3, 0.6, 0.9]], dtype=dtype)
    bodies = vertices * axes[:, None] + torch.tensor([0, 1, 0], dtype=dtype)
    rng = np.random.default_rng(4)
    colours = torch.tensor(rng.random((3, len(vertices), 3)), dtype=dtype)
    view = meshes.camera(3, distance=5, target=(0, 1, 0), dtype=dtype)
    view = view._replace(
        yaw=torch.tensor([0, 1, -2], dtype=dtype), pitch=torch.tensor([0.3, 0.1, 0.6], dtype=dtype)
    )
    lamps = meshes.light(3, dtype=dtype)
    lamps = lamps._replace(direction=torch.tensor([[0, 1, 1], [1, 1, 0], [-1, 2, 1]], dtype=dtype))
    return bodies, faces, colours, view, lamps


def draw(dtype: torch.dtype = torch.float32, device: str = "cpu", rows: slice = slice(None)) -> Rendering:
    bodies, faces, colours, view, lamps = scene(dtype)
    parts = torch.where(bodies[0, :, 1] > 1, 5, 2)
    return render(
        bodies[rows].to(device),
        faces.to(device),
        colours[rows].to(device),
        Camera(*(value[rows].to(device) for value in view)),
        Light(*(value[rows].to(device) for value in lamps)),
        64,
        32,
        background=torch.tensor([0.6, 0.6, 0.7], device=device),
        parts=parts.to(device),
        shadow=True,
    )


def test_a_batch_gives_the_bits_of_its_meshes_one_by_one() -> None:
    together = draw()
    for mesh in range(3):
        for whole, alone in zip(together, draw(rows=slice(mesh, mesh + 1)), strict=True):
            assert isinstance(whole, Tensor)
            assert isinstance(alone, Tensor)
            assert torch.equal(whole[mesh : mesh + 1], alone)


def agree(one: Rendering, other: Rendering) -> None:
    """Colours within 1/255 but for a pixel in two hundred, at most, where an edge crosses a centre."""
    apart = (one.colour.double().cpu() - other.colour.double().cpu()).abs().amax(3) > 1 / 255
    assert apart.double().mean() < 0.005
    inside = (one.mask == 1).cpu() & (other.mask == 1).cpu()
    assert int(inside.sum()) > 500
    assert (apart & inside).sum() <= 2


def test_single_and_double_precision_draw_the_same_picture() -> None:
    agree(draw(torch.float32), draw(torch.float64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_picture() -> None:
    agree(draw(), draw(device="cuda"))


def test_mask_is_the_part_of_the_pixel_that_is_covered() -> None:
    bodies, faces, colours, view, lamps = scene()
    sharp = rasterise(project(bodies, view, 64 * 4, 32 * 4), faces, 64 * 4, 32 * 4).face >= 0
    expected = F.avg_pool2d(sharp.float()[:, None], 4)[:, 0]
    picture = render(bodies, faces, colours, view, lamps, 64, 32, antialias=4)
    torch.testing.assert_close(picture.mask, expected)
    assert 0 < int(((picture.mask > 0) & (picture.mask < 1)).sum()) < int((picture.mask == 1).sum())


def test_background_shows_where_the_mask_lets_it() -> None:
    bodies, faces, colours, view, lamps = scene()
    black = render(bodies, faces, colours, view, lamps, 64, 32)
    behind = torch.tensor(np.random.default_rng(0).random((3, 64, 32, 3)), dtype=torch.float32)
    over = render(bodies, faces, colours, view, lamps, 64, 32, background=behind)
    torch.testing.assert_close(over.colour, black.colour + (1 - black.mask)[..., None] * behind)
    assert bool((black.colour[black.mask == 0] == 0).all())


def test_depth_and_part_are_those_of_the_nearest_sample() -> None:
    picture = draw()
    assert picture.parts is not None
    assert bool(((picture.parts == 0) == (picture.mask == 0)).all())
    assert bool((picture.depth.isinf() == (picture.mask == 0)).all())
    assert set(picture.parts.unique().tolist()) == {0, 2, 5}
    # The upper half carries 5, the lower 2, and the cameras stand upright.
    rows = torch.arange(64.0)[None, :, None].expand_as(picture.depth)
    assert rows[picture.parts == 5].mean() < rows[picture.parts == 2].mean() - 10


def test_a_sample_has_the_label_of_the_vertex_that_weighs_most() -> None:
    triangle = torch.tensor([[[-1.0, -1, 0], [1, -1, 0], [0, 1, 0]]])
    picture = render(
        triangle,
        torch.tensor([[0, 1, 2]]),
        torch.ones(3, 3),
        meshes.camera(),
        meshes.light(),
        60,
        60,
        antialias=1,
        parts=torch.tensor([7, 8, 9]),
    )
    assert picture.parts is not None
    points = project(triangle, meshes.camera(), 60, 60)[0, :, :2]
    row, column = (picture.parts[0] > 0).nonzero().unbind(1)
    nearest = torch.cdist(torch.stack([column, row], 1) + 0.5, points).argmin(1)
    # Where two vertices weigh alike they are not equally near; take what lies well inside one's share.
    torch.testing.assert_close(
        picture.parts[0][row, column].bincount(minlength=10)[7:].float() / len(row),
        torch.full((3,), 1 / 3),
        atol=0.01,
        rtol=0,
    )
    near = torch.cdist(torch.stack([column, row], 1) + 0.5, points).amin(1) < 8
    assert int(near.sum()) > 30
    torch.testing.assert_close(picture.parts[0][row, column][near], nearest[near] + 7)


def test_gradients_reach_colours_and_vertices() -> None:
    vertices, faces = meshes.sphere(4, 6, torch.float64)
    colours = torch.tensor(np.random.default_rng(0).random((len(vertices), 3)), requires_grad=True)
    view, lamp = meshes.camera(dtype=torch.float64), meshes.light(dtype=torch.float64)

    def painted(values: Tensor) -> Tensor:
        return render(vertices[None], faces, values, view, lamp, 8, 6).colour

    assert torch.autograd.gradcheck(painted, (colours,))
    moved = vertices[None].clone().requires_grad_()
    render(moved, faces, colours, view, lamp, 8, 6).colour.sum().backward()
    assert moved.grad is not None
    assert bool(moved.grad.isfinite().all())
    assert float(moved.grad.abs().max()) > 0


def centre(shadow: Tensor) -> tuple[float, float]:
    """Mean row and column of the shadow (H, W)."""
    height, width = shadow.shape
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    return float((shadow.sum(1) * rows).sum() / shadow.sum()), float(
        (shadow.sum(0) * columns).sum() / shadow.sum()
    )


def test_a_lamp_overhead_throws_a_balls_own_disc() -> None:
    vertices, faces = meshes.sphere(30, 60)
    above = meshes.camera(pitch=math.pi / 2 - 1e-3, distance=10, field_of_view=0.5)
    shadow = ground_shadow(
        vertices[None] + torch.tensor([0, 2.0, 0]),
        faces,
        above,
        meshes.light(direction=(0, 1, 0)),
        100,
        100,
        None,
    )[0]
    radius = 50 / math.tan(0.25) / 10
    assert shadow.sum().item() == pytest.approx(math.pi * radius**2, rel=0.02)
    assert centre(shadow) == pytest.approx((50, 50), abs=0.3)
    assert shadow[50, 50] == 1
    assert shadow[2, 2] == 0
    edge = shadow[50, 50 + round(radius) - 2 : 50 + round(radius) + 3]
    assert bool((edge[1:] < edge[:-1]).all())


@pytest.mark.parametrize("face", [[0, 1, 2], [0, 2, 1]])
def test_a_sheet_throws_a_shadow_whichever_way_it_faces(face: list[int]) -> None:
    sheet = torch.tensor([[[-1.0, 1, -1], [-1, 1, 1], [1, 1, 1]]])
    above = meshes.camera(pitch=1.2, distance=9)
    shadow = ground_shadow(sheet, torch.tensor([face]), above, meshes.light(direction=(0, 1, 0)), 60, 60)
    assert float(shadow.sum()) > 50


def test_a_shadow_falls_away_from_the_lamp() -> None:
    vertices, faces = meshes.sphere()
    above = meshes.camera(pitch=math.pi / 2 - 1e-3, distance=20, field_of_view=0.5)
    ball = vertices[None] + torch.tensor([0, 2.0, 0])
    # At 45 degrees a ball two metres up throws its shadow two metres aside.
    shadow = ground_shadow(ball, faces, above, meshes.light(direction=(1, 1, 0)), 100, 100)[0]
    aside = 2 * 50 / math.tan(0.25) / 20
    assert centre(shadow) == pytest.approx((50, 50 - aside), abs=0.5)


def test_a_shadow_darkens_the_ground_to_the_even_light_and_nothing_else() -> None:
    vertices, faces = meshes.sphere()
    white, grey = torch.ones(3), torch.full((len(vertices), 3), 0.5)
    view, lamp = (
        meshes.camera(pitch=0.6, distance=9, target=(0, 1, 0)),
        meshes.light(direction=(1, 1, 0), ambient=0.3),
    )
    ball = vertices[None] + torch.tensor([0, 2.0, 0])
    lit, dark = (
        render(ball, faces, grey, view, lamp, 64, 64, background=white, shadow=shadow).colour[0]
        for shadow in (False, True)
    )
    assert float(dark.min(2).values[lit.amin(2) == 1].min()) == pytest.approx(0.3, abs=1e-5)
    covered = render(ball, faces, grey, view, lamp, 64, 64).mask[0] == 1
    torch.testing.assert_close(dark[covered], lit[covered])
    torch.testing.assert_close(dark[:8], lit[:8])


def test_input_that_does_not_fit_is_refused() -> None:
    vertices, faces = meshes.sphere(4, 5)
    view = meshes.camera()
    with pytest.raises(InputError, match="crop box"):
        project(vertices[None], view, 8, 8, torch.tensor([[0.5, 0, 0.5, 1]]))
    with pytest.raises(InputError, match="do not fit cameras"):
        project(vertices.expand(2, -1, -1), view, 8, 8)
    with pytest.raises(InputError, match="antialias"):
        render(vertices[None], faces, torch.ones_like(vertices), view, meshes.light(), 8, 8, antialias=0)
