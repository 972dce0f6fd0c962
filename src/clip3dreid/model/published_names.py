"""The names that other programs give to the tensors of their checkpoints, and those here: tables, and their reader.

A layout is data. Its marks tell it from the others; its rules are applied to a name one after another, each to what
those before it made. A name that no rule knows stays as it is, and whoever fits the tensors into a student names it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.model.mobilenet_names import mobilenet_names
from clip3dreid.model.student import Student

_Rules = tuple[tuple[str, str], ...]
"""Regular expression -> what stands for it, or for refused names: why, and what to do."""


class Layout(NamedTuple):
    """How one program names its tensors."""

    program: str
    marks: tuple[str, ...]
    """Expressions for beginnings of names: a file has names for all of them, or is of another layout."""
    rules: _Rules
    left_out: str
    """Expression for beginnings of names that no feature depends on."""
    refused: _Rules = ()
    """Beginnings of names of what no student has."""
    joined: Mapping[str, tuple[str, ...]] = {}
    """Part here -> parts there whose tensors stand side by side in its."""
    batched: tuple[str, ...] = ()
    """Tensors here of three dimensions, of which files may lack the first."""
    optional: tuple[str, ...] = ()
    """Parts here that the program's test feature is taken before or behind, by its configuration."""
    settings: tuple[tuple[str, Any, str], ...] = ()
    """What no tensor shows: attribute of the student, its value there, key of the configuration that sets it."""


class Origin(NamedTuple):
    """What a file of another program says beside its tensors."""

    layout: Layout
    mean: tuple[float, ...] | None
    """Of R, G and B in 0..1, that pictures are normalised with; None where the file does not say."""
    std: tuple[float, ...] | None


# torchreid: a stream of OSNet is `conv2a` … `conv2d`, the first without a place inside; one of OSNet-AIN `conv2.0` …
# `conv2.3`, with `layers`. Between stages stands the third part of the stage, or `pool2`.
_OSNET: _Rules = (
    (r"^fc\.0\.", "pooling.linear."),
    (r"^fc\.1\.", "pooling.norm."),
    (r"\.bn\.", ".norm."),
    (r"^conv1\.", "backbone.stem."),
    (r"^conv5\.", "backbone.transitions.2."),
    *((rf"^(conv{stage + 2}\.2|pool{stage + 2})\.0\.", f"backbone.transitions.{stage}.") for stage in (0, 1)),
    *((rf"^conv{stage + 2}\.", f"backbone.stages.{stage}.") for stage in (0, 1, 2)),
    (r"(stages\.\d\.\d)\.conv1\.", r"\1.reduce."),
    (r"(stages\.\d\.\d)\.conv3\.", r"\1.expand."),
    (r"(stages\.\d\.\d)\.IN\.", r"\1.expand.norm."),
    (r"(stages\.\d\.\d)\.downsample\.", r"\1.shortcut."),
    (r"\.gate\.fc1\.", ".gate.squeeze."),
    (r"\.gate\.fc2\.", ".gate.excite."),
    (r"\.conv2a\.", ".streams.0.0."),
    *((rf"\.conv2{letter}\.", f".streams.{stream}.") for stream, letter in ((1, "b"), (2, "c"), (3, "d"))),
    (r"\.conv2\.(\d)\.layers\.", r".streams.\1."),
    (r"(streams\.\d\.\d)\.conv1\.", r"\1.pointwise."),
    (r"(streams\.\d\.\d)\.conv2\.", r"\1.depthwise."),
)
_FAST_REID: _Rules = (
    (r"^heads\.(bnneck|bottleneck\.0)\.", "neck."),
    (r"^heads\.pool_layer\.", "pooling."),
)
_FAST_REID_REFUSED: _Rules = (
    (r"backbone\.NL_", "has non-local blocks (AGW, SBS); convert a BoT baseline"),
    (r"backbone\..*\.se\.", "has squeeze-and-excitation; convert a BoT baseline"),
    (r"heads\.bottleneck\.1\.", "reduces its feature by a convolution; convert a model with EMBEDDING_DIM 0"),
)
_TRANSREID: _Rules = (
    (r"^base\.patch_embed\.proj\.", "backbone.patch_embed."),
    (r"^base\.", "backbone."),
    (r"^bottleneck\.", "neck."),
)
_CLIP_REID: _Rules = (
    (r"^image_encoder\.proj$", "pooling.projection"),
    (r"^image_encoder\.class_embedding$", "backbone.cls_token"),
    (r"^image_encoder\.positional_embedding$", "backbone.pos_embed"),
    (r"^image_encoder\.conv1\.", "backbone.patch_embed."),
    (r"^image_encoder\.ln_pre\.", "backbone.norm_pre."),
    (r"^image_encoder\.ln_post\.", "backbone.norm."),
    (r"^image_encoder\.transformer\.resblocks\.", "backbone.blocks."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_TOKENS = ("backbone.cls_token", "backbone.pos_embed")
_SIE = "has an embedding of the camera (SIE), and students know no cameras; convert a baseline without it"
_CEIL_POOL = "backbone.maxpool.ceil_mode", "model.student.backbone.ceil_pool"


def _fast_reid(version: str, neck: str, *, ceil_pool: bool) -> Layout:
    """Return a generation of fast-reid: they differ in a name, and in what no tensor shows."""
    return Layout(
        f"fast-reid {version}",
        (r"backbone\.", neck),
        _FAST_REID,
        r"heads\.(classifier\.|weight$)",
        _FAST_REID_REFUSED,
        settings=((_CEIL_POOL[0], ceil_pool, _CEIL_POOL[1]),),
    )


LAYOUTS = (
    Layout("torchreid's OSNet", (r"conv1\.conv\.weight$", r"conv2\.0\.gate\.fc1\."), _OSNET, r"classifier\."),
    _fast_reid("before 0.3", r"heads\.bnneck\.", ceil_pool=False),
    _fast_reid("since 0.3", r"heads\.bottleneck\.", ceil_pool=True),
    Layout(
        "TransReID",
        (r"base\.cls_token$", r"base\.blocks\."),
        _TRANSREID,
        r"(base\.fc|classifier)\.",
        refused=(
            (r"base\.sie_embed$", _SIE),
            (r"b[12]\.", "has the branches of its jigsaw patches (JPM); convert a baseline without them"),
        ),
        batched=_TOKENS,
        optional=("neck",),
    ),
    Layout(
        "CLIP-ReID",
        (r"image_encoder\.", r"bottleneck_proj\."),
        _CLIP_REID,
        r"(classifier|classifier_proj|prompt_learner|text_encoder)\.",
        refused=(
            (r"cv_embed$", _SIE),
            (r"image_encoder\.attnpool\.", "is of RN50, which no student is; convert one of ViT-B/16"),
        ),
        joined={"neck": ("bottleneck", "bottleneck_proj")},
        batched=_TOKENS,
        optional=("neck",),
    ),
)
"""Programs whose checkpoints are trained models; the others' rules follow."""

_OTHERS: _Rules = (
    # Simple-CCReID (CAL): the backbone is a Sequential of torchvision's children, the neck is `bn`.
    *((rf"^base\.{place}\.", f"backbone.{name}.") for place, name in ((0, "conv1"), (1, "bn1"))),
    *((rf"^base\.{stage + 3}\.", f"backbone.layer{stage}.") for stage in (1, 2, 3, 4)),
    (r"^bn\.", "neck."),
    (r"^globalpooling\.", "pooling."),
    # torchvision, and AIM, which keeps torchvision's names and calls the neck `bn` too.
    (r"^(conv1|bn1|layer[1-4])\.", r"backbone.\1."),
    # torchreid's ResNets, which have torchvision's names, with a feature of 512.
    *_OSNET[:2],
    # TinyViT.
    (r"^(patch_embed|layers|norm_head)\.", r"backbone.\1."),
)
# ImageNet's classifier, of torchvision and of TinyViT, whose files may hold a table of indices too.
_OTHERS_LEFT_OUT = r"(fc|head|classifier(\.1)?)\.(weight|bias)$|layers\..*\.attention_bias_idxs$"
_PIXELS = ("pixel_mean", "pixel_std")
"""Where fast-reid keeps what pictures are normalised with, in 0..255, until its version 1.1."""


def translate(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], Origin | None]:
    """Rename the tensors of another program's file, and leave out what no feature depends on.

    Args:
        state: all that the file holds, by its names.
        path: of the file, for messages.

    Returns:
        Tensors by our names (`backbone.…`, `pooling.…`, `neck.…`), and what is known of where they are from; None for
        backbones pretrained on ImageNet, and for CAL, AIM and torchreid's ResNets.

    Raises:
        InputError: if the file is of several layouts at once, or of a network that no student is.
    """
    if any(name in state for name in _PIXELS):
        pixels = {name: state[name].flatten() / 255 for name in _PIXELS if name in state}
        state = {name: tensor for name, tensor in state.items() if name not in _PIXELS}
    else:
        pixels = {}
    layout = _recognise(state, path)
    if layout is None:
        return _translate_others(state), None
    for name in state:
        for pattern, why in layout.refused:
            if re.match(pattern, name):
                raise InputError(f"{path}: {layout.program}'s file {why} ({name})")
    kept = {name: tensor for name, tensor in state.items() if not re.match(layout.left_out, name)}
    mean, std = (tuple(pixels[name].tolist()) if name in pixels else None for name in _PIXELS)
    renamed = {_renamed(name, layout.rules): tensor for name, tensor in _join(kept, layout).items()}
    for name in layout.batched:
        if name in renamed:
            renamed[name] = renamed[name][(None,) * (3 - renamed[name].ndim)]
    return renamed, Origin(layout, mean, std)


def check_origin(student: Student, origin: Origin, path: Path) -> None:
    """Refuse a student that would compute something else of the same tensors.

    Raises:
        InputError: naming the key to set.
    """
    program = origin.layout.program
    for attribute, value, key in origin.layout.settings:
        try:
            here = attrgetter(attribute)(student)
        except AttributeError:  # another network, which the tensors will not fit
            continue
        if here != value:
            raise InputError(f"{path} is of {program}; set {key}={str(value).lower()}")
    for name, there in (("mean", origin.mean), ("std", origin.std)):
        here = getattr(student, name).flatten().tolist()
        if there is not None and not (
            len(there) == 3 and all(abs(a - b) < 1e-3 for a, b in zip(there, here, strict=True))
        ):
            shown = ",".join(f"{value:.4g}" for value in there)
            raise InputError(
                f"{path}: its pictures have another {name}; set 'model.student.{name}=[{shown}]'"
            )


def _recognise(names: Collection[str], path: Path) -> Layout | None:
    found = [
        layout
        for layout in LAYOUTS
        if all(any(re.match(mark, name) for name in names) for mark in layout.marks)
    ]
    if len(found) > 1:
        programs = " and ".join(layout.program for layout in found)
        raise InputError(
            f"{path} has the names of {programs}; save the state dict of one network, with its own names"
        )
    return found[0] if found else None


def _renamed(name: str, rules: _Rules) -> str:
    for pattern, ours in rules:
        name = re.sub(pattern, ours, name)
    return name


def _join(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Put parts that are one here side by side; of their counts of batches the first is as good as any."""
    joined = dict(state)
    for part, places in layout.joined.items():
        for name in [name for name in state if name.startswith(f"{places[0]}.")]:
            tensor = name.removeprefix(places[0])
            pieces = [state[f"{place}{tensor}"] for place in places if f"{place}{tensor}" in state]
            if all(piece.ndim == 1 for piece in pieces):
                joined[part + tensor] = torch.cat(pieces)
            else:
                joined[part + tensor] = pieces[0]
            for place in places:
                joined.pop(f"{place}{tensor}", None)
    return joined


def _translate_others(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    mobilenet = mobilenet_names(state)
    for name, tensor in state.items():
        if name in mobilenet:
            renamed[f"backbone.model.{mobilenet[name]}"] = tensor
        elif not re.match(_OTHERS_LEFT_OUT, name):
            matching = (rule for rule in _OTHERS if re.match(rule[0], name))
            renamed[_renamed(name, tuple(matching)[:1])] = tensor
    return renamed
