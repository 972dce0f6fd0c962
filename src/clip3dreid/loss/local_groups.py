"""Local guidance by choice: for each group of opposites, the positions that speak of it choose among its words."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.io.checks import choose
from clip3dreid.loss.term import not_negative, positive
from clip3dreid.loss.transport import Solver, Transport
from clip3dreid.loss.word_term import (
    WordTerm,
    group_means,
    group_of_words,
    masses,
    position_masses,
    precise,
)
from clip3dreid.types import Batch, Dimensions, Features, TextTargets


class LocalGroups(WordTerm):
    """Cross-entropy of choosing a person's word in each group, by a feature of the positions that speak of the group.

    A group is looked at in two ways. Its topic, the mean of its words less that of the vocabulary, says what it is
    about, and is the same for everybody. Its directions, words less the group's mean, say what is true of somebody.
    Positions are transported to topics, without a look at anybody's words; a group's feature is the mean of the
    positions as the plan weighs them, and its cosines with the directions, over a temperature, are the logits.

    Two parts: `choice`, the cross-entropy; with `pool="plan"` and a weight, `topics`, what the transport costs,
    without which nothing draws the positions to their topics.

    Logged too: `right_word`, the share of words that are chosen as they are told, over groups that a person has.

    Source: this project's; the transport is that of Liu et al., CVPR 2024.
    """

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        solver: Solver,
        pool: Literal["plan", "mean"],
        positions: Literal["uniform", "activation"],
        tokens: Literal["uniform", "margin"],
        temperature: float,
        topic_weight: float,
    ) -> None:
        """Build the projection.

        Args:
            dimensions: channels of the map, and the words with their groups.
            solver: how transport is solved; of no use with `pool="mean"`.
            pool: what a group's feature is the mean of: positions as the plan to its topic weighs them, or `mean`:
                all alike, so that all groups look at the same feature, as a description does.
            positions: mass of the positions; see `position_masses`.
            tokens: what the groups of a picture count: `uniform`, or `margin`: in proportion to the confidence of
                their word.
            temperature: of the logits, above 0, in units of the cosine.
            topic_weight: of `topics` within this term, 0 or more; 0: it is left out.

        Raises:
            InputError: if an option is none of its choices or out of range, tokens are no words of the vocabulary
                (`labels.tokens=descriptor`), a group has one word, or as `WordTerm`.
        """
        choose("LocalGroups: pool", pool, ("plan", "mean"))
        choose("LocalGroups: positions", positions, ("uniform", "activation"))
        choose("LocalGroups: tokens", tokens, ("uniform", "margin"))
        super().__init__(dimensions, centre="group")
        self.solver = solver
        self.pool = pool
        self.positions = positions
        self.tokens = tokens
        self.temperature = positive("LocalGroups: temperature", temperature)
        self.topic_weight = not_negative("LocalGroups: topic_weight", topic_weight)
        self._project_maps(dimensions)
        told = dimensions.guide(TextTargets)
        group = group_of_words(told, self._name)
        starts = torch.tensor(told.group_sizes).cumsum(0) - torch.tensor(told.group_sizes)
        topics = group_means(told, self._name)[starts] - told.words.mean(0)
        self.group: Tensor
        self.topics: Tensor
        self.members: Tensor
        self.target: Tensor
        self.sureness: Tensor
        for name, values in {
            "group": group,
            "topics": F.normalize(topics, dim=1),
            "members": members(told.group_sizes),
            **dict(zip(("target", "sureness"), self._targets(group, starts), strict=True)),
        }.items():
            self.register_buffer(name, values, persistent=False)

    def _targets(self, group: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the place within each group of each unit's word, (U, G), -1 where there is none, and confidence."""
        units, slots = (self.index >= 0).nonzero(as_tuple=True)
        words = self.index[units, slots]
        target = torch.full((len(self.index), len(starts)), -1)
        target[units, group[words]] = words - starts[group[words]]
        sureness = self.confidence.new_zeros(target.shape)
        sureness[units, group[words]] = self.confidence[units, slots]
        return target, sureness

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> dict[str, Tensor]:
        """Return `choice`, and `topics` where it counts; means over the batch."""
        with torch.autocast(features.map.device.type, enabled=False):
            maps = precise(features.map)
            projected = self._projected(maps)
            transport = self._transport(maps, projected) if self.pool == "plan" else None
            logits = self._logits(self._pooled(projected, transport))
            who = self._units(batch)
            target, sureness = self.target[who], self.sureness[who].to(logits.dtype)
            told = target >= 0
            losses = F.cross_entropy(logits.mT, target.clamp(min=0), reduction="none")  # (B, G)
            shares = masses(sureness if self.tokens == "margin" else torch.ones_like(sureness), told)
            parts = {"choice": (shares * losses).sum(1).mean()}
            if transport is not None and self.topic_weight:
                parts["topics"] = self.topic_weight * transport.value.mean()
        self._observe(projected, batch)
        right = (logits.argmax(2) == target) & told
        self.observed["right_word"] = right.sum() / told.sum()
        return parts

    @torch.no_grad()
    def plan(self, features: Features, batch: Batch) -> Tensor:
        """Return how much of each position goes to each group's topic, (B, h, w, G), whoever it is."""
        with torch.autocast(features.map.device.type, enabled=False):
            maps = precise(features.map)
            plan = self._transport(maps, self._projected(maps)).plan
        return plan.reshape(len(plan), *maps.shape[2:], -1)

    def _transport(self, maps: Tensor, projected: Tensor) -> Transport:
        """Return the transport of positions (B, N, d) to the topics."""
        topics = self.topics.expand(len(maps), -1, -1)
        b = masses(torch.ones_like(topics[..., 0]))
        return self.solver(F.normalize(projected, dim=2), topics, position_masses(maps, self.positions), b)

    def _logits(self, pooled: Tensor) -> Tensor:
        """Return logits (B, G, S) of each group's words, minus infinity past its end, of features (B, G, d)."""
        cosines = (F.normalize(pooled, dim=2)[:, self.group] * self.table).sum(2)  # (B, W)
        logits = cosines[:, self.members.clamp(min=0)] / self.temperature
        return logits.masked_fill(self.members < 0, -torch.inf)

    def _pooled(self, projected: Tensor, transport: Transport | None) -> Tensor:
        """Return a feature for each group, (B, G, d): means of the positions (B, N, d)."""
        if transport is None:
            return projected.mean(1, keepdim=True).expand(-1, len(self.topics), -1)
        shares = transport.plan / transport.plan.sum(1, keepdim=True)
        return shares.to(projected.dtype).mT @ projected


def members(sizes: tuple[int, ...]) -> Tensor:
    """Return the words of each group, (G, S) int64 with S the most words of a group; -1 where there are fewer."""
    places = torch.arange(max(sizes)).expand(len(sizes), -1)
    lengths = torch.tensor(sizes)[:, None]
    starts = lengths.cumsum(0) - lengths
    return torch.where(places < lengths, starts + places, -1)
