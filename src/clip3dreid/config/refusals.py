"""Say what Hydra and OmegaConf refuse in words that name the key and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import yaml
from hydra.errors import OverrideParseException

_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
_Say = Callable[[re.Match[str]], str]
_TABLE: tuple[tuple[str, _Say], ...] = (
    (
        r"Missing mandatory value: ([\w.@/]+)",
        lambda m: f"{m[1]} is not set; give it on the command line as {m[1]}=VALUE",
    ),
    (
        r"Interpolation key '([^']*)' not found[\s\S]*?full_key: ([\w.]+)",
        lambda m: f"{m[2]} refers to ${{{m[1]}}}, which is not there; as mere text: \\${{{m[1]}}}",
    ),
    (
        r"(?:mismatched input|no viable alternative|token recognition error)[\s\S]*?full_key: ([\w.]+)",
        lambda m: f"{m[1]} holds a ${{ that is no reference to a key; mend it where it is set",
    ),
    (r"Interpolation key '([^']*)' not found", lambda m: f"${{{m[1]}}} refers to a key that is not there"),
    (
        r"Unsupported interpolation type (\S+)[\s\S]*?full_key: ([\w.]+)",
        lambda m: f"{m[2]} asks ${{{m[1]}:…}} for a value, and there is no {m[1]}; as mere text: \\${{",
    ),
    (
        r"Unsupported interpolation type (\S+)",
        lambda m: f"${{{m[1]}:…}} asks for a value, and there is no {m[1]}; as mere text: \\${{",
    ),
    (r"field '([\w.]+)' is not Optional", lambda m: f"{m[1]} may not be null; give a value"),
    (
        r"Invalid value assigned: \w+ is not a ListConfig[\s\S]*?full_key: ([\w.]+)",
        lambda m: f"{m[1]} must be a list: {m[1]}=[A,B]",
    ),
    (
        r"Cannot assign (\w+) to ListConfig[\s\S]*?full_key: ([\w.]+)",
        lambda m: f"{m[2]} must be a list: {m[2]}=[A,B]",
    ),
    (
        r"Value '([^']*)' of type '\w+' could not be converted to (\w+)[\s\S]*?full_key: ([\w.\[\]]+)",
        lambda m: f"{m[3]}={m[1]} must be {_KINDS.get(m[2], m[2])}",
    ),
    (
        r"In '([^']*)': Could not (?:load|find) '([^']*)'",
        lambda m: f"there is no {m[2]}, which {m[1]} names; see the names in its group, or mend the file",
    ),
    (
        r"Could not override '(hydra[^']*)'",
        lambda m: f"{m[1]} is no key of Hydra's; --cfg hydra shows what it has",
    ),
    # Of a mapping that is given whole, the key in it that is wrong.
    (
        r"Key '[^']*' is not in struct\s+full_key: ([\w.]+)",
        lambda m: f"{m[1]} is no key of this command; --help lists the keys",
    ),
    (r"Could not override '([^']*)'", lambda m: f"{m[1]} is no key of this command; --help lists the keys"),
    (
        r"Could not override '([^']*)'\.\s*No match in the defaults list",
        lambda m: f"{m[1]} is no group of this command",
    ),
    (
        r"Could not delete from config\.?\s*'?([\w.]+)'?",
        lambda m: f"~{m[1]}: there is no {m[1]} to leave out",
    ),
    (r"Cannot find primary config '([^']*)'", lambda m: f"there is no config {m[1]}"),
    (
        r"Sweep parameters '([^']*)' requires --multirun",
        lambda m: f"{m[1]} has several values: add -m for a run with each",
    ),
    (r"Multiple values for ([\w@./]+)", lambda m: f"{m[1]} is chosen twice; leave one out"),
)
_SEARCHED = re.compile(r"\s*Config search path:[\s\S]*")


def refusal(chain: Iterable[BaseException]) -> str:
    """Return one line for an error of Hydra's or OmegaConf's.

    Args:
        chain: the error and what caused it, outermost first.
    """
    links = list(chain)
    for link in links:
        if isinstance(link, OverrideParseException):
            return (
                f"{link.override} cannot be read: close its quotes and brackets, or quote it: KEY=\"'VALUE'\""
            )
    for pattern, say in _TABLE:
        for link in links:
            if (match := re.search(pattern, str(link))) is not None:
                return say(match)
    message = _SEARCHED.sub("", str(links[0]))
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())


def yaml_refusal(error: yaml.YAMLError) -> str:
    """Return one line for a file that is no YAML."""
    mark = getattr(error, "problem_mark", None)
    where = "a YAML file" if mark is None else f"{mark.name}, line {mark.line + 1}"
    return f"{where} is no YAML: {getattr(error, 'problem', None) or error}"
