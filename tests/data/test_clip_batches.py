import numpy as np
import pytest
import torch
from torch import Tensor

from clip3dreid.data.clip_batches import ClipBatches, Lost
from clip3dreid.data.clips import all_clips
from clip3dreid.io.pictures import UnreadablePicture


def frame(row: int) -> Tensor:
    """A picture that says which it is."""
    return torch.full((3, 2, 1), row, dtype=torch.uint8)


def without(*rows: int):
    def read(row: int) -> Tensor:
        if row in rows:
            raise UnreadablePicture(f"{row} is broken", "broken")
        return frame(row)

    return read


def starts(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def batches(lengths: list[int], planes=frame, frames: int = 4, stride: int = 2, batch: int = 12, **more):
    ends = starts(lengths)
    more.setdefault("rows", np.arange(ends[-1]))
    return ClipBatches(planes, starts=ends, frames=frames, stride=stride, batch=batch, **more)


def shown(made: ClipBatches) -> list[tuple[int, list[int]]]:
    """Each clip: whose it is, and its frames."""
    found = []
    for number in range(len(made)):
        one = made[number]
        for tracklet, clip in zip(one.rows.tolist(), one.images, strict=True):
            found.append((tracklet, clip.reshape(-1, 3, 2, 1)[:, 0, 0, 0].tolist()))
    return found


def test_all_clips_of_evaluation_come_in_order_and_batches_are_of_so_many_frames() -> None:
    lengths = [1, 40, 3, 8, 13]
    # Frames of a table are in no order.
    rows = np.random.default_rng(1).permutation(sum(lengths))
    made = batches(lengths, rows=rows)
    expected = [
        (tracklet, rows[starts(lengths)[tracklet] + clip].tolist())
        for tracklet, length in enumerate(lengths)
        for clip in all_clips(length, 4, 2)
    ]
    assert shown(made) == expected
    assert {made[number].images.shape for number in range(len(made) - 1)} == {(3, 4, 3, 2, 1)}


def test_clips_of_one_frame_are_pictures_and_a_batch_is_of_one_clip_at_least() -> None:
    assert batches([5], frames=1)[0].images.shape == (5, 3, 2, 1)
    made = batches([20], batch=3)
    assert [made[number].images.shape for number in range(len(made))] == [(1, 4, 3, 2, 1)] * 5


def test_a_batch_never_holds_clips_of_two_parts() -> None:
    made = batches([5, 9, 1, 1, 6], parts=[range(2), range(3, 5)])
    assert made.counts == [2, 1]
    assert [made[number].rows.tolist() for number in range(3)] == [[0, 0, 1], [1, 1], [3, 4, 4]]


def test_frames_that_cannot_be_read_are_left_out_of_their_clip_and_named() -> None:
    """The second tracklet is frames 8 to 10, looped; of the first, two clips of every second frame, one is left."""
    made = batches([8, 3, 2], without(1, 3, 5, 7, 4, 9, 11, 12), skip=True)
    assert shown(made) == [(0, [0, 2, 6, 0]), (1, [8, 10, 8, 10])]
    lost = [one for number in range(len(made)) for one in made[number].lost]
    assert lost == [
        Lost(tracklet, row, "broken")
        for tracklet, row in [(0, 4), (0, 1), (0, 3), (0, 5), (0, 7), (1, 9), (2, 11), (2, 12)]
    ]
    with pytest.raises(UnreadablePicture, match="4 is broken"):
        batches([8], without(4))[0]


def test_a_batch_of_nothing_that_can_be_read_is_empty() -> None:
    (made,) = (batches([3], without(0, 1, 2), skip=True)[number] for number in range(1))
    assert len(made.rows) == 0
    assert len(made.lost) == 3
