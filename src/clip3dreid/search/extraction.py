"""Run a model over many pictures, into shards."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import lightning.pytorch as lightning
import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from clip3dreid.data.box_settings import Boxes
from clip3dreid.data.clip_batches import ClipBatch, ClipBatches, Lost
from clip3dreid.data.crops import CropBatch, CropBatches, Crops, cut_between_pictures
from clip3dreid.data.images import to_unit
from clip3dreid.data.listing import Listing, folders_as_tracklets, list_pictures
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.sources import DataSpec, read_manifest
from clip3dreid.data.tracklets import Tracklets, tracklets
from clip3dreid.errors import InputError
from clip3dreid.inference.late import Late, at_once
from clip3dreid.inference.model import Outputs, ReidModel
from clip3dreid.inference.tracklets import ClipMeans
from clip3dreid.io.checks import hint
from clip3dreid.io.files import FileIdentities, atomic, identify, identity_hashes, in_turn, inside, remove
from clip3dreid.io.launch import FurtherProcesses
from clip3dreid.io.launcher import start_by
from clip3dreid.io.locks import at_work
from clip3dreid.io.processes import end_with_parent
from clip3dreid.io.table_files import BOX
from clip3dreid.search.settings import ExtractSettings
from clip3dreid.search.shard_index import UNREADABLE, shard_facts
from clip3dreid.search.shard_writer import ShardWriter, examine
from clip3dreid.search.shards import VECTORS, WORDS, left_out, unreadable

log = logging.getLogger(__name__)

# Batches whose results are on their way to the CPU while the next is looked at.
_ON_THE_WAY = 2

Pictures = str | Path | Boxes | DataSpec | Manifest
"""A folder or a table of pictures, or boxes in frames; a data set, to be read or as it was read."""


class ExtractionResult(NamedTuple):
    """What came of an extraction; as a text, one line."""

    folder: Path
    pictures: int
    """Rows in all shards, which are tracklets where `frames` says so."""
    skipped: int
    """Pictures that could not be read, or tracklets without a frame that could, in `unreadable.csv`."""
    seconds: float
    """Of the work that was left to do."""
    computed: int
    """Pictures, or frames, of this process that were looked at in this go."""
    frames: int | None = None
    """Of all tracklets, readable or not; None: rows are pictures."""
    left_out: int = 0
    """Frames that could not be read of tracklets with others that could, in `unreadable.csv` too."""

    def __str__(self) -> str:
        rate = (
            f"{self.computed / self.seconds:.0f}{' frames' if self.frames is not None else ''} a second"
            if self.computed
            else "nothing was left to do"
        )
        skipped = f", {self.skipped} unreadable" if self.skipped else ""
        if self.left_out:
            skipped += f", {self.left_out} frames left out"
        what = "pictures" if self.frames is None else f"tracklets of {self.frames} frames"
        return f"{self.pictures} {what} in {self.folder}{skipped}, {rate}"


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
    listed = _listed(listing, settings, model, source)
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
    clips = None if listed.tracklets is None else model.clips
    facts = shard_facts(model, outputs, source=source, flip=bool(settings.flip), clips=clips)
    # Before the lock, which is a file: a folder that is refused is not touched.
    examine(folder, facts, settings)
    if made.global_rank:
        # The first process has locked the folder for all of them; without it nobody would keep another out.
        end_with_parent()
    with nullcontext() if made.global_rank else at_work(folder, "extracts", tidy=True):
        states, missing = listed.states()
        writer = ShardWriter(
            folder,
            listed.rows,
            states,
            facts,
            settings,
            notes={"model": model.name, "root": str(listing.root.absolute())},
            share=(made.global_rank, made.world_size),
            missing=missing,
        )
        return _fill(settings, made, model, listed, writer, outputs)


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


class _Listed(NamedTuple):
    """What becomes rows of shards."""

    listing: Listing
    """The pictures, or frames."""
    tracklets: Tracklets | None
    """Of them; None: each picture is a row."""

    @property
    def rows(self) -> pl.DataFrame:
        """Return `path` and labels of each row to come."""
        return self.listing.table if self.tracklets is None else self.tracklets.table

    def states(self) -> tuple[FileIdentities, dict[str, str]]:
        """Return the state of each row's file, and of rows with a file that is not there, which it is.

        That of a tracklet is made of those of all frames and their boxes.
        """
        root, table = self.listing
        states = identify(root, table["path"], missing_ok=True)
        if self.tracklets is None:
            return states, {}
        hashes, there = identity_hashes(states), np.array([state.size >= 0 for state in states])
        boxes = table.select(BOX).to_numpy() if BOX[0] in table.columns else hashes[:, None]
        sizes, changed = np.empty((2, len(self.rows)), np.int64)
        missing = {}
        for number, path in enumerate(in_turn(self.rows["path"])):
            frames = self.tracklets.frames(number)
            digest = hashlib.blake2b(hashes[frames].tobytes(), digest_size=8)
            digest.update(np.ascontiguousarray(boxes[frames]).tobytes())
            changed[number] = int.from_bytes(digest.digest(), "little", signed=True)
            sizes[number] = len(frames)
            if not there[frames].all():
                sizes[number] = -1
                missing[path] = table["path"][int(frames[~there[frames]][0])]
        return FileIdentities(self.rows["path"], sizes, changed), missing


def _listed(listing: Listing, settings: ExtractSettings, model: ReidModel, name: str) -> _Listed:
    """Return what becomes a row: pictures, or the tracklets that they are frames of.

    Raises:
        InputError: if tracklets are asked for, and a picture has none.
    """
    known = "tracklet" in listing.table.columns
    if settings.tracklets is None:
        whole = known and not listing.table["tracklet"].null_count()
        if not (model.trained_on_clips and whole):
            if model.trained_on_clips:
                log.warning(
                    "%s was trained on clips, and not every picture says its tracklet: each is looked at by itself; "
                    "tracklets=true takes the folders of a folder for tracklets",
                    model.name,
                )
            return _Listed(listing, None)
    elif not settings.tracklets:
        return _Listed(listing, None)
    if not known and listing.table.columns != ["path"]:
        raise InputError(
            f"tracklets=true: {name} has no column tracklet, which says what belongs together; add it, or give a "
            "folder of folders of frames"
        )
    listing = folders_as_tracklets(listing)
    if nulls := listing.table["tracklet"].null_count():
        raise InputError(
            f"tracklets=true: {nulls} of {len(listing.table)} pictures of {name} have no tracklet; leave them out, "
            "or give tracklets=false"
        )
    return _Listed(listing, tracklets(listing.table, name))


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


class Kept(Protocol):
    """What a shard will be made of, as batches come."""

    def add(self, batch: Any) -> None:
        """Take in what a batch (of pictures, or of clips) says of itself, before it is looked at."""

    def take(self, rows: Tensor, vectors: Mapping[str, Tensor]) -> None:
        """Take in what the model said of some of it, on the CPU, in the order of the batches."""

    def write(self, writer: ShardWriter, number: int) -> None:
        """Write the shard of all that has come."""


class KeptPictures:
    """Pictures, each a row.

    Args:
        model: that looks.
        outputs: of `VECTORS` and `words`, what to keep.
    """

    def __init__(self, model: ReidModel, outputs: tuple[str, ...]) -> None:
        self._model = model
        self._names = [name for name in VECTORS if name in outputs]
        self._words: list[list[str]] | None = [] if WORDS in outputs else None
        self._rows: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._skipped: list[tuple[int, str]] = []
        self._vectors = {name: [np.empty((0, model.widths[name]), np.float32)] for name in self._names}

    def add(self, batch: CropBatch) -> None:
        """Take in rows, and what could not be read."""
        self._skipped += batch.skipped
        self._rows.append(batch.rows.numpy())

    def take(self, rows: Tensor, vectors: Mapping[str, Tensor]) -> None:
        """Take in vectors and the choices of words."""
        for name in self._names:
            # A copy: pinned memory is scarce.
            self._vectors[name].append(vectors[name].numpy().copy())
        if self._words is not None:
            self._words += self._model.words_of(vectors[WORDS])

    def write(self, writer: ShardWriter, number: int) -> None:
        """Write the shard."""
        vectors = {name: np.concatenate(parts) for name, parts in self._vectors.items()}
        writer.put(number, np.concatenate(self._rows), vectors, self._words, self._skipped)


class KeptTracklets:
    """Tracklets, each a row: the means over their clips.

    Args:
        model: that looks.
        outputs: as of `KeptPictures`.
        rows: of the shard.
        paths: (F,) of the frames.
    """

    def __init__(self, model: ReidModel, outputs: tuple[str, ...], rows: range, paths: pl.Series) -> None:
        self._model, self._outputs, self._shard, self._paths = model, outputs, rows, paths
        # Words are those of the mean in the teacher's space.
        widths = {
            name: width
            for name, width in model.widths.items()
            if name in outputs or (name == "joint" and WORDS in outputs)
        }
        self._means = ClipMeans(widths, len(rows))
        self._lost: list[Lost] = []

    def add(self, batch: ClipBatch) -> None:
        """Take in frames that could not be read."""
        self._lost += batch.lost

    def take(self, rows: Tensor, vectors: Mapping[str, Tensor]) -> None:
        """Take in what is said of clips."""
        self._means.add(rows - self._shard.start, vectors)

    def write(self, writer: ShardWriter, number: int) -> None:
        """Write the shard."""
        seen = self._means.clips > 0
        means = {name: vectors[seen] for name, vectors in self._means.means().items()}
        words = None
        if WORDS in self._outputs:
            words = (
                self._model.best_words(means["joint"].to(self._model.device)) if len(means["joint"]) else []
            )
        reasons = {one.tracklet: one.reason for one in reversed(self._lost)}
        nothing = (~seen).nonzero().flatten().add(self._shard.start).tolist()
        writer.put(
            number,
            seen.nonzero().flatten().add(self._shard.start).numpy(),
            {name: means[name].numpy() for name in VECTORS if name in self._outputs},
            words,
            [(row, reasons[row]) for row in nothing],
            [(self._paths[one.row], one.reason) for one in self._lost if one.tracklet not in set(nothing)],
        )


class ExtractionModule(lightning.LightningModule):
    """Look at batch after batch, and hand each shard over as soon as its last one is through.

    Args:
        model: what looks.
        writer: takes the shards.
        batches: (number of a shard, how many batches it has), in the order in which these come.
        kept: from the number of a shard to what it is made of.
        outputs: of `VECTORS` and `words`, what to keep.
        flip: look at the mirror image too.
        size: pictures that the model is given at a time: a frame with more boxes is one batch all the same.
    """

    def __init__(
        self,
        model: ReidModel,
        writer: ShardWriter,
        batches: Sequence[tuple[int, int]],
        kept: Callable[[int], Kept],
        outputs: tuple[str, ...],
        flip: bool,
        size: int,
    ) -> None:
        super().__init__()
        # Fewer shards than processes: those without one have nothing to look at.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.model, self.flip, self._size = model, flip, size
        self._writer, self._waiting, self._make = writer, deque(batches), kept
        self._kept: Kept | None = None
        self._names = [name for name in VECTORS if name in outputs or (name == "joint" and WORDS in outputs)]
        self._choices = WORDS in outputs
        self._coming: deque[tuple[Tensor, Late]] = deque()
        self._count = 0

    def transfer_batch_to_device(
        self, batch: CropBatch | ClipBatch, device: torch.device, dataloader_idx: int
    ) -> CropBatch | ClipBatch:
        """Move the pictures alone: rows would have to come back."""
        return batch._replace(images=batch.images.to(device, non_blocking=not at_once(device)))

    def predict_step(self, batch: CropBatch | ClipBatch, batch_idx: int) -> None:
        """Take a batch; write a shard where it was the last one of it."""
        number, batches = self._waiting[0]
        kept = self._kept = self._kept or self._make(number)
        kept.add(batch)
        if len(batch.rows):
            for images, rows in zip(
                torch.split(batch.images, self._size), torch.split(batch.rows, self._size), strict=True
            ):
                self._send(rows, self.model(to_unit(images), flip=self.flip))
                while len(self._coming) > _ON_THE_WAY:
                    self._take_in(kept)
        self._count += 1
        if self._count == batches:
            while self._coming:
                self._take_in(kept)
            kept.write(self._writer, number)
            log.log(logging.DEBUG if sys.stderr.isatty() else logging.INFO, "shard %d is written", number)
            self._waiting.popleft()
            self._kept, self._count = None, 0

    def _send(self, rows: Tensor, outputs: Outputs) -> None:
        """Send on its way to the CPU what is kept, which is taken in when two batches more have been looked at."""
        tensors = [getattr(outputs, name).float() for name in self._names]
        if self._choices:
            assert outputs.joint is not None
            tensors.append(self.model.choices(outputs.joint))
        self._coming.append((rows, Late(tensors)))

    def _take_in(self, kept: Kept) -> None:
        rows, coming = self._coming.popleft()
        names = [*self._names, *([WORDS] if self._choices else [])]
        kept.take(rows, dict(zip(names, coming.read(), strict=True)))


def _fill(
    settings: ExtractSettings,
    trainer: lightning.Trainer,
    model: ReidModel,
    listed: _Listed,
    writer: ShardWriter,
    outputs: tuple[str, ...],
) -> ExtractionResult:
    """Make the shards that are missing, and the list of what could not be read."""
    numbers = writer.missing()
    batches, counts, kept = _batches(settings, model, listed, list(map(writer.rows, numbers)), outputs)
    start = time.perf_counter()
    if done := len(writer.mine) - len(numbers):
        log.info("%d of %d shards are in %s already and are kept", done, len(writer.mine), writer.folder)
    if len(batches) or trainer.world_size > 1:
        loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=min(settings.workers, len(batches)),
            pin_memory=trainer.accelerator.name() == "cuda",
        )
        module = ExtractionModule(
            model,
            writer,
            list(zip(numbers, counts, strict=True)),
            lambda number: kept(writer.rows(number)),
            outputs,
            bool(settings.flip),
            settings.batch,
        )
        try:
            trainer.predict(module, loader, return_predictions=False)
        except SystemExit:  # which Lightning makes of Ctrl-C
            log.warning("stopped; run the same command again to go on")
            raise
    seconds = time.perf_counter() - start
    # The others may still be at work, on shards that the list of skipped pictures needs.
    trainer.strategy.barrier()
    skipped, lost = unreadable(writer.folder), left_out(writer.folder)
    if trainer.is_global_zero:
        list_unreadable(writer.folder, pl.concat([skipped, lost]))
    rows = len(listed.rows)
    if len(skipped) == rows:
        what = "pictures" if listed.tracklets is None else "tracklets"
        raise InputError(
            f"none of {rows} {what} could be read, first {skipped['path'][0]}: {skipped['reason'][0]}"
        )
    done_now = [writer.rows(number) for number in numbers]
    frames, computed = None, sum(map(len, done_now))
    if listed.tracklets is not None:
        lengths = listed.tracklets.lengths
        frames, computed = int(lengths.sum()), sum(int(lengths[one].sum()) for one in done_now)
    return ExtractionResult(
        writer.folder, rows - len(skipped), len(skipped), seconds, computed, frames, len(lost)
    )


def _batches(
    settings: ExtractSettings,
    model: ReidModel,
    listed: _Listed,
    shards: Sequence[range],
    outputs: tuple[str, ...],
) -> tuple[CropBatches | ClipBatches, list[int], Callable[[range], Kept]]:
    """Return batches that are never of two shards, how many each has, and what makes of its rows what it keeps."""
    skip = settings.on_error == "skip"
    paths = listed.listing.table["path"]
    if listed.tracklets is None:
        cuts = [cut_between_pictures(paths, rows, settings.batch) for rows in shards]
        crops = CropBatches.of(listed.listing, [one for part in cuts for one in part], model.view, skip=skip)
        return crops, list(map(len, cuts)), lambda _: KeptPictures(model, outputs)
    clips = ClipBatches(
        Crops.listed(listed.listing, model.view).planes,
        listed.tracklets.rows,
        listed.tracklets.starts,
        frames=model.clips.frames,
        stride=model.clips.stride,
        batch=settings.batch,
        parts=shards,
        skip=skip,
    )
    return clips, clips.counts, lambda rows: KeptTracklets(model, outputs, rows, paths)


def list_unreadable(folder: Path, skipped: pl.DataFrame) -> None:
    """Write the pictures that were left out, `path` and `reason`, beside the shards; no file where there are none."""
    if skipped.is_empty():
        remove(folder, [UNREADABLE])
        return
    path = inside(folder, UNREADABLE)
    with atomic(path) as temporary:
        skipped.write_csv(temporary)
    log.warning("%d pictures could not be read and are left out, see %s", len(skipped), path)
