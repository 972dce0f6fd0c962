"""Dressed bodies: the surface that clothes make, and the colour of every point of it.

A garment is two things. It moves the surface outwards along smoothed normals, so that clothes change the silhouette;
skirts, coat tails, long hair and bags are meshes of their own. And it colours what lies inside its borders, which are
decided for every pixel in the rest pose of the mean body, so hems are smooth lines however coarse the mesh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clip3dreid.body.people import COMPLEXIONS, PATTERNS, Identity, Outfit
from clip3dreid.body.poses import ground
from clip3dreid.body.smpl import BodyModel, skin

# What a point belongs to, before its colour is decided: the fourth attribute.
BODY, SKIRT, HAIR, BAG = range(4)

PARTS = ("background", "skin", "hair", "upper", "lower", "shoes", "bag")
"""Names of the part numbers that `paint` returns."""

LOGO_HEIGHT = 0.28
"""Metres above the pelvis joint."""

_RINGS, _COLUMNS = 9, 20
_LOCKS, _STRANDS = 7, 11
_STYLES = ("short", "bob", "long", "bun", "bald")


class Figure(NamedTuple):
    """Dressed people, ready to be drawn."""

    vertices: Tensor
    """(B, V', 3) metres, the lowest on y = 0."""
    faces: Tensor
    """(F', 3)."""
    attributes: Tensor
    """(B, V', 4): place in the rest pose of the mean body, metres, and what mesh it belongs to."""


class Paint(NamedTuple):
    """Colours of points."""

    albedo: Tensor
    """(N, 3) 0..1."""
    part: Tensor
    """(N,) uint8, index into `PARTS`."""


class Tailor:
    """What dressing needs of a body model, worked out once."""

    def __init__(self, body: BodyModel) -> None:
        """Args: body: any body in SMPL's frame."""
        self.body = body
        rest = body.rest(torch.zeros(1, body.num_betas))
        self.places, joints = rest.vertices[0], rest.joints[0]
        self.normals = _smoothed_normals(self.places, body.faces)
        x, y = joints[:, 0].tolist(), joints[:, 1].tolist()
        self.hip, self.neck, self.head_joint = (y[1] + y[2]) / 2, y[12], y[15]
        self.waist = self.hip + 0.36 * (self.neck - self.hip)
        self.knee, self.ankle = (y[4] + y[5]) / 2, (y[7] + y[8]) / 2
        self.shoulder, self.elbow, self.wrist = abs(x[16]), abs(x[18]), abs(x[20])
        self.top, self.sole = float(self.places[:, 1].max()), float(self.places[:, 1].min())
        skull = self.places[(body.skinning_weights.argmax(1) == 15)]
        self.front, self.back = float(skull[:, 2].max()), float(skull[:, 2].min())
        self.half_head = float(skull[:, 0].abs().max())
        # Where the hips are widest, for skirts and tails to start from.
        self.hips = (
            ((self.places[:, 1] - self.hip).abs() < 0.12) & (body.skinning_weights[:, 16:].sum(1) < 0.1)
        ).nonzero()[:, 0]
        self.spine = int((self.places - joints[9] - torch.tensor([0.0, 0.0, -0.15])).norm(dim=-1).argmin())
        self.faces, self.extra_weights, self.extra_places, self.kinds = self._extra_meshes()

    def _extra_meshes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Topology, skinning weights, places and kinds of skirt, hair and bag; their points come with the person."""
        start = self.body.num_vertices
        faces = [self.body.faces]
        weights, places, kinds = [], [], []
        # Skirt: rings that hang on the pelvis above and more and more on the thighs below.
        ring = torch.arange(_RINGS)[:, None].expand(_RINGS, _COLUMNS).flatten() / (_RINGS - 1)
        angle = 2 * math.pi * torch.arange(_COLUMNS).expand(_RINGS, _COLUMNS).flatten() / _COLUMNS
        side = 0.5 + 0.5 * torch.sin(math.pi / 2 * torch.cos(angle))  # 1 on the person's left
        free = 0.75 * ring.clamp(0, 1)
        skirt = torch.zeros(len(ring), 24)
        skirt[:, 0], skirt[:, 1], skirt[:, 2] = 1 - free, free * side, free * (1 - side)
        weights.append(skirt)
        places.append(torch.stack([angle.cos() * 0.2, torch.zeros_like(angle), angle.sin() * 0.2], -1))
        kinds.append(torch.full((len(ring),), float(SKIRT)))
        faces.append(_grid(_RINGS, _COLUMNS, start, closed=True))
        start += len(ring)
        # Hair: a curtain around the back of the head, seen from both sides.
        lock = torch.arange(_LOCKS)[:, None].expand(_LOCKS, _STRANDS).flatten() / (_LOCKS - 1)
        hair = torch.zeros(len(lock), 24)
        low = (lock - 0.45).clamp_min(0) * 1.5
        hair[:, 15], hair[:, 9] = 1 - low.clamp_max(0.9), low.clamp_max(0.9)
        weights.append(hair)
        places.append(torch.zeros(len(lock), 3))
        kinds.append(torch.full((len(lock),), float(HAIR)))
        curtain = _grid(_LOCKS, _STRANDS, start, closed=False)
        faces += [curtain, curtain.flip(1)]
        start += len(lock)
        # Bag: a box.
        box = torch.zeros(8, 24)
        weights.append(box)
        places.append(torch.zeros(8, 3))
        kinds.append(torch.full((8,), float(BAG)))
        quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
        faces.append(torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]) + start)
        return torch.cat(faces), torch.cat(weights), torch.cat(places), torch.cat(kinds)

    def wear(self, identities: Sequence[Identity], outfits: Sequence[Outfit]) -> dict[str, Tensor]:
        """The outfits as columns (B,) or (B, 3), for `dress` and `paint`."""
        looks = [
            COMPLEXIONS[person.complexion if outfit.complexion is None else outfit.complexion]
            for person, outfit in zip(identities, outfits, strict=True)
        ]

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor([float(value) for value in values])

        upper = [outfit.upper for outfit in outfits]
        lower = [outfit.lower for outfit in outfits]
        skirted = [outfit.lower == "skirt" for outfit in outfits]
        coat = [name == "long_coat" for name in upper]
        long_sleeve = [name != "t_shirt" for name in upper]
        legs = self.hip - self.ankle
        skirt_hem = [
            self.hip - legs * (0.1 + 0.8 * outfit.skirt_length) if dressed else self.hip - legs * 0.45
            for outfit, dressed in zip(outfits, skirted, strict=True)
        ]
        return {
            "sleeve": column(
                [
                    self.wrist - 0.01 if long else self.shoulder + 0.55 * (self.elbow - self.shoulder)
                    for long in long_sleeve
                ]
            ),
            "hem": column(
                [self.hip - 0.06 if name in ("jacket", "long_coat") else self.hip + 0.01 for name in upper]
            ),
            "collar": column([0.055 if name in ("jacket", "long_coat") else 0.085 for name in upper]),
            "leg_hem": column(
                [
                    {"trousers": self.ankle + 0.015, "shorts": self.knee + 0.06, "skirt": 9.0}[name]
                    for name in lower
                ]
            ),
            "skirted": column(skirted),
            "tube": column([a or b for a, b in zip(skirted, coat, strict=True)]),
            "coat": column(coat),
            "skirt_hem": column(skirt_hem),
            "upper_off": column([outfit.upper_stands_off for outfit in outfits]),
            "lower_off": column([outfit.lower_stands_off for outfit in outfits]),
            "open": column([name in ("jacket", "long_coat") for name in upper]),
            "dress": column([outfit.dress for outfit in outfits]),
            "upper_colour": torch.tensor([outfit.upper_colour for outfit in outfits]),
            "lower_colour": torch.tensor(
                [outfit.upper_colour if outfit.dress else outfit.lower_colour for outfit in outfits]
            ),
            "second_colour": torch.tensor([outfit.second_colour for outfit in outfits]),
            "shoe_colour": torch.tensor([outfit.shoe_colour for outfit in outfits]),
            "bag_colour": torch.tensor([outfit.bag_colour for outfit in outfits]),
            "pattern": column([PATTERNS.index(outfit.pattern) for outfit in outfits]),
            "lower_pattern": column(
                [
                    PATTERNS.index(outfit.pattern if outfit.dress else outfit.lower_pattern)
                    for outfit in outfits
                ]
            ),
            "pattern_size": column([outfit.pattern_size for outfit in outfits]),
            "backpack": column([outfit.bag == "backpack" for outfit in outfits]),
            "shoulder_bag": column([outfit.bag == "shoulder_bag" for outfit in outfits]),
            "skin": torch.tensor([look.skin for look in looks]),
            "hair": torch.tensor([look.hair for look in looks]),
            "style": column([_STYLES.index(look.style) for look in looks]),
        }

    def stands_off(self, worn: dict[str, Tensor]) -> Tensor:
        """(B, V) metres that the clothed surface lies outside the body."""
        x, y, z = self.places[:, 0].abs(), self.places[:, 1], self.places[:, 2]
        c = {name: value[:, None] for name, value in worn.items() if value.ndim == 1}
        arm = _soft(x - self.shoulder, 0.03)
        torso = _soft(y - c["hem"], 0.012) * _soft(self.neck - 0.01 - y, 0.015) * (1 - arm)
        sleeve = _soft(c["sleeve"] - x, 0.012) * arm
        # Looser below the chest than on the shoulders, and on the sleeves half as much.
        drop = ((self.neck - y) / (self.neck - self.hip)).clamp(0, 1)
        upper = c["upper_off"] * (torso * (0.5 + 0.9 * drop) + 0.7 * sleeve)
        along = ((self.hip - y) / (self.hip - self.ankle)).clamp(0, 1)
        legs = _soft(self.waist - y, 0.012) * _soft(y - c["leg_hem"], 0.012) * (1 - arm)
        lower = c["lower_off"] * legs * (0.35 + 1.0 * along)
        shoes = 0.010 * _soft(self.ankle - 0.02 - y, 0.01) * (1 - arm)
        scalp = self._scalp(x, y, z, c["style"], soft=0.008)
        volume = torch.tensor([0.016, 0.026, 0.022, 0.014, 0.0])[c["style"].long()]
        return torch.maximum(torch.maximum(upper, lower), torch.maximum(shoes, volume * scalp))

    def _scalp(self, x: Tensor, y: Tensor, z: Tensor, style: Tensor, soft: float) -> Tensor:
        """0..1: hair grows here."""
        tall = self.top - self.head_joint
        middle = (self.front + self.back) / 2
        # The hairline rises from the nape to the forehead.
        forward = ((z - self.back) / (self.front - self.back)).clamp(0, 1)
        nape, brow = self.head_joint + 0.12 * tall, self.top - 0.26 * tall
        longer = ((style == 1) | (style == 2)).to(y.dtype)
        line = nape + (brow - nape) * forward ** (1.2 + 1.2 * longer)
        # Above the ears the line is lower for longer hair.
        line = line - 0.03 * longer * (x > 0.6 * self.half_head).to(y.dtype) * (z < middle + 0.03).to(y.dtype)
        head = (x < 1.4 * self.half_head).to(y.dtype)
        return _soft(y - line, soft) * head * (style != 4).to(y.dtype)

    def dress(self, betas: Tensor, poses: Tensor, worn: dict[str, Tensor]) -> Figure:
        """Puts clothes on bodies.

        Args:
            betas: (B, K).
            poses: (B, 24, 3) radians.
            worn: of `wear`, for the same B.

        Returns:
            The figures, standing on the ground.
        """
        batch = len(betas)
        shaped, joints = self.body.shaped(betas)
        surface = shaped + self.stands_off(worn)[..., None] * self.normals
        skirt, ring_places = self._skirt(shaped, joints, worn)
        extra = torch.cat([skirt, self._hair(joints, worn), self._bag(shaped, joints, worn)], 1)
        weights = self.extra_weights.expand(batch, -1, -1).clone()
        weights[:, -8:, 9] = worn["backpack"][:, None]
        weights[:, -8:, 0] = 1 - worn["backpack"][:, None]
        transforms = self.body.transforms(betas, poses)
        body = skin(surface, self.body.skinning_weights, transforms)
        posed = torch.cat([body, skin(extra, weights, transforms)], 1)
        absent = torch.cat(
            [
                (worn["tube"] < 0.5)[:, None].expand(-1, _RINGS * _COLUMNS),
                ((worn["style"] != 1) & (worn["style"] != 2))[:, None].expand(-1, _LOCKS * _STRANDS),
                (worn["backpack"] + worn["shoulder_bag"] < 0.5)[:, None].expand(-1, 8),
            ],
            1,
        )
        # A mesh that is not there shrinks to a point inside the body: faces without area are not drawn.
        tail = torch.where(absent[..., None], body[:, :1], posed[:, body.shape[1] :])
        posed = torch.cat([body, tail], 1)
        posed = posed + ground(body)[:, None]
        places = torch.cat([self.places, self.extra_places]).expand(batch, -1, -1).clone()
        first = self.body.num_vertices
        places[:, first : first + _RINGS * _COLUMNS] = ring_places
        kinds = torch.cat([torch.zeros(first), self.kinds]).expand(batch, -1)[..., None]
        return Figure(posed, self.faces, torch.cat([places, kinds], -1))

    def _skirt(self, shaped: Tensor, joints: Tensor, worn: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Rest-pose points (B, rings x columns, 3) of the skirt or coat tail, and their places for patterns."""
        batch = len(shaped)
        hips = shaped[:, self.hips]
        reach = [hips[..., 0].abs().amax(1), hips[..., 2].amax(1), -hips[..., 2].amin(1)]
        off = torch.where(worn["skirted"] > 0.5, worn["lower_off"], worn["upper_off"]) + 0.006
        down = torch.linspace(0, 1, _RINGS)[None, :, None]  # (1, R, 1)
        centre = (joints[:, 1] + joints[:, 2]) / 2
        # The tube begins inside the garment above it and ends at its hem, a fraction of this person's own legs.
        share = (self.hip - worn["skirt_hem"]) / (self.hip - self.ankle)
        legs = centre[:, 1] - (joints[:, 7, 1] + joints[:, 8, 1]) / 2
        top = centre[:, 1] + 0.09
        bottom = centre[:, 1] - share * legs
        height = top[:, None, None] + down * (bottom - top)[:, None, None]
        flare = 0.25 + 0.9 * off[:, None, None] / 0.02 * 0.25
        wide = 0.80 + 0.2 * (down / 0.25).clamp_max(1) + flare * 0.5 * down
        angle = (2 * math.pi * torch.arange(_COLUMNS) / _COLUMNS)[None, None]
        front = torch.where(torch.sin(angle) > 0, reach[1][:, None, None], reach[2][:, None, None])
        x = (reach[0][:, None, None] + off[:, None, None]) * wide * angle.cos()
        z = (front + off[:, None, None]) * wide * angle.sin()
        points = torch.stack([x + centre[:, :1, None], height.expand_as(x), z], -1).flatten(1, 2)
        place_y = (self.hip + 0.09) + down * (worn["skirt_hem"] - self.hip - 0.09)[:, None, None]
        along = (angle * 0.2).expand(batch, _RINGS, _COLUMNS)
        places = torch.stack([along, place_y.expand_as(along), torch.sin(angle).expand_as(along)], -1)
        return points, places.flatten(1, 2)

    def _hair(self, joints: Tensor, worn: dict[str, Tensor]) -> Tensor:
        """Rest-pose points (B, locks x strands, 3) of hair that hangs."""
        head = joints[:, 15]
        rise = self.top - self.head_joint
        long = torch.where(worn["style"] == 2, 0.20, 0.02)[:, None, None]
        down = torch.linspace(0, 1, _LOCKS)[None, :, None]
        height = head[:, 1, None, None] + 0.78 * rise - down * (0.78 * rise + long)
        turn = torch.linspace(-0.62 * math.pi, 0.62 * math.pi, _STRANDS)[None, None]  # from the back
        fuller = 1.10 + 0.22 * torch.sin(math.pi * down.clamp_max(0.8))
        deep = (self.front - self.back) / 2
        centre = (self.front + self.back) / 2 - (self.head_joint * 0)
        x = self.half_head * fuller * torch.sin(turn)
        z = centre - deep * fuller * torch.cos(turn) * 0.98
        shift = (head[:, 2] - float(self.body.rest(torch.zeros(1, self.body.num_betas)).joints[0, 15, 2]))[
            :, None, None
        ]
        across, depth = x + head[:, :1, None], z + shift
        shape = (across + height + depth).shape
        return torch.stack([axis.expand(shape) for axis in (across, height, depth)], -1).flatten(1, 2)

    def _bag(self, shaped: Tensor, joints: Tensor, worn: dict[str, Tensor]) -> Tensor:
        """Rest-pose corners (B, 8, 3) of a backpack behind the spine or a bag at the left hip."""
        corner = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
        behind = shaped[:, self.spine] + torch.tensor([0.0, -0.10, -0.055])
        behind = torch.cat([joints[:, 9, :1], behind[:, 1:]], -1)
        side = (joints[:, 1] + torch.tensor([0.0, 0.02, -0.02])).clone()
        side[:, 0] = shaped[:, self.hips, 0].amax(1) + 0.045
        pack, hip = torch.tensor([0.14, 0.21, 0.065]), torch.tensor([0.04, 0.12, 0.14])
        chosen = worn["backpack"][:, None, None] > 0.5
        return torch.where(chosen, behind[:, None] + corner * pack, side[:, None] + corner * hip)

    def paint(self, attributes: Tensor, person: Tensor, worn: dict[str, Tensor]) -> Paint:
        """Colours points of figures.

        Args:
            attributes: (N, 4) as in `Figure`, interpolated.
            person: (N,) which of the B people each point is on.
            worn: of `wear`.

        Returns:
            Colour and part of each point.
        """
        counts = torch.bincount(person, minlength=len(worn["style"])).tolist()
        # One person's clothes are a handful of numbers: looked up once, not for every point.
        painted = [
            self._paint(points, {name: value[i] for name, value in worn.items()})
            for i, points in enumerate(torch.split(attributes, counts))
        ]
        return Paint(torch.cat([p.albedo for p in painted]), torch.cat([p.part for p in painted]))

    def _paint(self, attributes: Tensor, worn: dict[str, Tensor]) -> Paint:
        """Points (N, 4) of one person."""
        px, y, z, kind = attributes.t().contiguous().unbind(0)
        x = px.abs()
        colour = worn["skin"].expand(len(y), 3).clone()
        part = torch.ones(len(y), dtype=torch.uint8)

        def lay(where: Tensor, what: Tensor, number: int) -> None:
            chosen = where.nonzero()[:, 0]
            part[chosen] = number
            colour[chosen] = what if what.ndim == 1 else what[chosen]

        on_body = kind < 0.5
        limb = (x > self.shoulder + 0.02) & (y > self.waist)
        trunk = on_body & ~limb
        lower = _pattern(px, y, z, worn, "lower")
        upper = _pattern(torch.where(limb, y, px), torch.where(limb, x, y), z, worn, "upper")
        for where, tint in self._face(px, y, z, worn):
            colour[(where & on_body).nonzero()[:, 0]] = tint
        below_waist = trunk & (y < self.waist)
        covered = y > worn["leg_hem"]
        if worn["skirted"] > 0.5:
            # Legs under a skirt have its colour: a knee that comes through it is not seen as skin.
            covered = covered | (y > worn["skirt_hem"] + 0.02)
        lay(below_waist & covered, lower, 4)
        lay(trunk & (y < self.ankle - 0.015), worn["shoe_colour"], 5)
        from_neck = (px**2 + (y - self.neck - 0.045) ** 2).sqrt()
        scoop = worn["collar"] + 0.03 * (z > 0)
        shirt = (
            on_body
            & (y > worn["hem"])
            & (x < worn["sleeve"])
            & (from_neck > scoop)
            & ((y < self.neck + 0.03) | limb)
        )
        lay(shirt, upper, 3)
        if worn["coat"] > 0.5:
            lay(trunk & (y <= worn["hem"]) & (y > self.hip - 0.25), upper, 3)
        if worn["open"] > 0.5:
            gap = 0.022 + 0.05 * (y - worn["hem"]).clamp(0, 0.5)
            lay(shirt & ~limb & (z > 0) & (x < gap), worn["second_colour"], 3)
        lay(on_body & (self._scalp(x, y, z, worn["style"], soft=0.002) > 0.5), worn["hair"], 2)
        tail = (worn["coat"] > 0.5) & (worn["skirted"] < 0.5)
        lay(
            (kind - SKIRT).abs() < 0.5, _pattern(px, y, z, worn, "upper") if tail else lower, 3 if tail else 4
        )
        lay((kind - HAIR).abs() < 0.5, worn["hair"], 2)
        lay(kind > BAG - 0.5, worn["bag_colour"], 6)
        return Paint(colour, part)

    def _face(
        self, x: Tensor, y: Tensor, z: Tensor, worn: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Where mouth, brows and eyes are, and their colours."""
        in_front = z > self.back + 0.72 * (self.front - self.back)
        up = (y - self.head_joint) / (self.top - self.head_joint)
        across = x.abs() / self.half_head
        mouth = in_front & ((up - 0.06).abs() < 0.035) & (across < 0.30)
        brow = in_front & ((up - 0.58).abs() < 0.028) & ((across - 0.42).abs() < 0.25)
        eye = in_front & ((up - 0.46).abs() < 0.045) & ((across - 0.40).abs() < 0.17)
        skin_tone = worn["skin"]
        return (
            (mouth, skin_tone * skin_tone.new_tensor([0.85, 0.55, 0.55])),
            (brow, 0.4 * skin_tone + 0.6 * worn["hair"]),
            (eye, 0.25 * skin_tone),
        )


def _soft(x: Tensor, width: float) -> Tensor:
    """0 below, 1 above zero, over about `width`."""
    return torch.sigmoid(x / (0.5 * width))


def _grid(rows: int, columns: int, start: int, closed: bool) -> Tensor:
    """Two triangles for each cell of a grid of vertices; the last column meets the first where it is closed."""
    wide = columns if closed else columns - 1
    r, c = torch.meshgrid(torch.arange(rows - 1), torch.arange(wide), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    below_a, below_b = a + columns, b + columns
    faces = torch.stack([torch.stack([a, b, below_b], -1), torch.stack([a, below_b, below_a], -1)], 2)
    return faces.reshape(-1, 3) + start


def _smoothed_normals(vertices: Tensor, faces: Tensor, rounds: int = 3) -> Tensor:
    """(V, 3) unit normals, averaged with their neighbours so that cloth bridges small hollows."""
    from clip3dreid.body.render import vertex_normals

    normals = vertex_normals(vertices[None], faces)[0]
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    for _ in range(rounds):
        total = normals.clone()
        total.index_add_(0, edges[:, 0], normals[edges[:, 1]])
        total.index_add_(0, edges[:, 1], normals[edges[:, 0]])
        normals = torch.nn.functional.normalize(total, dim=-1)
    return normals


def _pattern(across: Tensor, along: Tensor, z: Tensor, worn: dict[str, Tensor], which: str) -> Tensor:
    """Colour of one person's cloth, (3,) if plain or (N, 3); `across` and `along` are metres on it."""
    first, second, size = worn[f"{which}_colour"], worn["second_colour"], worn["pattern_size"]
    kind = PATTERNS[int(worn["pattern" if which == "upper" else "lower_pattern"])]
    if kind == "plain":
        return first
    bars = torch.frac(along / size + 100) < 0.5
    posts = torch.frac((across + 0.3 * z) / size + 100) < 0.5
    mark = (across.abs() < 0.07) & ((along - LOGO_HEIGHT).abs() < 0.05) & (z > 0)
    share = {
        "horizontal_stripes": bars.float(),
        "vertical_stripes": posts.float(),
        "checks": (bars.float() + posts.float()) / 2,
        "logo": mark.float(),
    }[kind][:, None]
    return torch.lerp(first, second, share)
