"""From a composed config to objects: what the entry points share."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress, TaskID

from clip3dreid.config.hydra import conf_dir
from clip3dreid.data.manifest import Manifest, load, save
from clip3dreid.data.selection import drop_unreadable, hold_out
from clip3dreid.errors import InputError
from clip3dreid.retrieval.evaluation import count
from clip3dreid.retrieval.protocol import Protocol, Protocols

if TYPE_CHECKING:  # Lightning takes seconds to import, and inspect_data does without it
    from clip3dreid.data.datamodule import ReidDataModule

log = logging.getLogger(__name__)


class DataSource(NamedTuple):
    """A data set with the protocols it is evaluated under; the last protocol is its headline."""

    manifest: Manifest
    protocols: Mapping[str, Protocol]
    val_protocols: Mapping[str, Protocol]


def require_data(cfg: DictConfig) -> None:
    """Raises InputError if no data set was chosen."""
    if "data" not in cfg or OmegaConf.is_missing(cfg, "data"):
        names = sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml") if path.stem != "base")
        raise InputError(f"no data set: give data=NAME data.root=FOLDER; NAME is one of {', '.join(names)}")


def read_manifest(data: DictConfig, key: str = "data") -> Manifest:
    """Reads the data set that a `data` node describes, as it is on disk.

    Args:
        data: the node.
        key: where it stands in the config, for messages.

    Raises:
        InputError: if the root is not there, or does not look like this data set.
    """
    if OmegaConf.is_missing(data, "root"):
        raise InputError(f"{key}.root is not set; give the folder of {data.name} as {key}.root=FOLDER")
    manifest: Manifest = instantiate(data.read)(Path(str(data.root)).expanduser().absolute())
    return manifest.renamed(str(data.name))


def instantiate_protocols(nodes: Any) -> dict[str, Protocol]:
    """The protocols of a node that maps names to them, in its order."""
    return {str(name): instantiate(node) for name, node in nodes.items()}


def _readable(manifest: Manifest, workers: int, bar: Progress, task: TaskID) -> Manifest:
    return drop_unreadable(manifest, workers, lambda done: bar.update(task, completed=done))


def data_sources(cfg: DictConfig, seed: int, prepared: Path | None = None) -> list[DataSource]:
    """The data sets of a run: `cfg.data` first, then those in `cfg.data.also`.

    Held-out people are drawn, and unreadable pictures dropped where `on_error` says so.

    Args:
        cfg: a root config with `data`, `protocol` (overrides every set's own where not empty) and `datamodule`.
        seed: of the draw of held-out people.
        prepared: folder where another process of this run has put its manifests with `share_sources`: they are taken
            as they are, and nothing is looked for on the data's disk.
    """
    require_data(cfg)
    sources = []
    chosen = instantiate_protocols(cfg.protocol)
    nodes = {"data": cfg.data, **{f"data.also.{name}": node for name, node in cfg.data.also.items()}}
    for key, data in nodes.items():
        if data.on_error not in ("fail", "skip"):
            raise InputError(f"{key}.on_error={data.on_error} is unknown; choose fail or skip")
        shared = None if prepared is None else prepared / _file(str(data.name))
        manifest = _look(cfg, data, seed, key) if shared is None else load(shared)
        own, own_val = instantiate_protocols(data.protocols), instantiate_protocols(data.val_protocols)
        sources.append(DataSource(manifest, chosen or own, chosen or own_val))
    return sources


def _look(cfg: DictConfig, data: DictConfig, seed: int, key: str) -> Manifest:
    """Reads one data set from its disk, and says what there is to know of it."""
    manifest = read_manifest(data, key)
    if data.on_error == "skip":
        with Progress(transient=True) as bar:
            task = bar.add_task(f"decoding {manifest.name}", total=len(manifest.table))
            manifest = _readable(manifest, max(1, int(cfg.datamodule.workers)), bar, task)
    manifest = hold_out(manifest, int(data.val_people), seed)
    for note in manifest.notes:
        log.info("%s: %s", manifest.name, note)
    return manifest


def share_sources(sources: Sequence[DataSource], folder: Path) -> None:
    """Writes what was found on the data's disk to a folder, for the other processes of a run."""
    for source in sources:
        save(source.manifest, folder / _file(source.manifest.name))


def _file(name: str) -> str:
    # A data set may have any name.
    return f"manifest-{hashlib.sha256(name.encode()).hexdigest()[:16]}.parquet"


def protocols_of(sources: list[DataSource]) -> dict[str, Protocols]:
    """For each split, the protocols of every data set, as `EvaluationModule` takes them."""
    test = {source.manifest.name: source.protocols for source in sources}
    val = {source.manifest.name: source.val_protocols for source in sources}
    return {"val": val, "test": test}


def check_protocols(data: ReidDataModule, protocols: Mapping[str, Protocols], *splits: str) -> None:
    """Refuses a protocol that does not fit the labels, before anything is trained or embedded for it.

    Raises:
        InputError: as `retrieval.evaluation.count`.
    """
    for split in splits:
        for evaluation in data.evaluations(split):
            for protocol in protocols[split][evaluation.name].values():
                count(protocol, evaluation.query, evaluation.gallery)


def counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Pictures and people of every split and role, for the record of a run."""
    found: dict[str, dict[str, int]] = {}
    for (split, role), part in manifest.table.group_by("split", "role", maintain_order=True):
        found[f"{split}/{role}"] = {"pictures": len(part), "people": part["person"].n_unique()}
    return found


def plain(node: Any) -> Any:
    """A resolved config node as dicts and lists."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
