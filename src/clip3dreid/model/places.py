"""Where a trained model lies: whatever is taken for a checkpoint anywhere, the same things are."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE

from clip3dreid.errors import InputError
from clip3dreid.io.files import reason_of
from clip3dreid.io.formats import peek_json
from clip3dreid.io.run_folder import LAST_CHECKPOINT

LIBRARY = "clip3dreid"
"""What `config.json` of a saved folder says of itself, under `library`."""
PACKAGED = "package:"
"""Before the name of a network in the package, where any other place may stand."""
SHIPPED = ("body_student",)
"""Names of the models in the package. A file or folder that is called so comes first."""
TAKEN = (
    "a run's folder, a checkpoint, safetensors of this project, a folder that save_pretrained wrote, or "
    f"{' or '.join(SHIPPED)}, which ships with the package"
)
"""What `find_weights` takes, for messages."""

# Beside what it is in a run's folder: in that folder's `checkpoints`.
_LAST = (LAST_CHECKPOINT, Path(LAST_CHECKPOINT.name))
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class ModelPlace(NamedTuple):
    """The files of a model."""

    weights: Path
    """A checkpoint of Lightning, or safetensors."""
    config: Path | None
    """JSON that says what the model is; None where the weights' file does."""


def find_weights(place: Path | str) -> ModelPlace:
    """Find the files that a place on this disk stands for.

    Args:
        place: a file, which is itself; a run's folder or its `checkpoints`, of which the last checkpoint is taken; a
            folder that `save_pretrained` wrote; or one of `SHIPPED`.

    Raises:
        InputError: if it is not there, or a folder that holds none of these.
    """
    if place == "":  # which is the working folder to `Path`
        raise InputError(f"the model's place is empty; give {TAKEN}")
    path = _shipped(Path(place).expanduser())
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{place} is not there; give {TAKEN}")
        return ModelPlace(path, None)
    if (path / CONFIG_NAME).is_file():
        return ModelPlace(path / SAFETENSORS_SINGLE_FILE, path / CONFIG_NAME)
    for last in _LAST:
        if (path / last).is_file():
            return ModelPlace(path / last, None)
    raise InputError(
        f"{place} holds no model: neither {CONFIG_NAME} with {SAFETENSORS_SINGLE_FILE}, as save_pretrained "
        f"writes them, nor {_LAST[0]} of a training run"
    )


def packaged(path: str) -> Path:
    """Return where `NAME` or `package:NAME` lies in the package; not whether it is there."""
    return Path(str(resources.files("clip3dreid.model"))) / "assets" / path.removeprefix(PACKAGED)


def _shipped(place: Path) -> Path:
    return packaged(place.name) if str(place) in SHIPPED and not place.exists() else place


def own_weights(place: Path) -> Path:
    """Return the file of weights in a folder of this project; any other path as it is.

    For what may as well be a model of others, whose folders have a `config.json` too.
    """
    place = _shipped(place)
    if not place.is_dir():
        return place
    config = place / CONFIG_NAME
    if config.is_file() and not _is_ours(config):
        return place
    try:
        return find_weights(place).weights
    except InputError:
        return place


def find_model(
    place: str | Path,
    *,
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
) -> ModelPlace:
    """Find files as `find_weights`, or of `user/name` on the Hugging Face hub, which alone is ever downloaded.

    A text is taken for such a name only where nothing on this disk is called so, or lies in a folder that is there.

    Args:
        place: as of `find_weights`, or the name.
        force_download: of `huggingface_hub.hf_hub_download`, as all that follow.
        token: for private models.
        cache_dir: where downloads are kept.
        local_files_only: take what was downloaded before.
        revision: a branch, tag or commit.

    Raises:
        InputError: as `find_weights`, or if it cannot be had from the hub.
    """
    local = Path(place).expanduser()
    named = isinstance(place, str) and _HUB_ID.fullmatch(place) is not None
    if local.exists() or not named or local.parent.is_dir() or local.suffix in (".ckpt", ".safetensors"):
        return find_weights(place)
    try:
        config, weights = (
            Path(
                huggingface_hub.hf_hub_download(
                    str(place),
                    name,
                    force_download=force_download,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    revision=revision,
                )
            )
            for name in (CONFIG_NAME, SAFETENSORS_SINGLE_FILE)
        )
    except Exception as error:  # the hub's, its HTTP client's, the disk's: they share no base
        raise InputError(
            f"{place} is not there, and cannot be had from the Hugging Face hub ({reason_of(error)}); give {TAKEN}"
        ) from error
    return ModelPlace(weights, config)


def _is_ours(config: Path) -> bool:
    return (peek_json(config) or {}).get("library") == LIBRARY
