"""The notebooks run as they stand, and what they are committed with is what a reader on a code host should see."""

import ast
import copy
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

import run_notebooks

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONTENT: dict[str, Any] = {path.stem: nbformat.read(path, as_version=4) for path in FILES}
MOST_BYTES = 300_000
TRAINS = ("03_identity_space", "06_comparison")
"""Those that take about half a minute of a processor."""
each = pytest.mark.parametrize("name", CONTENT)


def code(name: str) -> list[Any]:
    return [cell for cell in CONTENT[name].cells if cell.cell_type == "code"]


def texts(name: str) -> str:
    """All that a notebook says and shows, but for pictures."""
    said = [cell.source for cell in CONTENT[name].cells]
    for output in (output for cell in code(name) for output in cell.outputs):
        said.append(output.get("text", ""))
        said += [text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")]
    return "\n".join(said)


def shape(outputs: list[Any]) -> list[Any]:
    return [(output.output_type, sorted(output.get("data", {}))) for output in outputs]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in TRAINS else []) for name in CONTENT]
)
def test_a_notebook_runs_and_shows_what_it_is_committed_with(name: str) -> None:
    content = run_notebooks.run(ROOT / "notebooks" / f"{name}.ipynb")
    run_notebooks.tidy(content)
    for cell, now in zip(CONTENT[name].cells, content.cells, strict=True):
        # Kinds and not digits: those of another processor or torch may differ in the last place, and in what follows.
        assert shape(now.get("outputs", [])) == shape(cell.get("outputs", [])), cell.source


def test_there_are_six() -> None:
    assert [name[:2] for name in CONTENT] == ["01", "02", "03", "04", "05", "06"]


@each
def test_outputs_are_committed_tidy_small_and_in_order(name: str) -> None:
    content = CONTENT[name]
    assert [cell.execution_count for cell in code(name)] == list(range(1, len(code(name)) + 1))
    assert sum(bool(cell.outputs) for cell in code(name)) > len(code(name)) / 2
    assert any("image" in str(shape(cell.outputs)) for cell in code(name))
    assert not [output for cell in code(name) for output in cell.outputs if output.output_type == "error"]
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size <= MOST_BYTES
    tidy = copy.deepcopy(content)
    run_notebooks.tidy(tidy)
    assert tidy == content


@each
def test_cells_are_python_and_nothing_is_handed_to_a_shell(name: str) -> None:
    for cell in code(name):
        tree = ast.parse(cell.source)  # neither ! nor % is Python
        imported = {
            alias.name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
        }
        assert not imported & {"subprocess", "hydra", "omegaconf", "tests"}, cell.source
        assert not re.search(r"os\.(system|popen|exec|spawn)|get_ipython", cell.source)


@each
def test_nothing_tells_of_a_machine_or_an_hour(name: str) -> None:
    text = texts(name)
    assert not re.search(r"(?<![\w.<])/(tmp|home|root|work|Users|var|mnt|opt|private)\b", text)
    assert not re.search(r"\b0x[0-9a-f]{6,}|\d\d:\d\d:\d\d|it/s", text)


@each
def test_links_lead_somewhere(name: str) -> None:
    prose = "\n".join(cell.source for cell in CONTENT[name].cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        assert (ROOT / "notebooks" / target.partition("#")[0]).is_file(), target


@each
def test_a_notebook_begins_with_its_title_and_the_readme_leads_to_it(name: str) -> None:
    first = CONTENT[name].cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    for page in ("README.md", "docs/api.md"):
        assert f"notebooks/{name}.ipynb)" in (ROOT / page).read_text(encoding="utf-8"), page


def test_users_need_no_jupyter() -> None:
    wanted = re.compile(
        r"^\s*(?:from|import) (?:jupyter\w*|IPython|ipykernel|ipywidgets|nbformat|nbclient)\b", re.M
    )
    for path in sorted((ROOT / "src").rglob("*.py")):
        assert not wanted.search(path.read_text(encoding="utf-8")), path
