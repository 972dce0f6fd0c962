"""Finished runs held against a baseline: what each method is worth against a baseline, from finished runs."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig, ListConfig

from clip3dreid.errors import InputError
from clip3dreid.io.files import atomic, write_json, write_text
from clip3dreid.io.formats import decoding, read_json, read_table, read_yaml
from clip3dreid.report.ablation import Score, Variant, draw, header, page, rows
from clip3dreid.report.tables import print_table
from clip3dreid.retrieval.bootstrap import LEVEL, Interval, QueryScores, paired_difference, t_interval

log = logging.getLogger(__name__)

COMPARE_VERSION = 2
READS = (2, 3)
"""Versions of `results.json` that are understood: 2 is the first with costs and results of each query."""

SCORES = {"r1": "R1", "map": "mAP"}
_ROUNDING = 1e-4
"""How far a mean over the file of queries may be from the number in the results."""

Pair = tuple[int, str]
"""Training seed and data folder, by which runs of two variants belong together."""


class _SkippedError(Exception):
    """A run that is not finished, or not of a kind that can be compared."""


@dataclass(frozen=True)
class Run:
    """One finished run, under one protocol.

    Attributes:
        folder: of the run.
        variant: its label.
        pair: seed and data folder.
        data: name of the data set.
        setting: `metric`, `flip` and the protocol's facts, which must be equal for numbers to be comparable.
        chance_r1: R1 of a random order, 0..1; None where it is not recorded.
        queries: Q rows `query`, `person`, `r1`, `map`, sorted by query.
        step_seconds: median training step; None where it was not measured.
        pictures: of one step, likewise.
    """

    folder: Path
    variant: str
    pair: Pair
    data: str
    setting: Mapping[str, Any]
    chance_r1: float | None
    queries: pl.DataFrame
    step_seconds: float | None
    pictures: int | None

    def mean(self, score: str) -> float:
        """Mean over the queries, 0..1."""
        return float(self.values(score).mean())

    def values(self, score: str) -> npt.NDArray[np.float64]:
        """(Q,) of each query."""
        return self.queries[score].to_numpy()


@dataclass(frozen=True)
class _Found:
    """A finished run before a protocol is chosen: its files, parsed."""

    folder: Path
    variant: str
    pair: Pair
    results: Mapping[str, Any]
    evaluation: Mapping[str, Any]


def compare(cfg: DictConfig) -> Path:
    """Compares finished runs.

    Args:
        cfg: `conf/compare.yaml`, composed.

    Returns:
        `compare.md`, beside which `compare.json` and `compare.png` are.

    Raises:
        InputError: if there are no finished runs, or if they cannot be compared.
    """
    resamples, seed = _whole(cfg, "resamples", 1), _whole(cfg, "seed", 0)
    baseline, checkpoint = str(cfg.baseline), str(cfg.checkpoint)
    found, skipped = _finished(_paths(cfg.runs), checkpoint)
    order = _order(found, baseline, [str(name) for name in cfg.order])
    protocol = _protocol(cfg, found)
    runs = [_run(one, protocol) for one in found]
    _check_comparable(runs)

    grouped = {name: {run.pair: run for run in runs if run.variant == name} for name in order}
    variants = [_variant(name, grouped[name], grouped[baseline], baseline, resamples, seed) for name in order]
    notes = [*_missing(grouped, baseline), *skipped]
    chance = [run.chance_r1 for run in runs if run.chance_r1 is not None]
    facts = {"data": runs[0].data, "protocol": protocol, "checkpoint": checkpoint}
    facts |= {key: runs[0].setting[key] for key in ("metric", "shots") if key in runs[0].setting}
    shown = facts | ({"chance R1": f"{100 * float(np.mean(chance)):.1f} %"} if chance else {})

    out = Path(str(cfg.out))
    title = f"{runs[0].data}, {protocol}, {checkpoint} checkpoint: difference to {baseline}"
    figure = draw(variants, baseline, level=LEVEL, title=title)
    with atomic(out / "compare.png") as temporary:
        figure.savefig(temporary, dpi=130)
    text = page(
        variants,
        baseline,
        level=LEVEL,
        resamples=resamples,
        facts=shown,
        notes=notes,
        runs=[_line(run) for members in grouped.values() for run in members.values()],
        figure="compare.png",
    )
    write_json(
        out / "compare.json",
        {
            "version": COMPARE_VERSION,
            **facts,
            "chance_r1": float(np.mean(chance)) if chance else None,
            "baseline": baseline,
            "level": LEVEL,
            "resamples": resamples,
            "seed": seed,
            "variants": [_numbers(variant, grouped[variant.name], grouped[baseline]) for variant in variants],
            "notes": notes,
        },
    )
    write_text(out / "compare.md", text)
    print_table(title, header(variants, baseline, LEVEL), rows(variants))
    for note in notes:
        log.warning("%s", note)
    log.info("table, numbers and figure: %s, compare.json and compare.png beside it", out / "compare.md")
    return out / "compare.md"


def _whole(cfg: DictConfig, key: str, least: int) -> int:
    value = cfg[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{key}={value} must be a whole number, {least} or more")
    return value


def _paths(node: Any) -> list[Path]:
    given = list(node) if isinstance(node, ListConfig) else [] if node is None else [node]
    if not given:
        raise InputError("no runs are given; name their folders: clip3dreid compare FOLDER …")
    return [Path(str(path)).expanduser() for path in given]


def _folders(path: Path) -> Iterator[Path]:
    """Yields run folders at and below a path, `2` before `10`; what lies in a run is not searched."""
    for place, below, files in os.walk(path):
        # The config comes with one of the other two as soon as a run starts; worlds and dashboards have one alone.
        if "config.yaml" in files and ("results.json" in files or "environment.json" in files):
            below.clear()
            yield Path(place)
        below[:] = sorted((name for name in below if not name.startswith(".")), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _finished(paths: Sequence[Path], checkpoint: str) -> tuple[list[_Found], list[str]]:
    """All finished runs, and a note on each of the others.

    Raises:
        InputError: if a path holds no run, or no run is finished.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path} is no folder; give a run's folder, or one that holds runs")
        here = list(_folders(path))
        if not here:
            raise InputError(
                f"no runs in {path}: no folder with config.yaml and results.json; check the path"
            )
        # A run that is given twice, by itself and inside another folder, counts once.
        for folder in here:
            folders.setdefault(folder.resolve(), folder)
    found, notes = [], []
    for folder in folders.values():
        try:
            found.append(_read(folder, checkpoint))
        except _SkippedError as reason:
            notes.append(f"skipped {folder}: {reason}")
    if not found:
        raise InputError(f"no finished run to compare; {notes[0]}")
    return found, notes


def _read(folder: Path, checkpoint: str) -> _Found:
    config, path = folder / "config.yaml", folder / "results.json"
    if not path.is_file():
        raise _SkippedError("not finished, it has no results.json")
    results = _parsed(path)
    version = results.get("version")
    if version not in READS:
        raise _SkippedError(
            f"results.json has version {version}, not {READS[-1]}; train again with this program"
        )
    with decoding(folder, "a run", "train again, or leave this folder out"):
        cfg = read_yaml(config, "the config of a run", "train again, or leave this folder out")
        pair = (int(cfg["seed"]), str(cfg["data"]["root"]))
        # Older runs say rung.
        places = [(cfg, "variant"), (cfg, "rung"), (results, "variant"), (results, "rung")]
        variant = next((facts[key] for facts, key in places if facts.get(key)), None)
        evaluations = list(results["evaluations"])
        names = [str(evaluation["checkpoint"]) for evaluation in evaluations]
    if variant is None:
        raise _SkippedError("it belongs to no variant; train with variant=NAME")
    if checkpoint not in names:
        there = ", ".join(dict.fromkeys(names)) or "none"
        raise InputError(f"{path} has no checkpoint {checkpoint}; there is {there}; give checkpoint=NAME")
    # The first is that of the data set proper; others come from data.also.
    return _Found(folder, str(variant), pair, results, evaluations[names.index(checkpoint)])


def _parsed(path: Path) -> dict[str, Any]:
    return read_json(path, "the results of a run", "train again, or leave this run out")


def _order(found: Sequence[_Found], baseline: str, wanted: Sequence[str]) -> list[str]:
    """Variants from the top.

    Raises:
        InputError: if the baseline or a wanted variant has no run, or if there is nothing but the baseline, or two
            runs for the same place.
    """
    there = list(dict.fromkeys(one.variant for one in found))
    names = ", ".join(there)
    if baseline not in there:
        raise InputError(f"no run of the baseline {baseline}; there are {names}; give baseline=NAME")
    if there == [baseline]:
        raise InputError(f"all {len(found)} runs are of {baseline}; give runs of another variant as well")
    if unknown := [name for name in wanted if name not in there]:
        raise InputError(f"order: no run of {unknown[0]}; there are {names}")
    places: dict[tuple[str, Pair], Path] = {}
    for one in found:
        other = places.setdefault((one.variant, one.pair), one.folder)
        if other != one.folder:
            raise InputError(
                f"{other} and {one.folder} are both runs of {one.variant} with seed {one.pair[0]} on {one.pair[1]}; "
                "leave one out"
            )
    return list(dict.fromkeys([*wanted, *([] if wanted else [baseline]), *there]))


def _protocol(cfg: DictConfig, found: Sequence[_Found]) -> str:
    """The protocol to compare under; the config has nodes of those chosen, of which their names are enough."""
    chosen = [str(name) for name in cfg.protocol]
    if len(chosen) > 1:
        raise InputError(f"compare under one protocol at a time, not under {', '.join(chosen)}")
    there = [str(name) for name in found[0].evaluation.get("results") or ()]
    if not there:
        raise InputError(
            f"{found[0].folder / 'results.json'} has no scores; train again, or leave this run out"
        )
    return chosen[0] if chosen else there[-1]


def _run(one: _Found, protocol: str) -> Run:
    results = one.evaluation.get("results") or {}
    path = one.folder / "results.json"
    if protocol not in results:
        raise InputError(f"{path} has no protocol {protocol}; there are {', '.join(results)}")
    with decoding(path, "the results of a run", "train again, or leave it out"):
        scores = results[protocol]
        cost = one.results.get("cost") or {}
        file = one.folder / one.evaluation["per_query"][protocol]
        told = {key: float(scores[key]) for key in SCORES}
        data = str(one.evaluation["data"])
        chance = scores.get("chance_r1")
        seconds, pictures = cost.get("step_seconds"), cost.get("pictures_per_step")
        setting = {key: one.results.get(key) for key in ("metric", "flip")}
        setting |= {key: scores.get(key) for key in ("drop", "shots", "average_precision", "rerank")}
        # Where no query is in the gallery it decides nothing, as before there was such a key.
        setting["same_picture"] = scores.get("same_picture") if scores.get("queries_in_gallery") else None
        return Run(
            folder=one.folder,
            variant=one.variant,
            pair=one.pair,
            data=data,
            setting={key: value for key, value in setting.items() if value is not None},
            chance_r1=None if chance is None else float(chance),
            queries=_queries(file, told),
            step_seconds=float(seconds) if seconds else None,
            pictures=int(pictures) if pictures else None,
        )


def _queries(path: Path, told: Mapping[str, float]) -> pl.DataFrame:
    """The results of each query, sorted by query.

    Raises:
        InputError: if the file is missing, damaged, or does not belong to the results.
    """
    advice = "train again, or leave this run out"
    if not path.is_file():
        raise InputError(f"{path}, with the results of each query, is missing; {advice}")
    columns = ("query", "person", "first_hit", "ap")
    table, _ = read_table(path, "the results of each query", advice, columns=columns, sealed=False)
    with decoding(path, "the results of each query", advice):
        table = table.select(
            pl.col("query", "person").cast(pl.String),
            (pl.col("first_hit").cast(pl.Float64) <= 1).cast(pl.Float64).alias("r1"),
            pl.col("ap").cast(pl.Float64).alias("map"),
        )
    whole = not table.is_empty() and not any(column.null_count() for column in table)
    for key, value in told.items():
        mean = float(table[key].to_numpy().mean()) if whole else float("nan")
        if not abs(mean - value) <= _ROUNDING:
            # Where galleries are drawn, a query's first hit is a mean over the draws, which hides the hits.
            raise InputError(
                f"{path}: {SCORES[key]} of its {len(table)} queries is {mean:.4f}, but results.json says "
                f"{value:.4f}; choose a protocol that draws no galleries, or {advice}"
            )
    return table.sort("query", maintain_order=True)


def _check_comparable(runs: Sequence[Run]) -> None:
    """Raises InputError if runs differ in something that their variants do not explain."""
    first = runs[0]
    asked: dict[str, Run] = {}
    for run in runs:
        if run.data != first.data:
            raise InputError(
                f"{first.folder} was tested on {first.data} and {run.folder} on {run.data}; compare one data set"
                " at a time"
            )
        for key in first.setting.keys() | run.setting.keys():
            here, there = first.setting.get(key), run.setting.get(key)
            if here != there:
                raise InputError(
                    f"{first.folder} was tested with {key}={here} and {run.folder} with {key}={there}; their "
                    "numbers do not compare, leave one out"
                )
        # One folder is one world, whose people are drawn once for all its runs.
        world = asked.setdefault(run.pair[1], run)
        if not world.queries.select("query", "person").equals(run.queries.select("query", "person")):
            raise InputError(
                f"{world.folder} and {run.folder} were tested on different queries of {run.pair[1]}; the data have "
                "changed between them, train one of them again"
            )


def _variant(
    name: str,
    members: Mapping[Pair, Run],
    others: Mapping[Pair, Run],
    baseline: str,
    resamples: int,
    seed: int,
) -> Variant:
    pairs = [pair for pair in members if pair in others] if name != baseline else []
    scores = {}
    for key, title in SCORES.items():
        means = [run.mean(key) for run in members.values()]
        differences = [members[pair].mean(key) - others[pair].mean(key) for pair in pairs]
        scores[title] = Score(
            mean=float(np.mean(means)),
            sd=float(np.std(means, ddof=1)) if len(means) > 1 else None,
            differences=tuple(differences),
            people=_people(key, members, others, pairs, resamples, seed),
            seeds=t_interval(differences, LEVEL),
        )
    steps = _ratios(members, others, pairs)
    pictures = _ratios(members, others, pairs, each_picture=True)
    if name == baseline and any(run.step_seconds for run in members.values()):
        steps, pictures = [1.0], [1.0]
    return Variant(
        name,
        len(members),
        scores,
        step=float(np.median(steps)) if steps else None,
        picture=float(np.median(pictures)) if pictures else None,
    )


def _people(
    key: str,
    members: Mapping[Pair, Run],
    others: Mapping[Pair, Run],
    pairs: Sequence[Pair],
    resamples: int,
    seed: int,
) -> Interval | None:
    """Interval of the mean difference over query people; runs on one data folder ask the same people."""
    if not pairs:
        return None
    worlds: dict[str, list[Pair]] = {}
    for pair in pairs:
        worlds.setdefault(pair[1], []).append(pair)

    def samples(runs: Mapping[Pair, Run]) -> list[QueryScores]:
        return [
            QueryScores(
                np.stack([runs[pair].values(key) for pair in own]), runs[own[0]].queries["person"].to_numpy()
            )
            for own in worlds.values()
        ]

    return paired_difference(samples(members), samples(others), level=LEVEL, resamples=resamples, seed=seed)


def _ratios(
    members: Mapping[Pair, Run],
    others: Mapping[Pair, Run],
    pairs: Sequence[Pair],
    *,
    each_picture: bool = False,
) -> list[float]:
    """Time of a step, or of a picture, over that of the baseline; of each pair for which it is known."""
    found = []
    for pair in pairs:
        one, other = members[pair], others[pair]
        if one.step_seconds and other.step_seconds:
            ratio = one.step_seconds / other.step_seconds
            if not each_picture:
                found.append(ratio)
            elif one.pictures and other.pictures:
                found.append(ratio * other.pictures / one.pictures)
    return found


def _missing(grouped: Mapping[str, Mapping[Pair, Run]], baseline: str) -> list[str]:
    """A note on each run without a partner."""

    def alone(name: str, other: str) -> list[str]:
        return [
            f"{other} has no run with seed {seed} on {root}, which {name} has: no pair"
            for seed, root in grouped[name]
            if (seed, root) not in grouped[other]
        ]

    return [note for name in grouped for note in (*alone(name, baseline), *alone(baseline, name))]


def _line(run: Run) -> list[str]:
    scores = (f"{100 * run.mean(key):.1f}" for key in SCORES)
    return [run.variant, str(run.pair[0]), run.pair[1], *scores, str(run.folder)]


def _numbers(variant: Variant, members: Mapping[Pair, Run], others: Mapping[Pair, Run]) -> dict[str, Any]:
    """Everything that the table and the figure show of a variant, JSON-ready; fractions, not per cent."""
    found: dict[str, Any] = {
        "variant": variant.name,
        # The baseline is nobody's partner of its own.
        "pairs": [
            {"seed": pair[0], "root": pair[1]} for pair in members if pair in others and members is not others
        ],
        "step": variant.step,
        "picture": variant.picture,
    }
    for key, title in SCORES.items():
        score = variant.scores[title]
        found[key] = {
            "mean": score.mean,
            "sd": score.sd,
            "difference": score.difference,
            "people": score.people,
            "seeds": score.seeds,
            "differences": score.differences,
        }
    found["runs"] = [
        {
            "folder": str(run.folder),
            "seed": run.pair[0],
            "root": run.pair[1],
            **{key: run.mean(key) for key in SCORES},
            "queries": len(run.queries),
            "people": run.queries["person"].n_unique(),
            "step_seconds": run.step_seconds,
            "pictures_per_step": run.pictures,
        }
        for run in members.values()
    ]
    return found
