"""Read the data of a run, with the protocols that each data set is evaluated under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.sources import DataSpec, read_source
from clip3dreid.errors import InputError
from clip3dreid.io.ranks import ALONE, Ranks
from clip3dreid.retrieval.protocol import Protocols, ProtocolSet
from clip3dreid.retrieval.protocol_counts import count
from clip3dreid.retrieval.standard import GENERAL


@dataclass(frozen=True)
class RunData:
    """A data set that a run trains on, or is evaluated on.

    Args:
        source: the data set, to be read or read already.
        test: protocols of its test people; of a data set whose outfits are labelled perhaps `standard.CLOTHES`.
        val: protocols of people held out of training; None: those of `test`.
    """

    source: DataSpec | Manifest
    test: ProtocolSet = GENERAL
    val: ProtocolSet | None = None

    @property
    def name(self) -> str:
        """Return what the data set is called."""
        return self.source.name

    def protocols(self, split: str) -> ProtocolSet:
        """Return the protocols of a split, `test` or `val`."""
        return self.val if split == "val" and self.val is not None else self.test


def as_run_data(data: RunData | DataSpec | Manifest | Sequence[RunData]) -> list[RunData]:
    """Return data sets however they were given: one or several, with protocols or, alone, without.

    Raises:
        InputError: if there is none.
    """
    if not data:
        raise InputError("no data set: data is empty; give RunData, or a list of them")
    if isinstance(data, DataSpec | Manifest):
        return [RunData(data)]
    return [data] if isinstance(data, RunData) else list(data)


def read_data(data: Sequence[RunData], seed: int, workers: int = 1, ranks: Ranks = ALONE) -> list[Manifest]:
    """Read data sets for a run.

    Args:
        data: the first is the data set proper.
        seed: of the draw of held-out people.
        workers: threads that decode pictures, where unreadable ones are to be found.
        ranks: the processes of the run.

    Raises:
        InputError: as `data.sources.read_source`.
    """
    return [
        read_source(one.source, seed, workers, ranks) if isinstance(one.source, DataSpec) else one.source
        for one in data
    ]


def protocols_of(data: Sequence[RunData]) -> dict[str, Protocols]:
    """Return, for `test` and `val`, the protocols of every data set, as `EvaluationModule` takes them."""
    return {split: {one.name: one.protocols(split).protocols for one in data} for split in ("test", "val")}


def headline_of(data: Sequence[RunData], name: str, split: str) -> str:
    """Return the protocol that stands for a split of a data set; empty where it has none."""
    return next((one.protocols(split).headline for one in data if one.name == name), "")


def check_protocols(data: ReidDataModule, protocols: Mapping[str, Protocols], *splits: str) -> None:
    """Refuse a protocol that does not fit the labels, before anything is trained or embedded for it.

    Raises:
        InputError: as `retrieval.evaluation.count`.
    """
    for split in splits:
        for evaluation in data.evaluations(split):
            for protocol in protocols[split][evaluation.name].values():
                count(protocol, evaluation.query, evaluation.gallery)


def counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Return pictures and people of every split and role, for the record of a run."""
    return {
        f"{split}/{role}": {"pictures": len(part), "people": part["person"].n_unique()}
        for (split, role), part in manifest.table.group_by("split", "role", maintain_order=True)
    }
