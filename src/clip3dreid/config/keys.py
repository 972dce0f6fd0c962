"""Know which keys a command has: as composed, and what the classes behind `_target_` take beyond that."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from omegaconf import AnyNode, BooleanNode, DictConfig, FloatNode, IntegerNode, Node, OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.signatures import Signature, signature
from clip3dreid.io.checks import alternatives

NAMED = (
    "loss",
    "logger",
    "callbacks",
    "protocol",
    "data.also",
    "data.protocols",
    "data.val_protocols",
    "formats",
    "guides",
)
"""Places whose keys are names that a user may add to, each with a node of its own below."""
OPEN = ("where", "synonyms", "engine.connection", "hydra")
"""Places that take any key."""
SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
NO_TEXTS = (
    *("open_set", "gradient_clip_val", "gradient_clip", "flip", "square", "guide_share", "tracklets"),
    *("least_confidence", "least_size", "first_frame", "every_minutes"),
    *("ema", "fused"),
    *("memory", "neck_dim", "pictures", "people"),
    *("train", "extract", "decode", "list_seconds", "list_mib"),
    *("exact_ms", "exact_one_ms", "lance_one_ms", "lance_mib", "lance_build_s"),
)
"""Last parts of keys that are null by default and hold numbers or switches otherwise: `1e-3` is no name there."""
SHORT = {
    "lr": ("optimizer.optimizer.lr",),
    "workers": ("datamodule.workers",),
    "precision": ("trainer.precision",),
    "batch": ("datamodule.people", "datamodule.evaluation_batch"),
}
"""Short way -> the key that people look for by it, in training and elsewhere."""


class Place(NamedTuple):
    """Where a key leads to."""

    known: bool
    """The key is there, or its owner takes it."""
    node: Node | None = None
    """What is there now."""
    by_target: bool = False
    """It is not there, but the class takes a key of that name."""
    addable: bool = False
    """It is not there, and can be with a plus."""
    near: tuple[str, ...] = ()
    """Keys that were perhaps meant."""


def _composed(command: str, choices: tuple[str, ...], search: tuple[str, ...]) -> DictConfig:
    more = [f"hydra.searchpath=[{','.join(search)}]"] if search else []
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose(command, [*choices, *more])


_composed_once = cache(_composed)


class Keys:
    """The keys of one command.

    Args:
        command: a root of `conf`.
        choices: overrides that choose options of groups.
        search: folders of the user's with further options, as Hydra writes them.
        targets: `_target_`s that the command line sets, by the key of their node.
    """

    def __init__(
        self,
        command: str,
        choices: Sequence[str],
        search: Sequence[str] = (),
        targets: dict[str, str] | None = None,
    ) -> None:
        # The user's own files may change while a process lasts; ours do not.
        compose_ = _composed if search else _composed_once
        self.cfg = compose_(command, tuple(choices), tuple(search))
        self.command = command
        self.targets = targets or {}

    def find(self, key: str) -> Place:
        """Return where a key leads to."""
        node: Any = self.cfg
        parts = key.split(".")
        for depth, part in enumerate(parts):
            here = ".".join(parts[:depth])
            if here in OPEN and (not isinstance(node, DictConfig) or part not in node):
                return Place(False, addable=True, near=self._near(key, here, node))
            if here in NAMED and (not isinstance(node, DictConfig) or part not in node):
                return self._named(key, parts, depth, node)
            if not isinstance(node, DictConfig):
                # Below a value, or a reference to another node: its owner will know.
                inside = node is None or (isinstance(node, Node) and node._is_interpolation())
                return Place(inside and depth > 0, addable=inside, near=self._near(key, here, None))
            child = _child(node, part)
            if child is None:
                return self._absent(key, here, part, node, last=depth == len(parts) - 1)
            node = child
        return Place(True, node)

    def _named(self, key: str, parts: Sequence[str], depth: int, node: Any) -> Place:
        """Return what is known of a key below a name that a user adds: the line must say what it is made by."""
        here, name = ".".join(parts[:depth]), ".".join(parts[: depth + 1])
        if not any(target == name or target.startswith(f"{name}.") for target in self.targets):
            return Place(False, near=self._near(key, here, node))
        for length in range(len(parts) - 1, depth, -1):
            target = self.targets.get(".".join(parts[:length]))
            if target is not None and parts[length] not in SPECIAL:
                takes = signature(target)
                if takes is None or takes.open or parts[length] in takes.names:
                    break
                close = difflib.get_close_matches(parts[length], takes.names, n=2, cutoff=0.6)
                return Place(False, near=tuple(".".join([*parts[:length], one]) for one in close))
        return Place(False, by_target=True)

    def _absent(self, key: str, here: str, part: str, node: DictConfig, last: bool) -> Place:
        """Return what is known of a key that a node does not hold."""
        if part in SPECIAL:
            return Place(False, addable=bool(here))
        takes = self.takes(here, node)
        near = self._near(key, here, node)
        if takes is not None:
            return Place(part in takes.names, by_target=part in takes.names, addable=takes.open, near=near)
        # A mapping that a class is given, or a class whose source does not say what it takes.
        return Place(False, addable=bool(here) and self._handed_over(here, node), near=near)

    def takes(self, here: str, node: DictConfig) -> Signature | None:
        """Return what the class behind a node takes, None where there is none or nobody knows."""
        target = self.targets.get(here) or node.get("_target_")
        return signature(str(target)) if target else None

    def _handed_over(self, here: str, node: DictConfig) -> bool:
        if "_target_" in node:
            return True
        parts = here.split(".")
        above = (
            OmegaConf.select(self.cfg, ".".join(parts[:depth])) for depth in range(len(parts) - 1, 0, -1)
        )
        return any(isinstance(one, DictConfig) and "_target_" in one for one in above)

    @cached_property
    def names(self) -> list[str]:
        """Return all keys, dotted."""
        return [name for name in _names(self.cfg, "") if not name.rpartition(".")[2].startswith("_")]

    def _near(self, key: str, here: str, node: Any) -> tuple[str, ...]:
        """Return keys that were perhaps meant: of the same node, of the same last part, or alike anywhere."""
        word = key[len(here) + 1 :] if here else key
        part = word.partition(".")[0]
        siblings = [str(name) for name in node] if isinstance(node, DictConfig) else []
        if isinstance(node, DictConfig) and (takes := self.takes(here, node)) is not None:
            siblings += takes.names
        siblings = sorted({name for name in siblings if not name.startswith("_")})
        prefix = f"{here}." if here else ""
        last = key.rpartition(".")[2]
        same = [name for name in self.names if name.rpartition(".")[2] == last and name != key]
        alike = difflib.get_close_matches(part, siblings, n=2, cutoff=0.7)
        if alike:
            rest = word[len(part) :]
            return tuple(f"{prefix}{name}{rest}" for name in alike)
        if same:
            return tuple(sorted(same, key=lambda name: (name.count("."), name))[:3])
        lasts = {name.rpartition(".")[2] for name in self.names}
        close = difflib.get_close_matches(last, sorted(lasts), n=1, cutoff=0.75)
        shortest = sorted((name for name in self.names if name.rpartition(".")[2] in close), key=len)
        wider = difflib.get_close_matches(part, siblings, n=1, cutoff=0.5)
        return tuple(shortest[:2]) or tuple(f"{prefix}{name}" for name in wider)

    def short(self, key: str) -> str | None:
        """Return the key that a short way stands for in this command, None where it stands for itself."""
        if key not in SHORT or key in self.cfg:
            return None
        # To whoever trains a batch is people; to others pictures.
        names = SHORT[key][:1] if "optimizer" in self.cfg else SHORT[key][-1:]
        return next((name for name in names if self.find(name).node is not None), None)


def kind(key: str, place: Place) -> str:
    """Return what a key holds by default: `text`, `whole`, `number`, `switch`, `numbers`, `texts`, `node`, `any`."""
    node = place.node
    if node is None or key.rpartition(".")[2] in NO_TEXTS:
        return "unknown"
    if node._is_interpolation():
        try:
            node = node._maybe_dereference_node()
        except OmegaConfBaseException:
            return "unknown"
        if not isinstance(node, Node):
            return "unknown"
    if OmegaConf.is_list(node):
        content: Any = [] if node._is_none() or node._is_missing() else node._value()
        numbers = content and all(isinstance(one._value(), int | float) for one in content)
        return "numbers" if numbers else "texts"
    if OmegaConf.is_dict(node):
        return "node" if not node._is_none() and not node._is_missing() else "any"
    for types, name in (
        (BooleanNode, "switch"),
        (IntegerNode, "whole"),
        (FloatNode, "number"),
        (StringNode, "text"),
    ):
        if isinstance(node, types):
            return name
    value = node._value() if isinstance(node, AnyNode) else None
    if isinstance(value, str) and value != "???":
        return "text"
    if isinstance(value, bool):
        return "switch"
    return "number" if isinstance(value, int | float) else "any"


def meant(near: Sequence[str]) -> str:
    """Return `; did you mean A or B?`, empty where nothing is near."""
    return f"; did you mean {alternatives(near)}?" if near else ""


def _child(node: DictConfig, part: str) -> Node | None:
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return None
    content = node._content
    return content.get(part) if isinstance(content, dict) else None


def _names(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, DictConfig) and not (
        node._is_none() or node._is_missing() or node._is_interpolation()
    ):
        for name in map(str, node):
            yield f"{prefix}{name}"
            yield from _names(_child(node, name), f"{prefix}{name}.")
