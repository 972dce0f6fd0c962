"""Small batches, and a gradient check that knows every parameter of a term."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clip3dreid.loss.term import Term
from clip3dreid.types import Batch, Dimensions, Features


def batch(person: Sequence[int], clothes: Sequence[int] | None = None) -> Batch:
    """Labels alone; the losses look at nothing else."""
    unknown = torch.full((len(person),), -1)
    return Batch(
        images=torch.empty(0),
        person=torch.tensor(person),
        clothes=unknown if clothes is None else torch.tensor(clothes),
        camera=unknown,
        row=unknown,
    )


def features(embedding: Tensor) -> Features:
    """Features of which only the embedding means anything."""
    return Features(map=torch.empty(0), pooled=embedding, embedding=embedding)


def dimensions(width: int, people: int, person_of_clothes: Sequence[int] = ()) -> Dimensions:
    return Dimensions(
        channels=width,
        width=width,
        people=people,
        person_of_clothes=torch.tensor(person_of_clothes, dtype=torch.int64),
    )


def on_circle(*degrees: float) -> Tensor:
    """Unit vectors (len(degrees), 2); two of them have the cosine of the difference of their degrees."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def random_embedding(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient_is_right(term: Term, embedding: Tensor, labels: Batch) -> bool:
    """gradcheck of a term's scalar loss in the embedding and in each of its parameters, in double."""
    term = term.double()
    names = [name for name, _ in term.named_parameters()]

    def loss(points: Tensor, *parameters: Tensor) -> Tensor:
        filled = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(term, filled, (features(points), labels))

    inputs = [embedding.clone().requires_grad_()]
    inputs += [parameter.detach().clone().requires_grad_() for parameter in term.parameters()]
    return torch.autograd.gradcheck(loss, inputs)


def numeric_gradient(loss: Callable[[Tensor], Tensor], point: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of `loss` at `point`, in the shape of `point`."""
    gradient = torch.zeros_like(point)
    for index in range(point.numel()):
        shift = torch.zeros_like(point)
        shift.view(-1)[index] = step
        gradient.view(-1)[index] = (loss(point + shift) - loss(point - shift)) / (2 * step)
    return gradient
