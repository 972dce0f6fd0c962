import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

from clip3dreid.comparison.compare import compare
from clip3dreid.comparison.page import as_json
from clip3dreid.comparison.settings import CompareSettings
from clip3dreid.config.bare_folders import with_folders
from clip3dreid.errors import InputError

Command = Callable[..., subprocess.CompletedProcess[str]]

FEW = "resamples=300"


def write_run(
    folder: Path,
    variant: str | None,
    seed: int,
    hits: float,
    *,
    root: str | None = None,
    data: str = "embedded",
    step: float = 0.2,
    pictures: int = 32,
    people: int = 12,
    **changed: Any,
) -> Path:
    """A finished run: every person has three queries, of which the share `hits` is found, more or less."""
    root = f"/worlds/{seed}" if root is None else root
    person = np.repeat(np.arange(people), 3)
    ease = np.random.default_rng([11, seed]).random(len(person))
    found = ease < hits
    results = {}
    for protocol, shift in (("general", 0.1), ("clothes_changing", 0.0)):
        ap = np.clip(np.where(found, 0.8, 0.3) + shift, 0, 1)
        table = pl.DataFrame(
            {
                "query": [f"query/{index:03d}.png" for index in range(len(person))],
                "person": [f"{who:04d}" for who in person],
                "first_hit": np.where(found, 1.0, 4.0),
                "ap": ap,
                "positives": [2] * len(person),
                "junk": [1] * len(person),
            }
        )
        (folder / "per_query").mkdir(parents=True, exist_ok=True)
        # The rows of a run on several devices come in another order.
        table.sample(fraction=1, shuffle=True, seed=len(variant or "")).write_parquet(
            folder / f"per_query/last_{data}_{protocol}.parquet"
        )
        results[protocol] = {"r1": found.mean(), "map": ap.mean(), "chance_r1": 0.05, "shots": "multi-shot"}
    facts = {
        "version": 2,
        "seed": seed,
        "variant": variant,
        "metric": "cosine",
        "flip": True,
        "notes": {},
        "cost": {
            "step_seconds": step,
            "pictures_per_step": pictures,
            "steps": 100,
            "train_seconds": 100 * step,
        },
        "evaluations": [
            {
                "checkpoint": "last",
                "selected_by": "last epoch",
                "data": data,
                "results": results,
                "per_query": {name: f"per_query/last_{data}_{name}.parquet" for name in results},
            }
        ],
    }
    config = {"seed": seed, "run_name": "x", "variant": variant, "data": {"name": data, "root": root}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps(facts | changed))
    return folder


def write_ablation(folder: Path, seeds: int = 3) -> Path:
    """A sweep, in folders that Hydra numbers: `ce`, `local` and `all`, of each seed and its world."""
    number = 0
    for seed in range(1, seeds + 1):
        for variant, hits, step, pictures in (
            ("local", 0.6, 0.3, 64),
            ("ce", 0.4, 0.2, 32),
            ("all", 0.9, 0.5, 64),
        ):
            write_run(folder / str(number), variant, seed, hits, step=step, pictures=pictures)
            (folder / str(number) / ".hydra").mkdir()
            (folder / str(number) / ".hydra" / "config.yaml").write_text("seed: 1\n")
            number += 1
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "results.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def numbers(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return found


def rows(text: str) -> dict[str, list[str]]:
    """Cells of the first table, by variant."""
    table = text.split("\n\n")[2].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    return {row[0]: row[1:] for row in cells}


def test_the_whole_command_writes_page_numbers_and_figure(command: Command, tmp_path: Path) -> None:
    write_ablation(tmp_path / "runs" / "sweeps" / "x")
    done = command("compare", "runs", "out=found")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        "compare.md",
        "compare.json",
        "compare.png",
    }
    with Image.open(tmp_path / "found" / "compare.png") as picture:
        assert min(picture.size) > 200
    text = (tmp_path / "found" / "compare.md").read_text()
    found = rows(text)
    # The baseline first, the rest as they were found.
    assert list(found) == ["ce", "local", "all"]
    assert found["ce"][1].startswith(
        f"{100 * numbers(tmp_path / 'found')['variants'][0]['r1']['mean']:.1f} ± "
    )
    assert found["ce"][2:5] == ["", "", ""]
    assert found["local"][-2:] == ["1.50", "0.75"]
    assert found["all"][-2:] == ["2.50", "1.25"]
    assert "protocol: clothes\\_changing" in text
    assert "chance R1: 5.0 %" in text
    assert text.count("| runs/sweeps/x/") == 9
    assert "found/compare.md" in done.stdout
    assert "local" in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_the_numbers_are_those_of_the_runs(invoke: Command, tmp_path: Path) -> None:
    write_ablation(tmp_path / "x")
    assert invoke("compare", "x", FEW).returncode == 0
    found = numbers(tmp_path / "compare")
    assert (found["protocol"], found["checkpoint"], found["data"]) == ("clothes_changing", "last", "embedded")
    assert (found["baseline"], found["level"], found["resamples"]) == ("ce", 0.95, 300)
    by_name = {variant["variant"]: variant for variant in found["variants"]}
    told = [
        json.loads((tmp_path / "x" / str(number) / "results.json").read_text())["evaluations"][0]["results"][
            "clothes_changing"
        ]
        for number in range(9)
    ]
    for key in ("r1", "map"):
        local, ce = (np.array([told[number][key] for number in range(start, 9, 3)]) for start in (0, 1))
        score = by_name["local"][key]
        assert score["mean"] == pytest.approx(local.mean())
        assert score["sd"] == pytest.approx(local.std(ddof=1))
        assert score["differences"] == pytest.approx(list(local - ce))
        assert score["difference"] == pytest.approx((local - ce).mean())
        half = 4.3027 * (local - ce).std(ddof=1) / 3**0.5
        assert score["seeds"] == pytest.approx(
            [score["difference"] - half, score["difference"] + half], rel=1e-3
        )
        low, high = score["people"]
        assert low < score["difference"] < high
    assert by_name["ce"]["r1"]["people"] is None
    assert [run["seed"] for run in by_name["all"]["runs"]] == [1, 2, 3]
    assert found["notes"] == []


def test_runs_on_one_data_folder_draw_the_same_people(invoke: Command, tmp_path: Path) -> None:
    # Three trainings on the same people say no more about people than one does.
    def width(seeds: int) -> float:
        for seed in range(1, seeds + 1):
            for variant, hits in (("ce", 0.4), ("local", 0.7)):
                folder = write_run(tmp_path / f"{seeds}/{variant}{seed}", variant, seed, hits, root="/data")
                # The same outcome of every seed.
                for path in folder.glob("per_query/*"):
                    path.write_bytes((tmp_path / f"{seeds}/{variant}1/per_query" / path.name).read_bytes())
                first = json.loads((tmp_path / f"{seeds}/{variant}1/results.json").read_text())
                edit(folder, lambda facts, first=first: facts.update(evaluations=first["evaluations"]))
        assert invoke("compare", str(seeds), FEW, f"out=out{seeds}").returncode == 0
        low, high = numbers(tmp_path / f"out{seeds}")["variants"][1]["r1"]["people"]
        return float(high - low)

    assert width(3) == pytest.approx(width(1))


def test_protocol_baseline_order_and_seed_can_be_chosen(invoke: Command, tmp_path: Path) -> None:
    write_ablation(tmp_path / "x", seeds=1)
    done = invoke("compare", "x", FEW, "protocol=general", "baseline=all", "order=[local,all]", "out=a")
    assert done.returncode == 0, done.stderr
    found = numbers(tmp_path / "a")
    assert found["protocol"] == "general"
    assert [variant["variant"] for variant in found["variants"]] == ["local", "all", "ce"]
    assert found["variants"][0]["r1"]["difference"] < 0
    # One seed tells nothing about seeds.
    assert found["variants"][0]["r1"]["seeds"] is None
    assert found["variants"][0]["r1"]["sd"] is None
    assert invoke("compare", "x", FEW, "protocol=general", "baseline=all", "seed=9", "out=b").returncode == 0
    other = {variant["variant"]: variant for variant in numbers(tmp_path / "b")["variants"]}["local"]["map"]
    assert other["difference"] == found["variants"][0]["map"]["difference"]
    assert other["people"] != found["variants"][0]["map"]["people"]


def test_a_protocol_of_the_users_own_can_be_chosen(invoke: Command, tmp_path: Path) -> None:
    def rename(facts: dict[str, Any]) -> None:
        for part in ("results", "per_query"):
            facts["evaluations"][0][part]["mine"] = facts["evaluations"][0][part].pop("general")

    for folder in write_ablation(tmp_path / "x", seeds=1).iterdir():
        edit(folder, rename)
    assert invoke("compare", "x", FEW, "protocol=clothes_changing").returncode == 0
    assert numbers(tmp_path / "compare")["protocol"] == "clothes_changing"
    assert invoke("compare", "x", FEW, "+protocol.mine={}").returncode == 0
    assert numbers(tmp_path / "compare")["protocol"] == "mine"


def test_missing_partners_are_named_and_left_out_of_the_difference(invoke: Command, tmp_path: Path) -> None:
    for name, variant, seed in (("a", "ce", 1), ("b", "ce", 2), ("c", "local", 2), ("d", "local", 3)):
        write_run(tmp_path / "x" / name, variant, seed, 0.5)
    write_run(tmp_path / "x" / "e", "all", 9, 0.5)
    done = invoke("compare", "x", FEW)
    assert done.returncode == 0, done.stderr
    found = numbers(tmp_path / "compare")
    local = found["variants"][1]
    assert local["pairs"] == [{"seed": 2, "root": "/worlds/2"}]
    assert len(local["runs"]) == 2
    assert found["variants"][2]["r1"]["difference"] is None
    text = (tmp_path / "compare" / "compare.md").read_text()
    assert "- ce has no run with seed 3 on /worlds/3, which local has: no pair" in text
    assert "- local has no run with seed 1 on /worlds/1, which ce has: no pair" in text
    assert "no run with seed 3 on /worlds/3" in done.stdout


def test_equal_runs_differ_by_exactly_nothing(invoke: Command, tmp_path: Path) -> None:
    for variant in ("ce", "same"):
        write_run(tmp_path / "x" / variant, variant, 1, 0.5)
    assert invoke("compare", "x", FEW).returncode == 0
    for key in ("r1", "map"):
        assert numbers(tmp_path / "compare")["variants"][1][key]["people"] == [0.0, 0.0]


def test_unfinished_and_older_runs_are_skipped_by_name(invoke: Command, tmp_path: Path) -> None:
    write_ablation(tmp_path / "x", seeds=1)
    (write_run(tmp_path / "x/unfinished", "ce", 5, 0.5) / "results.json").unlink()
    write_run(tmp_path / "x/older", "ce", 6, 0.5, version=1)
    write_run(tmp_path / "x/free", None, 7, 0.5)
    done = invoke("compare", "x", FEW)
    assert done.returncode == 0, done.stderr
    notes = numbers(tmp_path / "compare")["notes"]
    assert len(notes) == 3
    for name, reason in (
        ("unfinished", "no results.json"),
        ("older", "has version 1, not 2"),
        ("free", "no variant"),
    ):
        assert any(f"skipped x/{name}: " in note and reason in note for note in notes)
        assert f"skipped x/{name}" in done.stdout


def test_a_run_without_a_label_is_called_what_its_results_say(invoke: Command, tmp_path: Path) -> None:
    write_ablation(tmp_path / "x", seeds=1)
    write_run(tmp_path / "x" / "free", None, 1, 0.5)
    edit(tmp_path / "x" / "free", lambda facts: facts.update(variant="identity+triplet"))
    assert invoke("compare", "x", FEW).returncode == 0
    assert numbers(tmp_path / "compare")["variants"][-1]["variant"] == "identity+triplet"


def test_other_folders_with_a_config_are_no_runs(invoke: Command, tmp_path: Path) -> None:
    write_ablation(tmp_path / "x", seeds=1)
    for folder in ("x/0/wandb/run/files", "x/world"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.yaml").write_text("a: 1\n")
    assert invoke("compare", "x", FEW).returncode == 0
    assert numbers(tmp_path / "compare")["notes"] == []


def test_a_run_given_twice_counts_once(invoke: Command, tmp_path: Path) -> None:
    write_ablation(tmp_path / "x", seeds=1)
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert invoke("compare", "x/1", "x", "link", FEW).returncode == 0
    assert all(len(variant["runs"]) == 1 for variant in numbers(tmp_path / "compare")["variants"])


AWKWARD = ["with, comma", "it's", "a=b,c=[d]", "${oc.env:HOME}", "back\\slash", "1", "null", " space "]


@pytest.mark.parametrize("name", AWKWARD)
def test_folders_of_any_name_can_be_given_bare(invoke: Command, tmp_path: Path, name: str) -> None:
    write_ablation(tmp_path / name, seeds=1)
    done = invoke("compare", name, FEW)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "compare")["variants"][0]["runs"][0]["folder"] == f"{name}/1"


def test_runs_can_be_given_as_an_override_too(invoke: Command, tmp_path: Path) -> None:
    write_ablation(tmp_path / "x", seeds=1)
    assert invoke("compare", "runs=x", FEW).returncode == 0
    assert invoke("compare", "runs=[x/0,x/1]", FEW).returncode == 0
    assert [variant["variant"] for variant in numbers(tmp_path / "compare")["variants"]] == ["ce", "local"]


def test_words_of_hydras_own_options_are_no_folders(invoke: Command) -> None:
    assert with_folders("runs", ["out=x", "--cfg", "job", "a b"]) == ["runs=['a b']", "out=x", "--cfg", "job"]
    assert with_folders("runs", ["--help"]) == ["--help"]
    assert with_folders("runs", ["runs=[a]"]) == ["runs=[a]"]
    with pytest.raises(InputError, match="not both ways"):
        with_folders("runs", ["a", "runs=[b]"])
    before = list(sys.argv)
    done = invoke("compare", "somewhere", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "- somewhere" in done.stdout
    assert before[0] not in done.stdout


def without_flip(facts: dict[str, Any]) -> None:
    facts["flip"] = False


def rerank(facts: dict[str, Any]) -> None:
    for scores in facts["evaluations"][0]["results"].values():
        scores["rerank"] = {"method": "KReciprocal", "k1": 20}


@pytest.mark.parametrize(
    ("change", "named"),
    [(without_flip, ("flip=True", "x/2")), (rerank, ("rerank=None", "KReciprocal"))],
    ids=["flip", "rerank"],
)
def test_runs_that_were_tested_in_different_ways_are_not_compared(
    invoke: Command, tmp_path: Path, change: Callable[[dict[str, Any]], None], named: tuple[str, ...]
) -> None:
    write_ablation(tmp_path / "x", seeds=1)
    edit(tmp_path / "x/2", change)
    done = invoke("compare", "x", FEW)
    assert done.returncode == 2
    for words in named:
        assert words in done.stderr


def test_a_cost_that_was_not_measured_is_blank(invoke: Command, tmp_path: Path) -> None:
    write_ablation(tmp_path / "x", seeds=1)
    edit(tmp_path / "x/0", lambda facts: facts.pop("cost"))
    assert invoke("compare", "x", FEW).returncode == 0
    found = rows((tmp_path / "compare" / "compare.md").read_text())
    assert found["local"][-2:] == ["", ""]
    assert found["all"][-2:] == ["2.50", "1.25"]


def refused(invoke: Command, *arguments: str) -> str:
    done = invoke("compare", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def first_of(folder: Path) -> Path:
    return folder / "0/per_query/last_embedded_clothes_changing.parquet"


def rewrite(path: Path, **columns: Any) -> None:
    pl.read_parquet(path).with_columns(**columns).write_parquet(path)


BROKEN: dict[str, tuple[Callable[[Path], Any], tuple[str, ...], tuple[str, ...]]] = {
    "no runs are given": (lambda x: None, (), ("no runs are given",)),
    "no such folder": (lambda x: None, ("nowhere",), ("nowhere is no folder",)),
    "a file": (lambda x: None, ("x/0/results.json",), ("is no folder",)),
    "an empty folder": (lambda x: (x.parent / "y").mkdir(), ("x", "y"), ("no runs in y",)),
    "both ways": (lambda x: None, ("x", "runs=[x]"), ("not both ways",)),
    "no baseline": (lambda x: None, ("x", "baseline=cal"), ("no run of the baseline cal", "local, ce, all")),
    "baseline alone": (lambda x: None, ("x/1",), ("all 1 runs are of ce",)),
    "unknown variant": (lambda x: None, ("x", "order=[cal]"), ("no run of cal", "local, ce, all")),
    "unknown protocol": (
        lambda x: None,
        ("x", "protocol=same_clothes"),
        ("no protocol same_clothes", "there are general, clothes_changing"),
    ),
    "no protocol of ours": (lambda x: None, ("x", "protocol=night"), ("night", "clothes_changing")),
    "two protocols": (
        lambda x: None,
        ("x", "protocol=[general,clothes_changing]"),
        ("one protocol at a time",),
    ),
    "no scores": (
        lambda x: edit(x / "0", lambda facts: facts["evaluations"][0].update(results={})),
        ("x",),
        ("x/0/results.json has no scores",),
    ),
    "unknown checkpoint": (lambda x: None, ("x", "checkpoint=best"), ("no checkpoint best; there is last",)),
    "resamples": (lambda x: None, ("x", "resamples=0"), ("resamples=0",)),
    "resamples of words": (lambda x: None, ("x", "resamples=many"), ("resamples=many",)),
    "seed": (lambda x: None, ("x", "seed=-1"), ("seed=-1",)),
    "a key": (lambda x: None, ("x", "resample=5"), ("resample",)),
    "other data": (
        lambda x: write_run(x / "9", "ce", 9, 0.5, data="ltcc"),
        ("x",),
        ("embedded", "x/9 on ltcc", "one data set at a time"),
    ),
    "twice the same": (
        lambda x: write_run(x / "again", "ce", 1, 0.5),
        ("x",),
        ("x/1 and x/again are both runs of ce with seed 1 on /worlds/1",),
    ),
    "no queries": (lambda x: first_of(x).unlink(), ("x",), ("x/0/per_query/last_embedded", "is missing")),
    "damaged queries": (
        lambda x: first_of(x).write_bytes(b"PAR1"),
        ("x",),
        ("x/0/per_query", "cannot be read"),
    ),
    "a column": (
        lambda x: pl.read_parquet(first_of(x)).drop("ap").write_parquet(first_of(x)),
        ("x",),
        ("x/0/per_query", "has no column ap"),
    ),
    "empty queries": (
        lambda x: pl.read_parquet(first_of(x)).clear().write_parquet(first_of(x)),
        ("x",),
        ("R1 of its 0 queries",),
    ),
    "null": (lambda x: rewrite(first_of(x), person=pl.lit(None, pl.String)), ("x",), ("x/0/per_query",)),
    "other results": (
        lambda x: rewrite(first_of(x), ap=pl.col("ap") / 2),
        ("x",),
        ("mAP of its 36 queries", "results.json says"),
    ),
    "other queries": (
        lambda x: rewrite(first_of(x), query=pl.col("query") + "x"),
        ("x",),
        ("x/0 and x/1 were tested on different queries of /worlds/1",),
    ),
    "results that are no JSON": (
        lambda x: (x / "0/results.json").write_text("{"),
        ("x",),
        ("x/0/results.json cannot be read",),
    ),
    "results that are a list": (
        lambda x: (x / "0/results.json").write_text("[]"),
        ("x",),
        ("x/0/results.json cannot be read", "no JSON object"),
    ),
    "a config of something else": (
        lambda x: (x / "0/config.yaml").write_text("a: 1\n"),
        ("x",),
        ("x/0 cannot be read as a run", "seed"),
    ),
    "a config that is no YAML": (
        lambda x: (x / "0/config.yaml").write_text("a: ]"),
        ("x",),
        ("x/0/config.yaml cannot be read",),
    ),
    "an empty config": (
        lambda x: (x / "0/config.yaml").write_text(""),
        ("x",),
        ("x/0 cannot be read as a run", "seed"),
    ),
    "no file named": (
        lambda x: edit(x / "0", lambda facts: facts["evaluations"][0].pop("per_query")),
        ("x",),
        ("x/0/results.json cannot be read as the results of a run", "per_query"),
    ),
    "no evaluations": (
        lambda x: edit(x / "0", lambda facts: facts.update(evaluations=[])),
        ("x",),
        ("no checkpoint last; there is none",),
    ),
    "nothing finished": (
        lambda x: (x / "1/results.json").unlink(),
        ("x/1",),
        ("no finished run", "skipped x/1: not finished"),
    ),
    "no place to write": (
        lambda x: (x.parent / "compare").write_text(""),
        ("x", FEW),
        ("cannot write compare",),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_compared_is_one_line(invoke: Command, tmp_path: Path, case: str) -> None:
    spoil, arguments, expected = BROKEN[case]
    spoil(write_ablation(tmp_path / "x", seeds=1))
    line = refused(invoke, *arguments)
    assert all(part in line for part in expected), line
    assert not (tmp_path / "compare").is_dir()


def by_parts(folder: Path, hits: float, **keys: Any) -> Path:
    """A run that compares pictures by several parts, with the scores of the embedding alone, `hits`, behind."""
    write_run(folder, **keys, hits=hits)
    (folder / "per_query").rename(folder / "embedding_per_query")
    alone = json.loads((folder / "results.json").read_text())["evaluations"][0]
    alone["per_query"] = {name: f"embedding_{file}" for name, file in alone["per_query"].items()}
    write_run(folder, **keys, hits=0.9)
    facts = json.loads((folder / "results.json").read_text())
    facts["evaluations"][0]["feature"] = {"embedding": 1.0, "betas": 0.5}
    facts["evaluations"].append(alone | {"feature": {"embedding": 1.0}})
    (folder / "results.json").write_text(json.dumps(facts))
    return folder


def test_variants_are_compared_by_their_own_features_or_all_by_the_embedding_alone(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"ce{seed}", "ce", seed, 0.4)
        by_parts(tmp_path / f"all{seed}", 0.6, variant="all", seed=seed)
    means = {}
    for feature in ("headline", "embedding"):
        found = compare([tmp_path], CompareSettings(feature=feature, resamples=50))
        means[feature] = {variant.name: variant.scores["R1"].mean for variant in found.variants}
        noted = any("all compares pictures by embedding + 0.5 betas" in note for note in found.notes)
        assert noted == (feature == "headline")
    assert means["headline"]["ce"] == means["embedding"]["ce"]
    assert means["headline"]["all"] > means["embedding"]["all"] > means["embedding"]["ce"]
    page_facts = as_json(compare([tmp_path], CompareSettings(resamples=50)))["variants"]
    assert [one["feature"] for one in page_facts] == [{"embedding": 1.0}, {"embedding": 1.0, "betas": 0.5}]


def test_runs_of_one_variant_by_several_features_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "ce", "ce", 1, 0.4)
    write_run(tmp_path / "all1", "all", 1, 0.5)
    by_parts(tmp_path / "all2", 0.5, variant="all", seed=2)
    with pytest.raises(
        InputError, match=r"by embedding and .*by embedding \+ 0.5 betas.*both are all; leave"
    ):
        compare([tmp_path], CompareSettings(resamples=50))
    assert compare([tmp_path], CompareSettings(resamples=50, feature="embedding")).variants


def test_a_comparison_prints_its_scores_without_times_and_draws_itself(tmp_path: Path) -> None:
    found = compare([write_ablation(tmp_path)], CompareSettings(resamples=50))
    header, lines = found.table
    assert header[-2:] == ["step, x", "picture, x"]
    assert [line[0] for line in lines] == [variant.name for variant in found.variants]
    text, page = repr(found), found._repr_html_()
    for said in (found.title, *header[:-2], *(cell for line in lines for cell in line[:-2])):
        assert said in text, said
        assert said in page, said
    assert "step, x" not in text + page
    assert found.draw().get_suptitle() == found.title
