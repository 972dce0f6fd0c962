"""Embed queries and galleries with a student, rank them, and report: the LightningModule of evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast, get_args

import polars as pl
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from clip3dreid.data.clips import clip_counts
from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.evaluation_sets import EvaluationSet
from clip3dreid.errors import InputError
from clip3dreid.inference.features import (
    Layer,
    RetrievalFeatures,
    feature_width,
    part_layers,
    retrieval_features,
)
from clip3dreid.inference.parts import EMBEDDING, Feature
from clip3dreid.io.checks import choose
from clip3dreid.model.network_file import AnyStudent
from clip3dreid.retrieval.distributed import gallery_share, gather_evaluation
from clip3dreid.retrieval.evaluation import Reranking, evaluate, query_table, shareable
from clip3dreid.retrieval.protocol import Protocol, Protocols
from clip3dreid.retrieval.settings import Distance, open_set_rates
from clip3dreid.types import Batch

log = logging.getLogger(__name__)

# Rows that travel between processes at a time when features are exchanged: 64 MB at 4,096 float32 columns.
EXCHANGE_ROWS = 4096


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers, in place: those of the state, others are constants.

    In training each process has running statistics of its own. Pictures embedded by different processes must come
    from one and the same model, and it must be the one that is saved.
    """
    state = module.state_dict()
    for name, buffer in module.named_buffers():
        if name in state:
            dist.broadcast(buffer, src=0)


def limits(trainer: Any) -> list[str]:
    """Return Lightning's own switches for smoke tests that are set, with which not everything is embedded.

    Args:
        trainer: a Trainer, or its arguments as attributes.
    """
    if getattr(trainer, "fast_dev_run", None):
        return ["trainer.fast_dev_run"]
    values = {
        f"limit_{part}_batches": getattr(trainer, f"limit_{part}_batches", None) for part in ("val", "test")
    }
    # The number 1 is one batch, the fraction 1.0 all of them.
    return [
        f"trainer.{key}={value}" for key, value in values.items() if value is not None and str(value) != "1.0"
    ]


class Scored(NamedTuple):
    """What came of an evaluation."""

    results: dict[str, dict[str, dict[str, Any]]]
    """Data set -> protocol -> scores."""
    queries: dict[str, dict[str, pl.DataFrame]]
    """Data set -> protocol -> what became of each query."""


class EvaluationModule(LightningModule):
    """A student under its protocols: embeds queries and galleries, ranks, reports.

    Args:
        student: the model.
        protocols: for each split (`val`, `test`) and data set, the protocols to report.
        metric: distance of the ranking.
        flip: embed each picture and its mirror image and add the two.
        feature: what pictures are compared by.
        heads: tensors that make its parts, by name, as the model is shipped with them; None: there are none.
        rerank: re-ranking; None: there is none.
        open_set: false positive rates at which to report the true positive rate; None: none.

    After `trainer.validate` or `trainer.test`, `results[split][data set][protocol]` holds the scores and
    `queries[split][data set][protocol]` those of every valid query (see `query_table`); loggers get the scores under
    `val/…`, and under what `test_prefix` says. Where the feature is not the embedding alone, `alone` holds, of stages
    that are `refined`, the scores of the embedding beside those, which loggers get under `test_embedding/…`.
    After a test `features[data set]` holds what was compared, (N, F) on the CPU, queries first, until the next test.
    Distributed, each process embeds a share of the pictures. In validation it ranks all queries against its share of
    the gallery, and counts travel; in a test, whose features are kept, and where a re-ranking, open-set scores or
    several galleries want the whole gallery, features travel, and it ranks a share of the queries.
    """

    refined: tuple[str, ...] = ("val", "test")
    """Stages with re-ranking and open-set scores, where these are asked for, and with the embedding's scores beside
    those of a feature of several parts."""
    trials = False
    """Whether a smoke test that leaves pictures out may go on without a score."""

    def __init__(
        self,
        student: AnyStudent,
        *,
        protocols: Mapping[str, Protocols],
        metric: Distance,
        flip: bool,
        feature: Feature = EMBEDDING,
        heads: Mapping[str, Tensor] | None = None,
        rerank: Reranking | None = None,
        open_set: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        choose("metric", metric, get_args(Distance))
        self.student = student
        self.protocols = protocols
        self.metric = metric
        self.flip = flip
        self.feature = feature
        self._heads = dict(heads or {})
        self._layers: dict[str, Layer] = {}
        # Asked now, what evaluation would refuse is refused before anything is trained or embedded.
        self.open_set = open_set_rates(open_set, reranked=rerank is not None)
        self.rerank = rerank
        self.results: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
        self.queries: dict[str, dict[str, dict[str, pl.DataFrame]]] = {}
        self.alone: dict[str, Scored] = {}
        self.features: dict[str, Tensor] = {}
        self._features: list[Tensor] = []
        self._embeddings: list[Tensor] = []
        self._embedded: list[Tensor] = []

    @property
    def test_prefix(self) -> str:
        """Return what stands before the names of a test's scores in the log."""
        return "test"

    @property
    def data(self) -> ReidDataModule:
        """Return the datamodule of the trainer that runs this module."""
        return cast(ReidDataModule, self.trainer.datamodule)  # type: ignore[attr-defined]

    def heads(self) -> dict[str, Tensor]:
        """Return the tensors that make the feature's parts, by name."""
        return self._heads

    def embed(self, images: Tensor) -> Tensor:
        """Return retrieval features (B, F), float32, of pictures (B, 3, H, W) in 0..1."""
        self._read_heads()
        return self._look(images).feature

    def _read_heads(self) -> None:
        """Make the layers of the feature's parts of what the heads are now."""
        if self.feature != EMBEDDING:
            heads = {name: tensor.to(self.device) for name, tensor in self.heads().items()}
            self._layers = part_layers(self.feature, heads)

    def _look(self, images: Tensor) -> RetrievalFeatures:
        # A student is compiled for the batches of a training: another size would take the compiler a minute again.
        compiled = getattr(self.student, "_compiled_call_impl", None) is not None
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            return retrieval_features(
                self.student, images, flip=self.flip, feature=self.feature, layers=self._layers
            )

    def _start(self, split: str, stage: str) -> None:
        if self.trainer.world_size > 1:
            share_buffers(self)
        self._read_heads()
        self.features = {}
        # Preallocated: a list of batches and its concatenation would need twice the memory.
        sizes = [len(evaluation.files) for evaluation in self.data.evaluations(split)]
        width = self.student.width
        columns = feature_width(self.feature, width, self._layers)
        self._features = [torch.zeros(size, columns) for size in sizes]
        both = stage in self.refined and self.feature != EMBEDDING
        self._embeddings = [torch.zeros(size, width) for size in sizes] if both else []
        self._embedded = [torch.zeros(size, dtype=torch.int32) for size in sizes]

    def _keep(self, batch: Batch, loader: int) -> None:
        rows = batch.row.cpu()
        seen = self._look(batch.images)
        # A tracklet's clips add up.
        self._features[loader].index_add_(0, rows, seen.feature.cpu())
        if self._embeddings:
            self._embeddings[loader].index_add_(0, rows, seen.embedding.cpu())
        self._embedded[loader].index_add_(0, rows, torch.ones(len(rows), dtype=torch.int32))

    def _exchange(self, features: Tensor) -> Tensor:
        """Fill in the rows that other processes embedded (theirs are zero here, so the sum is the union)."""
        if self.trainer.world_size > 1:
            for rows in torch.split(features, EXCHANGE_ROWS):
                on_device = rows.to(self.device)
                dist.all_reduce(on_device)
                rows.copy_(on_device)
        return features

    def _finish(self, split: str, stage: str, prefix: str) -> None:
        self.results[stage], self.queries[stage] = {}, {}
        self.alone.pop(stage, None)
        if self._embeddings:
            self.alone[stage] = Scored({}, {})
        for number, evaluation in enumerate(self.data.evaluations(split)):
            own = self._embedded[number] > 0
            embedded = self._exchange(self._embedded[number])
            if evaluation.tracklets is not None:
                assert self.data.clips is not None
                clips = torch.from_numpy(clip_counts(evaluation.tracklets, self.data.clips.frames))
                for sums in (self._features, self._embeddings):
                    if sums:
                        sums[number].div_(clips[:, None])
                # One with a part of its clips is as good as none.
                embedded = (embedded == clips).int()
            if not self._complete(evaluation, embedded):
                continue
            scores, queries = self._report(evaluation, self._features[number], own, split, stage, prefix)
            self.results[stage][evaluation.name] = scores
            self.queries[stage][evaluation.name] = queries
            if stage == "test":
                self.features[evaluation.name] = self._features[number]
            if self._embeddings:
                scores, queries = self._report(
                    evaluation, self._embeddings[number], own, split, stage, f"{prefix}_embedding"
                )
                self.alone[stage].results[evaluation.name] = scores
                self.alone[stage].queries[evaluation.name] = queries
        self._features, self._embeddings, self._embedded = [], [], []

    def _report(
        self, evaluation: EvaluationSet, features: Tensor, own: Tensor, split: str, stage: str, prefix: str
    ) -> tuple[dict[str, dict[str, Any]], dict[str, pl.DataFrame]]:
        """Score features under every protocol, and log the scores under a prefix.

        Args:
            evaluation: whose features.
            features: (N, F), of which `own` (N,) are here.
            own: likewise.
            split: whose protocols.
            stage: what they are scored for.
            prefix: of what is logged.
        """
        protocols = self.protocols[split][evaluation.name]
        share = (self.trainer.global_rank, self.trainer.world_size)
        scores, queries = self._score(evaluation, features, own, protocols, share, stage)
        for protocol, values in scores.items():
            shown = {f"{prefix}/{evaluation.name}/{protocol}/{k}": values[k] for k in ("r1", "map", "minp")}
            # Equal in all processes, and known to all, since each asks which checkpoint is the best.
            self.log_dict(shown, sync_dist=True)
        return scores, queries

    def _complete(self, evaluation: EvaluationSet, embedded: Tensor) -> bool:
        """Return whether every row has a feature; those that were never computed are zeros, and are not scored.

        Args:
            evaluation: whose pictures or tracklets.
            embedded: (N,) how often each was embedded, as a whole.

        Raises:
            InputError: naming the first picture that was not, unless this is a trial that leaves some out on purpose.
        """
        missing = (embedded == 0).nonzero().flatten()
        if not len(missing) or self.trainer.sanity_checking:
            return not len(missing)
        kind = "pictures" if evaluation.tracklets is None else "tracklets"
        what = f"{len(missing)} of {len(embedded)} {kind} of {evaluation.name} were never embedded"
        switches = limits(self.trainer)
        if switches and self.trials:
            log.warning("%s (%s): no score exists", what, ", ".join(switches))
            return False
        advice = f"leave {', '.join(switches)} out" if switches else "run it again"
        first = evaluation.files[int(missing[0])]
        raise InputError(f"{what}, first {first}: there is no score; {advice}")

    def _score(
        self,
        evaluation: EvaluationSet,
        features: Tensor,
        own: Tensor,
        protocols: Mapping[str, Protocol],
        share: tuple[int, int],
        stage: str,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, pl.DataFrame]]:
        refined = stage in self.refined
        rerank, open_set = (self.rerank, self.open_set) if refined else (None, None)
        query, gallery = torch.split(features, [len(evaluation.query), len(evaluation.gallery)])
        how: dict[str, Any] = {"share": share}
        # What is kept of a test is kept whole.
        held = share[1] > 1 and stage != "test" and shareable(protocols, rerank, open_set)
        if held:
            columns = own[len(query) :].nonzero()[:, 0]
            gallery, how = gallery[columns], {"gallery_share": gallery_share(columns, self.device)}
        if share[1] > 1:
            self._exchange(query if held else features)
        parts = evaluate(
            query.to(self.device),
            evaluation.query,
            gallery.to(self.device),
            evaluation.gallery,
            protocols,
            metric=self.metric,
            rerank=rerank,
            open_set=open_set,
            **how,
        )
        scores, queries = {}, {}
        for name, part in parts.items():
            # Where the gallery is in parts, everybody has all queries.
            everything = part.summary() if held else gather_evaluation(part, self.device)
            scores[name] = part.result(everything)
            queries[name] = query_table(everything.numbers, evaluation.query)
        return scores, queries

    def on_validation_epoch_start(self) -> None:
        """Make room for the features."""
        self._start(self.data.validation_split, "val")

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed a batch."""
        self._keep(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Rank, and log `val/<data set>/<protocol>/r1` and the like."""
        self._finish(self.data.validation_split, "val", "val")

    def on_test_epoch_start(self) -> None:
        """Make room for the features."""
        self._start("test", "test")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed a batch."""
        self._keep(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Rank, and log `test/<data set>/<protocol>/r1` and the like."""
        self._finish("test", "test", self.test_prefix)
