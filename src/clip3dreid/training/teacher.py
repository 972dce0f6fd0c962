"""Training a small teacher from nothing: pictures of rendered people, and sentences that say their shape."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from clip3dreid.data.images import TrainView, fit, to_unit
from clip3dreid.data.sampling import share
from clip3dreid.errors import InputError
from clip3dreid.io.formats import damaged, decoding, read_table
from clip3dreid.io.pictures import read_rgb
from clip3dreid.language.sentences import Sentences
from clip3dreid.loss.image_text import image_text_contrastive

log = logging.getLogger(__name__)

TRUTH = "truth.parquet"
SENTENCES_FOR_TOKENIZER = 20_000
MOST_SCALE = 100.0
"""Of the factor on cosines, as in CLIP: more makes training unstable."""


class Pairs(NamedTuple):
    """Pictures and what is said of them."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    ids: Tensor
    """(B, K, T) int64 token numbers."""
    mask: Tensor
    """(B, K, T) int64: 1 for tokens, 0 for padding."""
    words: Tensor
    """(B, G) int64: place of the person's word in each group."""


class Crowd(NamedTuple):
    """The training people of rendered worlds."""

    files: list[Path]
    """N pictures."""
    words: list[dict[str, str]]
    """N: group -> the word that fits the person."""


def read_crowd(worlds: Sequence[Path], groups: Sequence[str], split: str = "train") -> Crowd:
    """Pictures of worlds that `synthesize` wrote, with their people's words.

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
        if not (world / TRUTH).is_file():
            raise InputError(f"{world} has no {TRUTH}; {again}")
        table, _ = read_table(
            world / TRUTH, "the truth about a world", again, needs=("path", "split", "bad_box")
        )
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
    return Crowd(files, words)


def tokenizer_texts(words: Sequence[dict[str, str]], sentences: Sentences, seed: int) -> Iterator[str]:
    """Sentences to learn a tokenizer from; the same ones for the same seed."""
    rng = np.random.default_rng([seed, 0])
    for _ in range(SENTENCES_FOR_TOKENIZER):
        yield sentences.draw(words[int(rng.integers(len(words)))], rng)


def recolour(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Makes each colour channel brighter or darker, by factors of 0.7 to 1.3, and exchanges them half of the time.

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


class _Pictures(Dataset[tuple[int, npt.NDArray[np.uint8], list[str]]]):
    """Augmented pictures with K sentences each; what is drawn depends on seed, epoch and picture alone."""

    def __init__(self, data: TeachingData, epoch: int) -> None:
        self.data, self.epoch = data, epoch

    def __len__(self) -> int:
        return len(self.data.crowd.files)

    def __getitem__(self, row: int) -> tuple[int, npt.NDArray[np.uint8], list[str]]:
        data = self.data
        rng = np.random.default_rng([data.seed, 1, self.epoch, row])
        view = data.train_view
        rgb = data.pixels[row] if data.pixels is not None else data.read(row)
        image, _ = view(rgb, int(rng.integers(2**31)))
        words = data.crowd.words[row]
        return (
            row,
            recolour(image, rng),
            [data.sentences.draw(words, rng) for _ in range(data.sentences_per_picture)],
        )


class _Left(Sampler[list[int]]):
    """The batches of an epoch that a resumed training has left to do; as many as the whole epoch to who asks."""

    def __init__(self, batches: list[list[int]], done: int) -> None:
        self._batches, self._done = batches, done

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches[self._done :])

    def __len__(self) -> int:
        return len(self._batches)


class TeachingData(LightningDataModule):
    """Batches of pictures with sentences.

    Args:
        crowd: the people.
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
        crowd: Crowd,
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
        if len(crowd.files) < batch or batch < 2 or sentences_per_picture < 1:
            raise InputError(
                f"batch={batch} with {sentences_per_picture} sentences a picture does not fit {len(crowd.files)} "
                "pictures; a batch has two or more, and no more than there are"
            )
        self.crowd, self.sentences, self.tokenizer = crowd, sentences, tokenizer
        self.train_view, self.batch, self.sentences_per_picture = train_view, batch, sentences_per_picture
        self.workers, self.in_memory, self.seed = workers, in_memory, seed
        self.pixels: npt.NDArray[np.uint8] | None = None
        places = {word: words.index(word) for words in sentences.vocabulary.groups.values() for word in words}
        self._places = torch.tensor([[places[word] for word in own.values()] for own in crowd.words])

    def read(self, row: int) -> npt.NDArray[np.uint8]:
        """A picture (H, W, 3) as the view wants it."""
        view = self.train_view
        return fit(read_rgb(self.crowd.files[row]), view.height, view.width, view.square)

    def setup(self, stage: str, progress: Callable[[int], None] | None = None) -> None:
        """Decodes the pictures, if they are to be kept."""
        if not self.in_memory or self.pixels is not None:
            return
        pixels = np.empty((len(self.crowd.files), self.train_view.height, self.train_view.width, 3), np.uint8)
        for row in range(len(pixels)):
            pixels[row] = self.read(row)
            if progress is not None:
                progress(row + 1)
        self.pixels = pixels

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of one epoch; asked for anew at every epoch."""
        assert self.trainer is not None
        epoch, rank, processes = (
            self.trainer.current_epoch,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(len(self.crowd.files))
        # A last, smaller batch would have fewer negatives.
        order = order[: len(order) // self.batch * self.batch].reshape(-1, self.batch)
        mine = [batch[list(share(self.batch, rank, processes))].tolist() for batch in order]
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        left = _Left(mine, done if progress.processed < progress.started else 0)
        return DataLoader(
            _Pictures(self, epoch), batch_sampler=left, num_workers=self.workers, collate_fn=self.collate
        )

    def collate(self, samples: Sequence[tuple[int, npt.NDArray[np.uint8], list[str]]]) -> Pairs:
        """Joins samples, and turns their sentences into numbers."""
        rows, images, texts = zip(*samples, strict=True)
        encoded = self.tokenizer(
            [text for own in texts for text in own], padding=True, truncation=True, return_tensors="pt"
        )
        shape = len(samples), self.sentences_per_picture, -1
        return Pairs(
            torch.from_numpy(np.stack(images)),
            encoded["input_ids"].view(shape),
            encoded["attention_mask"].view(shape),
            self._places[list(rows)],
        )


class TeachingModule(LightningModule):
    """A `transformers.CLIPModel` in training: it first learns to see, then to read.

    From nothing, the contrastive loss of both towers stays where nothing is told apart (the logarithm of the batch)
    for longer than a laptop's patience. So for the first epochs the image tower alone learns to name each group's
    word, through a linear classifier that is thrown away afterwards; then the contrastive loss teaches both towers,
    with the naming beside it.

    Args:
        model: with random weights.
        groups: number of words in each group.
        mean: of R, G and B, that pictures in 0..1 are normalised with.
        std: likewise.
        naming_epochs: epochs before the contrastive loss.
        naming_weight: of the naming beside it.
        optimizer: makes an optimiser from parameter groups.
        schedule: multiplier of the learning rate for a 0-based epoch.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        groups: Sequence[int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        naming_epochs: int,
        naming_weight: float,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        schedule: Callable[[int], float],
    ) -> None:
        super().__init__()
        self.model = model
        self.groups = list(groups)
        self.naming = nn.Linear(model.config.projection_dim, sum(groups))
        self.naming_epochs, self.naming_weight = naming_epochs, naming_weight
        self.optimizer, self.schedule = optimizer, schedule
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1), persistent=False)

    def training_step(self, batch: Pairs, batch_idx: int) -> Tensor:
        """The loss of a batch; its parts are logged.

        Raises:
            FloatingPointError: if the loss is NaN or infinite.
        """
        pixels = (to_unit(batch.images) - self.mean) / self.std
        images = self.model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output.float()
        parts = self.naming(images).split(self.groups, 1)
        naming = torch.stack(
            [F.cross_entropy(part, batch.words[:, group]) for group, part in enumerate(parts)]
        ).mean()
        terms = {"loss/naming": naming}
        loss = naming
        if self.current_epoch >= self.naming_epochs:
            contrastive = self._contrastive(images, batch)
            terms |= {"loss/contrastive": contrastive, "train/scale": self.model.logit_scale.detach().exp()}
            loss = contrastive + self.naming_weight * naming
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at epoch {self.current_epoch}, batch {batch_idx}"
            )
        self.log_dict(terms, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def _contrastive(self, images: Tensor, batch: Pairs) -> Tensor:
        ids, mask = batch.ids.flatten(0, 1), batch.mask.flatten(0, 1)
        texts = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output.float()
        texts = F.normalize(texts, dim=-1).view(*batch.ids.shape[:2], -1)
        return image_text_contrastive(F.normalize(images, dim=-1), texts, self.model.logit_scale.exp())

    def on_train_batch_end(self, outputs: Any, batch: Pairs, batch_idx: int) -> None:
        """Keeps the factor on cosines within bounds."""
        self.model.logit_scale.data.clamp_(0, math.log(MOST_SCALE))

    def configure_optimizers(self) -> Any:
        """The optimiser, without weight decay on biases, norms and the scale; the schedule is stepped by epoch."""
        decayed = [p for p in self.parameters() if p.ndim >= 2]
        rest = [p for p in self.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
        built = self.optimizer(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(built, self.schedule)
        return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
