"""Pictures of meshes: camera, light, shadow, colour, mask, depth and parts, in plain torch on any device.

The world is in metres, y up, the ground at y = 0. Colours are RGB from 0 to 1 and are added and averaged as if they
were amounts of light. Everything is batched over B meshes that share their faces, and a batch gives the same bits as
its meshes one by one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip3dreid.body.rasterise import NEAR, Fragments, coverage, interpolate, rasterise
from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number

__all__ = [
    "Camera",
    "Fragments",
    "Light",
    "Rendering",
    "coverage",
    "downsample",
    "ground_shadow",
    "interpolate",
    "project",
    "rasterise",
    "render",
    "shade",
    "vertex_normals",
]

LOWEST_LIGHT = 0.2
"""Sine of the elevation below which a light is taken to stand, for shadows: lower ones would reach the horizon."""


class Camera(NamedTuple):
    """Pinhole cameras that look at a target, upright."""

    yaw: Tensor
    """(B,) radians about y: 0 sees the front of a person who faces +z, +pi/2 stands on the +x side (their left)."""
    pitch: Tensor
    """(B,) radians, inside -pi/2..pi/2: above 0 looks down."""
    distance: Tensor
    """(B,) metres from the camera to the target, above 0."""
    field_of_view: Tensor
    """(B,) radians, vertical, inside 0..pi."""
    target: Tensor
    """(B, 3) metres: the point at the middle of the frame."""


class Light(NamedTuple):
    """A far light plus an even one."""

    direction: Tensor
    """(B, 3) from the scene towards the light, of any length above 0."""
    ambient: Tensor
    """(B,) what reaches every surface, 0..1."""
    diffuse: Tensor
    """(B,) what a surface that faces the far light gets on top, 0..1."""
    colour: Tensor
    """(B, 3) RGB of both, 1 for white."""


class Rendering(NamedTuple):
    """Pictures of B meshes."""

    colour: Tensor
    """(B, H, W, 3) RGB."""
    mask: Tensor
    """(B, H, W): how much of each pixel is covered, 0..1."""
    depth: Tensor
    """(B, H, W): metres, of the nearest sample in each pixel; inf where there is none."""
    parts: Tensor | None
    """(B, H, W) of the labels' type: label of the nearest sample; 0 where there is none."""


def project(points: Tensor, camera: Camera, height: int, width: int, box: Tensor | None = None) -> Tensor:
    """Return where a camera sees points.

    The camera's frame is a square from (0, 0) at the top left to (1, 1), whose side spans the field of view. A
    picture is a box of that frame, stretched to H x W pixels. So `project(points, camera, 1, 1)` gives frame
    coordinates, of which boxes are made.

    Args:
        points: (B, P, 3) metres.
        camera: B cameras.
        height: H, pixels.
        width: W, pixels.
        box: (B, 4) left, top, right and bottom edge in the frame; they may reach beyond it. By default the frame's
            whole height and, about its middle, as much width as leaves pixels square.

    Returns:
        (B, P, 3): x and y in pixels (the first pixel's centre is at 0.5, y down), depth in metres along the
        camera's axis (above 0 in front). A point nearer than `NEAR` or behind the camera has no place in the picture:
        its x and y are finite but mean nothing, and `rasterise` leaves it out.

    Raises:
        InputError: if shapes do not fit or a box has no area.
    """
    if points.ndim != 3 or points.shape[2] != 3 or camera.target.shape != (len(points), 3):
        raise InputError(
            f"points {tuple(points.shape)} do not fit cameras at {tuple(camera.target.shape)}; give (B, P, 3), (B, 3)"
        )
    right, up, back = _axes(camera)
    # Written out term by term: a matrix product may round otherwise for another batch size.
    offset = points - camera.target[:, None]
    along = [_dot(offset, axis[:, None]) for axis in (right, up, back)]
    depth = camera.distance[:, None] - along[2]
    scale = 0.5 / (torch.tan(camera.field_of_view / 2)[:, None] * depth.clamp_min(NEAR))
    x, y = 0.5 + along[0] * scale, 0.5 - along[1] * scale
    if box is None:
        aspect = width / height
        x, y = (x - (0.5 - aspect / 2)) * height, y * height
    else:
        if box.shape != (len(points), 4) or not bool((box[:, 2:] > box[:, :2]).all()):
            raise InputError(
                "a crop box has no area; give (B, 4) left, top, right, bottom with left < right, top < bottom"
            )
        left, top, x_end, y_end = box[:, :, None].unbind(1)
        x, y = (x - left) * (width / (x_end - left)), (y - top) * (height / (y_end - top))
    return torch.stack([x, y, depth], 2)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the dot product of three-vectors (..., 3), which rounds alike for every batch size and device."""
    product = one * other
    return product[..., 0] + product[..., 1] + product[..., 2]


def _axes(camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit vectors (B, 3) to the picture's right, to its top, and from the target to the camera."""
    sin_yaw, cos_yaw, sin_pitch, cos_pitch = (
        function(angle) for angle in (camera.yaw, camera.pitch) for function in (torch.sin, torch.cos)
    )
    right = torch.stack([cos_yaw, torch.zeros_like(cos_yaw), -sin_yaw], 1)
    up = torch.stack([-sin_yaw * sin_pitch, cos_pitch, -cos_yaw * sin_pitch], 1)
    back = torch.stack([sin_yaw * cos_pitch, sin_pitch, cos_yaw * cos_pitch], 1)
    return right, up, back


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return unit normals at the vertices: the mean of the faces' normals, weighted by their areas.

    Args:
        vertices: (B, V, 3) metres.
        faces: (F, 3) whole numbers, counterclockwise as seen from outside.

    Returns:
        (B, V, 3), pointing out; 0 at a vertex whose faces have no area.
    """
    batch, count, _ = vertices.shape
    index = faces.to(torch.int64).t().contiguous()
    corners = [vertices.index_select(1, corner) for corner in index]
    normals = torch.linalg.cross(corners[1] - corners[0], corners[2] - corners[0])
    # One flat sum a coordinate: summing rows of three costs several times as much.
    target = index[:, None] + torch.arange(batch, device=faces.device)[:, None] * count  # (3, B, F)
    sums = [
        vertices.new_zeros(batch * count).index_add(0, target.view(-1), part.expand(3, -1, -1).reshape(-1))
        for part in normals.unbind(2)
    ]
    return F.normalize(torch.stack(sums, 1).view(batch, count, 3), dim=2, eps=1e-20)


def shade(albedo: Tensor, normals: Tensor, light: Light) -> Tensor:
    """Shade matt surfaces by Lambert's law.

    Args:
        albedo: (B, H, W, 3) RGB, 0..1.
        normals: (B, H, W, 3) of any length: they are interpolated ones, and are made unit vectors here.
        light: B lights.

    Returns:
        (B, H, W, 3): albedo x colour x (ambient + diffuse x max(0, cos of the angle to the light)); not clipped.
    """
    direction = F.normalize(light.direction, dim=1)[:, None, None]
    length = _dot(normals, normals).clamp_min(1e-20).sqrt()
    cosine = (_dot(normals, direction) / length).clamp_min(0)
    strength = light.ambient[:, None, None] + light.diffuse[:, None, None] * cosine
    return albedo * light.colour[:, None, None] * strength[..., None]


def ground_shadow(
    vertices: Tensor,
    faces: Tensor,
    camera: Camera,
    light: Light,
    height: int,
    width: int,
    box: Tensor | None = None,
    softness: float = 0.02,
) -> Tensor:
    """Return the soft shadow that meshes throw on the plane y = 0.

    The mesh is flattened along the light onto the ground, drawn, and blurred by a tent in the picture. (A real one
    grows softer away from the feet; this one is equally soft everywhere.) The mesh itself hides nothing here: draw it
    on top.

    Args:
        vertices: (B, V, 3) metres, on or above the ground.
        faces: (F, 3).
        camera: B cameras; one below the ground sees the shadow from below.
        light: B lights; one lower than asin(`LOWEST_LIGHT`) counts as standing there.
        height: H, pixels.
        width: W, pixels.
        box: as in `project`.
        softness: half width of the blur, as a part of the picture's height.

    Returns:
        (B, H, W): 0 in the light, 1 in full shadow.
    """
    direction = F.normalize(light.direction, dim=1)
    slope = direction / direction[:, 1:2].clamp_min(LOWEST_LIGHT)
    fallen = vertices - vertices[..., 1:2] * slope[:, None]
    fallen = torch.cat([fallen[..., :1], torch.zeros_like(fallen[..., :1]), fallen[..., 2:]], 2)
    points = project(fallen, camera, height, width, box)
    shadow = coverage(points, faces, height, width, cull=False).to(vertices.dtype)[:, None]
    reach = max(1, round(softness * height / 2))
    for kernel, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))) * 2:
        shadow = F.avg_pool2d(shadow, kernel, stride=1, padding=padding, count_include_pad=False)
    return shadow[:, 0]


def downsample(picture: Tensor, factor: int) -> Tensor:
    """Average squares of `factor` x `factor` pixels.

    Args:
        picture: (B, H * factor, W * factor, C) or without C.
        factor: 1 or more.

    Returns:
        (B, H, W, C) or (B, H, W).
    """
    if factor == 1:
        return picture
    batch, height, width = picture.shape[:3]
    tail = picture.shape[3:]
    # Rows first: the sum then runs over whole rows that lie side by side in memory.
    rows = picture.reshape(batch, height // factor, factor, -1).sum(2)
    columns = rows.view(batch, height // factor, width // factor, factor, math.prod(tail)).sum(3)
    return (columns / factor**2).view(batch, height // factor, width // factor, *tail)


def render(
    vertices: Tensor,
    faces: Tensor,
    colours: Tensor,
    camera: Camera,
    light: Light,
    height: int,
    width: int,
    antialias: int = 2,
    background: Tensor | None = None,
    parts: Tensor | None = None,
    shadow: bool = False,
    box: Tensor | None = None,
    cull: bool = True,
) -> Rendering:
    """Draw meshes with a colour at each vertex.

    Differentiable in the colours and, inside the silhouette, in the vertices.

    Args:
        vertices: (B, V, 3) metres.
        faces: (F, 3) whole numbers, counterclockwise as seen from outside.
        colours: (B, V, 3), or (V, 3) for all meshes: RGB, 0..1.
        camera: B cameras.
        light: B lights.
        height: H, pixels.
        width: W, pixels.
        antialias: everything is drawn this many times as large, and averaged.
        background: (3,), (B, 1, 1, 3) or (B, H, W, 3) RGB; black by default.
        parts: (V,) whole numbers above 0, labels of the vertices; a sample has that of the vertex that weighs most.
        shadow: whether the meshes darken the background where the ground y = 0 lies in their shadow.
        box: as in `project`.
        cull: as in `rasterise`.

    Raises:
        InputError: if shapes or numbers do not fit.
    """
    check_number("antialias", antialias, Range(1), whole=True)
    rows, columns = height * antialias, width * antialias
    points = project(vertices, camera, rows, columns, box)
    fragments = rasterise(points, faces, rows, columns, cull)
    normals = vertex_normals(vertices, faces)
    attributes = torch.cat([colours.expand(len(vertices), -1, -1), normals], 2)
    drawn = interpolate(attributes, faces, fragments)
    colour = downsample(shade(drawn[..., :3], drawn[..., 3:], light), antialias)
    mask = downsample((fragments.face >= 0).to(vertices.dtype), antialias)

    if background is not None:
        behind = background.to(colour)
        if shadow:
            dark = ground_shadow(vertices, faces, camera, light, height, width, box)
            lit = light.ambient / (light.ambient + light.diffuse).clamp_min(1e-6)
            behind = behind * (1 - dark * (1 - lit[:, None, None]))[..., None]
        colour = colour + (1 - mask)[..., None] * behind
    depth, nearest = _cells(fragments.depth, antialias).min(3)
    labels = None
    if parts is not None:
        seen = _cells(_labels(parts, faces, fragments), antialias)
        labels = seen.gather(3, nearest[..., None])[..., 0]
    return Rendering(colour, mask, depth, labels)


def _cells(picture: Tensor, factor: int) -> Tensor:
    """Return samples of each pixel: (B, H * factor, W * factor) -> (B, H, W, factor * factor)."""
    batch, height, width = picture.shape
    cells = picture.view(batch, height // factor, factor, width // factor, factor)
    return cells.transpose(2, 3).reshape(batch, height // factor, width // factor, -1)


def _labels(parts: Tensor, faces: Tensor, fragments: Fragments) -> Tensor:
    """Return the label (B, H, W) of the vertex that weighs most at each pixel, 0 where there is no face."""
    face = fragments.face
    heaviest = fragments.barycentric.argmax(3)
    corner = faces.to(torch.int64).view(-1).index_select(0, (face.clamp_min(0) * 3 + heaviest).view(-1))
    return torch.where(face >= 0, parts.index_select(0, corner).view(face.shape), 0)
