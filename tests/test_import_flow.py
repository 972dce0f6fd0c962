import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE_S

ROOT = Path(__file__).parents[1]


def test_siblings_never_import_each_other() -> None:
    # Through the interpreter's folder: the console script may not be on the path.
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["clip3dreid", "clip3dreid.errors", "clip3dreid.config.hydra"])
def test_light_modules_do_not_drag_in_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr


def test_albumentations_is_imported_in_one_file() -> None:
    users = [
        path.name
        for path in (ROOT / "src").rglob("*.py")
        if any(
            line.strip().startswith(("import albumentations", "from albumentations"))
            for line in path.read_text().splitlines()
        )
    ]
    assert users == ["images.py"]


def test_gradio_is_imported_in_one_file() -> None:
    users = [
        path.name
        for path in (ROOT / "src").rglob("*.py")
        if any(
            line.strip().startswith(("import gradio", "from gradio"))
            for line in path.read_text().splitlines()
        )
    ]
    assert users == ["page.py"]


def test_nothing_needs_torchvision_or_timm() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not line.strip().startswith(
                ("import torchvision", "from torchvision", "import timm", "from timm")
            ), path


def test_pickles_are_never_loaded() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "pickle.load" not in text, path
        assert "weights_only=False" not in text, path
        assert "allow_pickle=True" not in text, path
