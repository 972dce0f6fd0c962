import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from clip3dreid.body import render
from clip3dreid.body.garments import PARTS, Tailor
from clip3dreid.body.people import COMPLEXIONS, Identity, Outfit, People, Wardrobe, sample_outfit
from clip3dreid.body.poses import standing
from clip3dreid.body.smpl import load_body

PLAIN = Outfit(
    upper="t_shirt",
    lower="trousers",
    dress=False,
    upper_colour=(1.0, 0.0, 0.0),
    lower_colour=(0.0, 0.0, 1.0),
    second_colour=(0.0, 1.0, 0.0),
    shoe_colour=(1.0, 1.0, 0.0),
    pattern="plain",
    pattern_size=0.05,
    lower_pattern="plain",
    upper_stands_off=0.01,
    lower_stands_off=0.015,
    skirt_length=0.5,
    bag="none",
    bag_colour=(0.0, 1.0, 1.0),
    complexion=None,
)
PERSON = Identity((0.0,) * 10, 0)


@pytest.fixture(scope="module")
def tailor() -> Tailor:
    return Tailor(load_body("anny_light"))


def drawn(
    tailor: Tailor, outfit: Outfit, person: Identity = PERSON, yaw: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Colours (H, W, 3), parts (H, W) and mask (H, W) of a person seen from the front, 192 x 96."""
    worn = tailor.wear([person], [outfit])
    pose = torch.as_tensor(standing(np.random.default_rng(0)))[None]
    figure = tailor.dress(torch.tensor([person.betas]), pose, worn)
    camera = render.Camera(
        torch.tensor([yaw]),
        torch.zeros(1),
        torch.full((1,), 4.5),
        torch.full((1,), 0.45),
        torch.tensor([[0, 0.85, 0]]),
    )
    points = render.project(figure.vertices, camera, 192, 96)
    fragments = render.rasterise(points, figure.faces, 192, 96)
    carried = render.interpolate(figure.attributes, figure.faces, fragments)
    hit = fragments.face >= 0
    paint = tailor.paint(carried[hit], torch.zeros(int(hit.sum()), dtype=torch.int64), worn)
    colours, parts = torch.zeros(1, 192, 96, 3), torch.zeros(1, 192, 96, dtype=torch.uint8)
    colours[hit], parts[hit] = paint.albedo, paint.part
    return colours[0], parts[0], hit[0]


def rows_of(parts: Tensor, name: str) -> Tensor:
    """Rows where the part is seen, from the top."""
    return (parts == PARTS.index(name)).any(1).nonzero()[:, 0]


def test_shirt_is_above_trousers_above_shoes_and_each_has_its_colour(tailor: Tailor) -> None:
    colours, parts, mask = drawn(tailor, PLAIN)
    hair, upper, lower, shoes = (rows_of(parts, n).float() for n in ("hair", "upper", "lower", "shoes"))
    assert hair.mean() < upper.mean() < lower.mean() < shoes.mean()
    for name, colour in (
        ("upper", PLAIN.upper_colour),
        ("lower", PLAIN.lower_colour),
        ("shoes", PLAIN.shoe_colour),
    ):
        seen = colours[parts == PARTS.index(name)]
        torch.testing.assert_close(seen, torch.tensor(colour).expand_as(seen))
    assert bool((parts[mask] > 0).all())
    assert not bool((parts[~mask] > 0).any())


@pytest.mark.parametrize(("longer", "shorter"), [("long_sleeve", "t_shirt")])
def test_long_sleeves_cover_the_arms(tailor: Tailor, longer: str, shorter: str) -> None:
    seen = {}
    for upper in (longer, shorter):
        _, parts, _ = drawn(tailor, dataclasses.replace(PLAIN, upper=upper))
        seen[upper] = int((parts == PARTS.index("skin")).sum())
    assert seen[longer] < 0.75 * seen[shorter]


def test_shorts_show_the_calves_and_trousers_do_not(tailor: Tailor) -> None:
    def bare(lower: str) -> int:
        _, parts, _ = drawn(tailor, dataclasses.replace(PLAIN, lower=lower))
        return int((parts[140:162] == PARTS.index("skin")).sum())

    assert bare("trousers") == 0
    assert bare("shorts") > 100


def test_loose_clothes_widen_the_silhouette(tailor: Tailor) -> None:
    _, _, tight = drawn(tailor, dataclasses.replace(PLAIN, upper_stands_off=0.0, lower_stands_off=0.0))
    _, _, loose = drawn(tailor, dataclasses.replace(PLAIN, upper_stands_off=0.05, lower_stands_off=0.05))
    assert int(loose.sum()) > 1.1 * int(tight.sum())
    assert int((tight & ~loose).sum()) < 0.02 * int(tight.sum())


def test_tight_clothes_leave_the_body_as_it_is(tailor: Tailor) -> None:
    bald = dataclasses.replace(PERSON, complexion=[c.style for c in COMPLEXIONS].index("bald"))
    worn = tailor.wear([bald], [dataclasses.replace(PLAIN, upper_stands_off=0.0, lower_stands_off=0.0)])
    off = tailor.stands_off(worn)
    above_shoes = tailor.places[:, 1] > tailor.ankle + 0.05
    assert float(off[:, above_shoes].abs().max()) < 1e-3


def test_a_skirt_fills_the_gap_between_the_legs(tailor: Tailor) -> None:
    _, _, trousers = drawn(tailor, PLAIN)
    _, parts, skirt = drawn(tailor, dataclasses.replace(PLAIN, lower="skirt"))
    knees = slice(118, 126)
    assert int(skirt[knees].sum()) > 1.2 * int(trousers[knees].sum())
    assert int((parts[knees] == PARTS.index("lower")).sum()) > 0.9 * int(skirt[knees].sum())


def test_a_coat_reaches_below_a_jacket_and_a_dress_is_of_one_colour(tailor: Tailor) -> None:
    low = {}
    for upper in ("jacket", "long_coat"):
        _, parts, _ = drawn(tailor, dataclasses.replace(PLAIN, upper=upper), yaw=math.pi)
        low[upper] = int(rows_of(parts, "upper").max())
    assert low["long_coat"] > low["jacket"] + 10
    colours, parts, _ = drawn(tailor, dataclasses.replace(PLAIN, lower="skirt", dress=True))
    skirt = colours[parts == PARTS.index("lower")]
    torch.testing.assert_close(skirt, torch.tensor(PLAIN.upper_colour).expand_as(skirt))


@pytest.mark.parametrize(("bag", "yaw"), [("backpack", math.pi), ("shoulder_bag", 0.3)])
def test_bags_are_seen_from_their_side(tailor: Tailor, bag: str, yaw: float) -> None:
    _, parts, _ = drawn(tailor, dataclasses.replace(PLAIN, bag=bag), yaw=yaw)
    assert int((parts == PARTS.index("bag")).sum()) > 100
    _, without, _ = drawn(tailor, PLAIN, yaw=yaw)
    assert not bool((without == PARTS.index("bag")).any())


@pytest.mark.parametrize("pattern", ["horizontal_stripes", "vertical_stripes", "checks", "logo"])
def test_patterns_bring_the_second_colour(tailor: Tailor, pattern: str) -> None:
    colours, parts, _ = drawn(tailor, dataclasses.replace(PLAIN, pattern=pattern))
    green = colours[parts == PARTS.index("upper")][:, 1] > 0.4
    share = float(green.float().mean())
    assert (0.02 < share < 0.25) if pattern == "logo" else (0.25 < share < 0.8)


def test_hair_is_of_its_colour_and_more_of_it_where_it_is_long(tailor: Tailor) -> None:
    seen = {}
    for index, look in enumerate(COMPLEXIONS):
        colours, parts, _ = drawn(tailor, PLAIN, Identity((0.0,) * 10, index), yaw=math.pi)
        hair = parts == PARTS.index("hair")
        seen[look.style] = int(hair.sum())
        if look.style != "bald":
            torch.testing.assert_close(colours[hair], torch.tensor(look.hair).expand(seen[look.style], 3))
    assert seen["bald"] == 0
    assert seen["long"] > 1.3 * seen["short"] > 0


def test_a_person_is_the_same_alone_and_in_a_batch(tailor: Tailor) -> None:
    rng = np.random.default_rng(0)
    outfits = [sample_outfit(rng, People(), Wardrobe()) for _ in range(6)]
    people = [Identity(tuple(rng.normal(0, 2, 10)), i % 5) for i in range(6)]
    betas = torch.tensor([person.betas for person in people], dtype=torch.float32)
    poses = torch.as_tensor(np.stack([standing(rng) for _ in range(6)]))
    together = tailor.dress(betas, poses, tailor.wear(people, outfits))
    assert bool((together.vertices[..., 1] > -0.2).all())
    for i in range(6):
        alone = tailor.dress(
            betas[i : i + 1], poses[i : i + 1], tailor.wear(people[i : i + 1], outfits[i : i + 1])
        )
        torch.testing.assert_close(alone.vertices[0], together.vertices[i], atol=1e-6, rtol=0)
        torch.testing.assert_close(alone.attributes[0], together.attributes[i])


def test_the_feet_are_on_the_ground(tailor: Tailor) -> None:
    worn = tailor.wear([PERSON], [PLAIN])
    figure = tailor.dress(torch.zeros(1, 10), torch.as_tensor(standing(np.random.default_rng(0)))[None], worn)
    body = figure.vertices[:, : tailor.body.num_vertices]
    assert float(body[..., 1].min()) == pytest.approx(0, abs=1e-6)
