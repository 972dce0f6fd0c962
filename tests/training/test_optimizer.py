from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from clip3dreid.errors import InputError
from clip3dreid.training.optimizer import (
    by_rule,
    clipped_by_scaler,
    cosine,
    multistep,
    optimise,
    restore_settings,
    settings_of,
    step,
)


def test_multistep_multiplies_at_each_milestone() -> None:
    rates = [multistep(epoch, milestones=[20, 40], gamma=0.1) for epoch in (0, 19, 20, 39, 40, 59)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warmup_rises_linearly_to_the_full_rate() -> None:
    rates = [multistep(epoch, milestones=[9], gamma=0.5, warmup_epochs=4) for epoch in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert [cosine(e, epochs=8, warmup_epochs=4) for e in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_the_floor() -> None:
    assert cosine(0, epochs=10) == 1
    assert cosine(5, epochs=10, floor=0.2) == pytest.approx(0.6)
    assert cosine(10, epochs=10, floor=0.2) == pytest.approx(0.2)
    assert cosine(99, epochs=10, floor=0.2) == pytest.approx(0.2)


@pytest.mark.parametrize(("every", "gamma"), [(10, 0.85), (1, 0.5), (7, 1.0)])
def test_step_is_the_step_schedule_of_torch(every: int, gamma: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, every, gamma)
    for epoch in range(100):
        assert step(epoch, every=every, gamma=gamma) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_step_warms_up_and_refuses_steps_of_no_epoch() -> None:
    rates = [step(epoch, every=2, gamma=0.5, warmup_epochs=2) for epoch in range(5)]
    assert rates == pytest.approx([0.5, 1.0, 0.5, 0.5, 0.25])
    with pytest.raises(InputError, match=r"optimizer\.schedule\.every=0 must be a whole number, 1 or more"):
        step(0, every=0, gamma=0.5)


def test_unscheduled_parameters_keep_their_rate_while_the_others_decay() -> None:
    body, head, frozen = (nn.Parameter(torch.ones(1)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer, schedule = optimise(
        [body, head, frozen],
        [head],
        partial(torch.optim.SGD, lr=1.0),
        partial(multistep, milestones=[1], gamma=0.1),
    )
    for _ in range(2):
        optimizer.zero_grad()
        (body + head).sum().backward()
        optimizer.step()
        schedule.step()
    # Two steps of size 1 for the head; 1 and then 0.1 for the rest.
    assert head.item() == pytest.approx(-1.0)
    assert body.item() == pytest.approx(-0.1)
    assert frozen.item() == 1


def test_without_unscheduled_parameters_there_is_one_group() -> None:
    body = nn.Parameter(torch.ones(1))
    optimizer, _ = optimise([body], [], partial(torch.optim.SGD, lr=1.0), lambda _: 1.0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


@pytest.mark.parametrize(("before", "now", "device"), [(None, True, "meta"), (True, None, "cpu")])
def test_a_run_goes_on_with_a_step_that_is_fused_or_not_as_it_is_told_now(
    before: bool | None, now: bool | None, device: str
) -> None:
    def made(fused: bool | None, device: str) -> tuple[nn.Parameter, torch.optim.Optimizer, Any]:
        weight = nn.Parameter(torch.ones(2, device=device))
        build = partial(torch.optim.Adam, lr=0.1, fused=fused)
        return weight, *optimise([weight], [], build, lambda _: 1.0)

    weight, optimizer, _ = made(before, "cpu")
    weight.grad = torch.ones(2)
    optimizer.step()
    other, resumed, schedule = made(now, device)
    own = settings_of(resumed)
    resumed.load_state_dict(optimizer.state_dict())
    restore_settings(schedule, own, 1)
    assert resumed.param_groups[0]["fused"] is now
    # A fused step reads its count of steps where the weights are: here a device that is no CPU.
    assert resumed.state[other]["step"].device.type == device
    other.grad = torch.ones_like(other)
    resumed.step()


def test_a_fused_step_leaves_no_place_for_clipping_scaled_gradients() -> None:
    assert clipped_by_scaler({"precision": "16-mixed", "gradient_clip_val": 1.0})
    assert not clipped_by_scaler({"precision": "16-mixed", "gradient_clip_val": None})
    assert not clipped_by_scaler({"precision": "bf16-mixed", "gradient_clip_val": 1.0})


@pytest.mark.parametrize(("rule", "rate"), [("linear", 0.8), ("sqrt", 0.1 * 8**0.5), (None, 0.1)])
def test_the_rate_follows_the_batch_by_the_rule_that_is_asked_for(rule: str | None, rate: float) -> None:
    make = by_rule(partial(torch.optim.SGD, lr=0.1, momentum=0.9), rule, batch=512, base_batch=64)
    (group,) = make([nn.Parameter(torch.ones(1))]).param_groups
    assert group["lr"] == pytest.approx(rate)
    assert group["momentum"] == 0.9


def test_a_rule_without_a_rate_to_start_from_is_refused() -> None:
    with pytest.raises(InputError, match=r"lr_rule=sqrt needs .*optimizer\.optimizer\.lr"):
        by_rule(partial(torch.optim.Adam), "sqrt", batch=128, base_batch=64)
    with pytest.raises(InputError, match="lr_rule=cubic is unknown; choose linear or sqrt"):
        by_rule(partial(torch.optim.Adam, lr=0.1), "cubic", batch=128, base_batch=64)
