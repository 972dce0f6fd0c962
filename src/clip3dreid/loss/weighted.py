"""The weighted sum of the loss terms that a configuration names."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import torch
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number
from clip3dreid.loss.shares import IDENTITY, Sent, Shares, gradients_sent
from clip3dreid.loss.term import Need, Term
from clip3dreid.types import Batch, Dimensions, Features


class LossEntry(TypedDict):
    """One entry of the `loss` configuration."""

    weight: float
    """Factor in the sum, 0 or more; a term of weight 0 is not built. With a share: until that is measured."""
    share: NotRequired[float | None]
    """Length of the term's gradient in the backbone as a share of identity's, above 0; None: the weight counts."""
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
    weights: dict[str, float | Tensor]
    """Each term's factor; a scalar on the device where it follows a share."""
    sent: dict[str, Sent]
    """Each term's gradient at weight 1, where it was to be measured."""


def not_finite(total: float, raw: Mapping[str, float]) -> str | None:
    """Return what is to be said of a loss that is NaN or infinite, with the terms that are; None where it is neither.

    Args:
        total: the sum.
        raw: its parts by name, before weighting.
    """
    if math.isfinite(total):
        return None
    bad = ", ".join(f"{name} = {value}" for name, value in raw.items() if not math.isfinite(value))
    return f"loss not finite ({bad or 'its parts overflow when weighted and added'})"


def needs(terms: Mapping[str, LossEntry]) -> frozenset[Need]:
    """Return what the terms of a run need beside pictures and labels; terms of weight 0 need nothing.

    Raises:
        InputError: as `WeightedLosses`, for entries that are wrong.
    """
    _check_all(terms)
    return _named(_built(terms), "needs")


def teaches(terms: Mapping[str, LossEntry]) -> frozenset[str] | None:
    """Return which heads a model may be shipped with (`Term.teaches`); terms of weight 0 teach nothing.

    Returns:
        First parts of the heads' names; None where a term is built by a function, which does not say.

    Raises:
        InputError: as `WeightedLosses`, for entries that are wrong.
    """
    built = _built(terms)
    return _named(built, "teaches") if all(isinstance(one, type) for one in built) else None


def compares(terms: Mapping[str, LossEntry]) -> frozenset[str]:
    """Return what stands beside the embedding in a retrieval feature by default (`Term.compares`).

    Raises:
        InputError: as `WeightedLosses`, for entries that are wrong.
    """
    return _named(_built(terms), "compares")


def _built(terms: Mapping[str, LossEntry]) -> list[Any]:
    """Return what builds the terms of a weight above 0: classes, or functions of a user's own."""
    for name, entry in terms.items():
        _check(name, entry)
    return [_term_class(entry["term"]) for entry in terms.values() if entry["weight"] > 0]


def _named(built: Sequence[Any], what: str) -> frozenset[Any]:
    """Return all that classes of terms name under an attribute; functions name nothing."""
    return frozenset(one for term in built for one in getattr(term, what, frozenset()))


class WeightedLosses(nn.Module):
    """All loss terms of a run, with their heads."""

    def __init__(self, terms: Mapping[str, LossEntry], dimensions: Dimensions) -> None:
        """Build the terms whose weight is above 0, in the order given.

        Args:
            terms: name of each term and its entry.
            dimensions: what the terms must know to build their heads.

        Raises:
            InputError: if an entry lacks a key or has one too many, a weight or an epoch is negative or
                not a number, a share is not above 0 or has no identity to be one of, a term's options do not fit it,
                or nothing is left to train at epoch 0.
        """
        super().__init__()
        _check_all(terms)
        self.terms = nn.ModuleDict()
        self.entries: dict[str, LossEntry] = {}
        for name, entry in terms.items():
            if entry["weight"] == 0:
                continue
            build = partial(entry["term"], dimensions)
            try:
                inspect.signature(build.func).bind(*build.args, **build.keywords)
            except TypeError as error:
                raise InputError(f"loss.{name}.term: {error}; correct the term's options") from error
            self.terms[name] = build()
            # Plain, since it is read at every step: a config's node resolves each key anew.
            self.entries[name] = cast(LossEntry, {key: entry[key] for key in entry})  # type: ignore[literal-required]
        if not self.terms:
            raise InputError(
                "no loss has a weight above 0; choose a method (method=ce) or give loss.NAME.weight"
            )
        if min(self.start_epochs.values()) > 0:
            raise InputError("no loss takes part from epoch 0; set start_epoch: 0 for one of them")
        for term in self._terms().values():
            term.connect(self._terms())
        # None where there are none: a checkpoint holds nothing that its run does not use.
        shares = _shares(terms)
        self.shares = Shares(shares) if shares else None

    @property
    def start_epochs(self) -> dict[str, int]:
        """First epoch of each term."""
        return {name: entry["start_epoch"] for name, entry in self.entries.items()}

    def weight(self, name: str, epoch: int) -> float:
        """Return a term's factor in an epoch: 0 before its start, then rising in equal steps over its warm-up."""
        return float(self._weight(name, epoch))

    def waiting(self, epoch: int) -> bool:
        """Return whether the gradient of a term that takes part must be measured now: one whose share never was."""
        return self.shares is not None and self.shares.waiting(
            name for name in self.terms if self._risen(name, epoch)
        )

    def forward(
        self,
        features: Features,
        batch: Batch,
        epoch: int,
        *,
        bodies: Features | None = None,
        measure: Sequence[nn.Parameter] = (),
        scale: float = 1.0,
        part: float = 1.0,
    ) -> Losses:
        """Compute the terms that take part in `epoch`, and add them up.

        A term before its start epoch is not computed, so its head gets no gradient at all and no
        optimiser moves it, not even by weight decay. Under DistributedDataParallel this needs
        `find_unused_parameters`. Where all take part from epoch 0, every parameter has a gradient of any batch.

        Args:
            features: what the student makes of the people's pictures; `pooled` and `embedding` become float32.
            batch: labels of both streams, and what `needs` names.
            epoch: counted from 0.
            bodies: what the student makes of `batch.bodies`, likewise; None where there is no second stream.
            measure: the backbone's parameters, if the gradient that each term sends into them is to be measured;
                terms with a share have their new weights in this very sum.
            scale: see `gradients_sent`.
            part: what this process's losses count in the mean over processes, as `gather.part_of_mean` has it; for
                what is measured. The sum is without it.

        Returns:
            The sum and its parts, which nobody has looked at: `not_finite` does once they are on the CPU.

        Raises:
            InputError: if a term with a share sends nothing there.
        """
        features = _widened(features)
        bodies = None if bodies is None else _widened(bodies)
        with torch.autocast(features.embedding.device.type, enabled=False):
            parts, observed = self._parts(features, batch, epoch, bodies)
            counted = {name: part * loss for name, loss in _sums(parts).items()}
            sent = gradients_sent(counted, measure, scale) if measure else {}
            if self.shares is not None:
                self.shares.update(sent)
            weights = {name: self._weight(name, epoch) for name in parts}
            scaled = {
                name: {part: weights[name] * loss for part, loss in of.items()} for name, of in parts.items()
            }
            raw, weighted = _flat(parts), _flat(scaled)
            total = torch.stack(list(weighted.values())).sum()
        return Losses(
            total,
            {part: loss.detach() for part, loss in raw.items()},
            {part: loss.detach() for part, loss in weighted.items()},
            observed,
            _sums(scaled),
            weights,
            sent,
        )

    def _parts(
        self, features: Features, batch: Batch, epoch: int, bodies: Features | None
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """Return the parts of each term that takes part, at weight 1, and what terms observed."""
        parts: dict[str, dict[str, Tensor]] = {}
        observed: dict[str, Tensor] = {}
        for name, term in self._terms().items():
            if self._risen(name, epoch):
                value = term(features, batch, bodies)
                named = isinstance(value, dict)
                parts[name] = {f"{name}/{k}": v for k, v in value.items()} if named else {name: value}
                observed |= {f"{name}/{key}": measured.detach() for key, measured in term.observed.items()}
        return parts, observed

    def ahead(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the terms count of a batch before it goes to the device (`Term.ahead`)."""
        return {
            name: counted for term in self._terms().values() for name, counted in term.ahead(batch).items()
        }

    def heads(self) -> dict[str, Tensor]:
        """Return tensors that the trained model is shipped with; of two terms with the same head, the later's."""
        shipped: dict[str, Tensor] = {}
        for term in self._terms().values():
            shipped |= {name: tensor.detach().clone() for name, tensor in term.heads().items()}
        return shipped

    def unscheduled_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of all terms whose learning rate is to stay constant."""
        for term in self._terms().values():
            yield from term.unscheduled_parameters()

    def _weight(self, name: str, epoch: int) -> float | Tensor:
        """Return a term's factor in an epoch, of a share on the device: nobody waits for its value."""
        risen = self._risen(name, epoch)
        plain = float(self.entries[name]["weight"]) * risen
        if self.shares is None or name not in self.shares.shares or not risen:
            return plain
        identity = self.weight(IDENTITY, epoch)
        return self.shares.weight(name, identity * risen, plain) if identity else plain

    def _risen(self, name: str, epoch: int) -> float:
        """Return what part of its strength a term has in an epoch, 0..1; 0: it takes no part."""
        entry = self.entries[name]
        begun, warmup = epoch - entry["start_epoch"] + 1, entry["warmup_epochs"]
        return max(0.0, min(1.0, begun / (warmup + 1)))

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


def _flat(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {part: loss for of in parts.values() for part, loss in of.items()}


def _sums(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack(list(of.values())).sum() for name, of in parts.items()}


def _shares(terms: Mapping[str, LossEntry]) -> dict[str, float]:
    """Return the shares of the terms that are built."""
    return {
        name: share
        for name, entry in terms.items()
        if entry["weight"] > 0 and (share := entry.get("share")) is not None
    }


def _check_all(terms: Mapping[str, LossEntry]) -> None:
    """Raise InputError if an entry is wrong, or a share is one of nothing."""
    for name, entry in terms.items():
        _check(name, entry)
    shares = _shares(terms)
    if IDENTITY in shares:
        raise InputError(
            f"loss.identity.share={shares[IDENTITY]:g}: identity is what the shares of others are of; give "
            "loss.identity.weight and loss.identity.share=null"
        )
    if shares and (IDENTITY not in terms or terms[IDENTITY]["weight"] == 0):
        name, share = next(iter(shares.items()))
        raise InputError(
            f"loss.{name}.share={share:g} is a share of loss.identity, which does not take part; add it "
            f"(loss=[identity,{name},…]) or give loss.{name}.weight and loss.{name}.share=null"
        )


def _check(name: str, entry: Mapping[str, Any]) -> None:
    """Raise InputError if an entry's keys or numbers are wrong."""
    expected, given = LossEntry.__required_keys__, set(entry) - LossEntry.__optional_keys__
    if given != expected:
        wrong = ", ".join(sorted(str(key) for key in expected ^ given))
        raise InputError(
            f"loss.{name} needs {', '.join(sorted(expected))} and may have share; missing or unknown: {wrong}"
        )
    check_number(f"loss.{name}.weight", entry["weight"], Range(0))
    if entry.get("share") is not None:
        check_number(f"loss.{name}.share", entry["share"], Range(0, above=True))
    for key in ("start_epoch", "warmup_epochs"):
        check_number(f"loss.{name}.{key}", entry[key], Range(0), whole=True)
