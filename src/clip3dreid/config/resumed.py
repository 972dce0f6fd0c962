"""Read the command line of `clip3dreid train`: a run is gone on with by its folder, which is data to whoever does."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.renamed import renamed_override
from clip3dreid.config.schema import TrainConfig
from clip3dreid.config.trust import KEY
from clip3dreid.errors import InputError
from clip3dreid.io.files import write_text
from clip3dreid.io.formats import damaged, decoding
from clip3dreid.io.launch import launch
from clip3dreid.io.run_folder import LAST_CHECKPOINT, holds_checkpoint
from clip3dreid.model.build import TARGET, is_trusted, trust_hint

log = logging.getLogger(__name__)

OVERRIDES = Path(".hydra") / "overrides.yaml"
"""Where a run's folder has what it was started with."""


def resumed(arguments: list[str]) -> list[str]:
    """Return the command line of a resumed run: the killed run's own overrides, then what was added now.

    The folder may come from anywhere: of its overrides those are taken that can set values and choose options of this
    program's config groups. Others must be repeated on the command line. Keys that were renamed since are taken by
    their new names, which is logged.

    Args:
        arguments: of this command; only `resume=FOLDER` is looked for.

    Raises:
        InputError: if the folder is not a run, holds no checkpoint yet, or asks for more than a resumed run may.
    """
    asked = [argument for argument in arguments if _resumes(argument)]
    if not asked:
        return arguments
    if any(argument in ("-m", "--multirun") for argument in arguments):
        raise InputError("resume= goes on with one run, which is no sweep; leave -m out")
    folder = Path(_unquoted(asked[-1].partition("=")[2])).expanduser().absolute()
    # Whom to trust is said by whoever resumes the run, and by no file.
    recorded = [line for line in _recorded(folder) if not _resumes(line) and _key(line) != KEY]
    packages = _given_trust(arguments)
    if not holds_checkpoint(folder):
        raise InputError(
            f"{folder} holds no {LAST_CHECKPOINT}: the run ended before it saved one; start it anew"
        )
    saved = [renamed_override(line) for line in recorded]
    for before, line in zip(recorded, saved, strict=True):
        if not {before, line} & set(arguments) and (wrong := _refused(line, packages)) is not None:
            raise InputError(
                f"{folder / OVERRIDES} says {before}, {wrong}; if you trust it, repeat it on the command line"
            )
    if saved != recorded and launch().first:
        pairs = zip(recorded, saved, strict=True)
        changes = "; ".join(f"{before} is {line} now" for before, line in pairs if before != line)
        log.warning("%s was started before keys were renamed: %s", folder, changes)
    if arguments[: len(saved)] == saved:  # of a process that another one started with its own command line
        added = arguments[len(saved) :]
    else:
        standing = {_key(line): line for line in saved}
        added = [argument for argument in arguments if standing.get(_key(argument)) != argument]
    added = [argument for argument in added if argument not in asked]
    # An option of Hydra's, `--cfg job`, must not stand among overrides.
    options = next((place for place, argument in enumerate(added) if argument.startswith("-")), len(added))
    where = quoted(folder)
    return [*saved, *added[:options], f"resume={where}", f"hydra.run.dir={where}", *added[options:]]


def in_order(arguments: list[str]) -> list[str]:
    """Return the command line as it is; of an experiment and a recipe on it, the later one wins key by key.

    Args:
        arguments: of this command.

    Raises:
        InputError: if a recipe stands before an experiment, which would undo a part of it without a word.
    """
    keys = [argument.partition("=")[0].lstrip("+") for argument in arguments]
    if "recipe" in keys and "experiment" in keys[keys.index("recipe") :]:
        raise InputError(
            "+recipe= stands before +experiment=, which would set sizes and student anew; give the experiment first"
        )
    return arguments


def _resumes(line: str) -> bool:
    return line.lstrip("+").startswith("resume=")


def _key(line: str) -> str:
    """Return the key of an override, whichever way it is set."""
    return line.partition("=")[0].lstrip("+~")


def _given_trust(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the packages that a command line trusts; what is wrong with them is said when the config is composed."""
    lines = [line for line in arguments if _key(line) == KEY]
    try:
        value = OverridesParser.create().parse_override(lines[-1]).value() if lines else []
    except HydraException:
        return ()
    names = value if isinstance(value, list) else [value]
    return tuple(str(name.text if isinstance(name, QuotedString) else name) for name in names)


def quoted(folder: Path) -> str:
    """Return a folder as a value of Hydra's command line, whatever its name holds."""
    return QuotedString(str(folder), Quote.single).with_quotes()


def _unquoted(value: str) -> str:
    """Return the folder that was given, or that `quoted` made of it for a process that another one started."""
    if not (value.startswith("'") and value.endswith("'")):
        return value
    try:
        parsed = OverridesParser.create().parse_override(f"resume={value}").value()
    except HydraException:
        return value
    return str(parsed)


def _recorded(folder: Path) -> list[str]:
    """Read the overrides of a run, as text."""
    path = folder / OVERRIDES
    if not path.is_file():
        raise InputError(f"resume={folder} is not a run: {path} is missing; give the folder of a run")
    with decoding(path, "a run's overrides", "start the run anew"):
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(lines, list | None) or not all(isinstance(line, str) for line in lines or ()):
        raise damaged(path, "it holds no list of texts", "start the run anew")
    return lines or []


def record_overrides(folder: Path) -> None:
    """Put the command line of a resumed run, once it is found good, where the next one looks for it."""
    lines = [line for line in HydraConfig.get().overrides.task if not _resumes(line)]
    write_text(folder / OVERRIDES, yaml.safe_dump(lines, allow_unicode=True, width=10**6))


# Where a run writes to: a folder of somebody else's must not say.
_PLACES = ("dirpath", "save_dir", "default_root_dir")
# Keys of the trainer that hold objects; all others are numbers, switches and names of what Lightning knows.
_OBJECTS = ("plugins", "callbacks", "logger")
_NAME = re.compile(r"[\w-]+(/[\w-]+)*", re.ASCII)
# Another value, a device, or a variable of the environment with or without a default.
_LOOKED_UP = re.compile(r"\$\{[\w.\[\]]+\}|\$\{free_device:\d+\}|\$\{oc\.env:\w+(,[^${}]*)?\}", re.ASCII)


def _refused(line: str, packages: Sequence[str] = ()) -> str | None:
    """Return why an override of a run's folder is not taken at its word; None if it is.

    Args:
        line: one override.
        packages: that are trusted; their classes may be named.
    """
    if line.startswith("-"):
        return "which is no override"
    try:
        override = OverridesParser.create().parse_override(line)
    except HydraException:
        return "which is no override"
    key, package = override.key_or_group, override.package or ""
    if override.is_sweep_override():
        return "which is a sweep"
    value = None if override.is_delete() else override.value()
    for name in (key, package):
        if name and (wrong := _refused_key(re.split(r"[./]", name), value, packages)) is not None:
            return wrong
    if (conf_dir() / key).is_dir():
        return None if _is_choice(override) else "which chooses no option of that group"
    if key.partition(".")[0] not in TrainConfig.__dataclass_fields__:
        return "which is no key of this program"
    return None if override.is_delete() else _refused_value(key.split("."), value, packages)


def _refused_key(parts: Sequence[str], value: Any = None, packages: Sequence[str] = ()) -> str | None:
    """Return why a key may not be set, by its parts and by its value, which alone can make a target a trusted one."""
    if parts[0] == "hydra":
        return "which changes Hydra itself"
    target = value.text if isinstance(value, QuotedString) else value
    named = parts[:-1] if parts[-1] == TARGET and is_trusted(target, packages) else parts
    if any(part.strip("'\"").startswith("_") for part in named):
        return f"which names what to build{trust_hint(target)}"
    if parts[-1] in _PLACES or (parts[0] == "trainer" and len(parts) > 1 and parts[1] in _OBJECTS):
        return "which a run's folder may not say"
    return None


def _refused_value(parts: Sequence[str], value: Any, packages: Sequence[str]) -> str | None:
    """Return why a value is not taken: below it stands a key that may not be set, or it has something computed."""
    if isinstance(value, dict):
        below = [([*parts, str(key)], inner) for key, inner in value.items()]
        wrong = (
            _refused_key(place, inner, packages) or _refused_value(place, inner, packages)
            for place, inner in below
        )
        return next((one for one in wrong if one), None)
    if isinstance(value, list):
        return next((one for one in (_refused_value(parts, inner, packages) for inner in value) if one), None)
    text = value.text if isinstance(value, QuotedString) else value
    if isinstance(text, str) and "${" in _LOOKED_UP.sub("", text):
        return "which has something computed"
    return None


def _is_choice(override: Override) -> bool:
    """Return whether an override chooses one or several options by their plain names."""
    if override.is_delete():
        return True
    value = override.value()
    names = value if isinstance(value, list) else [value]
    return all(name is None or (isinstance(name, str) and _NAME.fullmatch(name)) for name in names)
