"""Small batches, and a gradient check that knows every parameter of a term."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.loss.term import Term
from clip3dreid.types import (
    Batch,
    BodyBatch,
    BodySpace,
    Dimensions,
    Features,
    ShapeTargets,
    TeacherSpace,
    TextTargets,
)


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


def guided(
    width: int,
    people: int,
    person_of_clothes: Sequence[int] = (),
    *,
    teacher: int = 6,
    words: int = 5,
    coefficients: int = 3,
    vertices: int = 7,
    bodies: int = 4,
) -> Dimensions:
    """Dimensions with all guides: random words and shapes, two tokens a person, the last person's second missing."""
    vocabulary = F.normalize(random_embedding(words, teacher, seed=11), dim=1).float()
    index = torch.arange(2 * people).view(people, 2) % words
    index[-1, 1] = -1
    targets = TextTargets(
        embeddings=vocabulary,
        tokens=index,
        confidence=torch.arange(2 * people).view(people, 2) % 3 + 0.5,
        by="person",
        words=vocabulary,
        group_sizes=(2, words - 2),
    )
    shape = BodySpace(
        template=random_embedding(vertices, 3, seed=13).float(),
        directions=0.1 * random_embedding(3 * vertices, coefficients, seed=14).view(vertices, 3, -1).float(),
        mean=random_embedding(1, coefficients, seed=15)[0].float(),
        deviation=1 + torch.arange(coefficients) / 2,
        bodies=bodies,
    )
    space = TeacherSpace(teacher, 0.3 * random_embedding(1, teacher, seed=12)[0].float())
    said = ShapeTargets(
        answers=random_embedding(people, coefficients - 1, seed=16).float(),
        certainty=torch.ones(people, coefficients - 1),
        by="person",
        coefficients=tuple(range(1, coefficients)),
        usual=torch.zeros(coefficients),
        spread=torch.tensor([0.0, *[2.0] * (coefficients - 1)]),
    )
    return dimensions(width, people, person_of_clothes)._replace(guides=(targets, space, shape, said))


def seen(embedding: Tensor, channels: int, seed: int = 0) -> Features:
    """Features with a map of 2 x 3 positions, and `pooled` its mean, cut or repeated to the embedding's width."""
    maps = random_embedding(len(embedding), 6 * channels, seed=seed + 1).to(embedding.dtype)
    maps = maps.view(len(embedding), channels, 2, 3)
    pooled = maps.mean((2, 3))[:, torch.arange(embedding.shape[1]) % channels]
    return Features(map=maps, pooled=pooled, embedding=embedding)


def guided_batch(
    at: Dimensions,
    person: Sequence[int],
    clothes: Sequence[int] | None = None,
    *,
    pictures_of_bodies: int = 5,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Labels with the teacher's embeddings and pictures of bodies."""
    shape = at.guide(BodySpace)
    body = torch.arange(pictures_of_bodies) % shape.bodies
    betas = shape.mean + shape.deviation * random_embedding(shape.bodies, len(shape.mean), seed=21).float()
    bodies = BodyBatch(images=torch.empty(0), betas=betas[body], body=body)
    width = at.guide(TeacherSpace).width
    teacher = F.normalize(random_embedding(len(person), width, seed=24), dim=1).to(dtype)
    return batch(person, clothes)._replace(targets={"teacher": teacher}, bodies=bodies)


def guided_bodies(
    at: Dimensions, *, pictures_of_bodies: int = 5, dtype: torch.dtype = torch.float32
) -> Features:
    """Random features of the bodies of `guided_batch`."""
    return seen(random_embedding(pictures_of_bodies, at.width, seed=22).to(dtype), at.channels, seed=23)


def on_circle(*degrees: float) -> Tensor:
    """Unit vectors (len(degrees), 2); two of them have the cosine of the difference of their degrees."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def random_embedding(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient_is_right(
    term: Term,
    embedding: Tensor,
    labels: Batch,
    place: Callable[[Tensor, Batch], tuple[Features | Batch, ...]] = lambda points, labels: (
        features(points),
        labels,
    ),
    part: str | None = None,
) -> bool:
    """gradcheck of a term's scalar loss in the embedding and in each of its parameters, in double.

    `place` says where the embedding goes, if not into the people's features; `part` which part of several is checked.
    """
    term = term.double()
    names = [name for name, _ in term.named_parameters()]

    def loss(points: Tensor, *parameters: Tensor) -> Tensor:
        filled = dict(zip(names, parameters, strict=True))
        value = torch.func.functional_call(term, filled, place(points, labels))
        return value if part is None else value[part]

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
