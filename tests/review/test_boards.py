import errno
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from clip3dreid.review.boards import Board, Boards, TensorBoard, WandbBoard, boards_of
from tests.small_disk import fill, small_disk

TETRAHEDRON = (
    torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
)


class Recorder(Board):
    """A board that remembers what it was shown, and fails at the panel that it is told to."""

    def __init__(self, fails_at: str = "") -> None:
        self.seen: list[str] = []
        self.fails_at = fails_at

    def _see(self, name: str) -> None:
        if name == self.fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.seen.append(name)

    def curves(self, summaries: Any) -> None:
        self._see("curves")

    def headline(self, values: Any) -> None:
        self._see("headline")

    def picture(self, name: str, picture: Image.Image, caption: str = "") -> None:
        self._see(name)

    def table(self, name: str, table: pl.DataFrame) -> None:
        self._see(name)

    def histogram(self, name: str, counts: Any, edges: Any) -> None:
        self._see(name)

    def mesh(self, name: str, vertices: Any, faces: Any, caption: str = "") -> None:
        self._see(name)

    def artifact(self, name: str, files: Any) -> None:
        self._see(name)

    def bytes_written(self) -> int:
        return 3


def show_everything(board: Board) -> None:
    board.curves({"val/r1": "max"})
    board.headline({"headline/r1": 0.5})
    board.picture("a/picture", Image.new("RGB", (8, 4), "red"), "a | caption")
    board.table("a/table", pl.DataFrame({"who": ["1_1", None], "R1, %": [12.34, None], "n": [3, 4]}))
    board.histogram("a/histogram", np.array([1.0, 3.0]), np.array([0.0, 0.5, 1.0]))
    board.mesh("a/mesh", *TETRAHEDRON, "a body")


ALL = ["curves", "headline", "a/picture", "a/table", "a/histogram", "a/mesh"]


@pytest.mark.parametrize("panel", ALL)
def test_a_board_that_fails_costs_one_line_and_the_others_show_everything(
    panel: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = Recorder(), Recorder(panel)
    boards = Boards({"bad": bad, "good": good})
    with caplog.at_level(logging.WARNING):
        show_everything(boards)
    assert good.seen == ALL
    assert bad.seen == ALL[: ALL.index(panel)]
    assert [record.message for record in caplog.records] == [
        "bad shows no more of this run: No space left on device"
    ]
    assert boards.panels == 4
    assert boards.bytes_written() == 3
    assert bool(boards)


def test_when_the_last_board_has_failed_there_is_none_to_show_things_on() -> None:
    boards = Boards({"bad": Recorder("a/picture")})
    show_everything(boards)
    assert not boards
    assert not boards_of([], 3)


@pytest.fixture
def events(tmp_path: Path) -> EventAccumulator:
    """What TensorBoard reads of everything."""
    writer = SummaryWriter(str(tmp_path))
    board = TensorBoard(writer, 7)
    show_everything(board)
    board.artifact("checkpoint", [Path(__file__)])
    assert board.bytes_written() == sum(path.stat().st_size for path in tmp_path.iterdir())
    writer.close()
    found = EventAccumulator(str(tmp_path), {"tensors": 0})
    found.Reload()
    return found


def test_tensorboard_reads_back_what_it_was_shown(events: EventAccumulator) -> None:
    def text(name: str) -> str:
        (tensor,) = events.Tensors(f"{name}/text_summary")
        assert tensor.step == 7
        return tensor.tensor_proto.string_val[0].decode()

    assert {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]} == {
        "headline/r1": 0.5,
        "hp_metric": 0.5,
    }
    (picture,) = events.Images("a/picture")
    assert (picture.width, picture.height, picture.step) == (8, 4, 7)
    assert text("a/picture") == "a \\| caption"
    assert text("a/table").splitlines() == [
        "| who | R1, % | n |", "| --- | --- | --- |", "| 1\\_1 | 12.3 | 3 |", "|  |  | 4 |",
    ]  # fmt: skip
    (histogram,) = events.Histograms("a/histogram")
    values = histogram.histogram_value
    assert (values.num, values.min, values.max, values.sum) == (4, 0, 1, 1 * 0.25 + 3 * 0.75)
    assert (values.bucket_limit, values.bucket) == ([0.5, 1.0], [1.0, 3.0])
    (vertices,), (faces,) = events.Tensors("a/mesh_VERTEX"), events.Tensors("a/mesh_FACE")
    assert np.array_equal(np.reshape(vertices.tensor_proto.float_val, (4, 3)), TETRAHEDRON[0])
    assert np.array_equal(np.reshape(faces.tensor_proto.float_val, (4, 3)), TETRAHEDRON[1])
    assert f"{Path(__file__).name} " in text("checkpoint").replace("\\_", "_")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_costs_tensorboard_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (200, 200, 3), np.uint8))
    with small_disk(tmp_path / "disk", 256) as disk:
        writer = SummaryWriter(str(disk))
        boards = Boards({"TensorBoard": TensorBoard(writer, 1)})
        fill(disk, leave=8192)
        with caplog.at_level(logging.WARNING):
            for number in range(5):
                boards.picture(f"a/{number}", noise)
                boards.bytes_written()
        del writer, boards
    assert [record.message for record in caplog.records] == [
        "TensorBoard shows no more of this run: No space left on device"
    ]


class Run:
    """As much of a run of W&B as a board touches."""

    id = "0123abcd"

    def __init__(self, folder: Path) -> None:
        self.dir = str(folder / "files")
        self.staged: list[str | None] = []
        self.summary: dict[str, float] = {}
        self.defined: dict[str, Any] = {}

    def log(self, values: Any) -> None:
        self.staged.append(os.environ.get("WANDB_DATA_DIR"))

    def define_metric(self, name: str, **how: Any) -> None:
        self.defined[name] = how


def test_wandb_keeps_its_copies_of_tables_beside_the_run_unless_it_is_told_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pl.DataFrame({"a": [1]})
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    run = Run(tmp_path)
    WandbBoard(run, 1).table("a/table", table)
    assert run.staged == [str(tmp_path / "data")]
    assert "WANDB_DATA_DIR" not in os.environ
    monkeypatch.setenv("WANDB_DATA_DIR", "/elsewhere")
    WandbBoard(run, 1).table("a/table", table)
    assert run.staged[1:] == ["/elsewhere"] == [os.environ["WANDB_DATA_DIR"]]


def test_wandb_is_told_the_axis_of_every_curve_by_its_whole_name(tmp_path: Path) -> None:
    run = Run(tmp_path)
    WandbBoard(run, 1).curves({"val/ltcc/general/r1": "max", "loss/total": "last"})
    assert run.defined == {
        "val/ltcc/general/r1": {"step_metric": "epoch", "summary": "max"},
        "loss/total": {"step_metric": "epoch", "summary": None},
    }
