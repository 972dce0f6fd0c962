"""Who is in a world and how each picture is taken: what depends on what, and what never does."""

import dataclasses
import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from clip3dreid.body.smpl import load_body
from clip3dreid.errors import InputError
from clip3dreid.synthetic import layouts
from clip3dreid.synthetic.backgrounds import Procedural
from clip3dreid.synthetic.cameras import CameraSettings, ShotSettings
from clip3dreid.synthetic.people import Identity, Outfit, People, Wardrobe
from clip3dreid.synthetic.plan import PeopleCounts, Plan
from clip3dreid.synthetic.renderer import RendererFactory
from clip3dreid.synthetic.settings import WorldSettings
from clip3dreid.synthetic.truth import flat, truth
from clip3dreid.synthetic.world import Part, Person, Stream, World
from clip3dreid.synthetic.writing import RenderedImage

HEIGHT, WIDTH = 64, 32
BODY = partial(load_body, "anny_light")


def settings(**changes: Any) -> WorldSettings:
    plain: dict[str, Any] = {
        "people": People(),
        "wardrobe": Wardrobe(),
        "camera": CameraSettings(),
        "shot": ShotSettings(),
        "backgrounds": Procedural(),
        "bare_backgrounds": Procedural({"plain": 1.0, "noise": 1.0}),
        "poses": {"standing": 1.0, "walking": 1.0},
        "pose_jitter": 0.03,
        "places": 3,
        "frames_per_second": 25.0,
    }
    return WorldSettings(**(plain | changes))


def ltcc(people: PeopleCounts) -> Plan:
    numbers = {"outfits": 2, "cameras": 3, "seen": 3, "pictures": 2, "test_pictures": 2}
    return layouts.ltcc(people, np.random.default_rng(0), **numbers)


def market(people: PeopleCounts) -> Plan:
    rng = np.random.default_rng(0)
    return layouts.market1501(
        people, rng, cameras=3, seen=2, pictures=1, test_pictures=2, distractors=1.0, junk=3.0
    )


def ccvid(people: PeopleCounts, frames: int = 4) -> Plan:
    return layouts.ccvid(people, np.random.default_rng(0), outfits=2, walks=2, frames=frames)


def world(plan: Plan | None = None, seed: int = 7, train: int = 3, test: int = 2, **changes: Any) -> World:
    plan = plan or ltcc(PeopleCounts(train, test))
    return World(seed, plan, settings(**changes), train, test, 10)


def draw(made: World, places: list[int], **changes: Any) -> list[RenderedImage]:
    factory = RendererFactory(made, BODY, HEIGHT, WIDTH, 1)
    return dataclasses.replace(factory, **changes)()(places)


def decoded(drawn: RenderedImage) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(drawn.data)).convert("RGB"))


def test_a_world_follows_from_its_seed() -> None:
    assert world().people == world().people
    assert world().cameras == world().cameras
    assert [world().shot(place) for place in range(5)] == [world().shot(place) for place in range(5)]


def test_another_seed_is_another_world() -> None:
    one, other = world(seed=7), world(seed=8)
    assert not {p.identity.betas for p in one.people} & {p.identity.betas for p in other.people}
    assert not set(one.cameras) & set(other.cameras)


def test_nobody_of_the_training_people_is_a_test_person_or_a_distractor() -> None:
    made = world(market(PeopleCounts(4, 4)), train=4, test=4)
    assert len(made.people) == 8 + 8
    assert len({person.identity.betas for person in made.people}) == 16


def test_no_outfit_is_worn_by_two_people_or_twice_by_one() -> None:
    outfits = [outfit for person in world(train=20, test=20).people for outfit in person.outfits]
    assert len(set(outfits)) == len(outfits) == 80


def test_more_people_leave_the_others_who_they_were() -> None:
    few, many = world(train=3, test=2), world(train=9, test=5)
    assert many.people[:3] == few.people[:3]
    assert many.people[9:11] == few.people[3:5]


def test_distractors_come_after_the_test_people() -> None:
    made = world(train=3, test=2)
    assert [made.part(person) for person in (0, 2, 3, 4, 5, 6)] == [
        *(
            (Part.TRAIN, 0),
            (Part.TRAIN, 2),
            (Part.TEST, 0),
            (Part.TEST, 1),
            (Part.DISTRACTORS, 0),
            (Part.DISTRACTORS, 1),
        ),
    ]


def test_train_and_test_are_seen_by_the_same_cameras_at_other_places() -> None:
    made = world()
    where: dict[str, set[Any]] = {"train": set(), "test": set()}
    for place, picture in enumerate(made.plan.pictures):
        where[picture.split].add(made.where(place))
    assert (
        {camera for _, camera, _ in where["train"]} == {camera for _, camera, _ in where["test"]} == {0, 1, 2}
    )
    assert not where["train"] & where["test"]
    assert {number for _, _, number in where["train"]} == {0, 1, 2}
    factory = RendererFactory(made, BODY, HEIGHT, WIDTH, 1)
    canvases = [
        factory.canvas(part, 0, number, False) for part in (Part.TRAIN, Part.TEST) for number in range(3)
    ]
    assert all((one != other).any() for i, one in enumerate(canvases) for other in canvases[:i])


def test_shapes_have_the_spread_that_is_asked_for() -> None:
    made = world(train=150, test=50, people=People(shape_spread=2.0, stature_spread=0.5))
    spread = made.betas().std(0)
    # A normal distribution cut off at 2.5 has a deviation of 0.95.
    assert 0.4 < spread[0] < 0.56
    assert ((spread[1:] > 1.6) & (spread[1:] < 2.3)).all()
    population = made.population().std(0)
    assert population[0] == pytest.approx(0.48, abs=0.03)
    assert population[1:].mean() == pytest.approx(1.91, abs=0.05)


def test_the_population_is_nobody_of_the_world() -> None:
    made = world()
    assert not (made.betas()[:, None] == made.population()[None]).all(-1).any()


def test_frames_of_a_walk_share_the_view_and_go_on_in_stride() -> None:
    made = world(ccvid(PeopleCounts(3, 2), frames=5))
    shots = [made.shot(place) for place in range(5)]
    assert len({(shot.yaw, shot.distance, shot.light_yaw, shot.window) for shot in shots}) == 1
    assert len({shot.box_shift for shot in shots}) == 5
    assert len({made.where(place) for place in range(5)}) == 1
    poses = [made.pose(place) for place in range(5)]
    assert {pose.kind for pose in poses} == {"walking"}
    steps = [np.abs(b.axis_angle - a.axis_angle).max() for a, b in itertools.pairwise(poses)]
    # A cycle takes about a second, so a frame moves no joint by more than a few tenths, and none stands still.
    assert 0.005 < min(steps) <= max(steps) < 0.5
    assert not np.array_equal(made.pose(5).axis_angle, poses[0].axis_angle)


def test_a_longer_walk_begins_as_the_shorter_one() -> None:
    short, long = world(ccvid(PeopleCounts(1, 1), frames=3)), world(ccvid(PeopleCounts(1, 1), frames=6))
    for place in range(3):
        np.testing.assert_array_equal(short.pose(place).axis_angle, long.pose(place).axis_angle)


def test_a_bad_box_misses_much_of_the_person() -> None:
    made = world(market(PeopleCounts(3, 2)))
    shift = {
        bad: [
            max(map(abs, made.shot(place).box_shift))
            for place, picture in enumerate(made.plan.pictures)
            if picture.bad_box == bad
        ]
        for bad in (False, True)
    }
    assert max(shift[False]) < 0.15 < 0.3 <= min(shift[True])


def test_poses_of_a_file_are_used_for_single_pictures_and_never_for_walks() -> None:
    poses = np.zeros((4, 24, 3), np.float32)
    poses[:, 4, 0] = [0.1, 0.2, 0.3, 0.4]
    single = world(pose_jitter=0.0)
    drawn = {round(float(single.pose(place, poses).axis_angle[4, 0]), 3) for place in range(20)}
    assert drawn == {0.1, 0.2, 0.3, 0.4}
    assert single.pose(0, poses).kind == "file"
    assert world(ccvid(PeopleCounts(1, 1)), train=1, test=1).pose(0, poses).kind == "walking"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"places": 0}, r"world\.places=0"),
        ({"frames_per_second": 0.0}, r"world\.frames_per_second=0"),
        ({"pose_jitter": -1.0}, r"world\.pose_jitter=-1"),
        ({"poses": {"flying": 1.0}}, "flying"),
        ({"poses": {"standing": 0.0}}, "positive"),
    ],
)
def test_settings_that_make_no_world_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**changes)


def test_a_picture_shows_its_person_and_the_same_place_gives_the_same_bytes() -> None:
    made = world()
    drawn = draw(made, [0, 1, 2])
    assert [picture.data for picture in draw(made, [0, 1, 2])] == [picture.data for picture in drawn]
    assert len({picture.data for picture in drawn}) == 3
    for picture in drawn:
        assert picture.data.startswith(b"\x89PNG")
        assert decoded(picture).shape == (HEIGHT, WIDTH, 3)
        assert len(picture.facts["pose"]) == 72
        assert 0 <= picture.facts["visible"] <= 1


def test_jpegs_have_the_quality_of_their_camera() -> None:
    made = world(market(PeopleCounts(3, 2)))
    places = [place for place, picture in enumerate(made.plan.pictures) if picture.camera == 0][:1]
    (fine,), (coarse,) = (
        draw(world(market(PeopleCounts(3, 2)), camera=CameraSettings(quality=(quality, quality))), places)
        for quality in (95, 10)
    )
    assert fine.data.startswith(b"\xff\xd8")
    assert len(fine.data) > 2 * len(coarse.data)


def test_another_body_shape_is_another_silhouette_and_another_outfit_other_colours() -> None:
    plan = ltcc(PeopleCounts(3, 2))
    shot = ShotSettings(occluder=0.0, motion=(0, 0), box_shift=0.0, box_scale=0.0)
    pictures = draw(
        world(plan, shot=shot, camera=CameraSettings(noise=(0, 0))), [0, 6, 12]
    )  # person 0 in two outfits, person 1
    colours = [decoded(picture)[12:52, 12:20].reshape(-1, 3).mean(0) for picture in pictures]
    assert min(np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]) > 3


def grey(rng: np.random.Generator, split: str, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 60, np.uint8)


def test_bodies_are_drawn_without_colour_and_stand_out() -> None:
    plan = layouts.bodies(PeopleCounts(3, 2), np.random.default_rng(0), cameras=2, pictures=2)
    drawn = draw(
        world(
            plan,
            camera=CameraSettings(cast=0.0, saturation=(1, 1), noise=(0, 0), quality=(95, 95)),
            shot=ShotSettings(occluder=0.0),
            bare_backgrounds=grey,
        ),
        list(range(6)),
    )
    for picture in drawn:
        pixels = decoded(picture).astype(int)
        assert (pixels.max(-1) - pixels.min(-1)).max() < 6
        assert pixels.std() > 10


def test_the_truth_has_all_that_is_known_of_every_picture() -> None:
    made = world(ccvid(PeopleCounts(2, 1), frames=1), train=2, test=1)
    drawn = draw(made, list(range(len(made.plan.pictures))))
    table = pl.DataFrame(
        [{"place": place} | picture.facts for place, picture in enumerate(drawn)], infer_schema_length=None
    )
    people = len(made.people)
    rows = truth(
        made, table, {"stature": np.linspace(1.5, 1.9, people)}, {"stature": ["short", "medium", "tall"]}
    )
    assert rows["path"].to_list() == [picture.path for picture in made.plan.pictures]
    for place, row in enumerate(rows.iter_rows(named=True)):
        picture = made.plan.pictures[place]
        person = made.people[picture.person]
        assert row["betas"] == list(person.identity.betas)
        assert row["outfit_upper"] == person.outfits[picture.outfit].upper
        assert row["outfit_upper_colour"] == list(person.outfits[picture.outfit].upper_colour)
        assert row["camera_pitch"] == made.cameras[picture.camera].pitch
        assert row["shot_yaw"] == made.shot(place).yaw
        assert row["pose"] == pytest.approx(made.pose(place).axis_angle.reshape(-1).tolist())
        assert row["measure_stature"] == pytest.approx(1.5 + 0.2 * picture.person)
        assert row["word_stature"] == ("short", "medium", "tall")[picture.person]
        assert (row["person"], row["clothes"], row["camera"]) == (
            *(picture.person_label, picture.clothes_label, picture.camera_label),
        )
        assert picture.path.startswith(f"{row['tracklet']}/")


def bodies(dress: layouts.Dress) -> World:
    plan = layouts.bodies(PeopleCounts(2, 1), np.random.default_rng(0), cameras=2, pictures=2, dress=dress)
    return world(plan, train=2, test=1)


def told(made: World, drawn: list[RenderedImage]) -> pl.DataFrame:
    rendered = pl.DataFrame(
        [{"place": place} | picture.facts for place, picture in enumerate(drawn)], infer_schema_length=None
    )
    return truth(made, rendered, {}, {})


def test_mixed_people_are_the_dressed_and_the_bare_ones_in_turn() -> None:
    everywhere = list(range(6))
    dressed, bare, mixed = (draw(bodies(dress), everywhere) for dress in ("dressed", "bare", "mixed"))
    assert [picture.data for picture in mixed] == [
        (bare if place % 2 else dressed)[place].data for place in everywhere
    ]
    assert not {picture.data for picture in dressed} & {picture.data for picture in bare}
    table = told(bodies("mixed"), mixed)
    assert table["outfit_upper"].is_null().to_list() == [False, True] * 3
    assert table["betas"].null_count() == 0


def test_dressed_people_are_rendered_again_from_the_truth_about_them() -> None:
    made = bodies("dressed")
    drawn = draw(made, list(range(6)))
    rows = told(made, drawn).to_dicts()
    people: dict[int, Person] = {}
    for row in rows:
        fields = {field.name for field in dataclasses.fields(Outfit)}
        worn = {name: row[f"outfit_{name}"] for name in fields if f"outfit_{name}" in row}
        worn = {name: tuple(value) if isinstance(value, list) else value for name, value in worn.items()}
        identity = Identity(tuple(row["betas"]), row["identity_complexion"])
        before = people.get(row["person_index"], Person(identity, ()))
        assert before.identity == identity
        people[row["person_index"]] = Person(identity, (*before.outfits, Outfit(**worn)))
    again = bodies("dressed")
    # Where the cached property keeps what it has drawn.
    again.__dict__["people"] = tuple(people[index] for index in sorted(people))
    assert [picture.data for picture in draw(again, list(range(6)))] == [picture.data for picture in drawn]
    another = dataclasses.replace(people[0].identity, betas=tuple(-b for b in people[0].identity.betas))
    again.__dict__["people"] = (people[0]._replace(identity=another), *again.people[1:])
    assert draw(again, [0])[0].data != drawn[0].data


def test_nested_values_become_columns_and_what_is_none_has_none() -> None:
    nested = {"yaw": 1.0, "occluder": {"kind": "post", "colour": (0.1, 0.2)}, "bag": None}
    assert flat(nested, "shot") == {
        "shot_yaw": 1.0,
        "shot_occluder_kind": "post",
        "shot_occluder_colour": [0.1, 0.2],
    }


def test_streams_are_never_renumbered() -> None:
    # A seed's world would change without a word.
    assert {stream.name: int(stream) for stream in Stream} == {
        **{"PLAN": 0, "SHAPE": 1, "IDENTITY": 2, "OUTFIT": 3, "CAMERA": 4, "PLACE": 5, "WALK": 6, "POSE": 7},
        **{"SHOT": 8, "SENSOR": 9, "POPULATION": 10, "GREY": 11},
    }
    assert math.prod(part + 1 for part in Part) == 6


def test_views_keep_to_their_range() -> None:
    made = world(train=10, test=5, shot=ShotSettings(view_range=20.0))
    yaws = torch.tensor([made.shot(place).yaw for place in range(len(made.plan.pictures))])
    from_front = torch.atan2(yaws.sin(), yaws.cos()).abs()
    from_nearest = torch.minimum(from_front, math.pi - from_front)
    assert from_nearest.max() <= math.radians(20) + 1e-6
    assert from_nearest.max() > math.radians(15)
