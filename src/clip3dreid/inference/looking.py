"""Look at many pictures, wherever they are: folders, tables, patterns, files, or in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Unpack

import polars as pl
import torch
from torch.utils.data import DataLoader

from clip3dreid.data.box_settings import Boxes
from clip3dreid.data.crops import CropBatches, cut_between_pictures
from clip3dreid.data.images import to_unit
from clip3dreid.data.listing import Listing, list_pictures
from clip3dreid.errors import InputError
from clip3dreid.inference.pictures import Pictures, batches
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.io.pictures import SUFFIXES, UNREAD_SUFFIXES
from clip3dreid.io.progress import progress as shown
from clip3dreid.io.video_places import video_place

if TYPE_CHECKING:  # a model looks by this
    from clip3dreid.inference.model import Outputs, ReidModel

log = logging.getLogger(__name__)


class Looking(TypedDict, total=False):
    """How pictures are looked at."""

    flip: bool | None
    """Look at the mirror image too, as evaluation does; None, the default: as the model's `flip` says."""
    maps: bool
    """Keep feature maps too, which are large; not by default."""
    batch_size: int
    """Pictures at a time; 64."""
    workers: int
    """Processes that decode files, where there is more than a batch of them; 0."""
    progress: bool
    """Show a bar; not by default."""
    on_error: Literal["fail", "skip"]
    """`skip` files that cannot be read, with a line in the log; or `fail`, the default, at the first."""


class Seen(NamedTuple):
    """What was looked at."""

    batches: list[Outputs]
    """What the model says of the pictures that could be read, on the CPU; empty where there are none."""
    table: pl.DataFrame
    """N rows of all pictures: `path`, null of pictures in memory, and what a table says beside."""
    rows: list[int]
    """Those that could be read, ascending."""


def look_at(model: ReidModel, pictures: Pictures, **how: Unpack[Looking]) -> Seen:
    """Look at pictures.

    Args:
        model: that looks.
        pictures: a folder, a table with a column `path`, boxes in frames, a pattern such as `crops/*.jpg`; or
            pictures, files or in memory.
        how: of `Looking`.

    Raises:
        InputError: if one cannot be read, or none of several.
    """
    check_looking(how)
    flip, maps, skip = how.get("flip"), how.get("maps", False), how.get("on_error", "fail") == "skip"
    batch_size, workers = how.get("batch_size", 64), how.get("workers", 0)
    listing = files_of(pictures)
    # Somebody may have called train(), and one batch would then change the running statistics.
    model.eval()
    made: list[Outputs] = []
    if listing is None:
        with torch.no_grad():
            assert not isinstance(pictures, Boxes)
            ready = batches(pictures, batch_size, model.view, model.device)
            made = [model(batch, flip=flip, maps=maps).cpu() for batch in ready]
        count = sum(len(one.embedding) for one in made)
        table = pl.DataFrame({"path": [None] * count}, schema={"path": pl.String})
        return Seen(made, table, list(range(count)))
    table = listing.table
    paths = [listing.root / path for path in table["path"]]
    ranges = cut_between_pictures(table["path"], range(len(paths)), batch_size)
    crops = CropBatches.of(listing, ranges, model.view, skip=skip, advice="give one that can be read")
    # A process costs more than a batch.
    loader: Any = DataLoader(crops, batch_size=None, num_workers=min(workers, len(ranges) - 1))
    rows: list[int] = []
    skipped: list[tuple[int, str]] = []
    watch = shown("looking at pictures", len(paths)) if how.get("progress") else nullcontext(unseen)
    with watch as update, torch.no_grad():
        for part in loader:
            skipped += part.skipped
            if len(part.rows):
                rows += part.rows.tolist()
                # A frame with more boxes is one batch of the loader all the same.
                pieces = part.images.split(batch_size)
                made += [
                    model(to_unit(piece.to(model.device)), flip=flip, maps=maps).cpu() for piece in pieces
                ]
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


def check_looking(how: Looking) -> None:
    """Refuse values that none of `Looking` can be.

    Raises:
        InputError: naming the first.
    """
    check_number("batch_size", how.get("batch_size", 64), Range(1), whole=True)
    check_number("workers", how.get("workers", 0), Range(0), whole=True)
    choose("on_error", how.get("on_error", "fail"), ("skip", "fail"))


def files_of(pictures: Any) -> Listing | None:
    """Return the files that pictures are; None where they are in memory.

    Raises:
        InputError: if a folder, table, pattern or file of boxes has none.
    """
    if isinstance(pictures, Boxes):
        return list_pictures(pictures)
    if isinstance(pictures, str | Path):
        place = Path(pictures).expanduser()
        # Not of pathlib, which raises where a name is too long.
        there = os.path.exists(place)  # noqa: PTH110
        if (
            is_named_like_a_picture(place)
            and not (there and place.is_dir())
            and not _is_pattern(place, there)
        ):
            # What is wrong with it is said where it is opened.
            return _listed([place])
        if not _is_pattern(place, there):
            return list_pictures(place)
        root = Path(place.anchor)
        found = sorted(path for path in root.glob(str(place.relative_to(root))) if path.is_file())
        if not found:
            raise InputError(f"pictures={pictures} fits no file; give a folder, a table or another pattern")
        return _listed(found)
    if isinstance(pictures, Sequence) and pictures and all(isinstance(one, str | Path) for one in pictures):
        return _listed([Path(one).expanduser() for one in pictures])
    return None


def is_named_like_a_picture(path: Path) -> bool:
    """Return whether a name ends as those of pictures do, readable or not, or names a place in a video."""
    return path.suffix.lower() in SUFFIXES | UNREAD_SUFFIXES or video_place(path) is not None


def _is_pattern(place: Path, there: bool) -> bool:
    return not there and any(letter in str(place) for letter in "*?[")


def _listed(files: Sequence[Path]) -> Listing:
    return Listing(Path(), pl.DataFrame({"path": [str(path) for path in files]}))


def unseen(done: int) -> None:
    """Show nobody how far the work is."""
