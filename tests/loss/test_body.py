import math

import pytest
import torch
from torch.nn import functional as F

from clip3dreid.body.smpl import load_body
from clip3dreid.errors import InputError
from clip3dreid.loss.body import BodyIdentity, BodyShape, unit_stature, vertex_distance, vertices_of
from clip3dreid.types import Batch, BodyBatch, BodySpace, Dimensions, Features

from .cases import (
    batch,
    dimensions,
    features,
    gradient_is_right,
    guided,
    guided_batch,
    guided_bodies,
    random_embedding,
)


def space(template, directions, *, mean=None, deviation=None, bodies=1) -> BodySpace:
    coefficients = directions.shape[-1]
    return BodySpace(
        template=template,
        directions=directions,
        mean=torch.zeros(coefficients) if mean is None else torch.tensor(mean),
        deviation=torch.ones(coefficients) if deviation is None else torch.tensor(deviation),
        bodies=bodies,
    )


def shaped(shape: BodySpace, width: int = 2) -> Dimensions:
    return dimensions(width, 2)._replace(guides=(shape,))


def shown(betas, embedding=None, person=(0, 1)) -> tuple[Batch, Features]:
    """Pictures of bodies with these coefficients (S, K); nobody looks at an embedding unless it is given."""
    betas = torch.tensor(betas)
    embedding = torch.zeros(len(betas), 2) if embedding is None else embedding
    bodies = BodyBatch(torch.empty(0), betas, torch.arange(len(betas)))
    return batch(person)._replace(bodies=bodies), features(embedding)


def answering(
    at: Dimensions, *answer: float, vertex_weight=1.0, scale="metres", consistency=0.0
) -> BodyShape:
    """The term, its head giving one standardised answer to everything."""
    term = BodyShape(at, vertex_weight=vertex_weight, scale=scale, consistency=consistency)
    with torch.no_grad():
        term.head.weight.zero_()
        term.head.bias.copy_(torch.tensor(answer))
    return term


PEOPLE = features(torch.zeros(2, 2))
TRIANGLE = torch.tensor([[0.0, 0, 0], [0, 2, 0], [1, 1, 0]])
"""A body of stature 2."""
LARGER = TRIANGLE[..., None]
"""One coefficient that makes it larger as a whole."""
WIDER = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]])[..., None]
"""One coefficient that moves its third vertex."""


# Coefficients.


def test_a_head_that_always_answers_with_the_mean_body_costs_one():
    # Coefficients whose scales differ a thousandfold count alike.
    betas = random_embedding(50, 3).float() * torch.tensor([1000.0, 1.0, 0.5]) + torch.tensor(
        [3.0, -7.0, 0.0]
    )
    mean, deviation = betas.mean(0), betas.std(0, correction=0)
    shape = BodySpace(TRIANGLE, WIDER.repeat(1, 1, 3), mean, deviation, 50)
    term = answering(shaped(shape), 0.0, 0.0, 0.0, vertex_weight=0.0)
    assert term(PEOPLE, *shown(betas.tolist()))["beta"].item() == pytest.approx(1, rel=1e-5)


def test_error_of_the_coefficients_is_counted_in_deviations():
    shape = space(TRIANGLE, WIDER.repeat(1, 1, 2), mean=[1.0, -2.0], deviation=[2.0, 0.5])
    term = answering(shaped(shape), 0.5, 1.0)
    # Standardised truths: ((5 - 1) / 2, (-2 + 2) / 0.5) = (2, 0) and (-1, 2).
    loss = term(PEOPLE, *shown([[5.0, -2.0], [-1.0, -1.0]]))["beta"]
    by_hand = ((2 - 0.5) ** 2 + (0 - 1) ** 2 + (-1 - 0.5) ** 2 + (2 - 1) ** 2) / 4
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


# Vertices.


@pytest.mark.parametrize("scale", ["stature", "metres"])
def test_the_right_body_costs_nothing_and_its_gradient_is_zero(scale):
    term = answering(shaped(space(TRIANGLE, WIDER)), 0.5, scale=scale)
    embedding = random_embedding(2, 2).float().requires_grad_()
    vertex = term(PEOPLE, *shown([[0.5], [0.5]], embedding))["vertex"]
    vertex.backward()
    assert vertex.item() == 0
    assert torch.count_nonzero(embedding.grad) == 0
    assert torch.count_nonzero(term.head.bias.grad) == torch.count_nonzero(term.head.weight.grad) == 0


def test_vertices_that_coincide_spoil_no_other_vertex_s_gradient():
    true = TRIANGLE[None]
    found = true.clone()
    found[0, 2] += torch.tensor([0.3, 0.0, -0.4])
    found.requires_grad_()
    distance = vertex_distance(found, true)
    distance.sum().backward()
    assert distance.tolist() == pytest.approx([0.5 / 3])
    torch.testing.assert_close(found.grad[0, 2], torch.tensor([0.6, 0.0, -0.8]) / 3)
    assert torch.count_nonzero(found.grad[0, :2]) == 0


def test_a_body_that_is_right_but_too_large_costs_in_metres_alone():
    at = shaped(space(TRIANGLE, LARGER))
    # Found half as large again, true a fifth smaller: every vertex is 0.7 of its own length off.
    lengths = (0 + 2 + math.sqrt(2)) / 3
    metres = answering(at, 0.5, vertex_weight=10.0)(PEOPLE, *shown([[-0.2]]))["vertex"]
    assert metres.item() == pytest.approx(10 * 0.7 * lengths, rel=1e-6)
    stature = answering(at, 0.5, vertex_weight=10.0, scale="stature")(PEOPLE, *shown([[-0.2]]))["vertex"]
    assert stature.item() == pytest.approx(0, abs=1e-5)


def test_a_wider_body_costs_in_proportion_to_its_stature():
    # The third vertex is 1 metre off, half of the body's stature; the other two are right.
    at = shaped(space(TRIANGLE, WIDER))
    for scale, loss in (("metres", 1 / 3), ("stature", 0.5 / 3)):
        found = answering(at, 0.0, scale=scale)(PEOPLE, *shown([[1.0], [-1.0]]))["vertex"]
        assert found.item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("scale", ["stature", "metres"])
def test_millimetres_at_true_size_are_observed_beside_those_of_the_mean_body(scale):
    shape = space(TRIANGLE, WIDER, mean=[0.25], deviation=[0.5])
    # Found 0.25 + 0.5 = 0.75; true 1 and 2.
    for weight in (0.0, 5.0):
        term = answering(shaped(shape), 1.0, vertex_weight=weight, scale=scale)
        parts = term(PEOPLE, *shown([[1.0], [2.0]]))
        assert set(parts) == ({"beta", "vertex"} if weight else {"beta"})
        observed = {name: value.item() for name, value in term.observed.items()}
        assert observed == pytest.approx(
            {"vertex_mm": 1000 * (0.25 + 1.25) / 6, "mean_body_mm": 1000 * (0.75 + 1.75) / 6}, rel=1e-5
        )
        assert not any(value.requires_grad for value in term.observed.values())


def test_unit_stature_keeps_proportions():
    bodies = unit_stature(torch.stack([TRIANGLE, 3 * TRIANGLE + 5]))
    height = bodies[..., 1].amax(1) - bodies[..., 1].amin(1)
    assert height.tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(bodies[1] - bodies[1, :1], bodies[0])


def test_vertices_are_those_of_the_body_model_in_the_rest_pose():
    body = load_body("anny_light")
    betas = random_embedding(4, body.num_betas).float()
    found = vertices_of(betas, body.template, body.shape_directions)
    assert found.shape == (4, body.num_vertices, 3)
    torch.testing.assert_close(found, body.rest(betas).vertices, rtol=0, atol=1e-6)


# Consistency.


def test_consistency_is_the_variance_within_a_person_of_people_s_pictures():
    at = guided(4, 3)
    person = [0, 2, 0, 2, 1, 1]
    term = BodyShape(at, vertex_weight=0.0, scale="stature", consistency=0.7).double()
    embedding = random_embedding(6, 4)
    labels, bodies = guided_batch(at, person, dtype=torch.float64), guided_bodies(at, dtype=torch.float64)
    parts = term(features(embedding), labels, bodies)
    answers = [(term.head.weight @ row + term.head.bias).tolist() for row in embedding]
    variances = []
    for one in range(3):
        own = [answers[row] for row in range(6) if person[row] == one]
        for values in zip(*own, strict=True):
            mean = sum(values) / len(values)
            variances.append(sum((value - mean) ** 2 for value in values) / len(values))
    assert parts["consistency"].item() == pytest.approx(0.7 * sum(variances) / len(variances), rel=1e-9)
    plain = BodyShape(at, vertex_weight=0.0, scale="stature").double()
    assert set(plain(features(embedding), labels, bodies)) == {"beta"}


def test_consistency_alone_reaches_the_people_s_pictures():
    at = guided(4, 2)
    labels, bodies = guided_batch(at, [0, 0, 1, 1]), guided_bodies(at)
    people = features(random_embedding(4, 4).float().requires_grad_())
    own = bodies.embedding.requires_grad_()
    parts = BodyShape(at, vertex_weight=1.0, scale="stature", consistency=1.0)(people, labels, bodies)
    for name, part in parts.items():
        gradients = torch.autograd.grad(part, [people.embedding, own], retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == (
            [True, False] if name == "consistency" else [False, True]
        )


# What is shipped, kept and refused.


def test_shipped_head_goes_from_the_embedding_to_coefficients_in_the_body_file_s_units():
    at = guided(4, 2)
    term = BodyShape(at, vertex_weight=1.0, scale="stature")
    embedding = random_embedding(5, 4).float()
    heads = term.heads()
    assert {name: tuple(tensor.shape) for name, tensor in heads.items()} == {
        "shape.weight": (3, 4),
        "shape.bias": (3,),
        "shape.usual": (3,),
        "shape.spread": (3,),
    }
    found = embedding @ heads["shape.weight"].T + heads["shape.bias"]
    torch.testing.assert_close(found, term.mean + term.deviation * term.head(embedding))
    # By hand: the mean plus deviations.
    shape = at.guide(BodySpace)
    torch.testing.assert_close(found, shape.mean + shape.deviation * term.head(embedding))
    assert torch.equal(heads["shape.usual"], shape.mean)
    assert torch.equal(heads["shape.spread"], shape.deviation)


def test_the_body_s_arrays_are_no_part_of_a_checkpoint():
    term = BodyShape(guided(4, 2), vertex_weight=1.0, scale="stature")
    assert set(term.state_dict()) == {"head.weight", "head.bias"}
    assert {name for name, _ in term.named_buffers()} == {"template", "directions", "mean", "deviation"}
    assert term.needs == {BodySpace}


def in_bodies(points, labels):
    return features(points[:4]), labels, features(points[4:])


@pytest.mark.parametrize("part", ["beta", "vertex", "consistency"])
@pytest.mark.parametrize("scale", ["stature", "metres"])
def test_gradient_of_the_body_s_parts(scale, part):
    at = guided(4, 2)
    term = BodyShape(at, vertex_weight=2.0, scale=scale, consistency=0.5)
    labels = guided_batch(at, [0, 0, 1, 1], dtype=torch.float64)
    assert gradient_is_right(term, random_embedding(9, 4), labels, in_bodies, part)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "feet"}, "scale=feet is unknown; choose stature or metres"),
        ({"vertex_weight": -1.0}, "vertex_weight=-1.0 must be a number, 0 or more"),
        ({"consistency": float("nan")}, "consistency=nan must be a number, 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=f"^BodyShape: {message}$"):
        BodyShape(guided(4, 2), **{"vertex_weight": 1.0, "scale": "stature", **options})


def test_terms_of_bodies_without_any_are_a_defect_of_the_program():
    with pytest.raises(ValueError, match="BodySpace"):
        BodyShape(dimensions(2, 2), vertex_weight=1.0, scale="stature")
    with pytest.raises(ValueError, match="BodySpace"):
        BodyIdentity(dimensions(2, 2), smoothing=0.0)
    at = guided(4, 2)
    for term in (BodyShape(at, vertex_weight=1.0, scale="stature"), BodyIdentity(at, smoothing=0.0)):
        for labels, shown_bodies in ((batch([0, 1]), guided_bodies(at)), (guided_batch(at, [0, 1]), None)):
            with pytest.raises(ValueError, match=r"Batch\.bodies and their features"):
                term(features(torch.zeros(2, 4)), labels, shown_bodies)


# Bodies told apart like people.


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_identity_of_bodies_is_a_cross_entropy_over_them(smoothing):
    at = guided(4, 2, bodies=3)
    term = BodyIdentity(at, smoothing=smoothing)
    labels, bodies = guided_batch(at, [0, 1]), guided_bodies(at)
    with torch.no_grad():
        term.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    chances = F.softmax(term.head(bodies.embedding), dim=1).log().tolist()
    by_hand = 0.0
    for row, body in zip(chances, labels.bodies.body.tolist(), strict=True):
        shares = [smoothing / 3 + (1 - smoothing) * (one == body) for one in range(3)]
        by_hand -= sum(share * chance for share, chance in zip(shares, row, strict=True)) / len(chances)
    found = term(features(torch.zeros(2, 4)), labels, bodies)
    assert found.item() == pytest.approx(by_hand, rel=1e-5)


def test_identity_of_bodies_starts_as_that_of_people():
    at = guided(64, 2, bodies=40)
    term = BodyIdentity(at, smoothing=0.1)
    loss = term(features(torch.zeros(2, 64)), guided_batch(at, [0, 1]), guided_bodies(at))
    assert loss.item() == pytest.approx(math.log(40), abs=0.05)
    assert term.needs == {BodySpace}


def test_gradient_of_the_identity_of_bodies():
    at = guided(4, 2)
    labels = guided_batch(at, [0, 0, 1, 1], dtype=torch.float64)
    assert gradient_is_right(BodyIdentity(at, smoothing=0.1), random_embedding(9, 4), labels, in_bodies)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_smoothing_outside_0_to_1_is_refused(smoothing):
    with pytest.raises(InputError, match=r"^BodyIdentity: smoothing=.* must be a number from 0 to 1$"):
        BodyIdentity(guided(4, 2), smoothing=smoothing)
