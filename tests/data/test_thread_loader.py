import threading
import time

import pytest
import torch
from torch.utils.data import Dataset, Subset

from clip3dreid.data.thread_loader import ThreadLoader


class Squares(Dataset[torch.Tensor]):
    """Batches of squares; the first ones take the longest."""

    def __init__(self, wrong: int | None = None) -> None:
        self.wrong, self.made = wrong, 0

    def __len__(self) -> int:
        return 20

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        self.made += 1
        if self.wrong in indices:
            raise ValueError("not this one")
        time.sleep(0.002 * (20 - indices[0]) / 20)
        return torch.tensor([index**2 for index in indices])


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_in_their_order_each_time(threads: int) -> None:
    loader = ThreadLoader(Squares(), threads=threads, pinned=False, batch_size=3)
    for _ in range(2):
        assert torch.cat(list(loader)).tolist() == [index**2 for index in range(20)]
    assert len(loader) == 7


def test_a_share_of_a_set_is_loaded_as_a_set() -> None:
    loader = ThreadLoader(Subset(Squares(), range(5, 9)), threads=2, pinned=False, batch_size=3)
    assert torch.cat(list(loader)).tolist() == [25, 36, 49, 64]


def test_an_error_comes_through_where_its_batch_would() -> None:
    loader = ThreadLoader(Squares(wrong=7), threads=2, pinned=False, batch_size=3)
    batches = iter(loader)
    assert [next(batches).tolist() for _ in range(2)] == [[0, 1, 4], [9, 16, 25]]
    with pytest.raises(ValueError, match="not this one"):
        next(batches)


def test_who_stops_early_leaves_no_thread_and_little_done_for_nothing() -> None:
    pictures = Squares()
    before = threading.active_count()
    batches = iter(ThreadLoader(pictures, threads=2, pinned=False, batch_size=1))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert pictures.made <= 4
