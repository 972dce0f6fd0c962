"""Photographs: figures before a surveillance camera, as crops of a detector.

The steps of a picture: place the camera (in statures, see `cameras`), take the person's box as a detector would and
stretch it to the picture, draw the figure in the light, put it with its shadow before a window of the scene, put
an occluder before it, and expose (`sensor.expose`).

A picture does not depend on which others are in its batch: everything here is worked out sample by sample or picture
by picture, and all chance comes from its own camera, shot and rng. (The vertices that are handed in may: the products
of a body model round differently for another batch size, by 1e-7 m, and that can turn a grey level.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clip3dreid.body import render
from clip3dreid.errors import InputError
from clip3dreid.io.pictures import Pixels
from clip3dreid.synthetic.backgrounds import window
from clip3dreid.synthetic.cameras import Shot, SurveillanceCamera
from clip3dreid.synthetic.framing import boxes, lens, light
from clip3dreid.synthetic.occluders import Occluder, occlude
from clip3dreid.synthetic.sensor import expose

Floats: TypeAlias = npt.NDArray[np.float32]


MIDDLE = 0.45
"""Mean level of a scene that a camera exposes for, 0..1."""


class Subject(Protocol):
    """People to be photographed."""

    @property
    def vertices(self) -> Tensor:
        """Return (B, V, 3) metres, the lowest on y = 0; they decide the box, so meshes not worn lie inside."""

    @property
    def faces(self) -> Tensor:
        """Return (F, 3), shared."""

    @property
    def attributes(self) -> Tensor:
        """Return (B, V, C), whatever `Paint` makes colours from."""


class Painted(Protocol):
    """Colours of points."""

    @property
    def albedo(self) -> Tensor:
        """Return (N, 3) RGB, 0..1."""

    @property
    def part(self) -> Tensor:
        """Return (N,) whole numbers from 1 to 255; 0 is the background."""


Paint: TypeAlias = Callable[[Tensor, Tensor], Painted]
"""From interpolated attributes (N, C) and the person (N,), 0..B-1, that each point is on, to colours. It is called
for some of the people at a time; points come person by person, in ascending order."""

TOGETHER = 4
"""People who are drawn at a time on a CPU: with more, the layers no longer fit into its cache, and take half as long
again. The pictures do not depend on it."""


class Photograph(NamedTuple):
    """Pictures of B people."""

    image: Pixels
    """(B, H, W, 3) RGB."""
    mask: Pixels
    """(B, H, W): how much of each pixel shows the person, 0..255; the sensor's blur is left out."""
    depth: Floats
    """(B, H, W): to the person, in statures; inf beside him or her. What stands before does not matter."""
    part: Pixels
    """(B, H, W): part of the person; 0 beside him or her and behind the occluder."""
    box: Floats
    """(B, 4): left, top, right, bottom of the crop, as parts of the camera's square frame; may reach beyond it."""
    visible: Floats
    """(B,): how much of what the crop has of the person is not hidden, 0..1."""


class _Layers(NamedTuple):
    """Figures on nothing."""

    colour: Tensor
    """(B, H, W, 3), black beside them."""
    mask: Tensor
    """(B, H, W) 0..1."""
    depth: Tensor
    """(B, H, W) metres."""
    part: Tensor
    """(B, H, W) uint8."""


def _draw(
    figure: Subject,
    paint: Paint,
    camera: render.Camera,
    box: Tensor,
    lamp: render.Light,
    people: slice,
    height: int,
    width: int,
    antialias: int,
) -> _Layers:
    """Draw some of the people."""
    vertices, faces = figure.vertices[people], figure.faces
    camera = render.Camera(*(value[people] for value in camera))
    rows, columns = height * antialias, width * antialias
    points = render.project(vertices, camera, rows, columns, box[people])
    fragments = render.rasterise(points, faces, rows, columns)
    attributes = torch.cat([figure.attributes[people], render.vertex_normals(vertices, faces)], 2)
    covered = fragments.face.view(-1) >= 0
    samples = covered.nonzero()[:, 0]
    person = torch.div(samples, rows * columns, rounding_mode="floor")
    surface = _at(samples, person, attributes, faces, fragments)
    person = person + people.start
    painted = paint(surface[:, :-3], person)
    each = render.Light(*(value.index_select(0, person) for value in lamp))
    lit = render.shade(painted.albedo[:, None, None], surface[:, None, None, -3:], each)[:, 0, 0]
    shape = (len(vertices), rows, columns)
    colour = vertices.new_zeros(len(covered), 3).index_copy_(0, samples, lit).view(*shape, 3)
    part = torch.zeros(len(covered), dtype=torch.uint8, device=vertices.device)
    part = part.index_copy_(0, samples, painted.part.to(torch.uint8)).view(shape)
    # Of the samples of a pixel, the nearest one tells depth and part.
    depth, nearest = F.max_pool2d(-fragments.depth, antialias, return_indices=True)
    return _Layers(
        render.downsample(colour, antialias),
        render.downsample(covered.view(shape).to(vertices.dtype), antialias),
        -depth,
        part.view(len(vertices), -1).gather(1, nearest.flatten(1)).view_as(depth),
    )


def _at(
    samples: Tensor, person: Tensor, attributes: Tensor, faces: Tensor, fragments: render.Fragments
) -> Tensor:
    """Return attributes (N, C) at some samples: as if all people were one mesh and the samples one row of pixels."""
    count, vertices = attributes.shape[:2]
    shift = torch.arange(count, device=faces.device)[:, None, None] * vertices
    face = fragments.face.view(-1).index_select(0, samples) + person * len(faces)
    row = render.Fragments(
        face[None, None],
        fragments.barycentric.view(-1, 3).index_select(0, samples)[None, None],
        fragments.depth.view(-1).index_select(0, samples)[None, None],
    )
    return render.interpolate(attributes.flatten(0, 1), (faces + shift).flatten(0, 1), row)[0, 0]


def photograph(
    figure: Subject,
    paint: Paint,
    cameras: Sequence[SurveillanceCamera],
    shots: Sequence[Shot],
    backgrounds: Sequence[Pixels],
    height: int,
    width: int,
    rngs: Sequence[np.random.Generator],
    antialias: int = 2,
) -> Photograph:
    """Take a picture of each of B people.

    Args:
        figure: the people, on any device.
        paint: their colours.
        cameras: B, which may be the same one.
        shots: B.
        backgrounds: B canvases (h, w, 3), see `backgrounds.canvas_size`; each picture has a window of its own.
        height: H, pixels.
        width: W, pixels.
        rngs: B, of the sensors' noise.
        antialias: figures are drawn this many times as large, and averaged.

    Returns:
        The pictures, before compression: `sensor.encode` does that.

    Raises:
        InputError: if there are not as many cameras, shots, backgrounds and rngs as people.
    """
    count = len(figure.vertices)
    given = {"cameras": cameras, "shots": shots, "backgrounds": backgrounds, "rngs": rngs}
    if wrong := {name: len(values) for name, values in given.items() if len(values) != count}:
        raise InputError(f"{count} people and {wrong}; give one of each for each person")
    vertices = figure.vertices
    camera, lamp = lens(vertices, cameras, shots), light(vertices, cameras, shots)
    box = boxes(vertices, camera, shots)
    with torch.no_grad():
        together = TOGETHER if vertices.device.type == "cpu" else count
        groups = [slice(start, min(start + together, count)) for start in range(0, count, together)]
        parts = [_draw(figure, paint, camera, box, lamp, some, height, width, antialias) for some in groups]
        drawn = _Layers(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
        shadows = _shadows(figure, camera, lamp, box, cameras, height, width)
    stature = vertices.amax(1)[:, 1]
    colour, mask, part, depth = (
        value.cpu().numpy()
        for value in (
            drawn.colour.float(),
            drawn.mask.float(),
            drawn.part,
            (drawn.depth / stature[:, None, None]).float(),
        )
    )
    images, masks, visible = [], [], []
    for index, (surveillance, shot) in enumerate(zip(cameras, shots, strict=True)):
        behind = _behind(backgrounds[index], surveillance, shot, shadows[index], height, width)
        covered = mask[index]
        picture = colour[index] + (1 - covered)[..., None] * behind
        if shot.occluder is not None:
            picture, covered = _hide(picture, covered, shot.occluder, shot.light_strength)
        picture *= _exposure(backgrounds[index], surveillance)
        images.append(expose(picture, surveillance, shot, rngs[index]))
        masks.append(np.rint(covered * 255).astype(np.uint8))
        visible.append(covered.sum() / max(mask[index].sum(), 1e-6))
    mask_bytes = np.stack(masks)
    return Photograph(
        image=np.stack(images),
        mask=mask_bytes,
        depth=depth,
        part=np.where(mask_bytes > 0, part, 0).astype(np.uint8),
        box=box.cpu().numpy().astype(np.float32),
        visible=np.array(visible, np.float32),
    )


def _shadows(
    figure: Subject,
    camera: render.Camera,
    lamp: render.Light,
    box: Tensor,
    cameras: Sequence[SurveillanceCamera],
    height: int,
    width: int,
) -> Floats:
    """Draw how dark the ground is (B, H, W), 0..1 of the light that shadows take; at half size, as it is soft."""
    if not any(one.shadow for one in cameras):
        return np.zeros((len(cameras), height, width), np.float32)
    rows, columns = max(1, height // 2), max(1, width // 2)
    dark = render.ground_shadow(figure.vertices, figure.faces, camera, lamp, rows, columns, box)
    return np.stack([cv2.resize(one, (width, height)) for one in dark.cpu().numpy().astype(np.float32)])


def _behind(
    canvas: Pixels, camera: SurveillanceCamera, shot: Shot, shadow: Floats, height: int, width: int
) -> Floats:
    """Return the background in the light of the shot, with the shadow on it."""
    behind = window(canvas, shot.window, height, width).astype(np.float32)
    # The shadow fades upwards, where the background is a wall rather than ground.
    fade = np.clip(np.linspace(-1.0, 1.6, height, dtype=np.float32), 0, 1)[:, None]
    dark = 1 - shadow * fade * np.float32(camera.shadow * (1 - 0.7 * camera.ambient))
    gain = np.array(camera.light_colour, np.float32) * np.float32(shot.light_strength / 255)
    lit: Floats = behind * (dark[..., None] * gain)
    return lit


def _exposure(canvas: Pixels, camera: SurveillanceCamera) -> np.float32:
    """Return the gain of a camera that brightens dark places: the whole scene decides, not the person's clothes."""
    # A few hundred pixels know the mean well enough.
    level = float(canvas[::16, ::16].mean()) / 255
    return np.float32(np.clip(MIDDLE / max(level, 0.05), 0.5, 2.0) ** camera.adaptation)


def _hide(picture: Floats, covered: Floats, thing: Occluder, strength: float) -> tuple[Floats, Floats]:
    """Return the picture and the visible part of the person, with a thing before them."""
    height, width = covered.shape
    layer: Floats = occlude(thing, height, width).astype(np.float32) / np.float32(255)
    hidden = layer[..., 3:]
    mixed: Floats = picture * (1 - hidden) + layer[..., :3] * np.float32(strength) * hidden
    left: Floats = covered * (1 - hidden[..., 0])
    return mixed, left


class _Bodies(NamedTuple):
    vertices: Tensor
    faces: Tensor
    attributes: Tensor


class _Grey(NamedTuple):
    albedo: Tensor
    part: Tensor


def bare_bodies(vertices: Tensor, faces: Tensor, greys: Sequence[float]) -> tuple[Subject, Paint]:
    """Return bodies without clothes or texture, as `photograph` takes them; their only part is 1.

    Backgrounds that show no place go with them: `Procedural({"plain": 1, "noise": 1})`.

    Args:
        vertices: (B, V, 3) metres, feet on y = 0.
        faces: (F, 3).
        greys: B albedos, 0..1.

    Raises:
        InputError: if there are not as many greys as bodies.
    """
    if len(greys) != len(vertices):
        raise InputError(f"{len(vertices)} bodies and {len(greys)} greys; give one for each body")
    tone = vertices.new_tensor(greys)

    def paint(attributes: Tensor, person: Tensor) -> _Grey:
        return _Grey(tone[person][:, None].expand(-1, 3), torch.ones_like(person, dtype=torch.uint8))

    return _Bodies(vertices, faces, vertices.new_zeros(*vertices.shape[:2], 0)), paint
