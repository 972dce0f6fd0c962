import math

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import CircleLoss, NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer, PerAnchorReducer

from clip3dreid.errors import InputError
from clip3dreid.loss.pairwise import Contrastive, PairwiseCircle, PairwiseCosFace, Triplet

from .cases import (
    batch,
    dimensions,
    features,
    gradient_is_right,
    numeric_gradient,
    on_circle,
    random_embedding,
)

NONE = dimensions(width=2, people=9)
ROOT = math.sqrt(3) / 2  # cosine of 30 degrees

ALL = [
    Triplet(NONE, margin=0.3, distance="cosine"),
    Triplet(NONE, margin=0.3, distance="euclidean"),
    Triplet(NONE, margin=0.3, distance="unit_euclidean"),
    Triplet(NONE, margin=None, distance="euclidean"),
    Contrastive(NONE, scale=16.0),
    PairwiseCosFace(NONE, scale=16.0, margin=0.1),
    PairwiseCircle(NONE, scale=48.0, margin=0.35),
]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_triplet_takes_farthest_positive_and_nearest_negative_of_each_picture():
    # One person at 0 and 60 degrees, the other at 90 and 180. Cosine distances: within the first .5, within
    # the second 1; 0-90: 1, 0-180: 2, 60-90: 1 - cos 30, 60-180: 1.5.
    points, labels = 7 * on_circle(0, 60, 90, 180), batch([4, 4, 2, 2])
    loss = Triplet(NONE, margin=0.3, distance="cosine")(features(points), labels)
    hinges = [max(0, 0.5 - 1 + 0.3), 0.5 - (1 - ROOT) + 0.3, 1 - (1 - ROOT) + 0.3, max(0, 1 - 1.5 + 0.3)]
    # The two satisfied pictures count in the mean.
    assert hinges[0] == hinges[3] == 0
    assert loss.item() == pytest.approx(sum(hinges) / 4, rel=1e-9)


def test_euclidean_triplet_measures_features_as_they_are():
    # On a line: one person at 0 and 1, the other at 3 and 7.
    points, labels = torch.tensor([[0.0, 1], [1, 1], [3, 1], [7, 1]]), batch([0, 0, 1, 1])
    differences = [1 - 3, 1 - 2, 4 - 2, 4 - 6]
    hard = Triplet(NONE, margin=0.3, distance="euclidean")(features(points), labels)
    assert hard.item() == pytest.approx(2.3 / 4, rel=1e-6)
    soft = Triplet(NONE, margin=None, distance="euclidean")(features(points), labels)
    assert soft.item() == pytest.approx(sum(map(softplus, differences)) / 4, rel=1e-6)


def test_unit_euclidean_triplet_measures_chords_whatever_the_lengths():
    # The chord between two directions at an angle a is 2 sin(a / 2); people at 0, 60 and at 90, 180.
    points = torch.tensor([[1.0], [9.0], [0.1], [3.0]]).double() * on_circle(0, 60, 90, 180)
    loss = Triplet(NONE, margin=0.3, distance="unit_euclidean")(features(points), batch([0, 0, 1, 1]))

    def chord(degrees):
        return 2 * math.sin(math.radians(degrees) / 2)

    near = [(60, 90), (60, 30), (90, 30), (90, 120)]
    hinges = [max(0.0, chord(own) - chord(other) + 0.3) for own, other in near]
    assert loss.item() == pytest.approx(sum(hinges) / 4, rel=1e-9)


LIBRARY_DISTANCES = {
    "cosine": CosineSimilarity,
    "euclidean": lambda: LpDistance(normalize_embeddings=False),
    "unit_euclidean": LpDistance,
}
BATCHES = [
    [0, 0, 0, 0, 1, 1, 2, 2, 2],
    [0, 0, 0, 0, 1, 2, 3, 3, 4],  # three without a partner
    [0, 0, 0, 0, 0, 0, 0, 0, 0],  # nobody to be told from
]


def value_and_gradient(loss, points):
    points = points.clone().requires_grad_()
    value = loss(points)
    return value.detach(), torch.autograd.grad(value, points)[0]


@pytest.mark.parametrize("labels", BATCHES)
@pytest.mark.parametrize("distance", LIBRARY_DISTANCES)
@pytest.mark.parametrize("margin", [0.3, None])
def test_triplet_agrees_with_the_library(labels, distance, margin):
    points, labelled = random_embedding(9, 5), batch(labels)
    miner = BatchHardMiner(distance=LIBRARY_DISTANCES[distance]())
    library = TripletMarginLoss(
        margin=margin or 0,
        smooth_loss=margin is None,
        distance=LIBRARY_DISTANCES[distance](),
        reducer=MeanReducer(),
    )
    person = labelled.person
    theirs = value_and_gradient(lambda x: library(x, person, miner(x, person)), points)
    term = Triplet(NONE, margin=margin, distance=distance)
    torch.testing.assert_close(value_and_gradient(lambda x: term(features(x), labelled), points), theirs)


@pytest.mark.parametrize("labels", BATCHES)
def test_pairwise_circle_agrees_with_the_library(labels):
    points, labelled = random_embedding(9, 5), batch(labels)
    library = CircleLoss(m=0.35, gamma=48.0, reducer=MeanReducer())
    theirs = value_and_gradient(lambda x: library(x, labelled.person), points)
    term = PairwiseCircle(NONE, scale=48.0, margin=0.35)
    torch.testing.assert_close(value_and_gradient(lambda x: term(features(x), labelled), points), theirs)


def within_processes(points, person, margin):
    """The triplet of two processes in the base code: anchors of one's own, distances to the pictures of both, and no
    gradient into those of the other; the mean over processes, as DistributedDataParallel takes it.
    """
    half, total = len(points) // 2, 0.0
    for own in (slice(0, half), slice(half, None)):
        gallery = points.detach().clone()
        gallery[own] = points[own]
        unit = gallery / gallery.norm(dim=1, keepdim=True)
        apart = 1 - unit[own] @ unit.T
        same = person[own][:, None] == person
        hardest = (apart - 9.0 * ~same).amax(1) - (apart + 9.0 * same).amin(1)
        total = total + (hardest + margin).clamp(min=0).mean() / 2
    return total


def test_the_base_code_s_gradient_over_two_processes_is_a_part_of_ours():
    # What docs/method.md says of it: the loss is the same, its gradient points nearly the same way and is shorter.
    person, cosines_, lengths = torch.arange(16).repeat_interleave(4), [], []
    for seed in range(10):
        middle = random_embedding(16, 64, seed=seed).repeat_interleave(4, 0)
        points = (0.5 * middle + random_embedding(64, 64, seed=100 + seed)).requires_grad_()
        ours = Triplet(NONE, margin=0.3, distance="cosine")(features(points), batch(person.tolist()))
        theirs = within_processes(points, person, 0.3)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
        whole, part = (torch.autograd.grad(loss, points)[0].flatten() for loss in (ours, theirs))
        cosines_.append((whole @ part / whole.norm() / part.norm()).item())
        lengths.append((part.norm() / whole.norm()).item())
    assert sum(cosines_) / 10 == pytest.approx(0.95, abs=0.02)
    assert sum(lengths) / 10 == pytest.approx(0.9, abs=0.05)


def test_contrastive_sets_each_positive_against_the_negatives_alone():
    # The three of one person are no rivals of each other; the single picture of the other has no positive.
    points, labels = 7 * on_circle(0, 60, 120, 90), batch([0, 0, 0, 1])
    loss = Contrastive(NONE, scale=2.0)(features(points), labels)

    def pair(positive: float, negative: float) -> float:
        return math.log(1 + math.exp(2 * negative) / math.exp(2 * positive))

    per_picture = [
        (pair(0.5, 0.0) + pair(-0.5, 0.0)) / 2,
        (pair(0.5, ROOT) + pair(0.5, ROOT)) / 2,
        (pair(-0.5, ROOT) + pair(0.5, ROOT)) / 2,
    ]
    assert loss.item() == pytest.approx(sum(per_picture) / 3, rel=1e-9)


def test_contrastive_agrees_with_the_library_where_memory_is_no_matter():
    points, labels = random_embedding(9, 5), batch([0, 0, 0, 0, 1, 1, 2, 2, 2])
    library = NTXentLoss(temperature=1 / 16, reducer=PerAnchorReducer())
    ours = Contrastive(NONE, scale=16.0)(features(points), labels)
    assert ours.item() == pytest.approx(library(points, labels.person).item(), rel=1e-9)


def test_pairwise_cosface_adds_the_margin_to_negative_pairs():
    points, labels = 7 * on_circle(0, 60, 90), batch([0, 0, 1])
    loss = PairwiseCosFace(NONE, scale=2.0, margin=0.25)(features(points), labels)
    first = softplus(2 * (0 + 0.25) - 2 * 0.5)
    second = softplus(2 * (ROOT + 0.25) - 2 * 0.5)
    assert loss.item() == pytest.approx((first + second + 0) / 3, rel=1e-9)


def test_pairwise_cosface_sums_over_all_pairs_of_a_picture():
    points, labels = on_circle(0, 60, 300, 90, 180), batch([0, 0, 0, 1, 2])
    loss = PairwiseCosFace(NONE, scale=1.0, margin=0.0)(features(points[:]), labels)
    cos = [[math.cos(math.radians(a - b)) for b in (0, 60, 300, 90, 180)] for a in (0, 60, 300)]
    expected = 0.0
    for i, row in enumerate(cos):
        positives = sum(math.exp(-row[j]) for j in range(3) if j != i)
        negatives = math.exp(row[3]) + math.exp(row[4])
        expected += math.log(1 + positives * negatives)
    assert loss.item() == pytest.approx(expected / 5, rel=1e-9)


def test_pairwise_circle_weighs_each_pair_by_its_distance_from_the_optimum():
    m, scale = 0.35, 3.0
    points, labels = 7 * on_circle(0, 60, 90), batch([0, 0, 1])
    loss = PairwiseCircle(NONE, scale=scale, margin=m)(features(points), labels)
    together = -scale * (1 + m - 0.5) * (0.5 - (1 - m))
    first = softplus(scale * (0 + m) * (0 - m) + together)
    second = softplus(scale * (ROOT + m) * (ROOT - m) + together)
    assert loss.item() == pytest.approx((first + second + 0) / 3, rel=1e-9)


def test_pairwise_circle_keeps_pictures_whose_loss_underflows_in_the_mean():
    # Two people exactly opposite, whose pictures cost exp(-scale ...) = 0 in float32, and two mixed up.
    apart = torch.tensor([[1.0, 0, 0], [1, 0, 0], [-1, 0, 0], [-1, 0, 0]])
    mixed = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]])
    term = PairwiseCircle(NONE, scale=2000.0, margin=0.35)
    alone = term(features(mixed), batch([2, 2, 3, 3]))
    both = term(features(torch.cat([apart, mixed])), batch([0, 0, 1, 1, 2, 2, 3, 3]))
    assert term(features(apart), batch([0, 0, 1, 1])).item() == 0
    assert both.item() == pytest.approx(alone.item() / 2, rel=1e-5)


@pytest.mark.parametrize("term", [term for term in ALL if not isinstance(term, PairwiseCircle)])
def test_gradient_of_pairwise_losses(term):
    assert gradient_is_right(term, random_embedding(6, 4, seed=3), batch([0, 0, 1, 1, 2, 2]))


def test_gradient_of_pairwise_circle_holds_its_weights_fixed():
    point, person = random_embedding(6, 4).requires_grad_(), [0, 0, 1, 1, 2, 2]
    scale, m = 6.0, 0.35

    def cosines(points):
        points = points / points.norm(dim=1, keepdim=True)
        return points @ points.T

    now = cosines(point.detach())

    def frozen(points):
        cosine, total = cosines(points), 0.0
        for i in range(6):
            positives = negatives = 0.0
            for j in range(6):
                if person[i] != person[j]:
                    negatives += torch.exp(scale * max(0, now[i, j] + m) * (cosine[i, j] - m))
                elif i != j:
                    positives += torch.exp(-scale * max(0, 1 + m - now[i, j]) * (cosine[i, j] - (1 - m)))
            total += torch.log(1 + positives * negatives)
        return total / 6

    loss = PairwiseCircle(NONE, scale=scale, margin=m)(features(point), batch(person))
    loss.backward()
    # torch's softplus is the identity above 20: an error of exp(-20) at most.
    assert loss.item() == pytest.approx(frozen(point.detach()).item(), abs=3e-9)
    torch.testing.assert_close(point.grad, numeric_gradient(frozen, point.detach()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("term", ALL)
@pytest.mark.parametrize("person", [[0, 1, 2, 3], [5, 5, 5, 5]])
def test_batch_without_positives_or_negatives_costs_nothing_and_breaks_nothing(term, person):
    point = random_embedding(4, 3).float().requires_grad_()
    loss = term(features(point), batch(person))
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(point.grad) == 0  # NaN counts as non-zero


@pytest.mark.parametrize("term", ALL)
def test_a_picture_drawn_twice_gives_a_finite_gradient(term):
    point = random_embedding(4, 3).float()[[0, 0, 1, 2, 2, 3]].requires_grad_()
    term(features(point), batch([0, 0, 0, 1, 1, 1])).backward()
    assert torch.isfinite(point.grad).all()


def test_unknown_distance_is_refused_with_the_known_ones():
    with pytest.raises(
        InputError, match="distance=manhattan is unknown; choose cosine, euclidean or unit_euclidean"
    ):
        Triplet(NONE, margin=0.3, distance="manhattan")


@pytest.mark.parametrize("term", [Contrastive, PairwiseCosFace, PairwiseCircle])
def test_pairwise_losses_refuse_a_negative_scale(term):
    options = {} if term is Contrastive else {"margin": 0.1}
    with pytest.raises(InputError, match=f"{term.__name__}: scale=-1 must be a number above 0"):
        term(NONE, scale=-1, **options)
