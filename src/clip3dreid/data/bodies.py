"""The second stream of a training step: textureless bodies whose shapes are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch.utils.data import Dataset

from clip3dreid.data.images import FileRows, PictureRows, TrainView
from clip3dreid.data.sampling import ResumableBatches, exchanged
from clip3dreid.data.truth_file import TRUTH, has_truth, read_truth, shows_clothes
from clip3dreid.errors import InputError
from clip3dreid.io.formats import decoding
from clip3dreid.io.pictures import Pixels
from clip3dreid.types import BodyBatch

COMMAND_MB = 49.0
"""10^6 bytes that `COMMAND` writes."""
COMMAND = "clip3dreid synthesize layout=bodies out={root} train_people=2000 test_people=200 seed=1"

ADVICE = "make the folder of bodies (bodies.root) anew"
"""What to do about a body whose picture cannot be read."""


class BodyTable(NamedTuple):
    """Pictures of bodies, textureless or, where that is asked for, dressed."""

    files: list[Path]
    """N pictures."""
    betas: npt.NDArray[np.float32]
    """(N, K) shape coefficients."""
    body: npt.NDArray[np.int64]
    """(N,) 0..bodies-1."""

    @property
    def bodies(self) -> int:
        """Return how many bodies there are."""
        return int(self.body.max()) + 1

    def shuffled(self, seed: int) -> BodyTable:
        """Return the pictures with each body's coefficients exchanged for another's: a control that guides nobody."""
        _, first = np.unique(self.body, return_index=True)
        return self._replace(betas=self.betas[first][exchanged(self.bodies, seed)][self.body])


def read_bodies(
    root: Path, split: str = "train", *, dressed: bool = False, key: str = "bodies.root"
) -> BodyTable:
    """Read the folder that `synthesize layout=bodies` writes.

    Args:
        root: with `train/`, `test/` and `truth.parquet`.
        split: `train` or `test`.
        dressed: whether clothed people may be there.
        key: of the config that names the folder, for messages.

    Raises:
        InputError: if there is no such folder, or it holds something else; the message says how to make one.
    """
    command = COMMAND.format(root=root) + (" layout.dress=dressed" if dressed else "")
    if not has_truth(root):
        kind = "people of known shape" if dressed else "textureless bodies"
        raise InputError(f"no {kind} in {root} ({key}): make them with {command}")
    again = f"make it anew: {command} overwrite=true"
    kind = "the truth about bodies"
    table = read_truth(root, columns=("path", "split", "person", "betas"), kind=kind, advice=again)
    with decoding(root / TRUTH, kind, again):
        table = table.with_columns(pl.col("path", "split", "person").cast(pl.String))
    if not dressed and shows_clothes(root, again):
        raise InputError(
            f"{root} ({key}) shows clothed people; give textureless bodies ({COMMAND.format(root='FOLDER')}), "
            "or bodies.dressed=true if clothed people are meant"
        )
    table = table.filter(pl.col("split") == split)
    if table.is_empty():
        raise InputError(f"{root} holds no bodies to {split} on; make some: {command} overwrite=true")
    names = table["person"].unique(maintain_order=True)
    body = table["person"].replace_strict(names, np.arange(len(names)), return_dtype=pl.Int64)
    try:
        betas = np.array(table["betas"].to_list(), np.float32)
    except (TypeError, ValueError):  # text, nothing at all, or lists of different lengths
        betas = np.empty(0, np.float32)
    if betas.ndim != 2 or not np.isfinite(betas).all():
        raise InputError(f"{root / TRUTH}: betas are not as many finite numbers for every body; {again}")
    return BodyTable([root / name for name in table["path"]], betas, body.to_numpy())


class BodyStream(NamedTuple):
    """A second stream of training pictures."""

    table: BodyTable
    batch: int
    """S, pictures of the global batch."""
    view: TrainView


class BodySample(NamedTuple):
    """One picture on its way to `BodyBatch`."""

    image: Pixels
    """(3, H, W)."""
    betas: npt.NDArray[np.float32]
    """(K,)."""
    body: int


class BodyPictures(Dataset[BodySample]):
    """Augmented pictures of bodies, indexed by `(row, seed)` as `BodyBatches` yields them.

    Args:
        table: whose bodies they show.
        view: augmentation.
        pictures: N of them, such as `images.keep` made of the files; None: they are read each time.
    """

    def __init__(self, table: BodyTable, view: TrainView, pictures: PictureRows | None = None) -> None:
        self._pictures = FileRows(table.files, ADVICE) if pictures is None else pictures
        self._betas, self._body = table.betas, table.body
        self._view = view

    def __len__(self) -> int:
        return len(self._body)

    def __getitem__(self, index: tuple[int, int]) -> BodySample:
        row, seed = index
        image, _ = self._view(self._pictures[row], seed)
        return BodySample(image, self._betas[row], int(self._body[row]))


def collate_bodies(samples: Sequence[BodySample]) -> BodyBatch:
    """Join samples: images (S, 3, H, W) uint8, betas (S, K) float32, body (S,) int64."""
    images, betas, body = zip(*samples, strict=True)
    return BodyBatch(
        images=torch.from_numpy(np.stack(images)),
        betas=torch.from_numpy(np.stack(betas)),
        body=torch.tensor(body),
    )


class BodyBatches(ResumableBatches):
    """Batches of S bodies, as many an epoch as the people's stream has, for a loader's `batch_sampler`.

    The pictures are shuffled and dealt out; when they run out they are shuffled again. A global batch depends on seed
    and epoch alone; processes take contiguous slices of it.

    Args:
        count: pictures there are.
        batch: S, of the global batch.
        batches: an epoch.
        seed: of order and augmentation.
        rank: this process, 0..world_size-1.
        world_size: number of processes.

    Raises:
        InputError: if S is not positive, not divisible among the processes, or more than the pictures.
    """

    def __init__(
        self, count: int, *, batch: int, batches: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__()
        if batch < 1 or batch % world_size:
            raise InputError(
                f"bodies.batch={batch} cannot be divided among {world_size} process(es); give a positive multiple"
            )
        if count < batch:
            raise InputError(
                f"there are {count} pictures of textureless bodies, fewer than bodies.batch={batch}; "
                "make more of them or lower it"
            )
        self.count, self.batch, self.batches, self.seed = count, batch, batches, seed
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return self.batches

    def plan(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this process's slice of each global batch as `(row, seed of the augmentation)` pairs."""
        # A third number keeps these draws apart from those of `IdentityBatches`.
        rng = np.random.default_rng([self.seed, self.epoch, 2])
        per_round = self.count // self.batch
        size = self.batch // self.world_size
        mine = slice(self.rank * size, (self.rank + 1) * size)
        for number in range(self.batches):
            if number % per_round == 0:
                order = rng.permutation(self.count)
            place = number % per_round * self.batch
            rows = order[place : place + self.batch]
            seeds = rng.integers(2**63, size=self.batch)
            yield list(zip(rows[mine].tolist(), seeds[mine].tolist(), strict=True))
