"""Read what a small teacher is trained on: pictures of rendered people, and sentences that say their shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from clip3dreid.data.truth_file import TRUTH, has_truth, read_truth
from clip3dreid.errors import InputError
from clip3dreid.io.formats import damaged, decoding
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


class SentenceLesson:
    """What a small CLIP learns: K sentences a picture that say the person's shape, and the words themselves.

    Args:
        people: and their pictures.
        sentences: what is said.
        tokenizer: of `transformers`.
        sentences_per_picture: K, 1 or more.
    """

    def __init__(
        self, people: TeacherTrainingSet, sentences: Sentences, tokenizer: Any, sentences_per_picture: int
    ) -> None:
        self.people, self.sentences, self.tokenizer = people, sentences, tokenizer
        self.sentences_per_picture = sentences_per_picture
        places = {word: words.index(word) for words in sentences.vocabulary.groups.values() for word in words}
        self._places = torch.tensor([[places[word] for word in own.values()] for own in people.words])

    def say(self, row: int, rng: np.random.Generator) -> list[str]:
        """Return sentences about the person of a picture."""
        words = self.people.words[row]
        return [self.sentences.draw(words, rng) for _ in range(self.sentences_per_picture)]

    def join(
        self, rows: Sequence[int], images: Sequence[npt.NDArray[np.uint8]], said: Sequence[list[str]]
    ) -> ImageTextBatch:
        """Return a batch, its sentences turned into numbers."""
        encoded = self.tokenizer(
            [text for own in said for text in own], padding=True, truncation=True, return_tensors="pt"
        )
        shape = len(rows), self.sentences_per_picture, -1
        return ImageTextBatch(
            torch.from_numpy(np.stack(images)),
            encoded["input_ids"].view(shape),
            encoded["attention_mask"].view(shape),
            self._places[list(rows)],
        )
