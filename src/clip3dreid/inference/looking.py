"""Look at many pictures, wherever they are: folders, tables, patterns, files, or in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import polars as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader

from clip3dreid.data.crops import CropBatches
from clip3dreid.data.images import to_unit
from clip3dreid.data.listing import Listing, list_pictures
from clip3dreid.errors import InputError
from clip3dreid.inference.pictures import Pictures, batches
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.io.progress import progress as shown
from clip3dreid.io.table_files import BOX

if TYPE_CHECKING:  # a model looks by this
    from clip3dreid.inference.model import Outputs, ReidModel

log = logging.getLogger(__name__)

OnError = Literal["fail", "skip"]
PICTURES = frozenset(Image.registered_extensions())
"""Ends of the names of pictures."""


class Seen(NamedTuple):
    """What was looked at."""

    batches: list[Outputs]
    """What the model says of the pictures that could be read, on the CPU; empty where there are none."""
    table: pl.DataFrame
    """N rows of all pictures: `path`, null of pictures in memory, and what a table says beside."""
    rows: list[int]
    """Those that could be read, ascending."""


def look_at(
    model: ReidModel,
    pictures: Pictures,
    *,
    flip: bool | None,
    batch_size: int,
    workers: int,
    progress: bool,
    on_error: OnError,
) -> Seen:
    """Look at pictures.

    Args:
        model: that looks.
        pictures: a folder, a table with a column `path`, a pattern such as `crops/*.jpg`; or pictures, files or in
            memory.
        flip: look at mirror images too; None: as the model says.
        batch_size: pictures at a time.
        workers: processes that decode files, where there is more than a batch of them.
        progress: show a bar.
        on_error: `skip` files that cannot be read, and say so in the log; or `fail`.

    Raises:
        InputError: if one cannot be read, or none of several.
    """
    check_number("batch_size", batch_size, Range(1), whole=True)
    check_number("workers", workers, Range(0), whole=True)
    choose("on_error", on_error, ("skip", "fail"))
    listing = files_of(pictures)
    # Somebody may have called train(), and one batch would then change the running statistics.
    model.eval()
    made: list[Outputs] = []
    if listing is None:
        with torch.no_grad():
            ready = batches(pictures, batch_size, model.view, model.device)
            made = [model(batch, flip=flip).cpu() for batch in ready]
        count = sum(len(one.embedding) for one in made)
        table = pl.DataFrame({"path": [None] * count}, schema={"path": pl.String})
        return Seen(made, table, list(range(count)))
    table = listing.table
    paths = [listing.root / path for path in table["path"]]
    starts = range(0, len(paths), batch_size)
    ranges = [range(start, min(start + batch_size, len(paths))) for start in starts]
    boxes = table.select(BOX).to_numpy() if BOX[0] in table.columns else None
    crops = CropBatches(paths, boxes, ranges, model.view, on_error == "skip", "give one that can be read")
    # A process costs more than a batch.
    loader: Any = DataLoader(crops, batch_size=None, num_workers=min(workers, len(ranges) - 1))
    rows: list[int] = []
    skipped: list[tuple[int, str]] = []
    watch = shown("looking at pictures", len(paths)) if progress else nullcontext(_nobody)
    with watch as update, torch.no_grad():
        for part in loader:
            skipped += part.skipped
            if len(part.rows):
                rows += part.rows.tolist()
                made.append(model(to_unit(part.images).to(model.device), flip=flip).cpu())
            update(len(rows) + len(skipped))
    if skipped:
        row, reason = skipped[0]
        log.warning(
            "%d of %d pictures could not be read, first %s: %s", len(skipped), len(paths), paths[row], reason
        )
    if not made and paths:
        raise InputError(f"none of {len(paths)} pictures could be read, first {paths[0]}; give others")
    named = pl.Series([str(path) for path in paths], dtype=pl.String)
    return Seen(made, table.with_columns(path=named), rows)


def files_of(pictures: Any) -> Listing | None:
    """Return the files that pictures are; None where they are in memory.

    Raises:
        InputError: if a folder, table or pattern has none.
    """
    if isinstance(pictures, str | Path):
        place = Path(pictures).expanduser()
        if place.is_file() and place.suffix.lower() in PICTURES:
            return Listing(Path(), pl.DataFrame({"path": [str(place)]}))
        if place.exists() or not any(letter in str(place) for letter in "*?["):
            # What is named like a picture is one, and its own message says what is wrong with it.
            one = place.suffix.lower() in PICTURES and not place.is_dir()
            return Listing(Path(), pl.DataFrame({"path": [str(place)]})) if one else list_pictures(place)
        root = Path(place.anchor)
        found = sorted(str(path) for path in root.glob(str(place.relative_to(root))) if path.is_file())
        if not found:
            raise InputError(f"pictures={pictures} fits no file; give a folder, a table or another pattern")
        return Listing(Path(), pl.DataFrame({"path": found}))
    if isinstance(pictures, Sequence) and pictures and all(isinstance(one, str | Path) for one in pictures):
        return Listing(Path(), pl.DataFrame({"path": [str(Path(one).expanduser()) for one in pictures]}))
    return None


def _nobody(done: int) -> None:
    """Show nobody how far the work is."""
