"""Which pictures make a batch: P people with K pictures each, the same whatever the number of processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from math import lcm
from typing import Self

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, choose

Ints = npt.NDArray[np.int64]

SAMPLERS = ("distinct", "chunks")


class ResumableBatches(Sampler[list[tuple[int, int]]], ABC):
    """Batches of `(row, seed of the augmentation)` that follow from an epoch and a place in it alone.

    A loader's workers fetch the first batches when its iterator is made, so a resumed training has to `seek` before
    that; the epochs after it are told by `set_epoch`, as Lightning does.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._first = 0

    @property
    def sampler(self) -> Self:
        """Itself: Lightning tells the epoch to `dataloader.batch_sampler.sampler`."""
        return self

    def seek(self, epoch: int, batch: int) -> None:
        """Begin in the middle: the next iteration yields the batches of an epoch from a place on.

        Args:
            epoch: 0-based.
            batch: how many of its batches are left out because they have been trained on.
        """
        self.epoch, self._first = epoch, batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the batches of the next iteration: all of another epoch's, or those left of the one sought."""
        if epoch != self.epoch:
            self.seek(epoch, 0)

    @abstractmethod
    def __len__(self) -> int:
        """Return how many batches a whole epoch has, the same in every epoch and process."""

    @abstractmethod
    def plan(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this process's slice of each global batch of the epoch, from its first batch on."""

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches that are left of the epoch."""
        return islice(self.plan(), self._first, None)


class IdentityBatches(ResumableBatches):
    """Batches of P people with K pictures each, for a loader's `batch_sampler`.

    Each epoch every person's pictures are shuffled and cut into chunks of K; the n mod K that are left over
    wait for another epoch, and someone with fewer than K pictures gets one chunk drawn with replacement. Then

    - `distinct`: no person stands twice in a batch. Person i, with c_i chunks, can fill a place in at most
      c_i batches, so the most batches there can be is the largest T with sum_i min(c_i, T) >= P T. Surplus
      chunks are left out at random.
    - `chunks`: the base recipe's rule (Gu et al., CVPR 2022, released code): all chunks are shuffled and
      taken P at a time, so a batch may hold a person twice; only the last, incomplete batch is left out.

    An epoch shows T P K of the N pictures. Where everybody has at least K pictures and nobody holds more than
    1/P of the chunks, both rules show the same share: on average all but (K - 1) / 2 pictures a person.

    A global batch depends on `seed`, the epoch and the labels alone; processes take contiguous slices of it
    (`people_shares`), so they train on the very batches that one process would.

    Args:
        person: (N,) int64, person of each row.
        people: P, people per global batch.
        pictures: K, pictures per person and batch.
        seed: of order and augmentation.
        sampler: `distinct` or `chunks`.
        rank: this process, 0..world_size-1.
        world_size: number of processes.
        norm_group: see `people_shares`.

    Raises:
        InputError: if the sampler is unknown, P or K is not positive, there are more processes than P, or fewer
            people than P.
    """

    def __init__(
        self,
        person: npt.NDArray[np.int64],
        *,
        people: int,
        pictures: int,
        seed: int,
        sampler: str = "distinct",
        rank: int = 0,
        world_size: int = 1,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        choose("datamodule.sampler", sampler, SAMPLERS)
        for key, value in {"people": people, "pictures": pictures}.items():
            check_number(f"datamodule.{key}", value, Range(1), whole=True)
        mine = people_shares(people, pictures, world_size, norm_group)[rank]
        self._mine = slice(mine.start * pictures, mine.stop * pictures)
        self.people = people
        self.pictures = pictures
        self.seed = seed
        self._distinct = sampler == "distinct"
        self._person = np.unique(person, return_inverse=True)[1]
        self._count = np.bincount(self._person)
        self._chunks = np.maximum(self._count // pictures, 1)
        if len(self._count) < people:
            raise InputError(
                f"the training pictures show {len(self._count)} people, but a batch takes {people}; "
                "lower datamodule.people or give more data"
            )
        most = most_batches(self._chunks, people)
        self._batches = most if self._distinct else int(self._chunks.sum()) // people

    def __len__(self) -> int:
        """Return how many batches an epoch has, the same in every epoch and process."""
        return self._batches

    def plan(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this process's slice of each global batch as `(row, seed of the augmentation)` pairs."""
        rows = self._rows()
        # Drawn apart from the plan, so that a draw's seed follows from seed, epoch and position alone.
        seeds = np.random.default_rng([self.seed, self.epoch, 1]).integers(2**63, size=rows.shape)
        for batch, seed in zip(rows[:, self._mine], seeds[:, self._mine], strict=True):
            yield list(zip(batch.tolist(), seed.tolist(), strict=True))

    def _rows(self) -> Ints:
        """Return the rows of all global batches of the epoch, (T, P K), each person's K pictures side by side."""
        rng = np.random.default_rng([self.seed, self.epoch, 0])
        chunks, owner = self._cut(rng)
        if not self._distinct:
            order = rng.permutation(len(chunks))[: len(self) * self.people]
            return chunks[order].reshape(len(self), -1)
        # Nobody fills more places than there are batches; a person's chunks are in random order already.
        kept = np.flatnonzero(_within(self._chunks) < len(self))
        kept = rng.permutation(kept)[: len(self) * self.people]
        # People in random order, each one's chunks together: as nobody has more than T of them, dealing them
        # out to the T batches in turn never gives one batch two of a person.
        turn = rng.permutation(len(self._count))[owner[kept]]
        dealt = kept[np.argsort(turn, kind="stable")].reshape(self.people, len(self)).T
        rows: Ints = chunks[rng.permutation(dealt)].reshape(len(self), -1)
        return rows

    def _cut(self, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return the rows of every chunk, (C, K), and whose it is, (C,), sorted by person."""
        shuffled = rng.permutation(len(self._person))
        shuffled = shuffled[np.argsort(self._person[shuffled], kind="stable")]
        first = np.cumsum(self._count) - self._count
        owner = np.repeat(np.arange(len(self._count)), self._chunks)
        place = _within(self._chunks)[:, None] * self.pictures + np.arange(self.pictures)
        few = self._count[owner] < self.pictures
        place[few] = rng.integers(self._count[owner[few], None], size=(few.sum(), self.pictures))
        return shuffled[first[owner, None] + place], owner


def _within(counts: Ints) -> Ints:
    """Return 0..c-1 for each count c, joined."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def most_batches(chunks: Ints, people: int) -> int:
    """Return the largest number of batches of `people` different people each.

    Args:
        chunks: (people in the data,) chunks of each person.
        people: P, at most the number of people in the data.

    Returns:
        The largest T with sum_i min(c_i, T) >= P T: necessary, as a person fills at most one place a batch,
        and sufficient, as the way `IdentityBatches` deals the chunks out shows.
    """
    feasible, above = 0, int(chunks.sum()) // people + 1
    while above - feasible > 1:
        # The sum is concave in T and 0 at T = 0, so every T below a feasible one is feasible.
        middle = (feasible + above) // 2
        if np.minimum(chunks, middle).sum() >= people * middle:
            feasible = middle
        else:
            above = middle
    return feasible


def people_shares(
    people: int, pictures: int, processes: int, norm_group: int | None = None
) -> tuple[range, ...]:
    """Return which places among the P people of a global batch each process takes.

    Equal numbers where P can be divided among the processes. Else whole groups of batch norm, if there are enough of
    them: each group then holds the pictures that it would in one process, at the price of a process that may have a
    group more than another. Else numbers that differ by one, of which batch norm sees other groups.

    Args:
        people: P.
        pictures: K, of each.
        processes: how many there are.
        norm_group: pictures that a batch norm sees at a time (`model.normalisation.use_ghost`); None: all.

    Raises:
        InputError: if there are more processes than people.
    """
    if processes > people:
        raise InputError(
            f"datamodule.people={people} cannot be shared out among {processes} processes; raise it, or start fewer"
        )
    together = 1
    if people % processes and norm_group is not None:
        together = lcm(norm_group, pictures) // pictures
        if people % together or people // together < processes:
            together = 1
    parts = (share(people // together, rank, processes) for rank in range(processes))
    return tuple(range(together * part.start, together * part.stop) for part in parts)


def share(count: int, rank: int, world_size: int) -> range:
    """Return the contiguous part of 0..count-1 that one of `world_size` processes evaluates.

    Parts differ by at most one in length and cover everything once.
    """
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def exchanged(count: int, seed: int) -> Ints:
    """Return whose things each of `count` gets where all are dealt out at random and nobody keeps their own.

    One alone has nobody to exchange with.
    """
    order = np.random.default_rng(seed).permutation(count)
    given = np.empty_like(order)
    given[order] = np.roll(order, 1)
    return given


def exchanged_rows(person: Ints, seed: int) -> Ints:
    """Return whose picture each of N pictures gets where people are dealt out as by `exchanged`.

    All pictures of a person get those of one and the same other person, each about as often as any other.

    Args:
        person: (N,) 0..people-1, each at least once.
        seed: of the deal.
    """
    theirs = exchanged(int(person.max()) + 1, seed)
    rng = np.random.default_rng([seed, 1])
    given = np.empty(len(person), np.int64)
    for own, other in enumerate(theirs):
        mine = np.flatnonzero(person == own)
        given[mine] = rng.permutation(np.resize(np.flatnonzero(person == other), len(mine)))
    return given
