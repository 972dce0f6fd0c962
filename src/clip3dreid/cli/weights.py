"""`clip3dreid weights`: what students start from, what a recipe needs, whether it is there; conversion."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.hydra import conf_dir, entry_point
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


class Source(NamedTuple):
    """The weights that one student of `conf/model/student` starts from."""

    student: str
    path: Path
    fetch: str
    """The command that gets them."""
    sha256: str | None
    """Hexadecimal; None where nobody has noted it."""
    recipes: tuple[str, ...]
    """Experiments that train this student unless told otherwise."""


def sources(weights_dir: str) -> list[Source]:
    """Weights of every student in the configuration that starts from some, by name of the student.

    Args:
        weights_dir: the folder that they are looked for in.
    """
    found = []
    users = recipes()
    for file in sorted((conf_dir() / "model" / "student").glob("*.yaml")):
        node = OmegaConf.create({"weights_dir": weights_dir, "model": OmegaConf.load(file)}).model
        # Variants of another student have what differs alone.
        if node.get("pretrained") is not None:
            fetch = own_command(node.fetch, node.pretrained) or node.fetch
            path = Path(node.pretrained).expanduser()
            found.append(Source(file.stem, path, fetch, node.sha256, tuple(users.get(file.stem, ()))))
    return found


def recipes() -> dict[str, list[str]]:
    """Student -> the experiments that choose it."""
    users: dict[str, list[str]] = {}
    for file in sorted((conf_dir() / "experiment").glob("*.yaml")):
        for line in OmegaConf.load(file).defaults:
            if "override /model/student" in line:
                users.setdefault(line["override /model/student"], []).append(file.stem)
    return users


def state(source: Source) -> str:
    """As `checklist.weights_state`."""
    return weights_state(source.path, source.sha256)


def _list(weights_dir: str) -> None:
    rows = [(source, state(source)) for source in sources(weights_dir)]
    print_table(
        "Weights that students start from (model/student=NAME; model.pretrained=null: from scratch)",
        ["student", "weights", "state", "recipes (+experiment=…)"],
        [[source.student, str(source.path), found, ", ".join(source.recipes)] for source, found in rows],
    )
    missing = [source for source, found in rows if found.startswith((MISSING, "incomplete"))]
    # Plain lines, so that a command can be copied whole.
    if missing:
        print("To get what is missing, where there is a network:")  # noqa: T201
    for source in missing:
        print(f"  {source.fetch}")  # noqa: T201
    print("All that one recipe needs: clip3dreid weights +experiment=NAME [key=value …]")  # noqa: T201
    if damaged := [str(source.path) for source, found in rows if found.startswith("DAMAGED")]:
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
