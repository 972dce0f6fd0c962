import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from clip3dreid.__main__ import main
from clip3dreid.config.commands import SECTIONS, command_names, summary
from tests.processes import PATIENCE_S


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Calls the front door; gives exit status, standard output and standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clip3dreid", *words])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_every_command_is_listed_with_a_line(run, words: tuple[str, ...]) -> None:
    status, out, _ = run(*words)
    assert status == 0
    for name in command_names():
        lines = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert len(lines) == 1
        assert lines[0].endswith(summary(name))
        assert len(lines[0]) <= 118


def test_every_command_has_its_place_in_the_list() -> None:
    assert set(command_names()) <= {name for section in SECTIONS.values() for name in section}


def test_the_version_is_that_of_the_package(run) -> None:
    expected = (0, f"clip3dreid {version('clip3dreid')}\n", "")
    assert run("--version") == expected
    assert run("train", "--version") == expected


@pytest.mark.parametrize(
    "words", [("train", "--help"), ("help", "train"), ("train", "-h"), ("train", "seed=3", "--help")]
)
def test_help_of_a_command_is_asked_for_in_any_of_the_usual_ways(run, words: tuple[str, ...]) -> None:
    status, out, _ = run(*words)
    assert status == 0
    assert out.startswith("clip3dreid train: ")
    assert "clip3dreid train +experiment=ltcc" in out


def test_dashes_stand_for_underscores(run) -> None:
    assert run("inspect-data", "--help") == run("inspect_data", "--help")
    assert run("help", "inspect-data")[0] == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("trian",), "trian is no command; did you mean train?; clip3dreid --help lists them"),
        (("inspect",), "inspect is no command; did you mean inspect_data?; clip3dreid --help lists them"),
        (("help", "serch"), "serch is no command; did you mean search?; clip3dreid --help lists them"),
        (("xyz",), "xyz is no command; clip3dreid --help lists them"),
        (("../train",), "../train is no command; did you mean train?; clip3dreid --help lists them"),
        (("__init__",), "__init__ is no command; clip3dreid --help lists them"),
        (("--verbose",), "--verbose is no option of clip3dreid; it is called as clip3dreid COMMAND …"),
        (("--completion",), "--completion needs a shell behind it: bash, zsh, fish"),
        (
            ("--completion", "bsh"),
            "--completion=bsh is unknown; choose bash, zsh or fish; did you mean bash?",
        ),
    ],
)
def test_what_is_no_command_is_answered_with_the_nearest(run, words: tuple[str, ...], line: str) -> None:
    assert run(*words) == (2, "", f"error: {line}\n")


@pytest.mark.parametrize("way", [["-m", "clip3dreid", "train"], ["-m", "clip3dreid.train"]])
def test_both_ways_in_are_one_command(way: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *way, "epoch=3"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr) == (2, "error: epoch is no key of train; did you mean epochs?\n")


HEAVY = ("torch", "polars", "transformers", "lightning", "albumentations", "matplotlib", "wandb")


def test_no_command_loads_anything_heavy_for_help_or_a_mistyped_key() -> None:
    # In one process, one after the other: what none has loaded at the end nobody has loaded before.
    code = f"""
import importlib, sys
from hydra.core.global_hydra import GlobalHydra
for name in {command_names()}:
    door = importlib.import_module(f"clip3dreid.cli.{{name}}")
    for word in ("--help", "no_such_key=1", "+no_such_key=1"):
        sys.argv = ["clip3dreid", word]
        GlobalHydra.instance().clear()
        try:
            door.main()
        except SystemExit as end:
            print("status", name, end.code)
    print("loaded", name, *[heavy for heavy in {HEAVY} if heavy in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("status ", "loaded "))]
    assert lines == [
        line
        for name in command_names()
        for line in (f"status {name} 0", f"status {name} 2", f"status {name} 2", f"loaded {name}")
    ], done.stderr


def test_a_search_of_a_folder_without_shards_is_refused_before_anything_heavy_is_loaded(
    tmp_path: Path,
) -> None:
    code = f"""
import sys
from clip3dreid.cli.search import main
sys.argv = ["clip3dreid", "gallery=nowhere", "text=tall"]
try:
    main()
except SystemExit as end:
    print("status", end.code)
print("loaded", *[name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path
    )
    assert "nowhere holds no shards" in done.stderr
    assert done.stdout.splitlines() == ["status 2", "loaded"]


def test_importing_every_room_changes_nothing_in_the_host_program() -> None:
    code = """
import importlib, logging, os, pkgutil, signal, sys, threading, warnings
import cv2, lightning.pytorch, torch, transformers  # their own doing is not ours

def state():
    return {
        "environment": dict(os.environ), "arguments": list(sys.argv), "folder": os.getcwd(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), cv2.getNumThreads()),
        "running": sorted(thread.name for thread in threading.enumerate()),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "gradients": torch.is_grad_enabled(), "type": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "seed": torch.random.get_rng_state().tolist(), "warnings": list(warnings.filters),
        "excepthook": sys.excepthook, "path": list(sys.path),
    }

import clip3dreid
modules = [one.name for one in pkgutil.walk_packages(clip3dreid.__path__, "clip3dreid.")]
names = [name for name in modules if not name.endswith("__main__")]
for other in ("albumentations", "hydra", "matplotlib", "polars", "pytorch_metric_learning", "scipy.io"):
    importlib.import_module(other)
before = state()
for name in names:
    importlib.import_module(name)
after = state()
print(len(names), *[key for key in before if before[key] != after[key]])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    count, *changed = done.stdout.split()
    assert int(count) > 100
    assert changed == []


@pytest.mark.parametrize("words", [("--version", "5"), ("--help", "train"), ("help", "train", "epochs=3")])
def test_a_word_that_would_be_passed_over_is_refused(run, words: tuple[str, ...]) -> None:
    status, out, error = run(*words)
    assert (status, out) == (2, "")
    assert error.startswith(f"error: {words[-1]} says nothing behind {words[0]}; ")


def test_a_name_with_a_line_break_is_refused_in_one_line(run) -> None:
    status, _, error = run("tr\nain")
    assert status == 2
    assert error == "error: tr ain is no command; did you mean train?; clip3dreid --help lists them\n"


def test_ctrl_c_ends_a_command_in_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str, arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clip3dreid.__main__._start", interrupted)
    assert run("doctor") == (130, "", "stopped by Ctrl-C\n")


def test_a_full_disk_is_told_in_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clip3dreid.__main__._print", full)
    status, _, error = run("--help")
    assert status == 2
    assert error == (
        "error: cannot write what the run has to say: No space left on device; make room, or choose another place\n"
    )
