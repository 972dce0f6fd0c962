import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import foreseen
from clip3dreid.errors import InputError
from tests.processes import PATIENCE_S


def test_conf_dir_holds_the_entry_points_roots() -> None:
    names = {path.stem for path in conf_dir().glob("*.yaml")}
    doors = {
        "train",
        "evaluate",
        "inspect_data",
        "weights",
        "blur_faces",
        "synthesize",
        "demo",
        "pack",
    } | {"label", "pretrain_teacher", "compare", "extract", "search", "export", "doctor", "size"}
    assert doors <= names


def refuse() -> None:
    raise InputError("the picture\n   is missing")


def break_down() -> None:
    raise RuntimeError("a defect")


def raised(target: str, **keys: object) -> BaseException:
    with pytest.raises(InstantiationException) as caught:
        instantiate(OmegaConf.create({"_target_": f"{__name__}.{target}", **keys}))
    return caught.value


def test_bad_input_inside_a_constructor_is_one_line() -> None:
    assert foreseen(raised("refuse")) == "the picture is missing"


def test_a_mistyped_key_of_a_node_is_foreseen_and_named() -> None:
    line = foreseen(raised("refuse", wdith=3))
    assert line is not None
    assert "wdith" in line
    assert "\n" not in line


def test_a_defect_keeps_its_traceback_even_inside_a_constructor() -> None:
    assert foreseen(raised("break_down")) is None
    assert foreseen(ValueError("ours")) is None


def test_an_error_that_caused_itself_is_still_answered() -> None:
    # Raised anew out of the wrapper that it had been put into.
    first, wrapper = InputError("no such teacher"), InstantiationException("wrapped")
    first.__context__, wrapper.__cause__ = wrapper, first
    assert foreseen(wrapper) == foreseen(first) == "no such teacher"
    wrapper.__cause__, defect = None, RuntimeError("oops")
    wrapper.__context__, defect.__context__ = defect, wrapper
    assert foreseen(wrapper) is None


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("raise InputError('bad\\nroot')", 2, "error: bad root\n"),
        ("raise RuntimeError('oops')", 1, "RuntimeError: oops"),
        ("cfg.data.root", 2, "error: data.root is not set"),
    ],
)
def test_status_two_and_one_line_for_bad_input_and_a_traceback_for_defects(
    tmp_path: Path, body: str, status: int, message: str
) -> None:
    door = tmp_path / "door.py"
    door.write_text(
        textwrap.dedent(f"""
        from clip3dreid.config.hydra import entry_point
        from clip3dreid.errors import InputError

        @entry_point("inspect_data")
        def main(cfg):
            {body}

        main()
        """)
    )
    done = subprocess.run(
        [sys.executable, str(door), "data=ltcc"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert ("Traceback" in done.stderr) == (status == 1)


@pytest.mark.parametrize(
    ("chosen", "found"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "5"}, "None")],
)
def test_a_commands_waiting_threads_yield_unless_the_user_has_chosen(
    tmp_path: Path, chosen: dict[str, str], found: str
) -> None:
    door = tmp_path / "door.py"
    door.write_text(
        textwrap.dedent("""
        import os
        import sys

        import clip3dreid.train
        from clip3dreid.config.hydra import entry_point

        before = os.environ.get("OMP_WAIT_POLICY")

        @entry_point("inspect_data")
        def main(cfg):
            assert "torch" not in sys.modules
            print(before, os.environ.get("OMP_WAIT_POLICY"))

        main()
        """)
    )
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, str(door), "data=ltcc"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, env=quiet | chosen,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Importing changes nothing; the command does.
    assert done.stdout.split() == [str(chosen.get("OMP_WAIT_POLICY")), found]


COMPUTING = (
    "train", "evaluate", "label", "pretrain_teacher", "extract", "search", "export", "compare", "weights", "demo",
)  # fmt: skip


def test_commands_that_compute_load_torch_after_they_have_said_how_its_threads_wait() -> None:
    imports = "; ".join(f"import clip3dreid.cli.{name}" for name in COMPUTING)
    code = f"import os, sys; {imports}; print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'))"
    quiet = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, env=quiet
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "None"]


def test_a_mistyped_override_is_one_line_and_status_two(command: object) -> None:
    done = command("inspect_data", "data=ltcc", "data.rot=/x")  # type: ignore[operator]
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "rot" in done.stderr


def test_an_override_that_cannot_be_parsed_is_one_line_and_status_two(command: object) -> None:
    done = command("inspect_data", "data=[ltcc=")  # type: ignore[operator]
    assert done.returncode == 2
    assert done.stderr.startswith("error: data=[ltcc=")
    assert done.stderr.count("\n") == 1


def test_what_may_not_be_read_is_told_in_one_line() -> None:
    line = foreseen(PermissionError(13, "Permission denied", "/somebody/else"))
    assert line == "no access to /somebody/else: Permission denied; choose another place, or ask its owner"
