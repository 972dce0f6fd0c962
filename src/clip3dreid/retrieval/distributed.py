"""Gather evaluations of several processes. Apart from `metrics`, because torchmetrics takes seconds to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from clip3dreid.retrieval.evaluation import Evaluation, EvaluationSummary
from clip3dreid.retrieval.metrics import SCORES, PerQuery, add_up, means
from clip3dreid.retrieval.ranking import GalleryShare


class RetrievalScores(Metric):
    """`metrics.summarise` across processes: each ranks a share of the queries, and only eight sums travel.

    The state is a float64 vector. Move the metric to the device of the process group's backend (`.to("cuda")`
    for NCCL) before `compute`; it never needs to be where the features are.

    Example:
        >>> from clip3dreid.retrieval.distributed import RetrievalScores
        >>> from clip3dreid.retrieval.metrics import PerQuery
        >>> one, two = torch.tensor([True, True]), torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> hits = torch.tensor([[1.0, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.float64)
        >>> scores = RetrievalScores()
        >>> scores.update(PerQuery(one, one.long(), 0 * one.long(), two, hits, 1 / two, 1 / two))
        >>> scores.compute()["map"]
        0.75
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """Take the keyword arguments of `torchmetrics.Metric`."""
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(2 + len(SCORES), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, per_query: PerQuery) -> None:
        """Add the queries of this process; an empty share is fine."""
        self.sums += add_up(per_query).to(self.sums.device)

    def compute(self) -> Mapping[str, Any]:
        """Return the means, as `summarise` gives them, over the queries of all processes.

        Raises:
            InputError: if no query of any process is valid.
        """
        return means(self.sums)


def gallery_share(columns: Tensor, device: torch.device) -> GalleryShare:
    """Return this process's part of a gallery that the process group holds together.

    Args:
        columns: (g,) int64 gallery columns that this process holds, ascending.
        device: where the process group's backend works.
    """

    def reduced(operation: Any) -> Callable[[Tensor], Tensor]:
        def reduce(here: Tensor) -> Tensor:
            sent = here.to(device, copy=True)
            dist.all_reduce(sent, operation)
            return sent.to(here.device)

        return reduce

    return GalleryShare(columns.cpu(), reduced(dist.ReduceOp.MAX), reduced(dist.ReduceOp.SUM))


def gather_evaluation(evaluation: Evaluation, device: torch.device) -> EvaluationSummary:
    """Put the processes' shares of an evaluation together; all processes must call it.

    Args:
        evaluation: this process's share.
        device: where the process group's backend works (CUDA for NCCL).

    Returns:
        The same in all processes; what the evaluation says by itself where there is no process group.

    Raises:
        InputError: if no query of any process is valid.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return evaluation.summary()
    scores = RetrievalScores().to(device)
    scores.update(evaluation.per_query)
    shares: list[Tensor] = [torch.empty(0)] * dist.get_world_size()
    dist.all_gather_object(shares, evaluation.numbers())
    numbers = torch.cat(shares)

    def gather(here: Tensor) -> Tensor:
        here = here.to(device)
        everywhere = [torch.empty_like(here) for _ in shares]
        dist.all_gather(everywhere, here)
        return torch.stack(everywhere).cpu()

    tpr = None if evaluation.open_set is None else evaluation.open_set.tpr_at_fpr(gather)
    return EvaluationSummary(scores.compute(), numbers[numbers[:, 0].argsort()], tpr)
