"""Score the pictures of an epoch under named protocols, batch by batch and on any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose, some
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.metrics import SCORES
from clip3dreid.retrieval.protocol import Protocol, ProtocolSet
from clip3dreid.retrieval.settings import Distance
from clip3dreid.retrieval.standard import CLOTHES, GENERAL

log = logging.getLogger(__name__)

Role: TypeAlias = Literal["query", "gallery", "both"]
"""What a picture is: asked with, looked for, or each in turn (and then never its own answer)."""
ROLES: tuple[Role, ...] = get_args(Role)
"""In the order of their codes, 0 to 2."""
Whole: TypeAlias = int | Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor
"""(B,) whole numbers, -1 unknown; or one for the whole batch."""
Store: TypeAlias = Literal["float64", "float32", "float16", "bfloat16"]
"""Precision that features are kept in."""
_LABELS = ("person", "camera", "clothes", "tracklet", "frame")
_COLUMNS = ("index", "role", *_LABELS)
"""Of the labels that are kept of each picture."""
_FACTS = (*SCORES, "chance_r1", "queries", "valid_queries", "gallery")
"""What is returned of what an evaluation says."""


class _Pictures(NamedTuple):
    """Pictures of all processes, each once, in an order that does not depend on how they came."""

    features: Tensor
    """(N, D), where they were gathered."""
    labels: npt.NDArray[np.int64]
    """(N, 7), columns as in `_COLUMNS`."""

    def side(self, role: Role) -> tuple[Tensor, pl.DataFrame]:
        """Return features and labels of the pictures that are queries, or are in the gallery.

        A gallery picture of nobody (-1) is left out: it counts neither as a hit nor as a miss.
        """
        code, person = (self.labels[:, _COLUMNS.index(name)] for name in ("role", "person"))
        chosen = (code == ROLES.index(role)) | (code == ROLES.index("both"))
        rows = np.flatnonzero(chosen if role == "query" else chosen & (person >= 0))
        columns = dict(zip(_COLUMNS, self.labels[rows].T, strict=True))
        known = {name: pl.Series(columns[name]).replace(-1, None) for name in ("index", *_LABELS)}
        named = pl.format("picture {}", "index"), pl.format("a picture of person {}", "person")
        # Of the same picture on both sides alone: indices of two loaders may be equal and mean nothing.
        both = pl.Series(np.where(columns["role"] == ROLES.index("both"), rows, -1)).replace(-1, None)
        table = pl.DataFrame({**known, "picture": both}).with_columns(path=pl.coalesce(*named)).drop("index")
        return self.features[torch.from_numpy(rows).to(self.features.device)], table


class RetrievalMetric(Metric):
    """Named protocols as a metric of `torchmetrics`: features and labels in, R1, mAP and mINP out.

    What each picture is, is said with its batch; `compute` ranks all that came since `reset`, as
    `retrieval.evaluation.evaluate` does. The order in which pictures come changes nothing, and neither does the
    number of processes: they exchange features and labels, and each returns the scores of all. A process that saw
    nothing is fine. A `DistributedSampler` fills up the last batch with pictures that others have too; only `index`
    tells which these are, so give it wherever there are several processes.

    A picture takes 4 D + 56 bytes (2 D + 56 with `store="float16"`) where the metric is. While scores are computed,
    every process holds those of all, as they were gathered and in order. `reset` makes room.

    Args:
        protocols: names out of `general`, `same_clothes` and `clothes_changing`; protocols of your own
            (`retrieval.protocol.Protocol`); a `ProtocolSet`, or name -> protocol.
        distance: `cosine` or `euclidean`.
        intervals: whether to return 95 % intervals over people too (`metrics.intervals`), 0.4 s a protocol.
        store: precision that features are kept in; they are ranked in no less than float32.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        InputError: if there is no protocol, or a name is unknown.

    Example:
        >>> import torch
        >>> from clip3dreid import RetrievalMetric
        >>> metric = RetrievalMetric("general")
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), person=[7, 8], camera=1, role="query")
        >>> gallery = torch.tensor([[0.9, 0.1], [0.5, 0.6], [0.1, 0.9], [0.8, 0.3]])
        >>> metric.update(gallery, person=[7, 7, 8, 9], camera=[1, 2, 2, 2], role="gallery")
        >>> scores = metric.compute()
        >>> scores["general/r1"], scores["general/map"]
        (0.5, 0.75)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    features: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor
    width: Tensor

    def __init__(
        self,
        protocols: str
        | Protocol
        | Sequence[str | Protocol]
        | Mapping[str, Protocol]
        | ProtocolSet = "general",
        *,
        distance: Distance = "cosine",
        intervals: bool = False,
        store: Store = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        choose("distance", distance, get_args(Distance))
        choose("store", store, get_args(Store))
        self.protocols = _protocols(protocols)
        self.distance: Distance = distance
        self.intervals = intervals
        self.store: torch.dtype = getattr(torch, store)
        # Flat, so that a process that saw nothing, and does not know D, has as many dimensions as the others.
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")
        self.add_state("width", torch.tensor(0), dist_reduce_fx="max")

    def update(
        self,
        features: Tensor,
        person: Whole,
        camera: Whole = -1,
        clothes: Whole = -1,
        *,
        role: Role | Sequence[Role] | Tensor,
        index: Whole = -1,
        tracklet: Whole = -1,
        frame: Whole = -1,
    ) -> None:
        """Add pictures; labels are whole numbers, one each or one for all of them, and -1 is unknown.

        Args:
            features: (B, D) floats of any precision.
            person: (B,) who it is. Gallery pictures of -1 are left out when scores are computed.
            camera: (B,) which camera took it. Two unknown cameras are never the same.
            clothes: (B,) outfits, which need only tell one person's apart.
            role: `query`, `gallery` or `both`, for all or one each; or (B,) their codes 0, 1 and 2. A picture that is
                `both` is given once, and is not in its own ranking (`Protocol.same_picture`).
            index: (B,) which picture of its role it is, such as its row in the data set. What comes twice under one
                index and role, as a `DistributedSampler` repeats it, counts once. Pictures without one all count.
            tracklet: (B,) for protocols that ask for it.
            frame: (B,) the frame's number, likewise.

        Raises:
            InputError: if features are not (B, D), D is another than before, or labels are not B whole numbers.
        """
        if features.ndim != 2 or not features.is_floating_point() or not features.shape[1]:
            raise InputError(
                f"features are {features.dtype} of shape {tuple(features.shape)}; expected (B, D) floating-point "
                "numbers, one row a picture"
            )
        count, width = features.shape
        assert isinstance(self.features, list)
        assert isinstance(self.labels, list)
        # Of the shapes: to ask `self.width` makes the device wait.
        if self.labels and (before := self.features[-1].numel() // len(self.labels[-1])) != width:
            raise InputError(
                f"features are {width} wide, and earlier ones {before}; all must come of one model"
            )
        given = {"index": index, "role": _codes(role), "person": person, "camera": camera, "clothes": clothes}
        given |= {"tracklet": tracklet, "frame": frame}
        columns = [_column(name, given[name], count, features.device) for name in _COLUMNS]
        if not count:
            return
        self.features.append(features.detach().to(self.store).flatten())
        self.labels.append(torch.stack(columns, 1))
        self.width.fill_(width)

    def compute(self) -> dict[str, float]:
        """Return the scores of all pictures since `reset`, of all processes.

        Returns:
            `PROTOCOL/NAME` -> number: `r1`, `r5`, `r10`, `r20`, `map`, `minp` and `chance_r1` in 0..1, and how many
            `queries`, `valid_queries` and `gallery` there are, as in `results.json`. With `intervals` also `r1_low`,
            `r1_high` and so on of `map` and `minp`, unless all queries are of one person.

        Raises:
            InputError: in every process alike: if there are no pictures, queries or gallery, features are NaN, labels
                are below -1 or two pictures have one index, or as `evaluate`.
        """
        pictures = self._pictures()
        query, gallery = pictures.side("query"), pictures.side("gallery")
        for name, (features, _) in {"query": query, "gallery": gallery}.items():
            if not len(features):
                raise InputError(
                    f"none of {len(pictures.labels)} pictures is {name} or both; say so by role in update"
                )
        scores: dict[str, float] = {}
        for name, found in evaluate(*query, *gallery, self.protocols, metric=self.distance).items():
            result = (
                found.result() if self.intervals else {**found.summary().scores, **found.counts._asdict()}
            )
            scores |= {f"{name}/{fact}": result[fact] for fact in _FACTS}
            for score, bounds in (result.get("interval") or {}).items():
                scores |= {
                    f"{name}/{score}_{end}": bound for end, bound in zip(("low", "high"), bounds, strict=True)
                }
        return scores

    def forward(self, *pictures: Any, **labels: Any) -> None:
        """Add pictures, as `update` does; a batch alone has no score."""
        self.update(*pictures, **labels)

    def set_dtype(self, dst_type: str | torch.dtype) -> Self:
        """Return the metric as it is: labels are whole numbers, and `store` says how features are kept."""
        return self

    def _pictures(self) -> _Pictures:
        """Return all pictures, each once, in the order of their indices and labels.

        Raises:
            InputError: if there are none, processes disagree about D, or labels are wrong.
        """
        if not len(self.labels):
            raise InputError("no picture was seen: call update before compute")
        labels = dim_zero_cat(self.labels).cpu().numpy()
        flat, width = dim_zero_cat(self.features), int(self.width)
        if flat.numel() != len(labels) * width:
            raise InputError("features of some processes are wider than others'; all must come of one model")
        features = flat.view(-1, width)
        order = _order(features.cpu(), labels)
        labels = labels[order]
        for place, name in enumerate(_COLUMNS):
            if (labels[:, place] < (0 if name == "role" else -1)).any():
                wrong = int(labels[:, place].min())
                raise InputError(
                    f"{name} {wrong} is none; labels are whole numbers, 0 or more, and -1 is unknown"
                )
        if (labels[:, 1] >= len(ROLES)).any():
            raise InputError(f"role {labels[:, 1].max()} is none; the codes are 0, 1, 2 for {some(ROLES)}")
        kept = _first_of_each(labels)
        rows = torch.from_numpy(order[kept]).to(features.device)
        if self._is_synced and (labels[:, 0] < 0).any():
            log.warning(
                "pictures came without index from several processes: those that a sampler repeats count twice"
            )
        return _Pictures(features[rows], labels[kept])

    def _sync_dist(self, *how: Any, **more: Any) -> None:
        # Where a process saw nothing, torchmetrics would send a float32 of its own making, whatever the others send.
        if not len(self.labels):
            self.features = [torch.empty(0, dtype=self.store, device=self.device)]
            self.labels = [torch.empty(0, len(_COLUMNS), dtype=torch.int64, device=self.device)]
        super()._sync_dist(*how, **more)


def _protocols(given: Any) -> dict[str, Protocol]:
    """Return name -> protocol.

    Raises:
        InputError: if there is none, or a name is unknown.
    """
    standard = {**CLOTHES.protocols, **GENERAL.protocols}
    if isinstance(given, ProtocolSet):
        given = given.protocols
    if isinstance(given, Mapping):
        found = dict(given)
    else:
        found = {}
        for one in [given] if isinstance(given, str | Protocol) else given:
            if isinstance(one, str):
                choose("protocols", one, standard)
            protocol = standard[one] if isinstance(one, str) else one
            found[protocol.name] = protocol
    if not found:
        raise InputError('no protocol is chosen; choose at least one, such as "general"')
    return found


def _codes(role: Any) -> Any:
    """Return roles as codes; a single one, and codes, as they are.

    Raises:
        InputError: if a name is none.
    """
    if isinstance(role, Tensor | np.ndarray):
        return role
    names = [role] if isinstance(role, str) else list(role)
    for name in names:
        if isinstance(name, str):
            choose("role", name, ROLES)
    codes = [ROLES.index(name) if isinstance(name, str) else name for name in names]
    return codes[0] if isinstance(role, str) else codes


def _column(name: str, given: Any, count: int, device: torch.device) -> Tensor:
    """Return (B,) int64 labels, whose values are looked at later: to look at them makes the device wait.

    Raises:
        InputError: if they are no whole numbers, or not as many as pictures.
    """
    try:
        values = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} holds no whole numbers; give (B,) of them, -1 for unknown") from error
    if len(values.shape) == 1 and not len(values) and not count:
        values = values.long()  # an empty list is of floats
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"{name} is {values.dtype}; labels are whole numbers, -1 for unknown")
    if values.shape not in ((), (count,)):
        raise InputError(
            f"{name} has shape {tuple(values.shape)}, but there are {count} features; give one for each, or one for "
            "all"
        )
    return values.to(device, torch.int64).expand(count)


def _order(features: Tensor, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return the order of pictures (N,) by role, index, labels and, where all are equal, by the features' bytes."""
    raw = features.contiguous().view(torch.uint8).numpy()
    by_features = np.argsort(raw.view(np.dtype((np.void, raw.shape[1])))[:, 0], kind="stable")
    keys = [labels[by_features, _COLUMNS.index(name)] for name in (*reversed(_LABELS), "index", "role")]
    return by_features[np.lexsort(keys)]


def _first_of_each(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return the rows of (N, 7) labels in their order that stand first under their role and index, or have none.

    Raises:
        InputError: if two under one have other labels.
    """
    again = np.zeros(len(labels), bool)
    again[1:] = (labels[1:, :2] == labels[:-1, :2]).all(1) & (labels[1:, 0] >= 0)
    other = again[1:] & (labels[1:] != labels[:-1]).any(1)
    if other.any():
        row = int(np.flatnonzero(other)[0])
        place = int(np.flatnonzero(labels[row] != labels[row + 1])[0])
        raise InputError(
            f"index {labels[row, 0]} is that of two {ROLES[labels[row, 1]]} pictures, with {_COLUMNS[place]} "
            f"{labels[row, place]} and {labels[row + 1, place]}; an index is one picture's"
        )
    return np.flatnonzero(~again)
