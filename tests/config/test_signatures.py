"""What is read out of sources is what Python itself says of the classes, once they are imported."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_object

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.signatures import class_names, signature
from tests.processes import PATIENCE_S

TARGETS = sorted(
    {
        target
        for path in conf_dir().rglob("*.yaml")
        for target in re.findall(r"_target_: ([\w.]+)", path.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize("target", TARGETS)
def test_a_targets_names_are_those_that_python_knows(target: str) -> None:
    found = signature(target)
    if found is None:
        return  # nothing is claimed
    parameters = inspect.signature(get_object(target)).parameters.values()
    named = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    assert sorted(found.names) == sorted(named)
    assert found.open == any(one.kind is one.VAR_KEYWORD for one in parameters)


def test_nearly_every_target_says_what_it_takes() -> None:
    silent = [target for target in TARGETS if signature(target) is None]
    # Poolings, which take what their base class in torch takes.
    assert all(target.startswith("clip3dreid.model.pooling.") for target in silent)


@pytest.mark.parametrize(
    "target", ["nowhere.at.All", "torch.optim.Nothing", "clip3dreid.model", "sys", "os.path.join.x"]
)
def test_what_cannot_be_found_claims_nothing(target: str) -> None:
    assert signature(target) is None


def test_a_class_of_ones_own_is_read_from_a_package_and_from_a_single_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("from .inner import *\n")
    (tmp_path / "own_package" / "inner.py").write_text(
        "class Base:\n    def __init__(self, one, *, two=2): ...\nclass Mine(Base):\n    three = 3\n"
    )
    (tmp_path / "own_module.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    one: int\n    two: int = 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert signature("own_package.Mine") == (("one", "two"), False)
    assert signature("own_module.Mine") == (("one", "two"), False)
    assert "own_package" not in sys.modules


LOSSES = [target for target in TARGETS if hasattr(get_object(target), "needs")]


@pytest.mark.parametrize("target", LOSSES)
def test_what_a_loss_needs_is_read_as_it_is(target: str) -> None:
    needs = get_object(target).needs
    assert class_names(target, "needs") == {
        kind if isinstance(kind, str) else kind.__name__ for kind in needs
    }
    assert class_names(target, "nothing") is None


def test_nothing_is_imported_to_find_out() -> None:
    code = (
        "import sys; from clip3dreid.config.signatures import signature; "
        "print(len(signature('lightning.pytorch.Trainer').names), 'torch' in sys.modules, 'lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    count, torch, lightning = done.stdout.split()
    assert int(count) > 30
    assert (torch, lightning) == ("False", "False")
