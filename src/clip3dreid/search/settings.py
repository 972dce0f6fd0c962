"""Say what is extracted, and what is searched for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clip3dreid.errors import InputError
from clip3dreid.inference.parts import Feature, as_feature
from clip3dreid.io.checks import Count, Positive, check

Form = Literal["parquet", "safetensors"]
DType = Literal["float32", "float16"]


@dataclass(frozen=True)
class ShardSettings:
    """How shards are stored.

    Args:
        format: one Parquet file a shard, or `safetensors`: vectors in one file, labels in a Parquet file beside it.
        dtype: of the vectors; `float16` takes half the bytes.
        rows_per_shard: of a new folder; one that is there keeps its own. The boxes of a frame stay in one shard.

    Raises:
        InputError: if a value is none of these.
    """

    format: Form = "parquet"
    dtype: DType = "float32"
    rows_per_shard: Positive = 4096

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ExtractSettings(ShardSettings):
    """What is extracted, and how.

    Args:
        outputs: some of `embedding`, `joint`, `words` and `betas`, or `all` that the model has learnt.
        split: of a data set: which part of it; None: all of it.
        flip: look at the mirror image too, as evaluation does; None: as the model says.
        tracklets: a row of shards is a tracklet and not a picture; None: where the model was trained on clips and
            each picture has a tracklet. Where it is true, each folder in a folder of pictures is one.
        feature: what `embedding` holds, anything that `inference.parts.as_feature` takes; None: the model's own.
        on_error: `skip` pictures that cannot be read and list them, or `fail` at the first.
        batch: pictures at a time, for each device; frames of tracklets likewise.
        workers: loader processes for each device.

    Raises:
        InputError: if a value is none of these.
    """

    outputs: tuple[str, ...] = ("all",)
    split: Literal["train", "val", "test"] | None = None
    flip: bool | None = None
    tracklets: bool | None = None
    feature: Feature | None = None
    on_error: Literal["fail", "skip"] = "skip"
    batch: Positive = 64
    workers: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature is not None:
            object.__setattr__(self, "feature", as_feature(self.feature))


@dataclass(frozen=True)
class SearchSettings:
    """How a gallery is searched.

    Args:
        top: hits of each query.
        where: label -> a value or several, and `frame` -> (from, to): only pictures that have them are found
            (`search.filters.Filter`); None as a value allows everything.
        synonyms: what people say -> the word of the model's vocabulary that it stands for, beside the usual ones
            (`language.synonyms.with_usual`).

    Raises:
        InputError: if a value is none of these.
    """

    top: Positive = 20
    where: Mapping[str, Any] | None = None
    synonyms: Mapping[str, str | None] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class _Pictures:
    """Pictures to look for.

    Args:
        pictures: files, or folders of them.

    Raises:
        InputError: if there is none.
    """

    pictures: tuple[Path, ...]

    def __post_init__(self) -> None:
        if not self.pictures:
            raise InputError("there is no picture to look for; give one or more")


class PictureQueries(_Pictures):
    """Pictures, each a query of its own: files, or folders of them."""


class PersonQuery(_Pictures):
    """Pictures of one person, together one query: files, or folders of them.

    In a gallery of tracklets a folder is looked at as one, and so are files together, in their order.
    """


@dataclass(frozen=True)
class TextQueries:
    """Descriptions, each a query of its own.

    Args:
        texts: in the language of the model's vocabulary; empty ones are left out.

    Raises:
        InputError: if there is none.
    """

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not any(text.strip() for text in self.texts):
            raise InputError(
                "the text is empty; say what the person looks like, as in text='a tall, heavyset man'"
            )


Queries = PictureQueries | PersonQuery | TextQueries
