"""Convert weights of other programs, and checkpoints of ours, to a file to start from or to evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number
from clip3dreid.model.build import build
from clip3dreid.model.card import MOST_PIXELS, valid_card
from clip3dreid.model.places import own_weights
from clip3dreid.model.student import Student
from clip3dreid.model.weights import build_student, load_pretrained, read_checkpoint, save_weights


class Converted(NamedTuple):
    """What a conversion wrote."""

    out: Path
    tensors: int
    complete: bool
    """Whether it can be evaluated as it is; a backbone alone is something for a training to start from."""


def convert(
    source: Path,
    out: Path,
    student: Mapping[str, Any],
    *,
    height: int,
    width: int,
    trusted: Sequence[str] = (),
) -> Converted:
    """Write weights as safetensors, with a card.

    Args:
        source: a checkpoint of ours, which knows its student and its pictures, or weights of another program.
        out: the file to write; it may not exist.
        student: the network that weights of another program are for, as plain data: `_target_` and arguments.
        height: H, in pixels, of the pictures that those weights are evaluated with.
        width: W, in pixels.
        trusted: packages of the user's own whose classes student or checkpoint may name.

    Raises:
        InputError: if the file cannot be read, does not fit, `out` is there already or ends in something else than
            `.safetensors`, or a size is no whole number from 1 to `model.card.MOST_PIXELS`.
    """
    if out.exists():
        raise InputError(f"{out} is there already; delete it or choose another out")
    for key, pixels in (("height", height), ("width", width)):
        check_number(key, pixels, Range(1, MOST_PIXELS), whole=True)
    path = own_weights(source)
    checkpoint = read_checkpoint(path) if path.is_file() else None
    if checkpoint is not None and checkpoint.card is not None:
        ours = build_student(valid_card(checkpoint.card, path), checkpoint.state, path, trusted)
        tensors = ours.state_dict() | {f"heads.{name}": value for name, value in checkpoint.heads.items()}
        save_weights(tensors, checkpoint.card, out)
        return Converted(out, len(tensors), complete=True)
    network: Student = build(student, trusted)
    # Only what the file brought: a neck at its random start is no part of a checkpoint.
    loaded = load_pretrained(network, path)
    tensors = {name: tensor for name, tensor in network.state_dict().items() if name in loaded}
    card = {"student": dict(student), "height": height, "width": width, "data": []}
    save_weights(tensors, card, out)
    # Files from before PyTorch 0.4.1 do not count batches.
    absent = network.state_dict().keys() - loaded
    complete = all(name.endswith(".num_batches_tracked") for name in absent)
    return Converted(out, len(tensors), complete)
