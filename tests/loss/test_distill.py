import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.loss.distill import GlobalAlignment, LogitDistillation
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.loss.margin_heads import ArcFace
from clip3dreid.loss.term import between_person_variance
from clip3dreid.loss.weighted import WeightedLosses
from clip3dreid.types import Batch, Dimensions, TeacherSpace

from .cases import batch, dimensions, features, gradient_is_right, on_circle, random_embedding


def taught(width: int, people: int = 2, mean=None) -> Dimensions:
    """People and a teacher's space as wide as the embedding."""
    mean = torch.zeros(width) if mean is None else torch.tensor(mean)
    return dimensions(width, people)._replace(guides=(TeacherSpace(width, mean),))


def labelled(person, teacher) -> Batch:
    return batch(person)._replace(targets={"teacher": teacher})


# The squared distance to the teacher's embedding.


def aligned(at: Dimensions, *, source="embedding", centre=False) -> GlobalAlignment:
    """The term in double, its head the identity."""
    term = GlobalAlignment(at, source=source, centre=centre).double()
    with torch.no_grad():
        term.head.weight.copy_(torch.eye(*term.head.weight.shape))
        term.head.bias.zero_()
    return term


@pytest.mark.parametrize(("degrees", "loss"), [(30, 0), (210, 4), (120, 2), (-60, 2), (90, 1)])
def test_loss_is_0_for_the_teacher_s_direction_and_4_for_the_opposite(degrees, loss):
    found = aligned(taught(2))(features(on_circle(degrees)), labelled([0], on_circle(30)))
    assert found.item() == pytest.approx(loss, abs=1e-12)


def test_loss_is_two_less_two_cosines_averaged_over_the_batch():
    student, teacher = random_embedding(5, 7, seed=1), random_embedding(5, 7, seed=2)
    term = GlobalAlignment(taught(7), source="embedding", centre=False).double()
    loss = term(features(student), labelled([0, 0, 1, 1, 1], teacher))
    expected = 0.0
    for own, other in zip(student, teacher, strict=True):
        projected = (term.head.weight @ own + term.head.bias).detach()
        cosine = (projected @ other) / math.sqrt((projected @ projected) * (other @ other))
        expected += (2 - 2 * cosine.item()) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_width_of_the_teacher_does_not_scale_the_loss():
    # The same two directions, at right angles, in spaces of 2 and of 200 dimensions.
    for width in (2, 200):
        teacher, student = F.one_hot(torch.tensor([0, 1]), width).double()
        loss = aligned(taught(width))(features(student[None]), labelled([0], teacher[None]))
        assert loss.item() == pytest.approx(2, rel=1e-12)


def test_centring_takes_the_training_pictures_mean_from_the_teacher_alone():
    # (0, 1) less (1, 0) points to 135 degrees; the student's 45 degrees are not centred.
    at = taught(2, mean=[1.0, 0.0])
    student, labels = features(on_circle(45)), labelled([0], on_circle(90))
    assert aligned(at, centre=True)(student, labels).item() == pytest.approx(2, rel=1e-6)
    assert aligned(at, centre=False)(student, labels).item() == pytest.approx(2 - math.sqrt(2), rel=1e-12)


def test_lengths_do_not_matter():
    student, teacher = random_embedding(3, 4, seed=1), random_embedding(3, 4, seed=2)
    scale = torch.tensor([[0.01], [5.0], [300.0]]).double()
    term, person = aligned(taught(4)), [0, 1, 1]
    plain = term(features(student), labelled(person, teacher)).item()
    assert term(features(scale * student), labelled(person, teacher)).item() == pytest.approx(
        plain, rel=1e-12
    )
    assert term(features(student), labelled(person, scale * teacher)).item() == pytest.approx(
        plain, rel=1e-12
    )


def test_pooled_feature_may_be_projected_in_the_embedding_s_place():
    pair = features(on_circle(0))._replace(pooled=on_circle(180))
    labels = labelled([0], on_circle(0))
    assert aligned(taught(2), source="embedding")(pair, labels).item() == pytest.approx(0, abs=1e-12)
    assert aligned(taught(2), source="pooled")(pair, labels).item() == pytest.approx(4, rel=1e-12)


@pytest.mark.parametrize("centre", [True, False])
def test_gradient_of_the_alignment(centre):
    term = GlobalAlignment(taught(4, mean=[0.1, 0.2, 0.0, -0.3]), source="embedding", centre=centre)
    teacher = F.normalize(random_embedding(5, 4, seed=2), dim=1)
    assert gradient_is_right(term, random_embedding(5, 4), labelled([0, 0, 1, 1, 1], teacher))


def test_gradient_reaches_student_and_head_and_not_the_teacher():
    student, teacher = (
        random_embedding(3, 4).requires_grad_(),
        random_embedding(3, 4, seed=2).requires_grad_(),
    )
    term = GlobalAlignment(taught(4), source="embedding", centre=True).double()
    term(features(student), labelled([0, 1, 1], teacher)).backward()
    assert (student.grad.abs().sum(1) > 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in term.parameters())
    assert teacher.grad is None


def test_alignment_keeps_its_head_alone_in_a_checkpoint():
    term = GlobalAlignment(taught(4), source="embedding", centre=True)
    assert set(term.state_dict()) == {"head.weight", "head.bias"}
    assert term.needs == {TeacherSpace}


def test_alignment_observes_how_far_apart_people_lie_after_the_projection():
    term = aligned(taught(2))
    with torch.no_grad():
        term.head.weight[1] = 0  # onto the first axis
    term(features(on_circle(30, -30, 150)), labelled([0, 1, 1], on_circle(0, 0, 0)))
    # Directions +1, +1 and -1: one person's mean is 1, the other's 0 and counts twice.
    assert term.observed["between_person_variance"].item() == pytest.approx(2 / 9, rel=1e-12)


def test_an_unknown_source_is_refused():
    with pytest.raises(
        InputError, match=r"^GlobalAlignment: source=map is unknown; choose embedding or pooled$"
    ):
        GlobalAlignment(taught(2), source="map", centre=False)


def test_terms_of_the_teacher_without_one_are_a_defect_of_the_program():
    with pytest.raises(ValueError, match="TeacherSpace"):
        GlobalAlignment(dimensions(2, 2), source="embedding", centre=False)
    with pytest.raises(ValueError, match=r"Batch\.targets"):
        aligned(taught(2))(features(on_circle(0)), batch([0]))


# Variance between people.


def test_variance_between_people_is_that_of_their_mean_directions():
    person = [2, 0, 2, 1, 0, 1]
    vectors = random_embedding(6, 5)
    unit = [vector / math.sqrt(sum(x * x for x in vector)) for vector in vectors]
    means = []
    for one in person:
        own = [unit[row] for row in range(6) if person[row] == one]
        means.append(sum(own) / len(own))
    middle = sum(means) / 6
    by_loop = sum(((mean - middle) ** 2).sum() for mean in means) / 6
    found = between_person_variance(vectors, torch.tensor(person))
    assert found.item() == pytest.approx(by_loop.item(), rel=1e-12)


def test_variance_between_people_is_0_where_all_look_alike_and_1_where_they_are_opposite():
    person = torch.tensor([0, 0, 1, 1])
    lengths = torch.tensor([[1.0], [2.0], [7.0], [0.5]]).double()
    variance = [
        between_person_variance(lengths * on_circle(*degrees), person).item()
        for degrees in [(40, 40, 40, 40), (0, 0, 180, 180), (0, 180, 0, 180)]
    ]
    # The last: people differ within themselves alone.
    assert variance == pytest.approx([0, 1, 0], abs=1e-12)


def test_variance_between_people_has_no_gradient():
    points = random_embedding(4, 3).requires_grad_()
    assert not between_person_variance(points, torch.tensor([0, 0, 1, 1])).requires_grad


# Logits of a head on the teacher.

PERSON = [0, 0, 1, 1, 2, 2]


RELEASE = {"squared": False, "distance": "unit_euclidean", "detach": False}
"""What the partial release of Liu et al. does and this term does not by itself."""


def distilled(
    *, temperature=2.0, margin: float | None = 0.3, smoothing=0.1, width=5, teacher=4, student=3, **more
) -> tuple[LogitDistillation, CrossEntropy]:
    """The term in double and the student's classifier that it reads, with weights that tell people apart."""
    torch.manual_seed(0)
    at = dimensions(student, 3)._replace(guides=(TeacherSpace(teacher, torch.zeros(teacher)),))
    term = LogitDistillation(
        at, width=width, temperature=temperature, margin=margin, smoothing=smoothing, **more
    )
    classifier = CrossEntropy(at, smoothing=0.0).double()
    term = term.double()
    with torch.no_grad():
        for head in (term.identity.head, classifier.head):
            head.weight.normal_()
            head.bias.normal_()
    term.connect({"identity": classifier, "global": term})
    return term, classifier


@torch.no_grad()
def plain_parts(term, classifier, embedding, teacher, *, temperature, margin, smoothing):
    """Both parts picture by picture, with nothing but softmax."""
    reduced = teacher @ term.reduce[0].weight.T + term.reduce[0].bias
    norm = term.reduce[1]
    variance = ((reduced - reduced.mean(0)) ** 2).mean(0)
    reduced = norm.weight * (reduced - reduced.mean(0)) / torch.sqrt(variance + norm.eps) + norm.bias
    heads = reduced @ term.identity.head.weight.T + term.identity.head.bias
    logits = embedding @ classifier.head.weight.T + classifier.head.bias
    taught = kl = 0.0
    count, people = heads.shape
    for row, person in enumerate(PERSON):
        target = [smoothing / people + (1 - smoothing) * (one == person) for one in range(people)]
        chances = torch.softmax(heads[row], 0)
        taught -= sum(share * math.log(chances[one]) for one, share in enumerate(target)) / count
        p = torch.softmax(heads[row] / temperature, 0)
        q = torch.softmax(logits[row] / temperature, 0)
        kl += temperature**2 * (p * (p.log() - q.log())).sum().item() / count
        if margin is not None:
            unit = [one / one.norm() for one in reduced]
            away = [1 - (unit[row] @ other).item() for other in unit]
            near = max(away[other] for other in range(count) if other != row and PERSON[other] == person)
            far = min(away[other] for other in range(count) if PERSON[other] != person)
            taught += max(0.0, near - far + margin) / count
    return taught, kl


@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize(("temperature", "smoothing"), [(2.0, 0.1), (0.5, 0.0)])
def test_parts_are_those_of_a_plain_implementation(temperature, smoothing, margin):
    how = {"temperature": temperature, "smoothing": smoothing, "margin": margin}
    term, classifier = distilled(**how)
    embedding, teacher = random_embedding(6, 3, seed=1), random_embedding(6, 4, seed=2)
    found = term(features(embedding), labelled(PERSON, teacher))
    assert set(found) == {"teacher", "kl"}
    by_hand = plain_parts(term, classifier, embedding, teacher, **how)
    assert (found["teacher"].item(), found["kl"].item()) == pytest.approx(by_hand, rel=1e-8)


def released_parts(weights, embedding, teacher):
    """The release's two losses in numpy, from its code's formulas."""
    linear, shift, scale, offset, head, head_bias, own, own_bias = weights
    reduced = teacher @ linear.T + shift
    reduced = (reduced - reduced.mean(0)) / np.sqrt(reduced.var(0) + 1e-5) * scale + offset
    logits, taught = embedding @ own.T + own_bias, reduced @ head.T + head_bias

    def log_softmax(values):
        values = values - values.max(1, keepdims=True)
        return values - np.log(np.exp(values).sum(1, keepdims=True))

    target, found = log_softmax(taught / 2), log_softmax(logits / 2)
    kl = (np.exp(target) * (target - found)).sum() / len(teacher)
    wanted = 0.1 / 3 + 0.9 * np.eye(3)[PERSON]
    cross_entropy = -(wanted * log_softmax(taught)).sum(1).mean()
    unit = reduced / np.linalg.norm(reduced, axis=1, keepdims=True)
    apart = np.sqrt(((unit[:, None] - unit) ** 2).sum(2))
    same = np.equal.outer(PERSON, PERSON)
    hinge = np.where(same, apart, -1).max(1) - np.where(same, 9, apart).min(1) + 0.3
    return cross_entropy + hinge.clip(min=0).mean(), kl


def own_classifier(**more) -> LogitDistillation:
    """The term with the release's values, in double, with random weights."""
    term, _ = distilled(classifier=None, **RELEASE, **more)
    assert term.student is not None
    with torch.no_grad():
        term.student.weight.normal_()
        term.student.bias.normal_()
    return term


def test_with_the_release_s_values_both_parts_are_the_release_s():
    term = own_classifier()
    embedding, teacher = random_embedding(6, 3, seed=1), random_embedding(6, 4, seed=2)
    found = term(features(embedding), labelled(PERSON, teacher))
    by_hand = released_parts(
        [parameter.detach().numpy() for parameter in term.parameters()], embedding.numpy(), teacher.numpy()
    )
    assert (found["teacher"].item(), found["kl"].item()) == pytest.approx(by_hand, rel=1e-9)


def test_the_square_of_the_temperature_is_all_that_squared_changes():
    embedding, labels = random_embedding(6, 3, seed=1), labelled(PERSON, random_embedding(6, 4, seed=2))
    plain, squared = (
        distilled(temperature=3.0, squared=squared)[0](features(embedding), labels)
        for squared in (False, True)
    )
    assert squared["kl"].item() == pytest.approx(9 * plain["kl"].item(), rel=1e-12)
    assert squared["teacher"].item() == plain["teacher"].item()


def test_the_two_parts_are_weighed_apart():
    points, labels = random_embedding(6, 3, seed=1), labelled(PERSON, random_embedding(6, 4, seed=2))
    plain = distilled()[0](features(points), labels)
    weighed = distilled(kl_weight=0.25, teacher_weight=3.0)[0](features(points), labels)
    assert weighed["kl"].item() == pytest.approx(0.25 * plain["kl"].item(), rel=1e-12)
    assert weighed["teacher"].item() == pytest.approx(3 * plain["teacher"].item(), rel=1e-12)


def test_undetached_the_divergence_moves_the_head_with_the_gradient_of_both_sides():
    term = own_classifier()
    embedding, teacher = random_embedding(6, 3, seed=1), random_embedding(6, 4, seed=2)
    weights = [parameter.detach().numpy() for parameter in term.parameters()]
    kl = term(features(embedding), labelled(PERSON, teacher))["kl"]
    gradients = torch.autograd.grad(kl, list(term.parameters()))
    for place, gradient in enumerate(gradients):
        moved = [weight.copy() for weight in weights]
        numeric = np.zeros_like(weights[place])
        for index in np.ndindex(numeric.shape):
            for sign in (1, -1):
                moved[place][index] = weights[place][index] + sign * 1e-6
                numeric[index] += sign * released_parts(moved, embedding.numpy(), teacher.numpy())[1] / 2e-6
            moved[place][index] = weights[place][index]
        np.testing.assert_allclose(gradient.numpy(), numeric, rtol=1e-5, atol=1e-8)


def test_a_classifier_of_its_own_is_trained_by_the_divergence_alone_and_needs_no_other_loss():
    term = own_classifier()
    term.connect({"global": term})
    parts = term(features(random_embedding(6, 3, seed=1)), labelled(PERSON, random_embedding(6, 4, seed=2)))
    own = list(term.student.parameters())
    assert all(
        gradient.abs().sum() > 0 for gradient in torch.autograd.grad(parts["kl"], own, retain_graph=True)
    )
    assert torch.autograd.grad(parts["teacher"], own, allow_unused=True) == (None, None)
    fresh = LogitDistillation(
        taught(4, people=3), width=5, temperature=2.0, margin=None, smoothing=0.1, classifier=None
    )
    assert fresh.student.weight.std().item() == pytest.approx(0.001, rel=0.7)
    assert not fresh.student.bias.any()


def test_divergence_is_0_where_the_student_s_logits_are_the_head_s():
    term, classifier = distilled(width=3)
    teacher = random_embedding(6, 4, seed=2)
    classifier.load_state_dict(term.identity.state_dict())
    found = term(features(term.reduce(teacher).detach()), labelled(PERSON, teacher))
    assert found["kl"].item() == pytest.approx(0, abs=1e-12)
    assert found["teacher"].item() > 0


def test_a_constant_added_to_all_logits_changes_no_divergence():
    term, classifier = distilled()
    points, labels = (
        features(random_embedding(6, 3, seed=1)),
        labelled(PERSON, random_embedding(6, 4, seed=2)),
    )
    before = term(points, labels)["kl"].item()
    with torch.no_grad():
        classifier.head.bias += 5
        term.identity.head.bias -= 3
    assert term(points, labels)["kl"].item() == pytest.approx(before, rel=1e-9)


def test_divergence_teaches_the_student_and_the_other_part_the_head():
    term, classifier = distilled()
    embedding = random_embedding(6, 3, seed=1).requires_grad_()
    teacher = random_embedding(6, 4, seed=2).requires_grad_()
    parts = term(features(embedding), labelled(PERSON, teacher))
    students = [embedding, *classifier.parameters()]
    heads = list(term.parameters())
    for part, reached, spared in (("kl", students, heads), ("teacher", heads, students)):
        gradients = torch.autograd.grad(
            parts[part], [*reached, *spared, teacher], retain_graph=True, allow_unused=True
        )
        assert all(gradient.abs().sum() > 0 for gradient in gradients[: len(reached)])
        assert all(gradient is None for gradient in gradients[len(reached) :])


def test_gradient_of_the_divergence_in_the_embedding():
    term, _ = distilled()
    for parameter in term.parameters():
        parameter.requires_grad_(False)
    labels = labelled(PERSON, random_embedding(6, 4, seed=2))
    points = random_embedding(6, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda points: term(features(points), labels)["kl"], [points])


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            {},
            r"logits of loss\.identity, which is not there; add loss=\[identity,…\], set classifier, or .*null",
        ),
        ({"arcface": CrossEntropy}, r"loss\.identity, which is not there"),
        ({"identity": ArcFace}, r"loss\.identity, which is no CrossEntropy"),
    ],
)
def test_a_classifier_that_is_missing_or_of_another_kind_is_said_in_one_line(others, message):
    term, _ = distilled()
    made = {
        name: kind(dimensions(3, 3), smoothing=0.0)
        if kind is CrossEntropy
        else kind(dimensions(3, 3), scale=16.0, margin=0.1)
        for name, kind in others.items()
    }
    with pytest.raises(InputError, match=message) as caught:
        term.connect(made)
    assert "\n" not in str(caught.value)


def test_the_classifier_may_have_another_name():
    at = dimensions(3, 3)._replace(guides=(TeacherSpace(4, torch.zeros(4)),))
    how = {"width": 5, "temperature": 2.0, "margin": None, "smoothing": 0.0}
    term = LogitDistillation(at, **how, classifier="people")
    term.connect({"people": CrossEntropy(at, smoothing=0.0)})
    labels = labelled(PERSON, random_embedding(6, 4).float())
    assert term(features(random_embedding(6, 3).float()), labels)["kl"].item() >= 0


def test_the_student_s_classifier_is_trained_and_kept_once():
    at = taught(4, people=3)

    def kl(dimensions):
        return LogitDistillation(dimensions, width=5, temperature=2.0, margin=0.3, smoothing=0.1)

    def entry(term):
        return {"term": term, "weight": 1.0, "start_epoch": 0, "warmup_epochs": 0}

    total = WeightedLosses(
        {"global": entry(kl), "identity": entry(lambda dimensions: CrossEntropy(dimensions, smoothing=0.1))},
        at,
    )
    parameters = [id(parameter) for parameter in total.parameters()]
    assert len(set(parameters)) == len(parameters) == 8
    own = {name for name in total.state_dict() if name.startswith("terms.global.")}
    modules = {name.removeprefix("terms.global.").rsplit(".", 1)[0] for name in own}
    assert modules == {"reduce.0", "reduce.1", "identity.head"}
    assert len([name for name in total.state_dict() if name.startswith("terms.identity.")]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "LogitDistillation: width=0 must be a whole number, 1 or more"),
        ({"temperature": 0.0}, "LogitDistillation: temperature=0.0 must be a number above 0"),
        ({"temperature": float("nan")}, "LogitDistillation: temperature=nan"),
        ({"smoothing": 1.5}, r"smoothing=1\.5 must be a number from 0 to 1"),
        ({"kl_weight": -1.0}, r"LogitDistillation: kl_weight=-1\.0 must be a number, 0 or more"),
        ({"teacher_weight": 0.0}, r"LogitDistillation: teacher_weight=0\.0 must be a number above 0"),
        ({"distance": "manhattan"}, r"Triplet: distance=manhattan is unknown; choose "),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        distilled(**change)


# What is shipped.


def test_the_head_is_shipped_where_it_reads_the_embedding_and_not_where_it_reads_what_no_model_gives_out():
    term = GlobalAlignment(taught(3), source="embedding", centre=True)
    embedding = random_embedding(4, 3).float()
    heads = term.heads()
    assert set(heads) == {"teacher.weight", "teacher.bias"}
    torch.testing.assert_close(
        embedding @ heads["teacher.weight"].T + heads["teacher.bias"], term.head(embedding)
    )
    assert GlobalAlignment(taught(3), source="pooled", centre=True).heads() == {}
