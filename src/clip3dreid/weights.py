"""`python -m clip3dreid.weights`: what the students start from, whether it is there, and conversion."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config import conf_dir, entry_point
from clip3dreid.errors import InputError
from clip3dreid.model.student import Student
from clip3dreid.model.weights import load_pretrained, read_checkpoint, save_weights, student_from_checkpoint
from clip3dreid.tables import print_table


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
    """Weights of every student in the configuration, by name of the student.

    Args:
        weights_dir: the folder that they are looked for in.
    """
    found = []
    users = recipes()
    for file in sorted((conf_dir() / "model" / "student").glob("*.yaml")):
        node = OmegaConf.create({"weights_dir": weights_dir, "model": OmegaConf.load(file)}).model
        if node.pretrained is not None:
            path = Path(node.pretrained).expanduser()
            found.append(Source(file.stem, path, node.fetch, node.sha256, tuple(users.get(file.stem, ()))))
    return found


def recipes() -> dict[str, list[str]]:
    """Student -> the experiments that start it from its published weights."""
    users: dict[str, list[str]] = {}
    for file in sorted((conf_dir() / "experiment").glob("*.yaml")):
        node = OmegaConf.load(file)
        chosen = [
            line["override /model/student"] for line in node.defaults if "override /model/student" in line
        ]
        if chosen and OmegaConf.select(node, "model.pretrained", default="") is not None:
            users.setdefault(chosen[0], []).append(file.stem)
    return users


def state(source: Source) -> str:
    """`missing`, `present` with a word on the checksum, or `DAMAGED`."""
    if not source.path.exists():
        return "missing"
    if source.sha256 is None:
        return "present, checksum not known"
    with source.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "present, checksum right" if digest == source.sha256 else "DAMAGED, checksum wrong"


def _list(weights_dir: str) -> None:
    rows = [(source, state(source)) for source in sources(weights_dir)]
    print_table(
        "Weights that students start from (model/student=NAME; model.pretrained=null: from scratch)",
        ["student", "weights", "state", "recipes (+experiment=…)"],
        [[source.student, str(source.path), found, ", ".join(source.recipes)] for source, found in rows],
    )
    missing = [source for source, found in rows if found == "missing"]
    # Plain lines, so that a command can be copied whole.
    if missing:
        print("To get what is missing, where there is a network:")  # noqa: T201
    for source in missing:
        print(f"  {source.fetch}")  # noqa: T201
    if damaged := [str(source.path) for source, found in rows if found.startswith("DAMAGED")]:
        raise InputError(f"{', '.join(damaged)}: checksum wrong; delete and fetch again")


def _convert(cfg: DictConfig) -> None:
    if cfg.out is None:
        raise InputError("out is not set; give the file to write as out=NAME.safetensors")
    out = Path(cfg.out).expanduser()
    if out.exists():
        raise InputError(f"{out} is there already; delete it or choose another out")
    own = (
        read_checkpoint(Path(cfg.convert).expanduser()).card
        if Path(cfg.convert).expanduser().is_file()
        else None
    )
    if own is not None:
        # A checkpoint of ours knows its student and its pictures; the config has nothing to add.
        path = Path(cfg.convert).expanduser()
        weights = student_from_checkpoint(path).state_dict()
        weights |= {f"heads.{name}": value for name, value in read_checkpoint(path).heads.items()}
        save_weights(weights, own, out)
        print(f"{out}: {len(weights)} tensors, ready to evaluate")  # noqa: T201
        return
    student: Student = instantiate(cfg.model.student)
    # Only what the file brought: a neck at its random start is no part of a checkpoint.
    loaded = load_pretrained(student, Path(cfg.convert))
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
    """Lists, or converts where `convert` is set."""
    if cfg.convert is None:
        _list(str(cfg.weights_dir))
    else:
        _convert(cfg)


if __name__ == "__main__":
    main()
