"""List the commands, and say what each does, without importing any of them."""

from __future__ import annotations

import ast
from pathlib import Path

from clip3dreid.errors import InputError
from clip3dreid.io.checks import hint

DOORS = Path(__file__).resolve().parents[1] / "cli"

SECTIONS = {
    "Train and judge": ("train", "tune", "evaluate", "compare", "report"),
    "Use a model": ("extract", "search", "export", "serve"),
    "Data": ("inspect_data", "label", "synthesize", "blur_faces", "pack"),
    "Weights": ("weights", "pretrain_teacher", "pretrain_shape_teacher"),
    "Begin here": ("doctor", "demo", "size"),
}
"""Heading -> commands below it; those that are not there are left out, and new ones come last."""


def command_names() -> list[str]:
    """Return the names of all commands, in order."""
    return sorted(path.stem for path in DOORS.glob("*.py") if not path.stem.startswith("_"))


def summary(name: str) -> str:
    """Return what a command does, in one line: its module's docstring begins with it, behind its name."""
    docstring = ast.get_docstring(ast.parse((DOORS / f"{name}.py").read_text(encoding="utf-8"))) or ""
    line = docstring.partition("\n")[0].rstrip(".")
    line = line.partition("`: ")[2] or line
    return line[:1].upper() + line[1:]


def find_command(word: str) -> str:
    """Return the command that a word names; dashes stand for underscores.

    Raises:
        InputError: if there is none of that name.
    """
    name, names = word.replace("-", "_"), command_names()
    if name not in names:
        raise InputError(f"{word} is no command{hint(name, names)}; clip3dreid --help lists them")
    return name


def overview(version: str) -> str:
    """Return the list of all commands, a line each."""
    names = command_names()
    listed = {name for section in SECTIONS.values() for name in section}
    sections = {
        **{title: [name for name in section if name in names] for title, section in SECTIONS.items()},
        "More": [name for name in names if name not in listed],
    }
    width = max(map(len, names)) + 2
    lines = [
        f"clip3dreid {version}: clothes-changing person re-identification",
        "",
        "usage: clip3dreid COMMAND [key=value …]",
    ]
    for title, section in sections.items():
        if section:
            lines += ["", f"{title}:", *(f"  {name:<{width}}{summary(name)}" for name in section)]
    lines += [
        "",
        "clip3dreid COMMAND --help    what a command takes, with an example",
        "clip3dreid --version         clip3dreid --completion bash|zsh|fish",
    ]
    return "\n".join(lines)
