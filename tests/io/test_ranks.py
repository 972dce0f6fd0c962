"""Processes share out work, and tell each other what came of it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch.distributed as dist

from clip3dreid.errors import InputError
from clip3dreid.io.ranks import ALONE, Ranks

T = TypeVar("T")


def together(size: int, folder: Path, work: Callable[[Ranks], T]) -> list[T]:
    """Do something as several processes would, here in threads; what came of it, by rank."""
    store = dist.HashStore()
    with ThreadPoolExecutor(size) as pool:
        ranks = (Ranks(rank, size, folder=folder, store=store) for rank in range(size))
        return list(pool.map(work, ranks))


def test_what_each_tells_comes_in_the_order_of_ranks_whoever_is_late(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> tuple[list[object], object, list[object]]:
        time.sleep(0.02 * (2 - ranks.rank))
        names = ranks.all_tell("names", f"\udc80 process {ranks.rank}")
        told = ranks.first_tells("facts", lambda: {"rank": ranks.rank, "rows": [[0, 3]]})
        ranks.wait("all")
        return names, told, ranks.all_tell("names", ranks.rank)

    for names, told, again in together(3, tmp_path, work):
        assert names == [f"\udc80 process {rank}" for rank in range(3)]
        assert told == {"rank": 0, "rows": [[0, 3]]}
        assert again == [0, 1, 2]


@pytest.mark.parametrize(("count", "size"), [(0, 1), (7, 3), (2, 3), (9, 1)])
def test_shares_are_everything_once(count: int, size: int) -> None:
    store = dist.HashStore()
    shares = [Ranks(rank, size, folder=Path(), store=store).mine(range(count)) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_does_all_and_asks_nobody() -> None:
    assert ALONE.first
    assert ALONE.mine("abc") == ["a", "b", "c"]
    assert ALONE.all_tell("this", object) == [object]
    assert ALONE.first_tells("that", lambda: {1, 2}) == {1, 2}
    with pytest.raises(ValueError, match="2 processes need a folder and a store"):
        Ranks(0, 2)


def test_a_first_process_that_is_gone_is_said_in_one_line(tmp_path: Path) -> None:
    class Gone:
        def set(self, key: str, value: str) -> None:
            raise dist.DistNetworkError("Broken pipe")

    with pytest.raises(InputError, match="the first process of this run is gone"):
        Ranks(1, 2, folder=tmp_path, store=Gone()).wait("anything")
