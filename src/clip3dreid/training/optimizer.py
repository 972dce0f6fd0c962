"""Make learning-rate schedules, functions of the epoch, and parameter groups."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, choose

log = logging.getLogger(__name__)


def constant(epoch: int) -> float:
    """Return 1: the learning rate stays as it is."""
    return 1.0


def multistep(epoch: int, *, milestones: Sequence[int], gamma: float, warmup_epochs: int = 0) -> float:
    """Return the multiplier of the learning rate: times `gamma` at each milestone, after a linear warm-up.

    Args:
        epoch: 0-based.
        milestones: epochs from which on the rate is multiplied once more.
        gamma: factor at each milestone.
        warmup_epochs: epochs over which the rate rises linearly to its value; 0 starts at full rate.
    """
    warmup = min(1.0, (epoch + 1) / warmup_epochs) if warmup_epochs else 1.0
    return float(warmup * gamma ** sum(epoch >= milestone for milestone in milestones))


def step(epoch: int, *, every: int, gamma: float, warmup_epochs: int = 0) -> float:
    """Return the multiplier of the learning rate: times `gamma` after each `every` epochs, after a linear warm-up.

    Args:
        epoch: 0-based.
        every: epochs from one lowering to the next, 1 or more.
        gamma: factor at each.
        warmup_epochs: epochs over which the rate rises linearly to its value; 0 starts at full rate.

    Raises:
        InputError: if `every` is less than 1.
    """
    check_number("optimizer.schedule.every", every, Range(1), whole=True)
    return multistep(
        epoch, milestones=range(every, epoch + 1, every), gamma=gamma, warmup_epochs=warmup_epochs
    )


def cosine(epoch: int, *, epochs: int, warmup_epochs: int = 0, floor: float = 0.0) -> float:
    """Return the multiplier of the learning rate: half a cosine from 1 to `floor`, after a linear warm-up.

    Args:
        epoch: 0-based.
        epochs: length of the training, at whose end the rate would reach `floor`.
        warmup_epochs: epochs over which the rate rises linearly; 0 starts at full rate.
        floor: 0..1, share of the rate that stays.
    """
    if epoch < warmup_epochs:
        return (epoch + 1) / warmup_epochs
    progress = (epoch - warmup_epochs) / max(1, epochs - warmup_epochs)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


RULES: dict[str, Callable[[float], float]] = {"linear": lambda times: times, "sqrt": math.sqrt}
"""Rule -> what the learning rate is multiplied by where the batch is so many times as large."""


def by_rule(
    optimizer: Callable[..., Optimizer], rule: str | None, *, batch: int, base_batch: int
) -> Callable[..., Optimizer]:
    """Return an optimiser whose learning rate follows the batch.

    Args:
        optimizer: makes the optimiser; a `partial` with the rate for `base_batch` pictures as `lr`.
        rule: `linear`: the rate is as many times larger as the batch, for SGD; `sqrt`: the square root of that, for
            Adam, whose betas and epsilon stay as they are; None: the rate stays.
        batch: pictures to a step of the optimiser.
        base_batch: those that the rate was found for.

    Raises:
        InputError: if the rule is unknown, or the optimiser has no `lr` filled in.

    Source: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.1 (section 2.2 warms up with it);
    Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", NeurIPS 2022, whose rule moves
    Adam's betas and epsilon too.
    """
    if rule is None:
        return optimizer
    choose("lr_rule", rule, RULES)
    rate = getattr(optimizer, "keywords", {}).get("lr")
    if rate is None:
        raise InputError(f"lr_rule={rule} needs the rate that it starts from; give optimizer.optimizer.lr")
    scaled = rate * RULES[rule](batch / base_batch)
    log.info(
        "lr_rule=%s: %g for batches of %d is %.4g for batches of %d", rule, rate, base_batch, scaled, batch
    )
    return partial(optimizer, lr=scaled)


def optimise(
    parameters: Iterable[nn.Parameter],
    unscheduled: Iterable[nn.Parameter],
    optimizer: Callable[[list[dict[str, list[nn.Parameter]]]], Optimizer],
    schedule: Callable[[int], float],
) -> tuple[Optimizer, LambdaLR]:
    """Make an optimiser with two groups: the scheduled parameters, and those whose rate stays as it is.

    The base recipe keeps the clothes classifier at its first learning rate while everything else decays.

    Args:
        parameters: all trainable parameters.
        unscheduled: those of them that the schedule must leave alone.
        optimizer: makes the optimiser from parameter groups.
        schedule: multiplier of the learning rate for a 0-based epoch.

    Raises:
        InputError: if the optimiser takes none of its settings, such as a negative rate.
    """
    constant = {id(parameter) for parameter in unscheduled}
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        ([parameter for parameter in trainable if id(parameter) not in constant], schedule),
        ([parameter for parameter in trainable if id(parameter) in constant], lambda _: 1.0),
    ]
    groups = [group for group in groups if group[0]]
    try:
        built = optimizer([{"params": members} for members, _ in groups])
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value}" for key, value in getattr(optimizer, "keywords", {}).items())
        raise InputError(f"optimizer.optimizer ({given}) refuses its settings: {error}") from error
    return built, LambdaLR(built, [multiplier for _, multiplier in groups])


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return each parameter group without its parameters: `initial_lr` is in it once a schedule has been made."""
    return [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]


def restore_settings(schedule: LambdaLR, settings: Sequence[Mapping[str, Any]], epoch: int) -> None:
    """Give an optimiser whose state came from a checkpoint the settings that it was built with, and its rate.

    A checkpoint holds the settings of the run that wrote it, and the rate that its schedule had for the next epoch; a
    resumed run may have other ones.

    Args:
        schedule: of the optimiser.
        settings: of each parameter group, as `settings_of` found them before anything was restored.
        epoch: 0-based: the one that is trained next.
    """
    schedule.base_lrs = [group["initial_lr"] for group in settings]
    schedule.last_epoch = epoch
    for group, own, multiplier in zip(
        schedule.optimizer.param_groups, settings, schedule.lr_lambdas, strict=True
    ):
        group.update(own)
        group["lr"] = own["initial_lr"] * multiplier(epoch)
        _place_steps(schedule.optimizer, group)
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


def _place_steps(optimizer: Optimizer, group: Mapping[str, Any]) -> None:
    """Put the counts of steps where the group's kind of step reads them; a checkpoint has them where its own did."""
    on_device = bool(group.get("fused") or group.get("capturable"))
    for parameter in group["params"]:
        state = optimizer.state.get(parameter, {})
        if isinstance(count := state.get("step"), Tensor):
            state["step"] = count.to(parameter.device if on_device else "cpu")


def clipped_by_scaler(arguments: Mapping[str, Any]) -> bool:
    """Return whether a trainer scales losses and clips gradients, which a fused step leaves no place for.

    Args:
        arguments: of Lightning's trainer.
    """
    scaled = str(arguments.get("precision")) in ("16", "16-mixed")
    return scaled and arguments.get("gradient_clip_val") is not None
