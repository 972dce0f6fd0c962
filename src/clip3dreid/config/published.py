"""List the weights, published models and body files that the configuration names, and where they are looked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.folder import conf_dir, options

SHIPPED = Path(__file__).resolve().parents[1]


class Weights(NamedTuple):
    """What one student or teacher starts from."""

    name: str
    place: str
    """A file or a folder; `package:NAME` for what is shipped."""
    fetch: str | None
    """The command that gets it."""
    sha256: str | None = None
    """Hexadecimal; None where nobody has noted it."""

    @property
    def there(self) -> bool:
        """Return whether something lies at the place."""
        if self.place.startswith("package:"):
            return (SHIPPED / "model" / "assets" / self.place.removeprefix("package:")).exists()
        return Path(self.place).expanduser().exists()


def student_weights(weights_dir: str) -> list[Weights]:
    """Return the weights of every student that starts from some, by name of the student.

    Args:
        weights_dir: the folder that they are looked for in.
    """
    found = []
    for name in options("model/student"):
        node = OmegaConf.create({"weights_dir": weights_dir, "model": _student(name)}).model
        if node.pretrained is not None:
            found.append(Weights(name, str(node.pretrained), node.fetch, node.sha256))
    return found


def _student(name: str) -> DictConfig:
    """Return an option of students; variants of another one have what differs alone in their files."""
    node: Any = OmegaConf.load(conf_dir() / "model" / "student" / f"{name}.yaml")
    bases = [entry for entry in node.pop("defaults", []) if entry != "_self_"]
    merged = OmegaConf.merge(*(_student(base.removesuffix("@_here_")) for base in bases), node)
    assert isinstance(merged, DictConfig)
    return merged


def teacher_weights(weights_dir: str) -> list[Weights]:
    """Return the weights of every teacher that names some, as `student_weights`."""
    found = []
    for name in options("model/teacher"):
        file = OmegaConf.load(conf_dir() / "model" / "teacher" / f"{name}.yaml")
        node = OmegaConf.create({"weights_dir": weights_dir, "model": {"teacher": file}}).model.teacher
        # Files of any network are the user's own.
        if node.path is not None:
            found.append(Weights(name, str(node.path), node.fetch))
    return found


class PublishedModel(NamedTuple):
    """A trained model that another program publishes."""

    name: str
    architecture: str
    trained_on: str
    tested_on: str
    rank1: float | None
    """Percent, of all pictures of the test set as the program counts; None where its page has no score."""
    mean_ap: float | None
    distance: str
    student: str
    file: str
    settings: Sequence[str] = ()
    """Of the student, beyond its option."""


class Zoo(NamedTuple):
    """What one program publishes."""

    program: str
    page: str
    source: str
    """Where names and scores were read."""
    licence: str
    """Of the repository; the data sets that models are trained on have terms of their own."""
    height: int
    """Of the pictures, in pixels."""
    width: int
    models: list[PublishedModel]

    def commands(self, model: PublishedModel) -> tuple[str, str]:
        """Return the command that gets a model's file, and the one that makes a checkpoint of ours of it."""
        got = f"{model.name}.pth"
        drive = model.file.startswith("https://drive.google.com/")
        fetch = f'gdown -O {got} "{model.file}"' if drive else f"curl -fL -o {got} {model.file}"
        size = f"height={self.height} width={self.width}"
        convert = f"convert={got} out={model.name}.safetensors model/student={model.student}"
        return fetch, " ".join(["clip3dreid weights", convert, *model.settings, size])


def zoos() -> list[Zoo]:
    """Return what other programs publish that a student of ours can be converted from."""
    found = []
    for name in options("published"):
        node: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "published" / f"{name}.yaml"))
        models = [PublishedModel(**model) for model in node.pop("models")]
        found.append(Zoo(**node, models=models))
    return found


class BodyFile(NamedTuple):
    """What one option of the group `body` reads."""

    name: str
    place: str | None
    """None where it must be given."""

    @property
    def state(self) -> str:
        """Return whether it is shipped, or how it is given."""
        return "shipped" if self.place else f"not given; body={self.name} body.path=FILE (docs/body.md)"


def body_files() -> list[BodyFile]:
    """Return what each option of the group `body` reads; official files are nowhere by default."""
    found = []
    for name in options("body"):
        node: Any = OmegaConf.load(conf_dir() / "body" / f"{name}.yaml")
        asset = SHIPPED / "body" / "assets" / f"{node.get('path')}.npz"
        found.append(BodyFile(name, str(asset) if asset.is_file() else None))
    return found


def recipes() -> dict[str, list[str]]:
    """Return student -> the experiments that choose it."""
    users: dict[str, list[str]] = {}
    for name in options("experiment"):
        for line in OmegaConf.load(conf_dir() / "experiment" / f"{name}.yaml").defaults:
            if "override /model/student" in line:
                users.setdefault(line["override /model/student"], []).append(name)
    return users
