"""Show on a run's dashboards, once it is tested, what came of it: scores, curves, ranked lists, words, bodies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import polars as pl
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from clip3dreid.body.gltf import mesh_of
from clip3dreid.body.render import Camera, Light, render
from clip3dreid.errors import InputError
from clip3dreid.inference.model import Outputs, load
from clip3dreid.io.checks import weighed
from clip3dreid.io.files import reason_of
from clip3dreid.io.talk import say
from clip3dreid.report.document import Block, Bodies, Drawing, RankedLists, Sheet, Table
from clip3dreid.report.figures import draw_distances
from clip3dreid.report.overlays import scaled, tile_sheet
from clip3dreid.report.results import RunResults
from clip3dreid.report.search_sheet import search_sheet
from clip3dreid.retrieval.protocol import ProtocolSet
from clip3dreid.review import looked, recorded
from clip3dreid.review.boards import Board, Boards, boards_of
from clip3dreid.review.dashboard_settings import PANELS, DashboardSettings
from clip3dreid.review.looked import Looked
from clip3dreid.review.pictures import TestPictures
from clip3dreid.review.run import ReviewedRun, read_run
from clip3dreid.review.settings import ReportSettings
from clip3dreid.review.tracklets import tracklets_of
from clip3dreid.training.callbacks import AfterResults

if TYPE_CHECKING:
    from clip3dreid.training.module import ReidModule
    from clip3dreid.training.run import TrainResult

log = logging.getLogger(__name__)

SHOWN = "last"
"""The checkpoint whose pictures are shown, of which there always is one."""
_HEIGHT = 200
"""Pixels of a picture in a ranked list: room for its rank and distance below it."""
_TALL = 240
"""Pixels of a body."""
_FIELD = 0.26
"""Radians: 2.1 m at the distance of a body."""


class Dashboard(AfterResults):
    """Lightning's callback that says how curves are to be shown, and shows the results where all is done.

    It does nothing for loggers that hold numbers alone, such as a CSV file.

    Args:
        settings: what is shown; None: what is usual.
    """

    def __init__(self, settings: DashboardSettings | None = None) -> None:
        self.settings = settings or DashboardSettings()
        self._features: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which axis curves have, and which of their values stands for the run."""
        if trainer.is_global_zero:
            boards_of(trainer.loggers, trainer.global_step).curves(curves_of(cast("ReidModule", pl_module)))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the features of the last checkpoint, so that no picture is embedded again."""
        if trainer.ckpt_path is None:
            self._features = dict(pl_module.features)  # type: ignore[arg-type]

    def on_results(self, trainer: Trainer, module: ReidModule, result: TrainResult) -> None:
        """Show what came of the run, and say what that has cost."""
        boards = boards_of(trainer.loggers, trainer.global_step)
        if not boards:
            return
        start, before = time.perf_counter(), boards.bytes_written()
        left_out = show_run(boards, partial(self._looked, module, result), result.folder, self.settings)
        self._features = {}
        if not boards:
            return
        if self.settings.checkpoint:
            boards.artifact("checkpoint", list(result.checkpoints.values()))
        size, seconds = (boards.bytes_written() - before) / 1e6, time.perf_counter() - start
        missing = f"; without {', '.join(left_out)}" if left_out else ""
        say(
            log,
            f"dashboards: {boards.panels} panels in {seconds:.1f} s, {size:.1f} MB{missing}",
            {
                "event": "dashboards",
                "panels": boards.panels,
                "seconds": seconds,
                "megabytes": size,
                "without": left_out,
            },
        )

    def _looked(self, module: ReidModule, result: TrainResult, run: ReviewedRun) -> Looked:
        data = run.evaluation.data
        found = next(one for one in module.data.evaluations("test") if one.name == data)
        model = load(result.checkpoints[SHOWN], device=module.device, trusted=self.settings.trusted)
        protocols = ProtocolSet(module.protocols["test"][data], run.evaluation.headline)
        seen = Outputs(self._features[data], None, None)
        settings = ReportSettings(
            queries=-(-self.settings.queries // 3), top=self.settings.top, seed=run.results.seed
        )
        root = next(one.root for one in module.data.manifests if one.name == data)
        tracklets = tracklets_of(root, found, module.data.clips)
        test = TestPictures(model, found, protocols, module.metric, seen, tracklets)
        return Looked(run, test, settings)


def curves_of(module: ReidModule) -> dict[str, str]:
    """Return what a training logs once an epoch: name -> which of its values stands for the run."""
    data = module.protocols[module.data.validation_split]
    scores = [f"val/{name}/{protocol}/" for name, protocols in data.items() for protocol in protocols]
    terms = ("loss", "weighted", "weight", "gradient", "share", "aligned")
    losses = [f"{kind}/{name}" for kind in terms for name in module.losses.entries]
    return {
        **{f"{score}{key}": "max" for score in scores for key in ("r1", "map", "minp")},
        **dict.fromkeys(["loss/total", *losses], "last"),
    }


def show_run(
    boards: Boards,
    look: Callable[[ReviewedRun], Looked],
    folder: Path,
    settings: DashboardSettings,
) -> list[str]:
    """Show what came of a run on its dashboards; what cannot be shown does not keep the rest from it.

    Args:
        boards: all of the run's.
        look: at the run's test pictures; called where a panel needs them.
        folder: of the run.
        settings: what is shown.

    Returns:
        The kinds of panels that were asked for, and that this run has nothing for.
    """
    run = read_run(folder, SHOWN)

    @cache
    def reason_or_looked() -> Looked | str:
        try:
            return look(run)
        except Exception as error:
            log.warning("dashboards: nothing of pictures and checkpoint: %s", reason_of(error))
            return reason_of(error)

    def of_pictures(make: Callable[[Looked], None]) -> None:
        seen = reason_or_looked()
        if isinstance(seen, str):
            raise InputError(seen)
        make(seen)

    def of_blocks(kind: str) -> Callable[[Looked], None]:
        return lambda seen: _show(boards, kind, getattr(looked, kind)(seen))

    makers: dict[str, Callable[[], None]] = {
        "scores": lambda: _show_scores(boards, run),
        "cmc": lambda: _show(boards, "cmc", recorded.curves(run)),
        "words": lambda: _show(boards, "words", recorded.words(run)),
        "distances": partial(of_pictures, lambda seen: _show_distances(boards, seen)),
        **{
            kind: partial(of_pictures, of_blocks(kind))
            for kind in ("ranked_lists", "clothes_failures", "plans", "maps", "bodies", "embedding_map")
        },
    }
    left_out = []
    for kind in PANELS:
        if kind in settings.without or not boards:
            continue
        try:
            makers[kind]()
        except InputError as reason:
            # A run without words or bodies has nothing to show of them.
            log.debug("%s: %s", kind, reason)
            left_out.append(kind)
        except Exception as error:
            log.warning("dashboards: %s cannot be shown: %s", kind, reason_of(error))
    return left_out


def score_table(results: RunResults) -> pl.DataFrame:
    """Return a row for each checkpoint, data set, feature and protocol: scores in per cent with 95 % intervals.

    Intervals are over query people; null where there are none.
    """
    rows = []
    for one in results.evaluations:
        for protocol, scores in one.results.items():
            bounds = scores.get("interval") or {}
            row = {
                "data": one.data,
                "checkpoint": one.checkpoint,
                "selected by": one.selected_by,
                "compared by": weighed(one.feature),
                "protocol": protocol,
            }
            for name, key in (("R1", "r1"), ("mAP", "map"), ("mINP", "minp")):
                low, high = bounds.get(key, (None, None))
                row |= {f"{name}, %": scores[key], f"{name} from": low, f"{name} to": high}
            row |= {f"{name}, %": scores[name.lower()] for name in ("R5", "R10", "R20")}
            row["chance R1, %"] = scores["chance_r1"]
            row |= {"queries": scores["valid_queries"], "gallery": scores["gallery"]}
            rows.append(row)
    table = pl.DataFrame(rows, infer_schema_length=None)
    shares = [name for name in table.columns if name.endswith(("%", " from", " to"))]
    return table.with_columns((pl.col(shares).cast(pl.Float64) * 100).round(2))


def _show_scores(board: Board, run: ReviewedRun) -> None:
    board.table("scores/table", score_table(run.results))
    scores = run.scores
    values = {f"headline/{key}": float(scores[key]) for key in ("r1", "map", "minp", "chance_r1")}
    for key, (low, high) in (scores.get("interval") or {}).items():
        values |= {f"headline/{key}_low": low, f"headline/{key}_high": high}
    board.headline(values)


def _show_distances(board: Board, seen: Looked) -> None:
    found = seen.test.pair_distances(seen.settings.seed)
    figure = draw_distances(found.counts, found.edges, found.what)
    board.figure("distances/figure", figure, f"{found.what}, of {found.queries} queries to the gallery")
    for kind, counts in found.counts.items():
        board.histogram(f"distances/{kind.replace(', ', '_').replace(' ', '_')}", counts, found.edges)


def _show(board: Board, kind: str, blocks: Iterable[Block]) -> None:
    """Show what a report is made of; its paragraphs are for those who read."""
    tables = 0
    for block in blocks:
        if isinstance(block, Table):
            tables += 1
            name = f"{kind}/table" if tables == 1 else f"{kind}/table_{tables}"
            board.table(name, pl.DataFrame(block.rows, schema=list(block.header), orient="row"))
        elif isinstance(block, Drawing):
            board.figure(f"{kind}/{_last(block.name)}", block.figure, block.caption)
        elif isinstance(block, Sheet):
            board.picture(f"{kind}/{_last(block.name)}", block.picture, block.caption)
        elif isinstance(block, RankedLists):
            columns = max((len(row.hits) for row in block.rows), default=1)
            sheet = search_sheet(block.rows, height=_HEIGHT, columns=columns)
            board.picture(f"{kind}/{_last(block.name)}", sheet.picture, block.title)
        elif isinstance(block, Bodies):
            _show_bodies(board, kind, block)


def _show_bodies(board: Board, kind: str, shown: Bodies) -> None:
    """Show bodies that can be turned, and all of them drawn beside their crops."""
    tiles = []
    meshes = [mesh_of(body.glb) for body in shown.bodies]
    for place, (body, (vertices, faces)) in enumerate(zip(shown.bodies, meshes, strict=True), 1):
        board.mesh(f"{kind}/{place}", vertices, faces, body.title)
        tiles += [(scaled(body.crop, _TALL), body.title), (drawn_body(vertices, faces), body.facts[0])]
    board.picture(
        f"{kind}/sheet", tile_sheet(tiles, columns=8), "; ".join(body.title for body in shown.bodies)
    )


def drawn_body(vertices: Tensor, faces: Tensor) -> Image.Image:
    """Return a body seen from the front, on white.

    Args:
        vertices: (V, 3) metres, y up, facing +z.
        faces: (F, 3).
    """
    points = vertices[None]
    low, high = points.amin(1), points.amax(1)
    # Far enough away that heights can be compared between bodies.
    camera = Camera(
        yaw=torch.zeros(1),
        pitch=torch.zeros(1),
        distance=torch.full((1,), 8.0),
        field_of_view=torch.full((1,), _FIELD),
        target=(low + high) / 2,
    )
    light = Light(
        torch.tensor([[0.4, 0.7, 1.0]]), torch.tensor([0.45]), torch.tensor([0.6]), torch.ones(1, 3)
    )
    colours = torch.full((1, 3), 0.78).expand(points.shape[1], 3)
    drawn = render(points, faces, colours, camera, light, _TALL, _TALL, background=torch.ones(3))
    return Image.fromarray((255 * drawn.colour[0].clamp(0, 1)).round().byte().numpy())


def _last(name: str) -> str:
    return name.rpartition("-")[2]
