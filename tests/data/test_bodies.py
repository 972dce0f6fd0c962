"""The stream of textureless bodies, from folders made here."""

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from PIL import Image
from torch.utils.data import DataLoader

from clip3dreid.data.bodies import (
    BodyBatches,
    BodyPictures,
    BodyStream,
    BodyTable,
    collate_bodies,
    read_bodies,
)
from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.datasets import ltcc
from clip3dreid.data.images import TestView, TrainView
from clip3dreid.errors import InputError

# Pictures of people are not in the order of their bodies, and a body is of one split alone.
PICTURES = [("train", "7"), ("test", "40"), ("train", "12"), ("train", "7"), ("train", "3"), ("test", "40")]
BETAS = {"7": [0.5, -1.0, 2.0], "12": [0.0, 3.0, -2.5], "3": [1.0, 1.0, 1.0], "40": [9.0, 9.0, 9.0]}


def truth() -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"path": f"{split}/{row:03d}.png", "split": split, "person": person, "betas": BETAS[person]}
            for row, (split, person) in enumerate(PICTURES)
        ]
    ).with_columns(outfit_index=pl.lit(0), camera_distance=pl.lit(3.0))


def write(root: Path, table: pl.DataFrame) -> Path:
    """The folder; a picture's grey says which row it is."""
    for row, name in enumerate(table["path"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 16, 3), 10 * row, np.uint8)).save(path)
    table.write_parquet(root / "truth.parquet")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "bodies", truth())


def view(**changes) -> TrainView:
    """An augmentation that leaves the picture as it is."""
    plain = {
        "enlarge": 1.125,
        "enlarge_probability": 0,
        "flip_probability": 0,
        "erase_probability": 0,
        "erase_area": (0.02, 0.4),
        "erase_aspect": (0.3, 3.33),
        "erase_fill": (1.0, 0.0, 0.5),
    }
    return TrainView(32, 16, **{**plain, **changes})


# Reading.


def test_pictures_bodies_and_coefficients_are_those_of_the_truth(root: Path) -> None:
    table = read_bodies(root)
    assert table.files == [root / f"train/{row:03d}.png" for row in (0, 2, 3, 4)]
    assert table.body.tolist() == [0, 1, 0, 2]
    assert table.body.dtype == np.int64
    assert table.bodies == 3
    assert table.betas.dtype == np.float32
    assert table.betas.tolist() == [BETAS["7"], BETAS["12"], BETAS["7"], BETAS["3"]]


def test_the_other_split_has_bodies_of_its_own(root: Path) -> None:
    table = read_bodies(root, "test")
    assert table.files == [root / "test/001.png", root / "test/005.png"]
    assert (table.body.tolist(), table.bodies) == ([0, 0], 1)
    assert table.betas.tolist() == [BETAS["40"]] * 2


def test_a_folder_without_bodies_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_bodies(tmp_path / "none")
    made = f"clip3dreid synthesize layout=bodies out={tmp_path / 'none'}"
    assert str(caught.value).startswith(f"no textureless bodies in {tmp_path / 'none'} (bodies.root)")
    assert made in str(caught.value)


def test_clothed_people_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, truth().with_columns(outfit_upper=pl.lit("shirt")))
    with pytest.raises(
        InputError,
        match=r"shows clothed people; give textureless bodies \(clip3dreid synthesize .*or bodies\.dressed=true",
    ):
        read_bodies(root)
    assert len(read_bodies(root, dressed=True).files) > 0


def test_a_split_without_bodies_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, truth().filter(pl.col("split") == "test"))
    with pytest.raises(InputError, match=r"holds no bodies to train on; make some: clip3dreid synthesize"):
        read_bodies(root)


def text(path: Path) -> None:
    path.write_text("path,split\n")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def no_betas(path: Path) -> None:
    truth().drop("betas").write_parquet(path)


@pytest.mark.parametrize("damage", [text, half, no_betas])
def test_a_damaged_truth_is_refused_in_one_line(damage, root: Path) -> None:
    damage(root / "truth.parquet")
    with pytest.raises(
        InputError,
        match=r"(cannot be read as the truth about bodies|has no column betas).*; make it anew: clip3dreid syn",
    ) as caught:
        read_bodies(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "betas",
    [
        pl.Series([[1.0, 2.0]] * 5 + [[1.0]]).gather([0, 1, 5, 2, 3, 4]),  # not as many for everybody
        pl.Series([[1.0, float("nan")]] * 6),
        pl.Series([[1.0, float("inf")]] * 6),
        pl.Series([[1.0, None]] * 6),
        pl.Series([[1.0, 2.0], None] * 3),
        pl.Series([1.0] * 6),
        pl.Series(["tall"] * 6),
        pl.Series([["1.0", "much"]] * 6),
    ],
)
def test_coefficients_that_are_not_finite_numbers_are_refused(betas: pl.Series, tmp_path: Path) -> None:
    root = write(tmp_path, truth().with_columns(betas=betas))
    with pytest.raises(
        InputError, match=r"betas are not as many finite numbers for every body; make it anew"
    ):
        read_bodies(root)


# The control.


def table(bodies: int, pictures: int = 3) -> BodyTable:
    """Bodies whose coefficients say which they are, their pictures scattered."""
    body = np.random.default_rng(0).permutation(np.repeat(np.arange(bodies), pictures))
    betas = np.stack([body, 10.0 * body], axis=1).astype(np.float32)
    return BodyTable([Path(f"{row}.png") for row in range(len(body))], betas, body)


@pytest.mark.parametrize("bodies", [2, 3, 20])
def test_shuffling_gives_every_body_another_s_coefficients_and_keeps_its_pictures(bodies: int) -> None:
    for seed in range(20):
        plain, exchanged = table(bodies), table(bodies).shuffled(seed)
        assert exchanged.files == plain.files
        assert exchanged.body.tolist() == plain.body.tolist()
        given = {}
        for body, betas in zip(exchanged.body.tolist(), exchanged.betas.tolist(), strict=True):
            assert given.setdefault(body, betas) == betas
        assert sorted(given.values()) == [[body, 10 * body] for body in range(bodies)]
        assert all(betas != [body, 10 * body] for body, betas in given.items())


def test_shuffling_repeats_itself_for_a_seed() -> None:
    assert table(20).shuffled(1).betas.tolist() == table(20).shuffled(1).betas.tolist()
    assert table(20).shuffled(1).betas.tolist() != table(20).shuffled(2).betas.tolist()


def test_a_body_alone_keeps_its_coefficients() -> None:
    assert table(1).shuffled(0).betas.tolist() == table(1).betas.tolist()


# Batches.


def batches(count: int = 12, batch: int = 4, number: int = 7, seed: int = 1, **how) -> BodyBatches:
    return BodyBatches(count, batch=batch, batches=number, seed=seed, **how)


def drawn(sampler: BodyBatches, epoch: int = 0) -> list[list[tuple[int, int]]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("world_size", [2, 4])
def test_slices_of_the_processes_make_up_the_batches_of_one(world_size: int) -> None:
    ranks = [drawn(batches(rank=rank, world_size=world_size), 3) for rank in range(world_size)]
    for whole, *parts in zip(drawn(batches(), 3), *ranks, strict=True):
        assert [pair for part in parts for pair in part] == whole
        assert {len(part) for part in parts} == {4 // world_size}


def test_a_batch_depends_on_seed_and_epoch_alone() -> None:
    assert drawn(batches(), 2) == drawn(batches(), 2)
    assert drawn(batches(), 2) != drawn(batches(), 3)
    assert drawn(batches(seed=1), 2) != drawn(batches(seed=2), 2)
    # And not on how many follow it.
    assert drawn(batches(number=3), 2) == drawn(batches(number=7), 2)[:3]


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (12, 12), (13, 4), (5, 3)])
def test_no_picture_comes_again_before_all_that_fill_a_batch_have_come(count: int, batch: int) -> None:
    each = count // batch
    found = drawn(batches(count, batch, 4 * each + 1))
    rounds = [found[start : start + each] for start in range(0, len(found), each)]
    assert len(rounds) == 5
    for one in rounds[:-1]:
        rows = [row for pictures in one for row, _ in pictures]
        assert len(set(rows)) == len(rows) == each * batch
        assert set(rows) <= set(range(count))
    assert rounds[0] != rounds[1]


def test_every_picture_gets_its_turn() -> None:
    counts = Counter(row for pictures in drawn(batches(13, 4, 300)) for row, _ in pictures)
    # 1200 places for 13 pictures: 92 each.
    assert set(counts) == set(range(13))
    assert min(counts.values()) > 70


def test_length_is_the_number_asked_for() -> None:
    for number in (1, 3, 20):
        assert len(batches(number=number)) == len(drawn(batches(number=number))) == number


def test_augmentation_seeds_never_repeat() -> None:
    seeds = [seed for epoch in range(5) for pictures in drawn(batches(), epoch) for _, seed in pictures]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0


def test_lightning_reaches_the_epoch_through_a_loader() -> None:
    loader = DataLoader(range(100), batch_sampler=batches())
    _set_sampler_epoch(loader, 4)
    assert list(loader.batch_sampler) == drawn(batches(), 4) != drawn(batches(), 0)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"batch": 0}, r"bodies\.batch=0 cannot be divided among 1 process"),
        ({"batch": -4}, r"bodies\.batch=-4 cannot be divided"),
        ({"batch": 4, "world_size": 3}, r"bodies\.batch=4 cannot be divided among 3 process\(es\); give a"),
        (
            {"batch": 13},
            r"there are 12 pictures of textureless bodies, fewer than bodies\.batch=13; make more",
        ),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused_in_one_line(how, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        batches(**how)
    assert "\n" not in str(caught.value)


# Pictures.


def test_a_sample_has_the_picture_and_its_body_s_truth(root: Path) -> None:
    pictures = BodyPictures(read_bodies(root), view())
    assert len(pictures) == 4
    joined = collate_bodies([pictures[3, 5], pictures[0, 6]])
    assert joined.images.dtype == torch.uint8
    assert joined.images.shape == (2, 3, 32, 16)
    # Greys of the fifth and the first row of the truth.
    assert (joined.images[0] == 40).all()
    assert (joined.images[1] == 0).all()
    assert joined.betas.tolist() == [BETAS["3"], BETAS["7"]]
    assert joined.betas.dtype == torch.float32
    assert joined.body.tolist() == [2, 0]
    assert joined.body.dtype == torch.int64


def test_augmentation_is_a_function_of_picture_and_seed(root: Path) -> None:
    pictures = BodyPictures(read_bodies(root), view(erase_probability=1))
    assert np.array_equal(pictures[1, 8].image, pictures[1, 8].image)
    assert not np.array_equal(pictures[1, 8].image, pictures[1, 9].image)


# Both streams.


def module(ltcc_root: Path, root: Path, **changes) -> ReidDataModule:
    return ReidDataModule(
        [ltcc.read(ltcc_root)],
        **{
            "seed": 1,
            "people": 2,
            "pictures": 2,
            "sampler": "distinct",
            "workers": 0,
            "evaluation_batch": 8,
            "height": 32,
            "width": 16,
            "train_view": view(flip_probability=0.5, erase_probability=0.5),
            "test_view": TestView(32, 16),
            "bodies": BodyStream(read_bodies(root), 3, view(flip_probability=0.5, erase_probability=0.5)),
            **changes,
        },
    )


def test_views_that_pad_otherwise_than_the_loader_says_are_refused(ltcc_root: Path, root: Path) -> None:
    with pytest.raises(InputError, match=r"TrainView has square=False, datamodule\.square says True"):
        module(ltcc_root, root, square=True)


def both(data: ReidDataModule) -> list:
    return [pair for pair, _, _ in data.train_dataloader()]


def test_both_streams_come_side_by_side_and_are_equally_long(ltcc_root: Path, root: Path) -> None:
    data = module(ltcc_root, root)
    pairs = both(data)
    # 6 people with 8 pictures: 24 groups of 2, 2 of them in a batch.
    assert len(pairs) == len(data.sampler()) == len(data.body_sampler()) == 12
    expected = [[row for row, _ in rows] for rows in data.body_sampler()]
    for pair, rows in zip(pairs, expected, strict=True):
        assert set(pair) == {"people", "bodies"}
        assert pair["people"].images.shape == (4, 3, 32, 16)
        assert pair["people"].bodies is None
        assert pair["bodies"].body.tolist() == data.bodies.table.body[rows].tolist()


def test_the_people_s_stream_is_the_same_without_bodies(ltcc_root: Path, root: Path) -> None:
    data = module(ltcc_root, root)
    beside = [pair["people"] for pair in both(data)]
    alone = list(module(ltcc_root, root, bodies=None).train_dataloader())
    for one, other in zip(beside, alone, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.row, other.row)


def test_streams_are_joined_on_the_device_with_pictures_in_0_to_1(ltcc_root: Path, root: Path) -> None:
    data = module(ltcc_root, root)
    (pair, *_) = both(data)
    joined = data.on_after_batch_transfer(pair, 0)
    for images, raw in (
        (joined.images, pair["people"].images),
        (joined.bodies.images, pair["bodies"].images),
    ):
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, raw / 255)
    for name in ("person", "clothes", "camera", "row"):
        assert torch.equal(getattr(joined, name), getattr(pair["people"], name))
    assert torch.equal(joined.bodies.betas, pair["bodies"].betas)
    assert torch.equal(joined.bodies.body, pair["bodies"].body)


def test_a_batch_without_bodies_is_left_without(ltcc_root: Path, root: Path) -> None:
    data = module(ltcc_root, root, bodies=None)
    batch = next(iter(data.train_dataloader()))
    joined = data.on_after_batch_transfer(batch, 0)
    assert joined.bodies is None
    assert joined.images.dtype == torch.float32


def test_overfitting_repeats_the_bodies_too(ltcc_root: Path, root: Path) -> None:
    data = module(ltcc_root, root, overfit_batches=2)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        for stream in loader.flattened:
            _set_sampler_epoch(stream, epoch)
        epochs.append([pair for pair, _, _ in loader])
    first, second = epochs
    assert len(first) == len(second) == 2
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["people"].images, other["people"].images)
        assert torch.equal(one["bodies"].images, other["bodies"].images)


def test_pictures_kept_in_memory_make_the_same_batches(ltcc_root: Path, root: Path) -> None:
    kept = module(ltcc_root, root, keep_pictures=True).train_dataloader()
    plain = both(module(ltcc_root, root))
    # The second time too: what is kept is not what is erased.
    for _ in range(2):
        for (one, _, _), other in zip(kept, plain, strict=True):
            assert torch.equal(one["people"].images, other["people"].images)
            assert torch.equal(one["bodies"].images, other["bodies"].images)


def test_more_bodies_to_a_batch_than_there_are_is_said_before_the_training(
    ltcc_root: Path, root: Path
) -> None:
    data = module(ltcc_root, root, bodies=BodyStream(read_bodies(root), 5, view()))
    with pytest.raises(InputError, match=r"4 pictures of textureless bodies, fewer than bodies\.batch=5"):
        data.train_dataloader()


def test_a_broken_picture_of_a_body_is_told_what_helps(root: Path) -> None:
    table = read_bodies(root)
    table.files[0].write_bytes(b"broken")
    with pytest.raises(InputError, match=r"make the folder of bodies \(bodies\.root\) anew$") as caught:
        BodyPictures(table, view())[0, 1]
    assert "data.on_error" not in str(caught.value)
