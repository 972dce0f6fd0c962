import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from clip3dreid.data.clips import (
    ClipSettings,
    EvaluationClips,
    RawTrainClips,
    TrainClips,
    all_clips,
    cut,
    is_looped,
    pieces,
    random_clip,
)
from clip3dreid.data.images import TestView, TrainView, to_unit
from clip3dreid.data.manifest import build
from clip3dreid.data.raw_batches import finish
from clip3dreid.data.tracklets import tracklets
from clip3dreid.errors import InputError
from clip3dreid.types import Batch

LENGTHS = range(1, 201)


def by_hand(length: int) -> list[list[int]]:
    """Clips of 8 with stride 4, said as the base recipe says it, one block after another."""
    clips: list[list[int]] = []
    left = list(range(length))
    while len(left) >= 32:
        block, left = left[:32], left[32:]
        clips += [block[0::4], block[1::4], block[2::4], block[3::4]]
    for stride in (3, 2, 1):
        if len(left) >= 8 * stride:
            block, left = left[: 8 * stride], left[8 * stride :]
            clips += [block[begin::stride] for begin in range(stride)]
    if left:
        clips.append([left[place % len(left)] for place in range(8)])
    return clips


HAND = {
    1: [[0] * 8],
    3: [[0, 1, 2, 0, 1, 2, 0, 1]],
    7: [[0, 1, 2, 3, 4, 5, 6, 0]],
    8: [[0, 1, 2, 3, 4, 5, 6, 7]],
    9: [[0, 1, 2, 3, 4, 5, 6, 7], [8] * 8],
    16: [[0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15]],
    27: [
        [0, 3, 6, 9, 12, 15, 18, 21],
        [1, 4, 7, 10, 13, 16, 19, 22],
        [2, 5, 8, 11, 14, 17, 20, 23],
        [24, 25, 26, 24, 25, 26, 24, 25],
    ],
    33: [
        [0, 4, 8, 12, 16, 20, 24, 28],
        [1, 5, 9, 13, 17, 21, 25, 29],
        [2, 6, 10, 14, 18, 22, 26, 30],
        [3, 7, 11, 15, 19, 23, 27, 31],
        [32] * 8,
    ],
    42: [
        [0, 4, 8, 12, 16, 20, 24, 28],
        [1, 5, 9, 13, 17, 21, 25, 29],
        [2, 6, 10, 14, 18, 22, 26, 30],
        [3, 7, 11, 15, 19, 23, 27, 31],
        [32, 33, 34, 35, 36, 37, 38, 39],
        [40, 41, 40, 41, 40, 41, 40, 41],
    ],
}


@pytest.mark.parametrize("length", HAND)
def test_clips_of_evaluation_are_those_worked_out_by_hand(length: int) -> None:
    assert all_clips(length, 8, 4).tolist() == HAND[length] == by_hand(length)


def test_clips_of_evaluation_are_the_base_recipes_for_every_length() -> None:
    for length in LENGTHS:
        found = all_clips(length, 8, 4)
        assert found.tolist() == by_hand(length), length
        assert len(found) == math.ceil(length / 8)


@given(st.integers(1, 500), st.integers(1, 16), st.integers(1, 6))
def test_every_frame_is_looked_at_once_but_for_the_last_ones_that_are_looped(
    length: int, frames: int, stride: int
) -> None:
    found = all_clips(length, frames, stride)
    assert found.shape == (math.ceil(length / frames), frames)
    whole = found if length % frames == 0 else found[:-1]
    seen, times = np.unique(whole, return_counts=True)
    assert (times == 1).all()
    assert sorted({*seen.tolist(), *found[-1].tolist()}) == list(range(length))


def test_a_training_tracklet_is_cut_into_pieces_of_64_and_the_last_takes_the_rest() -> None:
    assert cut(1, 64) == [range(1)]
    assert cut(127, 64) == [range(127)]
    assert cut(128, 64) == [range(64), range(64, 128)]
    assert cut(200, 64) == [range(64), range(64, 128), range(128, 200)]
    assert cut(200, 0) == [range(200)]
    for length in LENGTHS:
        pieces = cut(length, 64)
        assert [frame for piece in pieces for frame in piece] == list(range(length))
        assert len(pieces) == max(1, length // 64)


def test_a_training_clip_steps_on_from_a_random_frame_that_leaves_room() -> None:
    rng = np.random.default_rng(0)
    firsts = set()
    for _ in range(400):
        clip = random_clip(34, ClipSettings(), rng)
        assert np.diff(clip).tolist() == [4] * 7
        firsts.add(int(clip[0]))
    # The last frame of a clip is 28 further: 34 frames leave 0 to 5.
    assert firsts == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(("sampling", "length"), [("stride", 31), ("segments", 31), ("segments", 200)])
def test_one_frame_is_drawn_of_each_segment(sampling: str, length: int) -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([random_clip(length, ClipSettings(sampling=sampling), rng) for _ in range(900)])
    segment = length // 8
    for place, column in enumerate(drawn.T):
        assert set(column.tolist()) == set(range(place * segment, (place + 1) * segment))


@pytest.mark.parametrize("sampling", ["stride", "segments"])
def test_a_clip_longer_than_the_tracklet_is_looped_in_order(sampling: str) -> None:
    clip = random_clip(3, ClipSettings(sampling=sampling), np.random.default_rng(0))
    assert clip.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert is_looped(7, 8)
    assert not is_looped(8, 8)


def test_draws_stay_within_the_tracklet_for_every_length() -> None:
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        for sampling in ("stride", "segments"):
            clip = random_clip(length, ClipSettings(sampling=sampling), rng)
            assert clip.shape == (8,)
            assert clip.min() >= 0
            assert clip.max() < length
            assert length < 8 or (np.diff(clip) > 0).all()


@pytest.mark.parametrize("bad", [{"frames": 0}, {"stride": 0}, {"piece": -1}, {"sampling": "random"}])
def test_settings_that_are_none_are_refused_by_name(bad: dict) -> None:
    (key,) = bad
    with pytest.raises(InputError, match=rf"datamodule\.clips\.{key}"):
        ClipSettings(**bad)


def world(lengths: dict[str, int]) -> tuple:
    """Tracklets whose frame n of tracklet t is a picture that says so: red t, green n; sizes differ."""
    rows, pictures = [], {}
    for number, (tracklet, length) in enumerate(lengths.items()):
        for frame in range(length):
            path = f"{tracklet}/{frame}.jpg"
            rows.append(
                {
                    "path": path,
                    "person": tracklet,
                    "tracklet": tracklet,
                    "frame": frame,
                    "split": "train",
                    "role": "train",
                }
            )
            picture = np.zeros((20 + frame % 3, 12, 3), np.uint8)
            picture[..., 0], picture[..., 1] = number, frame
            picture[:, :6, 2] = 200  # the left half is blue, so that mirroring shows
            pictures[path] = picture
    table = build("d", Path("/nowhere"), rows).part("train")
    paths = table["path"].to_list()
    return tracklets(table, "d"), [pictures[path] for path in paths], table


def train_clips(lengths: dict[str, int], view: TrainView, kind=TrainClips, guided="middle", **settings):
    found, read, table = world(lengths)
    person = table["person"].rank("dense").to_numpy().astype(np.int64) - 1
    labels = np.stack([person, person + 10, person - 1], axis=1)
    how = ClipSettings(**settings)
    return kind(read, pieces(found, how.piece), labels, view, how, guided)


def test_training_clips_are_pieces_with_their_tracklets_labels() -> None:
    plain = TrainView(16, 8, enlarge_probability=0, flip_probability=0, erase_probability=0)
    clips = train_clips({"a": 130, "b": 5}, plain)
    assert len(clips) == 3
    batch = clips.__getitems__([(piece, 7) for piece in range(3)])
    assert (batch.view, batch.frames) == (None, None)
    assert batch.images.shape == (3, 8, 3, 16, 8)
    assert (batch.person.tolist(), batch.clothes.tolist(), batch.camera.tolist()) == (
        *([0, 0, 1], [10, 10, 11], [-1, -1, 0]),
    )
    frames = batch.images[:, :, 1, 0, 0].numpy()
    # Rows are those of the middle frames: the table is in order of paths, which are no numbers.
    _, read, _ = world({"a": 130, "b": 5})
    assert [read[row][0, 0, 1] for row in batch.row] == frames[:, 4].tolist()
    assert (np.diff(frames[:2], axis=1) == 4).all()
    assert frames[0].max() < 64 <= frames[1].min()
    assert frames[2].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.images[:, :, 0, 0, 0].unique(dim=1).flatten().tolist() == [0, 0, 1]


def test_a_clip_depends_on_its_seed_alone() -> None:
    clips = train_clips({"a": 64}, TrainView(16, 8))
    images = clips.__getitems__([(0, 1), (0, 2), (0, 1)]).images
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images[:1], clips.__getitems__([(0, 1)]).images)


def test_all_frames_of_a_clip_are_cut_mirrored_and_erased_alike() -> None:
    view = TrainView(16, 8, keep_view=True)
    clips = train_clips({"a": 64}, view)
    kinds = set()
    for seed in range(60):
        images = clips.__getitems__([(0, seed)]).images[0].numpy()
        blue = images[:, 2]
        # Everything but green, which counts frames, is the same picture in all frames.
        erased = (images == view.fill).all(1)
        assert (erased == erased[0]).all()
        assert (np.abs(blue.astype(int) - blue[0]) <= 1).all()
        kinds.add((bool(erased.any()), bool(blue[0, -1, -1] > blue[0, -1, 0])))
    assert len(kinds) == 4  # erased or not, mirrored or not


def test_the_teachers_view_is_the_middle_frames_before_erasing() -> None:
    clips = train_clips({"a": 64}, TrainView(16, 8, erase_probability=1, keep_view=True))
    plain = train_clips({"a": 64}, TrainView(16, 8, erase_probability=0))
    view = clips.__getitems__([(0, 3), (0, 4)]).view
    assert view is not None
    assert view.shape == (2, 3, 16, 8)
    assert torch.equal(view, plain.__getitems__([(0, 3), (0, 4)]).images[:, 4])


def test_where_guides_are_about_all_frames_their_rows_and_views_come_along() -> None:
    view = TrainView(16, 8, erase_probability=1, keep_view=True)
    batch = train_clips({"a": 64}, view, guided="all").__getitems__([(0, 3), (0, 4)])
    _, read, _ = world({"a": 64})
    assert batch.frames is not None
    assert batch.view is not None
    assert batch.row.tolist() == batch.frames[:, 4].tolist()
    assert batch.view.shape == batch.images.shape
    numbers = batch.view[:, :, 1, 0, 0]
    assert numbers.tolist() == [[read[row][0, 0, 1] for row in rows] for rows in batch.frames.tolist()]


def test_clips_of_one_frame_are_pictures() -> None:
    view = TrainView(16, 8, keep_view=True)
    batch = train_clips({"a": 64, "b": 3}, view, frames=1).__getitems__([(0, 3), (1, 4)])
    assert batch.images.shape == (2, 3, 16, 8)
    assert batch.view is not None
    assert batch.view.shape == (2, 3, 16, 8)
    found, read, _ = world({"a": 33})
    clips = EvaluationClips(read, found, TestView(16, 8), ClipSettings(frames=1))
    assert len(clips) == 33
    assert clips.__getitems__([0, 1]).images.shape == (2, 3, 16, 8)


@pytest.mark.parametrize("guided", ["middle", "all"])
@pytest.mark.parametrize("frames", [1, 8])
def test_clips_augmented_on_a_device_are_those_augmented_by_workers(guided: str, frames: int) -> None:
    view = TrainView(16, 8, enlarge_probability=0, keep_view=True)
    indices = [(0, 3), (1, 4), (0, 5), (0, 6), (1, 7)]
    asked = {"guided": guided, "frames": frames}
    by_worker = train_clips({"a": 64, "b": 5}, view, **asked).__getitems__(indices)
    by_device = finish(
        train_clips({"a": 64, "b": 5}, view, RawTrainClips, **asked).__getitems__(indices), view
    )
    assert isinstance(by_device, Batch)
    for name in ("person", "clothes", "camera", "row"):
        assert torch.equal(getattr(by_worker, name), getattr(by_device, name))
    for name in ("images", "view"):
        torch.testing.assert_close(
            to_unit(getattr(by_worker, name)), getattr(by_device, name), rtol=0, atol=1e-6
        )


def test_processes_share_clips_out_by_whole_tracklets() -> None:
    found, read, _ = world({"a": 100, "b": 8, "c": 30, "d": 1, "e": 64})
    clips = EvaluationClips(read, found, TestView(16, 8), ClipSettings())
    for size in (1, 2, 3, 7):
        shares = [clips.share(rank, size) for rank in range(size)]
        assert np.concatenate(shares).tolist() == list(range(len(clips)))
        owners = [set(clips.tracklet[share].tolist()) for share in shares]
        assert sum(map(len, owners)) == 5
    assert [len(clips.share(rank, 2)) for rank in range(2)] == [13, 14]


def test_evaluation_takes_all_clips_and_names_their_tracklets() -> None:
    found, read, _ = world({"a": 33, "b": 8, "c": 1})
    clips = EvaluationClips(read, found, TestView(16, 8), ClipSettings())
    assert clips.tracklet.tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert len(clips) == 7
    loader = DataLoader(clips, batch_size=3, collate_fn=lambda batch: batch)
    batches = list(loader)
    assert [len(batch.images) for batch in batches] == [3, 3, 1]
    images = torch.cat([batch.images for batch in batches])
    assert images.shape == (7, 8, 3, 16, 8)
    assert images[:, :, 1, 0, 0].tolist() == [*HAND[33], *HAND[8], *HAND[1]]
    rows = torch.cat([batch.row for batch in batches])
    assert rows.tolist() == clips.tracklet.tolist()
    assert (images[:, :, 0] == rows[:, None, None, None]).all()
    assert (batches[0].person, batches[0].clothes, batches[0].camera)[0].tolist() == [-1, -1, -1]
