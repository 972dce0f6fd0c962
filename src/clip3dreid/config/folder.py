"""Find the configuration's YAML files, without loading Hydra."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """Return the folder of the YAML files: inside the installed package, or at the root of a checkout.

    Raises:
        FileNotFoundError: if the installation has none.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no conf folder beside {package}: the installation is broken, install it anew")


def is_group(name: str, folders: tuple[Path, ...] = ()) -> bool:
    """Return whether a name is that of a config group.

    Args:
        name: as `model/student`.
        folders: of the user's, searched beside the project's own.
    """
    plausible = bool(name) and not name.startswith("/") and ".." not in name.split("/")
    return plausible and any((folder / name).is_dir() for folder in (conf_dir(), *folders))


def options(group: str, folders: tuple[Path, ...] = ()) -> list[str]:
    """Return the names that can be chosen in a config group, in order.

    Args:
        group: as `model/student`.
        folders: of the user's, searched beside the project's own.
    """
    names = {path.stem for folder in (conf_dir(), *folders) for path in (folder / group).glob("*.yaml")}
    # What the others begin with, and no choice of its own.
    return sorted(names - {"base"})
