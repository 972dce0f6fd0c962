"""Dressed bodies: the surface that clothes make, and the colour of every point of it.

A garment is two things. It moves the surface outwards, so that clothes change the silhouette, and bridges the hollows
under it; skirts, coat tails, hanging hair and bags are meshes of their own. And it colours what lies inside its
borders, which are decided for every pixel on a standard person, so hems are smooth lines however coarse the mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip3dreid.body.poses import ground
from clip3dreid.body.render import vertex_normals
from clip3dreid.body.smpl import BodyModel, skin
from clip3dreid.synthetic import attached_meshes
from clip3dreid.synthetic.garment_fit import FittedOutfit, fit
from clip3dreid.synthetic.landmarks import ANKLE, HIP, NECK, SHOULDER, WRIST, standard_places
from clip3dreid.synthetic.painting import BAG, BODY, HAIR, TUBE, Paint, hairline, neck_border, paint
from clip3dreid.synthetic.people import Identity, Outfit

_ATTACHED = (
    (attached_meshes.TUBE, TUBE),
    (attached_meshes.CURTAIN, HAIR),
    (attached_meshes.BUN, HAIR),
    (attached_meshes.BAG, BAG),
)

HAIR_VOLUME = {"short": 0.013, "bob": 0.020, "long": 0.018, "bun": 0.009, "bald": 0.0}
"""Metres that hair lifts the scalp."""
BRIDGED = 0.09
"""Metres over which cloth spans hollows."""


class Figure(NamedTuple):
    """Dressed people, ready to be drawn."""

    vertices: Tensor
    """(B, V', 3) metres, the lowest on y = 0. Meshes that are not worn are a point inside the body."""
    faces: Tensor
    """(F', 3) int64, the same for all outfits."""
    attributes: Tensor
    """(B, V', 4): place on the standard person (or on the mesh's own surface), and which mesh it is."""


class Dresser:
    """Dresses one body model.

    Attributes:
        body: the model.
        places: (V, 3) its vertices on the standard person.
        faces: (F', 3) of a figure.
    """

    def __init__(self, body: BodyModel) -> None:
        """Find the landmarks of `body`, which is in SMPL's frame, with SMPL's joints, on the CPU."""
        self.body = body
        weights = body.skinning_weights
        self.places = standard_places(body)
        self._arm = weights[:, 16:].sum(1)
        self._head = weights[:, 15]
        self._foot = weights[:, [7, 8, 10, 11]].sum(1)
        self._leg = weights[:, [1, 2, 4, 5]].sum(1) + self._foot
        self._bands = attached_meshes.Bands(self.places, self._arm)
        self._skull = attached_meshes.Skull(self.places, self._head)
        self._normals, spanned, directions = _cloth(body)
        # Toes vanish in a shoe, whose point stays where they end.
        self._last = self._foot[:, None] * (spanned - body.template)
        # How far the bridged surface lies outside the skin, a linear function of the shape.
        self._bridge = ((spanned - body.template) * self._normals).sum(1)
        offset = directions - body.shape_directions
        self._bridge_directions = (offset * self._normals[..., None]).sum(1)
        faces, start = [body.faces], body.num_vertices
        for (rows, columns), _ in _ATTACHED:
            faces.append(attached_meshes.grid(rows, columns) + start)
            start += rows * columns
        self.faces = torch.cat(faces)
        kinds = [torch.full((rows * columns, 1), float(kind)) for (rows, columns), kind in _ATTACHED]
        self._kinds = torch.cat([torch.full((body.num_vertices, 1), float(BODY)), *kinds])

    def wear(self, identities: Sequence[Identity], outfits: Sequence[Outfit]) -> tuple[FittedOutfit, ...]:
        """Return outfits on people, by the numbers, for `dress` and `paint`."""
        return tuple(fit(person, outfit) for person, outfit in zip(identities, outfits, strict=True))

    def dress(self, betas: Tensor, poses: Tensor, worn: Sequence[FittedOutfit]) -> Figure:
        """Put clothes on bodies.

        Args:
            betas: (B, K).
            poses: (B, 24, 3) radians.
            worn: of `wear`, B of them.

        Returns:
            The figures, standing on the ground.
        """
        shaped, joints = self.body.shaped(betas)
        surface = shaped + self.stands_off(betas, worn)[..., None] * self._normals + self._shoes(worn)
        # Loose legs do not reach through each other.
        inner = torch.minimum(shaped[..., 0].abs(), shaped.new_tensor(0.004)) * self._leg
        kept = torch.maximum(surface[..., 0] * shaped[..., 0].sign(), inner) * shaped[..., 0].sign()
        surface = torch.cat([kept[..., None], surface[..., 1:]], -1)
        made = (
            attached_meshes.tube(worn, shaped, joints, self._bands),
            attached_meshes.curtain(worn, shaped, joints, self._bands, self._skull),
            attached_meshes.bun(worn, shaped, joints, self._skull),
            attached_meshes.bag(worn, shaped, joints, self._bands),
        )
        transforms = self.body.transforms(betas, poses)
        body = skin(surface, self.body.skinning_weights, transforms)
        posed = skin(
            torch.cat([m.points for m in made], 1), torch.cat([m.weights for m in made], 1), transforms
        )
        # A mesh that is not there shrinks to the pelvis joint: faces without area are not drawn.
        pelvis = skin(joints[:, :1], F.one_hot(torch.tensor([0]), 24).to(joints), transforms)
        present = torch.cat([m.present[:, None].expand(m.points.shape[:2]) for m in made], 1)
        vertices = torch.cat([body, torch.where(present[..., None], posed, pelvis)], 1)
        vertices = vertices + ground(body)[:, None]
        places = torch.cat([self.places.expand(len(betas), -1, -1), *(m.places for m in made)], 1)
        attributes = torch.cat([places, self._kinds.expand(len(betas), -1, -1)], 2)
        return Figure(vertices, self.faces, attributes)

    def stands_off(self, betas: Tensor, worn: Sequence[FittedOutfit]) -> Tensor:
        """Return metres (B, V) that the dressed surface lies outside the skin of people (B, K); 0 where naked."""
        rows = [
            (
                *(f.sleeve, f.upper_hem, f.upper_ease, f.sleeve_ease, f.neckline, f.waist, f.leg_hem),
                *(f.lower_ease, f.shoe_top, f.tube, f.tube_hem, HAIR_VOLUME[f.style]),
                *(f.outfit.upper_looseness, f.outdoor and not f.tail, f.tail),
            )
            for f in worn
        ]
        columns = torch.tensor(rows, dtype=torch.float32)[..., None].unbind(1)
        sleeve_end, hem, upper_ease, sleeve_ease, neckline, waist, leg_hem = columns[:7]
        lower_ease, shoe_top, tube, tube_hem, hair, loose, straight, tail = columns[7:]
        x, height, forward = self.places[:, 0].abs(), self.places[:, 1], self.places[:, 2]
        trunk, arm = (1 - self._arm) * (1 - self._head), self._arm
        bridge = (self._bridge + betas @ self._bridge_directions.T).clamp(0, 0.05)

        fall = ((NECK - height) / (NECK - hem)).clamp(0, 1.1)
        border = neck_border(x, forward, neckline) + 0.01 - height
        # A coat's trunk slips under its own tail, little by little.
        on_trunk = trunk * _soft(height - hem - 0.14 * tail, 0.012 + 0.10 * tail) * _soft(border, 0.012)
        upper = upper_ease * (0.35 + 0.95 * fall) + bridge * loose.clamp(0.3, 1)
        # A jacket falls straight past the waist.
        upper = on_trunk * (upper + straight * 0.020 * loose * torch.exp(-(((height - 1.07) / 0.10) ** 2)))
        out = ((x - SHOULDER) / (WRIST - SHOULDER)).clamp(0, 1)
        sleeve = arm * _soft(sleeve_end - x, 0.012) * sleeve_ease * (0.75 + 0.5 * out)
        upper = upper + sleeve

        below = ((HIP - height) / (HIP - ANKLE)).clamp(0, 1)
        # Trousers hang from the thigh: the farther down, the farther from the leg.
        on_legs = trunk * _soft(waist - height, 0.012) * _soft(height - leg_hem - _instep(forward), 0.012)
        lower = on_legs * (lower_ease * (0.4 + 2.0 * below) + bridge * 0.7)
        shoe = trunk * self._foot * _soft(shoe_top - height, 0.01) * 0.010
        scalp = self._head * hair * _soft(hairline(x, height, forward, 0.0), 0.012)
        off = torch.maximum(torch.maximum(upper, lower), torch.maximum(shoe, scalp))
        # Legs under a skirt or a coat draw in a little, so that no knee comes through it.
        under = tube * trunk * _soft(hem.clamp_max(HIP + 0.03) - 0.03 - height, 0.02)
        under = under * _soft(height - tube_hem - 0.03, 0.015)
        return off * (1 - under) - 0.025 * under

    def _shoes(self, worn: Sequence[FittedOutfit]) -> Tensor:
        """Return (B, V, 3) metres that shoes round off the toes."""
        top = torch.tensor([[f.shoe_top] for f in worn])
        return (_soft(top - self.places[:, 1], 0.01))[..., None] * self._last

    def paint(self, attributes: Tensor, person: Tensor, worn: Sequence[FittedOutfit]) -> Paint:
        """Colour points of figures.

        Args:
            attributes: (N, 4) as in `Figure`, interpolated.
            person: (N,) which of the B people each point is on, ascending.
            worn: of `wear`.
        """
        counts = torch.bincount(person, minlength=len(worn)).tolist()
        painted = [
            paint(points, fitted)
            for points, fitted in zip(torch.split(attributes, counts), worn, strict=True)
            if len(points)
        ]
        if not painted:
            return Paint(attributes.new_zeros(0, 3), torch.zeros(0, dtype=torch.uint8))
        return Paint(torch.cat([p.albedo for p in painted]), torch.cat([p.part for p in painted]))


def _soft(value: Tensor, width: Tensor | float) -> Tensor:
    """Return 0 below, 1 above zero, over about `width`."""
    return torch.sigmoid(value * (4 / width))


def _instep(forward: Tensor) -> Tensor:
    """Return how much higher trousers end on the foot than on the heel."""
    return (forward - 0.03).clamp(0, 0.2) * 0.8


def _cloth(body: BodyModel) -> tuple[Tensor, Tensor, Tensor]:
    """Return the body as a thin cloth would lie on it.

    Returns:
        Unit normals (V, 3) of a smoothed body; a template (V, 3) and shape directions (V, 3, K) averaged over about
        `BRIDGED` metres of surface.
    """
    faces, count = body.faces, body.num_vertices
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = torch.cat([edges, edges.flip(1)])
    length = (body.template[edges[:, 0]] - body.template[edges[:, 1]]).norm(dim=1)
    # Short edges weigh more, so that a step goes about as far on any mesh.
    step = length.mean()
    value = torch.exp(-((length / step) ** 2) / 2)
    total = torch.zeros(count).index_add(0, edges[:, 0], value).clamp_min(1e-9)
    average = torch.sparse_coo_tensor(
        edges.t(), value / total[edges[:, 0]], (count, count), check_invariants=False
    ).coalesce()
    rounds = max(1, min(400, round(float((BRIDGED / step) ** 2))))
    values = torch.cat([body.template[..., None], body.shape_directions], 2).flatten(1)
    normals = vertex_normals(body.template[None], faces)[0]
    for turn in range(rounds):
        values = 0.5 * values + 0.5 * torch.sparse.mm(average, values)
        if turn < max(2, rounds // 9):
            normals = F.normalize(0.5 * normals + 0.5 * torch.sparse.mm(average, normals), dim=1)
    spread = values.view(count, 3, -1)
    return normals, spread[..., 0], spread[..., 1:]
