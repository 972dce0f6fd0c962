"""Say what a command takes, out of its YAML file: its examples, its keys with their comments, its groups."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from clip3dreid.config.commands import summary
from clip3dreid.config.folder import conf_dir, options
from clip3dreid.config.groups import ADDED, groups_of, root
from clip3dreid.config.keys import SHORT

_LINE = re.compile(r"(?P<indent> *)(?P<key>[\w-]+):(?: +(?P<value>.*?))?(?:\s+# ?(?P<comment>.*))?$")
_ENVIRONMENT = re.compile(r"\$\{oc\.env:(\w+),(\w+)\}")
_WIDTH, _COLUMN = 110, 36
_MOST = 20
"""Entries of a mapping beyond which they are counted and not listed."""
_SKIPPED = ("defaults", "hydra")


class Entry(NamedTuple):
    """A key of a root YAML."""

    key: str
    """Dotted."""
    value: str
    comment: str
    above: str
    """The comment lines over it."""


def answer(command: str, arguments: Sequence[str]) -> str | None:
    """Return what `--help` or `--version` prints, None where a command line asks for neither."""
    if any(word in ("--help", "-h") for word in arguments):
        return help_text(command)
    if "--version" in arguments:
        import clip3dreid

        return f"clip3dreid {clip3dreid.__version__}"
    return None


def help_text(command: str) -> str:
    """Return the help of a command."""
    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    examples, notes = _top(text)
    lines = [f"clip3dreid {command}: {summary(command)}", "", *(f"  {line}" for line in examples), ""]
    if notes:
        lines += [*textwrap.wrap(" ".join(notes), _WIDTH), ""]
    lines += ["Keys, with what they are by default:", *_keys(command, text), ""]
    lines += _groups(command)
    short = _short(command)
    if short:
        lines += [f"Short for longer keys: {', '.join(short)}", ""]
    data = next((f" {name}=NAME" for name in ("data", "layout") if name in groups_of(command)), "")
    lines += [
        f"Everything there is, groups and all: clip3dreid {command}{data} --cfg job",
        "Several runs: -m key=A,B,C. Options of groups of your own: --config-dir FOLDER.",
    ]
    return "\n".join(lines)


def _top(text: str) -> tuple[list[str], list[str]]:
    """Return the examples in the comment that a file begins with, and what else it says."""
    comment = [line[2:].rstrip() for line in _leading(text)]
    examples: list[str] = []
    notes: list[str] = []
    for line in comment:
        (examples if line.startswith(("clip3dreid ", "  ")) else notes).append(line)
    return examples, notes


def _leading(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        if not line.startswith("# @"):
            yield line


def entries(text: str) -> list[Entry]:
    """Return the keys of a root YAML that hold values, in order; what builds objects and Hydra's own are left out."""
    keys: list[Entry] = []
    stack: list[tuple[int, str]] = []
    above: list[str] = []
    skipping = False
    for line in text.splitlines()[len(list(_leading(text))) :]:
        if line.lstrip().startswith("#"):
            above.append(line.strip().lstrip("# "))
            continue
        match = _LINE.fullmatch(line)
        if line and not line.startswith(" "):
            skipping = match is None or match["key"] in _SKIPPED
        if match is None or skipping or match["key"].startswith("_"):
            above = []
            continue
        indent = len(match["indent"])
        stack = [one for one in stack if one[0] < indent]
        stack.append((indent, match["key"]))
        key = ".".join(name for _, name in stack)
        # Of a node without a value of its own, the comment goes to what is below it.
        keys.append(Entry(key, match["value"] or "", match["comment"] or "", " ".join(above)))
        above = []
    return keys


def _keys(command: str, text: str) -> list[str]:
    groups = {name.partition("@")[0] for name in groups_of(command)}
    shown = [entry for entry in entries(text) if entry.key not in groups]
    parents = {entry.key for entry in shown if any(other.key.startswith(f"{entry.key}.") for other in shown)}
    crowded = {key for key in parents if sum(other.key.startswith(f"{key}.") for other in shown) > _MOST}
    lines: list[str] = []
    for entry in shown:
        if any(entry.key.startswith(f"{key}.") for key in crowded):
            continue
        if entry.above:
            lines += [f"  # {line}" for line in textwrap.wrap(entry.above, _WIDTH - 4)]
        if entry.key in crowded:
            count = sum(other.key.startswith(f"{entry.key}.") for other in shown)
            lines += _row(f"{entry.key}.NAME=…", f"{entry.comment or 'one of'} ({count} entries)")
        elif entry.key in parents:
            lines += [f"  # {entry.key}: {entry.comment}"] if entry.comment else []
        else:
            lines += _row(f"{entry.key}={_shown(entry.value)}", entry.comment)
    own = root(command)
    if "train" in own.get("defaults", ()):
        lines.append("  … and all keys and groups of clip3dreid train")
    return lines


def _shown(value: str) -> str:
    """Return a default as help shows it."""
    return "… (needed)" if value == "???" else _ENVIRONMENT.sub(r"\2 (or $\1)", value)


def _row(left: str, right: str) -> list[str]:
    """Return a key and what is said of it, side by side or one below the other."""
    wrapped = textwrap.wrap(right, _WIDTH - _COLUMN) or [""]
    first = [f"  {left:<{_COLUMN - 3}} {wrapped[0]}".rstrip()] if len(left) < _COLUMN - 2 else []
    rest = wrapped if not first else wrapped[1:]
    head = first or [f"  {left}"]
    return head + [" " * _COLUMN + line for line in rest if line]


def _groups(command: str) -> list[str]:
    if "train" in root(command).get("defaults", ()):
        return []
    groups = groups_of(command)
    added = {f"+{name}": None for name in ADDED.get(command, ())}
    lines = []
    for name, default in {**added, **groups}.items():
        names = options(name.lstrip("+").partition("@")[0])
        shown = f"[{','.join(default)}]" if isinstance(default, list) else default
        lines += _row(f"{name}={'…' if shown is None else shown}", ", ".join(names))
    return ["Groups, from each of which a file of settings is chosen:", *lines, ""] if lines else []


def _short(command: str) -> list[str]:
    own, groups = root(command), groups_of(command)
    training = "optimizer" in groups
    lines = []
    for name, keys in SHORT.items():
        long = keys[0] if training else keys[-1]
        if long.partition(".")[0] in groups and name not in own:
            lines.append(f"{name} = {long}{' x datamodule.pictures' if long == 'datamodule.people' else ''}")
    return lines
