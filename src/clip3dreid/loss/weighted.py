"""The weighted sum of the loss terms that a configuration names."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number
from clip3dreid.loss.term import Need, Term
from clip3dreid.types import Batch, Dimensions, Features


class LossEntry(TypedDict):
    """One entry of the `loss` configuration."""

    weight: float
    """Factor in the sum, 0 or more; a term of weight 0 is not built."""
    start_epoch: int
    """First epoch, counted from 0, in which the term takes part."""
    warmup_epochs: int
    """Epochs over which the weight rises linearly to its value; 0: it has its value from the start epoch on."""
    term: Callable[[Dimensions], Term]
    """Builds the term: its class with everything but the dimensions filled in."""


class Losses(NamedTuple):
    """The loss of one batch, whole and in parts.

    Parts are named after their term, or `term/part` where a term has several.
    """

    total: Tensor
    """Scalar, to be back-propagated."""
    raw: dict[str, Tensor]
    """Scalar parts before weighting, detached."""
    weighted: dict[str, Tensor]
    """The same times the weight of this epoch: they add up to `total`."""
    observed: dict[str, Tensor]
    """What terms measured on the way and is no part of the loss, as `term/name`, detached."""
    terms: dict[str, Tensor]
    """Each term's weighted sum of parts, not detached: what gradients of single terms are taken of."""


class NonFiniteLoss(ArithmeticError):  # noqa: N818 - says what is wrong more plainly than NonFiniteLossError
    """A loss became NaN or infinite; the message names the term."""


def needs(terms: Mapping[str, LossEntry]) -> frozenset[Need]:
    """Return what the terms of a run need beside pictures and labels; terms of weight 0 need nothing.

    Raises:
        InputError: as `WeightedLosses`, for entries that are wrong.
    """
    kinds: set[Need] = set()
    for name, entry in terms.items():
        _check(name, entry)
        if entry["weight"] > 0:
            kinds |= getattr(_term_class(entry["term"]), "needs", frozenset())
    return frozenset(kinds)


def teaches(terms: Mapping[str, LossEntry]) -> frozenset[str] | None:
    """Return which heads a model may be shipped with (`Term.teaches`); terms of weight 0 teach nothing.

    Returns:
        First parts of the heads' names; None where a term is built by a function, which does not say.

    Raises:
        InputError: as `WeightedLosses`, for entries that are wrong.
    """
    heads: set[str] = set()
    for name, entry in terms.items():
        _check(name, entry)
        if entry["weight"] > 0:
            built = _term_class(entry["term"])
            if not isinstance(built, type):
                return None
            heads |= getattr(built, "teaches", frozenset())
    return frozenset(heads)


class WeightedLosses(nn.Module):
    """All loss terms of a run, with their heads."""

    def __init__(self, terms: Mapping[str, LossEntry], dimensions: Dimensions) -> None:
        """Build the terms whose weight is above 0, in the order given.

        Args:
            terms: name of each term and its entry.
            dimensions: what the terms must know to build their heads.

        Raises:
            InputError: if an entry lacks a key or has one too many, a weight or an epoch is negative or
                not a number, a term's options do not fit it, or nothing is left to train at epoch 0.
        """
        super().__init__()
        self.terms = nn.ModuleDict()
        self.entries: dict[str, LossEntry] = {}
        for name, entry in terms.items():
            _check(name, entry)
            if entry["weight"] == 0:
                continue
            build = partial(entry["term"], dimensions)
            try:
                inspect.signature(build.func).bind(*build.args, **build.keywords)
            except TypeError as error:
                raise InputError(f"loss.{name}.term: {error}; correct the term's options") from error
            self.terms[name] = build()
            self.entries[name] = entry
        if not self.terms:
            raise InputError(
                "no loss has a weight above 0; choose a method (method=ce) or give loss.NAME.weight"
            )
        if min(self.start_epochs.values()) > 0:
            raise InputError("no loss takes part from epoch 0; set start_epoch: 0 for one of them")
        for term in self._terms().values():
            term.connect(self._terms())

    @property
    def start_epochs(self) -> dict[str, int]:
        """First epoch of each term."""
        return {name: entry["start_epoch"] for name, entry in self.entries.items()}

    def weight(self, name: str, epoch: int) -> float:
        """Return a term's factor in an epoch: 0 before its start, then rising in equal steps over its warm-up."""
        entry = self.entries[name]
        begun = epoch - entry["start_epoch"] + 1
        warmup = entry["warmup_epochs"]
        share = min(1.0, begun / (warmup + 1)) if warmup else 1.0
        return float(entry["weight"]) * share if begun > 0 else 0.0

    def forward(
        self, features: Features, batch: Batch, epoch: int, *, bodies: Features | None = None
    ) -> Losses:
        """Compute the terms that take part in `epoch`, and add them up.

        A term before its start epoch is not computed, so its head gets no gradient at all and no
        optimiser moves it, not even by weight decay. Under DistributedDataParallel this needs
        `find_unused_parameters`.

        Args:
            features: what the student makes of the people's pictures; `pooled` and `embedding` become float32.
            batch: labels of both streams, and what `needs` names.
            epoch: counted from 0.
            bodies: what the student makes of `batch.bodies`, likewise; None where there is no second stream.

        Returns:
            The sum and its parts.

        Raises:
            NonFiniteLoss: if a part is NaN or infinite; it is named.
        """
        raw: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        observed: dict[str, Tensor] = {}
        features = _widened(features)
        bodies = None if bodies is None else _widened(bodies)
        with torch.autocast(features.embedding.device.type, enabled=False):
            for name, term in self._terms().items():
                weight = self.weight(name, epoch)
                if not weight:
                    continue
                value = term(features, batch, bodies)
                parts = (
                    {f"{name}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
                )
                raw |= parts
                scaled = {part: weight * loss for part, loss in parts.items()}
                weighted |= scaled
                sums[name] = torch.stack(list(scaled.values())).sum()
                observed |= {f"{name}/{key}": measured.detach() for key, measured in term.observed.items()}
            total = torch.stack(list(weighted.values())).sum()
        # One look at the sum is one synchronisation of the device; the parts are asked only when it is bad.
        if not torch.isfinite(total):
            bad = ", ".join(f"{k} = {v.item()}" for k, v in raw.items() if not torch.isfinite(v))
            raise NonFiniteLoss(f"loss not finite ({bad or 'its parts overflow when weighted and added'})")
        return Losses(
            total,
            {part: loss.detach() for part, loss in raw.items()},
            {part: loss.detach() for part, loss in weighted.items()},
            observed,
            sums,
        )

    def heads(self) -> dict[str, Tensor]:
        """Return tensors that the trained model is shipped with; see `Term.heads`."""
        shipped: dict[str, Tensor] = {}
        for term in self._terms().values():
            shipped |= {name: tensor.detach().clone() for name, tensor in term.heads().items()}
        return shipped

    def unscheduled_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of all terms whose learning rate is to stay constant."""
        for term in self._terms().values():
            yield from term.unscheduled_parameters()

    def _terms(self) -> dict[str, Term]:
        return cast(dict[str, Term], dict(self.terms.items()))


def _widened(features: Features) -> Features:
    return features._replace(pooled=_single(features.pooled), embedding=_single(features.embedding))


def _term_class(build: Any) -> Any:
    while isinstance(build, partial):
        build = build.func
    return build


def _single(values: Tensor) -> Tensor:
    """Return half-precision values as float32, float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _check(name: str, entry: Mapping[str, Any]) -> None:
    """Raise InputError if an entry's keys or numbers are wrong."""
    expected = set(LossEntry.__annotations__)
    if set(entry) != expected:
        wrong = ", ".join(sorted(str(key) for key in expected ^ set(entry)))
        raise InputError(
            f"loss.{name} needs exactly {', '.join(sorted(expected))}; missing or unknown: {wrong}"
        )
    check_number(f"loss.{name}.weight", entry["weight"], Range(0))
    for key in ("start_epoch", "warmup_epochs"):
        check_number(f"loss.{name}.{key}", entry[key], Range(0), whole=True)
