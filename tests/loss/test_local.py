import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.nn import functional as F

import clip3dreid
from clip3dreid.errors import InputError
from clip3dreid.loss.local import LocalAlignment
from clip3dreid.loss.transport import GeomLoss, Sinkhorn, Transport, UnbalancedSinkhorn
from clip3dreid.types import Dimensions, Features, TextTargets

from .cases import batch, dimensions, numeric_gradient, on_circle, random_embedding

CONF = Path(clip3dreid.__file__).parents[2] / "conf"
PLAIN = {"projection": "student", "centre": "none", "positions": "uniform", "tokens": "uniform"}


def sinkhorn(eps=0.1, iterations=5000):
    return Sinkhorn(eps=eps, iterations=iterations, tolerance=1e-12)


def described(
    channels: int, embeddings, index, *, by="person", confidence=None, vocabulary=None
) -> Dimensions:
    """People (or rows) with tokens, rows of `embeddings`."""
    index = torch.tensor(index)
    words = TextTargets(
        embeddings=embeddings,
        tokens=index,
        confidence=torch.ones(index.shape) if confidence is None else torch.tensor(confidence),
        by=by,
        words=embeddings if vocabulary is None else vocabulary,
    )
    return dimensions(channels, len(index))._replace(guides=(words,))


def aligned(at: Dimensions, solver=None, **options):
    """The term in double; a projection on the student's side leaves the map as it is."""
    term = LocalAlignment(at, solver=solver or sinkhorn(), **{**PLAIN, **options}).double()
    with torch.no_grad():
        term.head.weight.copy_(torch.eye(*term.head.weight.shape[:2]).view_as(term.head.weight))
        term.head.bias.zero_()
    return term


def seen(*positions, height=1) -> Features:
    """Features of one picture per argument: the rows of (h * w, C) are the positions, row by row."""
    maps = torch.stack(positions).mT.unflatten(2, (height, -1))
    return Features(map=maps, pooled=torch.empty(0), embedding=torch.empty(0))


def random_problem(**options):
    """Three pictures of two people, 2 x 3 positions of 5 channels, up to 3 of 4 tokens of 4 numbers."""
    at = described(5, F.normalize(random_embedding(4, 4, seed=1)), [[0, 2, 3], [1, 3, -1]], **options)
    maps = random_embedding(3, 30, seed=2).view(3, 5, 2, 3)
    return at, Features(map=maps, pooled=torch.empty(0), embedding=torch.empty(0)), batch([1, 0, 1])


class Whole:
    """Sinkhorn's whole minimum, entropy included."""

    def __init__(self, eps):
        self.eps, self.solver = eps, sinkhorn(eps)

    def __call__(self, x, y, a, b):
        value, plan = self.solver(x, y, a, b)
        entropy = torch.xlogy(plan, plan) - torch.xlogy(plan, a[:, :, None] * b[:, None])
        return Transport(value + self.eps * entropy.sum((1, 2)), plan)


def test_positions_that_lie_at_the_tokens_cost_the_entropy_s_blur_alone():
    # Costs 0 and 1, masses of a half: of each position's mass, 1 / (1 + exp(1 / eps)) goes to the other's token.
    at, picture = described(2, on_circle(0, 90), [[0, 1]]), seen(3 * on_circle(0, 90))
    for eps in (1.0, 0.1):
        loss = aligned(at, sinkhorn(eps))(picture, batch([0]))
        assert loss.item() == pytest.approx(1 / (1 + math.exp(1 / eps)), rel=1e-9)


def test_each_picture_is_compared_with_the_tokens_of_its_person():
    # One token each, so that there is one plan: mean cost over positions, then over pictures.
    at = described(2, on_circle(0, 90, 180), [[2], [0]])
    loss = aligned(at)(seen(on_circle(0, 60), 5 * on_circle(60, 90)), batch([1, 0]))
    first, second = (0 + 0.5) / 2, ((1 + 0.5) + 1) / 2
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-9)


def test_tokens_may_belong_to_rows_of_the_table_and_not_to_people():
    at = described(2, on_circle(0, 60, 90), [[0], [1], [2]], by="row")
    labels = batch([0, 0])._replace(row=torch.tensor([2, 1]))
    loss = aligned(at)(seen(on_circle(0), on_circle(0)), labels)
    assert loss.item() == pytest.approx((1 + 0.5) / 2, rel=1e-9)


def test_missing_tokens_take_no_mass():
    positions = on_circle(10, 70, 200)
    short = aligned(described(2, on_circle(0, 90), [[0, 1]]))
    padded = aligned(described(2, on_circle(0, 90), [[0, -1, 1, -1]]))
    losses = [term(seen(positions), batch([0])) for term in (short, padded)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-9)
    plan = padded.plan(seen(positions), batch([0]))
    assert torch.count_nonzero(plan[..., [1, 3]]) == 0


def test_activation_gives_mass_in_proportion_to_length_above_the_shortest():
    at = described(2, on_circle(0), [[0]])
    lengths = torch.tensor([[2.0], [3.0], [5.0]]).double()
    picture = seen(lengths * on_circle(0, 60, 90))
    loss = aligned(at, positions="activation")(picture, batch([0]))
    assert loss.item() == pytest.approx((0 * 0 + 1 * 0.5 + 3 * 1) / 4, rel=1e-9)


def test_activation_is_uniform_where_all_positions_are_equally_long():
    at = described(2, on_circle(0), [[0]])
    loss = aligned(at, positions="activation")(seen(torch.tensor([[1.0, 0], [0, 1]]).double()), batch([0]))
    assert loss.item() == pytest.approx(0.5, rel=1e-9)


def test_no_gradient_flows_through_the_masses_of_positions():
    at, point = described(2, on_circle(0), [[0]]), on_circle(0, 60, 90).mul(3).requires_grad_()
    lengths = torch.tensor([[1.0], [2.0], [4.0]]).double()
    aligned(at, positions="activation")(seen(point * lengths), batch([0])).backward()
    # A direction's cost does not change with its length.
    assert (point.grad * point).sum(1).abs().max() < 1e-12


def test_margin_gives_tokens_mass_in_proportion_to_confidence():
    # One position, so that there is one plan. The last token is missing, however sure it is.
    at = described(2, on_circle(0, 60, 90), [[0, 1, 2, -1]], confidence=[[0.0, 1.0, 3.0, 9.0]])
    for tokens, loss in (("margin", (0.5 + 3 * 1) / 4), ("uniform", (0 + 0.5 + 1) / 3)):
        found = aligned(at, tokens=tokens)(seen(on_circle(0)), batch([0]))
        assert found.item() == pytest.approx(loss, rel=1e-6)


def test_margin_is_uniform_where_no_token_is_sure():
    at = described(2, on_circle(0, 90), [[0, 1, -1]], confidence=[[0.0, 0.0, 5.0]])
    assert aligned(at, tokens="margin")(seen(on_circle(0)), batch([0])).item() == pytest.approx(0.5, rel=1e-9)


def test_centring_takes_the_mean_of_the_whole_vocabulary_from_the_tokens():
    # A cone around the first axis: less the mean of its two words, the only token points along the second axis.
    half = math.sqrt(0.5)
    words = torch.tensor([[half, half], [half, -half]]).double()
    at = described(2, words[:1], [[0]], vocabulary=words)
    picture = seen(on_circle(0, 90))
    assert aligned(at, centre="vocabulary")(picture, batch([0])).item() == pytest.approx(
        (1 + 0) / 2, rel=1e-9
    )
    assert aligned(at, centre="none")(picture, batch([0])).item() == pytest.approx(1 - half, rel=1e-9)


def test_text_may_be_projected_to_the_width_of_the_student():
    at = described(3, on_circle(0, 90), [[0, 1]])
    term = aligned(at, projection="text")
    assert term.head.weight.shape == (3, 2)
    with torch.no_grad():  # the first token goes to the third channel, the second to the first
        term.head.weight.copy_(torch.tensor([[0.0, 2], [0, 0], [5, 0]]))
    position = torch.tensor([[0.0, 0, 7]]).double()
    assert term(seen(position), batch([0])).item() == pytest.approx((0 + 1) / 2, rel=1e-9)
    assert term.heads() == {}


def test_student_s_projection_is_shipped_with_words_and_their_centre():
    words = F.normalize(random_embedding(6, 4, seed=7)).float()
    at = described(5, words[:2], [[0, 1]], vocabulary=words)
    torch.manual_seed(0)
    for centre in ("vocabulary", "none"):
        term = LocalAlignment(at, solver=sinkhorn(iterations=9), **{**PLAIN, "centre": centre})
        heads = term.heads()
        assert set(heads) == {"joint.weight", "joint.bias", "joint.centre", "joint.words"}
        assert not any(tensor.requires_grad for tensor in heads.values())
        torch.testing.assert_close(
            heads["joint.centre"], words.mean(0) if centre == "vocabulary" else torch.zeros(4)
        )
        torch.testing.assert_close(heads["joint.words"], words)
        # What is shipped gives the same cost of a single position and a single token.
        position = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
        projected = position @ heads["joint.weight"].T + heads["joint.bias"]
        cosines = F.cosine_similarity(projected, heads["joint.words"][:2] - heads["joint.centre"])
        assert term(seen(position), batch([0])).item() == pytest.approx(1 - cosines.mean().item(), abs=1e-6)


def test_the_words_are_no_part_of_a_checkpoint_and_move_with_the_term():
    torch.manual_seed(0)
    at, features, labels = random_problem()
    term = LocalAlignment(at, solver=sinkhorn(), **PLAIN)
    learnt = {"seen", "usual", "square"}
    assert set(term.state_dict()) == {"head.weight", "head.bias"} | learnt
    assert term.double()(features, labels).dtype == torch.float64
    tables = {"centre", "table", "index", "confidence", "words"}
    assert {name for name, _ in term.named_buffers()} == tables | learnt


def test_what_words_usually_score_is_learnt_in_training_alone():
    at, labels = described(2, on_circle(0, 90), [[0, 1], [0, 1]]), batch([0, 1])
    term = aligned(at)
    pictures = [seen(on_circle(0), on_circle(60)), seen(on_circle(90), on_circle(90))]
    term.eval()
    term(pictures[0], labels)
    assert "joint.usual" not in term.heads()
    term.train()
    for features in pictures:
        term(features, labels)
    # Cosines with the words at 0 and 90 degrees, of pictures at 0, 60, 90 and 90 degrees.
    cosines = torch.tensor([[1, 0], [0.5, 3**0.5 / 2], [0, 1], [0, 1]], dtype=torch.float64)
    heads = term.heads()
    torch.testing.assert_close(heads["joint.usual"], cosines.mean(0))
    torch.testing.assert_close(heads["joint.spread"], cosines.std(0, correction=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("centre", ["vocabulary", "none"])
@pytest.mark.parametrize("projection", ["student", "text"])
@pytest.mark.parametrize("eps", [0.5, 0.15])
def test_gradient_is_that_of_the_whole_minimum(projection, centre, eps):
    torch.manual_seed(0)  # with some heads, the steps converge slowly
    at, features, labels = random_problem()
    options = {**PLAIN, "projection": projection, "centre": centre}
    term = LocalAlignment(at, solver=sinkhorn(eps), **options).double()
    whole = LocalAlignment(at, solver=Whole(eps), **options).double()
    inputs = {"map": features.map, **{name: p.detach() for name, p in term.named_parameters()}}

    def value(module, at):
        heads = {name: values for name, values in at.items() if name != "map"}
        return torch.func.functional_call(module, heads, (features._replace(map=at["map"]), labels))

    leaves = {name: values.clone().requires_grad_() for name, values in inputs.items()}
    gradients = torch.autograd.grad(value(term, leaves), list(leaves.values()))
    for name, gradient in zip(leaves, gradients, strict=True):

        def minimum(moved, name=name):
            with torch.no_grad():
                return value(whole, {**inputs, name: moved})

        expected = numeric_gradient(minimum, inputs[name])
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("positions", ["uniform", "activation"])
@pytest.mark.parametrize("projection", ["student", "text"])
def test_gradient_with_the_plan_held_fixed(projection, positions):
    torch.manual_seed(0)
    at, features, labels = random_problem()
    term = LocalAlignment(at, solver=sinkhorn(), **{**PLAIN, "projection": projection}).double()
    plan = term._transport(features, labels)[1].plan

    def fixed(x, y, a, b):
        return Transport((plan * (1 - x @ y.mT)).sum((1, 2)), plan)

    term.solver, term.positions = fixed, positions
    names = [name for name, _ in term.named_parameters()]

    def loss(maps, *parameters):
        filled = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(term, filled, (features._replace(map=maps), labels))

    inputs = [features.map, *(parameter.detach() for parameter in term.parameters())]
    assert torch.autograd.gradcheck(loss, [values.clone().requires_grad_() for values in inputs])


def test_plan_has_the_map_s_shape_and_both_marginals_and_no_gradient():
    torch.manual_seed(0)
    at, features, labels = random_problem()
    term = LocalAlignment(at, solver=sinkhorn(), **PLAIN).double()
    plan = term.plan(features, labels)
    assert plan.shape == (3, 2, 3, 3)
    assert not plan.requires_grad
    torch.testing.assert_close(plan.sum(3), torch.full((3, 2, 3), 1 / 6).double())
    by_hand = [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 2, 0]]
    torch.testing.assert_close(plan.sum((1, 2)), torch.tensor(by_hand).double())


def test_plan_says_which_position_speaks_of_which_token():
    at = described(2, on_circle(0, 90), [[0, 1]])
    picture = seen(on_circle(0, 90, 90, 0), height=2)
    plan = aligned(at, sinkhorn(0.05)).plan(picture, batch([0]))[0]
    assert plan.argmax(2).tolist() == [[0, 1], [1, 0]]


def test_plan_entropy_is_that_of_a_position_s_token():
    at, labels = described(2, on_circle(0, 90), [[0, 1]]), batch([0])
    alike, apart = seen(on_circle(45, 45)), seen(on_circle(0, 90))
    term = aligned(at, sinkhorn(1.0))
    term(alike, labels)
    assert term.observed["plan_entropy"].item() == pytest.approx(math.log(2), rel=1e-9)
    term(apart, labels)
    other = 1 / (1 + math.e)
    by_hand = -other * math.log(other) - (1 - other) * math.log(1 - other)
    assert term.observed["plan_entropy"].item() == pytest.approx(by_hand, rel=1e-9)


def test_between_person_variance_is_that_of_the_projected_mean():
    at, labels = described(2, on_circle(0, 90), [[0, 1], [0, 1]]), batch([0, 1])
    term = aligned(at)
    term(seen(on_circle(30, 30), on_circle(30, 30)), labels)
    assert term.observed["between_person_variance"].item() == pytest.approx(0, abs=1e-12)
    term(seen(on_circle(0, 60), on_circle(180, 240)), labels)  # means at 30 and 210 degrees
    assert term.observed["between_person_variance"].item() == pytest.approx(1, rel=1e-9)
    assert not term.observed["between_person_variance"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("projection", ["student", "text"])
def test_half_precision_goes_no_further_than_the_map(dtype, projection):
    torch.manual_seed(0)
    at, features, labels = random_problem()
    words = at.guide(TextTargets)
    words = words._replace(embeddings=words.embeddings.float(), words=words.words.float())
    term = LocalAlignment(
        at._replace(guides=(words,)), solver=sinkhorn(), **{**PLAIN, "projection": projection}
    )
    maps = features.map.to(dtype)
    plain = term(features._replace(map=maps.float()), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = term(features._replace(map=maps), labels)
        plan = term.plan(features._replace(map=maps), labels)
    assert loss.dtype == plan.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=0, atol=0)


def test_a_position_without_any_feature_costs_one_and_breaks_nothing():
    at = described(2, on_circle(0), [[0]])
    point = torch.zeros(2, 2).double().requires_grad_()
    loss = aligned(at)(seen(point), batch([0]))
    loss.backward()
    assert loss.item() == 1
    assert torch.isfinite(point.grad).all()


@pytest.mark.parametrize(
    ("name", "solver"),
    [("local", Sinkhorn), ("local_geomloss", GeomLoss), ("local_unbalanced", UnbalancedSinkhorn)],
)
def test_every_config_of_local_guidance_builds_its_solver_and_trains(tmp_path, name, solver):
    (tmp_path / "root.yaml").write_text("defaults: [{loss: []}]\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        node = compose("root", [f"hydra.searchpath=[file://{CONF}]", f"loss=[{name}]"]).loss
    assert list(node) == ["local"]
    at, features, labels = random_problem()
    torch.manual_seed(0)
    term = instantiate(node.local.term)(at).double()
    assert isinstance(term.solver, solver)
    assert term.solver.eps == 0.1
    step = torch.optim.SGD(term.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        step.zero_grad()
        losses.append(term(features, labels))
        losses[-1].backward()
        step.step()
    assert 0 < losses[-1] < losses[0] - 0.1


def test_term_without_words_is_a_defect_of_the_program():
    assert LocalAlignment.needs == {TextTargets}
    with pytest.raises(ValueError, match="TextTargets"):
        LocalAlignment(dimensions(2, 2), solver=sinkhorn(), **PLAIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": "both"}, "projection=both is unknown; choose student or text"),
        (
            {"positions": "norm"},
            r"positions=norm is unknown; choose uniform or activation; did you mean uniform\?",
        ),
        ({"tokens": "sure"}, "tokens=sure is unknown; choose uniform or margin"),
    ],
)
def test_options_that_are_none_of_the_choices_are_refused(options, message):
    at = described(2, on_circle(0), [[0]])
    with pytest.raises(InputError, match=f"^LocalAlignment: {message}$"):
        LocalAlignment(at, solver=sinkhorn(), **{**PLAIN, **options})


def test_someone_without_any_token_is_refused_and_named():
    at = described(2, on_circle(0, 90), [[0, 1], [-1, -1], [1, -1]])
    with pytest.raises(InputError, match=r"1 of 3 people have no text token, the first is number 1"):
        LocalAlignment(at, solver=sinkhorn(), **PLAIN)


def test_one_word_cannot_be_centred():
    at = described(2, on_circle(0), [[0]])
    with pytest.raises(InputError, match="vocabulary of one word; set centre=none"):
        LocalAlignment(at, solver=sinkhorn(), **{**PLAIN, "centre": "vocabulary"})
