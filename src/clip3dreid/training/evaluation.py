"""Evaluate a checkpoint on data sets, or features that any model made, under named protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import polars

from clip3dreid.errors import InputError
from clip3dreid.inference.parts import EMBEDDING, Feature, feature_of
from clip3dreid.io.checks import choose
from clip3dreid.io.launch import FurtherProcesses
from clip3dreid.retrieval.evaluation import evaluate, query_table
from clip3dreid.retrieval.feature_file import equal_features, load_features
from clip3dreid.retrieval.protocol import ProtocolSet
from clip3dreid.retrieval.standard import CLOTHES, GENERAL
from clip3dreid.training.settings import RANKING, RankingSettings

if TYPE_CHECKING:  # features are evaluated without a training framework
    from lightning.pytorch import Trainer
    from torch import Tensor

    from clip3dreid.data.datamodule import ReidDataModule
    from clip3dreid.data.manifest import Manifest
    from clip3dreid.data.sources import DataSpec
    from clip3dreid.model.network_file import AnyStudent
    from clip3dreid.model.student import Student
    from clip3dreid.training.data import RunData


@dataclass(frozen=True)
class Evaluated:
    """The scores of a model.

    Attributes:
        model: name of the file of its weights, or features.
        ranking: how queries and galleries were compared.
        results: data set -> protocol -> scores, 0..1, and what they were measured on; features are one data set, "".
        queries: data set -> protocol -> what became of each query; see `retrieval.evaluation.query_table`.
        notes: data set -> what must be known of it.
        trained_on: names of the data sets that the model was trained on, as far as its file says.
        feature: what pictures were compared by.
        alone: the results of the embedding alone, where `feature` is more; else empty.
        alone_queries: likewise.
    """

    model: str
    ranking: RankingSettings
    results: Mapping[str, Mapping[str, Mapping[str, Any]]]
    queries: Mapping[str, Mapping[str, polars.DataFrame]]
    notes: Mapping[str, Sequence[str]]
    trained_on: Sequence[str] | None = None
    feature: Feature = EMBEDDING
    alone: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    alone_queries: Mapping[str, Mapping[str, polars.DataFrame]] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return everything but the queries, ready for JSON."""
        first, *others = self.results
        ranked = {"metric": self.ranking.metric}
        scores = {"notes": list(self.notes[first]), "results": self.results[first]}
        if not first:
            return {"features": self.model, **ranked, **scores}
        also = {name: {"notes": list(self.notes[name]), "results": self.results[name]} for name in others}
        about = {"checkpoint": self.model, "trained_on": self.trained_on, **ranked}
        compared = {"flip": self.ranking.flip, "feature": self.feature.weights}
        facts = {**about, **compared, "data": first, **scores}
        beside = {"embedding_alone": dict(self.alone)} if self.alone else {}
        return facts | ({"also": also} if also else {}) | beside

    def by_feature(self) -> Iterator[Compared]:
        """Yield all scores: each data set's by what the model is compared by, and by the embedding alone."""
        for data, results in self.results.items():
            yield Compared(data, self.feature, results, self.queries[data])
            if data in self.alone:
                yield Compared(data, EMBEDDING, self.alone[data], self.alone_queries[data])


class Compared(NamedTuple):
    """The scores of one data set."""

    data: str
    """Its name; empty: features that any model made."""
    feature: Feature
    """What pictures were compared by."""
    results: Mapping[str, Mapping[str, Any]]
    """Protocol -> scores."""
    queries: Mapping[str, polars.DataFrame]
    """Protocol -> what became of each query."""


@dataclass(frozen=True)
class TrainedStudent:
    """A student with trained weights.

    Attributes:
        student: the model.
        card: what its file says of the pictures it was trained on; empty for other people's files.
        name: of its file.
        heads: tensors that make the parts of a feature beside the embedding, as the file has them.
    """

    student: AnyStudent
    card: Mapping[str, Any]
    name: str
    heads: Mapping[str, Tensor] = field(default_factory=dict)

    def feature(self, asked: Feature | None) -> Feature:
        """Return what the model is compared by.

        Args:
            asked: for; None: what its file records.

        Raises:
            InputError: if the model has not learnt a part, or its heads do not fit it.
        """
        from clip3dreid.inference.heads import body_of, check_heads, groups_of

        wanted = feature_of(self.card, self.name) if asked is None else asked
        wanted.check_learnt(self.heads, self.name)
        if wanted != EMBEDDING:
            words = sum(map(len, groups_of(self.card, self.name).values()))
            check_heads(self.heads, self.student, words, body_of(self.card, self.name), self.name)
        return wanted


def read_student(
    checkpoint: Path | str, trusted: Sequence[str] = (), network: Mapping[str, Any] | None = None
) -> TrainedStudent:
    """Read the student of a run's folder, a checkpoint or a saved model, or a network of others.

    Args:
        checkpoint: as `inference.model.load` takes it.
        trusted: packages of the user's own whose classes it may be made of.
        network: what is said of a network of others, as `load` takes it.

    Raises:
        InputError: if there is none, or it is damaged or names what is not trusted.
    """
    from clip3dreid.model.card import valid_card
    from clip3dreid.model.network_file import check_no_network, is_network, network_student
    from clip3dreid.model.places import find_model
    from clip3dreid.model.weights import build_student, read_checkpoint

    if is_network(checkpoint):
        made, about = network_student(checkpoint, network)
        return TrainedStudent(made, about, str(checkpoint))
    check_no_network(checkpoint, network)
    path = find_model(checkpoint).weights
    content = read_checkpoint(path)
    card = valid_card(content.card, path)
    return TrainedStudent(build_student(card, content.state, path, trusted), card, str(path), content.heads)


def published_student(
    student: Mapping[str, Any], weights: Path, fetch: str | None = None, trusted: Sequence[str] = ()
) -> TrainedStudent:
    """Read a student that is described apart from its weights, as published checkpoints have it.

    Args:
        student: as plain data, `_target_` and arguments.
        weights: the file.
        fetch: the command that gets it, for messages.
        trusted: packages of the user's own whose classes it may be made of.

    Raises:
        InputError: if the weights are missing, do not fit, or are of a backbone alone.
    """
    from clip3dreid.model.build import build
    from clip3dreid.model.weights import load_pretrained

    made: Student = build(student, trusted)
    if "neck.weight" not in load_pretrained(made, weights, fetch=fetch):
        raise InputError(
            f"{weights} holds a backbone alone: its neck would be untrained and its score "
            "meaningless; train a student from it first"
        )
    return TrainedStudent(made, {}, str(weights))


def evaluate_model(
    model: TrainedStudent | Path | str,
    data: RunData | DataSpec | Manifest | Sequence[RunData],
    *,
    split: Literal["test", "val"] = "test",
    ranking: RankingSettings = RANKING,
    height: int | None = None,
    width: int | None = None,
    seed: int = 1,
    workers: int = 1,
    batches: Callable[..., ReidDataModule] | None = None,
    trainer: partial[Trainer] | None = None,
    processes: FurtherProcesses | None = None,
) -> Evaluated:
    """Evaluate a model on the queries and galleries of data sets.

    Args:
        model: as `read_student` or `published_student` read it, or what `read_student` takes.
        data: data sets, with the protocols that they are evaluated under.
        split: `test`, or `val` where the data has held-out people.
        ranking: how queries and galleries are compared.
        height: of the pictures, in pixels; None: that which the model was trained at.
        width: of them; None: likewise.
        seed: of the draw of held-out people.
        workers: processes that decode pictures, where unreadable ones are to be found.
        batches: makes the data module of manifests, `seed` and perhaps `height`, `width` and `square`; None:
            `ReidDataModule`.
        trainer: Lightning's Trainer with device and the like filled in; None: the best device there is.
        processes: what starts further processes, where the trainer has several.

    Returns:
        The scores of every data set and protocol; in each of several processes the same.

    Raises:
        InputError: if there are no queries and gallery, or model, data and protocols do not fit.
    """
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import TQDMProgressBar

    from clip3dreid.data.datamodule import ReidDataModule
    from clip3dreid.io.launcher import start_by
    from clip3dreid.training.data import as_run_data, check_protocols, protocols_of, read_data
    from clip3dreid.training.evaluation_module import EvaluationModule, Scored

    choose("split", split, ("test", "val"))
    trained = model if isinstance(model, TrainedStudent) else read_student(model)
    feature = trained.feature(ranking.feature)
    if ranking.flip is None:
        ranking = replace(ranking, flip=trained.card.get("flip", True))
    # What the model was trained at, unless something else is asked for.
    sizes: dict[str, Any] = {
        "height": height or trained.card.get("height"),
        "width": width or trained.card.get("width"),
        "square": trained.card.get("square", False) if trained.card else None,
    }
    sources = as_run_data(data)
    manifests = read_data(sources, seed, workers)
    module = EvaluationModule(
        trained.student,
        protocols=protocols_of(sources),
        metric=ranking.metric,
        flip=ranking.mirrors,
        feature=feature,
        heads=trained.heads,
        rerank=ranking.rerank,
        open_set=ranking.open_set,
    )
    sizes = {key: size for key, size in sizes.items() if size is not None}
    people = (batches or ReidDataModule)(manifests, seed=seed, **sizes)
    if not people.evaluations(split):
        raise InputError(
            f"{manifests[0].name} has no queries and gallery in split {split}; look at it with "
            "clip3dreid inspect_data"
        )
    check_protocols(people, module.protocols, split)
    runner = (trainer or partial(pl.Trainer, devices=1, use_distributed_sampler=False))(
        callbacks=[TQDMProgressBar(refresh_rate=5)], logger=False, enable_checkpointing=False
    )
    start_by(runner, processes)
    (runner.test if split == "test" else runner.validate)(module, datamodule=people, verbose=False)
    alone = module.alone.get(split, Scored({}, {}))
    return Evaluated(
        trained.name,
        ranking,
        module.results[split],
        module.queries[split],
        {manifest.name: manifest.notes for manifest in manifests},
        trained.card.get("data"),
        feature,
        alone.results,
        alone.queries,
    )


def evaluate_features(
    path: Path | str, protocols: ProtocolSet | None = None, *, ranking: RankingSettings = RANKING
) -> Evaluated:
    """Evaluate features that any model made.

    Args:
        path: an `.npz`; see `retrieval.feature_file.load_features`.
        protocols: None: `retrieval.standard.CLOTHES`, or `GENERAL` where not all outfits are labelled.
        ranking: how queries and galleries are compared; `flip` and `feature` have no meaning here.

    Raises:
        InputError: if the file cannot be read, or does not fit the protocols.
    """
    query, queries, gallery, gallery_table = load_features(Path(path))
    if protocols is None:
        labelled = not (queries["clothes"].null_count() or gallery_table["clothes"].null_count())
        protocols = CLOTHES if labelled else GENERAL
    evaluations = evaluate(
        query,
        queries,
        gallery,
        gallery_table,
        protocols.protocols,
        metric=ranking.metric,
        rerank=ranking.rerank,
        open_set=ranking.open_set,
    )
    notes = []
    if equal := equal_features(query, queries, gallery, gallery_table):
        notes.append(
            f"{equal} of {len(query)} queries have the very features of a gallery item of their person: if these are "
            "the same pictures, say so with equal query_paths and gallery_paths, and they are dropped"
        )
    return Evaluated(
        str(path),
        ranking,
        {"": {name: evaluation.result() for name, evaluation in evaluations.items()}},
        {"": {name: query_table(evaluation.numbers(), queries) for name, evaluation in evaluations.items()}},
        {"": notes},
    )
