"""List the weights and body files that the configuration names, and where they are looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

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
        file = OmegaConf.load(conf_dir() / "model" / "student" / f"{name}.yaml")
        node = OmegaConf.create({"weights_dir": weights_dir, "model": file}).model
        # Variants of another student have what differs alone.
        if node.get("pretrained") is not None:
            found.append(Weights(name, str(node.pretrained), node.fetch, node.sha256))
    return found


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
