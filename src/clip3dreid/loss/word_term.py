"""Share what terms of local guidance have: words, the way from a map into their space, what is shipped of both."""

from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose
from clip3dreid.loss.term import Need, Term, between_person_variance
from clip3dreid.types import Batch, Dimensions, TextTargets

MOMENTUM = 0.01
"""Share of the newest batch in the moments of what words score, once there have been a hundred."""

Centre = Literal["vocabulary", "group", "none"]


class CentredWords(NamedTuple):
    """Tokens and words as they are seen from a centre."""

    table: Tensor
    """(E, d) of length 1: the directions of tokens."""
    words: Tensor
    """(W, d): where words lie, so that `words - centre` points to each word's direction."""
    centre: Tensor
    """(d,)."""


class WordTerm(Term):
    """A term that compares positions of a map with the words of its person.

    Owns the words and, after `_project_maps`, the 1x1 convolution into the teacher's space. What is shipped of it
    lets pictures be described and searched for by words. The words are no part of a checkpoint.

    Logged beside the loss: `between_person_variance` of the projected map's mean over positions (0: all people look
    alike to it).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({TextTargets})
    teaches: ClassVar[frozenset[str]] = frozenset({"joint"})
    head: nn.Module

    def __init__(self, dimensions: Dimensions, *, centre: Centre | bool) -> None:
        """Keep the words.

        Args:
            dimensions: channels of the map, and the words.
            centre: what is taken from the tokens. A text encoder's vectors share a narrow cone, in which all tokens
                are about as far from any position. `vocabulary`: the mean of all words; `group`: the mean of the
                word's own group, which leaves what tells it from its opposites (in a group of two, half their
                difference); `none`. Older configs say true for `vocabulary` and false for `none`.

        Raises:
            InputError: if `centre` is unknown, nothing is left of a word when it is centred, the groups are wanted
                and not known, or someone has no token at all.
        """
        super().__init__()
        told = dimensions.guide(TextTargets)
        self.by = told.by
        wordless = (told.tokens < 0).all(1).nonzero().flatten().tolist()
        if wordless:
            whose = "people" if self.by == "person" else "pictures"
            raise InputError(
                f"{self._name}: {len(wordless)} of {len(told.tokens)} {whose} have no text token, the first is "
                f"number {wordless[0]}; label them, or leave them out of the training"
            )
        centred = self._centred(told, centre)
        self.centre: Tensor
        self.table: Tensor
        self.index: Tensor
        self.confidence: Tensor
        self.words: Tensor
        for name, values in {
            **centred._asdict(),
            "index": told.tokens,
            "confidence": told.confidence,
        }.items():
            self.register_buffer(name, values, persistent=False)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _centred(self, told: TextTargets, centre: Centre | bool) -> CentredWords:
        """Return tokens and words as `centre` wants them.

        Raises:
            InputError: as the constructor, for its `centre`.
        """
        if isinstance(centre, bool):
            centre = "vocabulary" if centre else "none"
        choose(f"{self._name}: centre", centre, ("vocabulary", "group", "none"))
        zero = torch.zeros_like(told.words[0])
        if centre == "none":
            return CentredWords(F.normalize(told.embeddings, dim=1), told.words, zero)
        if len(told.words) < 2:
            raise InputError(
                f"{self._name}: centre={centre} leaves nothing of a vocabulary of one word; set centre=none"
            )
        mean = told.words.mean(0)
        if centre == "vocabulary":
            return CentredWords(F.normalize(told.embeddings - mean, dim=1), told.words, mean)
        directions = F.normalize(told.words - group_means(told, self._name), dim=1)
        # Words are shipped where a look from the vocabulary's mean finds their directions: any other text is looked
        # at from there too.
        return CentredWords(directions, directions + mean, mean)

    def _project_maps(self, dimensions: Dimensions) -> None:
        """Build the convolution from the map to the teacher's space, and what words usually score in it.

        The latter is learnt, and so part of a checkpoint.
        """
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("usual", torch.zeros(len(self.words)))
        self.register_buffer("square", torch.zeros(len(self.words)))
        self.head = nn.Conv2d(dimensions.channels, self.table.shape[1], 1)

    def _units(self, batch: Batch) -> Tensor:
        """Return the row of `index` that holds each picture's tokens, (B,)."""
        return batch.person if self.by == "person" else batch.row

    def _tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the tokens of a batch's pictures and their confidence, (B, L)."""
        who = self._units(batch)
        return self.index[who], self.confidence[who]

    def _projected(self, maps: Tensor) -> Tensor:
        """Return the positions of maps (B, C, h, w) in the teacher's space, (B, h * w, d), not of length 1."""
        if not isinstance(self.head, nn.Conv2d):
            whole: Tensor = self.head(maps)
            return whole.flatten(2).mT
        # The 1x1 convolution, as the product that it is: a tenth sooner on a CPU, and no choice of kernels by layout.
        return F.linear(maps.flatten(2).mT, self.head.weight.flatten(1), self.head.bias)

    @torch.no_grad()
    def _observe(self, projected: Tensor, batch: Batch) -> None:
        """Keep what is logged and learnt of positions (B, N, d) beside the loss."""
        joint = projected.mean(1)
        self.observed["between_person_variance"] = between_person_variance(joint, batch.person)
        if self.training and isinstance(self.head, nn.Conv2d):
            self._update_moments(F.normalize(joint, dim=1))

    def _update_moments(self, joint: Tensor) -> None:
        """Take pictures (B, d), of length 1, into the moments of what words score: a mean of about 100 batches."""
        scores = joint @ F.normalize(self.words - self.centre, dim=1).to(joint).T
        self.seen += 1
        share = (1 / self.seen).clamp(min=MOMENTUM).to(self.usual)
        self.usual.lerp_(scores.mean(0).to(self.usual), share)
        self.square.lerp_(scores.square().mean(0).to(self.square), share)

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

    # Registered by `_project_maps`.
    seen: Tensor
    usual: Tensor
    square: Tensor


def group_means(told: TextTargets, name: str) -> Tensor:
    """Return the mean of each word's own group, (W, d).

    Raises:
        InputError: if tokens are no words of the vocabulary, their groups are not known, or a group has one word;
            `name` says who asks.
    """
    if told.embeddings.shape != told.words.shape or not torch.equal(told.embeddings, told.words):
        raise InputError(
            f"{name} looks at words within their group, and tokens are those of sentences; set "
            "labels.tokens=descriptor"
        )
    sizes = torch.tensor(told.group_sizes, dtype=torch.int64)
    if int(sizes.sum()) != len(told.words):
        raise InputError(
            f"{name} looks at words within their group, and the groups of {len(told.words)} words are not known; "
            "give TextTargets.group_sizes"
        )
    if alone := (sizes < 2).nonzero().flatten().tolist():
        raise InputError(
            f"{name} looks at words within their group, and group number {alone[0]} has one word; give it a second "
            "or leave it out of the vocabulary"
        )
    group = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    sums = told.words.new_zeros(len(sizes), told.words.shape[1]).index_add_(0, group, told.words)
    return (sums / sizes[:, None].to(sums))[group]


def precise(maps: Tensor) -> Tensor:
    """Return maps in float64 if they are, and in float32 otherwise."""
    return maps if maps.dtype == torch.float64 else maps.float()


def position_masses(maps: Tensor, kind: str) -> Tensor:
    """Return the mass of each position of maps (B, C, h, w), (B, h * w), rows adding up to 1, without gradient.

    Args:
        maps: before they are projected.
        kind: `uniform`, or `activation`: in proportion to the length of a position's feature, less the shortest of
            the map; uniform where all are as long.
    """
    length = maps.detach().flatten(2).norm(dim=1)
    above = length - length.amin(1, keepdim=True)
    return masses(above if kind == "activation" else torch.ones_like(length))


def token_masses(confidence: Tensor, index: Tensor, kind: str) -> Tensor:
    """Return the mass of each token, (…, L), rows adding up to 1.

    Args:
        confidence: (…, L).
        index: (…, L), -1 where there is no token.
        kind: `uniform`, or `margin`: in proportion to confidence; uniform where none is sure.
    """
    return masses(confidence if kind == "margin" else torch.ones_like(confidence), index >= 0)


def masses(weights: Tensor, present: Tensor | None = None) -> Tensor:
    """Return masses (B, M) in proportion to `weights`, 0 where not `present`, that add up to 1.

    A row whose present weights are all 0 is uniform over them.
    """
    everyone = torch.ones_like(weights) if present is None else present.to(weights.dtype)
    weights = weights * everyone
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, everyone)
    return weights / weights.sum(1, keepdim=True)


def plan_entropy(plan: Tensor) -> Tensor:
    """Return the mean entropy in nats of the token that a position goes to, of plans (B, N, L), a scalar."""
    rows = plan.sum(2)
    entropy = torch.xlogy(rows, rows).sum(1) - torch.xlogy(plan, plan).sum((1, 2))
    return (entropy / rows.sum(1)).mean()
