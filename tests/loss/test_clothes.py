import math

import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.loss.clothes import ClothesAdversarial, ClothesMemory, adversarial_loss
from clip3dreid.loss.cosine import cosines

from .cases import batch, dimensions, features, gradient_is_right, random_embedding

TWO_BY_TWO = dimensions(width=4, people=2, person_of_clothes=[0, 0, 1, 1])


def with_axes(scale: float, epsilon: float) -> ClothesAdversarial:
    """Two people with two outfits each; an embedding's cosine with outfit i is its i-th direction cosine."""
    term = ClothesAdversarial(TWO_BY_TWO, scale=scale, epsilon=epsilon).double()
    with torch.no_grad():
        term.head.weight.copy_(2 * torch.eye(4))
    return term


def plain(logits, person, clothes, person_of_clothes, epsilon):
    """The formula in loops over plain numbers."""
    total = 0.0
    for row, who, worn in zip(logits.tolist(), person, clothes, strict=True):
        if worn < 0:
            continue
        own = [c for c, owner in enumerate(person_of_clothes) if owner == who]
        rivals = sum(math.exp(row[j]) for j, owner in enumerate(person_of_clothes) if owner != who)
        for c in own:
            target = (1 - epsilon) * (c == worn) + epsilon / len(own)
            total -= target * (row[c] - math.log(math.exp(row[c]) + rivals))
    return total / len(person)


def test_adversarial_loss_on_two_people_with_two_outfits_by_hand():
    # Direction cosines .6 .8 0 0, scale 2: logits 1.2 1.6 0 0. The own outfits compete with the two of the
    # other person (exp 0 each) and not with each other.
    point = torch.tensor([[3.0, 4, 0, 0]], dtype=torch.float64)
    parts = with_axes(scale=2.0, epsilon=0.1)(features(point), batch([0], [0]))
    worn = 1.2 - math.log(math.exp(1.2) + 2)
    spare = 1.6 - math.log(math.exp(1.6) + 2)
    assert parts["adversarial"].item() == pytest.approx(-(0.95 * worn + 0.05 * spare), rel=1e-12)


def test_clothes_classification_counts_every_outfit_as_a_rival_by_hand():
    point = torch.tensor([[3.0, 4, 0, 0]], dtype=torch.float64)
    parts = with_axes(scale=2.0, epsilon=0.1)(features(point), batch([0], [0]))
    by_hand = math.log(math.exp(1.2) + math.exp(1.6) + 2) - 1.2
    assert parts["classification"].item() == pytest.approx(by_hand, rel=1e-12)


def test_what_the_head_knows_is_observed():
    # Cosines with the four outfits; the last picture's outfit is not known. The second is told from the outfits of
    # its person and not from the others.
    points = torch.tensor([[3.0, 1, 0, 0], [3, 0, 2, 1], [0, 1, 2, 0], [5, 0, 0, 0]], dtype=torch.float64)
    term = with_axes(scale=2.0, epsilon=0.1)
    term(features(points), batch([0, 1, 1, 0], [0, 2, 3, -1]))
    assert term.observed["accuracy"].item() == pytest.approx(1 / 3)
    assert term.observed["accuracy_of_person"].item() == pytest.approx(2 / 3)
    term(features(points[:1]), batch([0], [-1]))
    assert term.observed["accuracy"].item() == 0


def test_undecided_features_cost_log_of_one_own_and_all_foreign_outfits():
    point = torch.ones(1, 4, dtype=torch.float64)
    parts = with_axes(scale=16.0, epsilon=0.1)(features(point), batch([1], [3]))
    assert parts["adversarial"].item() == pytest.approx(math.log(3), rel=1e-12)
    assert parts["classification"].item() == pytest.approx(math.log(4), rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_adversarial_loss_equals_the_formula_in_loops(epsilon):
    owners, person, clothes = [0, 1, 1, 2, 2, 2], [2, 0, 1, 2, 1], [5, 0, 2, 3, -1]
    logits = 3 * random_embedding(5, 6)
    own = torch.tensor(person)[:, None] == torch.tensor(owners)
    loss = adversarial_loss(logits, torch.tensor(clothes), own, ~own, epsilon=epsilon)
    assert loss.item() == pytest.approx(plain(logits, person, clothes, owners, epsilon), rel=1e-12)


def test_full_epsilon_asks_for_all_outfits_of_the_person_alike():
    point = random_embedding(1, 4)
    term = with_axes(scale=4.0, epsilon=1.0)
    losses = [term(features(point), batch([0], [worn]))["adversarial"].item() for worn in (0, 1)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[200.0, -200.0, 150.0, 190.0]])
    own = torch.tensor([[True, True, False, False]])
    loss = adversarial_loss(logits, torch.tensor([0]), own, ~own, epsilon=0.1)
    assert loss.item() == pytest.approx(0.05 * 390, rel=1e-4)


def test_adversarial_part_moves_only_the_features():
    term, point = with_axes(2.0, 0.1), random_embedding(3, 4).requires_grad_()
    term(features(point), batch([0, 1, 0], [0, 2, 1]))["adversarial"].backward()
    assert point.grad.abs().sum() > 0.01
    assert term.head.weight.grad is None


def test_classification_part_moves_only_the_head():
    term, point = with_axes(2.0, 0.1), random_embedding(3, 4).requires_grad_()
    term(features(point), batch([0, 1, 0], [0, 2, 1]))["classification"].backward()
    assert point.grad is None
    assert term.head.weight.grad.abs().sum() > 0.01


def test_gradient_of_the_adversarial_loss():
    term, labels = with_axes(4.0, 0.1), batch([0, 1, 0, 1], [0, 2, 1, -1])
    point = random_embedding(4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: term(features(z), labels)["adversarial"], point)


def test_gradient_of_the_clothes_classification():
    term, labels = with_axes(4.0, 0.1), batch([0, 1, 0, 1], [0, 2, 1, -1])
    point = features(random_embedding(4, 4))

    def loss(weight):
        return torch.func.functional_call(term, {"head.weight": weight}, (point, labels))["classification"]

    assert torch.autograd.gradcheck(loss, random_embedding(4, 4, seed=1).requires_grad_())


def test_pictures_of_unknown_outfit_add_nothing_and_leave_the_others_their_weight():
    term, point = with_axes(2.0, 0.1), random_embedding(4, 4).requires_grad_()
    known = term(features(point[:2]), batch([0, 1], [0, 2]))
    mixed = term(features(point), batch([0, 1, 0, 1], [0, 2, -1, -1]))
    for part in ("classification", "adversarial"):
        assert mixed[part].item() == pytest.approx(known[part].item() / 2, rel=1e-12)
    mixed["adversarial"].backward()
    assert torch.count_nonzero(point.grad[2:]) == 0
    assert torch.count_nonzero(point.grad[:2]) > 0


def test_a_person_without_any_known_outfit_breaks_nothing():
    term = ClothesAdversarial(dimensions(4, 3, [0, 0, 1]), scale=16.0, epsilon=0.1)
    point = random_embedding(2, 4).float().requires_grad_()
    loss = sum(term(features(point), batch([2, 0], [-1, 1])).values())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(point.grad).all()


def test_one_person_alone_has_no_rivals_and_costs_nothing():
    term = ClothesAdversarial(dimensions(4, 1, [0, 0]), scale=16.0, epsilon=0.1)
    point = random_embedding(2, 4).float().requires_grad_()
    loss = term(features(point), batch([0, 0], [0, 1]))["adversarial"]
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(point.grad) == 0


def test_clothes_head_starts_with_rows_of_length_one_and_keeps_its_learning_rate():
    term = ClothesAdversarial(TWO_BY_TWO, scale=16.0, epsilon=0.1)
    torch.testing.assert_close(term.head.weight.norm(dim=1), torch.ones(4))
    assert [id(p) for p in term.unscheduled_parameters()] == [id(term.head.weight)]


def memory(momentum: float, keep: str = "mean") -> ClothesMemory:
    return ClothesMemory(TWO_BY_TWO, scale=2.0, epsilon=0.1, momentum=momentum, keep=keep).double()


def test_memory_without_momentum_holds_the_last_mean_of_each_outfit():
    term, first, second = memory(0.0), random_embedding(3, 4), random_embedding(2, 4, seed=1)
    term(features(first), batch([0, 0, 1], [0, 0, 3]))
    torch.testing.assert_close(term.memory[0], first[:2].mean(0))
    term(features(second), batch([0, 1], [0, 2]))
    torch.testing.assert_close(term.memory, torch.stack([second[0], torch.zeros(4), second[1], first[2]]))
    assert term.met.tolist() == [True, False, True, True]


def test_memory_with_momentum_starts_at_the_first_mean_and_then_moves_slowly():
    term, points = memory(0.75), random_embedding(2, 4)
    term(features(points[:1]), batch([0], [0]))
    torch.testing.assert_close(term.memory[0], points[0])
    term(features(points[1:]), batch([0], [0]))
    torch.testing.assert_close(term.memory[0], 0.75 * points[0] + 0.25 * points[1])


class BaseMemory:
    """What the memory bank of the base code computes, in plain numbers: every picture is filed by itself, since a
    tensor is equal to no other as a key, and until all outfits are met each one overwrites what was there.
    """

    def __init__(self, owners, momentum):
        self.owners, self.momentum = owners, momentum
        self.held, self.full = {}, False

    def loss(self, points, person, clothes):
        for point, worn in zip(points.tolist(), clothes, strict=True):
            old = self.held.get(worn, point) if self.full else point
            kept = self.momentum if self.full else 0.0
            self.held[worn] = [kept * a + (1 - kept) * b for a, b in zip(old, point, strict=True)]
        self.full = len(self.held) == len(self.owners)
        met = sorted(self.held)

        def cosine(a, b):
            return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

        rows = [[2.0 * cosine(point, self.held[c]) for c in met] for point in points.tolist()]
        owners = [self.owners[c] for c in met]
        return plain(
            torch.tensor(rows, dtype=torch.float64), person, [met.index(c) for c in clothes], owners, 0.1
        )


SCRIPT = [  # person and outfit of each picture: repeats, then the last outfit met, then momentum at work
    ([0, 0, 1, 0], [0, 0, 3, 0]),
    ([1, 0, 1], [3, 0, 3]),
    ([0, 1, 0, 0], [1, 2, 1, 0]),
    ([1, 1, 0, 0, 1], [2, 3, 1, 1, 2]),
    ([0, 0, 0], [0, 0, 0]),
]


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_keeping_the_last_is_the_memory_of_the_base_code_on_a_scripted_sequence(momentum):
    term, base = memory(momentum, "last"), BaseMemory([0, 0, 1, 1], momentum)
    for number, (person, clothes) in enumerate(SCRIPT):
        points = random_embedding(len(person), 4, seed=number)
        loss = term(features(points), batch(person, clothes))
        assert loss.item() == pytest.approx(base.loss(points, person, clothes), rel=1e-9)
        for outfit, held in base.held.items():
            torch.testing.assert_close(term.memory[outfit], torch.tensor(held, dtype=torch.float64))
        assert term.met.tolist() == [outfit in base.held for outfit in range(4)]
    assert base.full


def test_the_two_memories_differ_where_an_outfit_has_several_pictures():
    points, labels = random_embedding(3, 4), batch([0, 0, 1], [0, 0, 3])
    mean, last = memory(0.0), memory(0.0, "last")
    assert mean(features(points), labels).item() != last(features(points), labels).item()
    torch.testing.assert_close(mean.memory[0], points[:2].mean(0))
    torch.testing.assert_close(last.memory[0], points[1])
    torch.testing.assert_close(mean.memory[3], last.memory[3])


def test_an_unknown_memory_is_refused():
    with pytest.raises(InputError, match=r"^ClothesMemory: keep=first is unknown; choose mean or last$"):
        memory(0.0, "first")


def test_memory_loss_is_the_adversarial_loss_over_the_outfits_met():
    term, points = memory(0.0), random_embedding(3, 4)
    person, clothes = [0, 1, 1], [0, 2, 3]
    loss = term(features(points), batch(person, clothes))
    met = [0, 2, 3]  # outfit 1 has not been seen: no spare outfit for person 0
    logits = 2.0 * cosines(points, points)  # momentum 0: each outfit is remembered as its only picture
    by_hand = plain(logits, person, [met.index(c) for c in clothes], [0, 1, 1], 0.1)
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)


def test_memory_ignores_pictures_of_unknown_outfit():
    term, points = memory(0.0), random_embedding(2, 4)
    loss = term(features(points), batch([0, 1], [-1, -1]))
    assert loss.item() == 0
    assert not term.met.any()
    assert torch.count_nonzero(term.memory) == 0


def test_gradient_of_the_memory_loss():
    term = memory(1.0)  # full momentum: the memory stays as it is filled here
    term.memory.copy_(random_embedding(4, 4, seed=5))
    term.met.fill_(True)
    assert gradient_is_right(term, random_embedding(3, 4), batch([0, 1, 0], [0, 2, 1]))


def test_memory_is_saved_with_a_checkpoint_and_the_owners_of_outfits_are_not():
    assert set(memory(0.0).state_dict()) == {"memory", "met"}
    assert set(with_axes(2.0, 0.1).state_dict()) == {"head.weight"}


@pytest.mark.parametrize(
    "build",
    [
        lambda d: ClothesAdversarial(d, scale=16.0, epsilon=0.1),
        lambda d: ClothesMemory(d, scale=16.0, epsilon=0.1, momentum=0.0),
    ],
)
def test_data_without_clothes_labels_is_refused_in_one_line(build):
    with pytest.raises(InputError, match=r"^Clothes\w+ needs clothes labels .*method=ce.*$") as caught:
        build(dimensions(4, 3))
    assert "\n" not in str(caught.value)
