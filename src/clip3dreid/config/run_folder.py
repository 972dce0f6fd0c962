"""The folder of a run: claimed by one run alone, shared by its processes, and data to whoever resumes it."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from clip3dreid.config.hydra import afterwards, conf_dir, explained
from clip3dreid.config.schema import TrainConfig
from clip3dreid.config.trust import KEY
from clip3dreid.errors import InputError
from clip3dreid.io.files import LOCK, at_work, is_locked, write_json, write_text
from clip3dreid.io.formats import damaged, decoding, peek_json
from clip3dreid.io.launch import Launch, launch
from clip3dreid.io.run_folder import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from clip3dreid.model.build import TARGET, is_trusted, trust_hint

log = logging.getLogger(__name__)

CLAIM = ".run.json"
"""Says whose folder it is: launch, command line, process."""
_VERSION = 1
_OVERRIDES = Path(".hydra") / "overrides.yaml"
_SHARED, _READY = ".shared", "ready.json"
_WAIT_S, _LOOK_S = 600.0, 0.2


class Claim(NamedTuple):
    """A folder that this process has claimed."""

    folder: Path
    made: tuple[Path, ...]
    """Folders that were made for it, the outermost first."""
    there: frozenset[Path]
    """What it held before, relative to it."""

    @staticmethod
    def _writes(path: Path) -> bool:
        """Whether a file of that name is written before there is anything to keep."""
        return path.parts[0] in (".hydra", _SHARED, LOCK, CLAIM) or (
            len(path.parts) == 1 and path.suffix == ".log"
        )

    def discard(self) -> None:
        """Removes what this claim made, if nothing came of it: no file but Hydra's record and a log."""
        new = [path for path in self.folder.rglob("*") if path.relative_to(self.folder) not in self.there]
        files = [path for path in new if path.is_symlink() or not path.is_dir()]
        ours = all(not path.is_symlink() and self._writes(path.relative_to(self.folder)) for path in files)
        if not ours or any(Path(name) in self.there for name in (".hydra", CLAIM)):
            return
        for path in files:
            path.unlink()
        folders = sorted((path for path in new if path.is_dir()), key=lambda path: -len(path.parts))
        for path in (*folders, *reversed(self.made)):
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()


class RunFolder(Callback):
    """Hydra's callback that claims the folder of a run, or of a sweep, before Hydra writes to it.

    Two runs never share a folder: one that is named after the time takes the next free name, one that was asked for
    by name is refused if it holds a run. All processes of a run use the folder of its first one, and a run that a
    scheduler starts again goes on in its own.

    Args:
        again: a run may be started again in the folder of its own, without `resume=`; the command sees to it.
    """

    def __init__(self, again: bool = False) -> None:
        self.again = again

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Claims the run's folder, and puts it where Hydra looks for it."""
        # Hydra turns an exception of a callback into a warning.
        with explained():
            asked = _asked(config, "hydra.run.dir")
            wanted = Path(str(config.hydra.run.dir))
            going_on = self.again or config.get("resume") is not None
            with read_write(config), open_dict(config):
                if launch().first:
                    folder, resumed = _claim(wanted, "a run", next_free=not asked and not going_on)
                    if not (going_on or resumed):
                        refuse_held(folder)
                else:
                    folder, resumed = _wait(wanted, launch())
                    config.hydra.output_subdir = None
                    config.hydra.job.name = f"{config.hydra.job.name}_{launch().rank}"
                config.hydra.run.dir = str(folder)
                if config.get("resume") is not None or resumed:
                    # Hydra writes its record before anything is checked; a refused run's must not be the next one's.
                    config.hydra.output_subdir = None
                if resumed and not self.again:
                    config.resume = str(folder.absolute())

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Claims the sweep's folder, below which each job has its own."""
        with explained():
            if launch().name is not None and launch().processes > 1:
                raise InputError(
                    "a sweep is one process, whose runs start further ones themselves (trainer.devices=2, say); with "
                    "torchrun or srun start its runs one by one, without -m"
                )
            wanted = Path(str(config.hydra.sweep.dir))
            with read_write(config):
                asked = _asked(config, "hydra.sweep.dir")
                folder, _resumed = _claim(wanted, "a sweep", next_free=not asked)
                config.hydra.sweep.dir = str(folder)
                # Each job composes its config anew. Hydra would write a job's record before anything is checked.
                config.hydra.overrides.hydra.append("hydra.output_subdir=null")
                if folder != wanted:
                    config.hydra.overrides.hydra.append(f"hydra.sweep.dir={_quoted(folder)}")

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Writes the record of a job of a sweep, unless it is going to be refused (`job_folder`)."""
        folder = Path(config.hydra.runtime.output_dir)
        if config.hydra.mode != RunMode.MULTIRUN or _held(folder) is not None or is_locked(folder):
            return
        with explained():
            rest = [str(key) for key in config if key != "hydra"]
            for name, keys in (("config", rest), ("hydra", ["hydra"])):
                content = OmegaConf.to_yaml(OmegaConf.masked_copy(config, keys))
                write_text(folder / _OVERRIDES.with_name(f"{name}.yaml"), content)
            record_overrides(folder)


def _asked(config: DictConfig, key: str) -> bool:
    """Whether the command line names the folder."""
    return any(str(override).lstrip("+").startswith(f"{key}=") for override in config.hydra.overrides.hydra)


def _claim(wanted: Path, what: str, *, next_free: bool) -> tuple[Path, bool]:
    """Claims a folder for the first process of a run, and keeps it locked until the command has ended.

    Args:
        wanted: the folder's name.
        what: is to happen there.
        next_free: where there is such a folder, take the name that follows.

    Returns:
        The folder, and whether the run in it is to go on because a scheduler started it again.

    Raises:
        InputError: if another process is at work there, or it cannot be made.
    """
    start = launch()
    if start.attempt and (earlier := _own(wanted, start)) is not None:
        claim = Claim(earlier, (), _names(earlier))
        resumed = holds_checkpoint(earlier)
    else:
        claim, resumed = _make(wanted, next_free), False
    stack = ExitStack()
    stack.enter_context(at_work(claim.folder, what))
    write_json(
        claim.folder / CLAIM,
        {
            "version": _VERSION,
            "launch": start.id,
            "attempt": start.attempt,
            "resumed": resumed,
            "arguments": sys.argv[1:],
            "process": os.getpid(),
            "host": platform.node(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
    )

    def end(failed: bool) -> None:
        stack.close()
        if failed:
            claim.discard()

    afterwards(end)
    return claim.folder, resumed


def _make(wanted: Path, next_free: bool) -> Claim:
    """Makes a folder, or takes it as it is; with `next_free` one that nobody else has made."""
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()  # atomic: of two processes one succeeds
        except FileExistsError:
            if not folder.is_dir():
                raise InputError(f"{folder} is a file; choose another hydra.run.dir") from None
            if not next_free:
                return Claim(folder, (), _names(folder))
        except OSError as error:
            raise InputError(
                f"cannot make {folder}: {error.strerror or error}; choose another hydra.run.dir"
            ) from error
        else:
            return Claim(folder, tuple(reversed(missing)), frozenset())
    raise AssertionError  # count() does not end


def _names(folder: Path) -> frozenset[Path]:
    return frozenset(path.relative_to(folder) for path in folder.rglob("*"))


def refuse_held(folder: Path) -> None:
    """Refuses to begin a run where it would take the place of another.

    Raises:
        InputError: if the folder holds a run that something came of.
    """
    if (path := _held(folder)) is not None:
        raise InputError(
            f"{folder} holds a run already ({path}); go on with it: {command(folder)}; or choose another folder "
            "with hydra.run.dir (of a sweep: hydra.sweep.dir)"
        )


def _held(folder: Path) -> Path | None:
    """What came of the run in a folder, relative to it; None where there is no run, or nothing came of it."""
    kept = (Path("results.json"), LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)
    return next((path for path in kept if (folder / path).exists()), None)


@contextmanager
def job_folder(folder: Path) -> Iterator[None]:
    """Keeps the folder of one job of a sweep to this process, as a run's own is kept since Hydra made it.

    Raises:
        InputError: if it holds another run, or another process is at work there.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN or not launch().first:
        yield
        return
    refuse_held(folder)
    with at_work(folder, "a run of a sweep"):
        yield


def prepared(folder: Path) -> Path:
    """Where the first process of a run puts what it has found out for the others."""
    return folder / _SHARED


def say_prepared(folder: Path) -> None:
    """Lets the other processes of this launch know that everything is there."""
    write_json(prepared(folder) / _READY, {"launch": launch().id, "attempt": launch().attempt})


def wait_prepared(folder: Path) -> None:
    """Waits until the first process of this launch has prepared the run.

    Raises:
        InputError: if it has ended before.
    """
    ours = {"launch": launch().id, "attempt": launch().attempt}
    while True:
        if peek_json(prepared(folder) / _READY) == ours:
            return
        if not is_locked(folder):
            raise InputError(
                f"the first process of this run has ended before {folder} was prepared; see what it said"
            )
        time.sleep(_LOOK_S)


def remove_prepared(folder: Path) -> None:
    """Removes what the processes of a run shared, which its own first process has written."""
    if not prepared(folder).is_symlink():
        shutil.rmtree(prepared(folder), ignore_errors=True)


def holds_checkpoint(folder: Path) -> bool:
    """Whether a run can go on in a folder."""
    return any((folder / path).is_file() for path in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT))


def _claims(wanted: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of a name, or of the names that follow it, and who claimed them."""
    for folder in (wanted, *sorted(wanted.parent.glob(f"{wanted.name}_*"))):
        found = peek_json(folder / CLAIM)
        if found is not None and found.get("version") == _VERSION:
            yield folder, found


def _own(wanted: Path, start: Launch) -> Path | None:
    """The folder in which an earlier attempt of this very command worked."""
    ours = {"launch": start.id, "arguments": sys.argv[1:]}
    found = (folder for folder, claim in _claims(wanted) if {key: claim.get(key) for key in ours} == ours)
    return next(found, None)


def _wait(wanted: Path, start: Launch) -> tuple[Path, bool]:
    """The folder that the first process has claimed for this launch; it may not have come to that yet."""
    if start.name is None:
        return wanted, False  # started by the first process, which names its folder
    ours = {"launch": start.id, "attempt": start.attempt, "arguments": sys.argv[1:]}
    until = time.monotonic() + _WAIT_S
    while time.monotonic() < until:
        for folder, claim in _claims(wanted):
            if {key: claim.get(key) for key in ours} == ours:
                return folder, bool(claim.get("resumed"))
        time.sleep(_LOOK_S)
    raise InputError(
        f"the first process of this run has claimed no folder like {wanted} in {_WAIT_S:.0f} s; look at what it "
        "says, and whether all processes see the same disk"
    )


def resumed(arguments: list[str]) -> list[str]:
    """The command line of a resumed run: the killed run's own overrides, then what was added now.

    The folder may come from anywhere: of its overrides those are taken that can set values and choose options of this
    program's config groups. Others must be repeated on the command line.

    Args:
        arguments: of this command; only `resume=FOLDER` is looked for.

    Raises:
        InputError: if the folder is not a run, holds no checkpoint yet, or asks for more than a resumed run may.
    """
    found = [argument for argument in arguments if _resumes(argument)]
    if not found:
        return arguments
    if any(argument in ("-m", "--multirun") for argument in arguments):
        raise InputError("resume= goes on with one run, which is no sweep; leave -m out")
    folder = Path(_unquoted(found[-1].partition("=")[2])).expanduser().absolute()
    # Whom to trust is said by whoever resumes the run, and by no file.
    saved = [line for line in _saved(folder) if not _resumes(line) and _sets(line) != KEY]
    packages = _given_trust(arguments)
    if not holds_checkpoint(folder):
        raise InputError(
            f"{folder} holds no {LAST_CHECKPOINT}: the run ended before it saved one; start it anew"
        )
    for line in saved:
        if line not in arguments and (wrong := _refused(line, packages)) is not None:
            raise InputError(
                f"{folder / _OVERRIDES} says {line}, {wrong}; if you trust it, repeat it on the command line"
            )
    if arguments[: len(saved)] == saved:  # of a process that another one started with its own command line
        added = arguments[len(saved) :]
    else:
        standing = {_sets(line): line for line in saved}
        added = [argument for argument in arguments if standing.get(_sets(argument)) != argument]
    added = [argument for argument in added if argument not in found]
    # An option of Hydra's, `--cfg job`, must not stand among overrides.
    options = next((place for place, argument in enumerate(added) if argument.startswith("-")), len(added))
    where = _quoted(folder)
    return [*saved, *added[:options], f"resume={where}", f"hydra.run.dir={where}", *added[options:]]


def _resumes(line: str) -> bool:
    return line.lstrip("+").startswith("resume=")


def _sets(line: str) -> str:
    """The key of an override, whichever way it is set."""
    return line.partition("=")[0].lstrip("+~")


def _given_trust(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the packages that a command line trusts; what is wrong with them is said when the config is composed."""
    lines = [line for line in arguments if _sets(line) == KEY]
    try:
        value = OverridesParser.create().parse_override(lines[-1]).value() if lines else []
    except HydraException:
        return ()
    names = value if isinstance(value, list) else [value]
    return tuple(str(name.text if isinstance(name, QuotedString) else name) for name in names)


def _quoted(folder: Path) -> str:
    """A folder as a value of Hydra's command line, whatever its name holds."""
    return QuotedString(str(folder), Quote.single).with_quotes()


def _unquoted(value: str) -> str:
    """The folder that was given, or that `_quoted` made of it for a process that another one started."""
    if not (value.startswith("'") and value.endswith("'")):
        return value
    try:
        parsed = OverridesParser.create().parse_override(f"resume={value}").value()
    except HydraException:
        return value
    return str(parsed)


def command(folder: Path) -> str:
    """What goes on with a run, to be given to a shell."""
    return f"resume={shlex.quote(str(folder))}"


def _saved(folder: Path) -> list[str]:
    """The overrides of a run, as text."""
    path = folder / _OVERRIDES
    if not path.is_file():
        raise InputError(f"resume={folder} is not a run: {path} is missing; give the folder of a run")
    with decoding(path, "a run's overrides", "start the run anew"):
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(lines, list | None) or not all(isinstance(line, str) for line in lines or ()):
        raise damaged(path, "it holds no list of texts", "start the run anew")
    return lines or []


def record_overrides(folder: Path) -> None:
    """Puts the command line of a resumed run, once it is found good, where the next one looks for it."""
    lines = [line for line in HydraConfig.get().overrides.task if not _resumes(line)]
    write_text(folder / _OVERRIDES, yaml.safe_dump(lines, allow_unicode=True, width=10**6))


# Where a run writes to: a folder of somebody else's must not say.
_PLACES = ("dirpath", "save_dir", "default_root_dir")
# Keys of the trainer that hold objects; all others are numbers, switches and names of what Lightning knows.
_OBJECTS = ("plugins", "callbacks", "logger")
_NAME = re.compile(r"[\w-]+(/[\w-]+)*", re.ASCII)
# Another value, or a variable of the environment with or without a default.
_LOOKED_UP = re.compile(r"\$\{[\w.\[\]]+\}|\$\{oc\.env:\w+(,[^${}]*)?\}", re.ASCII)


def _refused(line: str, packages: Sequence[str] = ()) -> str | None:
    """Why an override of a run's folder is not taken at its word; None if it is.

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
    """Why a key may not be set, by its parts and by its value, which alone can make a target a trusted one."""
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
    """Why a value is not taken: below it stands a key that may not be set, or it has something computed."""
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
    """Whether an override chooses one or several options by their plain names."""
    if override.is_delete():
        return True
    value = override.value()
    names = value if isinstance(value, list) else [value]
    return all(name is None or (isinstance(name, str) and _NAME.fullmatch(name)) for name in names)
