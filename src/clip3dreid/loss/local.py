"""Local guidance: the positions of a picture's feature map are transported to the words that describe its person.

Source: Liu et al., "Distilling CLIP with Dual Guidance for Learning Discriminative Human Body Shape Representation",
CVPR 2024 (CLIP3DReID).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.io.checks import choose
from clip3dreid.loss.transport import Solver, Transport
from clip3dreid.loss.word_term import (
    Centre,
    WordTerm,
    plan_entropy,
    position_masses,
    precise,
    token_masses,
)
from clip3dreid.types import Batch, Dimensions, Features


class LocalAlignment(WordTerm):
    """Cost of the transport between a map's positions and the text tokens of its person.

    Nobody says which position shows what a token speaks of: the plan finds it out, picture by picture.

    Logged too: `plan_entropy`, the mean entropy in nats of the token that a position goes to (0: one token; log L:
    all alike).

    Source: Liu et al., CVPR 2024. There, tokens are brought to the student's width (`projection="text"`), tokens
    are not centred, and both marginals are uniform.
    """

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        solver: Solver,
        projection: Literal["student", "text"],
        centre: Centre | bool,
        positions: Literal["uniform", "activation"],
        tokens: Literal["uniform", "margin"],
    ) -> None:
        """Build the projection.

        Args:
            dimensions: channels of the map, and the words.
            solver: how transport is solved.
            projection: what is learned to bring both sides together. `student`: a 1x1 convolution from the map to the
                teacher's space, where a picture can be described later on; `text`: a linear layer from tokens to the
                map's channels.
            centre: what is taken from the tokens; see `WordTerm`.
            positions: mass of the positions; see `position_masses`.
            tokens: mass of the tokens; see `token_masses`.

        Raises:
            InputError: if an option is none of its choices, or as `WordTerm`.
        """
        choose("LocalAlignment: projection", projection, ("student", "text"))
        choose("LocalAlignment: positions", positions, ("uniform", "activation"))
        choose("LocalAlignment: tokens", tokens, ("uniform", "margin"))
        super().__init__(dimensions, centre=centre)
        self.solver = solver
        self.positions = positions
        self.tokens = tokens
        if projection == "student":
            self._project_maps(dimensions)
        else:
            self.head = nn.Linear(self.table.shape[1], dimensions.channels)

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the batch of the solver's value, a scalar."""
        projected, transport = self._transport(features, batch)
        self._observe(projected, batch)
        self.observed["plan_entropy"] = plan_entropy(transport.plan)
        return transport.value.mean()

    @torch.no_grad()
    def plan(self, features: Features, batch: Batch) -> Tensor:
        """Return how much of each position goes to each token, (B, h, w, L)."""
        plan = self._transport(features, batch)[1].plan
        return plan.reshape(len(plan), *features.map.shape[2:], -1)

    def _transport(self, features: Features, batch: Batch) -> tuple[Tensor, Transport]:
        """Return the positions (B, h * w, ...) as they are projected, and their transport."""
        # Where the forward pass is called outside `WeightedLosses` too, as for drawing a plan.
        with torch.autocast(features.map.device.type, enabled=False):
            maps = precise(features.map)
            index, confidence = self._tokens(batch)
            vectors = self.table[index.clamp(min=0)]  # (B, L, d)
            if isinstance(self.head, nn.Conv2d):
                projected = self._projected(maps)
            else:
                projected, vectors = maps.flatten(2).mT, F.normalize(self.head(vectors), dim=2)
            a = position_masses(maps, self.positions)
            b = token_masses(confidence.to(maps.dtype), index, self.tokens)
            return projected, self.solver(F.normalize(projected, dim=2), vectors, a, b)
