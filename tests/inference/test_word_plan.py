import numpy as np
import ot
import pytest
import torch
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.inference.model import ReidModel
from clip3dreid.inference.word_plan import plans_of_maps, word_plans
from clip3dreid.loss.transport import Sinkhorn
from clip3dreid.model.student import Student

from .models import CARD, GROUPS, HEADS, HEIGHT, PLAIN, WIDTH, noise


@pytest.fixture(scope="module")
def model(student: Student) -> ReidModel:
    return ReidModel(student, CARD, HEADS)


def test_words_are_the_best_of_each_group_and_have_as_much_mass_each(model: ReidModel) -> None:
    picture = noise(3, 90, 41)
    (plan,) = word_plans(model, picture)
    described = model.describe(picture)[0]
    assert plan.words == tuple((group, words[0].word) for group, words in described.items())
    assert plan.mass.shape[0] == len(GROUPS)
    torch.testing.assert_close(plan.mass.mean((1, 2)), torch.ones(len(GROUPS)))


def test_the_plan_is_that_of_another_solver(model: ReidModel) -> None:
    picture = noise(4, HEIGHT, WIDTH)
    (plan,) = word_plans(model, picture, solver=Sinkhorn(eps=0.1, iterations=2000, tolerance=1e-6))
    with torch.no_grad():
        maps = model.student(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255).map
        head = model.heads["joint"]
        positions = F.normalize(head(maps.flatten(2).mT), dim=2)[0].double().numpy()
    flat = [(group, word) for group, words in GROUPS.items() for word in words]
    rows = [flat.index(pair) for pair in plan.words]
    words = F.normalize(HEADS["joint.words"][rows] - HEADS["joint.centre"], dim=1).double().numpy()
    even = np.full(len(positions), 1 / len(positions)), np.full(len(rows), 1 / len(rows))
    shares = ot.sinkhorn(*even, 1 - positions @ words.T, reg=0.1, stopThr=1e-12, numItermax=10_000)
    wanted = (shares / shares.sum(0) * len(positions)).T.reshape(plan.mass.shape)
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(plan.mass.numpy(), wanted, atol=1e-3)


def test_maps_of_a_look_have_the_plans_of_its_pictures(model: ReidModel) -> None:
    pictures = [noise(number, HEIGHT, WIDTH) for number in range(3)]
    seen = model.look(pictures, maps=True)
    assert seen.map is not None
    assert model.look(pictures).map is None
    for plan, wanted in zip(plans_of_maps(model, seen.map), word_plans(model, pictures), strict=True):
        assert plan.words == wanted.words
        torch.testing.assert_close(plan.mass, wanted.mass)


def test_a_model_without_words_is_refused(student: Student) -> None:
    with pytest.raises(InputError, match="mute has not learnt words"):
        word_plans(ReidModel(student, PLAIN, {}, name="mute"), noise(0, HEIGHT, WIDTH))


def test_several_pictures_have_the_plans_of_each_with_uniform_masses_on_both_sides(model: ReidModel) -> None:
    pictures = [noise(number, HEIGHT, WIDTH) for number in range(3)]
    precise = Sinkhorn(eps=0.1, iterations=200, tolerance=1e-4)
    together = word_plans(model, pictures, solver=precise)
    assert len(together) == 3
    for plan, picture in zip(together, pictures, strict=True):
        (alone,) = word_plans(model, picture, solver=precise)
        assert plan.words == alone.words
        torch.testing.assert_close(plan.mass, alone.mass, atol=1e-3, rtol=0)
        length, high, wide = plan.mass.shape
        shares = plan.mass / (length * high * wide)
        torch.testing.assert_close(shares.sum((1, 2)), torch.full((length,), 1 / length), atol=1e-6, rtol=0)
        even = torch.full((high, wide), 1 / (high * wide))
        torch.testing.assert_close(shares.sum(0), even, atol=2e-4, rtol=0)
