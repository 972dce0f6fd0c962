"""Run the notebooks anew, in place: `python tools/run_notebooks.py [FILE …]`, or `make notebooks`.

Each runs in a kernel and an empty folder of its own. What is left in the file does not depend on the machine or the
hour: no times, no progress bars, no log lines, no versions, so that a second run changes little or nothing.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PATIENCE_S = 600
PHOTOGRAPH = 4096
"""Colours from which on a picture is one."""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# One thread: sums of several depend on how many there are.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "NO_ALBUMENTATIONS_UPDATE": "1"}


class OwnKernel(KernelSpecManager):
    """Kernels of the Python that runs this, whatever Jupyter finds of that name on the machine."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return how the kernel is started."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        return KernelSpec(argv=command, display_name=kernel_name, language="python")


def run(notebook: Path) -> Any:
    """Run a notebook in a fresh kernel and an empty folder.

    Args:
        notebook: its file, which is left as it is.

    Returns:
        The notebook with its outputs as they came.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    content = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=OwnKernel())
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            content,
            km=manager,
            timeout=PATIENCE_S,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        # A kernel that is not the client's own would outlive it.
        client.execute(cleanup_kc=True, env=os.environ | ENVIRONMENT)
    return content


def tidy(content: Any) -> None:
    """Leave in a notebook what its author means to show, in place."""
    content.metadata = dict(METADATA)
    for cell in content.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _outputs(cell.outputs)


def _outputs(outputs: Sequence[Any]) -> list[Any]:
    """Return outputs without progress bars and log lines; what is printed piece by piece is one piece."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream":
            text = _without_bars(output.text)
            if output.name != "stdout" or not text:
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += text
                continue
            output.text = text
        elif "data" in output:
            output.metadata = {}
            output.data = _shown(output.data)
        kept.append(output)
    return kept


_OF_THE_MOMENT = re.compile(r"it/s\]|^(data|student|guides|device|steps|folder) {2,}|^epoch \d+ of \d+;")


def _without_bars(text: str) -> str:
    """Return a text without bars and what a training says, times and folders; empty, or ending with a line break."""
    lines = [line for line in text.split("\n") if "\r" not in line and not _OF_THE_MOMENT.search(line)]
    text = "\n".join(lines).strip("\n")
    return f"{text}\n" if text else ""


def _shown(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return forms of an output; a picture is small, has no description in words, and says nothing of who drew it."""
    if "image/png" not in data:
        return dict(data)
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        plain = picture.convert("RGB")
    file = io.BytesIO()
    # Photographs have many colours, drawings a few.
    if plain.getcolors(PHOTOGRAPH) is None:
        plain.save(file, "JPEG", quality=80, optimize=True)
        return {"image/jpeg": base64.b64encode(file.getvalue()).decode()}
    plain.save(file, "PNG", optimize=True)
    return {"image/png": base64.b64encode(file.getvalue()).decode()}


def main() -> None:
    """Run notebooks and write them where they were."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, default=sorted(NOTEBOOKS.glob("*.ipynb")))
    for notebook in parser.parse_args().files:
        start = time.perf_counter()
        content = run(notebook)
        tidy(content)
        nbformat.write(content, notebook)  # type: ignore[no-untyped-call]
        print(
            f"{notebook.name}: {time.perf_counter() - start:.0f} s, {notebook.stat().st_size / 1024:.0f} kB"
        )


if __name__ == "__main__":
    main()
