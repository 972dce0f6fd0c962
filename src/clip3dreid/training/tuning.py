"""Search for settings of a training: each trial is a training of its own, judged by people that none is trained on.

Optuna draws what is tried and keeps what came of it in a file. Nothing of a setting is known here but its key.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Count, Positive, Seed, check
from clip3dreid.io.files import write_text
from clip3dreid.io.locks import at_work

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

STUDY = "study.db"
TABLE = "trials.csv"


@dataclass(frozen=True)
class TuningSettings:
    """How settings are searched for.

    Args:
        trials: how many there are to be in all, with those of earlier calls; ones that failed count too.
        objective: protocol whose mAP on held-out people is to be large.
        prune: end a trial whose mAP is below the median of the others' after as many epochs.
        startup_trials: drawn from the whole space, and never ended early.
        seed: of what is drawn.

    Raises:
        InputError: if a value is none of these.
    """

    trials: Positive = 30
    objective: str = "clothes_changing"
    prune: bool = True
    startup_trials: Count = 5
    seed: Seed = 1

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Domain:
    """The values that one setting may have: a range of numbers, or choices.

    Args:
        key: of the setting, as `clip3dreid train` has it.
        low: least value; whole numbers stay whole if both ends are.
        high: greatest value.
        log: draw evenly by ratio instead of by difference.
        choices: the values, instead of a range.

    Raises:
        InputError: if it is neither a range nor choices.
    """

    key: str
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.choices:
            if self.low is not None or self.high is not None:
                raise InputError(f"space: {self.key} has both choices and a range; give one of them")
            return
        numbers = (int, float)
        if not isinstance(self.low, numbers) or not isinstance(self.high, numbers) or self.low >= self.high:
            raise InputError(
                f"space: {self.key} needs low below high, or choices; as {{low: 1e-5, high: 1e-2}}"
            )
        if self.log and self.low <= 0:
            raise InputError(f"space: {self.key} is drawn by ratio (log), so low={self.low} must be above 0")

    def draw(self, trial: optuna.Trial) -> Any:
        """Return the value of a trial."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        assert self.low is not None
        assert self.high is not None
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def search_space(node: Mapping[str, Any]) -> tuple[Domain, ...]:
    """Make a search space of a mapping.

    Args:
        node: key of a setting -> `{low, high, log}` or `{choices}`.

    Raises:
        InputError: if there is no setting, or one has values of neither form.
    """
    fields = {"low", "high", "log", "choices"}
    for key, values in node.items():
        if not isinstance(values, Mapping) or not set(values) <= fields:
            raise InputError(f"space: {key} needs {{low, high, log}} or {{choices}}, and has {values}")
    if not node:
        raise InputError("space has no settings; choose one with space=NAME")
    return tuple(
        Domain(str(key), **{**values, "choices": tuple(values.get("choices", ()))})
        for key, values in node.items()
    )


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Attributes:
        trials: how many have ended.
        value: the best mAP on held-out people, 0..1.
        folder: the run that has it.
        overrides: what sets it apart from the other trials, for `clip3dreid train`.
    """

    trials: int
    value: float
    folder: Path
    overrides: tuple[str, ...]


def tune(words: Sequence[str], space: Sequence[Domain], settings: TuningSettings, folder: Path) -> Tuned:
    """Search for the values with which a training finds held-out people best, and write a table of all trials.

    A trial's value is the greatest mAP of the protocol on held-out people (the `val` split) over its epochs; scores
    on test people, which each run writes as any run does, are not read. Called again with the same folder the search
    goes on; a trial that was cut off is made again.

    Args:
        words: of a command line of `clip3dreid train`, the same for all trials.
        space: what is tried.
        settings: how.
        folder: gets `study.db` (Optuna's), `trials.csv` and the folder of each trial's run.

    Returns:
        The best trial.

    Raises:
        InputError: if Optuna is not installed, another process searches there, the training is refused, or no people
            are held out.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "tune needs Optuna, which is not installed; pip install 'clip3dreid[optuna]'"
        ) from error
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with at_work(folder, "a search for settings"):
        study = _study(folder, settings)
        while (count := len(_ended(study))) < settings.trials:
            # What is drawn depends on the trials before alone, not on how often the search was cut off.
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=settings.startup_trials, seed=settings.seed + count
            )
            trial = study.ask()
            values = {one.key: one.draw(trial) for one in space}
            run = folder / f"trial_{trial.number:04d}"
            trial.set_user_attr("folder", run.name)
            overrides = [f"{key}={value}" for key, value in values.items()]
            log.info("trial %d of %d: %s", count + 1, settings.trials, " ".join(overrides))
            try:
                value = _value(trial, [*words, *overrides], run, settings)
            except _FailedError as failed:
                if not any(one.state is not TrialState.FAIL for one in _ended(study)):
                    raise InputError(f"{run} could not be trained: {failed}") from failed
                trial.set_user_attr("failed", str(failed))
                study.tell(trial, state=TrialState.FAIL)
                log.warning("  failed: %s", failed)
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
                log.info("  ended early: below the median of the others")
            else:
                study.tell(trial, value)
                log.info("  mAP %.1f %%, best %.1f %%", 100 * value, 100 * study.best_value)
            _write_table(study, folder)
        best = study.best_trial
        return Tuned(
            len(_ended(study)),
            study.best_value,
            folder / str(best.user_attrs["folder"]),
            tuple(f"{key}={value}" for key, value in best.params.items()),
        )


class _FailedError(Exception):
    """A training that did not come to its end."""


def _study(folder: Path, settings: TuningSettings) -> optuna.Study:
    """Return the study of a folder; a trial that was cut off is put in line again with its values."""
    import optuna
    from optuna.trial import TrialState

    study = optuna.create_study(
        storage=f"sqlite:///{(folder / STUDY).absolute()}",
        study_name=settings.objective,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=settings.startup_trials)
        if settings.prune
        else optuna.pruners.NopPruner(),
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that have come to an end of their own, and so not those that a search was cut off in."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name in ("COMPLETE", "PRUNED") or "failed" in trial.user_attrs
    ]


def _value(trial: optuna.Trial, words: Sequence[str], run: Path, settings: TuningSettings) -> float:
    """Train, tell the trial of every evaluation, and return the best."""
    import optuna

    best: float | None = None
    with _training(words, run) as events:
        for event in events:
            scores = event.get("val") if event.get("event") == "epoch" else None
            if not scores:
                continue
            named = [score for name, score in scores.items() if name.endswith(f"/{settings.objective}")]
            if not named:
                there = ", ".join(scores)
                raise InputError(
                    f"no protocol for objective={settings.objective} on held-out people; there are {there}"
                )
            best = max(float(named[0]["map"]), best or 0.0)
            trial.report(best, int(event["epoch"]))
            if trial.should_prune():
                raise optuna.TrialPruned
    if best is None:
        raise InputError(
            "no held-out people were evaluated, so trials cannot be told apart: behind --, add data.val_people=30, "
            "say, and let evaluate_every be no more than the epochs"
        )
    return best


@contextmanager
def _training(words: Sequence[str], run: Path) -> Iterator[Iterator[Mapping[str, Any]]]:
    """Start a training and yield what it says; one that is left before its end is ended.

    Raises:
        _FailedError: with the last line of its complaint, if it ends with another status than 0.
    """
    # Options of Hydra's stand behind all overrides.
    options = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    own = [f"hydra.run.dir={run}", "output=json"]
    command = [sys.executable, "-m", "clip3dreid", "train", *words[:options], *own, *words[options:]]
    complaint = run.with_suffix(".stderr")
    with complaint.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        try:
            yield (json.loads(line) for line in process.stdout if line.startswith("{"))
        except BaseException:
            process.terminate()
            complaint.unlink()
            raise
        finally:
            process.stdout.close()
            status = process.wait()
    lines = complaint.read_text(encoding="utf-8").splitlines()
    if status:
        raise _FailedError((lines or [f"status {status}"])[-1].removeprefix("error: "))
    complaint.unlink()


def _write_table(study: optuna.Study, folder: Path) -> None:
    """Write a row a trial: number, state, mAP, values, folder."""
    trials = study.get_trials(deepcopy=False)
    keys = sorted({key for trial in trials for key in trial.params})
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["trial", "state", "map", *keys, "folder"])
    for trial in trials:
        values = [trial.params.get(key, "") for key in keys]
        value = trial.value if trial.value is not None else ""
        rows.writerow(
            [trial.number, trial.state.name.lower(), value, *values, trial.user_attrs.get("folder", "")]
        )
    write_text(folder / TABLE, text.getvalue())
