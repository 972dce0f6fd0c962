"""Load rendered pictures for what is trained on them from nothing: a small CLIP, a shape teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from clip3dreid.data.images import TrainView
from clip3dreid.data.resizing import fit
from clip3dreid.data.sampling import share
from clip3dreid.errors import InputError
from clip3dreid.io.pictures import read_rgb


class Lesson(Protocol):
    """What is said of pictures, and how it becomes a batch."""

    def say(self, row: int, rng: np.random.Generator) -> Any:
        """Return what is said of a picture this time; all chance comes from `rng`."""
        ...

    def join(self, rows: Sequence[int], images: Sequence[npt.NDArray[np.uint8]], said: Sequence[Any]) -> Any:
        """Return a batch of pictures (3, H, W) and of what is said of them."""
        ...


def recolour(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Make each colour channel brighter or darker, by factors of 0.7 to 1.3, and exchange them half of the time.

    Colours are the clothes', and no word says them.

    Args:
        image: (3, H, W).
        rng: where order and factors come from.

    Returns:
        (3, H, W).
    """
    gain = (0.7 + 0.6 * rng.random((3, 1, 1))).astype(np.float32)
    order = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
    recoloured: npt.NDArray[np.uint8] = np.clip(image[order] * gain, 0, 255).astype(np.uint8)
    return recoloured


class _Pictures(Dataset[tuple[int, npt.NDArray[np.uint8], Any]]):
    """Augmented pictures and what is said of them; what is drawn depends on seed, epoch and picture alone."""

    def __init__(self, data: PretrainingData, epoch: int) -> None:
        self.data, self.epoch = data, epoch

    def __len__(self) -> int:
        return len(self.data.files)

    def __getitem__(self, row: int) -> tuple[int, npt.NDArray[np.uint8], Any]:
        data = self.data
        rng = np.random.default_rng([data.seed, 1, self.epoch, row])
        rgb = data.pixels[row] if data.pixels is not None else data.read(row)
        image, _ = data.train_view(rgb, int(rng.integers(2**31)))
        return row, recolour(image, rng), data.lesson.say(row, rng)


class _RemainingBatches(Sampler[list[int]]):
    """The batches of an epoch that a resumed training has left to do; as many as the whole epoch to who asks."""

    def __init__(self, batches: list[list[int]], done: int) -> None:
        self._batches, self._done = batches, done

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches[self._done :])

    def __len__(self) -> int:
        return len(self._batches)


class PretrainingData(LightningDataModule):
    """Load batches of rendered pictures.

    Args:
        files: N pictures.
        lesson: what is said of them.
        train_view: augmentation; its size is that of the pictures.
        batch: pictures in the global batch; N processes take 1/N of it each.
        workers: loader processes.
        in_memory: decode every picture once and keep it resized, 3 H W bytes each.
        seed: of order, augmentation and what is said.

    Raises:
        InputError: if there are fewer pictures than a batch.
    """

    def __init__(
        self,
        files: Sequence[Path],
        lesson: Lesson,
        *,
        train_view: TrainView,
        batch: int,
        workers: int,
        in_memory: bool,
        seed: int,
    ) -> None:
        super().__init__()
        if len(files) < batch or batch < 2:
            raise InputError(
                f"batch={batch} does not fit {len(files)} pictures; a batch has two or more, and no more than there "
                "are"
            )
        self.files, self.lesson = list(files), lesson
        self.train_view, self.batch = train_view, batch
        self.workers, self.in_memory, self.seed = workers, in_memory, seed
        self.pixels: npt.NDArray[np.uint8] | None = None

    def read(self, row: int) -> npt.NDArray[np.uint8]:
        """Return a picture (H, W, 3) as the view wants it."""
        view = self.train_view
        return fit(read_rgb(self.files[row]), view.height, view.width, view.square)

    def setup(self, stage: str, progress: Callable[[int], None] | None = None) -> None:
        """Decode the pictures, if they are to be kept."""
        if not self.in_memory or self.pixels is not None:
            return
        pixels = np.empty((len(self.files), self.train_view.height, self.train_view.width, 3), np.uint8)
        for row in range(len(pixels)):
            pixels[row] = self.read(row)
            if progress is not None:
                progress(row + 1)
        self.pixels = pixels

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of one epoch; asked for anew at every epoch."""
        assert self.trainer is not None
        epoch, rank, processes = (
            self.trainer.current_epoch,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(len(self.files))
        # A last, smaller batch would have fewer negatives.
        order = order[: len(order) // self.batch * self.batch].reshape(-1, self.batch)
        mine = [batch[list(share(self.batch, rank, processes))].tolist() for batch in order]
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        left = _RemainingBatches(mine, done if progress.processed < progress.started else 0)
        return DataLoader(
            _Pictures(self, epoch),
            batch_sampler=left,
            num_workers=self.workers,
            collate_fn=self.collate,
        )

    def collate(self, samples: Sequence[tuple[int, npt.NDArray[np.uint8], Any]]) -> Any:
        """Join samples to a batch, as the lesson has it."""
        rows, images, said = zip(*samples, strict=True)
        return self.lesson.join(rows, images, said)
