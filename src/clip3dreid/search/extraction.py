"""A model over many pictures: from a composed config to shards."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as lightning
import numpy as np
import numpy.typing as npt
import polars as pl
from hydra.utils import instantiate
from lightning.pytorch.callbacks import TQDMProgressBar
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from clip3dreid.config.hydra import at_least
from clip3dreid.config.trust import trusted
from clip3dreid.data.crops import CropBatch, CropBatches
from clip3dreid.data.images import TestView, to_unit
from clip3dreid.data.listing import Listing, list_pictures
from clip3dreid.errors import InputError
from clip3dreid.guidance.sources import read_manifest
from clip3dreid.inference.model import Outputs, ReidModel, load
from clip3dreid.io.files import at_work, atomic, identify, inside, remove
from clip3dreid.io.processes import end_with_parent
from clip3dreid.io.table_files import BOX
from clip3dreid.search.shards import UNREADABLE, VECTORS, WORDS, ShardWriter, examine, unreadable

log = logging.getLogger(__name__)


class Extracted(NamedTuple):
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


class Extraction(lightning.LightningModule):
    """Looks at batch after batch and hands each shard over as soon as its last one is through.

    Args:
        model: what looks.
        writer: takes the shards.
        numbers: of the shards, in the order in which their batches come.
        outputs: of `VECTORS` and `words`, what to keep.
        flip: add the embedding of the mirror image.
    """

    def __init__(
        self,
        model: ReidModel,
        writer: ShardWriter,
        numbers: list[int],
        outputs: tuple[str, ...],
        flip: bool,
    ) -> None:
        super().__init__()
        # Fewer shards than processes: those without one have nothing to look at.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.model, self.flip = model, flip
        self._writer, self._waiting = writer, deque(numbers)
        self._outputs = outputs
        self._rows: list[npt.NDArray[np.int64]] = []
        self._skipped: list[tuple[int, str]] = []
        self._vectors: dict[str, list[npt.NDArray[np.float32]]] = {}
        self._words: list[list[str]] = []
        self._seen = 0

    def predict_step(self, batch: CropBatch, batch_idx: int) -> None:
        """Takes a batch; writes a shard where it was the last one of it."""
        self._skipped += batch.skipped
        self._seen += len(batch.rows) + len(batch.skipped)
        if len(batch.rows):
            self._keep(self.model(to_unit(batch.images), flip=self.flip))
            self._rows.append(batch.rows.cpu().numpy())
        number = self._waiting[0]
        if self._seen == len(self._writer.rows(number)):
            self._hand_over(self._waiting.popleft())

    def _keep(self, seen: Outputs) -> None:
        for name in VECTORS:
            if name in self._outputs:
                self._vectors.setdefault(name, []).append(getattr(seen, name).float().cpu().numpy())
        if WORDS in self._outputs:
            assert seen.joint is not None
            self._words += self.model.best_words(seen.joint)

    def _hand_over(self, number: int) -> None:
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
        self._seen = 0


def extract(cfg: DictConfig) -> Extracted:
    """Fills a folder with what a model says of pictures; what is there already is not computed again.

    Args:
        cfg: `conf/extract.yaml`, composed.

    Raises:
        InputError: if model or pictures are missing or do not fit, or the folder holds another model's shards or is
            in use by another extraction.
    """
    if cfg.checkpoint is None:
        raise InputError("no model: give checkpoint=FILE_OR_FOLDER, as clip3dreid.load takes it")
    if cfg.on_error not in ("fail", "skip"):
        raise InputError(f"on_error={cfg.on_error} is unknown; choose fail or skip")
    batch, workers = int(at_least(cfg, "batch", 1)), int(at_least(cfg, "workers", 0))
    rows_per_shard = int(at_least(cfg, "rows_per_shard", 1))
    if not isinstance(cfg.flip, bool):
        raise InputError(f"flip={cfg.flip} is unknown; choose true or false")
    listing = _listing(cfg)
    model = load(str(cfg.checkpoint), trusted=trusted(cfg))
    outputs = _outputs(cfg, model)
    folder = Path(str(cfg.out)).expanduser()
    trainer: lightning.Trainer = instantiate(
        cfg.trainer,
        # In a log file a line a shard says as much.
        callbacks=[TQDMProgressBar(refresh_rate=5)] if sys.stderr.isatty() else [],
        enable_progress_bar=sys.stderr.isatty(),
        logger=False,
        enable_checkpointing=False,
    )
    facts = {
        "fingerprint": model.fingerprint,
        "source": _source(cfg),
        "flip": cfg.flip,
        "height": model.height,
        "width": model.width,
        "vectors": {name: width for name, width in model.widths.items() if name in outputs},
        "groups": model.groups if WORDS in outputs else {},
    }
    form, dtype = str(cfg.format), str(cfg.dtype)
    # Before the lock, which is a file: a folder that is refused is not touched.
    examine(folder, facts, form=form, dtype=dtype, rows_per_shard=rows_per_shard)
    if trainer.global_rank:
        # The first process has locked the folder for all of them; without it nobody would keep another out.
        end_with_parent()
    with nullcontext() if trainer.global_rank else at_work(folder, "extracts", tidy=True):
        writer = ShardWriter(
            folder,
            listing.table,
            identify(listing.root, listing.table["path"].to_list(), missing_ok=True),
            facts,
            notes={"model": str(cfg.checkpoint), "root": str(listing.root.absolute())},
            form=form,
            dtype=dtype,
            rows_per_shard=rows_per_shard,
            share=(trainer.global_rank, trainer.world_size),
        )
        return _fill(cfg, trainer, model, listing, writer, outputs, batch, workers)


def _fill(
    cfg: DictConfig,
    trainer: lightning.Trainer,
    model: ReidModel,
    listing: Listing,
    writer: ShardWriter,
    outputs: tuple[str, ...],
    batch: int,
    workers: int,
) -> Extracted:
    """Makes the shards that are missing, and the list of what could not be read."""
    paths = listing.table["path"].to_list()
    numbers = writer.missing()
    batches = [
        range(start, min(start + batch, rows.stop))
        for rows in map(writer.rows, numbers)
        for start in range(rows.start, rows.stop, batch)
    ]
    boxed = BOX[0] in listing.table.columns
    crops = CropBatches(
        [listing.root / path for path in paths],
        listing.table.select(BOX).to_numpy() if boxed else None,
        batches,
        TestView(model.height, model.width, model.square),
        skip=cfg.on_error == "skip",
    )
    start = time.perf_counter()
    if done := len(writer.mine) - len(numbers):
        log.info("%d of %d shards are in %s already and are kept", done, len(writer.mine), writer.folder)
    if batches or trainer.world_size > 1:
        loader = DataLoader(
            crops,
            batch_size=None,
            num_workers=min(workers, len(batches)),
            pin_memory=trainer.accelerator.name() == "cuda",
        )
        extraction = Extraction(model, writer, list(numbers), outputs, cfg.flip)
        try:
            trainer.predict(extraction, loader, return_predictions=False)
        except SystemExit:  # which Lightning makes of Ctrl-C
            log.warning("stopped; run the same command again to go on")
            raise
    seconds = time.perf_counter() - start
    # The others may still be at work, on shards that the list of skipped pictures needs.
    trainer.strategy.barrier()
    skipped = unreadable(writer.folder)
    if trainer.is_global_zero:
        _list_unreadable(writer.folder, skipped)
    if len(skipped) == len(paths):
        raise InputError(
            f"none of {len(paths)} pictures could be read, first {skipped['path'][0]}: {skipped['reason'][0]}"
        )
    computed = sum(map(len, batches))
    return Extracted(writer.folder, len(paths) - len(skipped), len(skipped), seconds, computed)


def _source(cfg: DictConfig) -> str:
    """Where pictures come from: a folder of shards is of one source."""
    if cfg.pictures is not None:
        return str(Path(str(cfg.pictures)).expanduser().absolute())
    return f"{cfg.data.name} {Path(str(cfg.data.root)).expanduser().absolute()} {cfg.split or 'all'}"


def _listing(cfg: DictConfig) -> Listing:
    if cfg.pictures == "":
        raise InputError("pictures is empty; give a folder or a table")
    if (cfg.pictures is None) == ("data" not in cfg):
        raise InputError(
            "what to look at? Give pictures=FOLDER, pictures=TABLE.csv, or data=NAME data.root=FOLDER, one of them"
        )
    if cfg.pictures is not None:
        if cfg.split is not None:
            raise InputError("split belongs to data=NAME; give a table of the pictures that you want")
        return list_pictures(Path(str(cfg.pictures)).expanduser())
    manifest = read_manifest(cfg.data)
    table = manifest.table if cfg.split is None else manifest.part(str(cfg.split))
    if table.is_empty():
        raise InputError(f"{manifest.name} has no pictures in split {cfg.split}; choose train, val or test")
    return Listing(manifest.root, table)


def _outputs(cfg: DictConfig, model: ReidModel) -> tuple[str, ...]:
    """What to keep, in the shards' order."""
    able = (*model.widths, *([WORDS] if model.groups else []))
    if cfg.outputs == "all":
        return able
    wanted = [cfg.outputs] if isinstance(cfg.outputs, str) else list(cfg.outputs)
    if not wanted or (unknown := [name for name in wanted if name not in able]):
        raise InputError(
            f"outputs={wanted if not wanted else unknown[0]} cannot be had from {cfg.checkpoint}, which gives "
            f"{', '.join(able)}; the others need loss.local or loss.body in training"
        )
    return tuple(name for name in able if name in wanted)


def _list_unreadable(folder: Path, skipped: pl.DataFrame) -> None:
    if skipped.is_empty():
        remove(folder, [UNREADABLE])
        return
    path = inside(folder, UNREADABLE)
    with atomic(path) as temporary:
        skipped.write_csv(temporary)
    log.warning("%d pictures could not be read and are left out, see %s", len(skipped), path)
