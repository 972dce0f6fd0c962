"""Print what students start from, what others publish, what a recipe needs, and how to get what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config.checklist import (
    MISSING,
    NOT_GIVEN,
    THERE,
    Item,
    checklist,
    commands,
    own_command,
    to_get,
    weights_state,
)
from clip3dreid.config.published import recipes, student_weights, zoos
from clip3dreid.errors import InputError
from clip3dreid.report.tables import print_table


def print_students(weights_dir: str) -> None:
    """Print the weights that students start from, and how to get what is missing.

    Args:
        weights_dir: the folder that they are looked for in.

    Raises:
        InputError: at the end, if a file is damaged.
    """
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
    # Students that start from one file share a command.
    for command in dict.fromkeys(own_command(one.fetch, one.place) or one.fetch for one in missing):
        print(f"  {command}")  # noqa: T201
    print("All that one recipe needs: clip3dreid weights +experiment=NAME [key=value …]")  # noqa: T201
    if damaged := [one.place for one, state in rows if state.startswith("DAMAGED")]:
        raise InputError(f"{', '.join(damaged)}: checksum wrong; delete and fetch again")


def print_published() -> None:
    """Print the trained models that others publish, with the commands that make checkpoints of ours of them."""
    for zoo in zoos():
        print_table(
            f"{zoo.program}, {zoo.page} (licence {zoo.licence}; scores: {zoo.source})",
            [
                "model",
                "architecture",
                "trained on",
                "tested on",
                "rank-1",
                "mAP",
                "distance",
                "student",
            ],
            [
                [
                    one.name,
                    one.architecture,
                    one.trained_on,
                    one.tested_on,
                    "" if one.rank1 is None else one.rank1,
                    "" if one.mean_ap is None else one.mean_ap,
                    one.distance,
                    " ".join([f"model/student={one.student}", *one.settings]),
                ]
                for one in zoo.models
            ],
        )
        # Plain lines, so that a command can be copied whole.
        for one in zoo.models:
            fetch, convert = zoo.commands(one)
            print(f"  {fetch} && {convert}")  # noqa: T201


def print_needs(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Print what one recipe needs, and one block that gets what is missing of it.

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
