"""Read what a folder of shards says of itself; no torch is loaded, so that a wrong folder is told of at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip3dreid.errors import InputError
from clip3dreid.inference.parts import Feature, feature_of
from clip3dreid.io.checks import Positive
from clip3dreid.io.resumable import INDEX, PartKind, read_index
from clip3dreid.search.settings import DType, Form

if TYPE_CHECKING:
    from clip3dreid.inference.model import ReidModel
    from clip3dreid.model.card import ClipSize

SHARDS_VERSION = 1
UNREADABLE = "unreadable.csv"
FEATURE = "feature"
"""Key that says which parts `embedding` is made of; absent in folders from before there were several."""
CLIPS = "clips"
"""Key that says how tracklets were cut into clips, null where rows are pictures; absent in earlier folders."""

SHARDS = PartKind(
    what="shards",
    stem="shard",
    digits=6,
    suffixes=(".parquet", ".safetensors"),
    version=SHARDS_VERSION,
    needs={
        "fingerprint": str,
        "format": Form,
        "dtype": DType,
        "rows_per_shard": Positive,
        "shards": list,
        "vectors": dict,
    },
    elsewhere="extract into another folder",
    others=(UNREADABLE,),
)


def read_shard_index(folder: Path) -> dict[str, Any]:
    """Read what a folder of shards says of itself.

    Raises:
        InputError: if there is no index, it is damaged, or of another version.
    """
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} holds no shards ({INDEX}); make them: clip3dreid extract out={folder}")
    return read_index(folder, SHARDS)


def shard_feature(index: Mapping[str, Any], folder: Path) -> Feature:
    """Return which parts the column `embedding` of a folder of shards is made of.

    Raises:
        InputError: if what the index says is none.
    """
    return feature_of({FEATURE: index.get(FEATURE)}, str(folder / INDEX))


def shard_clips(index: Mapping[str, Any], folder: Path) -> ClipSize | None:
    """Return how the tracklets of a folder of shards were cut into clips; None: its rows are pictures.

    Raises:
        InputError: if what the index says cannot be.
    """
    from clip3dreid.model.card import clip_size  # loads torch

    return clip_size({CLIPS: index.get(CLIPS)}, folder / INDEX)


def shard_facts(
    model: ReidModel, outputs: Collection[str], *, source: str, flip: bool, clips: ClipSize | None = None
) -> dict[str, Any]:
    """Return what shards say of the model that fills them.

    Args:
        model: it.
        outputs: which of its vectors are kept, and `words` where they are.
        source: of the pictures, since a folder of shards is of one.
        flip: whether mirror images are looked at too.
        clips: how tracklets are cut, where rows are tracklets; None: they are pictures.
    """
    return {
        "fingerprint": model.fingerprint,
        "source": source,
        "flip": flip,
        CLIPS: None if clips is None else clips._asdict(),
        FEATURE: model.feature.weights,
        "height": model.height,
        "width": model.width,
        "vectors": {name: width for name, width in model.widths.items() if name in outputs},
        "groups": model.groups if "words" in outputs else {},
    }


def shard_stem(folder: Path, number: int) -> Path:
    """Return the path of a shard, without suffix."""
    return folder / SHARDS.name(number, "")
