import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from clip3dreid.body import render
from clip3dreid.body.poses import standing
from clip3dreid.body.smpl import load_body
from clip3dreid.synthetic import attached_meshes
from clip3dreid.synthetic.garments import HAIR_VOLUME, Dresser
from clip3dreid.synthetic.landmarks import (
    ANKLE,
    ELBOW,
    HIP,
    KNEE,
    NECK,
    SHOULDER,
    TOP,
    WRIST,
    interpolate_levels,
)
from clip3dreid.synthetic.painting import BODY, HAIR, PARTS, TUBE
from clip3dreid.synthetic.people import COMPLEXIONS, Identity, Outfit, People, Wardrobe, sample_outfit

PLAIN = Outfit(
    upper="t_shirt",
    lower="trousers",
    dress=False,
    upper_colour=(1.0, 0.0, 0.0),
    lower_colour=(0.0, 0.0, 1.0),
    second_colour=(0.0, 1.0, 0.0),
    inner_colour=(0.0, 1.0, 1.0),
    shoe_colour=(1.0, 1.0, 0.0),
    bag_colour=(1.0, 0.0, 1.0),
    pattern="plain",
    lower_pattern="plain",
    pattern_size=0.06,
    upper_looseness=1.0,
    lower_looseness=1.0,
    upper_length=0.5,
    lower_length=0.5,
    open_front=False,
    collar=0.3,
    shoe_height=0.0,
    bag="none",
    bag_side=1,
)
BALD = [look.style for look in COMPLEXIONS].index("bald")
PERSON = Identity((0.0,) * 10, 0)


@pytest.fixture(scope="module")
def dresser() -> Dresser:
    return Dresser(load_body("anny_light").requires_grad_(False))


def pose(seed: int = 0) -> Tensor:
    return torch.as_tensor(standing(np.random.default_rng(seed)))[None]


def drawn(
    dresser: Dresser, outfit: Outfit, person: Identity = PERSON, yaw: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Colours (H, W, 3), parts (H, W) and mask (H, W) of a person, 192 x 96."""
    worn = dresser.wear([person], [outfit])
    figure = dresser.dress(torch.tensor([person.betas]), pose(), worn)
    camera = render.Camera(
        *(torch.tensor([value]) for value in (yaw, 0.0, 4.5, 0.45)), torch.tensor([[0, 0.85, 0]])
    )
    fragments = render.rasterise(render.project(figure.vertices, camera, 192, 96), figure.faces, 192, 96)
    carried = render.interpolate(figure.attributes, figure.faces, fragments)
    hit = fragments.face >= 0
    paint = dresser.paint(carried[hit], torch.zeros(int(hit.sum()), dtype=torch.int64), worn)
    colours, parts = torch.zeros(1, 192, 96, 3), torch.zeros(1, 192, 96, dtype=torch.uint8)
    colours[hit], parts[hit] = paint.albedo, paint.part
    return colours[0], parts[0], hit[0]


def count(parts: Tensor, name: str) -> int:
    return int((parts == PARTS.index(name)).sum())


def heights_of(parts: Tensor, name: str) -> Tensor:
    """Rows where the part is seen, from the top."""
    return (parts == PARTS.index(name)).any(1).nonzero()[:, 0].float()


def test_standard_places_put_a_models_joints_where_the_standard_persons_are(dresser: Dresser) -> None:
    for name in ("anny_light", "anny"):
        body = load_body(name).requires_grad_(False)
        places = dresser.places if name == "anny_light" else Dresser(body).places
        # The regressor is linear, and so is the map between two landmarks: a ring about a joint stays about it.
        for joint, height in ((4, KNEE), (7, ANKLE)):
            near = (body.template - body.rest(torch.zeros(1, 10)).joints[0, joint]).norm(dim=1) < 0.09
            assert float(places[near, 1].mean()) == pytest.approx(height, abs=0.03)
        for joint, across in ((18, ELBOW), (20, WRIST)):
            near = (body.template - body.rest(torch.zeros(1, 10)).joints[0, joint]).norm(dim=1) < 0.06
            assert float(places[near, 0].mean()) == pytest.approx(across, abs=0.03)
        assert float(places[:, 1].max()) == pytest.approx(TOP, abs=1e-4)
        assert float(places[:, 1].min()) == pytest.approx(0, abs=1e-4)
    assert SHOULDER < ELBOW < WRIST
    assert ANKLE < KNEE < HIP < NECK < TOP


def test_levels_are_interpolated_as_numpy_does_and_go_on_beyond_the_ends() -> None:
    at, to = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 2.0, 8.0])
    value = torch.linspace(0, 3, 31)
    expected = np.interp(value.numpy(), at.numpy(), to.numpy())
    np.testing.assert_allclose(interpolate_levels(value, at, to).numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(
        interpolate_levels(torch.tensor([-1.0, 4.0]), at, to), torch.tensor([0.0, 11.0])
    )


def test_extra_meshes_are_seen_from_outside() -> None:
    angle = 2 * math.pi * torch.arange(12) / 12
    ring = torch.stack([angle.cos(), torch.zeros(12), angle.sin()], 1)
    tube = torch.cat([ring, ring - torch.tensor([0.0, 1.0, 0.0])])
    normals = render.vertex_normals(tube[None], attached_meshes.grid(2, 12))[0]
    assert bool(((normals * torch.cat([ring, ring])).sum(1) > 0.99).all())


def test_hair_is_above_shirt_above_trousers_above_shoes_and_each_is_near_its_colour(dresser: Dresser) -> None:
    colours, parts, mask = drawn(dresser, PLAIN)
    order = [float(heights_of(parts, name).mean()) for name in ("hair", "upper", "lower", "shoes")]
    assert order == sorted(order)
    for name, colour in (("upper", PLAIN.upper_colour), ("lower", PLAIN.lower_colour)):
        seen = colours[parts == PARTS.index(name)].median(0).values
        torch.testing.assert_close(seen, torch.tensor(colour), atol=0.12, rtol=0)
    assert bool(((parts > 0) == mask).all())


def test_colours_are_colours_and_every_point_has_a_part(dresser: Dresser) -> None:
    rng = np.random.default_rng(5)
    for index in range(12):
        outfit = sample_outfit(rng, People(), Wardrobe())
        colours, parts, mask = drawn(dresser, outfit, Identity((0.0,) * 10, index % 5), yaw=index)
        assert bool(torch.isfinite(colours).all())
        assert 0 <= float(colours.min()) <= float(colours.max()) <= 1.25
        assert bool(((parts > 0) == mask).all())


def test_long_sleeves_cover_the_arms(dresser: Dresser) -> None:
    short, long = (
        drawn(dresser, dataclasses.replace(PLAIN, upper=upper))[1] for upper in ("t_shirt", "long_sleeve")
    )
    assert count(long, "skin") < 0.75 * count(short, "skin")


def test_shorts_show_the_calves_and_trousers_do_not(dresser: Dresser) -> None:
    short, long = (
        drawn(dresser, dataclasses.replace(PLAIN, lower=lower))[1] for lower in ("shorts", "trousers")
    )
    calves = slice(140, 160)
    assert count(short[calves], "skin") > 100
    assert count(long[calves], "skin") == 0


def test_looser_clothes_widen_the_silhouette(dresser: Dresser) -> None:
    areas = []
    for looseness in (0.0, 1.0, 2.0):
        loose = dataclasses.replace(PLAIN, upper_looseness=looseness, lower_looseness=looseness)
        areas.append(int(drawn(dresser, loose)[2].sum()))
    assert areas[1] > 1.02 * areas[0]
    assert areas[2] > 1.02 * areas[1]


def test_a_looser_shirt_stands_off_the_waist_farther_and_by_as_much_more_each_time(dresser: Dresser) -> None:
    waist = ((dresser.places[:, 1] - 1.08).abs() < 0.06) & (dresser.places[:, 0].abs() < 0.18)
    off = []
    for looseness in (1.0, 2.0, 3.0):
        worn = dresser.wear([PERSON], [dataclasses.replace(PLAIN, upper_looseness=looseness)])
        off.append(float(dresser.stands_off(torch.zeros(1, 10), worn)[0, waist].mean()))
    assert off[1] - off[0] > 0.008
    assert off[2] - off[1] == pytest.approx(off[1] - off[0], rel=0.1)


def test_legs_draw_in_under_a_skirt_and_nowhere_else(dresser: Dresser) -> None:
    skirt = dataclasses.replace(PLAIN, lower="skirt", lower_length=1.0)
    worn = dresser.wear([PERSON], [skirt])
    off = dresser.stands_off(torch.zeros(1, 10), worn)[0]
    height = dresser.places[:, 1]
    legs = (height < 0.75) & (height > worn[0].tube_hem + 0.08) & (dresser.places[:, 0].abs() < 0.3)
    assert bool((off[legs] < -0.015).all())
    assert float(off[(height < worn[0].tube_hem - 0.03) | (height > 1.0)].min()) > -1e-3


def test_a_coat_stands_off_farther_than_a_jacket_and_a_jacket_farther_than_a_t_shirt(
    dresser: Dresser,
) -> None:
    chest = (dresser.places[:, 1] - 1.2).abs() < 0.06
    off = []
    for upper in ("t_shirt", "jacket", "long_coat"):
        worn = dresser.wear([PERSON], [dataclasses.replace(PLAIN, upper=upper)])
        off.append(float(dresser.stands_off(torch.zeros(1, 10), worn)[0, chest].mean()))
    assert off[0] < off[1]
    assert off[0] < off[2]


def test_cloth_never_lies_inside_the_body_and_naked_skin_is_left_alone(dresser: Dresser) -> None:
    rng = np.random.default_rng(2)
    betas = torch.as_tensor(rng.normal(0, 2, (8, 10)), dtype=torch.float32)
    bald = Identity((0.0,) * 10, BALD)
    worn = dresser.wear([bald] * 8, [PLAIN] * 8)
    off = dresser.stands_off(betas, worn)
    assert float(off.min()) >= 0
    hands = dresser.places[:, 0].abs() > WRIST
    face = dresser.places[:, 1] > 1.55
    assert float(off[:, hands | face].max()) < 1e-3


def test_only_bald_people_have_nothing_on_their_scalp(dresser: Dresser) -> None:
    crown = dresser.places[:, 1] > TOP - 0.03
    for index, look in enumerate(COMPLEXIONS):
        worn = dresser.wear([Identity((0.0,) * 10, index)], [PLAIN])
        lifted = float(dresser.stands_off(torch.zeros(1, 10), worn)[0, crown].mean())
        assert lifted == pytest.approx(HAIR_VOLUME[look.style], abs=2e-3)


def test_a_skirt_fills_the_gap_between_the_legs(dresser: Dresser) -> None:
    _, _, trousers = drawn(dresser, PLAIN)
    _, parts, skirt = drawn(dresser, dataclasses.replace(PLAIN, lower="skirt", lower_length=1.0))
    knees = slice(118, 126)
    assert int(skirt[knees].sum()) > 1.2 * int(trousers[knees].sum())
    assert count(parts[knees], "lower") > 0.95 * int(skirt[knees].sum())


@pytest.mark.parametrize("seed", range(4))
def test_no_leg_comes_through_a_skirt_of_a_person_who_stands(dresser: Dresser, seed: int) -> None:
    betas = tuple(np.random.default_rng(seed).normal(0, 2, 10).tolist())
    outfit = dataclasses.replace(PLAIN, lower="skirt", lower_length=1.0, lower_looseness=0.3)
    worn = dresser.wear([Identity(betas, BALD)], [outfit])
    figure = dresser.dress(torch.tensor([betas]), pose(seed), worn)
    for yaw in (0.0, math.pi / 2, math.pi):
        camera = render.Camera(
            *(torch.tensor([value]) for value in (yaw, 0.0, 4.5, 0.45)), torch.tensor([[0, 0.85, 0]])
        )
        fragments = render.rasterise(render.project(figure.vertices, camera, 192, 96), figure.faces, 192, 96)
        seen = render.interpolate(figure.attributes, figure.faces, fragments)[0]
        covered = (seen[..., 1] < 0.80) & (seen[..., 1] > worn[0].tube_hem + 0.05)
        legs = covered & (seen[..., 3].round() == BODY) & (seen[..., 0].abs() < 0.3)
        skirt = covered & (seen[..., 3].round() == TUBE)
        assert int(skirt.sum()) > 500
        assert int(legs.sum()) < 0.02 * int(skirt.sum())


def test_a_coat_reaches_below_a_jacket(dresser: Dresser) -> None:
    jacket, coat = (
        drawn(dresser, dataclasses.replace(PLAIN, upper=upper), yaw=math.pi)[1]
        for upper in ("jacket", "long_coat")
    )
    assert float(heights_of(coat, "upper").max()) > float(heights_of(jacket, "upper").max()) + 10


def test_an_open_jacket_shows_what_is_under_it_and_a_closed_one_hardly(dresser: Dresser) -> None:
    cyan = torch.tensor(PLAIN.inner_colour)

    def inner(open_front: bool) -> int:
        colours, _, _ = drawn(dresser, dataclasses.replace(PLAIN, upper="jacket", open_front=open_front))
        return int(((colours - cyan).abs().sum(2) < 0.3).sum())

    assert inner(True) > 3 * inner(False) > 0


def test_a_dress_is_of_one_colour_but_for_its_belt(dresser: Dresser) -> None:
    colours, parts, _ = drawn(dresser, dataclasses.replace(PLAIN, lower="skirt", dress=True))
    skirt = colours[parts == PARTS.index("lower")].median(0).values
    torch.testing.assert_close(skirt, torch.tensor(PLAIN.upper_colour), atol=0.15, rtol=0)
    green = colours[(colours[..., 1] > 0.6) & (colours[..., 0] < 0.2)]
    assert 20 < len(green) < 400


@pytest.mark.parametrize(("bag", "yaw"), [("backpack", math.pi), ("shoulder_bag", 0.3)])
def test_bags_are_seen_from_their_side(dresser: Dresser, bag: str, yaw: float) -> None:
    _, parts, _ = drawn(dresser, dataclasses.replace(PLAIN, bag=bag), yaw=yaw)
    assert count(parts, "bag") > 100
    assert count(drawn(dresser, PLAIN, yaw=yaw)[1], "bag") == 0


@pytest.mark.parametrize("pattern", ["horizontal_stripes", "vertical_stripes", "checks", "logo"])
def test_patterns_bring_the_second_colour(dresser: Dresser, pattern: str) -> None:
    colours, parts, _ = drawn(dresser, dataclasses.replace(PLAIN, pattern=pattern))
    share = float((colours[parts == PARTS.index("upper")][:, 1] > 0.35).float().mean())
    assert (0.02 < share < 0.25) if pattern == "logo" else (0.25 < share < 0.8)


def test_long_hair_is_more_hair_than_short_hair_and_bald_is_none(dresser: Dresser) -> None:
    seen = {
        look.style: count(drawn(dresser, PLAIN, Identity((0.0,) * 10, index), yaw=math.pi)[1], "hair")
        for index, look in enumerate(COMPLEXIONS)
    }
    assert seen["bald"] == 0
    assert seen["long"] > seen["bob"] > seen["short"] > 0
    assert seen["bun"] > seen["short"]


def test_what_is_not_worn_is_a_point_inside_the_body(dresser: Dresser) -> None:
    worn = dresser.wear([PERSON], [PLAIN])
    figure = dresser.dress(torch.zeros(1, 10), pose(), worn)
    body, rest = figure.vertices[0].split([dresser.body.num_vertices, figure.vertices.shape[1] - 1200])
    assert float((rest - rest[0]).abs().max()) == 0
    assert bool((rest[0] > body.amin(0)).all())
    assert bool((rest[0] < body.amax(0)).all())
    assert {TUBE, HAIR} < set(figure.attributes[0, :, 3].int().tolist())


def test_a_person_is_the_same_alone_and_in_a_batch(dresser: Dresser) -> None:
    rng = np.random.default_rng(0)
    outfits = [sample_outfit(rng, People(), Wardrobe()) for _ in range(6)]
    people = [Identity(tuple(rng.normal(0, 2, 10).tolist()), i % 5) for i in range(6)]
    betas = torch.tensor([person.betas for person in people])
    poses = torch.cat([pose(seed) for seed in range(6)])
    worn = dresser.wear(people, outfits)
    together = dresser.dress(betas, poses, worn)
    points = together.attributes[:, ::7].flatten(0, 1)
    owner = torch.arange(6).repeat_interleave(len(points) // 6)
    painted = dresser.paint(points, owner, worn)
    for i in range(6):
        alone = dresser.dress(betas[i : i + 1], poses[i : i + 1], worn[i : i + 1])
        torch.testing.assert_close(alone.vertices[0], together.vertices[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.attributes[0], together.attributes[i], atol=1e-6, rtol=0)
        mine = dresser.paint(
            points[owner == i], torch.zeros(int((owner == i).sum()), dtype=torch.int64), worn[i : i + 1]
        )
        assert bool((mine.albedo == painted.albedo[owner == i]).all())
        assert bool((mine.part == painted.part[owner == i]).all())


def test_some_people_of_a_batch_may_be_painted_alone(dresser: Dresser) -> None:
    worn = dresser.wear(
        [PERSON] * 3, [PLAIN, dataclasses.replace(PLAIN, upper_colour=(0.0, 1.0, 0.0)), PLAIN]
    )
    points = torch.tensor([[0.0, 1.2, 0.1, BODY]])
    assert int(dresser.paint(points, torch.tensor([1]), worn).albedo[0].argmax()) == 1
    assert len(dresser.paint(points[:0], torch.zeros(0, dtype=torch.int64), worn).albedo) == 0


def test_the_feet_are_on_the_ground(dresser: Dresser) -> None:
    figure = dresser.dress(torch.zeros(1, 10), pose(), dresser.wear([PERSON], [PLAIN]))
    body = figure.vertices[:, : dresser.body.num_vertices]
    assert float(body[..., 1].min()) == pytest.approx(0, abs=1e-6)
