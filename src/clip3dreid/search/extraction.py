"""Run a model over many pictures, into shards."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as lightning
import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader

from clip3dreid.data.box_settings import Boxes
from clip3dreid.data.crops import CropBatch, CropBatches, cut_between_pictures
from clip3dreid.data.images import to_unit
from clip3dreid.data.listing import Listing, list_pictures
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.sources import DataSpec, read_manifest
from clip3dreid.errors import InputError
from clip3dreid.inference.late import Late, at_once
from clip3dreid.inference.model import Outputs, ReidModel
from clip3dreid.io.checks import hint
from clip3dreid.io.files import atomic, identify, inside, remove
from clip3dreid.io.launch import FurtherProcesses
from clip3dreid.io.launcher import start_by
from clip3dreid.io.locks import at_work
from clip3dreid.io.processes import end_with_parent
from clip3dreid.search.settings import ExtractSettings
from clip3dreid.search.shard_index import UNREADABLE, shard_facts
from clip3dreid.search.shard_writer import ShardWriter, examine
from clip3dreid.search.shards import VECTORS, WORDS, unreadable

log = logging.getLogger(__name__)

# Batches whose results are on their way to the CPU while the next is looked at.
_ON_THE_WAY = 2

Pictures = str | Path | Boxes | DataSpec | Manifest
"""A folder or a table of pictures, or boxes in frames; a data set, to be read or as it was read."""


class ExtractionResult(NamedTuple):
    """What came of an extraction."""

    folder: Path
    pictures: int
    """Rows in all shards."""
    skipped: int
    """Pictures that could not be read, in `unreadable.csv`."""
    seconds: float
    """Of the work that was left to do."""
    computed: int
    """Pictures of this process that were looked at in this go."""


def extract(
    model: ReidModel,
    pictures: Pictures,
    settings: ExtractSettings,
    folder: Path,
    trainer: Callable[..., lightning.Trainer] | None = None,
    processes: FurtherProcesses | None = None,
) -> ExtractionResult:
    """Fill a folder with what a model says of pictures; what is there already is not computed again.

    Args:
        model: what looks.
        pictures: what it looks at.
        settings: what is kept of it, and how.
        folder: of the shards (`search.shards.Shards`); made if need be.
        trainer: makes Lightning's trainer, of which devices and strategy are taken; None: one device, the best there
            is.
        processes: what starts further processes, where the trainer has several.

    Raises:
        InputError: if there are no pictures, what is wanted cannot be had from the model, or the folder holds another
            model's shards or is in use by another extraction.

    Example:
        >>> import clip3dreid
        >>> from clip3dreid.search.extraction import extract
        >>> from clip3dreid.search.settings import ExtractSettings
        >>> model = clip3dreid.load("runs/mine")  # doctest: +SKIP
        >>> extract(model, "crops", ExtractSettings(), Path("shards/crops"))  # doctest: +SKIP
    """
    if settings.feature is not None:
        model = model.with_feature(settings.feature)
    if settings.flip is None:
        settings = replace(settings, flip=model.flip)
    source, listing = _find(pictures, settings.split)
    outputs = outputs_of(settings, model)
    on_terminal = sys.stderr.isatty()
    made: lightning.Trainer = (trainer or _one_device)(
        # In a log file a line a shard says as much.
        callbacks=[TQDMProgressBar(refresh_rate=5)] if on_terminal else [],
        enable_progress_bar=on_terminal,
        logger=False,
        enable_checkpointing=False,
    )
    start_by(made, processes)
    facts = shard_facts(model, outputs, source=source, flip=bool(settings.flip))
    # Before the lock, which is a file: a folder that is refused is not touched.
    examine(folder, facts, settings)
    if made.global_rank:
        # The first process has locked the folder for all of them; without it nobody would keep another out.
        end_with_parent()
    with nullcontext() if made.global_rank else at_work(folder, "extracts", tidy=True):
        writer = ShardWriter(
            folder,
            listing.table,
            identify(listing.root, listing.table["path"], missing_ok=True),
            facts,
            settings,
            notes={"model": model.name, "root": str(listing.root.absolute())},
            share=(made.global_rank, made.world_size),
        )
        return _fill(settings, made, model, listing, writer, outputs)


def _one_device(**arguments: object) -> lightning.Trainer:
    return lightning.Trainer(devices=1, enable_model_summary=False, **arguments)  # type: ignore[arg-type]


def _find(pictures: Pictures, split: str | None) -> tuple[str, Listing]:
    """Return where pictures come from, since a folder of shards is of one source, and which they are."""
    if isinstance(pictures, str | Path | Boxes):
        if split is not None:
            raise InputError("split belongs to data=NAME; give a table of the pictures that you want")
        place = pictures.place if isinstance(pictures, Boxes) else Path(pictures).expanduser()
        return str(place.absolute()), list_pictures(pictures if isinstance(pictures, Boxes) else place)
    manifest = read_manifest(pictures) if isinstance(pictures, DataSpec) else pictures
    table = manifest.table if split is None else manifest.part(split)
    if table.is_empty():
        raise InputError(f"{manifest.name} has no pictures in split {split}; choose train, val or test")
    return f"{pictures.name} {pictures.root.absolute()} {split or 'all'}", Listing.of(manifest.root, table)


def outputs_of(settings: ExtractSettings, model: ReidModel) -> tuple[str, ...]:
    """Return what to keep, in the shards' order."""
    able = (*model.widths, *([WORDS] if model.groups else []))
    if settings.outputs == ("all",):
        return able
    unknown = next((name for name in settings.outputs if name not in able), None)
    if unknown is not None or not settings.outputs:
        raise InputError(
            f"outputs={'[]' if unknown is None else unknown} cannot be had from {model.name}, which gives "
            f"{', '.join(able)}; the others need loss.local, or loss.shape or loss.body, in training"
            f"{'' if unknown is None else hint(unknown, able)}"
        )
    return tuple(name for name in able if name in settings.outputs)


class ExtractionModule(lightning.LightningModule):
    """Look at batch after batch, and hand each shard over as soon as its last one is through.

    Args:
        model: what looks.
        writer: takes the shards.
        numbers: of the shards, in the order in which their batches come.
        outputs: of `VECTORS` and `words`, what to keep.
        flip: look at the mirror image too.
        size: pictures that the model is given at a time: a frame with more boxes is one batch all the same.
    """

    def __init__(
        self,
        model: ReidModel,
        writer: ShardWriter,
        numbers: Sequence[int],
        outputs: tuple[str, ...],
        flip: bool,
        size: int,
    ) -> None:
        super().__init__()
        # Fewer shards than processes: those without one have nothing to look at.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.model, self.flip, self._size = model, flip, size
        self._writer, self._waiting = writer, deque(numbers)
        self._outputs = outputs
        self._rows: list[npt.NDArray[np.int64]] = []
        self._skipped: list[tuple[int, str]] = []
        self._vectors: dict[str, list[npt.NDArray[np.float32]]] = {}
        self._words: list[list[str]] = []
        self._coming: deque[Late] = deque()
        self._count = 0

    def transfer_batch_to_device(
        self, batch: CropBatch, device: torch.device, dataloader_idx: int
    ) -> CropBatch:
        """Move the pictures alone: rows would have to come back."""
        return batch._replace(images=batch.images.to(device, non_blocking=not at_once(device)))

    def predict_step(self, batch: CropBatch, batch_idx: int) -> None:
        """Take a batch; write a shard where it was the last one of it."""
        self._skipped += batch.skipped
        self._count += len(batch.rows) + len(batch.skipped)
        if len(batch.rows):
            for images in torch.split(batch.images, self._size):
                self._keep(self.model(to_unit(images), flip=self.flip))
            self._rows.append(batch.rows.numpy())
        number = self._waiting[0]
        if self._count == len(self._writer.rows(number)):
            self._hand_over(self._waiting.popleft())

    def _keep(self, outputs: Outputs) -> None:
        """Send on their way to the CPU what is kept; what has been on its way for two batches is taken in."""
        tensors = [getattr(outputs, name).float() for name in VECTORS if name in self._outputs]
        if WORDS in self._outputs:
            assert outputs.joint is not None
            tensors.append(self.model.choices(outputs.joint))
        self._coming.append(Late(tensors))
        if len(self._coming) > _ON_THE_WAY:
            self._take_in()

    def _take_in(self) -> None:
        arrived = self._coming.popleft().read()
        names = [name for name in VECTORS if name in self._outputs]
        for name, vectors in zip(names, arrived[: len(names)], strict=True):
            # A copy: pinned memory is scarce.
            self._vectors.setdefault(name, []).append(vectors.numpy().copy())
        if WORDS in self._outputs:
            self._words += self.model.words_of(arrived[-1])

    def _hand_over(self, number: int) -> None:
        while self._coming:
            self._take_in()
        vectors = {
            name: np.concatenate(self._vectors.get(name, [np.empty((0, width), np.float32)]))
            for name, width in self.model.widths.items()
            if name in self._outputs
        }
        rows = np.concatenate(self._rows) if self._rows else np.empty(0, np.int64)
        words = self._words if WORDS in self._outputs else None
        self._writer.put(number, rows, vectors, words, self._skipped)
        log.log(logging.DEBUG if sys.stderr.isatty() else logging.INFO, "shard %d is written", number)
        self._rows, self._skipped, self._vectors, self._words = [], [], {}, []
        self._count = 0


def _fill(
    settings: ExtractSettings,
    trainer: lightning.Trainer,
    model: ReidModel,
    listing: Listing,
    writer: ShardWriter,
    outputs: tuple[str, ...],
) -> ExtractionResult:
    """Make the shards that are missing, and the list of what could not be read."""
    numbers = writer.missing()
    batches = [
        batch
        for rows in map(writer.rows, numbers)
        for batch in cut_between_pictures(listing.table["path"], rows, settings.batch)
    ]
    crops = CropBatches.of(listing, batches, model.view, skip=settings.on_error == "skip")
    start = time.perf_counter()
    if done := len(writer.mine) - len(numbers):
        log.info("%d of %d shards are in %s already and are kept", done, len(writer.mine), writer.folder)
    if batches or trainer.world_size > 1:
        loader = DataLoader(
            crops,
            batch_size=None,
            num_workers=min(settings.workers, len(batches)),
            pin_memory=trainer.accelerator.name() == "cuda",
        )
        module = ExtractionModule(model, writer, numbers, outputs, bool(settings.flip), settings.batch)
        try:
            trainer.predict(module, loader, return_predictions=False)
        except SystemExit:  # which Lightning makes of Ctrl-C
            log.warning("stopped; run the same command again to go on")
            raise
    seconds = time.perf_counter() - start
    # The others may still be at work, on shards that the list of skipped pictures needs.
    trainer.strategy.barrier()
    skipped = unreadable(writer.folder)
    if trainer.is_global_zero:
        list_unreadable(writer.folder, skipped)
    if len(skipped) == len(listing.table):
        raise InputError(
            f"none of {len(skipped)} pictures could be read, first {skipped['path'][0]}: {skipped['reason'][0]}"
        )
    computed = sum(map(len, batches))
    return ExtractionResult(writer.folder, len(listing.table) - len(skipped), len(skipped), seconds, computed)


def list_unreadable(folder: Path, skipped: pl.DataFrame) -> None:
    """Write the pictures that were left out, `path` and `reason`, beside the shards; no file where there are none."""
    if skipped.is_empty():
        remove(folder, [UNREADABLE])
        return
    path = inside(folder, UNREADABLE)
    with atomic(path) as temporary:
        skipped.write_csv(temporary)
    log.warning("%d pictures could not be read and are left out, see %s", len(skipped), path)
