"""Record what a run depends on, and what came of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.errors import InputError
from clip3dreid.guidance.guides import Guides
from clip3dreid.inference.parts import EMBEDDING, Feature
from clip3dreid.io.environment import environment
from clip3dreid.io.files import write_json, write_text
from clip3dreid.io.run_folder import CONFIG, EMA_CHECKPOINT, ENVIRONMENT, LABELS, QUERIES, RESULTS
from clip3dreid.language import labels as language_labels
from clip3dreid.report.results import CheckpointResults, RunCost, RunResults, read_results, write_results
from clip3dreid.report.tables import save_tables
from clip3dreid.training.averaging import WeightAverage
from clip3dreid.training.callbacks import StepTimes
from clip3dreid.training.data import RunData, counts, headline_of
from clip3dreid.training.evaluation_module import Scored, limits
from clip3dreid.training.module import ReidModule
from clip3dreid.training.settings import RankingSettings, TrainSettings

log = logging.getLogger(__name__)


def record(folder: Path, config: Mapping[str, Any], data: ReidDataModule, guides: Guides, seed: int) -> None:
    """Save beside a run what its numbers depend on.

    Args:
        folder: of the run.
        config: all that it was asked for, as plain data.
        data: what it trains on.
        guides: what guides it.
        seed: of everything that is drawn.
    """
    if guides.labels is not None:
        language_labels.save(guides.labels, folder / LABELS)
    write_text(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    facts = environment() | {
        "seed": seed,
        "guides": guides.facts,
        "data": {manifest.name: counts(manifest) for manifest in data.manifests},
        "notes": {manifest.name: list(manifest.notes) for manifest in data.manifests},
    }
    write_json(folder / ENVIRONMENT, facts)


def selected(trainer: pl.Trainer) -> Iterator[str]:
    """Yield the checkpoints that were selected by a score; none where a run was too short for an evaluation."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            yield callback.best_model_path


def evaluate_run(
    folder: Path,
    trainer: pl.Trainer,
    module: ReidModule,
    data: ReidDataModule,
    sources: Sequence[RunData],
    settings: TrainSettings,
    ranking: RankingSettings,
    monitor: str | None,
) -> RunResults | None:
    """Evaluate the last weights of a run, their average and the selected checkpoint, and write its results.

    Args:
        folder: of the run.
        trainer: which has trained.
        module: as it was trained.
        data: with test people, or without.
        sources: the same data sets with their protocols.
        settings: of the training.
        ranking: how queries and galleries were compared.
        monitor: the score by which a checkpoint was selected.

    Returns:
        The scores; None where there is nobody to test on, or a trial has left pictures out.
    """
    if not data.evaluations("test"):
        log.info("no test people in this data: nothing to evaluate")
        return None
    by = "on TEST data" if settings.select_on_test else "on held-out people"
    candidates: list[tuple[str, str, str | None]] = [("last", "last epoch", None)]
    candidates += [
        ("ema", f"average of the weights, decay {average.decay:g}", str(folder / EMA_CHECKPOINT))
        for average in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(average, WeightAverage) and average.save(trainer, module, folder / EMA_CHECKPOINT)
    ]
    candidates += [("best", f"best {monitor} {by}", path) for path in selected(trainer)]
    evaluations: list[CheckpointResults] = []
    for name, selected_by, path in candidates:
        trainer.test(module, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
        if limits(trainer) and not module.results["test"]:
            log.warning("a trial with %s: no score exists, and none is written", ", ".join(limits(trainer)))
            return None
        for feature, scored in _by_feature(module):
            label = name if feature == module.feature else f"{name}_embedding"
            for data_set, scores in scored.results.items():
                queries = scored.queries[data_set]
                files = {key: f"{QUERIES}/{label}_{data_set}_{key}.parquet" for key in queries}
                rank_zero_only(save_tables)({folder / files[key]: table for key, table in queries.items()})
                headline = headline_of(sources, data_set, "test")
                evaluations.append(
                    CheckpointResults(name, selected_by, data_set, scores, files, headline, feature.weights)
                )
    results = RunResults(
        seed=settings.seed,
        variant=settings.variant or "+".join(module.losses.entries),
        metric=ranking.metric,
        flip=ranking.mirrors,
        evaluations=tuple(evaluations),
        cost=_cost(folder, trainer, data),
        notes={manifest.name: list(manifest.notes) for manifest in data.manifests},
    )
    rank_zero_only(write_results)(folder, results)
    return results


def _by_feature(module: ReidModule) -> Iterator[tuple[Feature, Scored]]:
    """Yield the scores of a test by the run's own feature, then by the embedding alone where that is another."""
    yield module.feature, Scored(module.results["test"], module.queries["test"])
    if "test" in module.alone:
        yield EMBEDDING, module.alone["test"]


def _cost(folder: Path, trainer: pl.Trainer, data: ReidDataModule) -> RunCost:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    clock = next(callback for callback in callbacks if isinstance(callback, StepTimes))
    bodies = 0 if data.bodies is None else data.bodies.batch
    frames = 1 if data.clips is None else data.clips.frames
    pictures = data.people_per_batch * data.pictures_per_person * frames + bodies
    return RunCost(clock.median or _step_seconds_before(folder), pictures, trainer.global_step)


def _step_seconds_before(folder: Path) -> float | None:
    """Return what a step took when the run trained: one that is resumed when finished is only evaluated again."""
    stem, suffix = RESULTS.split(".")
    kept = [path for path in folder.glob(f"{stem}.*.{suffix}") if path.name.split(".")[1].isdigit()]
    for path in sorted(kept, key=lambda path: int(path.name.split(".")[1]), reverse=True):
        with suppress(InputError):  # damaged, or of another version
            if seconds := read_results(path).cost.step_seconds:
                return seconds
    return None
