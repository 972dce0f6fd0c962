"""`clip3dreid weights`: what students start from, what a recipe needs, whether it is there; conversion."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.hydra import entry_point
from clip3dreid.config.published import recipes, student_weights
from clip3dreid.config.trust import trusted
from clip3dreid.errors import InputError
from clip3dreid.report.tables import print_table
from clip3dreid.training.checklist import (
    MISSING,
    NOT_GIVEN,
    THERE,
    Item,
    checklist,
    commands,
    no_data,
    own_command,
    to_get,
    weights_state,
)


def _list(weights_dir: str) -> None:
    users = recipes()
    rows = [
        (source, weights_state(Path(source.place).expanduser(), source.sha256))
        for source in student_weights(weights_dir)
    ]
    print_table(
        "Weights that students start from (model/student=NAME; model.pretrained=null: from scratch)",
        ["student", "weights", "state", "recipes (+experiment=…)"],
        [[one.name, one.place, state, ", ".join(users.get(one.name, ()))] for one, state in rows],
    )
    missing = [one for one, state in rows if state.startswith((MISSING, "incomplete"))]
    # Plain lines, so that a command can be copied whole.
    if missing:
        print("To get what is missing, where there is a network:")  # noqa: T201
    for one in missing:
        print(f"  {own_command(one.fetch, one.place) or one.fetch}")  # noqa: T201
    print("All that one recipe needs: clip3dreid weights +experiment=NAME [key=value …]")  # noqa: T201
    if damaged := [one.place for one, state in rows if state.startswith("DAMAGED")]:
        raise InputError(f"{', '.join(damaged)}: checksum wrong; delete and fetch again")


def print_needs(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Prints what one recipe needs, and one block that gets what is missing of it.

    Args:
        cfg: `conf/weights.yaml` or `conf/train.yaml`, composed.
        overrides: what it was composed from.

    Raises:
        InputError: at the end, if a file is damaged.
    """
    items = checklist(cfg, sums=True)
    print_table(
        "What this recipe needs",
        ["what", "key", "place", "MB", "state"],
        [[item.what, item.key, item.place or "-", _size(item), item.state] for item in items],
    )
    given = [f"{item.key}=PATH" for item in items if item.state == NOT_GIVEN]
    train = " ".join([shlex.join(["clip3dreid", "train", *overrides]), *given])
    # Plain lines, so that all of it can be copied at once.
    if lines := commands(items):
        size = f" (about {to_get(items):.0f} MB, as far as known)" if to_get(items) else ""
        print("\n".join([f"To get what is missing{size}:", "", *lines, "", f"Then: {train}"]))  # noqa: T201
    else:
        print(f"Nothing is missing. Then: {train}")  # noqa: T201
    if damaged := [item.place for item in items if item.state.startswith("DAMAGED")]:
        raise InputError(f"{', '.join(damaged)}: checksum wrong; delete and fetch again")


def _size(item: Item) -> str:
    if item.megabytes is None:
        return ""
    # Of what is to come, nobody has counted every byte.
    about = "" if item.state.startswith(THERE) else "about "
    return f"{about}{item.megabytes:.1f}" if item.megabytes < 10 else f"{about}{item.megabytes:.0f}"


def _convert(cfg: DictConfig) -> None:
    # Here, so that a listing needs no torch.
    from hydra.utils import instantiate

    from clip3dreid.model.card import valid_card
    from clip3dreid.model.places import own_weights
    from clip3dreid.model.student import Student
    from clip3dreid.model.weights import build_student, load_pretrained, read_checkpoint, save_weights

    if cfg.out is None:
        raise InputError("out is not set; give the file to write as out=NAME.safetensors")
    out = Path(cfg.out).expanduser()
    if out.exists():
        raise InputError(f"{out} is there already; delete it or choose another out")
    path = own_weights(Path(cfg.convert).expanduser())
    found = read_checkpoint(path) if path.is_file() else None
    if found is not None and found.card is not None:
        # A checkpoint of ours knows its student and its pictures; the config has nothing to add.
        weights = build_student(valid_card(found.card, path), found.state, path, trusted(cfg)).state_dict()
        weights |= {f"heads.{name}": value for name, value in found.heads.items()}
        save_weights(weights, found.card, out)
        print(f"{out}: {len(weights)} tensors, ready to evaluate")  # noqa: T201
        return
    student: Student = instantiate(cfg.model.student)
    # Only what the file brought: a neck at its random start is no part of a checkpoint.
    loaded = load_pretrained(student, path)
    card: dict[str, Any] = {
        "student": OmegaConf.to_container(cfg.model.student, resolve=True),
        "height": int(cfg.height),
        "width": int(cfg.width),
        "data": [],
    }
    tensors = {name: tensor for name, tensor in student.state_dict().items() if name in loaded}
    save_weights(tensors, card, out)
    complete = {name.split(".")[0] for name in loaded} >= {"backbone", "neck"}
    use = "ready to evaluate" if complete else "a backbone: training can start from it"
    print(f"{out}: {len(tensors)} tensors, {use}")  # noqa: T201


@entry_point("weights")
def main(cfg: DictConfig) -> None:
    """Converts where `convert` is set; says what a recipe needs where there is one; lists all students otherwise."""
    if cfg.convert is not None:
        _convert(cfg)
    elif no_data(cfg):
        _list(str(cfg.weights_dir))
    else:
        print_needs(cfg, list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    main()
