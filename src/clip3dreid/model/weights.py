"""Reading and writing weights: published ones by renaming, our own with the student they describe.

Nothing here unpickles: files are safetensors, or read by `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.files import atomic
from clip3dreid.io.flatten import flatten
from clip3dreid.io.formats import checksum, damaged, decoding, unsealed
from clip3dreid.io.pickle_scan import scan_torch_file
from clip3dreid.model.build import build
from clip3dreid.model.card import CARD, CARD_VERSION, check_student, valid_card
from clip3dreid.model.places import own_weights
from clip3dreid.model.published_names import Origin, check_origin, translate
from clip3dreid.model.student import Student

HEADS = "clip3dreid_heads"
"""Where a Lightning checkpoint keeps what the losses learnt for use beyond retrieval; in safetensors `heads.…`."""
CHECKSUM = "clip3dreid_checksum"
"""In checkpoints beside the card, in safetensors in it as `checksum`: of card, student and heads, by our names."""
_PREFIX = "student."
_AGAIN = "copy it anew, or save the model again"

# Where a file keeps the network's state: CAL and AIM, Lightning, and the field's other habits.
_STATES = ("model_state_dict", "state_dict", "model")


class _NumpyScalar:
    """Stands for numpy's scalars while a file is read: CAL and AIM saved their last R1 as one."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_NUMPY_SCALARS: list[Any] = [
    (_NumpyScalar, f"numpy.{name}")
    for name in (
        "core.multiarray.scalar",
        "_core.multiarray.scalar",
        "dtype",
        "dtypes.Float64DType",
        "dtypes.Float32DType",
    )
]


class Checkpoint(NamedTuple):
    """What a file of weights holds."""

    state: dict[str, Tensor]
    """Tensors by our names: `backbone.…`, `pooling.…`, `neck.…`."""
    card: Any
    """What the file says of itself; None for other people's files."""
    heads: dict[str, Tensor]
    """Tensors that turn features into words, bodies and parts of a retrieval feature, `joint.…`, `shape.…` and
    `teacher.…`; empty where nothing taught them."""
    origin: Origin | None = None
    """What is known of the program that made a trained model; None for our own files."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of weights, ours or published, on the CPU, without running anything in it.

    Understood are the ImageNet files of torchvision (ResNet, MobileNetV2) and TinyViT, the checkpoints of CAL
    (Simple-CCReID) and AIM (of which the retrieval branch is taken: `model_state_dict`, not `model2_…` or `fuse_…`),
    those of torchreid, fast-reid, TransReID and CLIP-ReID (`published_names.LAYOUTS`), the Lightning checkpoints of
    this project (of which the student is taken) and its safetensors.

    Args:
        path: a safetensors file by suffix, anything else a torch file.

    Raises:
        InputError: if there is no such file, it cannot be read without unpickling, is damaged, holds no weights, or
            those of a network that no student is.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a file of weights")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    state, heads, card, about = read(path)
    if not state:
        raise InputError(f"{path} holds no weights: no tensors, and no {' or '.join(_STATES)} with tensors")
    _check_tensors({**state, **{f"heads.{name}": tensor for name, tensor in heads.items()}}, path)
    ours, origin = _translate(state, path)
    if CHECKSUM in about:
        with decoding(path, "weights", _AGAIN):
            found = _checksum(ours, heads, card)
        if found != about[CHECKSUM]:
            raise damaged(path, "its checksum is another", _AGAIN)
    elif card is not None:
        unsealed(path, CHECKSUM, about, _AGAIN)
    return Checkpoint(ours, card, heads, origin)


def has_card(path: Path) -> bool:
    """Return whether a file is safetensors that this project wrote."""
    try:
        with decoding(path, "safetensors", ""), safe_open(path, framework="pt") as file:
            return CARD in (file.metadata() or {})
    except InputError:
        return False


# State, heads, card (None in other people's files), and what else there is.
_Content = tuple[dict[str, Tensor], dict[str, Tensor], Any, Mapping[Any, Any]]


def _read_safetensors(path: Path) -> _Content:
    with decoding(path, "safetensors", "get it again"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        card = json.loads(metadata[CARD]) if CARD in metadata else None
    heads: dict[str, Tensor] = {}
    if card is not None:  # in other people's files the name means something else
        names = [name for name in state if name.startswith("heads.")]
        heads = {name.removeprefix("heads."): state.pop(name) for name in names}
    about: dict[str, Any] = {}
    if isinstance(card, dict):
        # One entry of metadata holds both: several would be written in an order by chance.
        about = {f"{CARD}_{key}": value for key, value in card.items()}
        card = {key: value for key, value in card.items() if f"{CARD}_{key}" != CHECKSUM}
    return state, heads, card, about


def _read_torch(path: Path) -> _Content:
    container = _unpickled(path)
    inner = next((container[key] for key in _STATES if isinstance(container.get(key), Mapping)), container)
    kept = container.get(HEADS)
    return (
        _tensors(inner),
        _tensors(kept) if isinstance(kept, Mapping) else {},
        container.get(CARD),
        container,
    )


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _unpickled(path: Path) -> Mapping[str, Any]:
    """Return what torch's own reader, which runs nothing, makes of a file."""
    scan_torch_file(path)
    with decoding(path, "a torch file", "get it again"):
        try:
            with torch.serialization.safe_globals(_NUMPY_SCALARS):
                # Mapped, so that a checkpoint's optimiser state, twice the size of its weights, is never read.
                content = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                )
        except Exception as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            if not named:
                raise
            raise InputError(
                f"{path} needs pickle to make a {named[1]}, which could run any code, and is refused; "
                "save its state dict alone, or get it as safetensors"
            ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def _check_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Check that all are plain tensors, and together no larger than what the file can hold.

    Several may look at the same numbers, and one at the same number many times: reading them would take for ever.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise InputError(
                f"{path}: {name} is no plain tensor; save its state dict alone, of dense tensors"
            )
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if size > 4 * path.stat().st_size:
        raise InputError(f"{path} is refused: its tensors are larger than the file ({size / 1e9:.1f} GB)")


def _checksum(student: Mapping[str, Tensor], heads: Mapping[str, Tensor], card: Any) -> str:
    """Return the checksum of tensors by our names, and of what the file says of them."""
    named = {**student, **{f"heads.{name}": tensor for name, tensor in heads.items()}}
    arrays = (
        (
            f"{name} {tensor.dtype} {tuple(tensor.shape)}",
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(),
        )
        for name, tensor in sorted(named.items())
    )
    return checksum(card, arrays)


def add_checksum(checkpoint: MutableMapping[str, Any]) -> None:
    """Add the checksum of what `read_checkpoint` reads of a Lightning checkpoint of ours.

    Args:
        checkpoint: about to be written, with `state_dict`, the card and the heads in it.
    """
    state = _tensors(checkpoint["state_dict"])
    ours = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    checkpoint[CHECKSUM] = _checksum(ours, _tensors(checkpoint[HEADS]), checkpoint[CARD])


def _translate(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], Origin | None]:
    """Take the student out of a file of ours, or rename what another program wrote."""
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    ours = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    return (ours, None) if ours else translate(state, path)


def load_pretrained(student: Student, path: Path, fetch: str | None = None) -> frozenset[str]:
    """Start a student from weights on this disk; nothing is ever downloaded.

    The backbone must be there as a whole. Pooling, reduction and neck may be absent, as in ImageNet's files; they
    then stay as they were.

    Args:
        student: gets the weights, in place.
        path: a file that `read_checkpoint` understands; a run's or a saved folder of this project; or, for a
            backbone of `transformers`, the folder of a published model.
        fetch: the command that gets it, for the message where it is missing.

    Returns:
        Names of the student's tensors that were set.

    Raises:
        InputError: if the file is missing, cannot be read safely, or does not fit: then the message names
            what is missing, left over or of another shape.
    """
    path = own_weights(path.expanduser())
    if path.is_file():
        state, _, _, origin = read_checkpoint(path)
        program = None
        if origin is not None:
            program = origin.layout.program
            check_origin(student, origin, path)
            # Where the test feature is taken before a part, and the student has none, it is no part of the feature.
            unneeded = [part for part in origin.layout.optional if not _has(student, part)]
            state = {name: tensor for name, tensor in state.items() if name.split(".")[0] not in unneeded}
        optional = ("pooling", "reduction", "neck", "time")
        return _fit(student, _completed(student, state), path, optional, program)
    try:
        student.backbone.load_published(str(path))
    except FileNotFoundError as error:
        if path.is_dir():
            raise InputError(
                f"{path} is a folder of no model of this project; this student takes a file"
            ) from error
        own = fetch is None or path.name not in fetch
        advice = "give a file that is there" if own else f"get them: {fetch}"
        raise InputError(f"no weights at {path}; {advice}") from error
    return frozenset(f"backbone.{name}" for name in student.backbone.state_dict())


def _completed(student: Student, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let the backbone make of its tensors what fits it."""
    prefix = "backbone."
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    return rest | {prefix + name: tensor for name, tensor in student.backbone.completed(own).items()}


def _has(student: Student, part: str) -> bool:
    return any(name.split(".")[0] == part for name in student.state_dict())


def _check_fit(
    student: Student,
    state: Mapping[str, Tensor],
    path: Path,
    optional: tuple[str, ...] = (),
    program: str | None = None,
) -> None:
    """Check that the tensors are the student's, in names and shapes."""
    expected = student.state_dict()
    parts = {name.split(".")[0] for name in state}
    absent = tuple(f"{part}." for part in optional if part not in parts)
    problems = {
        # Files from before PyTorch 0.4.1 do not count batches, and nothing here reads the count.
        "missing": [
            name
            for name in expected.keys() - state.keys()
            if not name.endswith(".num_batches_tracked") and not name.startswith(absent)
        ],
        "left over": list(state.keys() - expected.keys()),
        "of another shape": [
            f"{name} (there {tuple(state[name].shape)}, here {tuple(expected[name].shape)})"
            for name in expected.keys() & state.keys()
            if state[name].shape != expected[name].shape
        ],
    }
    differences = [f"{what}: {some(sorted(names))}" for what, names in problems.items() if names]
    if differences:
        named = f"{path}, of {program}," if program else path
        raise InputError(
            f"the weights in {named} are of another architecture; {'; '.join(differences)}; choose the student that "
            "they are of with model/student=NAME (clip3dreid weights lists published models)"
        )


def _fit(
    student: Student,
    state: Mapping[str, Tensor],
    path: Path,
    optional: tuple[str, ...] = (),
    program: str | None = None,
) -> frozenset[str]:
    _check_fit(student, state, path, optional, program)
    student.load_state_dict(dict(state), strict=False)
    return frozenset(state)


def read_card(path: Path) -> dict[str, Any]:
    """Read what a checkpoint of this project says of itself.

    Args:
        path: a Lightning checkpoint or a safetensors file of this project.

    Returns:
        `student` (its config), `height` and `width` of the pictures it was trained on, `data` (names of the
        training sets) and `version`. Plain values from a file that may come from anywhere.

    Raises:
        InputError: if the file cannot be read safely, or has no card or another version's.
    """
    path = path.expanduser()
    return valid_card(read_checkpoint(path).card, path)


# How batches are normalised in training is no part of what was learnt.
_FREE = ("ghost_group", "freeze_batch_norm")
# What a config that does not say so means.
_UNSAID = {"neck": True, "backbone.ibn": False, "backbone.ceil_pool": False}


def check_same_student(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of ours with another student, though its shapes may fit (pooling, mean, last stride).

    Files of others say nothing of their student and pass.

    Args:
        path: as of `load_pretrained`; a missing one passes, for that to refuse.
        config: the student that is to start from it, as plain data.

    Raises:
        InputError: naming up to five keys that differ, with both values.
    """
    path = own_weights(path.expanduser())
    card = read_checkpoint(path).card if path.is_file() else None
    if card is None:
        return
    there, here = (_UNSAID | flatten(node) for node in (valid_card(card, path).get("student"), config))
    wrong = [key for key in sorted({*there, *here}) if key not in _FREE and there.get(key) != here.get(key)]
    if wrong:
        differences = [f"{key} is {there.get(key)} there, {here.get(key)} here" for key in wrong]
        shown = some(differences, between="; ")
        raise InputError(f"{path} holds another student: model.student.{shown}")


def student_from_checkpoint(path: Path, trusted: Collection[str] = ()) -> Student:
    """Rebuild the student that a checkpoint of this project describes, with its weights, on the CPU.

    The description is data from a file that may come from anywhere: it can name classes of
    `clip3dreid.model`, and of packages that the caller trusts, alone.

    Args:
        path: a Lightning checkpoint or a safetensors file of this project.
        trusted: names of packages of the user's own.

    Returns:
        The student, in evaluation mode.

    Raises:
        InputError: as `read_card`, and if the card describes something other than a student, or the weights
            are not all of that student's.
    """
    path = path.expanduser()
    checkpoint = read_checkpoint(path)
    return build_student(valid_card(checkpoint.card, path), checkpoint.state, path, trusted)


def build_student(
    card: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, trusted: Collection[str] = ()
) -> Student:
    """Rebuild a student as `student_from_checkpoint` does, from a card and tensors that have been read already.

    Args:
        card: a valid one.
        state: all of the student's tensors.
        path: where the card is from, for messages.
        trusted: as of `student_from_checkpoint`.

    Returns:
        The student, in evaluation mode.

    Raises:
        InputError: as `student_from_checkpoint`.
    """
    config = card.get("student")
    check_student(config, path, trusted)
    # First without memory: what it takes is then that of tensors that are there.
    with torch.device("meta"), _NothingDrawn():
        described = _built(config, path, trusted)
    _check_fit(described, state, path)
    student = _built(config, path, trusted)
    _fit(student, state, path)
    return student.eval()


class _NothingDrawn(TorchFunctionMode):
    """Leaves tensors as they are where normal numbers are asked for; for tensors without data.

    There is nothing to fill, and torch would load its compiler for it, which takes longer than all else here.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _built(config: Any, path: Path, trusted: Collection[str]) -> Student:
    try:
        student = build(config, trusted)
        if not isinstance(student, Student):
            raise InputError(f"a {type(student).__name__} is no subclass of {Student.__module__}.Student")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} describes a student that cannot be built: {reason[:300]}") from error
    return student


def save_weights(state: Mapping[str, Tensor], card: Mapping[str, Any], path: Path) -> None:
    """Write tensors and their card as safetensors, atomically.

    Args:
        state: tensors by the student's names.
        card: plain data as `read_card` returns it; `version` is added.
        path: ends in `.safetensors`.

    Raises:
        InputError: if the suffix is another, or the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path} must end in .safetensors")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    whole = {"version": CARD_VERSION, **card}
    heads = {name.removeprefix("heads."): tensors[name] for name in tensors if name.startswith("heads.")}
    student = {name: tensor for name, tensor in tensors.items() if not name.startswith("heads.")}
    about = {CARD: json.dumps(whole | {CHECKSUM.removeprefix(f"{CARD}_"): _checksum(student, heads, whole)})}
    with atomic(path) as temporary:
        save_file(tensors, temporary, about)
