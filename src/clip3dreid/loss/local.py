"""Local guidance: the positions of a picture's feature map are transported to the words that describe its person.

Source: Liu et al., "Distilling CLIP with Dual Guidance for Learning Discriminative Human Body Shape Representation",
CVPR 2024 (CLIP3DReID).
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose
from clip3dreid.loss.term import Need, Term, between_person_variance
from clip3dreid.loss.transport import Solver, Transport
from clip3dreid.types import Batch, Dimensions, Features, TextTargets

MOMENTUM = 0.01
"""Share of the newest batch in the moments of what words score, once there have been a hundred."""


class LocalAlignment(Term):
    """Cost of the transport between a map's positions and the text tokens of its person.

    Nobody says which position shows what a token speaks of: the plan finds it out, picture by picture. The tokens'
    table is no part of a checkpoint.

    Logged beside the loss: `between_person_variance` of the projected map's mean over positions (0: all people look
    alike to it) and `plan_entropy`, the mean entropy in nats of the token that a position goes to (0: one token;
    log L: all alike).

    Source: Liu et al., CVPR 2024. There, tokens are brought to the student's width (`projection="text"`), tokens
    are not centred, and both marginals are uniform.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({TextTargets})
    teaches: ClassVar[frozenset[str]] = frozenset({"joint"})

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        solver: Solver,
        projection: Literal["student", "text"],
        centre: bool,
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
            centre: whether the mean of the vocabulary is taken from the tokens. A text encoder's vectors share a
                narrow cone, in which all tokens are about as far from any position.
            positions: mass of the positions. `activation`: in proportion to the length of a position's feature,
                less the shortest of the map.
            tokens: mass of the tokens. `margin`: in proportion to their confidence. Both are uniform where a picture
                gives nothing to go by (all 0).

        Raises:
            InputError: if an option is none of its choices, someone has no token at all, or there is nothing left of
                a vocabulary of one word when its mean is taken.
        """
        super().__init__()
        words = dimensions.guide(TextTargets)
        _choice("projection", projection, ("student", "text"))
        self.solver = solver
        self.positions = _choice("positions", positions, ("uniform", "activation"))
        self.tokens = _choice("tokens", tokens, ("uniform", "margin"))
        self.by = words.by
        wordless = (words.tokens < 0).all(1).nonzero().flatten().tolist()
        if wordless:
            whose = "people" if self.by == "person" else "pictures"
            raise InputError(
                f"LocalAlignment: {len(wordless)} of {len(words.tokens)} {whose} have no text token, the first is "
                f"number {wordless[0]}; label them, or leave them out of the training"
            )
        if centre and len(words.words) < 2:
            raise InputError(
                "LocalAlignment: centre=true leaves nothing of a vocabulary of one word; set centre=false"
            )
        mean = words.words.mean(0) if centre else torch.zeros_like(words.words[0])
        self.centre: Tensor
        self.table: Tensor
        self.index: Tensor
        self.confidence: Tensor
        self.words: Tensor
        for name, values in {
            "centre": mean,
            "table": F.normalize(words.embeddings - mean, dim=1),
            "index": words.tokens,
            "confidence": words.confidence,
            "words": words.words,
        }.items():
            self.register_buffer(name, values, persistent=False)
        # What each word usually scores, and how much that varies: learnt, and so part of a checkpoint.
        self.seen: Tensor
        self.usual: Tensor
        self.square: Tensor
        if projection == "student":
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
            self.register_buffer("usual", torch.zeros(len(words.words)))
            self.register_buffer("square", torch.zeros(len(words.words)))
        width = words.embeddings.shape[1]
        self.head = (
            nn.Conv2d(dimensions.channels, width, 1)
            if projection == "student"
            else nn.Linear(width, dimensions.channels)
        )

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the batch of the solver's value, a scalar."""
        projected, transport = self._transport(features, batch)
        with torch.no_grad():
            plan = transport.plan
            rows = plan.sum(2)
            entropy = torch.xlogy(rows, rows).sum(1) - torch.xlogy(plan, plan).sum((1, 2))
            self.observed["plan_entropy"] = (entropy / rows.sum(1)).mean()
            joint = projected.mean(1)
            self.observed["between_person_variance"] = between_person_variance(joint, batch.person)
            if self.training and isinstance(self.head, nn.Conv2d):
                self._update_moments(F.normalize(joint, dim=1))
        return transport.value.mean()

    def _update_moments(self, joint: Tensor) -> None:
        """Take pictures (B, d), of length 1, into the moments of what words score: a mean of about 100 batches."""
        scores = joint @ F.normalize(self.words - self.centre, dim=1).to(joint).T
        self.seen += 1
        share = (1 / self.seen).clamp(min=MOMENTUM).to(self.usual)
        self.usual.lerp_(scores.mean(0).to(self.usual), share)
        self.square.lerp_(scores.square().mean(0).to(self.square), share)

    @torch.no_grad()
    def plan(self, features: Features, batch: Batch) -> Tensor:
        """Return how much of each position goes to each token, (B, h, w, L)."""
        plan = self._transport(features, batch)[1].plan
        batch_size, _, height, width = features.map.shape
        return plan.reshape(batch_size, height, width, -1)

    def heads(self) -> dict[str, Tensor]:
        """Return the way into the teacher's space, where the student's side is the one that is projected.

        `joint.usual` and `joint.spread` (W,) are mean and standard deviation of what each word scores on training
        pictures; they are left out before the first.
        """
        if not isinstance(self.head, nn.Conv2d):
            return {}
        assert self.head.bias is not None
        spread = (self.square - self.usual.square()).clamp(min=1e-8).sqrt()
        return ({"joint.usual": self.usual, "joint.spread": spread} if self.seen else {}) | {
            "joint.weight": self.head.weight.detach().flatten(1),
            "joint.bias": self.head.bias.detach(),
            "joint.centre": self.centre,
            "joint.words": self.words,
        }

    def _transport(self, features: Features, batch: Batch) -> tuple[Tensor, Transport]:
        """Return the positions (B, h * w, ...) as they are projected, and their transport."""
        maps = features.map
        # Where the forward pass is called outside `WeightedLosses` too, as for drawing a plan.
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps if maps.dtype == torch.float64 else maps.float()
            who = batch.person if self.by == "person" else batch.row
            index, weights = self.index[who], self.confidence[who].to(maps.dtype)  # (B, L)
            vectors = self.table[index.clamp(min=0)]  # (B, L, d)
            if isinstance(self.head, nn.Conv2d):
                projected = self.head(maps)
            else:
                projected, vectors = maps, F.normalize(self.head(vectors), dim=2)
            projected = projected.flatten(2).mT  # (B, h * w, d or C)
            length = maps.detach().flatten(2).norm(dim=1)  # (B, h * w)
            above = length - length.amin(1, keepdim=True)
            a = _masses(above if self.positions == "activation" else torch.ones_like(length))
            b = _masses(weights if self.tokens == "margin" else torch.ones_like(weights), index >= 0)
            return projected, self.solver(F.normalize(projected, dim=2), vectors, a, b)


def _masses(weights: Tensor, present: Tensor | None = None) -> Tensor:
    """Return masses (B, M) in proportion to `weights`, 0 where not `present`, that add up to 1.

    A row whose present weights are all 0 is uniform over them.
    """
    everyone = torch.ones_like(weights) if present is None else present.to(weights.dtype)
    weights = weights * everyone
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, everyone)
    return weights / weights.sum(1, keepdim=True)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    choose(f"LocalAlignment: {name}", value, choices)
    return value
