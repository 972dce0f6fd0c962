"""Load batches by threads of the training process, where loading is little more than copying."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import DataLoader


class ThreadLoader(DataLoader[Any]):
    """A loader whose batches are made ahead by threads, each a whole one, and come in their order.

    Copying lets go of Python's lock. A worker process would copy to memory that is new for every batch and shared
    with this one, which takes three times as long as the copying itself; here pinned memory is used again and again.

    Args:
        dataset: makes a batch of a list of indices (`__getitems__`), which has a `pin_memory()`.
        threads: 1 or more; as many batches are made ahead, and one more.
        pinned: whether the batches are bound for a CUDA device.
        how: of torch's loader: `batch_sampler`, or `batch_size`.
    """

    def __init__(self, dataset: Any, *, threads: int, pinned: bool, **how: Any) -> None:
        super().__init__(dataset, **how)
        self._threads, self._pinned = threads, pinned

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its own class
        """Yield the batches that the sampler asks for."""
        pool = ThreadPoolExecutor(self._threads, "loader")
        try:
            waiting: deque[Future[Any]] = deque()
            assert self.batch_sampler is not None
            for indices in self.batch_sampler:
                waiting.append(pool.submit(self._make, indices))
                if len(waiting) > self._threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, indices: Any) -> Any:
        batch = self.dataset.__getitems__(indices)  # type: ignore[attr-defined]
        return batch.pin_memory() if self._pinned else batch
