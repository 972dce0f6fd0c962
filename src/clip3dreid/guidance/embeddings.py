"""Embed training pictures and labels by the teacher, once: labels are made and guidance is read from that."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip3dreid.data.images import ADVICE
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.training_set import TrainingSet
from clip3dreid.errors import InputError
from clip3dreid.guidance.settings import FRESH, TeacherUse, check_kept
from clip3dreid.io.checks import choose
from clip3dreid.io.files import identify
from clip3dreid.io.locks import at_work
from clip3dreid.io.pictures import read_rgb
from clip3dreid.io.progress import progress
from clip3dreid.io.ranks import ALONE, Ranks
from clip3dreid.language.prompts import word_embeddings
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.model.embedding_cache import ROWS_PER_PART, Cache, EmbeddingCache, MemoryCache
from clip3dreid.model.frozen import FrozenNetwork
from clip3dreid.model.teacher import TEXTS_AT_ONCE, Teacher
from clip3dreid.model.teacher_view import View
from clip3dreid.types import TextTargets

log = logging.getLogger(__name__)

ROWS = 8192
"""Embeddings read at a time."""
# A disk that several machines share may show a file that another one has written a moment later.
_SEEN_S = 90.0


class _Viewed(Dataset[Tensor]):
    """Whole pictures as the teacher sees them, (3, h, w) uint8: resampled in the loader's workers."""

    def __init__(self, files: Sequence[Path], view: View) -> None:
        self._files, self._view = files, view

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> Tensor:
        # A copy in rows of pixels: torch does not take Pillow's read-only memory.
        planes = torch.from_numpy(np.ascontiguousarray(read_rgb(self._files[row], ADVICE).transpose(2, 0, 1)))
        return self._view(planes[None])[0]


def row_blocks(count: int) -> Sequence[Tensor]:
    """Return the numbers of so many rows, a block of at most `ROWS` at a time."""
    return torch.split(torch.arange(count), ROWS)


class TrainingEmbeddings:
    """The teacher, and its embeddings of the training pictures: each made once, when it is first asked for.

    Args:
        load: makes the teacher.
        pictures: to embed, as they are on disk.
        use: where embeddings are kept; where they are not, one pass is kept in memory, for labels and mean.
        device: where the teacher runs.
        batch: pictures at a time.
        workers: loader processes.
        ranks: the processes of the run, each of which embeds a share; what is kept in memory lies in their folder.
        kind: what this teacher's part of that folder is called.
    """

    def __init__(
        self,
        load: Callable[[], FrozenNetwork],
        pictures: TrainingSet,
        use: TeacherUse,
        *,
        device: torch.device,
        batch: int,
        workers: int,
        ranks: Ranks = ALONE,
        kind: str = "teacher",
    ) -> None:
        self.pictures, self.use, self.ranks = pictures, use, ranks
        self._kind = kind
        self._load, self._device = load, device
        self._batch, self._workers = batch, workers
        self._found: list[int] = []

    @property
    def lines(self) -> tuple[str, ...]:
        """Return what there is to say of the embeddings, in a few words; nothing where none were asked for."""
        if "cache" not in self.__dict__:
            return ()
        count = f"{self.teacher.name}: {len(self.pictures.table):,} pictures embedded"
        if self.use.cache in FRESH:
            return (f"{count}, and each anew at every step",)
        if self.use.cache == "memory":
            return (f"{count}, for this run",)
        return (f"{count}, {sum(self._found):,} of them before, in {self.use.cache_dir}",)

    @cached_property
    def teacher(self) -> FrozenNetwork:
        """Return the teacher, on its device.

        Raises:
            InputError: as the teacher.
        """
        return self._load().to(self._device)

    @cached_property
    def cache(self) -> Cache:
        """Return embeddings (N, d) by row of the training pictures.

        Raises:
            InputError: as `embed_pictures`.
        """
        kept = "memory" if self.use.cache in FRESH else self.use.cache
        alone = kept == "disk" or self.ranks.size == 1
        caches, counts = [], []
        for number, manifest in enumerate(self.pictures.manifests):
            table = manifest.part("train")
            if table.is_empty():
                continue
            with progress(f"{manifest.name} through {self.teacher.name}", len(table)) as update:
                embeddings = embed_pictures(
                    self.teacher,
                    manifest,
                    table,
                    cache=kept if alone else "disk",
                    folder=self._folder(number, alone),
                    batch=self._batch,
                    workers=self._workers,
                    progress=update,
                    ranks=self.ranks,
                )
            caches.append(embeddings)
            self._found.append(embeddings.found if isinstance(embeddings, EmbeddingCache) else 0)
            counts.append(len(table))
        return caches[0] if len(caches) == 1 else JoinedCache(caches, counts)

    def _folder(self, number: int, alone: bool) -> Path:
        """Return where a data set's embeddings lie, so that other runs with it find them too."""
        if not alone:
            return self.ranks.folder / self._kind / str(number)
        first = self.use.cache_dir
        return first if number == 0 else first.with_name(self.pictures.manifests[number].name)


class JoinedCache:
    """Embeddings of several data sets as those of one.

    Args:
        caches: of each data set.
        counts: rows of each; those of the second stand behind those of the first.
    """

    def __init__(self, caches: Sequence[Cache], counts: Sequence[int]) -> None:
        self.width = caches[0].width
        self._caches = list(caches)
        self._ends = np.cumsum(counts).tolist()

    def read(self, rows: Tensor) -> Tensor:
        """Return rows (B,) int64 to embeddings (B, d) float32, on the device of the rows."""
        embeddings = torch.empty(len(rows), self.width, device=rows.device)
        start = 0
        for cache, end in zip(self._caches, self._ends, strict=True):
            mine = ((rows >= start) & (rows < end)).nonzero().flatten()
            if len(mine):
                embeddings[mine] = cache.read(rows[mine] - start)
            start = end
        return embeddings


def text_targets(
    teacher: Teacher,
    vocabulary: Vocabulary,
    chosen: npt.NDArray[np.int64],
    confidence: npt.NDArray[np.float32],
    *,
    mode: str,
    by: Literal["person", "row"],
) -> TextTargets:
    """Return the text tokens of labels, in the teacher's space: what local guidance transports features to.

    Args:
        teacher: its text tower.
        vocabulary: the words, G groups of them.
        chosen: (U, G) index into `vocabulary.flat`, as `language.labels.tokens` gives it.
        confidence: (U, G) lead of each word over its group's second.
        mode: `descriptor`: one embedding a word, the mean over its prompts, as the method's release has sixteen; or
            `words`: the token-level states of the sentence that says all of the words.
        by: whose labels they are.

    Returns:
        U rows of L tokens; L is G, or the tokens of the longest sentence, each as sure as the mean word.

    Raises:
        InputError: if the mode is unknown, or a sentence is longer than the teacher reads.
    """
    words = torch.from_numpy(
        word_embeddings(vocabulary.prompts, lambda texts: teacher.embed_texts(texts).cpu().numpy())
    )
    sizes = tuple(map(len, vocabulary.groups.values()))
    if mode == "descriptor":
        return TextTargets(words, torch.from_numpy(chosen), torch.from_numpy(confidence), by, words, sizes)
    choose("labels.tokens", mode, ("descriptor", "words"))
    names = [word for _, word in vocabulary.flat]
    said = [vocabulary.prompts.sentence([names[index] for index in row]) for row in chosen]
    # People of the same words share a sentence.
    different = list(dict.fromkeys(said))
    parts: list[Tensor] = []
    for start in range(0, len(different), TEXTS_AT_ONCE):
        states, mask = teacher.embed_tokens(different[start : start + TEXTS_AT_ONCE])
        parts += [sentence[kept].cpu() for sentence, kept in zip(states, mask, strict=True)]
    lengths = torch.tensor([len(part) for part in parts])
    starts = lengths.cumsum(0) - lengths
    place = {text: index for index, text in enumerate(different)}
    rows = torch.tensor([place[text] for text in said])
    step = torch.arange(int(lengths.max()))
    index = torch.where(step < lengths[rows, None], starts[rows, None] + step, -1)
    mean = torch.from_numpy(confidence).mean(1, keepdim=True).expand(-1, len(step))
    return TextTargets(torch.cat(parts), index, mean.contiguous(), by, words, sizes)


def embed_pictures(
    teacher: FrozenNetwork,
    manifest: Manifest,
    table: pl.DataFrame,
    *,
    cache: str,
    folder: Path,
    batch: int,
    workers: int,
    progress: Callable[[int], None],
    ranks: Ranks = ALONE,
) -> Cache:
    """Embed the pictures of a table as they are on disk, not augmented, or find them embedded already.

    One run at a time computes what a folder lacks, each of its processes a share of the parts. Others that come for
    it wait and then find it done; a folder that lacks nothing is only read. In memory nothing is shared: every
    process computes all.

    Args:
        teacher: on the device where it is to run.
        manifest: whose pictures.
        table: N of its rows; row i of the result is theirs.
        cache: `memory`, or `disk`: what is in the folder is not computed again, and a killed run goes on there.
        folder: of the cache on disk.
        batch: pictures at a time.
        workers: loader processes.
        progress: called with the number of pictures done so far, of several processes as if all were as fast.
        ranks: the processes that embed them together.

    Returns:
        Embeddings (N, d) by row.

    Raises:
        InputError: if a picture cannot be read, the folder holds another teacher's embeddings, processes do not see
            each other's parts, or `cache` is unknown.
    """
    check_kept(cache)
    files = manifest.files(table)
    if cache == "memory":
        rows = range(len(files))
        parts = [rows[start : start + ROWS_PER_PART] for start in range(0, len(rows), ROWS_PER_PART)]
        kept = torch.empty(len(files), teacher.width)

        def keep(part: range, embeddings: Tensor) -> None:
            kept[part.start : part.stop] = embeddings

        _embed(teacher, files, parts, keep, batch, workers, progress)
        return MemoryCache(kept)
    identities = identify(manifest.root, table["path"].to_list())

    def opened() -> EmbeddingCache:
        return EmbeddingCache(
            folder,
            identities,
            teacher=teacher.name,
            fingerprint=teacher.fingerprint,
            width=teacher.width,
            # Each process has a part at least.
            rows_per_part=min(ROWS_PER_PART, max(1, math.ceil(len(files) / ranks.size))),
        )

    with ExitStack() as held:
        stored = opened() if ranks.first else None

        def look() -> list[tuple[int, int]]:
            nonlocal stored
            assert stored is not None
            if stored.missing():
                held.enter_context(at_work(folder, "embeds pictures", wait=True, tidy=True))
                # Whoever was there before may have made them.
                stored = opened()
                _begin(stored)
            return [(rows.start, rows.stop) for rows in stored.missing()]

        parts = [range(*rows) for rows in ranks.first_tells("missing embeddings", look)]
        stored = opened() if stored is None else stored
        if parts:
            _complete(stored, parts, teacher, files, batch, workers, progress, ranks)
    progress(len(files))
    return stored


def _begin(stored: EmbeddingCache) -> None:
    """Make a folder ready; it is locked."""
    stored.begin()
    if stored.stale:
        log.warning(
            "%s: %d parts are of other or changed pictures, or damaged, and are computed anew",
            stored.folder,
            stored.stale,
        )


def _complete(
    stored: EmbeddingCache,
    parts: Sequence[range],
    teacher: FrozenNetwork,
    files: Sequence[Path],
    batch: int,
    workers: int,
    progress: Callable[[int], None],
    ranks: Ranks,
) -> None:
    """Compute the parts that a cache lacks, this process its share, and wait for the others."""
    wanted, mine = sum(map(len, parts)), ranks.mine(parts)
    done, share = len(files) - wanted, max(1, sum(map(len, mine)))
    progress(done)
    _embed(
        teacher,
        files,
        mine,
        stored.put,
        batch,
        workers,
        lambda count: progress(done + count * wanted // share),
    )
    ranks.wait("embedded")
    until = time.monotonic() + _SEEN_S
    stored.look_again()
    while stored.missing():
        time.sleep(0.5)
        stored.look_again()
        if time.monotonic() > until:
            raise InputError(
                f"process {ranks.rank} does not see {len(stored.missing())} parts that others of this run have put "
                f"into {stored.folder}; give all a folder on one disk (model.teacher.cache_dir, hydra.run.dir)"
            )


def _embed(
    teacher: FrozenNetwork,
    files: Sequence[Path],
    parts: Sequence[range],
    put: Callable[[range, Tensor], None],
    batch: int,
    workers: int,
    progress: Callable[[int], None],
) -> None:
    """Hand over the embeddings part by part; one loader for all, or its workers would idle between parts."""
    wanted = [row for part in parts for row in part]
    loader = DataLoader(
        _Viewed([files[row] for row in wanted], teacher.view),
        batch_size=batch,
        num_workers=min(workers, max(1, len(wanted) // batch)),
        pin_memory=teacher.device.type == "cuda",
        # A loader draws a seed when it begins: of its own generator, or what is drawn for the training, heads for
        # one, would depend on whether the embeddings were there already.
        generator=torch.Generator(),
    )
    waiting = iter(parts)
    part, room, filled = range(0), torch.empty(0, teacher.width), 0
    count = 0
    for images in loader:
        embedded = teacher(images).cpu()
        count += len(embedded)
        while len(embedded):
            if filled == len(part):
                # New for every part: who is handed one may keep it.
                part, filled = next(waiting), 0
                room = torch.empty(len(part), teacher.width)
            taken = embedded[: len(part) - filled]
            room[filled : filled + len(taken)] = taken
            filled, embedded = filled + len(taken), embedded[len(taken) :]
            if filled == len(part):
                put(part, room)
        progress(count)
