"""Look at a run's test pictures, or tracklets, with its checkpoint: features, rankings, distances, words, maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.data.clips import ClipSettings
from clip3dreid.data.evaluation_sets import EvaluationSet, evaluation_sets
from clip3dreid.errors import InputError
from clip3dreid.inference.model import Outputs, ReidModel, Shape, load
from clip3dreid.inference.pictures import batches
from clip3dreid.inference.word_plan import WordPlan, check_words, plans_of_maps
from clip3dreid.io.pictures import read_rgb
from clip3dreid.io.run_folder import LAST_CHECKPOINT
from clip3dreid.model.card import clip_size
from clip3dreid.retrieval.galleries import galleries
from clip3dreid.retrieval.protocol import PictureLabels, Protocol, ProtocolSet, encode, select
from clip3dreid.review.run import ReviewedRun
from clip3dreid.review.settings import ReportSettings
from clip3dreid.review.tracklets import TestTracklets, tracklets_of
from clip3dreid.training.data import RunData, read_data

_MOST_QUERIES = 2000
"""Whose distances to the whole gallery are counted; of more as many are drawn."""
_BINS = 60
_BATCH = 64
"""Pictures at a time, of those that are shown."""
_DISTANCES = {"cosine": "distance, 1 - cosine", "euclidean": "distance, Euclidean"}


class Ranked(NamedTuple):
    """What one query found, junk left out."""

    rows: npt.NDArray[np.int64]
    """(n,) gallery rows, the nearest first."""
    right: npt.NDArray[np.bool_]
    """(n,) whether they show the query's person."""
    distance: npt.NDArray[np.float64]
    """(n,) ascending."""

    @property
    def first_hit(self) -> int | None:
        """Return the rank of the first positive, from 1; None where there is none."""
        return int(self.right.argmax()) + 1 if self.right.any() else None


class PairDistances(NamedTuple):
    """How far pictures of kinds of pairs are apart."""

    counts: Mapping[str, npt.NDArray[np.float64]]
    """Kind -> (bins,) pairs."""
    edges: npt.NDArray[np.float64]
    """(bins + 1,)."""
    what: str
    queries: int
    """How many were looked at."""


@dataclass(frozen=True)
class TestPictures:
    """Queries and gallery of a run's data set, as its model sees them.

    Attributes:
        model: of the run.
        found: the pictures and their labels.
        protocols: that they are evaluated under.
        metric: of the ranking.
        seen: what the model says of all pictures, queries first.
        tracklets: whose middle frames the pictures are; None: each is by itself.
    """

    __test__ = False  # no test, whatever pytest thinks of the name

    model: ReidModel
    found: EvaluationSet
    protocols: ProtocolSet
    metric: str
    seen: Outputs
    tracklets: TestTracklets | None = None

    @property
    def noun(self) -> str:
        """Return what queries and gallery are, in the plural."""
        return "pictures" if self.tracklets is None else "tracklets"

    @cached_property
    def features(self) -> Tensor:
        """Return (N, F) float32, of length 1 where cosines are compared."""
        features = self.seen.embedding.float()
        return F.normalize(features, dim=1) if self.metric == "cosine" else features

    @cached_property
    def labels(self) -> tuple[PictureLabels, PictureLabels]:
        """Return the labels of queries and gallery as codes."""
        return encode(self.found.query, self.found.gallery)

    def distances(self, rows: Tensor) -> Tensor:
        """Return the distances (R, G) of some queries (R,) to the whole gallery."""
        query, gallery = self.features[rows], self.features[len(self.found.query) :]
        if self.metric == "cosine":
            return 1 - query @ gallery.T
        return torch.cdist(query, gallery)

    def ranker(self, protocol: Protocol) -> Callable[[int], Ranked]:
        """Return what ranks the gallery for a query, by its row; where galleries are drawn, the whole one.

        Raises:
            InputError: if the protocol does not fit the labels.
        """
        allowed = select(protocol, self.found.query, self.found.gallery).gallery
        query, gallery = self.labels
        part = torch.zeros(len(self.found.query), dtype=torch.int64)
        masks = [allowed]
        if protocol.gallery_people:
            masks = []
            for number, one in enumerate(galleries(protocol, self.found.query, self.found.gallery)):
                part[one.query] = number
                inside = torch.zeros_like(allowed)
                inside[one.gallery] = True
                masks.append(allowed & inside)

        def ranked(row: int) -> Ranked:
            one = query.at(torch.tensor([row]))
            same = gallery.person == one.person
            rows = (masks[int(part[row])] & ~(same & protocol.junk(one, gallery))).nonzero().flatten()
            distance = self.distances(torch.tensor([row]))[0, rows]
            order = torch.argsort(distance, stable=True)
            return Ranked(rows[order].numpy(), same[rows[order]].numpy(), distance[order].double().numpy())

        return ranked

    def pair_distances(self, seed: int) -> PairDistances:
        """Count distances by kind of pair: one person in the same or in other clothes, other people.

        Pairs of one person by one camera, and a picture with itself, are left out, as protocols leave them out.

        Args:
            seed: of the draw of queries, where there are very many.
        """
        query, gallery = self.labels
        rows = torch.arange(len(self.found.query))
        if len(rows) > _MOST_QUERIES:
            drawn = np.random.default_rng(seed).choice(len(rows), _MOST_QUERIES, replace=False)
            rows = torch.from_numpy(np.sort(drawn))
        known = bool((query.clothes >= 0).all() and (gallery.clothes >= 0).all())
        same_name, other_name = "same person, same clothes", "same person, other clothes"
        kinds = (same_name, other_name, "other people") if known else ("same person", "other people")
        # To the widest first: edges must be known before anything is counted.
        pieces = torch.split(rows, 256)
        low, high = 0.0, 0.0
        for piece in pieces:
            block = self.distances(piece)
            low, high = min(low, float(block.min())), max(high, float(block.max()))
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        counts = {kind: np.zeros(_BINS) for kind in kinds}
        for piece in pieces:
            block = self.distances(piece)
            one = query.at(piece[:, None])
            same = gallery.person[None] == one.person
            camera = (gallery.camera[None] == one.camera) & (one.camera >= 0)
            itself = (gallery.picture[None] == one.picture) & (one.picture >= 0)
            asked = same & ~camera & ~itself
            clothes = gallery.clothes[None] == one.clothes
            masks = (asked & clothes, asked & ~clothes, ~same) if known else (asked, ~same)
            for kind, mask in zip(kinds, masks, strict=True):
                counts[kind] += np.histogram(block[mask].numpy(), edges)[0]
        return PairDistances(counts, edges, _DISTANCES[self.metric], len(rows))

    def components(self, rows: Sequence[int]) -> tuple[npt.NDArray[np.float64], list[float]]:
        """Return the first two principal components of pictures (N,) as (N, 2), and their shares of the variance."""
        features = self.features[list(rows)].double()
        centred = features - features.mean(0)
        left, values, _ = torch.linalg.svd(centred, full_matrices=False)
        share = values.square() / values.square().sum().clamp(min=1e-12)
        return (left[:, :2] * values[:2]).numpy(), share[:2].tolist()

    def crop(self, file: Path) -> Image.Image:
        """Return a picture as the model is given it, which is what its maps cover."""
        return Image.fromarray(self.model.view(read_rgb(file)).transpose(1, 2, 0))

    def feature_maps(self, rows: Sequence[int]) -> Tensor:
        """Return the last feature maps of pictures, by row, queries first.

        Of a tracklet it is that of the clip around its middle frame, of which `of_middle` takes what lies over that.

        Returns:
            (N, C, h, w) float32 on the CPU; (N, C, T x h, w) where guides saw all frames, one above the other.
        """
        with torch.no_grad():
            return torch.cat([self.model.student(images).map.float().cpu() for images in self._ready(rows)])

    def _ready(self, rows: Sequence[int]) -> Iterator[Tensor]:
        """Yield pictures, or a clip of each tracklet, as the model takes them."""
        if self.tracklets is None:
            files = [self.found.files[row] for row in rows]
            yield from batches(files, _BATCH, self.model.view, self.model.device)
            return
        size = max(1, _BATCH // self.tracklets.size.frames)
        for start in range(0, len(rows), size):
            yield self.tracklets.around_middle(self.model, rows[start : start + size])

    def of_middle(self, values: Tensor) -> Tensor:
        """Return of values at every position of `feature_maps`, (…, h', w), those of the middle frame, (…, h, w)."""
        frames = 1 if self.tracklets is None else self.tracklets.size.frames
        if frames == 1 or getattr(self.model.student, "guided", "middle") != "all":
            return values
        # (…, T x h, w)
        return values.chunk(frames, -2)[frames // 2]

    def activations(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return how strongly each position of pictures answers, (N, h, w): the length of its feature."""
        length: npt.NDArray[np.float32] = self.of_middle(self.feature_maps(rows).norm(dim=1)).numpy()
        return length

    def plans(self, rows: Sequence[int]) -> list[WordPlan]:
        """Return which part of pictures answers to which word, as `word_plans`.

        Raises:
            InputError: if the model has not learnt words.
        """
        check_words(self.model)
        plans = plans_of_maps(self.model, self.feature_maps(rows))
        return [plan._replace(mass=self.of_middle(plan.mass)) for plan in plans]

    def shape(self, rows: Sequence[int]) -> Shape:
        """Return the bodies that the model reads out of pictures, or out of all clips of tracklets.

        Raises:
            InputError: as `ReidModel.shape`.
        """
        if self.tracklets is None:
            return self.model.shape([self.found.files[row] for row in rows])
        _ = self.model.body  # refused before the work
        betas = self.tracklets.look(self.model, rows, flip=False).betas
        assert betas is not None
        return self.model.bodies(betas)


def look_at_test(
    run: ReviewedRun, data: RunData, settings: ReportSettings, progress: bool = False
) -> TestPictures:
    """Look at all test pictures of a run with its checkpoint.

    Args:
        run: the run.
        data: its data set proper.
        settings: of the report.
        progress: show a bar.

    Raises:
        InputError: if checkpoint or pictures are not there or cannot be read.
    """
    model = load(
        _checkpoint(run.folder, settings.checkpoint),
        device=_device(settings.device),
        trusted=settings.trusted,
    )
    manifest = read_data([data], run.results.seed, max(1, settings.workers))[0]
    size = clip_size(model.card, model.name)
    sets = evaluation_sets([manifest], "test", clips=size is not None)
    if not sets:
        raise InputError(f"{manifest.root} has no test pictures")
    (found, *_), flip, workers = sets, run.results.flip, settings.workers
    tracklets = tracklets_of(manifest.root, found, None if size is None else ClipSettings(*size))
    if tracklets is None:
        seen = model.look(
            found.files, flip=flip, batch_size=settings.batch, workers=workers, progress=progress
        )
    else:
        seen = tracklets.look(model, flip=flip, batch=settings.batch, workers=workers, progress=progress)
    return TestPictures(model, found, data.test, run.results.metric or "cosine", seen, tracklets)


def _checkpoint(folder: Path, name: str) -> Path:
    """Return the checkpoint of a run.

    Raises:
        InputError: if it is not there.
    """
    place = folder / LAST_CHECKPOINT.with_name(f"{name}.ckpt")
    if not place.is_file():
        raise InputError(f"the checkpoint is not there: {place}")
    return place


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def outfits(table: pl.DataFrame) -> dict[str, list[int]]:
    """Return person -> a row of each of their outfits, the first of each; of those with at least two."""
    rows: dict[str, dict[str, int]] = {}
    for row, (person, clothes) in enumerate(table.select("person", "clothes").iter_rows()):
        if clothes is not None:
            rows.setdefault(person, {}).setdefault(clothes, row)
    return {person: list(firsts.values()) for person, firsts in rows.items() if len(firsts) > 1}
