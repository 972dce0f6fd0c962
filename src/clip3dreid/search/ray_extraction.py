"""Run a model over a table in parts, by Ray Data, into the same shards that `extraction` fills.

Where crops are too many to be listed in every process, they stand in a folder of Parquet files: a part of the table
is what an actor is given, and what it looks at becomes one shard, written by the actor itself. No process knows more
than the names of the parts and the crops of one. A killed run goes on with the parts that have no shard.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import polars as pl
import torch

from clip3dreid.data.crops import CropBatches, cut_between_pictures
from clip3dreid.data.images import to_unit
from clip3dreid.data.listing import Listing, list_pictures
from clip3dreid.errors import InputError
from clip3dreid.inference.model import ReidModel
from clip3dreid.io.checks import Positive, Range, check
from clip3dreid.io.devices import AUTO, chosen_device
from clip3dreid.io.formats import decoding
from clip3dreid.io.locks import at_work
from clip3dreid.io.pictures import Pixels, open_picture, upright_rgb
from clip3dreid.io.pictures import unreadable as unreadable_picture
from clip3dreid.io.resumable import Parts
from clip3dreid.search.extraction import ExtractionResult, list_unreadable, outputs_of
from clip3dreid.search.settings import ExtractSettings
from clip3dreid.search.shard_index import SHARDS, SHARDS_VERSION, shard_facts, shard_stem
from clip3dreid.search.shard_writer import examine, make_shard
from clip3dreid.search.shards import VECTORS, WORDS, read_shard_card, save_shard, unreadable

log = logging.getLogger(__name__)

BYTES = "bytes"
"""Column with a picture's encoded bytes, of a table that does not name files."""


@dataclass(frozen=True)
class RaySettings:
    """Where the work is done.

    Args:
        address: of a cluster that runs, `auto` for the one that this machine is of; None: a cluster of this machine
            alone, for as long as the work lasts.
        actors: that look, each with the model.
        gpus: of each, a share of one perhaps.
        cpus: of each.

    Raises:
        InputError: if a value is none of these.
    """

    address: str | None = None
    actors: Positive = 1
    gpus: Annotated[float, Range(0)] = 0.0
    cpus: Positive = 1

    def __post_init__(self) -> None:
        check(self, "ray.")


class _Part(NamedTuple):
    """A part of the table, which becomes the shard of its number."""

    number: int
    path: str
    first: int
    """Row of the whole table that is its first."""
    identity: str


def extract_parts(
    make_model: Callable[[], ReidModel],
    place: Path,
    settings: ExtractSettings,
    folder: Path,
    ray: RaySettings | None = None,
) -> ExtractionResult:
    """Fill a folder with what a model says of a table's crops; what is there already is not computed again.

    Args:
        make_model: loads the model, here and in every actor; can be pickled.
        place: a folder of Parquet files, in the order of their names, each as `data.listing.list_pictures` takes it,
            paths relative to the folder; or with a column `bytes` of encoded pictures beside `path`, which then only
            names them.
        settings: what is kept, and how; `rows_per_shard` is the table's own, `split` and `workers` have no meaning.
        folder: of the shards; every actor must reach it, and the table, under this path.
        ray: where the work is done.

    Raises:
        InputError: if Ray is not installed, there is no table, or as `extraction.extract`.
    """
    if settings.tracklets:
        raise InputError("backend=ray looks at pictures one by one; tracklets=true is backend=local")
    client = _client()
    ray = ray or RaySettings()
    started = time.perf_counter()
    model = make_model()
    if settings.feature is not None:
        model = model.with_feature(settings.feature)
    settings = replace(settings, flip=model.flip if settings.flip is None else settings.flip)
    if model.trained_on_clips and settings.tracklets is None:
        log.warning("%s was trained on clips, and backend=ray looks at pictures one by one", model.name)
    outputs = outputs_of(settings, model)
    place, folder = place.absolute(), folder.absolute()
    facts = shard_facts(model, outputs, source=str(place), flip=bool(settings.flip))
    examine(folder, facts, settings)
    parts, most, rows = _parts(place)
    with at_work(folder, "extracts", tidy=True):
        fingerprint = str(facts["fingerprint"])

        def usable(number: int) -> bool:
            """Return whether a shard is of its part; it was written whole or not at all."""
            try:
                card = read_shard_card(shard_stem(folder, number))
            except InputError:
                return False
            wanted = (SHARDS_VERSION, parts[number].identity, fingerprint)
            return tuple(card.get(key) for key in ("version", "identity", "fingerprint")) == wanted

        shards = Parts(folder, SHARDS, [range(0)] * len(parts), usable)
        shards.sweep()
        shards.write_index(
            {"model": model.name, "root": str(place), "version": SHARDS_VERSION, "format": settings.format}
            | {"dtype": settings.dtype, **facts, "rows_per_shard": most}
            | {"shards": [part.identity for part in parts]}
        )
        missing = [parts[number] for number in shards.missing()]
        if done := len(parts) - len(missing):
            log.info("%d of %d shards are in %s already and are kept", done, len(parts), folder)
        computed = 0
        if missing:
            looker = {"make_model": make_model, "settings": settings, "folder": folder, "outputs": outputs}
            for count in _work(client, ray, missing, looker):
                computed += count
        skipped = unreadable(folder)
        list_unreadable(folder, skipped)
    if len(skipped) == rows:
        raise InputError(
            f"none of {rows} pictures could be read, first {skipped['path'][0]}: {skipped['reason'][0]}"
        )
    seconds = time.perf_counter() - started
    return ExtractionResult(folder, rows - len(skipped), len(skipped), seconds, computed)


def _client() -> Any:
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError(
            "backend=ray needs Ray, which is not installed; pip install 'clip3dreid[ray]'"
        ) from error


def _rows(path: Path) -> int:
    """Return how many rows a part has, as its footer says."""
    with decoding(path, "a part of a table", "write it anew"):
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())


def _parts(place: Path) -> tuple[list[_Part], int, int]:
    """Return the parts of a table, the most rows that one has, and the rows of all.

    Raises:
        InputError: if there is none, or one cannot be read.
    """
    files = sorted(place.glob("*.parquet")) if place.is_dir() else []
    if not files:
        raise InputError(
            f"pictures={place} is no folder of Parquet files; backend=ray takes a table in parts, backend=local "
            "anything else"
        )
    parts: list[_Part] = []
    first = most = 0
    for number, path in enumerate(files):
        state = path.stat()
        told = f"{number} {path.name} {state.st_size} {state.st_mtime_ns} {first}"
        identity = hashlib.blake2b(told.encode(errors="surrogateescape"), digest_size=16).hexdigest()
        parts.append(_Part(number, str(path), first, identity))
        rows = _rows(path)
        first, most = first + rows, max(most, rows)
    return parts, max(1, most), first


def _work(client: Any, ray: RaySettings, parts: list[_Part], looker: Mapping[str, Any]) -> Iterator[int]:
    """Look at parts, and yield the rows of each that is done."""
    ours = not client.is_initialized()
    if ours:
        # Nothing is told to anybody: no usage is reported, no page is opened.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        alone = {"include_dashboard": False} if ray.address is None else {}
        client.init(address=ray.address, log_to_driver=False, logging_level=logging.WARNING, **alone)
    try:
        made = client.data.from_items([part._asdict() for part in parts]).map_batches(
            _Looker,
            fn_constructor_kwargs=dict(looker),
            batch_size=1,
            compute=client.data.ActorPoolStrategy(size=ray.actors),
            num_gpus=ray.gpus,
            num_cpus=ray.cpus,
        )
        for row in made.iter_rows():
            log.info("shard %d is written", row["number"])
            yield int(row["rows"])
    except client.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from error
        raise
    finally:
        if ours:
            client.shutdown()


class _Looker:
    """An actor: looks at parts and writes their shards.

    Args:
        make_model: loads the model.
        settings: what is kept, and how.
        folder: of the shards.
        outputs: of `VECTORS` and `words`, what to keep.
    """

    def __init__(
        self,
        make_model: Callable[[], ReidModel],
        settings: ExtractSettings,
        folder: Path,
        outputs: tuple[str, ...],
    ) -> None:
        model = make_model()
        self._model = model if settings.feature is None else model.with_feature(settings.feature)
        # Ray shows an actor the devices that it was given, and no others.
        self._model.placed(chosen_device(AUTO), None).eval()
        self._settings, self._folder, self._outputs = settings, folder, outputs

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Look at some parts; return `number` and `rows` of each."""
        parts = [_Part(*(batch[name][row] for name in _Part._fields)) for row in range(len(batch["number"]))]
        rows = [self._look(part._replace(number=int(part.number), first=int(part.first))) for part in parts]
        return {"number": batch["number"], "rows": np.array(rows)}

    def _look(self, part: _Part) -> int:
        settings, path = self._settings, Path(part.path)
        listing = list_pictures(path)
        count = len(listing.table)
        batches = cut_between_pictures(listing.table["path"], range(count), settings.batch)
        skip = settings.on_error == "skip"
        held = pl.scan_parquet(path, glob=False).collect_schema()
        crops: CropBatches = (
            _EncodedCrops.read(path, listing, batches, self._model.view, skip=skip)
            if BYTES in held
            else CropBatches.of(listing, batches, self._model.view, skip=skip)
        )
        vectors: dict[str, list[Any]] = {name: [] for name in VECTORS if name in self._outputs}
        rows, words, skipped = [], [], []
        for index in range(len(crops)):
            found = crops[index]
            skipped += [(row, reason) for row, reason in found.skipped]
            rows.append(found.rows.numpy())
            for images in torch.split(found.images, settings.batch) if len(found.rows) else ():
                with torch.inference_mode():
                    seen = self._model(to_unit(images.to(self._model.device)), flip=bool(settings.flip))
                for name, kept in vectors.items():
                    kept.append(getattr(seen, name).float().cpu().numpy())
                if WORDS in self._outputs:
                    assert seen.joint is not None
                    words += self._model.best_words(seen.joint)
        arrays = {
            name: np.concatenate([np.empty((0, self._model.widths[name]), np.float32), *kept])
            for name, kept in vectors.items()
        }
        shard = make_shard(
            listing.table,
            np.concatenate([np.empty(0, np.int64), *rows]),
            arrays,
            words if WORDS in self._outputs else None,
            skipped,
            first=part.first,
            identity=part.identity,
            fingerprint=self._model.fingerprint,
            dtype=settings.dtype,
        )
        save_shard(Parts(self._folder, SHARDS, [], lambda _: False), part.number, settings.format, shard)
        return count


class _EncodedCrops(CropBatches):
    """Crops whose pictures stand in the table, as they would in files."""

    _encoded: pl.Series

    @classmethod
    def read(
        cls, path: Path, listing: Listing, batches: list[range], view: Any, *, skip: bool
    ) -> _EncodedCrops:
        """Return the crops of a part, whose files are in its column `bytes`."""
        crops = cls.of(listing, batches, view, skip=skip)
        crops._encoded = pl.read_parquet(path, columns=[BYTES], glob=False)[BYTES]
        return crops

    def _decoded(self, row: int) -> Pixels:
        try:
            with open_picture(io.BytesIO(self._encoded[row])) as image:
                return upright_rgb(image, own=True)
        except Exception as error:  # decoders raise a dozen types on broken data
            raise unreadable_picture(self._path(row), error, self._advice) from error
