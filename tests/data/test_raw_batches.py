"""A device does to a whole batch what `TrainView` does picture by picture."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch.utils.data import DataLoader

from clip3dreid.data.images import TestView, TrainView
from clip3dreid.data.picture_batches import TrainPictures, as_it_is
from clip3dreid.data.raw_batches import (
    RawBatch,
    RawEvaluationPictures,
    RawTrainPictures,
    augment,
    check_on_device,
    draw,
    finish,
)
from clip3dreid.errors import InputError
from clip3dreid.types import Batch
from tests.random_pictures import noise, smooth

PICTURES = np.stack([smooth(96, 48) if row % 2 else noise(96, 48) for row in range(24)])
LABELS = np.stack([np.arange(24) // 4, np.arange(24) // 2, np.arange(24) % 3 - 1], axis=1)


def indices(count: int, seed: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    rows, seeds = rng.integers(len(PICTURES), size=count), rng.integers(2**63, size=count)
    return list(zip(rows.tolist(), seeds.tolist(), strict=True))


def on_device(view: TrainView, wanted: Sequence[tuple[int, int]]) -> Batch:
    batch = finish(RawTrainPictures(PICTURES, LABELS, view).__getitems__(wanted), view)
    assert isinstance(batch, Batch)
    return batch


def by_workers(view: TrainView, wanted: Sequence[tuple[int, int]]) -> Batch:
    return TrainPictures(PICTURES, LABELS, view).__getitems__(wanted)


@pytest.mark.parametrize("enlarge", [1.0, 1.125, 1.4])
def test_a_seed_makes_the_same_picture_to_a_grey_level(enlarge: float) -> None:
    view = TrainView(96, 48, enlarge=enlarge, keep_view=True)
    wanted = indices(200, 1)
    device, worker = on_device(view, wanted), by_workers(view, wanted)
    assert device.view is not None
    assert worker.view is not None
    for ours, theirs in ((device.images, worker.images), (device.view, worker.view)):
        assert ours.dtype == torch.float32
        assert ours.is_contiguous()
        levels = ours * 255
        assert (levels - theirs).abs().max() < 1.01
        assert (levels - levels.round()).abs().max() < 1e-4
    for name in ("person", "clothes", "camera", "row"):
        assert torch.equal(getattr(device, name), getattr(worker, name)), name


def test_a_picture_that_is_not_enlarged_is_the_same_to_the_bit() -> None:
    view = TrainView(96, 48, enlarge_probability=0, keep_view=True)
    wanted = indices(100, 2)
    device, worker = on_device(view, wanted), by_workers(view, wanted)
    assert worker.view is not None
    assert torch.equal(device.images, worker.images / 255)
    assert torch.equal(device.view, worker.view / 255)
    assert not torch.equal(device.images, device.view)


def test_the_size_is_the_views_whatever_the_pictures_have() -> None:
    view, plain = TrainView(48, 24, enlarge_probability=0), TestView(48, 24)
    images = on_device(view, [(3, 5)]).images
    assert images.shape == (1, 3, 48, 24)
    raw = RawEvaluationPictures(PICTURES, 24, plain).__getitems__([3, 7])
    batch = finish(raw, view)
    assert isinstance(batch, Batch)
    for image, row in zip(batch.images, (3, 7), strict=True):
        np.testing.assert_array_equal(image, torch.from_numpy(plain(PICTURES[row])) / 255)
    assert batch.row.tolist() == [3, 7]
    assert batch.person.tolist() == [-1, -1]
    assert batch.view is None


# A picture that says of each pixel where it came from: red is twice the row, green five times the column.
WHERE = np.full((96, 48, 3), 77, np.uint8)
WHERE[..., 0], WHERE[..., 1] = 2 * np.arange(96)[:, None], 5 * np.arange(48)
ERASED = 200


def told(images: np.ndarray) -> dict[str, np.ndarray]:
    """What was done to `WHERE`, read off N results (N, 3, 96, 48)."""
    red, green, blue = images.astype(np.float32).transpose(1, 0, 2, 3)
    erased = blue == ERASED
    left = ~erased
    rows, columns = (
        np.broadcast_to(np.arange(96)[:, None], (96, 48)),
        np.broadcast_to(np.arange(48), (96, 48)),
    )

    def mean(values: np.ndarray) -> np.ndarray:
        return (values * left).sum((1, 2)) / left.sum((1, 2))

    # The slope over the columns that are left, by least squares.
    across = columns - mean(np.broadcast_to(columns, red.shape))[:, None, None]
    slope = mean(green * across) / mean(across**2)
    flipped = slope < 0
    place = np.where(flipped[:, None, None], 47 - columns, columns)
    enlarged = np.abs(slope) < 4.72  # 5 / 1.125 is 4.44
    down = np.rint(mean((red / 2 + 0.5) * 1.125 - 0.5 - rows))
    right = np.rint(mean((green / 5 + 0.5) * 1.125 - 0.5 - place))
    there = erased.any((1, 2))
    height, width = erased.any(2).sum(1), erased.any(1).sum(1)
    return {
        "enlarged": enlarged,
        "down": down[enlarged],
        "right": right[enlarged],
        "flipped": flipped,
        "erased": there,
        "area": erased.sum((1, 2))[there],
        "aspect": height[there] / width[there],
        "top": erased.any(2).argmax(1)[there],
        "left": erased.any(1).argmax(1)[there],
    }


def test_windows_mirrors_and_rectangles_are_distributed_as_picture_by_picture() -> None:
    view = TrainView(96, 48, erase_fill=(0.5, 0.5, ERASED / 255), erase_area=(0.02, 0.4))
    seeds = np.random.default_rng(0).integers(2**63, size=(2, 4000)).tolist()
    single = told(np.stack([view(WHERE, seed)[0] for seed in seeds[0]]))
    planes = torch.from_numpy(WHERE).permute(2, 0, 1)[None]
    parts = [
        augment(planes.expand(500, -1, -1, -1), draw(view, seeds[1][start : start + 500]), view)[1]
        for start in range(0, 4000, 500)
    ]
    whole = told((torch.cat(parts) * 255).round().numpy())
    for name, ours in whole.items():
        assert ks_2samp(ours, single[name]).pvalue > 0.01, name
        assert len(np.unique(ours)) > 1, name
    # As the recipe has it, and not only alike.
    for name in ("enlarged", "flipped", "erased"):
        assert whole[name].mean() == pytest.approx(0.5, abs=0.03), name
    assert set(whole["down"]) == set(range(13))
    assert set(whole["right"]) == set(range(7))
    area = whole["area"] / (96 * 48)
    assert 0.015 < area.min() < 0.03
    assert 0.3 < area.max() < 0.41


def test_a_teacher_sees_what_was_not_erased() -> None:
    view = TrainView(96, 48, erase_probability=1, keep_view=True)
    batch = on_device(view, indices(20, 3))
    plain = TrainView(96, 48, erase_probability=0, keep_view=True)
    seen = on_device(plain, indices(20, 3))
    assert batch.view is not None
    assert torch.equal(batch.view, seen.images)
    assert (batch.images != batch.view).flatten(1).any(1).all()
    assert on_device(TrainView(96, 48), indices(2, 3)).view is None


def test_nothing_is_asked_of_the_device() -> None:
    # On the meta device there are no values: whatever waits for one fails.
    view = TrainView(96, 48, keep_view=True)
    raw = RawTrainPictures(PICTURES, LABELS, view).__getitems__(indices(6, 4))
    assert raw.draws is not None
    assert isinstance(raw.batch, Batch)
    there = RawBatch(raw.batch._replace(images=raw.batch.images.to("meta")), raw.draws.to("meta"))
    batch = finish(there, view)
    assert batch.images.device.type == "meta"
    assert batch.images.shape == (6, 3, 96, 48)


def test_workers_make_the_same_batches() -> None:
    view = TrainView(96, 48)
    plan = [indices(5, seed) for seed in range(4)]
    pictures = RawTrainPictures(PICTURES, LABELS, view)
    alone, two = (
        list(DataLoader(pictures, batch_sampler=plan, collate_fn=as_it_is, num_workers=workers))
        for workers in (0, 2)
    )
    for one, other in zip(alone, two, strict=True):
        assert torch.equal(one.draws, other.draws)
        assert torch.equal(one.batch.images, other.batch.images)
        assert other.batch.images.is_shared()


def test_transforms_for_the_cpu_are_refused() -> None:
    import albumentations

    view = TrainView(96, 48, extra=[albumentations.ToGray(p=1)])
    with pytest.raises(
        InputError, match=r"^datamodule\.train_view\.extra has transforms .*augment_on=worker"
    ):
        check_on_device(view)
    with pytest.raises(InputError, match=r"^bodies\.view\.extra has"):
        check_on_device(view, "bodies.view")


def test_all_tensors_are_pinned_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    view = TrainView(96, 48)
    raw = RawTrainPictures(PICTURES, LABELS, view).__getitems__(indices(2, 4))
    raw = raw._replace(batch=raw.batch._replace(targets={"teacher": torch.zeros(2, 3)}))
    pinned: list[tuple[int, ...]] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tuple(tensor.shape))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    copied = raw.pin_memory()
    assert sorted(pinned) == sorted([(2, 96, 48, 3), (2,), (2,), (2,), (2,), (2, 3), (2, 8)])
    assert torch.equal(copied.batch.images, raw.batch.images)
