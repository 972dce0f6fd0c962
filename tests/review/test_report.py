"""`clip3dreid report`, the whole command: what is on the page, what is left out and why, what is refused."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

from clip3dreid.errors import InputError
from clip3dreid.review.report import write_report
from clip3dreid.review.run import read_run
from clip3dreid.review.settings import PARTS, ReportSettings, published_scores
from tests.comparison.test_runs import write_run
from tests.conftest import Command
from tests.report.test_html import read

QUICK = ("workers=0", "queries=1", "top=3")
LOOKED = ("ranked_lists", "clothes_failures", "distances", "plans", "maps", "bodies", "embedding_map")


def left_out(page: Path) -> dict[str, str]:
    """Section -> why it is left out."""
    text = page.read_text(encoding="utf-8")
    found = {}
    for part in re.findall(r'<section aria-labelledby="(\w+)">(.*?)</section>', text, flags=re.S):
        reason = re.search(r'<p class="left-out">Left out: (.*?)</p>', part[1], flags=re.S)
        if reason is not None:
            found[part[0]] = reason[1]
    return found


def sections(page: Path) -> list[str]:
    return re.findall(r'<section aria-labelledby="(\w+)">', page.read_text(encoding="utf-8"))


def moved(run: Path, place: Path) -> Path:
    """A run's folder on another machine: whatever is in it, and nothing beside."""
    shutil.copytree(run, place)
    return place


def test_a_finished_run_has_every_part(finished: Path, invoke: Command, tmp_path: Path) -> None:
    done = invoke("report", f"run={finished}", *QUICK)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "report" / "report.html"
    assert sections(page) == list(PARTS)
    assert left_out(page) == {}
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]
    text = read(page.read_text(encoding="utf-8")).text
    scores = json.loads((finished / "results.json").read_text())["evaluations"][0]["results"][
        "clothes_changing"
    ]
    low, high = scores["interval"]["map"]
    assert f"{100 * scores['map']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text
    # CLIP3DReID's on LTCC, with where it was read.
    assert "42.1" in text
    assert "digest of the paper" in text
    assert "the first right picture has the recorded rank in 3 of 3" in text
    assert str(report_of_machine(finished)["python"]) in text


def report_of_machine(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "environment.json").read_text())
    return found


def test_markdown_has_the_same_parts_with_their_figures(
    finished: Path, invoke: Command, tmp_path: Path
) -> None:
    done = invoke(
        "report", str(finished), *QUICK, "format=markdown", "out=paper", "without=[words,configuration]"
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "paper" / "report.md").read_text(encoding="utf-8")
    assert len(re.findall("^## ", text, flags=re.M)) == len(PARTS) - 2
    assert "Left out" not in text
    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (tmp_path / "paper" / name).stat().st_size > 200
    assert {"body-1.glb", "ranked-best.jpg", "distances.png", "plan-1.png"} <= {
        path.name for path in (tmp_path / "paper").iterdir()
    }


def test_pictures_that_moved_are_left_out_with_the_key_that_finds_them(
    finished: Path, ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    run = moved(finished, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["root"] = "/their machine/data/LTCC_ReID"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    done = invoke("report", "run=run", *QUICK, "without=[cmc,training,words]")
    assert done.returncode == 0, done.stderr
    reasons = left_out(tmp_path / "report" / "report.html")
    assert set(reasons) == set(LOOKED)
    assert "moved={/their machine/data/LTCC_ReID: FOLDER}" in next(iter(reasons.values()))
    shown = (
        "without=[cmc,training,words,plans,maps,bodies,distances]",
        f"moved={{/their machine/data: {ltcc_root.parent}}}",
    )
    done = invoke("report", "run=run", *QUICK, *shown)
    assert done.returncode == 0, done.stderr
    assert left_out(tmp_path / "report" / "report.html") == {}


def test_without_its_checkpoint_a_run_still_has_its_numbers(
    finished: Path, invoke: Command, tmp_path: Path
) -> None:
    run = moved(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    for path in (run / "csv", run / "labels.parquet", run / "environment.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = invoke("report", "run=run", *QUICK)
    assert done.returncode == 0, done.stderr
    reasons = left_out(tmp_path / "report" / "report.html")
    assert set(reasons) == {*LOOKED, "training", "words", "environment"}
    assert "the checkpoint is not there" in reasons["bodies"]
    assert "logger=csv" in reasons["training"]
    assert "labels.parquet" in reasons["words"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("os.system", "names os.system at data.read._target_, which reads no data set"),
        ("clip3dreid.data.datasets.ltcc.Path.unlink", "which reads no data set"),
        ("${oc.env:HOME}", "has something computed"),
        ("torch.load", "which reads no data set"),
    ],
)
def test_what_a_runs_config_names_is_not_run(target: str, said: str, finished: Path, tmp_path: Path) -> None:
    from clip3dreid.config.review import run_source

    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["data"]["read"]["_target_"] = target
    with pytest.raises(InputError, match=re.escape(said)):
        run_source(config)


def test_a_rule_of_ones_own_is_taken_where_its_package_is_trusted(finished: Path) -> None:
    from clip3dreid.config.review import run_source

    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["data"]["protocols"]["general"]["drop"]["path"] = "tests.review.conftest.rule"
    with pytest.raises(InputError, match=r"trusted=\[tests\]"):
        run_source(config)


@pytest.mark.parametrize(
    "case", ["none", "file", "world", "unfinished", "damaged", "no scores", "old", "best"]
)
def test_what_is_no_finished_run_is_refused_in_one_line(
    case: str, finished: Path, ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    run = moved(finished, tmp_path / "run")
    results = run / "results.json"
    facts = json.loads(results.read_text())
    arguments, said = ["run=run"], ""
    if case == "none":
        arguments, said = [], "no run is given"
    elif case == "file":
        arguments, said = [f"run={results}"], "is no folder"
    elif case == "world":
        arguments, said = [f"run={ltcc_root}"], "has no results.json"
    elif case == "unfinished":
        results.unlink()
        said = "the run is not finished"
    elif case == "damaged":
        results.write_text(results.read_text()[:500])
        said = "cannot be read as the results of a run"
    elif case == "no scores":
        del facts["evaluations"][0]["results"]["clothes_changing"]["map"]
        results.write_text(json.dumps(facts))
        said = "cannot be read as the results of a run (KeyError 'map')"
    elif case == "old":
        results.write_text(json.dumps(facts | {"version": 1}))
        said = "results.json has version 1"
    else:
        arguments.append("checkpoint=best")
        said = "has no checkpoint best; there is last"
    done = invoke("report", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("without=[bodes]", "without=bodes is unknown; choose scores"),
        ("format=pdf", "format=pdf is unknown; choose html or markdown"),
        ("queries=0", "queries=0 must be a whole number, 1 or more"),
        ("moved=there", "moved=there must be {OLD: NEW}"),
        ("published_scores.ltcc.general=[[mine,high]]", "must be [method, R1, mAP, source]"),
    ],
)
def test_a_wrong_value_is_told(argument: str, said: str, invoke: Command) -> None:
    done = invoke("report", "run=run", argument)
    assert done.returncode == 2
    assert said in done.stderr


def test_damaged_parts_are_left_out_and_named(finished: Path, invoke: Command, tmp_path: Path) -> None:
    run = moved(finished, tmp_path / "run")
    (run / "per_query" / "last_ltcc_general.parquet").write_bytes(b"PAR1")
    (run / "csv" / "metrics.csv").write_text("a,b\n1,2\n")
    (run / "config.yaml").write_text("- a\n")
    (run / "environment.json").write_text('{"packages": [1]}')
    done = invoke("report", "run=run", *QUICK)
    assert done.returncode == 0, done.stderr
    reasons = left_out(tmp_path / "report" / "report.html")
    assert "last_ltcc_general.parquet" in reasons["cmc"]
    assert "metrics.csv" in reasons["training"]
    assert "config.yaml" in reasons["configuration"]
    assert "environment.json is damaged (its packages holds no keys)" in reasons["environment"]
    assert "scores" not in reasons


def test_queries_of_another_folder_are_not_read(finished: Path, tmp_path: Path) -> None:
    run = moved(finished, tmp_path / "run")
    facts = json.loads((run / "results.json").read_text())
    facts["evaluations"][0]["per_query"]["general"] = "../other/per_query/last_ltcc_general.parquet"
    (run / "results.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="outside the run's folder"):
        read_run(run, "last").queries("general")


def test_several_runs_are_compared(invoke: Command, tmp_path: Path) -> None:
    for seed in (1, 2):
        for variant, hits in (("ce", 0.3), ("all <b>", 0.7)):
            folder = write_run(tmp_path / "runs" / f"{variant[:2]}{seed}", variant, seed, hits)
            complete(folder)
    done = invoke("report", "runs", "out=found")
    assert done.returncode == 0, done.stderr
    page = tmp_path / "found" / "report.html"
    assert sections(page) == ["comparison", "scores", "cmc", "training", "configuration", "cost"]
    assert set(left_out(page)) == {"training"}
    text = read(page.read_text(encoding="utf-8")).text
    assert "all <b>, seed 1" in text
    assert "difference to ce" in text
    # One without a run of the baseline says so, and has the rest.
    done = invoke("report", "runs/ce1", "runs/ce2", "baseline=local")
    assert done.returncode == 0, done.stderr
    assert "no run of the baseline local" in left_out(tmp_path / "report" / "report.html")["comparison"]


def complete(folder: Path) -> None:
    """Give a run that a test wrote what results have besides."""
    facts = json.loads((folder / "results.json").read_text())
    for scores in facts["evaluations"][0]["results"].values():
        scores |= {
            "r5": 0.9,
            "r10": 0.95,
            "r20": 1.0,
            "minp": 0.2,
            "gallery": 60,
            "queries": 36,
            "valid_queries": 36,
        }
    (folder / "results.json").write_text(json.dumps(facts))


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    from clip3dreid.review.several import names_of

    runs = []
    for name in ("a", "b"):
        folder = write_run(tmp_path / name, "ce", 1, 0.5)
        complete(folder)
        runs.append(read_run(folder, "last"))
    assert names_of(runs) == [f"ce, seed 1 ({tmp_path.name}/{name})" for name in ("a", "b")]
    assert names_of(runs[:1]) == ["ce, seed 1"]


def test_from_python_a_run_is_reported_in_one_call(finished: Path, tmp_path: Path) -> None:
    import clip3dreid

    looked = (*(part for part in LOOKED if part != "distances"), "words", "training", "cmc")
    page = clip3dreid.write_report(finished, tmp_path / "one", without=looked, workers=0)
    assert left_out(page) == {}
    # With no data set nothing is opened.
    page = write_report(finished, tmp_path / "two", ReportSettings(without=looked))
    assert left_out(page) == {"distances": "no data set was given, so no picture was looked at"}


def test_published_scores_name_data_sets_and_protocols_that_there_are() -> None:
    from clip3dreid.config.folder import conf_dir
    from clip3dreid.config.hydra import composed

    node = yaml.safe_load((conf_dir() / "published_scores" / "default.yaml").read_text(encoding="utf-8"))
    found = published_scores(node)
    assert len(found) > 60
    protocols = {data: set(composed("evaluate", f"data={data}").data.protocols) for data in node}
    for row in found:
        assert row.protocol in protocols[row.data], row
        assert row.source
        assert all(score is None or 0 < score <= 100 for score in (row.r1, row.map)), row
    methods = [row[:3] for row in found]
    assert len(set(methods)) == len(methods)


def test_the_table_of_queries_of_a_run_is_the_one_on_disk(finished: Path) -> None:
    run = read_run(finished, "last")
    assert run.queries("general").equals(
        pl.read_parquet(finished / "per_query" / "last_ltcc_general.parquet").select(
            run.queries("general").columns
        )
    )
