"""Choose the device that something runs on."""

from __future__ import annotations

from clip3dreid.errors import InputError
from clip3dreid.io.files import reason_of

AUTO = "auto"


def chosen_device(name: str) -> str:
    """Return the device that a name stands for, as torch has it.

    Args:
        name: `cpu`, `cuda`, `cuda:1`; or `auto`, the first GPU where there is one and else the CPU.

    Raises:
        InputError: if there is no such device here.
    """
    import torch  # here, so that a command's keys are checked without it

    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        there = device.type != "meta"
        why = "it holds no values"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there, why = False, reason_of(error)
    if not there:
        cards = torch.cuda.device_count()
        has = ", ".join(["cpu", *(f"cuda:{card}" for card in range(cards))])
        raise InputError(f"device={name} cannot be used ({why}); choose auto, or one of what is here: {has}")
    return name
