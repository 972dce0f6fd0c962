"""Read what a small teacher is trained on: pictures of rendered people, and sentences that say their shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from clip3dreid.data.images import TrainView, fit
from clip3dreid.data.sampling import share
from clip3dreid.data.truth_file import TRUTH, has_truth, read_truth
from clip3dreid.errors import InputError
from clip3dreid.io.formats import damaged, decoding
from clip3dreid.io.pictures import read_rgb
from clip3dreid.language.sentences import Sentences

SENTENCES_FOR_TOKENIZER = 20_000


class ImageTextBatch(NamedTuple):
    """Pictures and what is said of them, as a batch."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    ids: Tensor
    """(B, K, T) int64 token numbers."""
    mask: Tensor
    """(B, K, T) int64: 1 for tokens, 0 for padding."""
    words: Tensor
    """(B, G) int64: place of the person's word in each group."""


class TeacherTrainingSet(NamedTuple):
    """The training people of rendered worlds."""

    files: list[Path]
    """N pictures."""
    words: list[dict[str, str]]
    """N: group -> the word that fits the person."""


def read_training_set(
    worlds: Sequence[Path], groups: Sequence[str], split: str = "train"
) -> TeacherTrainingSet:
    """Read the pictures of worlds that `synthesize` wrote, with their people's words.

    Args:
        worlds: folders.
        groups: of the vocabulary.
        split: `train` or `test`.

    Raises:
        InputError: if a folder is no such world, tells no word of a group, or has no picture in the split.
    """
    files: list[Path] = []
    words: list[dict[str, str]] = []
    again = "write a world there with clip3dreid synthesize"
    for world in worlds:
        if not has_truth(world):
            raise InputError(f"{world} has no {TRUTH}; {again}")
        table = read_truth(world, needs=("path", "split", "bad_box"), advice=again)
        if missing := [group for group in groups if f"word_{group}" not in table.columns]:
            raise InputError(
                f"{world / TRUTH} tells no word of {', '.join(missing)}; write it with this vocabulary"
            )
        with decoding(world / TRUTH, "the truth about a world", again):
            table = table.select(
                pl.col("path", "split", *(f"word_{group}" for group in groups)).cast(pl.String), "bad_box"
            ).filter((pl.col("split") == split) & ~pl.col("bad_box"))
        if any(column.null_count() for column in table):
            raise damaged(world / TRUTH, "a picture has no name, or a person no word", again)
        files += [world / path for path in table["path"]]
        columns = {group: table[f"word_{group}"].to_list() for group in groups}
        words += [{group: column[row] for group, column in columns.items()} for row in range(len(table))]
    if not files:
        raise InputError(f"{', '.join(map(str, worlds))}: no {split} pictures; write a world with some")
    return TeacherTrainingSet(files, words)


def tokenizer_texts(words: Sequence[dict[str, str]], sentences: Sentences, seed: int) -> Iterator[str]:
    """Yield sentences to learn a tokenizer from; the same ones for the same seed."""
    rng = np.random.default_rng([seed, 0])
    for _ in range(SENTENCES_FOR_TOKENIZER):
        yield sentences.draw(words[int(rng.integers(len(words)))], rng)


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


class _SentencedPictures(Dataset[tuple[int, npt.NDArray[np.uint8], list[str]]]):
    """Augmented pictures with K sentences each; what is drawn depends on seed, epoch and picture alone."""

    def __init__(self, data: TeacherPretrainingData, epoch: int) -> None:
        self.data, self.epoch = data, epoch

    def __len__(self) -> int:
        return len(self.data.people.files)

    def __getitem__(self, row: int) -> tuple[int, npt.NDArray[np.uint8], list[str]]:
        data = self.data
        rng = np.random.default_rng([data.seed, 1, self.epoch, row])
        view = data.train_view
        rgb = data.pixels[row] if data.pixels is not None else data.read(row)
        image, _ = view(rgb, int(rng.integers(2**31)))
        words = data.people.words[row]
        return (
            row,
            recolour(image, rng),
            [data.sentences.draw(words, rng) for _ in range(data.sentences_per_picture)],
        )


class _RemainingBatches(Sampler[list[int]]):
    """The batches of an epoch that a resumed training has left to do; as many as the whole epoch to who asks."""

    def __init__(self, batches: list[list[int]], done: int) -> None:
        self._batches, self._done = batches, done

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches[self._done :])

    def __len__(self) -> int:
        return len(self._batches)


class TeacherPretrainingData(LightningDataModule):
    """Load batches of pictures with sentences.

    Args:
        people: and their pictures.
        sentences: what is said.
        tokenizer: of `transformers`.
        train_view: augmentation; its size is that of the pictures.
        batch: pictures in the global batch; N processes take 1/N of it each.
        sentences_per_picture: K.
        workers: loader processes.
        in_memory: decode every picture once and keep it resized, 3 H W bytes each.
        seed: of order, augmentation and sentences.

    Raises:
        InputError: if there are fewer pictures than a batch.
    """

    def __init__(
        self,
        people: TeacherTrainingSet,
        sentences: Sentences,
        tokenizer: Any,
        *,
        train_view: TrainView,
        batch: int,
        sentences_per_picture: int,
        workers: int,
        in_memory: bool,
        seed: int,
    ) -> None:
        super().__init__()
        if len(people.files) < batch or batch < 2 or sentences_per_picture < 1:
            raise InputError(
                f"batch={batch} with {sentences_per_picture} sentences a picture does not fit {len(people.files)} "
                "pictures; a batch has two or more, and no more than there are"
            )
        self.people, self.sentences, self.tokenizer = people, sentences, tokenizer
        self.train_view, self.batch, self.sentences_per_picture = train_view, batch, sentences_per_picture
        self.workers, self.in_memory, self.seed = workers, in_memory, seed
        self.pixels: npt.NDArray[np.uint8] | None = None
        places = {word: words.index(word) for words in sentences.vocabulary.groups.values() for word in words}
        self._places = torch.tensor([[places[word] for word in own.values()] for own in people.words])

    def read(self, row: int) -> npt.NDArray[np.uint8]:
        """Return a picture (H, W, 3) as the view wants it."""
        view = self.train_view
        return fit(read_rgb(self.people.files[row]), view.height, view.width, view.square)

    def setup(self, stage: str, progress: Callable[[int], None] | None = None) -> None:
        """Decode the pictures, if they are to be kept."""
        if not self.in_memory or self.pixels is not None:
            return
        pixels = np.empty(
            (len(self.people.files), self.train_view.height, self.train_view.width, 3), np.uint8
        )
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
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(len(self.people.files))
        # A last, smaller batch would have fewer negatives.
        order = order[: len(order) // self.batch * self.batch].reshape(-1, self.batch)
        mine = [batch[list(share(self.batch, rank, processes))].tolist() for batch in order]
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        left = _RemainingBatches(mine, done if progress.processed < progress.started else 0)
        return DataLoader(
            _SentencedPictures(self, epoch),
            batch_sampler=left,
            num_workers=self.workers,
            collate_fn=self.collate,
        )

    def collate(self, samples: Sequence[tuple[int, npt.NDArray[np.uint8], list[str]]]) -> ImageTextBatch:
        """Join samples, and turn their sentences into numbers."""
        rows, images, texts = zip(*samples, strict=True)
        encoded = self.tokenizer(
            [text for own in texts for text in own], padding=True, truncation=True, return_tensors="pt"
        )
        shape = len(samples), self.sentences_per_picture, -1
        return ImageTextBatch(
            torch.from_numpy(np.stack(images)),
            encoded["input_ids"].view(shape),
            encoded["attention_mask"].view(shape),
            self._places[list(rows)],
        )
