from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.loss.orthogonal import (
    STATISTICS,
    ClothesOrthogonal,
    centred,
    colour_statistics,
    leading,
    outfit_differences,
    share_in,
)
from clip3dreid.types import Batch

from .cases import batch, dimensions, features, gradient_is_right, random_embedding

OWNERS = [0, 0, 0, 1, 1, 1, 2, 2, 2]


def term(clothes: str = "outfits", rank: int = 2, momentum: float = 0.5, width: int = 4) -> ClothesOrthogonal:
    return ClothesOrthogonal(
        dimensions(width, 3, OWNERS), clothes=clothes, rank=rank, momentum=momentum
    ).double()


class World:
    """Pictures as vectors: what a person is, what an outfit adds in a plane of its own, and noise."""

    def __init__(self, people: int = 30, width: int = 12, seed: int = 0) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.basis = torch.linalg.qr(random_embedding(width, width, seed=seed)).Q.T
        self.plane, self.rest = self.basis[:2], self.basis[2:]
        self.shape = self.normal(people, width - 2) @ self.rest
        self.outfit = 1.5 * self.normal(3 * people, 2) @ self.plane

    def normal(self, *size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=self.draw)

    def pictures(self, people: int = 8, each: int = 4, noise: float = 0.2) -> tuple[Tensor, Batch]:
        person = torch.randperm(len(self.shape), generator=self.draw)[:people].repeat_interleave(each)
        clothes = 3 * person + torch.randint(3, (len(person),), generator=self.draw)
        points = self.shape[person] + self.outfit[clothes]
        points = points + noise * self.normal(*points.shape)
        return points, batch(person.tolist(), clothes.tolist())

    def term(self, **settings: object) -> ClothesOrthogonal:
        owners = [who for who in range(len(self.shape)) for _ in range(3)]
        at = dimensions(self.shape.shape[1], len(self.shape), owners)
        return ClothesOrthogonal(at, clothes="outfits", **settings).double()


def sines(plane: Tensor, other: Tensor) -> Tensor:
    """Sines of the principal angles between two planes of orthonormal rows."""
    return (1 - torch.linalg.svdvals(plane @ other.T).square()).clamp(min=0).sqrt()


def test_an_outfit_differs_from_its_person_by_hand():
    points = torch.tensor([[1.0, 0], [3, 0], [5, 6], [9, 9], [7, 7], [7, 8]])
    # Person 0: outfit 0 has mean (2, 0), outfit 1 (5, 6), the person (3, 2). Person 1 wears one outfit, person 2 an
    # unknown one.
    apart, changed = outfit_differences(
        points, torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 3, 3, -1])
    )
    assert apart.tolist() == [[-1, -2], [-1, -2], [2, 4], [0, 0], [0, 0], [0, 0]]
    assert changed.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize(("rows", "count"), [(3, 2), (5, 5), (9, 4), (2, 4)])
def test_leading_directions_are_those_of_the_singular_value_decomposition(rows, count):
    given = random_embedding(rows, 6)
    found = leading(given, count)
    _, values, vectors = torch.linalg.svd(given, full_matrices=False)
    most = min(rows, count)
    assert found.shape == (count, 6)
    torch.testing.assert_close(found[:most].norm(dim=1), values[:most])
    torch.testing.assert_close((F.normalize(found[:most]) @ vectors[:most].T).abs(), torch.eye(most).double())
    assert torch.count_nonzero(found[most:]) == 0


def test_directions_that_are_not_there_are_zeros():
    found = leading(torch.ones(5, 3), 3)
    assert torch.count_nonzero(found[1:]) == 0
    torch.testing.assert_close(found[0].norm(), torch.tensor(15.0).sqrt())


def test_rows_of_zeros_and_rows_that_fade_give_directions_all_the_same():
    # In single precision the squares of such rows underflow, and the decomposition comes back as NaN.
    for seed in range(20):
        rows = random_embedding(24, 128, seed=seed).float() * torch.logspace(0, -30, 24)[:, None]
        rows[8:16] = 0
        found = leading(rows, 16)
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found[0].norm(), torch.linalg.matrix_norm(rows, 2))


def test_features_without_clothes_cost_nothing_and_those_in_them_their_squared_cosine():
    # One direction along the first axis whose variance is all of clothes. Centred features of length 1 have cosines
    # .6, -.6, 0, 0 with it.
    unit = torch.tensor([[0.6, 0.8, 0], [-0.6, -0.8, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    loss, observed = share_in(unit, torch.tensor([[9.0, 0, 0], [0, 0, 0]], dtype=torch.float64))
    assert loss.item() == pytest.approx(2 * 0.36 / 4, rel=1e-12)
    assert observed["subspace"].item() == pytest.approx(0.18, rel=1e-12)
    assert share_in(unit[2:], torch.tensor([[9.0, 0, 0]], dtype=torch.float64))[0].item() == 0


def test_a_direction_weighs_what_clothes_explain_of_its_variance():
    unit = torch.tensor([[0.6, 0.8], [-0.6, -0.8]], dtype=torch.float64)
    # Of the variance .36 of the first axis clothes have .09: a quarter of the loss is left.
    loss, observed = share_in(unit, torch.tensor([[0.3, 0]], dtype=torch.float64))
    assert loss.item() == pytest.approx(0.09, rel=1e-12)
    assert observed["clothes"].item() == pytest.approx(0.09, rel=1e-12)
    assert observed["subspace"].item() == pytest.approx(0.36, rel=1e-12)


def test_the_gradient_takes_weights_and_directions_as_they_are():
    unit = random_embedding(6, 5)
    directions = torch.tensor([[0, 2.0, 0, 0, 0], [0, 0, 0, 0.5, 0]], dtype=torch.float64)
    point = unit.clone().requires_grad_()
    share_in(point, directions)[0].backward()
    variance = unit.square().mean(0)
    weights = torch.tensor([0, min(1, 4 / variance[1]), 0, min(1, 0.25 / variance[3]), 0])
    torch.testing.assert_close(point.grad, 2 * weights * unit / 6)


def test_its_gradient_is_right():
    still = term(momentum=1.0)
    with torch.no_grad():  # far more than all variance is clothes', so that weights are 1 and stay so
        still.directions.copy_(torch.tensor([[9.0, 0, 0, 0], [0, 0, 9, 0]]))
    assert gradient_is_right(still, random_embedding(6, 4), batch([0, 0, 1, 1, 2, 2], [0, 1, 3, 4, 6, 7]))


def test_length_and_place_of_the_features_do_not_matter():
    points, labels = random_embedding(6, 4), batch([0, 0, 1, 1, 2, 2], [0, 1, 3, 4, 6, 7])
    losses = [term()(features(moved), labels).item() for moved in (points, 1e-3 * points, points + 5)]
    assert losses[0] > 0.01
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-9)


def test_the_estimate_is_the_leading_part_of_a_running_scatter():
    one, scatter = term(rank=3, momentum=0.75), torch.zeros(4, 4, dtype=torch.float64)
    person, clothes = [0, 0, 1, 1, 2, 2], [0, 1, 3, 4, 6, 6]
    for seed in range(3):
        points = random_embedding(6, 4, seed=seed)
        one(features(points), batch(person, clothes))
        unit = centred(points)
        halves = [
            (unit[0] - unit[1]) / 2,
            (unit[2] - unit[3]) / 2,
        ]  # either picture of a pair, from their mean
        scatter = 0.75 * scatter + 0.25 * sum(torch.outer(half, half) for half in halves) / 2
        best = torch.linalg.eigh(scatter)
        cut = best.eigenvectors[:, 1:] * best.eigenvalues[1:]
        scatter = cut @ best.eigenvectors[:, 1:].T
        torch.testing.assert_close(one.directions.T @ one.directions, scatter, rtol=1e-6, atol=1e-9)


def test_batches_in_which_nobody_changes_leave_the_estimate_as_it_is():
    one = term()
    one(features(random_embedding(4, 4)), batch([0, 0, 1, 1], [0, 1, 3, 4]))
    before = one.directions.clone()
    one(features(random_embedding(4, 4, seed=1)), batch([0, 0, 1, 1], [0, 0, -1, 4]))
    torch.testing.assert_close(one.directions.T @ one.directions, before.T @ before)
    assert before.abs().sum() > 0.1


def test_one_picture_and_one_person_cost_nothing():
    for labels in (batch([0], [0]), batch([0, 0], [0, 0])):
        point = random_embedding(len(labels.person), 4).requires_grad_()
        loss = term()(features(point), labels)
        loss.backward()
        assert loss.item() == 0
        assert torch.count_nonzero(point.grad) == 0


def test_the_subspace_of_a_world_whose_clothes_lie_in_a_plane_is_that_plane():
    world = World()
    one = world.term(rank=2, momentum=0.9)
    for _ in range(40):
        points, labels = world.pictures()
        one(features(points), labels)
    assert sines(world.plane, F.normalize(one.directions)).max() < 0.1
    # People differ ten times as much as pictures, and are not in it.
    assert sines(world.plane, torch.linalg.svd(centred(world.shape))[2][:2]).min() > 0.9


def test_what_is_observed_are_shares():
    world = World()
    one = world.term(rank=4, momentum=0.9)
    for _ in range(20):
        points, labels = world.pictures()
        loss = one(features(points), labels)
    unit = centred(points)
    inside = (unit @ F.normalize(one.directions).T).square().sum(1).mean()
    assert one.observed["subspace"].item() == pytest.approx(inside.item(), rel=1e-9)
    assert 0 < one.observed["clothes"] <= one.observed["subspace"] < 1
    assert loss.item() == pytest.approx(one.observed["clothes"].item(), rel=1e-9)


def trained(world: World, weight: float, steps: int = 300) -> Tensor:
    """A linear student (D, D) of the world's pictures, after training with identity and this loss."""
    torch.manual_seed(0)
    width = world.shape.shape[1]
    student, head = nn.Linear(width, width).double(), nn.Linear(width, len(world.shape)).double()
    one = world.term(rank=4, momentum=0.9)
    optimiser = torch.optim.Adam([*student.parameters(), *head.parameters()], lr=0.02)
    for _ in range(steps):
        points, labels = world.pictures()
        seen = student(points)
        loss = F.cross_entropy(head(seen), labels.person) + weight * one(features(seen), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return student.weight.detach()


def test_training_takes_the_clothes_out_and_leaves_the_person_in():
    world = World()

    def clothes_to_shape(weight: float) -> tuple[float, float]:
        matrix = trained(world, weight)
        return (matrix @ world.plane.T).norm().item() / 2**0.5, (
            matrix @ world.rest.T
        ).norm().item() / 10**0.5

    (clothes, shape), (clothes_before, shape_before) = clothes_to_shape(3.0), clothes_to_shape(0.0)
    assert clothes / shape < 0.5 * clothes_before / shape_before
    assert shape > 0.5 * shape_before


def painted(colours: Tensor, size: int = 8) -> Tensor:
    """Pictures (B, 3, 2 size, size) of one colour each."""
    return colours.float()[:, :, None, None].expand(-1, 3, 2 * size, size)


def test_colour_statistics_are_those_of_upper_and_lower_body():
    image = torch.zeros(1, 3, 100, 40)
    image[:, 0, 15:50, 10:30] = 1.0
    image[:, 1, 50:70, 10:30] = 0.5  # half of the lower body
    image[:, 2, :15] = 1.0  # the head
    image[:, 2, :, 35:] = 1.0  # beside the person
    expected = [1, 0, 0, 0, 0, 0, 0, 0.25, 0, 0, 0.25, 0]
    torch.testing.assert_close(colour_statistics(image), torch.tensor([expected], dtype=torch.float32))
    assert colour_statistics(torch.zeros(2, 3, 1, 1)).shape == (2, STATISTICS)


def coloured(world: World, people: int = 8) -> tuple[Tensor, Batch]:
    """Pictures whose outfits are painted as they move the features, two channels for the plane."""
    points, labels = world.pictures(people)
    in_plane = points @ world.plane.T
    colours = torch.cat([in_plane, torch.zeros(len(points), 1)], dim=1)
    return points, labels._replace(images=painted(colours), clothes=torch.full((len(points),), -1))


def test_colours_find_the_plane_without_any_label_of_clothes():
    world = World()
    one = ClothesOrthogonal(dimensions(12, 30), clothes="colours", rank=2, momentum=0.9).double()
    for _ in range(40):
        points, labels = coloured(world)
        loss = one(features(points), labels)
    # All of the plane's variance within people is told by colours; between people it is the outfits' too.
    assert loss.item() == pytest.approx(one.observed["clothes"].item(), rel=1e-9)
    along = world.term(rank=2, momentum=1.0)
    with torch.no_grad():
        along.directions.copy_(9 * world.plane)
    whole = along(features(points), labels).item()
    assert 0.4 * whole < loss.item() <= whole + 1e-9


def test_colours_that_say_nothing_of_the_features_cost_next_to_nothing():
    world = World()
    one = ClothesOrthogonal(dimensions(12, 30), clothes="colours", rank=2, momentum=0.99).double()
    for _ in range(100):
        points, labels = coloured(world)
        order = torch.randperm(len(points), generator=world.draw)
        loss = one(features(points), labels._replace(images=labels.images[order]))
    assert loss.item() < 0.02


def test_pictures_of_one_colour_break_nothing():
    one = ClothesOrthogonal(dimensions(4, 3), clothes="colours", rank=2, momentum=0.5)
    point = random_embedding(4, 4).float().requires_grad_()
    loss = one(features(point), batch([0, 0, 1, 1])._replace(images=torch.full((4, 3, 8, 4), 0.25)))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(point.grad).all()


@pytest.mark.parametrize("clothes", ["outfits", "colours"])
def test_features_that_are_not_finite_are_told_by_the_loss_and_not_kept(clothes):
    one = term(clothes)
    points = random_embedding(4, 4)
    points[0, 0] = torch.nan
    labels = batch([0, 0, 1, 1], [0, 1, 3, 4])._replace(images=torch.rand(4, 3, 8, 4))
    assert not torch.isfinite(one(features(points), labels))
    assert all(torch.isfinite(buffer).all() for buffer in one.buffers())


@pytest.mark.parametrize("clothes", ["outfits", "colours"])
def test_a_term_that_was_saved_goes_on_as_if_it_had_not_been(clothes):
    one, other = term(clothes), term(clothes)
    labels = batch([0, 0, 1, 1, 2, 2], [0, 1, 3, 4, 6, 7])
    labels = labels._replace(images=torch.rand(6, 3, 8, 4, generator=torch.Generator().manual_seed(0)))
    for seed in range(2):
        one(features(random_embedding(6, 4, seed=seed)), labels)
    other.load_state_dict(one.state_dict())
    points = features(random_embedding(6, 4, seed=2))
    assert one(points, labels).item() == other(points, labels).item()
    assert all(torch.equal(*pair) for pair in zip(one.buffers(), other.buffers(), strict=True))


MAKE = partial(ClothesOrthogonal, clothes="outfits", rank=2, momentum=0.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(MAKE, dimensions(4, 3)), "needs clothes labels on every training picture.*clothes=colours"),
        (partial(MAKE, dimensions(4, 3, [0, 1, 2])), "nobody in the training data has two.*clothes=colours"),
        (partial(MAKE, dimensions(4, 3, OWNERS), clothes="words"), "clothes.*outfits.*colours"),
        (partial(MAKE, dimensions(4, 3, OWNERS), rank=4), "ClothesOrthogonal: rank.*from 1 to 3"),
        (partial(MAKE, dimensions(4, 3, OWNERS), rank=0), "ClothesOrthogonal: rank.*from 1 to 3"),
        (partial(MAKE, dimensions(4, 3, OWNERS), momentum=1.5), "ClothesOrthogonal: momentum.*from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_colours_need_no_labels_of_clothes():
    ClothesOrthogonal(dimensions(4, 3), clothes="colours", rank=2, momentum=0.5)
