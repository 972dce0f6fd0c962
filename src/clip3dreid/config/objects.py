"""Make typed settings and objects out of nodes of a config."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.folder import options
from clip3dreid.config.trust import trusted
from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose
from clip3dreid.io.lean import import_lightning

if TYPE_CHECKING:  # rooms are imported where a node of theirs is made an object: they load torch and polars
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger

    from clip3dreid.data.box_settings import Boxes
    from clip3dreid.data.sources import DataSpec
    from clip3dreid.export.formats import Format
    from clip3dreid.language.vocabulary import Vocabulary
    from clip3dreid.model.image_teacher import ImageTeacher
    from clip3dreid.model.shape_teacher import ShapeTeacher
    from clip3dreid.model.teacher import Teacher
    from clip3dreid.retrieval.protocol import ProtocolSet
    from clip3dreid.search.search import Engine
    from clip3dreid.search.settings import Queries
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
        MissingMandatoryValue: if a field without a default is one of a key that has to be given and is not.
    """
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = field.default is field.default_factory is dataclasses.MISSING
        # A key that has to be given is not `in` a config until it is; asking for it says so.
        asked = field.name in cfg or (required and OmegaConf.is_missing(cfg, field.name))
        if field.name not in more and asked:
            found[field.name] = _fitted(plain(cfg[field.name]), hints[field.name])
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


def no_data(cfg: DictConfig) -> bool:
    """Return whether no data set was chosen, neither by itself nor by an experiment."""
    return "data" not in cfg or OmegaConf.is_missing(cfg, "data") or cfg.data is None


def require_data(cfg: DictConfig) -> None:
    """Check that a data set was chosen.

    Raises:
        InputError: with the names that there are.
    """
    if no_data(cfg):
        names = ", ".join(options("data"))
        raise InputError(f"no data set: give data=NAME data.root=FOLDER; NAME is one of {names}")


def data_nodes(cfg: DictConfig) -> dict[str, DictConfig]:
    """Return the nodes of the data sets of a config by their keys: `data`, then those of `data.also`."""
    require_data(cfg)
    return {"data": cfg.data, **{f"data.also.{name}": node for name, node in cfg.data.also.items()}}


def check_data_roots(cfg: DictConfig) -> None:
    """Check that the data sets of a config are where it says, before anything heavy is loaded.

    Raises:
        InputError: as the reader of the first that is not there says it, which knows what it expects.
    """
    if no_data(cfg):
        return
    for node in data_nodes(cfg).values():
        if not OmegaConf.is_missing(node, "root"):
            root = Path(str(node.root)).expanduser().absolute()
            if not root.exists():
                instantiate(node.read)(root)


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

    protocols = {str(name): instantiate(node, _convert_="all") for name, node in nodes.items()}
    if headline not in protocols and len(protocols) == 1:
        headline = next(iter(protocols))
    if protocols:
        choose(key, headline, protocols)
    return ProtocolSet(protocols, headline or "")


def protocol_sets(cfg: DictConfig, *, selecting: bool = False) -> dict[str, dict[str, ProtocolSet]]:
    """Make the protocols of every split and data set of a config.

    Args:
        cfg: a root config with `data` and `protocol`, which overrides every set's own where it is not empty.
        selecting: whether headlines select checkpoints; else, where one is not among the protocols that are asked
            for, the first of these will do.

    Returns:
        For `test` and `val`, name of the data set -> its protocols.
    """
    sets: dict[str, dict[str, ProtocolSet]] = {"test": {}, "val": {}}
    for key, node in data_nodes(cfg).items():
        for split, protocols, headline in (
            ("test", "protocols", "headline"),
            ("val", "val_protocols", "val_headline"),
        ):
            nodes, name = cfg.protocol or node[protocols], node[headline]
            if not selecting and name not in nodes:
                name = next(iter(nodes), None)
            sets[split][str(node.name)] = protocol_set(nodes, name, f"{key}.{headline}")
    return sets


def export_formats(cfg: DictConfig) -> dict[str, Format]:
    """Make the kinds of files that `format` names out of those in `formats`.

    Args:
        cfg: `conf/export.yaml`, composed.

    Raises:
        InputError: if a name is unknown, or a format needs a package that is missing.
    """
    value = plain(cfg.format)
    names = value if isinstance(value, list) else [value]
    for name in names:
        choose("format", name, map(str, cfg.formats))
    return {name: instantiate(cfg.formats[name]) for name in names}


def callbacks(cfg: DictConfig) -> tuple[list[Callback], Any]:
    """Make all of `cfg.callbacks`; what saves the best checkpoint stands apart, as it lacks the score's name."""
    nodes = dict((cfg.get("callbacks") or {}).items())
    best = instantiate(nodes.pop("best")) if "best" in nodes else None
    if not cfg.get("logger"):
        nodes.pop("learning_rate", None)  # which has nothing to write to
    return [instantiate(node) for node in nodes.values()], best


def loggers(cfg: DictConfig) -> list[Logger]:
    """Make all of `cfg.logger`, but for W&B where the environment says that it is disabled."""
    disabled = os.environ.get("WANDB_MODE") == "disabled"
    nodes = (cfg.get("logger") or {}).items()
    return [instantiate(node) for name, node in nodes if not (disabled and name == "wandb")]


def texts(cfg: DictConfig, *keys: str) -> dict[str, Any]:
    """Return values that are texts by meaning, which a command line may have taken for numbers.

    Args:
        cfg: a root config.
        keys: of values, or of lists of them.

    Returns:
        Key -> text, or tuple of texts; None stays.
    """

    def text(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(text, value))
        return value if value is None else str(value)

    return {key: text(plain(cfg[key])) for key in keys}


def path(cfg: DictConfig, key: str) -> Path | None:
    """Return the file or folder that a key names; None: it is not given."""
    return None if cfg[key] is None else Path(str(cfg[key])).expanduser()


def paths(cfg: DictConfig, key: str) -> tuple[Path, ...]:
    """Return the files and folders that a key names: none, one, or a list of them.

    Raises:
        InputError: if one is empty.
    """
    value = plain(cfg[key])
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if "" in listed:
        raise InputError(f"{key} is empty; give a file or a folder")
    return tuple(Path(str(one)).expanduser() for one in listed)


def one_name(cfg: DictConfig, group: str) -> str | None:
    """Return which option of a group is chosen, where its name is enough; None: none is.

    Raises:
        InputError: if there are several.
    """
    names = [str(name) for name in cfg[group]]
    if len(names) > 1:
        raise InputError(f"choose one {group} at a time, not {', '.join(names)}")
    return names[0] if names else None


def checkpoint(cfg: DictConfig) -> str:
    """Return what `checkpoint=` names: a run folder, a checkpoint file, a saved model or an id of the hub.

    Raises:
        InputError: if it is not given.
    """
    if cfg.checkpoint is None:
        raise InputError("no model: give checkpoint=FILE_OR_FOLDER, as clip3dreid.load takes it")
    return str(cfg.checkpoint)


def network(cfg: DictConfig) -> dict[str, Any]:
    """Return what `network.…` says of a network of others, as `clip3dreid.load` takes it."""
    return {key: value for key, value in plain(cfg.network).items() if value is not None}


def pictures(cfg: DictConfig) -> Path | Boxes | DataSpec:
    """Return what `pictures=`, or else `data=`, names; boxes where `boxes.…` says something of them.

    Raises:
        InputError: if neither or both are given, or a value of `boxes.…` is none.
    """
    if cfg.pictures == "":
        raise InputError("pictures is empty; give a folder or a table")
    if (cfg.pictures is None) == ("data" not in cfg):
        raise InputError(
            "what to look at? Give pictures=FOLDER, pictures=TABLE.csv, or data=NAME data.root=FOLDER, one of them"
        )
    said = {key: value for key, value in cfg.boxes.items() if value is not None}
    if cfg.pictures is None:
        if said:
            raise InputError(
                f"boxes.{min(said)} belongs to pictures=FILE; a data set has people cut out already"
            )
        return data_spec(cfg.data)
    place = Path(str(cfg.pictures)).expanduser()
    if not said:
        return place
    from clip3dreid.data.box_settings import Boxes

    return settings(Boxes, OmegaConf.create(said), path=place)


def trainer_factory(cfg: DictConfig) -> partial[lightning.Trainer]:
    """Return what makes the trainer of `trainer=`, given further arguments of it.

    Raises:
        InputError: if its devices are not there.
    """
    import_lightning()
    from clip3dreid.training.strategies import check_devices

    made: partial[lightning.Trainer] = instantiate(cfg.trainer, _partial_=True, _convert_="all")
    check_devices(made.keywords)
    return made


_QUERIES = ("picture", "person", "text", "text_file")


def queries(cfg: DictConfig) -> Queries | None:
    """Make the queries of a search of the one key that has them; None: they will be read from standard input.

    Raises:
        InputError: if none or several are given, or what is given is empty or cannot be read.
    """
    from clip3dreid.search.settings import PersonQuery, PictureQueries, TextQueries

    chosen = [kind for kind in _QUERIES if cfg[kind] is not None] + ["interactive"] * bool(cfg.interactive)
    if len(chosen) != 1:
        raise InputError(
            "what to look for? Give one of picture=FILE, person=[FILE,…], text='…', text_file=FILE or "
            "interactive=true" + (f", not {' and '.join(chosen)}" if chosen else "")
        )
    if chosen == ["interactive"]:
        return None
    if chosen == ["picture"]:
        return PictureQueries(paths(cfg, "picture"))
    if chosen == ["person"]:
        return PersonQuery(paths(cfg, "person"))
    if chosen == ["text"]:
        return TextQueries((str(cfg.text),))
    from clip3dreid.io.formats import read_text

    file = Path(str(cfg.text_file)).expanduser()
    lines = read_text(file, f"text_file={file}", "give a UTF-8 text, a query a line").splitlines()
    return TextQueries(tuple(lines))


def engine(cfg: DictConfig) -> Engine:
    """Make what searches a gallery, as `search.search` takes it, on the command's device where it has one."""
    here = cfg.get("device") is not None and cfg.engine.get("device", "its own") is None
    return cast("Engine", instantiate(cfg.engine, **({"device": str(cfg.device)} if here else {})))


def teacher_factory(cfg: DictConfig) -> Callable[[], Teacher] | None:
    """Return what loads the teacher of `model/teacher=`, when a text is asked of it; None: none is chosen."""
    if cfg.get("model", {}).get("teacher") is None:
        return None

    def make() -> Teacher:
        from clip3dreid.model.teacher import text_tower

        return text_tower(teacher(cfg)())

    return make


# Guides.


def teacher_node(cfg: DictConfig, problem: str = "this method needs a teacher") -> DictConfig:
    """Return the node `model.teacher`.

    Args:
        cfg: a root config.
        problem: what is wrong where there is none, for the message.

    Raises:
        InputError: if there is none, with the names that there are.
    """
    node = cfg.model.get("teacher") if "model" in cfg else None
    # A method may say how the teacher looks at pictures, and so have a node where there is no teacher.
    if not isinstance(node, DictConfig) or "_target_" not in node:
        names = ", ".join(options("model/teacher"))
        raise InputError(f"{problem}: give model/teacher=NAME; NAME is one of {names}")
    return node


def teacher(cfg: DictConfig) -> Callable[[], ImageTeacher]:
    """Return what makes the teacher of a config, and refuses where there is none."""

    def make() -> ImageTeacher:
        from clip3dreid.model.teacher import load_teacher

        return load_teacher(plain(teacher_node(cfg)), trusted(cfg))

    return make


def shape_teacher(cfg: DictConfig) -> Callable[[], ShapeTeacher]:
    """Return what makes the shape teacher of a config, and refuses where there is none."""

    def make() -> ShapeTeacher:
        node = cfg.model.get("shape_teacher")
        if not isinstance(node, DictConfig) or "_target_" not in node:
            names = ", ".join(options("model/shape_teacher"))
            raise InputError(
                f"this method needs a shape teacher: give model/shape_teacher=NAME; NAME is one of {names}"
            )
        from clip3dreid.model.shape_teacher import load_shape_teacher

        return load_shape_teacher(plain(node), trusted(cfg))

    return make


def vocabulary(cfg: DictConfig) -> Callable[[], Vocabulary]:
    """Return what makes the words of a config."""
    return lambda: instantiate(cfg.language, _convert_="all")


# Rendered worlds.


def synthesis_settings(cfg: DictConfig) -> SynthesisSettings:
    """Make of `conf/synthesize.yaml`, composed, what `synthetic.synthesis.synthesize` takes.

    Raises:
        InputError: if no layout was chosen, or a value makes no world.
    """
    from clip3dreid.synthetic.settings import SynthesisSettings, WorldSettings

    if "layout" not in cfg or cfg.layout is None:
        names = ", ".join(options("layout"))
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
