"""A run of the method on all dashboards, as small as it gets: what their files hold is read back."""

import base64
import contextlib
import hashlib
import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageColor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clip3dreid.body.gltf import mesh_of
from clip3dreid.body.smpl import load_body
from clip3dreid.cli.train import main
from clip3dreid.errors import InputError
from clip3dreid.report.search_sheet import RIGHT, WRONG
from clip3dreid.review import dashboard
from clip3dreid.review.boards import Boards
from clip3dreid.review.dashboard import Dashboard, drawn_body, show_run
from clip3dreid.review.dashboard_settings import LEFT_OUT, PANELS, DashboardSettings
from clip3dreid.review.looked import Looked
from tests.conftest import TINY, Command
from tests.review.test_boards import Recorder
from tests.small_disk import fill, small_disk
from tests.wandb_files import OfflineRun

PICTURES = {
    *("cmc/cmc", "ranked_lists/best", "ranked_lists/median", "ranked_lists/worst", "distances/figure"),
    *("words/words", *(f"plans/{number}" for number in range(1, 4)), "bodies/sheet"),
}
TABLES = {"scores/table", "cmc/table", "words/table"}
BODIES = {f"bodies/{number}" for number in range(1, 9)}
HISTOGRAMS = {
    "distances/same_person_same_clothes": 16,
    "distances/same_person_other_clothes": 16,
    # 16 queries, and 12 gallery pictures of the three others.
    "distances/other_people": 192,
}


class Shown(SimpleNamespace):
    """The run's folder, what its test pictures were to the dashboards, and what these left."""

    folder: Path
    looked: Looked
    wandb: OfflineRun
    events: EventAccumulator
    line: str

    @property
    def scores(self) -> Any:
        return json.loads((self.folder / "results.json").read_text())["evaluations"]


@pytest.fixture(scope="module")
def shown(ltcc_root: Path, guided: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("dashboards")
    asked = [
        *("data=ltcc", f"data.root={ltcc_root}", *TINY, "logger=[csv,wandb,tensorboard]", *guided),
        *("loss=[identity,local,shape]", "gradient_norms_every=1", "data.val_people=2", "evaluate_every=1"),
        *("epochs=2", "dashboard.queries=3", "dashboard.top=2", "dashboard.checkpoint=true"),
        "hydra.run.dir=run",
    ]
    seen: list[Looked] = []

    def spy(boards: Boards, look: Callable[[Any], Looked], *rest: Any) -> list[str]:
        def kept(run: Any) -> Looked:
            seen.append(look(run))
            return seen[-1]

        return show_run(boards, kept, *rest)

    deterministic, root = torch.are_deterministic_algorithms_enabled(), logging.getLogger()
    before = root.level, list(root.handlers)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["clip3dreid.train", *asked])
        patch.setattr(dashboard, "show_run", spy)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
        patch.delenv("WANDB_DATA_DIR", raising=False)
        main()
    GlobalHydra.instance().clear()
    torch.use_deterministic_algorithms(deterministic)
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    (offline,) = (folder / "run" / "wandb").glob("offline-run-*")
    events = EventAccumulator(str(folder / "run" / "tensorboard"), {"tensors": 0, "images": 0})
    events.Reload()
    (line,) = [
        line for line in (folder / "run" / "train.log").read_text().splitlines() if "dashboards:" in line
    ]
    (looked,) = seen
    return Shown(folder=folder / "run", looked=looked, wandb=OfflineRun(offline), events=events, line=line)


def panels(run: OfflineRun, kind: str) -> set[str]:
    return {name.removesuffix("/_type") for name, (value, *_) in run.curves.items() if value == kind}


def test_both_dashboards_hold_the_same_panels(shown: Shown) -> None:
    tags = shown.events.Tags()
    texts = {name.removesuffix("/text_summary") for name in tags["tensors"] if name.endswith("text_summary")}
    meshes = {name.removesuffix("_VERTEX") for name in tags["tensors"] if name.endswith("_VERTEX")}
    # Every picture has its caption as a text.
    assert (set(tags["images"]), texts - set(tags["images"]), meshes, set(tags["histograms"])) == (
        PICTURES, {*TABLES, "checkpoint"}, BODIES, set(HISTOGRAMS),
    )  # fmt: skip
    kinds = ("image-file", "table-file", "object3D-file", "histogram")
    assert tuple(panels(shown.wandb, kind) for kind in kinds) == (PICTURES, TABLES, BODIES, set(HISTOGRAMS))
    assert f" {len(PICTURES | TABLES | BODIES | set(HISTOGRAMS))} panels in " in shown.line
    assert "; without" not in shown.line


def test_the_table_of_scores_has_every_result_with_its_interval_and_chance(shown: Shown) -> None:
    columns, rows = shown.wandb.table("scores/table")
    found = {
        (row["checkpoint"], row["compared by"], row["protocol"]): row
        for row in (dict(zip(columns, values, strict=True)) for values in rows)
    }
    assert len(found) == len(rows) == 2 * 2 * 3
    for one in shown.scores:
        by = " + ".join(one["feature"])
        for protocol, scores in one["results"].items():
            row = found[one["checkpoint"], by, protocol]
            for name, key in (("R1", "r1"), ("mAP", "map"), ("mINP", "minp")):
                expected = (scores[key], *scores["interval"][key])
                cells = [row[f"{name}, %"], row[f"{name} from"], row[f"{name} to"]]
                assert cells == pytest.approx([100 * value for value in expected], abs=0.006)
            rest = ("R5, %", "r5"), ("R10, %", "r10"), ("R20, %", "r20"), ("chance R1, %", "chance_r1")
            for name, key in rest:
                assert row[name] == pytest.approx(100 * scores[key], abs=0.006)
            assert (row["queries"], row["gallery"], row["data"]) == (16, 16, "ltcc")


def test_runs_are_compared_by_the_headline_of_the_last_checkpoint(shown: Shown) -> None:
    first = shown.scores[0]
    scores = first["results"][first["headline"]]
    low, high = scores["interval"]["map"]
    for key, value in (("map", scores["map"]), ("map_low", low), ("map_high", high), ("r1", scores["r1"])):
        assert shown.wandb.summary[f"headline/{key}"] == pytest.approx(value)
        assert shown.events.Scalars(f"headline/{key}")[-1].value == pytest.approx(value)
    assert shown.wandb.summary["headline/chance_r1"] == pytest.approx(scores["chance_r1"])
    assert shown.events.Scalars("hp_metric")[-1].value == pytest.approx(scores["r1"])


def test_curves_are_over_epochs_and_the_best_validation_score_stands_for_the_run(shown: Shown) -> None:
    run = shown.wandb
    for key in ("r1", "map", "minp"):
        name = f"val/ltcc/clothes_changing/{key}"
        assert (run.metrics[name].step_metric, run.metrics[name].summary.max) == ("epoch", True)
        assert len(run.curves[name]) == 2
        assert run.summary[name] == {"max": max(run.curves[name])}
    for name in ("loss/total", "loss/local", "weighted/shape", "gradient/identity", "share/shape"):
        assert run.metrics[name].step_metric == "epoch"
        assert run.summary[name] == run.curves[name][-1]
        assert len(shown.events.Scalars(name)) == 2


def test_the_test_pictures_are_those_of_the_evaluation_and_none_was_embedded_again(shown: Shown) -> None:
    looked = shown.looked
    assert str(shown.scores[0]["feature"]) == "{'embedding': 1.0, 'betas': 1.0}"
    for name in ("general", "same_clothes", "clothes_changing"):
        ranked, rows = looked.test.ranker(looked.protocol(name)), looked.rows()
        for query in looked.run.queries(name).iter_rows(named=True):
            assert ranked(rows[query["query"]]).first_hit == query["first_hit"]
    assert (looked.test.seen.joint, looked.test.seen.betas) == (None, None)


def test_a_ranked_list_frames_right_and_wrong_pictures(shown: Shown) -> None:
    def pixels(name: str, colour: str) -> int:
        with Image.open(shown.wandb.file(name)) as sheet:
            return int((np.asarray(sheet) == ImageColor.getrgb(colour)).all(2).sum())

    query = shown.looked.chosen("clothes_changing")["worst"].row(0, named=True)
    assert query["first_hit"] > 2
    # Two wrong ones, in dashes, and behind them the first right one.
    frame = 116 * 206 - 110 * 200
    assert pixels("ranked_lists/worst", RIGHT) == frame
    assert frame < pixels("ranked_lists/worst", WRONG) < 1.5 * frame
    assert shown.wandb.curves["ranked_lists/worst/caption"] == [
        "The worst queries under clothes_changing, by AP"
    ]


def test_histograms_count_every_pair(shown: Shown) -> None:
    for name, pairs in HISTOGRAMS.items():
        (values,), (bins,) = shown.wandb.curves[f"{name}/values"], shown.wandb.curves[f"{name}/bins"]
        assert sum(values) == pairs
        (event,) = shown.events.Histograms(name)
        assert (event.histogram_value.num, event.histogram_value.bucket) == (pairs, values)
        assert event.histogram_value.bucket_limit == pytest.approx(bins[1:])


def test_words_are_those_of_the_run(shown: Shown) -> None:
    labels = pl.read_parquet(shown.folder / "labels.parquet")
    columns, rows = shown.wandb.table("words/table")
    assert len(rows) == labels["person"].n_unique() == 4
    for row in rows:
        data, person = row[0].split("/")
        assert data == "ltcc"
        for group, word in labels.filter(person=person).select("group", "word").iter_rows():
            assert row[columns.index(group.replace("_", " "))].startswith(word)


def test_bodies_are_those_that_the_model_reads_out_of_the_pictures(shown: Shown) -> None:
    vertices, faces = mesh_of(shown.wandb.file("bodies/1").read_bytes())
    (caption,) = shown.wandb.curves["bodies/1/caption"]
    table = shown.looked.test.found.query
    row = next(
        row
        for row in range(len(table))
        if caption == f"person {table['person'][row]}, clothes {table['clothes'][row]}, "
        f"camera {table['camera'][row]}"
    )
    shape = shown.looked.test.model.shape([shown.looked.file("query", row)])
    assert torch.allclose(vertices, shape.vertices[0], atol=1e-5)
    assert torch.equal(faces, shape.faces)
    (event,) = shown.events.Tensors("bodies/1_VERTEX")
    assert np.allclose(np.reshape(event.tensor_proto.float_val, vertices.shape), vertices, atol=1e-5)


def test_an_offline_run_holds_all_that_is_going_to_be_synced(shown: Shown) -> None:
    run = shown.wandb
    media = [name.removesuffix("/path") for name in run.curves if name.endswith("/path")]
    assert set(media) == PICTURES | TABLES | BODIES
    for name in media:
        content = run.file(name).read_bytes()
        assert run.curves[f"{name}/size"] == [len(content)]
        assert run.curves[f"{name}/sha256"] == [hashlib.sha256(content).hexdigest()]
    kinds = [artifact.type for artifact in run.artifacts]
    assert sorted(kinds) == ["checkpoint", "run_table", "run_table", "run_table"]
    for artifact in run.artifacts:
        for entry in artifact.manifest.contents:
            path = Path(entry.local_path)
            assert path.is_relative_to(shown.folder)
            assert base64.b64decode(entry.digest) == hashlib.md5(path.read_bytes()).digest()
    (kept,) = [artifact for artifact in run.artifacts if artifact.type == "checkpoint"]
    assert {Path(entry.local_path) for entry in kept.manifest.contents} == {
        shown.folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")
    }
    assert {"run", "config", "history", "summary", "exit"} <= run.kinds


def test_a_part_that_fails_costs_a_line_and_not_the_rest(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(run: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(dashboard.recorded, "curves", broken)
    board = Recorder()
    with caplog.at_level(logging.WARNING):
        left = show_run(Boards({"one": board}), broken, shown.folder, DashboardSettings())
    # Whatever needs pictures has one reason, which is said once.
    assert [record.message for record in caplog.records] == [
        "dashboards: cmc cannot be shown: division by zero",
        "dashboards: nothing of pictures and checkpoint: division by zero",
    ]
    assert left == ["ranked_lists", "distances", "plans", "bodies"]
    assert board.seen == ["scores/table", "headline", "words/words", "words/table"]


def test_every_kind_of_panel_can_be_shown_and_left_out(shown: Shown) -> None:
    board = Recorder()
    assert (
        show_run(
            Boards({"one": board}), lambda run: shown.looked, shown.folder, DashboardSettings(without=())
        )
        == []
    )
    assert {name.partition("/")[0] for name in board.seen} == {*PANELS, "headline"}
    nothing = Recorder()
    assert (
        show_run(
            Boards({"one": nothing}),
            lambda run: shown.looked,
            shown.folder,
            DashboardSettings(without=PANELS),
        )
        == []
    )
    assert nothing.seen == []


def test_a_body_is_drawn_upright_on_white_and_a_wider_one_wider() -> None:
    body = load_body("anny_light")
    drawn = [
        np.asarray(drawn_body(body.rest(betas).vertices[0], body.faces))
        for betas in (torch.zeros(1, body.num_betas), torch.eye(body.num_betas)[1:2] * 3)
    ]
    inside = [(picture < 250).any(2) for picture in drawn]
    for mask in inside:
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        assert 0 < rows[0] < rows[-1] < 239
        assert 0 < columns[0] < columns[-1] < 239
        assert abs(columns[0] + columns[-1] - 239) <= 4
    assert inside[0].sum() != inside[1].sum()


def test_settings_are_checked() -> None:
    assert DashboardSettings().without == LEFT_OUT
    with pytest.raises(InputError, match=r"dashboard\.without=plan is unknown; .* did you mean plans\?"):
        DashboardSettings(without=("plan",))
    with pytest.raises(InputError, match=r"dashboard\.queries=0 must be a whole number, 1 or more"):
        DashboardSettings(queries=0)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("logger=csv",), None),
        (("logger=[csv,tensorboard]", "dashboard=null"), None),
        (("logger=[csv,tensorboard]",), DashboardSettings()),
        (
            ("logger=tensorboard", "dashboard.queries=6", "dashboard.without=[plans]"),
            DashboardSettings(6, 10, ("plans",)),
        ),
    ],
)
def test_the_command_line_says_what_is_shown(
    invoke: Command,
    ltcc_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[str, ...],
    expected: DashboardSettings | None,
) -> None:
    given: dict[str, Any] = {}

    def train(**arguments: Any) -> Any:
        given.update(arguments)
        return SimpleNamespace(results=None, headline=None)

    monkeypatch.setattr("clip3dreid.training.run.train", train)
    done = invoke("train", "data=ltcc", f"data.root={ltcc_root}", *TINY, *asked, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    found = [callback.settings for callback in given["callbacks"] if isinstance(callback, Dashboard)]
    assert found == ([] if expected is None else [expected])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dashboard_whose_disk_is_full_does_not_lose_the_training(
    invoke: Command, ltcc_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = TensorBoardLogger.log_hyperparams
    with small_disk(tmp_path / "disk", 256) as disk:

        def begin(logger: TensorBoardLogger, *arguments: Any) -> None:
            begun(logger, *arguments)
            fill(disk)

        monkeypatch.setattr(TensorBoardLogger, "log_hyperparams", begin)
        done = invoke(
            *("train", "data=ltcc", f"data.root={ltcc_root}", *TINY, "logger=[csv,tensorboard]", "epochs=2"),
            *(f"logger.tensorboard.save_dir={disk}", "hydra.run.dir=run"),
        )
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "train.log").read_text()
    assert (log.count("WARNING"), log.count("TensorBoard writes no more (No space left on device)")) == (1, 1)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
