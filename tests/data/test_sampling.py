"""Batches are checked for what they promise; the number of batches against a search over all assignments."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.data import _set_sampler_epoch
from torch.utils.data import DataLoader

from clip3dreid.data.sampling import (
    SAMPLERS,
    IdentityBatches,
    exchanged,
    exchanged_rows,
    most_batches,
    people_shares,
    share,
)
from clip3dreid.errors import InputError


def labels(counts, seed=0):
    """Person of each row, rows of a person scattered."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def batches(person, people=4, pictures=3, seed=1, **how):
    return IdentityBatches(np.asarray(person), people=people, pictures=pictures, seed=seed, **how)


def rows(batch):
    return [row for row, _ in batch]


COUNTS = [12, 9, 7, 3, 4, 6, 10, 3]
people_counts = st.lists(st.integers(1, 14), min_size=3, max_size=9)


@settings(max_examples=40, deadline=None)
@given(people_counts, st.integers(1, 3), st.integers(1, 4), st.sampled_from(SAMPLERS), st.integers(0, 5))
def test_every_batch_holds_p_groups_of_k_pictures_of_one_person(counts, people, pictures, kind, epoch):
    person = labels(counts)
    sampler = batches(person, people, pictures, sampler=kind)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    for batch in drawn:
        groups = person[rows(batch)].reshape(people, pictures)
        assert (groups == groups[:, :1]).all()
        if kind == "distinct":
            assert len(set(groups[:, 0])) == people


@settings(max_examples=40, deadline=None)
@given(people_counts, st.integers(1, 4), st.sampled_from(SAMPLERS))
def test_no_picture_is_shown_twice_in_an_epoch_but_of_people_with_fewer_than_k(counts, pictures, kind):
    person = labels(counts)
    shown = Counter(row for batch in batches(person, 2, pictures, sampler=kind) for row in rows(batch))
    for row, times in shown.items():
        assert times == 1 or counts[person[row]] < pictures


def plain_most_batches(chunks, people):
    """Tries every way of filling batches with different people, from the chunks that are left."""
    best, frontier = 0, {tuple(sorted(chunks))}
    while True:
        following = set()
        for left in frontier:
            having = [i for i, count in enumerate(left) if count]
            for chosen in itertools.combinations(having, people):
                following.add(tuple(sorted(c - (i in chosen) for i, c in enumerate(left))))
        if not following:
            return best
        best, frontier = best + 1, following


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=3, max_size=6), st.integers(1, 3))
def test_distinct_gives_as_many_batches_as_any_assignment_could(chunks, people):
    expected = plain_most_batches(chunks, people)
    assert most_batches(np.array(chunks), people) == expected
    assert len(list(batches(labels(chunks), people, 1))) == expected


def test_distinct_worked_by_hand():
    # Chunks of 3: 4, 3, 2, 1, 1, 2, 3, 1 = 17 for batches of 4 people: 4 batches use 16.
    sampler = batches(labels(COUNTS))
    assert len(sampler) == 4
    # One person has nearly everything: 9 chunks against 3 others with 1 each: one batch of 3 people.
    assert len(batches(labels([27, 3, 3, 3]), people=3)) == 1
    assert len(batches(labels([27, 3, 3, 3]), people=3, sampler="chunks")) == 4


def test_chunks_rule_may_repeat_a_person_and_distinct_never_does():
    person = labels([30, 30, 3, 3])
    repeats = {
        kind: any(len(set(person[rows(batch)])) < 2 for batch in batches(person, 2, 3, sampler=kind))
        for kind in SAMPLERS
    }
    assert repeats == {"distinct": False, "chunks": True}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_person_with_one_picture_gets_a_group_of_repeats(kind):
    sampler = batches([0, 1, 1, 1], people=2, pictures=3, sampler=kind)
    (batch,) = sampler
    assert sorted(Counter(rows(batch)).values()) == [1, 1, 1, 3]
    assert Counter(rows(batch))[0] == 3
    # Copies of one picture are augmented differently.
    assert len({seed for row, seed in batch if row == 0}) == 3


@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_picture_gets_its_turn_over_epochs(kind):
    sampler = batches(labels(COUNTS), sampler=kind)
    seen = set()
    for epoch in range(30):
        sampler.set_epoch(epoch)
        seen.update(row for batch in sampler for row in rows(batch))
    assert seen == set(range(sum(COUNTS)))


def test_each_person_is_equally_likely_at_each_place_of_a_batch():
    sampler = batches(labels([3] * 6), people=2, pictures=3)
    person, first = labels([3] * 6), Counter()
    for epoch in range(400):
        sampler.set_epoch(epoch)
        first.update(person[rows(batch)[0]] for batch in sampler)
    # 1200 draws over 6 people: 200 each, standard deviation 13.
    assert all(abs(count - 200) < 60 for count in first.values())


@pytest.mark.parametrize("kind", SAMPLERS)
def test_shares_of_the_ranks_make_up_the_batches_of_one_process(kind):
    person = labels(COUNTS)
    alone = batches(person, sampler=kind)
    ranks = [batches(person, sampler=kind, rank=rank, world_size=2) for rank in range(2)]
    for sampler in (alone, *ranks):
        sampler.set_epoch(3)
    assert {len(sampler) for sampler in ranks} == {len(alone)}
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert parts[0] + parts[1] == whole
        assert {len(part) for part in parts} == {6}
        assert not set(rows(parts[0])) & set(rows(parts[1]))


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize(("group", "sizes"), [(None, [3, 3, 6]), (6, [6, 6])])
def test_uneven_shares_make_up_the_batches_of_one_process_too(kind, group, sizes):
    person = labels(COUNTS)
    world = len(sizes)
    alone = batches(person, sampler=kind, people=4, pictures=3)
    ranks = [
        batches(person, sampler=kind, people=4, pictures=3, rank=rank, world_size=world, norm_group=group)
        for rank in range(world)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert [len(part) for part in parts] == sizes
        assert [pair for part in parts for pair in part] == whole


@pytest.mark.parametrize(
    ("people", "pictures", "processes", "group", "sizes"),
    [
        (8, 8, 2, 32, [4, 4]),
        # Equal shares, as ever, though groups of 32 would be others than in one process.
        (12, 8, 2, 32, [6, 6]),
        # Eight groups: two, three and three, each whole.
        (8, 8, 3, 8, [2, 3, 3]),
        (8, 8, 3, 16, [2, 2, 4]),
        # 3 pictures each and groups of 4: whole groups and whole people are 4 people.
        (16, 3, 3, 4, [4, 4, 8]),
        # Two groups cannot be had by three, nor whole ones of what is left over.
        (8, 8, 3, 32, [2, 3, 3]),
        (7, 8, 2, 16, [3, 4]),
        (8, 8, 3, None, [2, 3, 3]),
    ],
)
def test_shares_are_equal_or_of_whole_groups_or_differ_by_one(people, pictures, processes, group, sizes):
    parts = people_shares(people, pictures, processes, group)
    assert [len(part) for part in parts] == sizes
    assert [place for part in parts for place in part] == list(range(people))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_epochs_differ_and_a_seed_repeats_itself(kind):
    def drawn(seed, epoch):
        sampler = batches(labels(COUNTS), seed=seed, sampler=kind)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 2) != drawn(1, 3)
    assert drawn(1, 2) != drawn(2, 2)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_length_is_the_same_in_every_epoch(kind):
    sampler = batches(labels(COUNTS), sampler=kind)
    lengths = set()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        lengths.add(len(list(sampler)))
    assert lengths == {len(sampler)}


def test_augmentation_seeds_never_repeat():
    sampler = batches(labels([40] * 20))
    seeds = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        seeds += [seed for batch in sampler for _, seed in batch]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0


def test_labels_need_not_be_contiguous():
    person = np.array([7, 7, 500, 500, 3, 3])
    (batch,) = batches(person, people=3, pictures=2)
    assert sorted(rows(batch)) == list(range(6))


def test_lightning_reaches_the_epoch_through_a_loader():
    loader = DataLoader(range(100), batch_sampler=batches(labels(COUNTS)))
    _set_sampler_epoch(loader, 4)
    expected = batches(labels(COUNTS))
    expected.set_epoch(4)
    assert list(loader.batch_sampler) == list(expected)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"people": 9}, "8 people.* takes 9"),
        ({"people": 9, "sampler": "chunks"}, "8 people.* takes 9"),
        (
            {"people": 4, "world_size": 5},
            "people=4 cannot be shared out among 5 processes; raise it, or start",
        ),
        ({"people": 0}, r"datamodule\.people=0 must be a whole number, 1 or more"),
        ({"sampler": "random"}, "sampler=random is unknown; choose distinct or chunks"),
    ],
)
def test_bad_input_is_said_in_one_line(how, said):
    with pytest.raises(InputError, match=said) as caught:
        batches(labels(COUNTS), **how)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 50), st.integers(1, 8))
def test_evaluation_shares_cover_everything_once_and_evenly(count, world_size):
    parts = [share(count, rank, world_size) for rank in range(world_size)]
    assert [row for part in parts for row in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_training_that_goes_on_is_given_the_batches_that_are_left_and_then_whole_epochs(kind):
    person = labels(COUNTS)
    undisturbed = batches(person, sampler=kind)
    epochs = []
    for epoch in range(4):
        undisturbed.set_epoch(epoch)
        epochs.append(list(undisturbed))
    resumed = batches(person, sampler=kind)
    resumed.seek(2, 1)
    # Workers fetch from an iterator that is made before the epoch is told.
    early = list(resumed)
    resumed.set_epoch(2)
    assert early == list(resumed) == epochs[2][1:]
    assert len(resumed) == len(epochs[2])  # of a whole epoch, or the progress would be another
    resumed.set_epoch(3)
    assert list(resumed) == epochs[3]


def test_pictures_are_exchanged_between_people_and_nobody_keeps_any() -> None:
    person = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [1, 4, 2, 3, 7]))
    order = exchanged_rows(person, seed=3)
    theirs = exchanged(5, seed=3)
    assert (person[order] == theirs[person]).all()
    assert (person[order] != person).all()
    for other in range(5):
        # Each of the other's pictures is given as often as any, give or take one.
        counts = np.bincount(order[person[order] == other], minlength=len(person))[person == other]
        assert counts.max() - counts.min() <= 1
    assert exchanged_rows(person, seed=3).tolist() == order.tolist()
    assert exchanged_rows(person, seed=4).tolist() != order.tolist()
