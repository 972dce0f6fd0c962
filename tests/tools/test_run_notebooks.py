"""What is left of a notebook that was run: what its author means to show, and nothing of machine and hour."""

import base64
import copy
import io
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError
from PIL import Image, PngImagePlugin

import run_notebooks


def written(folder: Path, *cells: str) -> Path:
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(content, folder / "some.ipynb")
    return folder / "some.ipynb"


def tidied(*outputs: Any, **metadata: Any) -> Any:
    cell = nbformat.v4.new_code_cell("1", outputs=list(outputs), metadata=metadata)
    content = nbformat.v4.new_notebook(cells=[cell])
    run_notebooks.tidy(content)
    nbformat.validate(nbformat.from_dict(content))
    return content.cells[0]


def stream(text: str, name: str = "stdout") -> Any:
    return nbformat.v4.new_output("stream", name=name, text=text)


def shown(picture: Image.Image) -> Any:
    file, facts = io.BytesIO(), PngImagePlugin.PngInfo()
    facts.add_text("Software", "drawn by a machine")
    picture.save(file, "PNG", pnginfo=facts)
    data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": "<Figure at 0x7f>"}
    return nbformat.v4.new_output("display_data", data=data, metadata={"needs_background": "light"})


def test_cells_run_in_this_python_and_an_empty_folder(tmp_path: Path) -> None:
    notebook = written(
        tmp_path, "import os, sys\nprint(sys.executable)\nprint(os.listdir())", "kept = 6", "kept * 7"
    )
    before = notebook.read_bytes()
    content = run_notebooks.run(notebook)
    assert content.cells[0].outputs[0].text == f"{sys.executable}\n[]\n"
    assert content.cells[2].outputs[0].data["text/plain"] == "42"
    assert notebook.read_bytes() == before


def test_a_cell_that_fails_ends_the_run_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_notebooks.run(written(tmp_path, "1 / 0", "2"))


def test_bars_log_lines_and_times_are_left_out_and_prints_joined() -> None:
    cell = tidied(
        stream("first\n"),
        stream("warning\n", "stderr"),
        stream("Epoch 0: 0%\rEpoch 0: 100%|███| 4/4 [00:00<00:00, 4.93it/s]\nsecond\n"),
        stream("a\rb"),
        execution={"iopub.status.busy": "2026-01-01T00:00:00Z"},
    )
    assert [output.text for output in cell.outputs] == ["first\nsecond\n"]
    assert cell.metadata == {}


def test_a_drawing_stays_as_it_is_to_the_pixel_without_its_makers_name() -> None:
    drawing = Image.new("RGB", (40, 20), "white")
    drawing.paste((200, 10, 10), (5, 5, 20, 15))
    (output,) = tidied(shown(drawing)).outputs
    assert output.metadata == {}
    assert list(output.data) == ["image/png"]
    with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as kept:
        assert kept.info == {}
        assert np.array_equal(np.asarray(kept.convert("RGB")), np.asarray(drawing))


def test_a_photograph_becomes_a_small_one() -> None:
    ramp = np.add.outer(np.arange(256), np.arange(256))[..., None] // np.array([2, 3, 4])
    photograph = Image.fromarray(
        (ramp + np.random.default_rng(0).integers(0, 9, ramp.shape)).astype(np.uint8)
    )
    before = shown(photograph)
    (output,) = tidied(copy.deepcopy(before)).outputs
    assert list(output.data) == ["image/jpeg"]
    assert len(output.data["image/jpeg"]) < len(before.data["image/png"]) / 3


def test_what_is_tidy_stays_to_the_byte() -> None:
    once = tidied(stream("said\n"), shown(Image.new("RGB", (9, 9), "white")))
    again = tidied(*copy.deepcopy(once.outputs))
    assert again.outputs == once.outputs
