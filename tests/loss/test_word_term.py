import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.inference.heads import Head
from clip3dreid.loss.local import LocalAlignment
from clip3dreid.loss.local_contrast import LocalContrast
from clip3dreid.loss.transport import Sinkhorn
from clip3dreid.loss.word_term import group_means, masses, plan_entropy, position_masses, token_masses
from clip3dreid.types import Dimensions, TextTargets

from .cases import batch, dimensions, on_circle, random_embedding, seen

SOLVER = Sinkhorn(eps=0.1, iterations=50, tolerance=0)
PLAIN = {"positions": "uniform", "tokens": "uniform"}
WORDS = F.normalize(random_embedding(5, 4, seed=3) + 2, dim=1)
SIZES = (2, 3)


def told(words=WORDS, sizes=SIZES, **changes) -> TextTargets:
    """Two people with a word of each of two groups, the first of two words."""
    index = torch.tensor([[0, 3], [1, 4]])
    given = TextTargets(words, index, torch.ones(2, 2), "person", words, sizes)
    return given._replace(**changes)


def of(targets: TextTargets, channels: int = 4) -> Dimensions:
    return dimensions(channels, len(targets.tokens))._replace(guides=(targets,))


def aligned(targets: TextTargets, centre) -> LocalAlignment:
    return LocalAlignment(of(targets), solver=SOLVER, projection="student", centre=centre, **PLAIN)


TERMS = {
    "alignment": lambda at: LocalAlignment(at, solver=SOLVER, projection="student", centre="group", **PLAIN),
    "contrast": lambda at: LocalContrast(
        at, solver=SOLVER, centre="group", temperature=0.1, learn_temperature=False, **PLAIN
    ),
}


def test_a_word_of_a_group_of_two_is_the_difference_of_the_opposites():
    table = aligned(told(), "group").table.numpy()
    words = WORDS.numpy()
    difference = (words[0] - words[1]) / np.linalg.norm(words[0] - words[1])
    np.testing.assert_allclose(table[0], difference, rtol=1e-12)
    np.testing.assert_allclose(table[1], -difference, rtol=1e-12)
    for word in (2, 3, 4):
        seen_from_its_group = words[word] - words[2:].mean(0)
        np.testing.assert_allclose(
            table[word], seen_from_its_group / np.linalg.norm(seen_from_its_group), rtol=1e-12
        )


def test_old_configs_say_true_for_the_vocabulary_and_false_for_none():
    for old, new in ((True, "vocabulary"), (False, "none")):
        one, other = aligned(told(), old), aligned(told(), new)
        for name in ("table", "words", "centre"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert not torch.equal(aligned(told(), True).table, aligned(told(), False).table)


@pytest.mark.parametrize("name", TERMS)
def test_what_is_shipped_scores_words_by_their_directions_and_sentences_from_the_vocabulary(name):
    torch.manual_seed(0)
    targets = told(WORDS.float(), embeddings=WORDS.float())
    term = TERMS[name](of(targets))
    heads = term.heads()
    assert set(heads) == {"joint.weight", "joint.bias", "joint.centre", "joint.words"}
    assert not any(tensor.requires_grad for tensor in heads.values())
    torch.testing.assert_close(heads["joint.centre"], targets.words.mean(0))
    head = Head({key.removeprefix("joint."): values for key, values in heads.items()})
    joint = F.normalize(torch.randn(3, 4), dim=1)
    within = torch.cat([part - part.mean(0) for part in targets.words.split(SIZES)])
    torch.testing.assert_close(head.scores(joint), joint @ F.normalize(within, dim=1).T)


@pytest.mark.parametrize("name", TERMS)
def test_every_term_learns_what_words_usually_score_and_keeps_the_words_out_of_checkpoints(name):
    torch.manual_seed(0)
    term = TERMS[name](of(told(WORDS.float(), embeddings=WORDS.float())))
    features, labels = seen(random_embedding(2, 4).float(), 4), batch([0, 1])
    term(features, labels)
    joint = F.normalize(
        torch.stack(
            [term.head.weight.flatten(1) @ picture.mean((1, 2)) + term.head.bias for picture in features.map]
        ),
        dim=1,
    )
    scores = joint.detach() @ term.table.T
    heads = term.heads()
    torch.testing.assert_close(heads["joint.usual"], scores.mean(0))
    torch.testing.assert_close(heads["joint.spread"], scores.std(0, correction=0), rtol=1e-3, atol=1e-4)
    assert set(term.state_dict()) == {"head.weight", "head.bias", "seen", "usual", "square"}


def test_masses_are_shares_of_what_is_there_and_uniform_where_nothing_is():
    weights = torch.tensor([[1.0, 3, 4], [0, 0, 9]])
    present = torch.tensor([[True, True, False]] * 2)
    assert masses(weights, present).tolist() == [[0.25, 0.75, 0], [0.5, 0.5, 0]]
    index = torch.tensor([[0, 1, -1]] * 2)
    assert torch.equal(token_masses(weights, index, "margin"), masses(weights, present))
    assert token_masses(weights, index, "uniform").tolist() == [[0.5, 0.5, 0]] * 2


def test_activation_is_the_length_above_the_shortest_position():
    maps = torch.tensor([[[[3.0, 0]], [[4, 2]]], [[[1.0, 1]], [[0, 0]]]])  # lengths 5 and 2; 1 and 1
    assert position_masses(maps, "activation").tolist() == [[1, 0], [0.5, 0.5]]
    assert position_masses(maps, "uniform").tolist() == [[0.5, 0.5]] * 2


def test_plan_entropy_is_that_of_a_row_s_shares():
    plan = torch.tensor([[[0.25, 0.25], [0.5, 0]]])
    assert plan_entropy(plan).item() == pytest.approx((0.5 * np.log(2) + 0) / 1)


def test_group_means_are_those_of_each_group():
    words = on_circle(0, 90, 0, 120, 240)
    means = group_means(told(words, embeddings=words), "X")
    torch.testing.assert_close(means[:2], torch.tensor([[0.5, 0.5]] * 2).double())
    torch.testing.assert_close(means[2:], torch.zeros(3, 2).double())


@pytest.mark.parametrize(
    ("centre", "targets", "message"),
    [
        ("words", told(), "centre=words is unknown; choose vocabulary, group or none"),
        ("group", told(embeddings=WORDS.flip(0)), r"those of sentences; set labels\.tokens=descriptor"),
        ("group", told(sizes=()), "the groups of 5 words are not known"),
        ("group", told(sizes=(4, 1)), "group number 1 has one word"),
    ],
)
def test_centres_that_there_are_not_are_refused(centre, targets, message):
    with pytest.raises(InputError, match=f"^LocalAlignment.*{message}"):
        aligned(targets, centre)
