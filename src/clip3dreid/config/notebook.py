"""Evaluate in one call: data sets, protocols and re-rankings by the names that the command line has for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import polars as pl
import torch
from hydra.utils import instantiate

from clip3dreid.config import objects
from clip3dreid.config.folder import options as names_of
from clip3dreid.config.hydra import composed
from clip3dreid.config.training import run_data
from clip3dreid.data.datasets import custom
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.sources import DataSpec
from clip3dreid.errors import InputError
from clip3dreid.inference.model import ReidModel
from clip3dreid.inference.parts import FeatureLike, as_feature
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.retrieval.evaluation import FeatureRows, Reranking
from clip3dreid.retrieval.protocol import Protocol, ProtocolSet
from clip3dreid.retrieval.standard import fitting
from clip3dreid.training.data import RunData, read_data
from clip3dreid.training.evaluated import Evaluated
from clip3dreid.training.evaluation import TrainedStudent, evaluate_features, evaluate_model
from clip3dreid.training.settings import RankingSettings

Data: TypeAlias = str | pl.DataFrame | Manifest | DataSpec | RunData
ProtocolLike: TypeAlias = str | Protocol | Sequence[str | Protocol] | ProtocolSet
_NO_OPTIONS = (
    "also",
    "fetch",
    "headline",
    "name",
    "protocols",
    "read",
    "root",
    "val_headline",
    "val_protocols",
)
"""Keys of a data set that `evaluate` sets in other ways, or that mean nothing to it."""


def evaluate(
    model: ReidModel | TrainedStudent | FeatureRows | Path | str,
    data: Data | None = None,
    root: Path | str | None = None,
    protocol: ProtocolLike | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    split: Literal["test", "val"] = "test",
    metric: Literal["cosine", "euclidean"] = "cosine",
    flip: bool | None = None,
    feature: FeatureLike | None = None,
    rerank: str | Reranking | None = None,
    open_set: Sequence[float] | None = None,
    height: int | None = None,
    width: int | None = None,
    seed: int = 1,
    batch_size: int = 128,
    workers: int = 0,
    progress: bool = False,
) -> Evaluated:
    """Evaluate a model, or features that any model made, on a data set, as `clip3dreid evaluate` does.

    Args:
        model: what `load` returns, which is evaluated on its device, or what it takes; a features file (`.npz`, see
            `retrieval.feature_file.load_features`), which has labels of its own; or features (N, D), an array or a
            tensor, a row for each picture of `data`.
        data: the name of a data set (`ltcc`, `pku_reid`, `custom` …); a table with `path`, `person`, `role` (`query`
            or `gallery`) and, where they are known, `camera` and `clothes`; or a manifest, `DataSpec` or `RunData`.
            Features are in the order of the table's rows, or of `manifest.part(split)`.
        root: folder, or table, of the data set that is named; of a table the folder of its pictures, by default the
            current one.
        protocol: one or several: names of `conf/protocol`, or `Protocol`s of your own. None: those of the data set;
            of a table or manifest `retrieval.standard.CLOTHES`, or `GENERAL` where not all outfits are labelled.
        options: of the data set that is named, as `data.KEY=VALUE` sets them: `{"train_fraction": 0}`.
        split: `test`, or `val` where the data has held-out people.
        metric: distance of the ranking.
        flip: look at mirror images too; None: as the model says.
        feature: what pictures are compared by, as `ReidModel.with_feature` takes it; None: as the model says.
        rerank: name of a re-ranking (`k_reciprocal`), or one of `retrieval.rerank` with its settings.
        open_set: false positive rates at which to report the true positive rate.
        height: of the pictures, in pixels; None: that which the model was trained at.
        width: of them; None: likewise.
        seed: of the draw of held-out people.
        batch_size: pictures at a time.
        workers: processes that decode pictures.
        progress: show a bar.

    Returns:
        Scores of every protocol with 95 % intervals over people. They print as a table; `to_polars()` and `to_dict()`
        have them as numbers, and `queries` what became of each query.

    Raises:
        InputError: if model, data and protocols do not fit, or one of them is not there or damaged.

    Example:
        >>> import clip3dreid
        >>> model = clip3dreid.load("runs/mine")  # doctest: +SKIP
        >>> print(clip3dreid.evaluate(model, "pku_reid", "/data/PKU-Reid"))  # doctest: +SKIP
    """
    choose("split", split, ("test", "val"))
    check_number("batch_size", batch_size, Range(1), whole=True)
    check_number("workers", workers, Range(0), whole=True)
    ranking = RankingSettings(
        metric=metric,
        flip=flip,
        feature=None if feature is None else as_feature(feature),
        rerank=_reranking(rerank),
        open_set=None if open_set is None else tuple(open_set),
    )
    features = _features(model)
    if features is not None and (flip is not None or feature is not None):
        raise InputError("flip and feature say how a model looks at pictures; leave them out with features")
    asked = None if protocol is None else _protocols(protocol)
    if isinstance(features, Path):
        if data is not None or root is not None:
            raise InputError(f"{features} has labels of its own; leave data and root out")
        return evaluate_features(features, asked, ranking=ranking)
    if options and not isinstance(data, str):
        raise InputError("options are those of a data set that is given by its name; leave them out")
    table_of_pictures = features is None and isinstance(data, pl.DataFrame)
    if root is not None and not (isinstance(data, str) or table_of_pictures):
        raise InputError("root is that of a data set that is given by its name, or of pictures; leave it out")
    if features is not None and isinstance(data, pl.DataFrame):
        return evaluate_features(features, asked, data=data, split=split, ranking=ranking)
    source = _source(data, root, options, asked, seed, workers, split)
    if features is not None:
        assert isinstance(source.source, Manifest)
        return evaluate_features(
            features, source.protocols(split), data=source.source, split=split, ranking=ranking
        )
    assert not isinstance(model, torch.Tensor | np.ndarray)
    from clip3dreid.data.datamodule import ReidDataModule  # brings Lightning, which features do not need

    with _quiet():
        return evaluate_model(
            model,
            source,
            split=split,
            ranking=ranking,
            height=height,
            width=width,
            seed=seed,
            workers=workers,
            batches=partial(ReidDataModule, workers=workers, evaluation_batch=batch_size),
            progress=progress,
        )


def _features(model: Any) -> Path | FeatureRows | None:
    """Return features that were given in a model's place, or their file; None: it is a model.

    Raises:
        InputError: if it is neither.
    """
    if isinstance(model, torch.Tensor | np.ndarray):
        return model
    if isinstance(model, Path | str):
        place = Path(model).expanduser()
        return place if place.suffix.lower() == ".npz" else None
    if not isinstance(model, ReidModel | TrainedStudent):
        raise InputError(
            f"a {type(model).__name__} is no model; give what clip3dreid.load returns or takes, features (N, D), or "
            "their .npz"
        )
    return None


def _reranking(given: str | Reranking | None) -> Any:
    if not isinstance(given, str):
        return given
    choose("rerank", given, names_of("rerank"))
    return instantiate(composed("evaluate", f"rerank={given}").rerank)


def _protocols(given: ProtocolLike) -> ProtocolSet:
    """Return protocols in the order in which they are asked for; the first stands for all.

    Raises:
        InputError: if there is none, or a name is unknown.
    """
    if isinstance(given, ProtocolSet):
        return given
    listed = [given] if isinstance(given, str | Protocol) else list(given)
    names = [one for one in listed if isinstance(one, str)]
    for name in names:
        choose("protocol", name, names_of("protocol"))
    if not listed:
        raise InputError("no protocol is chosen; choose at least one, such as protocol=general")
    named: Mapping[str, Protocol] = {}
    if names:
        nodes = composed("evaluate", f"protocol=[{','.join(dict.fromkeys(names))}]").protocol
        named = objects.protocol_set(nodes, names[0], "protocol").protocols
    made = [named[one] if isinstance(one, str) else one for one in listed]
    return ProtocolSet({one.name: one for one in made}, made[0].name)


def _source(
    data: Data | None,
    root: Path | str | None,
    options: Mapping[str, Any] | None,
    asked: ProtocolSet | None,
    seed: int,
    workers: int,
    split: str,
) -> RunData:
    """Return a data set, read, with the protocols that it is evaluated under.

    Raises:
        InputError: if there is none, or it cannot be read.
    """
    if isinstance(data, str):
        return _run_data(_named(data, root, options or {}), asked, seed, workers)
    if isinstance(data, pl.DataFrame):
        data = custom.from_table(data, Path(root or "").expanduser().absolute())
    if isinstance(data, RunData):
        return _run_data(data, asked, seed, workers)
    if not isinstance(data, Manifest | DataSpec):
        names = ", ".join(names_of("data"))
        raise InputError(
            f"no data set: give a name with its folder, a table or a manifest; NAME is one of {names}"
        )
    manifest = read_data([RunData(data)], seed, workers)[0]
    return RunData(manifest, asked or fitting(manifest.part(split)))


def _run_data(data: RunData, asked: ProtocolSet | None, seed: int, workers: int) -> RunData:
    manifest = read_data([data], seed, workers)[0]
    return RunData(manifest, data.test, data.val) if asked is None else RunData(manifest, asked)


def _named(name: str, root: Path | str | None, options: Mapping[str, Any]) -> RunData:
    """Return the data set that the command line has under a name."""
    choose("data", name, names_of("data"))
    if root is None:
        raise InputError(f"root is not given; give the folder of {name}: evaluate(model, {name!r}, FOLDER)")
    cfg = composed("evaluate", f"data={name}")
    cfg.data.root = str(root)
    for key, value in options.items():
        choose("options", key, [str(one) for one in cfg.data if one not in _NO_OPTIONS])
        if not isinstance(value, bool | int | float | str | None):
            raise InputError(f"options: {key}={value!r} is no plain value")
        cfg.data[key] = value
    return run_data(cfg)[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notices off the notebook while the block lasts."""
    loggers = [logging.getLogger(f"lightning.pytorch{name}") for name in ("", ".utilities.rank_zero")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.WARNING)
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
