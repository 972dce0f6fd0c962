"""An exact z-buffer in plain torch: which face does each pixel see, and where on it.

The way a scan-line rasteriser works, with all faces of all meshes side by side:

1. Vertices are snapped to 1/256 of a pixel. All that follows about x and y is then exact in float64 (whole numbers
   below 2^53), so faces that share an edge never leave a crack and never draw a pixel twice, and a CPU and a GPU draw
   the same pixels.
2. Faces that look away, cover no pixel centre, or lie outside are dropped by their bounding box.
3. Each face becomes rows, each row a span of pixels: from the first pixel centre on or right of its left edge to the
   last one left of its right edge (the top-left rule). So only pixels that are really covered are ever listed.
4. Each covered pixel takes the largest key. A key holds the inverse depth, as the 31 bits of a positive float32, and
   then the face, lowest first, in one int64. There is no limit on how many (face, pixel) pairs there may be: they are
   worked off in pieces of bounded size, and the order of the pieces does not matter.

Depths are compared to 24 binary digits: two faces whose depths at a pixel differ by less than 1.2e-7 of the depth
(0.5 micrometres at 4 m) count as equally near, and the face of the lower number is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from clip3dreid.errors import InputError

SUBPIXEL = 256
"""Vertices are snapped to one part in this many of a pixel."""
NEAR = 0.01
"""Metres: a face with a vertex nearer than this, or behind the camera, is not drawn."""
REACH = 2**15
"""Pixels: a face with a vertex farther than this from the picture's corner is not drawn."""
MAX_PAIRS = 2**20
"""How many (mesh, face), (face, row) or (face, pixel) pairs are in memory at once, give or take one face."""

_FACE_BITS = 32
_LAST_FACE = 2**_FACE_BITS - 1


class Fragments(NamedTuple):
    """What each pixel sees."""

    face: Tensor
    """(B, H, W) int64: number of the face, -1 where there is none."""
    barycentric: Tensor
    """(B, H, W, 3): perspective-correct weights of the face's vertices, 0 where there is none. They sum to 1."""
    depth: Tensor
    """(B, H, W): metres from the camera's plane, inf where there is none."""


def rasterise(points: Tensor, faces: Tensor, height: int, width: int, cull: bool = True) -> Fragments:
    """Find the nearest face at every pixel centre.

    Which face a pixel sees has no gradient. Its weights and its depth have one with respect to `points`.

    Args:
        points: (B, P, 3) x and y in pixels (the first pixel's centre is at 0.5, y down) and depth in metres, as
            from `project`. Faces with a vertex that is not finite, nearer than `NEAR` or beyond `REACH` are not
            drawn: they are not clipped.
        faces: (F, 3) whole numbers 0..P-1, shared by all meshes; counterclockwise as seen from outside.
        height: H, pixels.
        width: W, pixels.
        cull: leave out faces seen from behind. Changes nothing about closed meshes, and halves the work.

    Raises:
        InputError: if shapes, numbers or types do not fit.
    """
    _check(points, faces, height, width)
    nearest = _nearest(points, faces, height, width, cull)
    pixels = nearest.nonzero()[:, 0]
    ids = _LAST_FACE - (nearest.index_select(0, pixels) & _LAST_FACE)
    weights, depths = _weights(points, faces, pixels, ids, height, width)

    face = torch.full_like(nearest, -1).index_copy_(0, pixels, ids)
    barycentric = points.new_zeros(len(nearest), 3).index_copy_(0, pixels, weights)
    depth = points.new_full((len(nearest),), torch.inf).index_copy_(0, pixels, depths)
    shape = (len(points), height, width)
    return Fragments(face.view(shape), barycentric.view(*shape, 3), depth.view(shape))


def coverage(points: Tensor, faces: Tensor, height: int, width: int, cull: bool = True) -> Tensor:
    """Return which pixels see any face: (B, H, W) bool.

    Args and errors are those of `rasterise`.
    """
    _check(points, faces, height, width)
    return (_nearest(points, faces, height, width, cull) > 0).view(len(points), height, width)


def interpolate(attributes: Tensor, faces: Tensor, fragments: Fragments) -> Tensor:
    """Return attributes of the surface that each pixel sees.

    Differentiable in the attributes and in the fragments' weights.

    Args:
        attributes: (B, P, C), or (P, C) for all meshes, at the vertices.
        faces: (F, 3), as given to `rasterise`.
        fragments: of `rasterise`.

    Returns:
        (B, H, W, C), 0 where there is no face.
    """
    batch, height, width = fragments.face.shape
    flat = fragments.face.view(-1)
    pixels = (flat >= 0).nonzero()[:, 0]
    corners = faces.to(torch.int64).index_select(0, flat.index_select(0, pixels)).unbind(1)
    if attributes.ndim == 3:
        offset = torch.div(pixels, height * width, rounding_mode="floor") * attributes.shape[1]
        corners = tuple(corner + offset for corner in corners)
        attributes = attributes.reshape(-1, attributes.shape[-1])
    weights = fragments.barycentric.view(-1, 3).index_select(0, pixels)
    value = attributes.index_select(0, corners[0]) * weights[:, :1]
    for corner, weight in zip(corners[1:], (weights[:, 1:2], weights[:, 2:]), strict=True):
        value = value + attributes.index_select(0, corner) * weight
    empty = value.new_zeros(len(flat), attributes.shape[-1])
    return empty.index_copy_(0, pixels, value).view(batch, height, width, -1)


def _check(points: Tensor, faces: Tensor, height: int, width: int) -> None:
    if points.ndim != 3 or points.shape[2] != 3 or not points.is_floating_point():
        raise InputError(f"points are {tuple(points.shape)} {points.dtype}; give floats (B, P, 3)")
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.is_floating_point():
        raise InputError(f"faces are {tuple(faces.shape)} {faces.dtype}; give whole numbers (F, 3)")
    if height < 1 or width < 1 or max(height, width) > REACH:
        raise InputError(f"the picture is {height} x {width} pixels; give sizes from 1 to {REACH}")
    if len(faces) and not 0 <= int(faces.min()) <= int(faces.max()) < points.shape[1]:
        raise InputError(
            f"faces name a vertex outside 0..{points.shape[1] - 1}; give the faces of these points"
        )


class _Triangles(NamedTuple):
    """Faces worth drawing, each a column entry (K,) float64, in snapped units, corners from top to bottom."""

    top: tuple[Tensor, Tensor]
    middle: tuple[Tensor, Tensor]
    bottom: tuple[Tensor, Tensor]
    inverse: tuple[Tensor, Tensor, Tensor]
    """Inverse depth: at the first corner of the picture, and its slopes along x and y."""
    first: Tensor
    """int64: the first row whose centres may be covered, below 0 in no case."""
    rows: Tensor
    """int64: how many rows."""
    face: Tensor
    """int64: number of the face."""
    mesh: Tensor
    """int64: number of the mesh."""


@torch.no_grad()
def _nearest(points: Tensor, faces: Tensor, height: int, width: int, cull: bool) -> Tensor:
    """Return the largest key at each pixel: (B * H * W,) int64, 0 where there is no face."""
    best = torch.zeros(len(points) * height * width, dtype=torch.int64, device=points.device)
    corners = faces.to(torch.int64).t().contiguous()
    step = max(1, MAX_PAIRS // max(1, len(faces)))
    for start in range(0, len(points), step):
        triangles = _visible(points[start : start + step], corners, height, width, cull)
        for part in _pieces(triangles.rows):
            _draw(best, triangles, part, start, height, width)
    return best


def _pieces(counts: Tensor) -> Iterator[slice]:
    """Return slices of the entries, each with about `MAX_PAIRS` pairs in all.

    Args:
        counts: (K,) int64, pairs of each entry.
    """
    total = counts.cumsum(0)
    pairs = int(total[-1]) if len(total) else 0
    ends = torch.arange(MAX_PAIRS, pairs + MAX_PAIRS, MAX_PAIRS, device=counts.device)
    cuts = (torch.searchsorted(total, ends) + 1).clamp_(max=len(counts)).tolist() if pairs > MAX_PAIRS else []
    start = 0
    for cut in [*cuts, len(counts)] if pairs else []:
        if cut > start:
            yield slice(start, cut)
        start = cut


def _visible(points: Tensor, corners: Tensor, height: int, width: int, cull: bool) -> _Triangles:
    x, y, z = points.to(torch.float64).unbind(2)
    drawn = (z > NEAR) & (z < torch.inf) & (x.abs() <= REACH) & (y.abs() <= REACH)
    # NaN fails every comparison below, and so takes all faces of its vertex with it.
    x = torch.where(drawn, (x * SUBPIXEL).round_(), torch.nan)
    y = (y * SUBPIXEL).round_()
    xs = [x.index_select(1, corner).view(-1) for corner in corners]
    ys = [y.index_select(1, corner).view(-1) for corner in corners]

    # Twice the area; y points down, so a face seen from outside has a negative one.
    area = (xs[1] - xs[0]) * (ys[2] - ys[0]) - (xs[2] - xs[0]) * (ys[1] - ys[0])
    first, last = (
        _centres(edge, height) for edge in (_of_three(torch.minimum, ys), _of_three(torch.maximum, ys))
    )
    left, right = (
        _centres(edge, width) for edge in (_of_three(torch.minimum, xs), _of_three(torch.maximum, xs))
    )
    facing = area < 0 if cull else area.abs() > 0
    chosen = (facing & (first < last) & (left < right)).nonzero()[:, 0]

    count = corners.shape[1]
    mesh = torch.div(chosen, count, rounding_mode="floor")
    face = chosen - mesh * count
    inverse = (1 / z).view(-1)
    ws = [inverse.index_select(0, corner.index_select(0, face) + mesh * x.shape[1]) for corner in corners]
    xs, ys = ([value.index_select(0, chosen) for value in values] for values in (xs, ys))
    area = area.index_select(0, chosen)
    along_x = ((ws[1] - ws[0]) * (ys[2] - ys[0]) - (ws[2] - ws[0]) * (ys[1] - ys[0])) / area
    along_y = ((ws[2] - ws[0]) * (xs[1] - xs[0]) - (ws[1] - ws[0]) * (xs[2] - xs[0])) / area
    origin = ws[0] - along_x * xs[0] - along_y * ys[0]

    pairs = list(zip(xs, ys, strict=True))
    for upper, lower in ((0, 1), (1, 2), (0, 1)):
        (ax, ay), (bx, by) = pairs[upper], pairs[lower]
        swap = ay > by
        pairs[upper] = torch.where(swap, bx, ax), torch.minimum(ay, by)
        pairs[lower] = torch.where(swap, ax, bx), torch.maximum(ay, by)
    first = first.index_select(0, chosen).to(torch.int64)
    rows = last.index_select(0, chosen).to(torch.int64) - first
    return _Triangles(pairs[0], pairs[1], pairs[2], (origin, along_x, along_y), first, rows, face, mesh)


def _of_three(choose: Callable[[Tensor, Tensor], Tensor], values: list[Tensor]) -> Tensor:
    return choose(choose(values[0], values[1]), values[2])


def _centres(position: Tensor, size: int) -> Tensor:
    """Return how many of the `size` pixel centres of a row lie before a position in snapped units."""
    return position.sub(SUBPIXEL // 2).div_(SUBPIXEL).ceil_().clamp_(0, size)


def _draw(best: Tensor, triangles: _Triangles, part: slice, mesh: int, height: int, width: int) -> None:
    """Draw some triangles into the keys `best`; their meshes are numbered from `mesh`."""
    counts = triangles.rows[part]
    owner, place = _expand(counts)

    def of(column: Tensor) -> Tensor:
        return column[part].index_select(0, owner)

    row = of(triangles.first) + place
    y = row.to(torch.float64).mul_(SUBPIXEL).add_(SUBPIXEL // 2)
    (top_x, top_y), (middle_x, middle_y), (bottom_x, bottom_y) = (
        (of(corner[0]), of(corner[1])) for corner in (triangles.top, triangles.middle, triangles.bottom)
    )
    # The product is exact and the quotient correctly rounded, so a centre on an edge is always found to be on it.
    long = top_x + (bottom_x - top_x) * (y - top_y) / (bottom_y - top_y)
    upper = y < middle_y
    from_x, from_y = torch.where(upper, top_x, middle_x), torch.where(upper, top_y, middle_y)
    to_x, to_y = torch.where(upper, middle_x, bottom_x), torch.where(upper, middle_y, bottom_y)
    short = from_x + (to_x - from_x) * (y - from_y) / (to_y - from_y)
    start = _centres(torch.minimum(long, short), width).to(torch.int64)
    length = _centres(torch.maximum(long, short), width).to(torch.int64) - start

    origin, along_x, along_y = (of(column) for column in triangles.inverse)
    origin = origin + along_y * y + along_x * (SUBPIXEL // 2)
    slope = along_x * SUBPIXEL
    face = _LAST_FACE - of(triangles.face)
    line = ((of(triangles.mesh) + mesh) * height + row) * width
    for piece in _pieces(length):
        owner, place = _expand(length[piece])
        column = place + start[piece].index_select(0, owner)
        inverse = slope[piece].index_select(0, owner) * column + origin[piece].index_select(0, owner)
        # The bits of positive floats rise with the floats.
        key = inverse.to(torch.float32).view(torch.int32).to(torch.int64) << _FACE_BITS
        key |= face[piece].index_select(0, owner)
        best.scatter_reduce_(0, column + line[piece].index_select(0, owner), key, "amax")


def _expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for entries of so many pairs each, every pair's entry and its place there: (N,) int64."""
    owner = torch.repeat_interleave(counts)
    start = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - start.index_select(0, owner)


def _weights(
    points: Tensor, faces: Tensor, pixels: Tensor, ids: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Return perspective-correct weights (N, 3) and depths (N,) of pixels that see a face.

    Worked out from the points as they are, not as snapped, so that gradients are true. A centre that only snapping
    put inside would get a slightly negative weight; it gets 0.
    """
    mesh = torch.div(pixels, height * width, rounding_mode="floor")
    place = pixels - mesh * (height * width)
    row = torch.div(place, width, rounding_mode="floor")
    centre_x = (place - row * width).to(points.dtype) + 0.5
    centre_y = row.to(points.dtype) + 0.5
    flat = points.reshape(-1, 3)
    corners = faces.to(torch.int64).index_select(0, ids) + (mesh * points.shape[1])[:, None]
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = (
        flat.index_select(0, corner).unbind(1) for corner in corners.unbind(1)
    )
    ax, bx, cx = ax - centre_x, bx - centre_x, cx - centre_x
    ay, by, cy = ay - centre_y, by - centre_y, cy - centre_y
    # Twice the areas opposite to each corner, over its depth. Front faces have negative ones (y points down).
    areas = torch.stack([bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx], 1)
    sign = torch.sign(areas.detach().sum(1, keepdim=True))
    depths = torch.stack([az, bz, cz], 1)
    weights = (areas * sign).clamp_min(0) / depths
    total = weights.sum(1, keepdim=True)
    flat_face = total <= 0  # a face that has an area only once it is snapped
    weights = torch.where(
        flat_face, torch.full_like(weights, 1 / 3), weights / total.masked_fill(flat_face, 1)
    )
    return weights, (weights * depths).sum(1)
