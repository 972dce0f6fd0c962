"""Where the configuration lives, and the one wrapper around every entry point."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.launchers import free_device
from clip3dreid.config.one_composition import composed_once
from clip3dreid.config.refusals import refusal, yaml_refusal
from clip3dreid.config.run_names import method_name, run_group, student_name
from clip3dreid.config.schema import TrainConfig, WeightsConfig
from clip3dreid.config.trust import check_targets
from clip3dreid.errors import causes, one_line
from clip3dreid.io.launch import launch
from clip3dreid.io.lean import end_at_once


def quieten() -> None:
    """Keep Lightning's tips and notices off the terminal, where they hide what a run has to say."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # The library sets the level of the first anew when it is imported, but not of the one that most is said by.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # Of two processes each says that they have met.
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Our defaults of a launcher have the name of its plugin's, which they are held against.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore")
    # A resumed run's own; what they warn of is kept, and the batches that are left are the right ones.
    for message in (
        "Checkpoint directory .*",
        "Experiment logs directory .*",
        ".*dataloader is not resumable.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    # Ours is the lower limit, and says so in one line.
    warnings.filterwarnings("ignore", message=".*could be decompression bomb.*")
    # What it computes goes to files.
    warnings.filterwarnings("ignore", message="predict returned None.*")
    # No held-out people, so nothing to validate on.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")


def _wandb_offline() -> bool:
    """Return whether no Weights & Biases key is set, so that a first run asks nobody anything."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] != "online"
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    known = netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")
    return not (os.environ.get("WANDB_API_KEY") or known)


def _wandb_settings(output: str) -> dict[str, Any] | None:
    """Return what keeps W&B off the terminal; None: it may talk."""
    return None if output == "auto" else {"silent": True}


def _run_id(folder: str) -> str:
    """Return the same eight letters for the same run folder, so that a resumed run goes on in its dashboard."""
    return hashlib.sha256(folder.encode()).hexdigest()[:8]


def _launched(now: str) -> str:
    """Return what a run's folder is called after: the scheduler's job, which all processes share, or the time."""
    return launch().name or now


def register() -> None:
    """Make the root schema and the project's resolvers known to Hydra; calling it twice changes nothing."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    ConfigStore.instance().store(name="weights_schema", node=WeightsConfig)
    OmegaConf.register_new_resolver("free_device", free_device, replace=True)
    OmegaConf.register_new_resolver("wandb_offline", _wandb_offline, replace=True)
    OmegaConf.register_new_resolver("wandb_settings", _wandb_settings, replace=True)
    OmegaConf.register_new_resolver("run_id", _run_id, replace=True)
    OmegaConf.register_new_resolver("run_group", run_group, replace=True)
    OmegaConf.register_new_resolver("launched", _launched, replace=True)
    OmegaConf.register_new_resolver("method_name", method_name, replace=True)
    OmegaConf.register_new_resolver("student_name", student_name, replace=True)


def foreseen(error: BaseException) -> str | None:
    """Return one line for an error that the user can put right; None for a defect of the program.

    Hydra wraps what a constructor raises. If anything but bad input lies underneath (a RuntimeError of a
    model, say), the traceback is wanted; a TypeError there is a mistyped or missing key of a config node.
    """
    if (line := one_line(error)) is not None:
        return line
    if isinstance(error, yaml.YAMLError):
        return yaml_refusal(error)
    configuration = (HydraException, OmegaConfBaseException)
    if not isinstance(error, configuration):
        return None
    chain = list(causes(error))
    # What cannot be read is a user's, whatever the parser stumbled over.
    if isinstance(error, OverrideParseException) or any(
        isinstance(link, GrammarParseError) for link in chain
    ):
        return refusal(chain)
    rest = [link for link in chain if not isinstance(link, configuration)]
    if any(type(link) not in (TypeError, ValueError, KeyError, AttributeError) for link in rest):
        return None
    return refusal(chain)


def composed(command: str, *overrides: str) -> DictConfig:
    """Compose a command's config in a program that is no command; one of Hydra's own finds everything as it was.

    Args:
        command: root YAML in `conf_dir()`, without suffix.
        overrides: as on a command line.
    """
    kept = {kind: Singleton._instances.pop(kind, None) for kind in (GlobalHydra, VersionBase)}
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return hydra.compose(command, list(overrides))
    finally:
        for kind, instance in kept.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance


def begin() -> None:
    """Make this process one of a command: what its config refers to is known, and nothing talks in between."""
    register()
    quieten()
    _let_waiting_threads_yield()
    end_at_once()
    # Without this Hydra prints its own rendering of an error and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # It asks the network for its newest version when it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


_AFTERWARDS: list[Callable[[bool], None]] = []


def afterwards(call: Callable[[bool], None]) -> None:
    """Have something done when the command that is running ends.

    Args:
        call: gets whether the command failed.
    """
    _AFTERWARDS.append(call)


@contextmanager
def _ended() -> Iterator[None]:
    """Do what was to be done afterwards, last first, however the block ends."""
    failed = True
    try:
        yield
        failed = False
    finally:
        while _AFTERWARDS:
            _AFTERWARDS.pop()(failed)


@contextmanager
def explained() -> Iterator[None]:
    """Turn a foreseen error inside the block into its line and exit status 2."""
    try:
        yield
    except Exception as error:
        line = foreseen(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


# What the OpenMP runtimes that torch is built with (GNU's, LLVM's) read when they are loaded.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def _let_waiting_threads_yield() -> None:
    """Have torch's threads give the processor away while they wait for each other, unless the user has chosen.

    By default they spin, for milliseconds. Beside other programs the one that is waited for may not be running, and
    two threads then keep each other off the processor: `make demo` fell to a twentieth (benchmarks/RESULTS.md).
    """
    # Read once, when torch is loaded: later it would do nothing here, and something to programs started from here.
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _ready(command: str, arguments: Sequence[str]) -> list[str]:
    """Return a command line for Hydra; what asks for help is answered here, and the command ends."""
    from clip3dreid.config.command_line import ready
    from clip3dreid.config.help import answer

    if (text := answer(command, arguments)) is not None:
        print(text)  # noqa: T201
        sys.exit(0)
    return ready(command, arguments)


def _say_better(command: str, arguments: Sequence[str]) -> None:
    """Raise an InputError where a command line that Hydra has refused has a word that cannot be meant."""
    from clip3dreid.config.command_line import ready

    GlobalHydra.instance().clear()
    with suppress(HydraException, OmegaConfBaseException):
        ready(command, arguments, thorough=True)


_SAY_ALL = ("train", "weights")
"""Commands that say everything that is missing at once, data and all."""


def _check(command: str, cfg: DictConfig) -> None:
    """Refuse a config before anything heavy is loaded: what it builds is to be trusted, its data are to be there."""
    from clip3dreid.config.objects import check_data_roots

    check_targets(cfg)
    if command not in _SAY_ALL:
        check_data_roots(cfg)


def entry_point(
    config_name: str, rewrite: Callable[[list[str]], list[str]] = list
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make `task(cfg)` a command line: Hydra's, with this project's treatment of errors.

    Args:
        config_name: root YAML in `conf_dir()`, without suffix.
        rewrite: what the command makes of its words before anything else reads them; may raise InputError.

    Returns:
        A decorator; the decorated function takes no argument and reads `sys.argv`. Foreseen errors
        (`InputError`, and Hydra's own about keys and values) print one line and exit with status 2;
        unforeseen ones keep their traceback and status 1.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def guarded(cfg: DictConfig) -> Any:
            # In a sweep Hydra runs the other jobs first and then reports the one that failed, with its overrides.
            # Alone, the error is explained here, before Hydra adds a line of its own.
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                _check(config_name, cfg)
                return task(cfg)
            with explained():
                _check(config_name, cfg)
                return task(cfg)

        run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(guarded)

        @functools.wraps(task)
        def main() -> None:
            begin()
            given = sys.argv
            with explained(), _ended(), composed_once():
                arguments = rewrite(given[1:])
                try:
                    sys.argv = [given[0], *_ready(config_name, arguments)]
                    run()
                except (HydraException, OmegaConfBaseException):
                    _say_better(config_name, arguments)
                    raise
                finally:
                    sys.argv = given

        return main

    return decorate
