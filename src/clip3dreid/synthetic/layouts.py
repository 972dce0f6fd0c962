"""The layouts of real data sets: which pictures a world takes, and what it calls them.

A layout is a function from the numbers of people to a `Plan`. It follows the rules of its data set: names, splits,
which camera sees which outfit, which pictures are queries, so that every reader, protocol and recipe of the real
set runs on the world. People are counted from 0: training people first, then test people, then distractors, who are
nobody's match. Labels are those the data set's reader finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.synthetic.plan import PeopleCounts, Plan, PlannedPicture

DISTRACTOR, JUNK = "0", "-1"
"""Market-1501's person numbers for people who are nobody's match, and for bad boxes."""


def _at_least(least: int, why: str, **settings: int) -> None:
    """Refuse settings below `least`.

    Raises:
        InputError: if one is, or is no whole number; it names it and says why.
    """
    for name, value in settings.items():
        check_number(f"layout.{name}", value, whole=True)
        if value < least:
            raise InputError(f"layout.{name}={value} is too small: {why}; give at least {least}")


def _people(people: PeopleCounts) -> Iterator[tuple[str, int]]:
    """Return the split and index of everybody."""
    for index in range(people.train + people.test):
        yield ("train" if index < people.train else "test"), index


def _shots(split: str, pictures: int, test_pictures: int) -> Iterator[tuple[int, str]]:
    """Return number, from 0, and role of somebody's pictures in one place: the first of a test person is a query."""
    for shot in range(pictures if split == "train" else test_pictures):
        yield shot, split if split == "train" else ("gallery" if shot else "query")


def _numbered(
    path: str, split: str, role: str, person: int, outfit: int, camera: int, frame: int, *, number: int
) -> PlannedPicture:
    """Return a picture whose labels are counted from 1: the person's number, the outfit as `number_outfit`."""
    return PlannedPicture(
        *(path, split, role, person, outfit, camera, frame),
        person_label=str(number),
        clothes_label=f"{number}_{outfit + 1}",
        camera_label=str(camera + 1),
    )


def _seen_by(rng: np.random.Generator, cameras: int, seen: int) -> list[int]:
    """Return the cameras that see an outfit."""
    return sorted(rng.permutation(cameras)[: min(seen, cameras)].tolist())


def ltcc(
    people: PeopleCounts,
    rng: np.random.Generator,
    *,
    outfits: int,
    cameras: int,
    seen: int,
    pictures: int,
    test_pictures: int,
    unchanged: float | None = None,
) -> Plan:
    """Plan LTCC: `{train,query,test}/PERSON_CLOTHES_cCAMERA_FRAME.png`, and the lists of `info/`.

    The first picture of a test person in an outfit under a camera is a query, the others are the gallery.

    Args:
        people: how many.
        rng: chooses the numbers of people and the cameras.
        outfits: of a person; with one nobody changes clothes.
        cameras: of the world.
        seen: how many of the cameras see an outfit.
        pictures: of a training person in an outfit under a camera.
        test_pictures: the same for test people, queries included.
        unchanged: share of training people who are seen in their first outfit alone, 0..1; None: nobody, as in
            worlds from before there was such a share.

    Raises:
        InputError: if a query would have no positive.
    """
    if unchanged is not None:
        check_number("layout.unchanged", unchanged, Range(0, 1))
    _at_least(1, "everybody wears something and is seen", outfits=outfits, pictures=pictures)
    _at_least(2, "a query needs its person under another camera", cameras=cameras, seen=seen)
    _at_least(2, "one is the query, the rest the gallery", test_pictures=test_pictures)
    numbers = rng.permutation(people.train + people.test)
    staying = round((unchanged or 0) * people.train)
    planned: list[PlannedPicture] = []
    for split, person in _people(people):
        for outfit in range(1 if person < staying else outfits):
            for camera in _seen_by(rng, cameras, seen):
                for _, role in _shots(split, pictures, test_pictures):
                    folder = "test" if role == "gallery" else role
                    frame, number = len(planned) + 1, int(numbers[person])
                    path = f"{folder}/{number:03d}_{outfit + 1}_c{camera + 1}_{frame:06d}.png"
                    planned.append(_numbered(path, split, role, person, outfit, camera, frame, number=number))
    return Plan(tuple(planned), _ltcc_lists(planned))


def _ltcc_lists(planned: Sequence[PlannedPicture]) -> dict[str, str]:
    """Return the lists of people who change clothes and who do not, one number a line."""
    lists = {
        f"info/cloth-{kind}_id_{split}.txt": ""
        for kind in ("change", "unchange")
        for split in ("train", "test")
    }
    clothes = {(p.split, int(p.person_label)): set[str]() for p in planned}
    for picture in planned:
        clothes[picture.split, int(picture.person_label)].add(picture.clothes_label)
    for (split, number), worn in sorted(clothes.items()):
        lists[f"info/cloth-{'change' if len(worn) > 1 else 'unchange'}_id_{split}.txt"] += f"{number}\n"
    return lists


def prcc(
    people: PeopleCounts, rng: np.random.Generator, *, pictures: int, val_pictures: int, test_pictures: int
) -> Plan:
    """Plan PRCC: `rgb/{train,val}/PERSON/` with the camera in the name, `rgb/test/{A,B,C}/PERSON/`.

    Cameras A and B see one outfit of a person, C another; A is the gallery. `val` shows the training people.

    Args:
        people: how many.
        rng: chooses the numbers of people.
        pictures: of a training person under a camera.
        val_pictures: more of them, in `rgb/val`.
        test_pictures: of a test person under a camera.

    Raises:
        InputError: if a folder would be empty.
    """
    _at_least(
        1, "no folder may be empty", pictures=pictures, val_pictures=val_pictures, test_pictures=test_pictures
    )
    numbers = 1 + rng.permutation(people.train + people.test)
    planned = []
    for split, person in _people(people):
        number = int(numbers[person])
        for camera, letter in enumerate("ABC"):
            count = pictures + val_pictures if split == "train" else test_pictures
            for frame in range(1, count + 1):
                if split == "test":
                    place = f"rgb/test/{letter}/{number:03d}/cropped_rgb{frame:03d}.jpg"
                    role = "gallery" if letter == "A" else "query"
                else:
                    part = "train" if frame <= pictures else "val"
                    place = f"rgb/{part}/{number:03d}/{letter}_cropped_rgb{frame:03d}.jpg"
                    role = "train" if part == "train" else "left_out"
                planned.append(
                    PlannedPicture(
                        place,
                        *(split, role, person, int(letter == "C"), camera, frame),
                        person_label=str(number),
                        clothes_label=f"{number}_{'C' if letter == 'C' else 'AB'}",
                        camera_label=letter,
                    )
                )
    return Plan(tuple(planned))


def celeb_reid(
    people: PeopleCounts,
    rng: np.random.Generator,
    *,
    outfits: int,
    cameras: int,
    pictures: int,
    test_pictures: int,
) -> Plan:
    """Plan Celeb-reID: `{train,query,gallery}/PERSON_IMAGE_0.jpg`; numbers of people start anew in the test split.

    Each picture comes from any camera, as photographs in newspapers do. The gallery has a person's lower image
    numbers, so that two first digits at least are found there: code that takes the first digit for a camera
    finds a positive for every query.

    Args:
        people: how many.
        rng: chooses the camera of each picture.
        outfits: of a person.
        cameras: of the world.
        pictures: of a training person in an outfit.
        test_pictures: of a test person in an outfit; one of them is a query.

    Raises:
        InputError: if a query would have no positive.
    """
    _at_least(1, "somebody has to take the pictures", cameras=cameras, pictures=pictures)
    _at_least(2, "clothes change", outfits=outfits)
    _at_least(2, "one is the query, the rest the gallery", test_pictures=test_pictures)
    planned = []
    for split, person in _people(people):
        number = 1 + (person if split == "train" else person - people.train)
        count = outfits * (pictures if split == "train" else test_pictures)
        for image in range(1, count + 1):
            role = split if split == "train" else ("gallery" if image <= count - outfits else "query")
            outfit, camera = image % outfits, int(rng.integers(cameras))
            path = f"{role}/{number}_{image}_0.jpg"
            planned.append(_numbered(path, split, role, person, outfit, camera, image, number=number))
    return Plan(tuple(planned))


def market1501(
    people: PeopleCounts,
    rng: np.random.Generator,
    *,
    cameras: int,
    seen: int,
    pictures: int,
    test_pictures: int,
    distractors: float,
    junk: float,
) -> Plan:
    """Plan Market-1501: `{bounding_box_train,query,bounding_box_test}/PERSON_cCAMERAs1_FRAME_BOX.jpg`.

    Nobody changes clothes.

    Args:
        people: how many.
        rng: chooses the numbers of people and the cameras.
        cameras: of the world, up to 9.
        seen: how many of them see a person.
        pictures: of a training person under a camera.
        test_pictures: of a test person under a camera; the first is a query.
        distractors: pictures of distractors in the gallery (person 0), as a share of the test people's there.
        junk: bad boxes of test people in the gallery (person -1), likewise.

    Raises:
        InputError: if a query would have no positive, or a share is negative.
    """
    _at_least(1, "everybody is seen", pictures=pictures)
    _at_least(2, "a query needs its person under another camera", cameras=cameras, seen=seen)
    _at_least(2, "one is the query, the rest the gallery", test_pictures=test_pictures)
    if cameras > 9:
        raise InputError(
            f"layout.cameras={cameras} is too many: names have one digit for the camera; give up to 9"
        )
    check_number("layout.distractors", distractors)
    check_number("layout.junk", junk)
    if min(distractors, junk) < 0:
        raise InputError(
            f"layout.distractors={distractors}, layout.junk={junk}: shares are 0 or more; give such ones"
        )
    numbers = 1 + rng.permutation(people.train + people.test)
    planned: list[PlannedPicture] = []

    def add(split: str, role: str, folder: str, person: int, camera: int, label: str, box: int) -> None:
        frame, bad_box = len(planned) + 1, label == JUNK
        name = label if bad_box else f"{int(label):04d}"
        planned.append(
            PlannedPicture(
                f"{folder}/{name}_c{camera + 1}s1_{frame:06d}_{box:02d}.jpg",
                *(split, role, person, 0, camera, frame),
                person_label=label,
                clothes_label=f"{label}_1" if int(label) > 0 else f"{label}_{person}",
                camera_label=str(camera + 1),
                bad_box=bad_box,
            )
        )

    for split, person in _people(people):
        for camera in _seen_by(rng, cameras, seen):
            for shot, role in _shots(split, pictures, test_pictures):
                folder = {"train": "bounding_box_train", "query": "query"}.get(role, "bounding_box_test")
                add(split, role, folder, person, camera, str(numbers[person]), shot)
    gallery = Counter(picture.role for picture in planned)["gallery"]
    first = people.train + people.test
    for index in range(round(distractors * gallery)):
        camera = int(rng.integers(cameras))
        add("test", "gallery", "bounding_box_test", first + index, camera, DISTRACTOR, 1)
    for _ in range(round(junk * gallery)):
        person, camera = people.train + int(rng.integers(people.test)), int(rng.integers(cameras))
        add("test", "left_out", "bounding_box_test", person, camera, JUNK, 1)
    return Plan(tuple(planned))


# Which outfit each camera sees, by how many outfits a person has: 2 and 3 the same, 3 and 4 different ones.
VC_OUTFITS = {2: (1, 0, 0, 1), 3: (2, 0, 0, 1)}


def vc_clothes(
    people: PeopleCounts, rng: np.random.Generator, *, outfits: int, pictures: int, test_pictures: int
) -> Plan:
    """Plan VC-Clothes: `{train,query,gallery}/PERSON-CAMERA-CLOTHES-INDEX.jpg`, four cameras.

    Cameras 2 and 3 see the same outfit of a person, 4 another; camera 1 sees that of 4, or a third. A test
    person's first picture under a camera is a query.

    Args:
        people: how many.
        rng: chooses the numbers of people.
        outfits: of a person, 2 or 3. With 3 nobody wears what camera 1 sees elsewhere, so its queries have no
            positive in the same clothes.
        pictures: of a training person under a camera.
        test_pictures: of a test person under a camera, queries included.

    Raises:
        InputError: if a query would have no positive, or outfits is neither 2 nor 3.
    """
    _at_least(1, "everybody is seen", pictures=pictures)
    _at_least(2, "one is the query, the rest the gallery", test_pictures=test_pictures)
    if outfits not in VC_OUTFITS:
        raise InputError(f"layout.outfits={outfits} does not suit four cameras; give 2 or 3")
    numbers = 1 + rng.permutation(people.train + people.test)
    planned = []
    for split, person in _people(people):
        number, index = int(numbers[person]), 0
        for camera, outfit in enumerate(VC_OUTFITS[outfits]):
            for _, role in _shots(split, pictures, test_pictures):
                index += 1
                path = f"{role}/{number:03d}-{camera + 1:02d}-{outfit + 1:02d}-{index:02d}.jpg"
                planned.append(_numbered(path, split, role, person, outfit, camera, index, number=number))
    return Plan(tuple(planned))


CCVID_WALKS = 12
"""Walks of a session at most; the cameras of session 3 are counted on from here."""


def ccvid(people: PeopleCounts, rng: np.random.Generator, *, outfits: int, walks: int, frames: int) -> Plan:
    """Plan CCVID: `session{1,2,3}/PERSON_WALK/FRAME.jpg`, and the lists of tracklets.

    Each session shows another outfit, as far as there are others. A test person's first walk of each session is a
    query, the others are the gallery: so each query finds its person in the same clothes and, in other
    sessions, in other ones. A frame of one walk after another goes on in the same stride.

    Args:
        people: how many.
        rng: chooses the numbers of people.
        outfits: of a person; 3 gives each session its own.
        walks: of a person in a session, 2 to 12; each is a camera of its own, and those of session 3 are others.
        frames: of a walk.

    Raises:
        InputError: if a query would have no positive, or there are too many walks.
    """
    _at_least(2, "clothes change", outfits=outfits)
    _at_least(2, "the first is the query, the rest the gallery", walks=walks)
    _at_least(1, "a walk without frames is none", frames=frames)
    if walks > CCVID_WALKS:
        raise InputError(f"layout.walks={walks} is too many: a session has {CCVID_WALKS}; give that or fewer")
    numbers = 1 + rng.permutation(people.train + people.test)
    planned: list[PlannedPicture] = []
    lists = dict.fromkeys(("train.txt", "query.txt", "gallery.txt"), "")
    sequence = 0
    for split, person in _people(people):
        for session in range(1, 4):
            for walk in range(1, walks + 1):
                role = split if split == "train" else ("query" if walk == 1 else "gallery")
                number, outfit = f"{numbers[person]:03d}", (session - 1) % outfits
                # Upper and lower garments, shoes, what is carried, accessories: an outfit changes the first three.
                label = f"u{outfit}_l{outfit}_s{outfit}_c0_a0"
                folder = f"session{session}/{number}_{walk:02d}"
                lists[f"{role}.txt"] += f"{folder}\t{number}\t{label}\n"
                camera = walk - 1 + walks * (session == 3)
                planned += [
                    PlannedPicture(
                        f"{folder}/{step + 1:05d}.jpg",
                        *(split, role, person, outfit, camera, step + 1),
                        person_label=str(int(number)),
                        clothes_label=f"{int(number)}_{label}",
                        camera_label=str(walk + CCVID_WALKS * (session == 3)),
                        sequence=sequence,
                        step=step,
                    )
                    for step in range(frames)
                ]
                sequence += 1
    return Plan(tuple(planned), lists)


def vccr(
    people: PeopleCounts, rng: np.random.Generator, *, outfits: int, cameras: int, walks: int, frames: int
) -> Plan:
    """Plan VCCR: `train/PERSON/TRACKLET/`, `test_qg/{query,gallery}/PERSON/CAMERA/TRACKLET/`, walking people.

    In each outfit a person walks past so many cameras, the same ones in all; the first walk of a test person in an
    outfit is a query, so that each finds its person past other cameras in the same and in other clothes. A frame
    of one walk after another goes on in the same stride.

    Args:
        people: how many.
        rng: chooses the numbers of people and their cameras.
        outfits: of a person.
        cameras: of the world.
        walks: of a person in an outfit, each past a camera of its own.
        frames: of a walk; readers leave test tracklets of fewer than 8 out.

    Raises:
        InputError: if a query would have no positive, or there are fewer cameras than walks.
    """
    _at_least(2, "clothes change", outfits=outfits)
    _at_least(2, "the first is the query, the rest the gallery", walks=walks)
    _at_least(8, "test tracklets of fewer frames are left out", frames=frames)
    _at_least(walks, "each walk in an outfit is past a camera of its own", cameras=cameras)
    numbers = 1 + rng.permutation(people.train + people.test)
    planned: list[PlannedPicture] = []
    sequence = 0
    for split, person in _people(people):
        number, seen = int(numbers[person]), rng.permutation(cameras)[:walks].tolist()
        for outfit in range(outfits):
            for walk, camera in enumerate(seen):
                role = split if split == "train" else ("gallery" if walk else "query")
                place = (
                    f"train/{number:04d}"
                    if split == "train"
                    else f"test_qg/{role}/{number:04d}/C{camera + 1}"
                )
                for step in range(frames):
                    name = f"{number:04d}-C{camera + 1}-D{outfit + 1}-F{step + 1:04d}.jpg"
                    planned.append(
                        PlannedPicture(
                            f"{place}/T{sequence + 1:05d}/{name}",
                            *(split, role, person, outfit, camera, step + 1),
                            person_label=str(number),
                            clothes_label=f"{number}_{outfit + 1}",
                            camera_label=str(camera + 1),
                            sequence=sequence,
                            step=step,
                        )
                    )
                sequence += 1
    return Plan(tuple(planned))


Dress = Literal["bare", "dressed", "mixed"]
"""What the people of `bodies` wear: nothing, another outfit in each picture, or the one and the other in turn."""


def bodies(
    people: PeopleCounts,
    rng: np.random.Generator,
    *,
    cameras: int,
    pictures: int,
    dress: Dress = "bare",
) -> Plan:
    """Plan people whose shapes are to be found, `{train,test}/BODY_PICTURE.jpg`.

    The shapes are in `truth.parquet`; no reader of a person data set applies. Bare, they are the textureless bodies
    of the method's second stream; dressed, in another outfit in each picture, what a shape teacher learns from.

    Args:
        people: how many bodies to train on, and to test on.
        rng: chooses the camera of each picture.
        cameras: of the world.
        pictures: of a body.
        dress: what they wear; with `mixed` every second picture of a body is bare.

    Raises:
        InputError: if there would be no pictures, or `dress` is unknown.
    """
    _at_least(1, "there would be no pictures", cameras=cameras, pictures=pictures)
    choose("layout.dress", dress, get_args(Dress))
    planned = []
    for split, person in _people(people):
        for index in range(1, pictures + 1):
            bare = dress == "bare" or (dress == "mixed" and index % 2 == 0)
            camera, outfit = int(rng.integers(cameras)), 0 if bare else index - 1
            planned.append(
                PlannedPicture(
                    f"{split}/{person:06d}_{index:02d}.jpg",
                    *(split, "train" if split == "train" else "gallery", person, outfit, camera, index),
                    person_label=str(person),
                    clothes_label=f"{person}_{outfit}",
                    camera_label=str(camera + 1),
                    bare=bare,
                )
            )
    return Plan(tuple(planned))
