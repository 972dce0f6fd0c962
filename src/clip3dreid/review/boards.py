"""Show pictures, tables and bodies on dashboards: one interface, for Weights & Biases and for TensorBoard."""

from __future__ import annotations

import io
import logging
import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from clip3dreid.body.gltf import glb
from clip3dreid.io.files import reason_of
from clip3dreid.report.parts import cell, grid
from clip3dreid.training.loggers import SparedLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

Values = npt.NDArray[Any]

_DPI = 130
_DATA = "WANDB_DATA_DIR"
_STEP = "trainer/global_step"
"""Lightning's name of the axis of steps, which all has that nothing else is said of."""


class Board(ABC):
    """A dashboard that a run is shown on. A panel is called `section/name`."""

    @abstractmethod
    def curves(self, summaries: Mapping[str, str]) -> None:
        """Have curves over epochs: name -> which of its values stands for the run, `max` or `last`."""

    @abstractmethod
    def headline(self, values: Mapping[str, float]) -> None:
        """Show what runs are compared by: name -> number, the most important first."""

    @abstractmethod
    def picture(self, name: str, picture: Image.Image, caption: str = "") -> None:
        """Show a picture, RGB."""

    @abstractmethod
    def table(self, name: str, table: pl.DataFrame) -> None:
        """Show a table of texts, numbers and nulls."""

    @abstractmethod
    def histogram(self, name: str, counts: Values, edges: Values) -> None:
        """Show counts (N,) of values in bins, between edges (N + 1,)."""

    @abstractmethod
    def mesh(self, name: str, vertices: Tensor, faces: Tensor, caption: str = "") -> None:
        """Show a body that can be turned: vertices (V, 3) in metres, y up, and faces (F, 3)."""

    @abstractmethod
    def artifact(self, name: str, files: Sequence[Path]) -> None:
        """Keep files under a name, with a new version where they are others than before."""

    @abstractmethod
    def bytes_written(self) -> int:
        """Return how large its files on this machine are, after all is written."""

    def figure(self, name: str, figure: Figure, caption: str = "") -> None:
        """Show a figure of matplotlib, as a picture."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        with Image.open(buffer) as drawn:
            self.picture(name, drawn.convert("RGB"), caption)


class WandbBoard(Board):
    """A run on Weights & Biases, online or offline.

    Args:
        run: of `wandb.init`.
        step: of the training that panels belong to.
    """

    def __init__(self, run: Any, step: int) -> None:
        self._run, self._step = run, step

    def curves(self, summaries: Mapping[str, str]) -> None:
        """Have curves over epochs, and the value that is asked for in the table of runs."""
        for name, summary in summaries.items():
            # By their whole names: of two patterns that fit, Lightning's `*` among them, W&B takes either.
            # The last value is what it takes without being asked, and then under the plain name.
            self._run.define_metric(name, step_metric="epoch", summary=None if summary == "last" else summary)

    def headline(self, values: Mapping[str, float]) -> None:
        """Put numbers into the run's summary, by which the table of runs can be sorted."""
        self._run.summary.update(dict(values))

    def picture(self, name: str, picture: Image.Image, caption: str = "") -> None:
        """Show a picture."""
        import wandb

        self._log(name, wandb.Image(picture, caption=caption or None))

    def table(self, name: str, table: pl.DataFrame) -> None:
        """Show a table that can be sorted and queried."""
        import wandb

        shown = wandb.Table(columns=table.columns, data=[list(row) for row in table.iter_rows()])
        with self._staging():
            self._log(name, shown)

    def histogram(self, name: str, counts: Values, edges: Values) -> None:
        """Show counts as bars."""
        import wandb

        self._log(name, wandb.Histogram(np_histogram=(counts, edges)))

    def mesh(self, name: str, vertices: Tensor, faces: Tensor, caption: str = "") -> None:
        """Show a body as an `Object3D`, in glTF."""
        import wandb

        with tempfile.TemporaryDirectory() as folder:
            # The library takes meshes as files alone, and has copied this one once it is logged.
            path = Path(folder, "body.glb")
            path.write_bytes(glb(vertices, faces, name=caption or "body"))
            self._log(name, wandb.Object3D(str(path), caption=caption or None))

    def artifact(self, name: str, files: Sequence[Path]) -> None:
        """Upload files as a version of an artifact of the run; offline they are sent by `wandb sync`."""
        import wandb

        with self._staging():
            kept = wandb.Artifact(f"{name}-{self._run.id}", type=name)
            for path in files:
                # As it lies there: a copy beside it would take as much room again.
                kept.add_file(str(path), policy="immutable")
            self._run.log_artifact(kept)

    def bytes_written(self) -> int:
        """Return the size of the run's folder."""
        return _size(Path(self._run.dir).parent)

    @contextmanager
    def _staging(self) -> Iterator[None]:
        """Have the library's own copies beside the run, to be synced with it, and not in the user's home."""
        if _DATA in os.environ:
            yield
            return
        os.environ[_DATA] = str(Path(self._run.dir).parent / "data")
        try:
            yield
        finally:
            del os.environ[_DATA]

    def _log(self, name: str, value: Any) -> None:
        self._run.log({name: value, _STEP: self._step})


class TensorBoard(Board):
    """A run's event file for TensorBoard.

    Args:
        writer: `torch.utils.tensorboard.SummaryWriter`.
        step: of the training that panels belong to.
    """

    def __init__(self, writer: Any, step: int) -> None:
        self._writer, self._step = writer, step

    def curves(self, summaries: Mapping[str, str]) -> None:
        """Do nothing: TensorBoard has one axis, of steps, and shows the last value of each curve."""

    def headline(self, values: Mapping[str, float]) -> None:
        """Log numbers, the first as the metric of the HPARAMS tab too."""
        for place, (name, value) in enumerate(values.items()):
            for tag in (name, *(["hp_metric"] if place == 0 else [])):
                self._writer.add_scalar(tag, value, self._step)

    def picture(self, name: str, picture: Image.Image, caption: str = "") -> None:
        """Show a picture, and its caption in the TEXT tab."""
        self._writer.add_image(name, np.asarray(picture), self._step, dataformats="HWC")
        if caption:
            self._writer.add_text(name, cell(caption), self._step)

    def table(self, name: str, table: pl.DataFrame) -> None:
        """Show a table in the TEXT tab."""
        rows = [[_text(value) for value in row] for row in table.iter_rows()]
        self._writer.add_text(name, "\n".join(grid(table.columns, rows)), self._step)

    def histogram(self, name: str, counts: Values, edges: Values) -> None:
        """Show counts in the HISTOGRAMS tab."""
        middles = (edges[1:] + edges[:-1]) / 2
        self._writer.add_histogram_raw(
            name,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=int(counts.sum()),
            sum=float(counts @ middles),
            sum_squares=float(counts @ middles**2),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=self._step,
        )

    def mesh(self, name: str, vertices: Tensor, faces: Tensor, caption: str = "") -> None:
        """Show a body in the MESH tab."""
        self._writer.add_mesh(name, vertices[None], faces=faces[None], global_step=self._step)

    def artifact(self, name: str, files: Sequence[Path]) -> None:
        """Say where the files are: TensorBoard keeps none."""
        rows = [[str(path), f"{path.stat().st_size / 1e6:.1f}"] for path in files]
        self._writer.add_text(name, "\n".join(grid(["file", "MB"], rows)), self._step)

    def bytes_written(self) -> int:
        """Return the size of the event files."""
        self._writer.flush()
        return _size(Path(self._writer.log_dir))


class Boards(Board):
    """All dashboards of a run, as one. One that fails gets a line in the log, and nothing more.

    Args:
        boards: name -> dashboard.

    Attributes:
        panels: how many were shown.
    """

    def __init__(self, boards: Mapping[str, Board]) -> None:
        self._boards = dict(boards)
        self.panels = 0

    def __bool__(self) -> bool:
        """Return whether there is any left to show something on."""
        return bool(self._boards)

    def curves(self, summaries: Mapping[str, str]) -> None:
        """Say it to each."""
        self._each(lambda board: board.curves(summaries))

    def headline(self, values: Mapping[str, float]) -> None:
        """Show it on each."""
        self._each(lambda board: board.headline(values))

    def picture(self, name: str, picture: Image.Image, caption: str = "") -> None:
        """Show it on each."""
        self._show(lambda board: board.picture(name, picture, caption))

    def table(self, name: str, table: pl.DataFrame) -> None:
        """Show it on each."""
        self._show(lambda board: board.table(name, table))

    def histogram(self, name: str, counts: Values, edges: Values) -> None:
        """Show it on each."""
        self._show(lambda board: board.histogram(name, counts, edges))

    def mesh(self, name: str, vertices: Tensor, faces: Tensor, caption: str = "") -> None:
        """Show it on each."""
        self._show(lambda board: board.mesh(name, vertices, faces, caption))

    def artifact(self, name: str, files: Sequence[Path]) -> None:
        """Keep it on each."""
        self._each(lambda board: board.artifact(name, files))

    def bytes_written(self) -> int:
        """Return what all have written."""
        sizes: list[int] = []
        self._each(lambda board: sizes.append(board.bytes_written()))
        return sum(sizes)

    def _show(self, show: Callable[[Board], None]) -> None:
        self._each(show)
        self.panels += 1

    def _each(self, act: Callable[[Board], None]) -> None:
        for name, board in list(self._boards.items()):
            try:
                act(board)
            except Exception as error:
                # Whatever a dashboard's library raises: the run is trained, tested and written by then.
                del self._boards[name]
                log.warning("%s shows no more of this run: %s", name, reason_of(error))


def boards_of(loggers: Sequence[Logger], step: int) -> Boards:
    """Return the dashboards that a trainer's loggers write to; none of those that have failed before.

    Args:
        loggers: of a trainer.
        step: of the training that panels belong to.
    """
    found: dict[str, Board] = {}
    for logger in loggers:
        if isinstance(logger, SparedLogger):
            if logger.failed:
                continue
            logger = logger.inner
        if isinstance(logger, WandbLogger):
            found["W&B"] = WandbBoard(logger.experiment, step)
        elif isinstance(logger, TensorBoardLogger):
            found["TensorBoard"] = TensorBoard(logger.experiment, step)
    return Boards(found)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
