"""Make typed settings and objects out of nodes of a config."""

from __future__ import annotations

import dataclasses
import typing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.hydra import conf_dir
from clip3dreid.errors import InputError

if TYPE_CHECKING:  # rooms are imported where a node of theirs is made an object: they load torch and polars
    from clip3dreid.data.sources import DataSpec
    from clip3dreid.retrieval.protocol import ProtocolSet
    from clip3dreid.synthetic.settings import SynthesisSettings

T = TypeVar("T")


def plain(node: Any) -> Any:
    """Return a resolved config node as dicts and lists, anything else as it is."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def settings(kind: type[T], cfg: DictConfig, **more: Any) -> T:
    """Make a dataclass from the keys of a config that are called like its fields.

    Texts become paths where a path is wanted, and a list, or a single value, a tuple where that is wanted.

    Args:
        kind: a dataclass that checks itself (`io.checks.check`).
        cfg: may hold more keys than the dataclass has fields; fields without a key keep their default.
        more: fields that do not come from the config.

    Returns:
        The settings.

    Raises:
        InputError: as the dataclass does.
    """
    hints = typing.get_type_hints(kind)
    found = {
        field.name: _fitted(plain(cfg[field.name]), hints[field.name])
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name not in more and field.name in cfg and not OmegaConf.is_missing(cfg, field.name)
    }
    return kind(**found, **more)


def _fitted(value: Any, hint: Any) -> Any:
    """Return a plain value in the form that an annotation asks for; what does not fit is left for the check."""
    members = typing.get_args(hint) if typing.get_origin(hint) is not tuple else (hint,)
    kinds = (hint, *members)
    if value is None:
        return None
    sequence = next((kind for kind in kinds if typing.get_origin(kind) is tuple), None)
    if sequence is not None:
        inner = typing.get_args(sequence)[0]
        values = value if isinstance(value, list) else [value]
        return tuple(_fitted(one, inner) for one in values)
    if Path in kinds and isinstance(value, str | int | float):
        return Path(str(value)).expanduser()
    return value


def data_names() -> list[str]:
    """Return the names that `data=` takes."""
    return sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml") if path.stem != "base")


def require_data(cfg: DictConfig) -> None:
    """Check that a data set was chosen.

    Raises:
        InputError: with the names that there are.
    """
    if "data" not in cfg or OmegaConf.is_missing(cfg, "data") or cfg.data is None:
        raise InputError(
            f"no data set: give data=NAME data.root=FOLDER; NAME is one of {', '.join(data_names())}"
        )


def data_nodes(cfg: DictConfig) -> dict[str, DictConfig]:
    """Return the nodes of the data sets of a config by their keys: `data`, then those of `data.also`."""
    require_data(cfg)
    return {"data": cfg.data, **{f"data.also.{name}": node for name, node in cfg.data.also.items()}}


def data_spec(node: DictConfig, key: str = "data") -> DataSpec:
    """Make of a `data` node what `data.sources` reads.

    Args:
        node: as a file of `conf/data` has it.
        key: where it stands in the config, for messages.

    Raises:
        InputError: if its root is not set, or a value is unknown.
    """
    from clip3dreid.data.sources import DataSpec

    if OmegaConf.is_missing(node, "root"):
        raise InputError(f"{key}.root is not set; give the folder of {node.name} as {key}.root=FOLDER")
    root = Path(str(node.root)).expanduser()
    return DataSpec(str(node.name), root, instantiate(node.read), node.on_error, node.val_people, key)


def data_specs(cfg: DictConfig) -> list[DataSpec]:
    """Make the specs of all data sets of a config, that of `data` first."""
    return [data_spec(node, key) for key, node in data_nodes(cfg).items()]


def protocol_set(nodes: DictConfig, headline: str | None, key: str) -> ProtocolSet:
    """Make the protocols of a node that maps names to them.

    Args:
        nodes: name -> node.
        headline: the one that selects checkpoints; None: the only one that there is.
        key: of the headline, for messages.

    Raises:
        InputError: if the headline is none of them.
    """
    from clip3dreid.retrieval.protocol import ProtocolSet

    found = {str(name): instantiate(node) for name, node in nodes.items()}
    if headline not in found and len(found) == 1:
        headline = next(iter(found))
    if found and headline not in found:
        raise InputError(f"{key}={headline} is none of the protocols {', '.join(found)}; give {key}=NAME")
    return ProtocolSet(found, headline or "")


def protocol_sets(cfg: DictConfig) -> dict[str, dict[str, ProtocolSet]]:
    """Make the protocols of every split and data set of a config.

    Args:
        cfg: a root config with `data` and `protocol`, which overrides every set's own where it is not empty.

    Returns:
        For `test` and `val`, name of the data set -> its protocols.
    """
    sets: dict[str, dict[str, ProtocolSet]] = {"test": {}, "val": {}}
    for key, node in data_nodes(cfg).items():
        for split, protocols, headline in (
            ("test", "protocols", "headline"),
            ("val", "val_protocols", "val_headline"),
        ):
            nodes = cfg.protocol or node[protocols]
            sets[split][str(node.name)] = protocol_set(nodes, node[headline], f"{key}.{headline}")
    return sets


# Rendered worlds.


def synthesis_settings(cfg: DictConfig) -> SynthesisSettings:
    """Make of `conf/synthesize.yaml`, composed, what `synthetic.synthesis.synthesize` takes.

    Raises:
        InputError: if no layout was chosen, or a value makes no world.
    """
    from clip3dreid.synthetic.settings import SynthesisSettings, WorldSettings

    if "layout" not in cfg or cfg.layout is None:
        names = ", ".join(sorted(path.stem for path in (conf_dir() / "layout").glob("*.yaml")))
        raise InputError(f"no layout: give layout=NAME; NAME is one of {names}")
    handling = ("out", "workers", "overwrite")  # which do not decide how the world looks
    return settings(
        SynthesisSettings,
        cfg,
        layout=instantiate(cfg.layout),
        # Body and vocabulary are made when they are needed, and the body in every process.
        body=partial(instantiate, plain(cfg.body)),
        vocabulary=partial(instantiate, plain(cfg.language)),
        world=WorldSettings(**instantiate(cfg.world, _convert_="all")),
        config={key: value for key, value in plain(cfg).items() if key not in handling},
    )
