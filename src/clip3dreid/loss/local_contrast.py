"""Local guidance by contrast: a picture goes more cheaply to its person's words than to those of others."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.loss.transport import Solver, to_each
from clip3dreid.loss.word_term import (
    Centre,
    WordTerm,
    plan_entropy,
    position_masses,
    precise,
    token_masses,
)
from clip3dreid.types import Batch, Dimensions, Features

PRESENT, OWN = "descriptions/present", "descriptions/own"
"""In `Batch.targets`: which descriptions the batch has (M,), ascending, and each picture's among them (B,)."""
COLDEST = 0.01
"""What a learnt temperature stays above: the bound that CLIP sets."""


class Descriptions(NamedTuple):
    """The different sets of tokens that people or pictures have."""

    tokens: Tensor
    """(M, L) int64, ascending; -1 where there are fewer."""
    confidence: Tensor
    """(M, L): the mean over those who have the same tokens."""
    which: Tensor
    """(U,) int64: the description of each person (or picture)."""


class LocalContrast(WordTerm):
    """Cross-entropy of choosing a picture's description among those of the batch by what transport to them costs.

    For picture i and description j the logit is minus the cost of transporting i's positions to j's tokens, over a
    temperature. Descriptions are compared as sets of tokens: people with the same words share one, and so are no
    negatives of each other. A batch in which everybody has the same words costs nothing.

    A process compares its own pictures with the descriptions of these alone. Where a batch is shared by more
    processes, a picture is told from fewer, and the loss is lower.

    Logged too: `own_description`, the share of pictures that go most cheaply to their own words; `plan_entropy`, as
    in `LocalAlignment`, of the plans to the own words; `temperature`.

    Source: the transport is that of Liu et al., CVPR 2024; the contrast is that of Radford et al., "Learning
    Transferable Visual Models From Natural Language Supervision", ICML 2021, from pictures to texts. The combination
    is this project's.
    """

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        solver: Solver,
        centre: Centre | bool,
        positions: Literal["uniform", "activation"],
        tokens: Literal["uniform", "margin"],
        temperature: float,
        learn_temperature: bool,
    ) -> None:
        """Build the projection.

        Args:
            dimensions: channels of the map, and the words.
            solver: how transport is solved, once for each description of the batch.
            centre: what is taken from the tokens; see `WordTerm`.
            positions: mass of the positions; see `position_masses`.
            tokens: mass of the tokens; see `token_masses`. Where several people have the same, their mean confidence
                counts.
            temperature: above 0, in units of the cost: a cost lower by this makes a description e times as likely.
            learn_temperature: begin with it, above 0.01, and learn it from then on; it stays above 0.01.

        Raises:
            InputError: if an option is none of its choices, the temperature is too low, or as `WordTerm`.
        """
        choose("LocalContrast: positions", positions, ("uniform", "activation"))
        choose("LocalContrast: tokens", tokens, ("uniform", "margin"))
        super().__init__(dimensions, centre=centre)
        self.solver = solver
        self.positions = positions
        self.tokens = tokens
        self._project_maps(dimensions)
        least = COLDEST if learn_temperature else 0
        check_number("LocalContrast: temperature", temperature, Range(least, above=True))
        self._fixed = temperature
        self.excess = nn.Parameter(torch.tensor(math.log(temperature - least))) if learn_temperature else None
        self.descriptions: Tensor
        self.sureness: Tensor
        different = descriptions(self.index, self.confidence)
        self.register_buffer("descriptions", different.tokens, persistent=False)
        self.register_buffer("sureness", different.confidence, persistent=False)
        # No buffer: it stays on the CPU, where labels are when batches are made.
        self._which = different.which

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the batch, a scalar; log M where M descriptions are not told apart."""
        with torch.autocast(features.map.device.type, enabled=False):
            maps = precise(features.map)
            projected = self._projected(maps)
            a = position_masses(maps, self.positions)
            if PRESENT not in batch.targets:
                counted = {name: part.to(maps.device) for name, part in self.ahead(batch).items()}
                batch = batch._replace(targets={**batch.targets, **counted})
            present, own = batch.targets[PRESENT], batch.targets[OWN]
            x = F.normalize(projected, dim=2)
            tokens, b = self._points(self.descriptions[present], self.sureness[present], x)
            found = to_each(self.solver, x, tokens, a, b)
            costs = found.value  # (B, M)
            temperature = self.temperature.to(costs)
            loss = F.cross_entropy(-costs / temperature, own)
        self._observe(projected, batch)
        with torch.no_grad():
            self.observed["plan_entropy"] = plan_entropy(
                found.plan[torch.arange(len(own), device=own.device), own]
            )
            self.observed["own_description"] = (costs.argmin(1) == own).to(costs.dtype).mean()
            self.observed["temperature"] = temperature
        return loss

    @property
    def temperature(self) -> Tensor:
        """Return the temperature, a scalar; learnt, it is the exponential of a parameter above its bound."""
        if self.excess is None:
            return torch.full((), self._fixed, device=self.table.device)
        return COLDEST + self.excess.exp()

    @torch.no_grad()
    def plan(self, features: Features, batch: Batch) -> Tensor:
        """Return how much of each position goes to each token of the picture's own person, (B, h, w, L)."""
        with torch.autocast(features.map.device.type, enabled=False):
            maps = precise(features.map)
            x = F.normalize(self._projected(maps), dim=2)
            tokens, b = self._points(*self._tokens(batch), x)
            plan = self.solver(x, tokens, position_masses(maps, self.positions), b).plan
        return plan.reshape(len(plan), *maps.shape[2:], -1)

    def ahead(self, batch: Batch) -> dict[str, Tensor]:
        """Return which descriptions a batch has: their number is the number of transports."""
        found = torch.unique(self._which[self._units(batch).cpu()], return_inverse=True)
        return dict(zip((PRESENT, OWN), found, strict=True))

    def _points(self, tokens: Tensor, confidence: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return where tokens (M, L) lie, (M, L, d), and their masses, (M, L) in the precision of another tensor."""
        return self.table[tokens.clamp(min=0)], token_masses(confidence.to(like.dtype), tokens, self.tokens)


def descriptions(tokens: Tensor, confidence: Tensor) -> Descriptions:
    """Return the different sets among tokens (U, L), -1 where there is none; `confidence` (U, L) is each token's."""
    tokens, order = tokens.sort(dim=1)
    confidence = confidence.gather(1, order)
    different, which = torch.unique(tokens, dim=0, return_inverse=True)
    sums = confidence.new_zeros(different.shape).index_add_(0, which, confidence)
    return Descriptions(different, sums / which.bincount(minlength=len(different))[:, None].to(sums), which)
