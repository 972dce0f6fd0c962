"""A shape teacher from nothing: its loss against torch's, its judgement by hand, a training that is resumed."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clip3dreid.data.bodies import BodyTable
from clip3dreid.data.images import TestView
from clip3dreid.errors import InputError
from clip3dreid.io.pictures import read_rgb
from clip3dreid.model.shape_teacher import ShapeAnswers, ShapeTeacher
from clip3dreid.training.shape_teacher import correlations, joined, pretrain_shape_teacher, shape_loss
from clip3dreid.training.teacher_settings import ShapePretrainingSettings
from tests.conftest import Command, in_this_process
from tests.model.test_shape_teacher import STUDENT

TINY = ("trainer=cpu", "epochs=2", "batch=8", "train_view.height=32", "train_view.width=16")
SMALLER = ("model.student.backbone.width=4", "optimizer.schedule.warmup_epochs=1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four test people, dressed, four pictures of 32x16 pixels each."""
    out = tmp_path_factory.mktemp("worlds") / "dressed"
    sizes = ["train_people=8", "test_people=4", "height=32", "width=16", "antialias=1", "workers=0"]
    how = ["layout=bodies", "layout.dress=dressed", *sizes, f"out={out}"]
    with in_this_process(out.parent) as run:
        done = run("synthesize", *how)
    assert done.returncode == 0, done.stderr
    return out


def test_without_balance_the_loss_is_the_likelihood_and_with_all_of_it_a_squared_errors_gradient() -> None:
    rng = torch.Generator().manual_seed(0)
    value, spread, target = (torch.randn(5, 3, generator=rng, dtype=torch.float64) for _ in range(3))
    said = ShapeAnswers(value.requires_grad_(), spread)
    likelihood = F.gaussian_nll_loss(value, target, spread.exp())
    torch.testing.assert_close(shape_loss(said, target, 0.0), likelihood)
    (found,) = torch.autograd.grad(shape_loss(said, target, 1.0), value)
    (squared,) = torch.autograd.grad(F.mse_loss(value, target) / 2, value)
    torch.testing.assert_close(found, squared)


def test_the_variance_that_the_loss_asks_for_is_the_squared_error() -> None:
    spread = torch.zeros(1, 1, requires_grad=True)
    for balance in (0.0, 0.5):
        at = torch.full((1, 1), float(np.log(4.0)), requires_grad=True)
        (gradient,) = torch.autograd.grad(
            shape_loss(ShapeAnswers(torch.tensor([[2.0]]), at), torch.zeros(1, 1), balance), at
        )
        assert gradient.item() == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(
        shape_loss(ShapeAnswers(torch.tensor([[2.0]]), spread), torch.zeros(1, 1), 0.5), spread
    )
    assert gradient.item() < 0


class Brightness(nn.Module):
    """Says the mean of red and the negative one of green."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> ShapeAnswers:
        means = images.mean((2, 3))
        value = torch.stack([means[:, 0], -means[:, 1]], 1)
        return ShapeAnswers(value, torch.zeros_like(value))


def test_correlations_are_those_of_peoples_mean_answers(world: Path) -> None:
    files = sorted(world.glob("test/*.jpg"))
    body = np.array([int(path.name.split("_")[0]) for path in files])
    body -= body.min()
    pixels = [read_rgb(path).astype(float).mean((0, 1)) / 255 for path in files]
    red, green = (
        np.array([np.mean([p[c] for p, b in zip(pixels, body, strict=True) if b == who]) for who in range(4)])
        for c in (0, 1)
    )
    betas = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)[body]
    table = BodyTable(files, betas, body)
    found = correlations(Brightness(), table, TestView(32, 16), (1, 2))  # type: ignore[arg-type]
    true = betas[np.unique(body, return_index=True)[1]]
    assert found == pytest.approx(
        [np.corrcoef(red, true[:, 1])[0, 1], np.corrcoef(-green, true[:, 2])[0, 1]], abs=1e-3
    )


def test_people_of_several_folders_stay_apart() -> None:
    one = BodyTable([Path("a"), Path("b")], np.zeros((2, 3), np.float32), np.array([0, 1]))
    other = BodyTable([Path("c"), Path("d")], np.ones((2, 3), np.float32), np.array([0, 0]))
    both = joined([one, other])
    assert both.files == [Path(name) for name in "abcd"]
    assert both.body.tolist() == [0, 1, 2, 2]
    assert both.betas[:, 0].tolist() == [0, 0, 1, 1]


def test_the_command_trains_goes_on_and_tells_how_well_it_answers(
    world: Path, tmp_path: Path, invoke: Command
) -> None:
    keys = (f"worlds={world}", *TINY, *SMALLER)
    whole = invoke("pretrain_shape_teacher", "out=whole", *keys)
    assert whole.returncode == 0, whole.stderr
    assert "correlation with the truth on people not seen" in whole.stdout
    assert "model.shape_teacher.path=whole/shape_teacher" in whole.stdout
    teacher = ShapeTeacher(str(tmp_path / "whole" / "shape_teacher"), name="t")
    assert teacher.card.coefficients == tuple(range(1, 10))
    assert len(teacher.card.rest) == 10
    card = json.loads((tmp_path / "whole" / "shape_teacher" / "card.json").read_text())
    assert (card["trained_on"]["people"], card["unseen"]["people"]) == (8, 4)
    assert len(card["unseen"]["correlation"]) == 9
    again = invoke("pretrain_shape_teacher", "out=whole", *keys)
    assert again.returncode == 0, again.stderr
    other = invoke("pretrain_shape_teacher", "out=whole", *keys, "seed=2")
    assert other.returncode == 2
    assert "holds a training with another seed" in other.stderr


def test_the_control_tells_people_apart_by_the_same_pictures(
    world: Path, tmp_path: Path, invoke: Command
) -> None:
    done = invoke("pretrain_shape_teacher", f"worlds={world}", "out=run", "learns=identity", *TINY, *SMALLER)
    assert done.returncode == 0, done.stderr
    assert "correlation" not in done.stdout
    teacher = ShapeTeacher(str(tmp_path / "run" / "shape_teacher"), name="t")
    assert teacher.card.coefficients == ()
    assert teacher.width == 2 * teacher.network.student.width


def call(world: Path, out: Path, **changes: Any) -> Any:
    from clip3dreid.data.images import TrainView

    view = partial(TrainView, 32, 16, enlarge=1.0, enlarge_probability=0.0, flip_probability=0.5)
    parts: dict[str, Any] = {
        "student": STUDENT,
        "body": {"name": "anny_light", "sha256": "0", "num_betas": 10},
        "train_view": view(
            erase_probability=0.0, erase_area=(0.1, 0.2), erase_aspect=(1, 1), erase_fill=(0, 0, 0), extra=()
        ),
        "optimizer": torch.optim.SGD,
        "schedule": lambda epoch: 1.0,
        "trainer": None,
    }
    settings = {name: changes.pop(name) for name in ("batch", "skipped") if name in changes}
    return pretrain_shape_teacher([world], out, ShapePretrainingSettings(**settings), **(parts | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"body": {"name": "mine", "sha256": "0", "num_betas": 7}},
            r"have 10 shape coefficients, body mine has 7",
        ),
        ({"skipped": 10}, r"skipped=10; give the body they were rendered with"),
        ({"batch": 1000}, r"batch=1000 does not fit 32 pictures"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(
    changes: dict[str, Any], message: str, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        call(world, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_people_without_shapes_are_told(tmp_path: Path, invoke: Command) -> None:
    done = invoke("pretrain_shape_teacher", f"worlds={tmp_path}", "out=run", *TINY)
    assert done.returncode == 2
    assert "(worlds): make them with clip3dreid synthesize" in done.stderr
    assert "layout.dress=dressed" in done.stderr
    assert not (tmp_path / "run" / "shape_teacher").exists()
