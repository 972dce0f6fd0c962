"""Clothes-based adversarial loss: features from which outfits of the same person cannot be told apart.

Source: Gu et al., "Clothes-Changing Person Re-identification with RGB Modality Only", CVPR 2022 (CAL).
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose
from clip3dreid.loss.cosine import CosineClassifier, cosines
from clip3dreid.loss.gather import gather
from clip3dreid.loss.term import Term, fraction, positive
from clip3dreid.types import Batch, Dimensions, Features


def adversarial_loss(
    logits: Tensor, clothes: Tensor, own: Tensor, others: Tensor, *, epsilon: float
) -> Tensor:
    """Return the clothes-based adversarial loss.

    An outfit c of the pictured person has `log p(c) = s_c - log(exp s_c + sum over other people's
    outfits j of exp s_j)`: the person's further outfits are no rivals. The picture, wearing y, asks for
    `(1 - epsilon) [c = y] + epsilon / |own|` of each of them.

    Args:
        logits: (B, outfits) scaled cosines s.
        clothes: (B,) int64, the outfit y worn, or -1 where it is not known: such a picture adds 0.
        own: (B, outfits) bool, the outfits of the pictured person.
        others: (B, outfits) bool, the outfits of other people.
        epsilon: 0 (only the outfit worn) .. 1 (all outfits of the person alike).

    Returns:
        The mean over the batch, a scalar.

    Source: Gu et al., CVPR 2022; equal weights for the outfits not worn as in the authors' code.
    """
    rivals = logits.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1)
    log_probability = F.logsigmoid(logits - rivals)
    target = epsilon * own.to(logits.dtype) / own.sum(1, keepdim=True).clamp(min=1)
    target = target.scatter_add(1, clothes.clamp(min=0)[:, None], torch.full_like(target[:, :1], 1 - epsilon))
    per_picture = -(target * log_probability).sum(1)
    # Divided by the whole batch, known outfits or not: a picture weighs the same in any batch and process.
    return torch.where(clothes >= 0, per_picture, 0).mean()


class ClothesAdversarial(Term):
    """The clothes classifier and the adversarial loss that plays against it, over one cosine head.

    `classification` is cross-entropy over all training outfits on detached features: it teaches the head
    alone. `adversarial` reads the head's detached weights: it teaches the features alone. So both share one
    backward pass and one optimiser step. The authors' code updates the head first and computes the
    adversarial loss with the updated one; `benchmarks/cal_step_order.py` measures the difference.

    Observed, since the adversarial loss is worth what the head knows: `accuracy`, the share of pictures whose outfit
    the head names first, and `accuracy_of_person`, the same among the outfits of the pictured person alone.

    The term's weight scales both parts. Adam's steps hardly depend on the scale of a gradient, so that a
    smaller weight softens the adversarial loss without slowing the head.

    Source: Gu et al., CVPR 2022.
    """

    def __init__(self, dimensions: Dimensions, *, scale: float, epsilon: float) -> None:
        """Build the clothes head.

        Args:
            dimensions: width of the embedding, and whose outfit each clothes index is.
            scale: factor on the cosines, above 0.
            epsilon: share of the target spread over all outfits of the person, 0..1.

        Raises:
            InputError: if the data has no clothes labels, or a value is out of range.
        """
        super().__init__()
        self.scale = positive("ClothesAdversarial: scale", scale)
        self.epsilon = fraction("ClothesAdversarial: epsilon", epsilon)
        self.person_of_clothes: Tensor
        self.register_buffer(
            "person_of_clothes", _labelled("ClothesAdversarial", dimensions), persistent=False
        )
        self.head = CosineClassifier(dimensions.width, len(self.person_of_clothes))

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> dict[str, Tensor]:
        """Return the parts `classification` and `adversarial`, means over the batch."""
        embedding = features.embedding
        own = batch.person[:, None] == self.person_of_clothes
        learned = self.scale * self.head(embedding.detach())  # (B, outfits)
        classification = F.cross_entropy(learned, batch.clothes, ignore_index=-1, reduction="sum")
        self.observed["accuracy"] = _accuracy(learned, batch.clothes)
        self.observed["accuracy_of_person"] = _accuracy(learned.masked_fill(~own, -torch.inf), batch.clothes)
        faced = self.scale * cosines(embedding, self.head.weight.detach())
        return {
            "classification": classification / len(batch.clothes),
            "adversarial": adversarial_loss(faced, batch.clothes, own, ~own, epsilon=self.epsilon),
        }

    def unscheduled_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the clothes head's weights: the original's scheduler moves the main optimiser alone."""
        yield from self.head.parameters()


class ClothesMemory(Term):
    """The adversarial loss against a memory of outfit features in place of a learned head.

    The memory is updated first, with the pictures of the global batch, then compared. Outfits not yet met count
    neither as own nor as rivals. What is kept is one of two:

    - `mean`: an outfit's mean feature in the batch takes the place of what was remembered of it, but for the share
      that `momentum` keeps from the second meeting on.
    - `last`: pictures take that place one after the other, in the order of the global batch; the momentum counts
      once every outfit has been met, and before that each picture replaces what was there. At momentum 0 an
      outfit's last picture is all that is remembered of it.

    Source: the memory-bank variant in the code of Gu et al., CVPR 2022; not in the paper. The code sets out to take
    means too, but files each picture under a key of its own, so that what it computes is `last`; `mean` is ours.
    """

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        scale: float,
        epsilon: float,
        momentum: float,
        keep: Literal["mean", "last"] = "mean",
    ) -> None:
        """Make an empty memory.

        Args:
            dimensions: width of the embedding, and whose outfit each clothes index is.
            scale: factor on the cosines, above 0.
            epsilon: share of the target spread over all met outfits of the person, 0..1.
            momentum: share of the old memory that an update keeps, 0..1; 0 remembers the last batch only.
            keep: `mean` or `last`, what of a batch is remembered.

        Raises:
            InputError: if the data has no clothes labels, or a value is out of range.
        """
        super().__init__()
        choose("ClothesMemory: keep", keep, ("mean", "last"))
        self.keep = keep
        self.scale = positive("ClothesMemory: scale", scale)
        self.epsilon = fraction("ClothesMemory: epsilon", epsilon)
        self.momentum = fraction("ClothesMemory: momentum", momentum)
        self.person_of_clothes: Tensor
        self.memory: Tensor
        self.met: Tensor
        self.register_buffer("person_of_clothes", _labelled("ClothesMemory", dimensions), persistent=False)
        outfits = len(self.person_of_clothes)
        self.register_buffer("memory", torch.zeros(outfits, dimensions.width))
        self.register_buffer("met", torch.zeros(outfits, dtype=torch.bool))

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the batch, a scalar; update the memory."""
        self._remember(gather(features.embedding.detach()), gather(batch.clothes))
        own = batch.person[:, None] == self.person_of_clothes
        logits = self.scale * cosines(features.embedding, self.memory)
        return adversarial_loss(logits, batch.clothes, own & self.met, ~own & self.met, epsilon=self.epsilon)

    def _remember(self, embedding: Tensor, clothes: Tensor) -> None:
        # A row for each outfit, so that nobody waits for the device to say which pictures' are known.
        worn = clothes == torch.arange(len(self.memory), device=clothes.device)[:, None]  # (outfits, B)
        shares, here = worn.to(embedding.dtype), worn.any(1)
        if self.keep == "mean":
            kept = (self.momentum * self.met).to(embedding.dtype)[:, None]
            new = (1 - kept) * (shares @ embedding / shares.sum(1, keepdim=True).clamp(min=1))
        else:
            momentum = self.momentum * self.met.all().to(embedding.dtype)
            # A picture's share shrinks with each later one of its outfit; 0 to the power of 0 is 1.
            later = shares.flip(1).cumsum(1).flip(1) - shares
            kept = momentum ** shares.sum(1, keepdim=True)
            new = ((1 - momentum) * momentum**later * shares) @ embedding
        updated = (kept * self.memory + new).to(self.memory.dtype)
        self.memory.copy_(torch.where(here[:, None], updated, self.memory))
        self.met |= here


def _accuracy(logits: Tensor, clothes: Tensor) -> Tensor:
    """Return the share of known outfits whose logit, of (B, outfits), is the highest: 0..1, 0 if none is known."""
    return (logits.detach().argmax(1) == clothes).sum() / (clothes >= 0).sum().clamp(min=1)


def _labelled(name: str, dimensions: Dimensions) -> Tensor:
    """Return whose outfit each clothes index is (outfits,), or say that there is none."""
    if len(dimensions.person_of_clothes) == 0:
        raise InputError(
            f"{name} needs clothes labels on every training picture, and the data lacks some or all; "
            "leave it out (method=ce or clip3dreid), or label them"
        )
    return dimensions.person_of_clothes
