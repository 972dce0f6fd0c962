"""Evaluate a checkpoint on data sets, or features that any model made, under named protocols."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip3dreid.data.manifest import Manifest
from clip3dreid.data.same_pictures import mark_same_pictures
from clip3dreid.errors import InputError
from clip3dreid.inference.parts import EMBEDDING, Feature, feature_of
from clip3dreid.io.checks import choose
from clip3dreid.io.devices import chosen_device
from clip3dreid.io.launch import FurtherProcesses
from clip3dreid.retrieval.evaluation import FeatureRows, evaluate, query_table
from clip3dreid.retrieval.feature_file import divide_features, equal_features, load_features
from clip3dreid.retrieval.protocol import ProtocolSet
from clip3dreid.retrieval.standard import fitting
from clip3dreid.training.evaluated import Evaluated
from clip3dreid.training.settings import RANKING, RankingSettings

if TYPE_CHECKING:  # features are evaluated without a training framework
    import polars
    import torch
    from lightning.pytorch import Trainer
    from torch import Tensor

    from clip3dreid.data.clips import ClipSettings
    from clip3dreid.data.datamodule import ReidDataModule
    from clip3dreid.data.sources import DataSpec
    from clip3dreid.inference.model import ReidModel
    from clip3dreid.model.network_file import AnyStudent
    from clip3dreid.model.student import Student
    from clip3dreid.training.data import RunData

log = logging.getLogger(__name__)


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
    model: TrainedStudent | ReidModel | Path | str,
    data: RunData | DataSpec | Manifest | Sequence[RunData],
    *,
    split: Literal["test", "val"] = "test",
    ranking: RankingSettings = RANKING,
    height: int | None = None,
    width: int | None = None,
    clips: ClipSettings | None = None,
    seed: int = 1,
    workers: int = 1,
    batches: Callable[..., ReidDataModule] | None = None,
    trainer: partial[Trainer] | None = None,
    processes: FurtherProcesses | None = None,
    progress: bool = True,
) -> Evaluated:
    """Evaluate a model on the queries and galleries of data sets.

    Args:
        model: as `read_student` or `published_student` read it, or what `read_student` takes; or a loaded model,
            which is evaluated where it is, and stays there.
        data: data sets, with the protocols that they are evaluated under.
        split: `test`, or `val` where the data has held-out people.
        ranking: how queries and galleries are compared.
        height: of the pictures, in pixels; None: that which the model was trained at.
        width: of them; None: likewise.
        clips: how tracklets are cut into clips; None: as those that the model was trained on, if it was.
        seed: of the draw of held-out people.
        workers: processes that decode pictures, where unreadable ones are to be found.
        batches: makes the data module of manifests, `seed` and perhaps `height`, `width`, `square` and `clips`;
            None: `ReidDataModule`.
        trainer: Lightning's Trainer with device and the like filled in; None: the best device there is, of a loaded
            model its own.
        processes: what starts further processes, where the trainer has several.
        progress: show a bar.

    Returns:
        The scores of every data set and protocol; in each of several processes the same.

    Raises:
        InputError: if there are no queries and gallery, or model, data and protocols do not fit.
    """
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import TQDMProgressBar

    from clip3dreid.data.clips import ClipSettings
    from clip3dreid.data.datamodule import ReidDataModule
    from clip3dreid.io.launcher import start_by
    from clip3dreid.model.card import clip_size
    from clip3dreid.training.checks import check_clips
    from clip3dreid.training.data import as_run_data, check_protocols, protocols_of, read_data
    from clip3dreid.training.evaluation_module import EvaluationModule, Scored

    choose("split", split, ("test", "val"))
    trained, home = _trained(model)
    feature = trained.feature(ranking.feature)
    if ranking.flip is None:
        ranking = replace(ranking, flip=trained.card.get("flip", True))
    # What the model was trained at, unless something else is asked for.
    sizes: dict[str, Any] = {
        "height": trained.card.get("height") if height is None else height,
        "width": trained.card.get("width") if width is None else width,
        "square": trained.card.get("square", False) if trained.card else None,
    }
    if clips is None and (size := clip_size(trained.card, trained.name)) is not None:
        clips = ClipSettings(*size)
    sizes["clips"] = clips
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
    check_clips(trained.student, people.clips)
    check_protocols(people, module.protocols, split)
    for line in people.looped(split):
        log.info("%s", line)
    place = _accelerator(home) if home is not None else {"devices": 1}
    runner = (trainer or partial(pl.Trainer, **place, use_distributed_sampler=False))(
        **({"callbacks": [TQDMProgressBar(refresh_rate=5)]} if progress else {"enable_progress_bar": False}),
        logger=False,
        enable_checkpointing=False,
    )
    start_by(runner, processes)
    try:
        (runner.test if split == "test" else runner.validate)(module, datamodule=people, verbose=False)
    finally:
        if home is not None:
            # The trainer takes what it has run to the CPU in the end.
            trained.student.to(home)
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
        split,
    )


def _trained(model: TrainedStudent | ReidModel | Path | str) -> tuple[TrainedStudent, torch.device | None]:
    """Return a student however it was given, and the device of one that is loaded."""
    if isinstance(model, TrainedStudent):
        return model, None
    if isinstance(model, Path | str):
        return read_student(model), None
    # What is chosen by hand (`with_feature`) stands in the card too.
    return TrainedStudent(model.student, model.card, model.name, model.heads.state_dict()), model.device


def _accelerator(device: torch.device) -> dict[str, Any]:
    """Return what has a Trainer run on one device."""
    index: Any = device.index
    return {"accelerator": device.type, "devices": 1 if index is None else [index]}


def evaluate_features(
    features: Path | str | FeatureRows,
    protocols: ProtocolSet | None = None,
    *,
    data: Manifest | polars.DataFrame | None = None,
    split: Literal["test", "val"] = "test",
    ranking: RankingSettings = RANKING,
    device: str | None = None,
) -> Evaluated:
    """Evaluate features that any model made.

    Args:
        features: an `.npz`, which has labels of its own (`retrieval.feature_file.load_features`); or (N, D), a row
            for each row of `data`.
        protocols: None: `retrieval.standard.CLOTHES`, or `GENERAL` where not all outfits are labelled.
        data: a manifest, whose rows are those of `data.part(split)`; or a table of labels, as
            `retrieval.feature_file.divide_features` takes it.
        split: of `data`.
        ranking: how queries and galleries are compared; `flip` and `feature` have no meaning here.
        device: where they are compared: `auto`, `cpu`, `cuda`, `cuda:1`; None: where they are.

    Raises:
        InputError: if there is no such device, the file cannot be read, features and data do not fit, or the labels
            do not fit the protocols.
    """
    notes: list[str] = []
    where = None if device is None else chosen_device(device)
    if isinstance(features, Path | str):
        if data is not None:
            raise InputError(f"features={features} has labels of its own; leave data out")
        sides = load_features(Path(features))
    elif data is None:
        raise InputError("features have no labels; give their pictures as data, a row for each row")
    elif isinstance(data, Manifest):
        notes += data.notes
        sides = divide_features(features, data.part(split), split, f"{data.name} ({split})")
        query, gallery, *_ = mark_same_pictures(data.root, sides[1], sides[3])
        sides = sides[0], query, sides[2], gallery
    else:
        sides = divide_features(features, data, split)
    queries, gallery = sides[1], sides[3]
    if where is not None:
        sides = sides[0].to(where), queries, sides[2].to(where), gallery
    evaluations = evaluate(
        *sides,
        (protocols or fitting(queries, gallery)).protocols,
        metric=ranking.metric,
        rerank=ranking.rerank,
        open_set=ranking.open_set,
    )
    if not isinstance(data, Manifest) and (
        equal := equal_features(sides[0].cpu(), queries, sides[2].cpu(), gallery)
    ):
        column = "path" if data is not None else "query_paths and gallery_paths"
        notes.append(
            f"{equal} of {len(queries)} queries have the very features of a gallery item of their person: if these "
            f"are the same pictures, say so with equal {column}, and they are dropped"
        )
    name = data.name if isinstance(data, Manifest) else ""
    return Evaluated(
        str(features) if isinstance(features, Path | str) else "features",
        ranking,
        {name: {key: evaluation.result() for key, evaluation in evaluations.items()}},
        {name: {key: query_table(evaluation.numbers(), queries) for key, evaluation in evaluations.items()}},
        {name: notes},
        split=split,
        computed=False,
    )
