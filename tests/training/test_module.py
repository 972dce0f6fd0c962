"""What the modules promise where several processes evaluate one model."""

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import nn

from clip3dreid.errors import InputError
from clip3dreid.retrieval.protocol import Protocol, nothing
from clip3dreid.retrieval.rerank import QueryExpansion
from clip3dreid.training.evaluation_module import EvaluationModule, limits, share_buffers
from clip3dreid.training.module import ReidModule
from tests.processes import side_by_side


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    norm = nn.BatchNorm1d(3)
    # The statistics of a last training step, seen by this process alone.
    norm(torch.full((4, 3), float(rank + 1)) + torch.arange(4.0)[:, None])
    share_buffers(norm)
    torch.save(norm.state_dict(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_all_processes_evaluate_with_the_first_ones_running_statistics(tmp_path: Path) -> None:
    side_by_side(_process, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    # Mean 1 + 1.5 of the first process's step, with momentum 0.1.
    torch.testing.assert_close(first["running_mean"], torch.full((3,), 0.25))
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Training(EvaluationModule):
    """What `ReidModule` reports, without what it trains."""

    refined = ReidModule.refined


@pytest.mark.parametrize(
    ("kind", "stages"),
    [(EvaluationModule, {"val": True, "test": True}), (Training, {"val": False, "test": True})],
)
def test_training_reranks_in_tests_alone_and_evaluation_wherever_it_is_asked(
    kind: type[EvaluationModule], stages: dict[str, bool]
) -> None:
    table = pl.DataFrame({"path": list("uvwxyz"), "person": list("aabbcc")})
    data = SimpleNamespace(query=table[:4], gallery=table)
    features = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    protocols = {"all": Protocol("all", nothing, "")}
    for keys, name in (({"rerank": QueryExpansion(k=2)}, "rerank"), ({"open_set": [0.1]}, "tpr_at_fpr")):
        module = kind(nn.Identity(), protocols={}, metric="cosine", flip=False, **keys)
        for stage, expected in stages.items():
            scores, queries = module._score(data, features, features[:, 0] < 9, protocols, (0, 1), stage)
            assert (scores["all"][name] is not None) == expected
            assert queries["all"]["query"].to_list() == list("uvwx")


@pytest.fixture
def evaluating() -> tuple[EvaluationModule, SimpleNamespace]:
    """A module that has embedded two of three pictures, and the trainer that it asks how that came."""
    module = EvaluationModule(nn.Identity(), protocols={}, metric="euclidean", flip=False)
    trainer = SimpleNamespace(
        sanity_checking=False, limit_test_batches=1.0, limit_val_batches=1.0, fast_dev_run=False
    )
    module._trainer = trainer
    return module, trainer


SET = SimpleNamespace(name="ltcc", files=["a.png", "b.png", "c.png"])


def test_features_that_were_never_computed_are_not_scored(
    evaluating: tuple[EvaluationModule, SimpleNamespace], caplog: pytest.LogCaptureFixture
) -> None:
    module, trainer = evaluating
    assert module._complete(SET, torch.ones(3))
    # As after a loader that lost a part of its pictures.
    with pytest.raises(
        InputError, match=r"1 of 3 pictures of ltcc were never embedded, first b.png.*run it again"
    ):
        module._complete(SET, torch.tensor([1, 0, 1]))
    trainer.limit_test_batches = 1
    with pytest.raises(InputError, match=r"leave trainer\.limit_test_batches=1 out"):
        module._complete(SET, torch.tensor([1, 0, 1]))
    module.trials = True
    assert not module._complete(SET, torch.tensor([1, 0, 1]))
    assert "no score exists" in caplog.text


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, []),
        ({"limit_test_batches": 1.0, "limit_val_batches": None}, []),
        ({"limit_test_batches": 1}, ["trainer.limit_test_batches=1"]),
        ({"limit_val_batches": 0.5}, ["trainer.limit_val_batches=0.5"]),
        ({"fast_dev_run": 2, "limit_test_batches": 2}, ["trainer.fast_dev_run"]),
    ],
)
def test_lightning_s_switches_for_trials_are_known_in_a_config_and_in_a_trainer(
    keys: dict[str, object], found: list[str]
) -> None:
    assert limits(OmegaConf.create(keys)) == found
    assert limits(SimpleNamespace(**keys)) == found


def measuring(every: int, *, shares: object = None, accumulated: int = 1, waiting: bool = False) -> list[int]:
    """Batches of the first 21 in which gradients are measured."""
    losses = SimpleNamespace(shares=shares, waiting=lambda epoch: waiting)
    trainer = SimpleNamespace(accumulate_grad_batches=accumulated)
    found = []
    for batch in range(21):
        module = SimpleNamespace(
            gradient_norms_every=every,
            losses=losses,
            trainer=trainer,
            global_step=batch // accumulated,
            current_epoch=0,
        )
        if ReidModule._measures(module, batch):  # type: ignore[arg-type]
            found.append(batch)
    return found


def test_gradients_are_measured_every_so_many_steps_of_the_optimiser_and_more_often_for_a_share() -> None:
    assert measuring(10) == [0, 10, 20]
    assert measuring(10, shares=object()) == [0, 1, 2, 4, 8, 10, 20]
    # Once a step, however many batches that takes.
    assert measuring(5, accumulated=2) == [0, 10, 20]
    assert measuring(10, waiting=True) == list(range(21))
    assert measuring(0, shares=object(), waiting=True) == []


def test_losses_are_scaled_up_for_measuring_where_the_trainer_does_so() -> None:
    def scale(**plugin: object) -> float:
        trainer = SimpleNamespace(precision_plugin=SimpleNamespace(**plugin))
        return ReidModule._loss_scale(SimpleNamespace(trainer=trainer))  # type: ignore[arg-type]

    assert scale() == scale(scaler=None) == 1
    assert scale(scaler=SimpleNamespace(get_scale=lambda: 1024.0)) == 1024


def test_bad_rates_are_refused_before_anything_is_embedded() -> None:
    with pytest.raises(InputError, match="open_set"):
        EvaluationModule(nn.Identity(), protocols={}, metric="cosine", flip=False, open_set=[2])
