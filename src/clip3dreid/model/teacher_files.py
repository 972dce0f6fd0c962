"""The files of a teacher: where they lie, whether they are whole, and what they hold. Nothing in them is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.formats import decoding, read_json
from clip3dreid.io.pickle_scan import scan_torch_file
from clip3dreid.model.backbone import quiet
from clip3dreid.model.checked_folder import check_sums
from clip3dreid.model.places import PACKAGED, packaged

PIXELS = "preprocessor_config.json"

_CONFIG = "config.json"
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_TOKENIZER = (
    *_VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_PICKLED = "pytorch_model.bin"
_AGAIN = "download it again"


class Family(NamedTuple):
    """Where models of one kind differ from the others."""

    model: str
    """Class in `transformers`, which is imported where a teacher is read and not before."""
    widths: Callable[[Any], tuple[int, int]]
    """From a config to the width of image and text embeddings."""
    first_patch: int
    """Tokens before those of the patches."""
    patches: Callable[[Any, Tensor], Tensor]
    """Last states of patches (B, P, C) into the joint space (B, P, d)."""
    tokens: Callable[[Any, Tensor], Tensor]
    """Last, normed states of tokens (L, T, C) into the joint space (L, T, d)."""
    fills_context: bool
    """Every text is padded to the whole context, and the padding is read like the rest of it."""


def _clip_widths(config: Any) -> tuple[int, int]:
    return config.projection_dim, config.projection_dim


def _clip_patches(model: Any, states: Tensor) -> Tensor:
    projected: Tensor = model.visual_projection(model.vision_model.post_layernorm(states))
    return projected


def _clip_tokens(model: Any, states: Tensor) -> Tensor:
    projected: Tensor = model.text_projection(states)
    return projected


def _siglip_widths(config: Any) -> tuple[int, int]:
    return config.vision_config.hidden_size, config.text_config.projection_size


def _siglip_patches(model: Any, states: Tensor) -> Tensor:
    # The states are normed already. What leads from them to the joint space is attention pooling and an MLP: each
    # patch is taken as a picture of its own, on which all attention falls.
    pooled: Tensor = model.vision_model.head(states.flatten(0, 1)[:, None])
    return pooled.view(states.shape)


def _siglip_tokens(model: Any, states: Tensor) -> Tensor:
    projected: Tensor = model.text_model.head(states)
    return projected


FAMILIES = {
    "clip": Family("CLIPModel", _clip_widths, 1, _clip_patches, _clip_tokens, False),
    "siglip": Family("SiglipModel", _siglip_widths, 0, _siglip_patches, _siglip_tokens, True),
}
"""By `model_type` of the config. SigLIP 2 of a fixed resolution calls itself `siglip` and is one."""


def locate(path: str, name: str, fetch: str | None = None) -> Path:
    """Find a teacher's folder, on this disk if it can be.

    Args:
        path: as of `Teacher`.
        name: for messages.
        fetch: the command that gets it.

    Returns:
        A folder that has a config, a tokenizer, a preprocessor's config and weights.

    Raises:
        InputError: if there is none, the folder lacks one of the four, or a file is not what the folder's list of
            checksums says.
    """
    if path.startswith(PACKAGED):
        folder = packaged(path)
        if not folder.is_dir() or folder.parent.name != "assets":
            raise InputError(
                f"this installation has no {path}; install clip3dreid anew, or give model.teacher.path"
            )
    elif on_hub(path, fetch):
        folder = _from_hub(path, name, fetch)
    elif (local := Path(path).expanduser()).is_dir():
        folder = local
    else:
        raise InputError(_not_found(path, name, fetch))
    if absent := lacking(folder):
        raise InputError(
            f"{folder} has no {' and no '.join(absent)}; copy all files of the published model there"
        )
    check_sums(folder)
    return folder


def on_hub(path: str, fetch: str | None = None) -> bool:
    """Return whether a path names a model on the hub, and no folder of this disk that is or could be there.

    Args:
        path: as of `Teacher`.
        fetch: the command that gets it; the folder that it fills means this disk.
    """
    local = Path(path).expanduser()
    named = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path) is not None
    return named and path != _destination(fetch) and not local.is_dir() and not local.parent.is_dir()


def deciding_files(folder: Path) -> list[Path]:
    """Return all files of a teacher's folder that its embeddings depend on, sorted."""
    names = [_CONFIG, PIXELS, *_TOKENIZER]
    files = [folder / name for name in names if (folder / name).is_file()]
    return sorted([*files, *weight_files(folder)])


def _destination(fetch: str | None) -> str | None:
    """Return the folder that a download fills: no hub is asked for a name like `weights/…` that means this disk."""
    words = _words(fetch)
    return words[words.index("--local-dir") + 1] if "--local-dir" in words[:-1] else None


def _words(command: str | None) -> list[str]:
    try:
        return shlex.split(command or "")
    except ValueError:  # a folder with an apostrophe in its name
        return (command or "").split()


def _not_found(path: str, name: str, fetch: str | None, reason: str = "") -> str:
    folder = _destination(fetch)
    if fetch is None or (path != folder and path not in _words(fetch)):
        # The command on record gets some other model.
        folder = path if path.startswith(("/", ".", "~")) else f"weights/{path.split('/')[-1]}"
        fetch = f"hf download {path if path != folder else 'ID'} --local-dir {folder}"
    where = "" if path == name else f" ({path})"
    return (
        f"{name}{where} is not found locally{reason}; where there is a network, download it with `{fetch}`, "
        f"then give model.teacher.path={folder or 'DIR'}"
    )


def _from_hub(repository: str, name: str, fetch: str | None) -> Path:
    """Return the folder of a model in the hub library's cache, downloaded if need be."""
    small = [_CONFIG, PIXELS, *_TOKENIZER]
    try:
        folder = Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
        if not lacking(folder):
            return folder
    # Not cached, or damaged: all the same, since it is asked for again.
    except Exception:
        pass
    try:
        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*small, *_SAFETENSORS]))
        if not weight_files(folder):
            folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*small, _PICKLED]))
    # No network, no such model, no permission, a full disk: there are as many exceptions as ways to fail.
    except Exception as error:
        raise InputError(
            _not_found(repository, name, fetch, f", nor on the hub ({_first_line(error)})")
        ) from error
    return folder


def lacking(folder: Path) -> list[str]:
    """Return which of the four things that make a teacher a folder has not."""
    needed = {
        "config (config.json)": (folder / _CONFIG).is_file(),
        f"tokenizer ({_VOCABULARIES[0]})": any((folder / name).is_file() for name in _VOCABULARIES),
        f"pixel statistics ({PIXELS})": (folder / PIXELS).is_file(),
        "weights (model.safetensors)": bool(weight_files(folder)),
    }
    return [what for what, there in needed.items() if not there]


def weight_files(folder: Path) -> list[Path]:
    """Return files of weights: safetensors, or if there are none the one that torch reads without unpickling."""
    found = sorted(path for pattern in _SAFETENSORS for path in folder.glob(pattern))
    if any(path.suffix == ".safetensors" for path in found):
        return found
    return [folder / _PICKLED] if (folder / _PICKLED).is_file() else []


def read_teacher_json(path: Path) -> dict[str, Any]:
    """Read one of a teacher's files of JSON."""
    return read_json(path, "the config of a teacher", _AGAIN)


def read_config(folder: Path) -> tuple[Any, Family]:
    """Read the configuration, without what could make `transformers` fetch code, and the model's kind."""
    from transformers import AutoConfig

    plain = harmless(read_teacher_json(folder / _CONFIG))
    kind = plain.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(
            f"{folder} holds a model of type {kind}; a teacher has an image and a text tower in one space: "
            f"give one of type {' or '.join(FAMILIES)}"
        )
    with decoding(folder / _CONFIG, f"the config of a {kind} model", _AGAIN), quiet():
        config = AutoConfig.for_model(**plain)
    return config, FAMILIES[kind]


def harmless(config: Any) -> Any:
    """Leave out keys that name code (`auto_map`, an attention kernel on the hub), or folders of other disks."""
    if isinstance(config, dict):
        return {
            key: harmless(value)
            for key, value in config.items()
            if not key.startswith("_") and key != "auto_map" and "implementation" not in key
        }
    return [harmless(value) for value in config] if isinstance(config, list) else config


def read_pixels(folder: Path) -> tuple[list[float], list[float]]:
    """Read mean and standard deviation of R, G and B, of pixels in 0..1."""
    path = folder / PIXELS
    content = read_teacher_json(path)
    for key in ("image_mean", "image_std"):
        value: Any = content.get(key)
        three = isinstance(value, list) and len(value) == 3
        if not three or not all(isinstance(number, int | float) for number in value):
            raise InputError(f"{path} has {key} {value}, not three numbers; download it again")
    scale = content.get("rescale_factor", 1 / 255)
    if content.get("do_normalize") is False or abs(scale * 255 - 1) > 1e-6 or min(content["image_std"]) <= 0:
        raise InputError(
            f"{path} prepares pixels otherwise than by (value / 255 - mean) / std; give another model"
        )
    return content["image_mean"], content["image_std"]


def read_model(folder: Path, config: Any, family: Family) -> Any:
    """Read the network with its weights, float32.

    Raises:
        InputError: if the weights cannot be read, or are not those of this configuration.
    """
    import transformers

    weights = weight_files(folder)[0]
    if weights.name == _PICKLED:
        scan_torch_file(weights)
    with decoding(f"the weights in {folder}", "those of a teacher", _AGAIN), quiet():
        model, report = getattr(transformers, family.model).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=weights.name != _PICKLED,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    parts = {name for name, _ in model.named_children()}
    problems = {
        "missing": report["missing_keys"],
        "of another shape": [key for key, *_ in report["mismatched_keys"]],
        # Deeper networks' layers would be dropped silently. Old files count positions, which is no weight.
        "left over": [
            key
            for key in report["unexpected_keys"]
            if key.split(".")[0] in parts and not key.endswith(".position_ids")
        ],
    }
    found = [f"{what}: {some(sorted(keys))}" for what, keys in problems.items() if keys]
    if found:
        raise InputError(f"the weights in {folder} do not fit its config.json; {'; '.join(found)}")
    if (
        not hasattr(model.vision_model, "post_layernorm")
        or getattr(model.vision_model, "use_head", True) is False
    ):
        raise InputError(f"{folder} holds an image tower without pooling; give a model that has one")
    return model


def read_tokenizer(folder: Path) -> Any:
    """Read the tokenizer.

    Raises:
        InputError: if it cannot be read, or needs a package that is not installed.
    """
    from transformers import AutoTokenizer

    with decoding(f"the tokenizer in {folder}", "that of a teacher", _AGAIN), quiet():
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except ImportError as error:
            raise InputError(
                f"the tokenizer in {folder} needs a package that is not installed; for SigLIP and others with "
                f"SentencePiece vocabularies: pip install sentencepiece protobuf ({_first_line(error)})"
            ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
