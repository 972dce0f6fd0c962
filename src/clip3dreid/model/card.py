"""The card of a model: what its file says of it, and how much of that is believed.

A file may come from anywhere. Before anything is built of a card, every class that it names must be a part of a
student, every key one of that part's, and every value within bounds that leave no room for a description of something
huge; and nothing of it may make `transformers` look for files, here or on a network. Classes of a package that the
user trusts by name may stand wherever ours may.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clip3dreid.errors import InputError
from clip3dreid.model.build import TARGET, is_trusted, trust_hint

CARD = "clip3dreid"
"""Where a checkpoint says what it holds: a key of the file, or of a safetensors file's metadata."""
CARD_VERSION = 1
MOST_PIXELS = 4096
"""Height and width at most: pictures of people have some hundred."""
MOST_FRAMES = 1024
"""Of a clip at most, and of its stride."""

# What a value must be, or nothing where it is that.
_Check = Callable[[Any], str]


def _whole(least: int, most: int) -> _Check:
    wanted = f"a whole number from {least} to {most}"
    return lambda value: "" if type(value) is int and least <= value <= most else wanted


def _number(least: float, most: float) -> _Check:
    wanted = f"a number from {least:g} to {most:g}"
    return lambda value: "" if type(value) in (int, float) and least <= value <= most else wanted


def _optional(check: _Check) -> _Check:
    return lambda value: "" if value is None else check(value)


def _several(count: int, check: _Check) -> _Check:
    def wrong(value: Any) -> str:
        if not isinstance(value, list) or len(value) != count:
            return f"a list of {count} numbers"
        return next(filter(None, map(check, value)), "")

    return wrong


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _one_of(*words: str) -> _Check:
    return lambda value: "" if value in words and isinstance(value, str) else " or ".join(words)


def _name(value: Any) -> str:
    return "" if isinstance(value, str) and len(value) <= 100 and value.isidentifier() else "a name"


def _arguments(value: Any) -> str:
    number = _number(-1e6, 1e6)
    if isinstance(value, dict) and all(
        not _name(key) and (item is None or isinstance(item, bool) or not number(item))
        for key, item in value.items()
    ):
        return ""
    return "switches and numbers by name"


# Vision models of `transformers` that are made of their own configuration alone. Others put a network of another
# library, or one that they fetch, inside themselves.
_KNOWN = """
aimv2_vision_model beit bit chinese_clip_vision_model clip_vision_model convnext convnextv2 cvt data2vec-vision
deit dinov2 dinov2_with_registers dinov3_vit donut-swin efficientnet focalnet glpn hiera ijepa internvl_vision
levit maskformer-swin mlcd_vision_model mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 pixio pixtral poolformer
pvt_v2 radio regnet resnet sam3_vit_model sam_vision_model sapiens2 segformer siglip_vision_model swiftformer
swin swin2sr swinv2 tipsv2_vision_model vit vit_msn vitdet yolos
"""
VISION_MODELS = frozenset(_KNOWN.split())
"""Types of vision models of `transformers` that are built."""
# Keys that name code, files, other networks, or weights to fetch.
_FORBIDDEN = re.compile(
    r"^_|^self$|^architecture$|auto_map|backbone|code_revision|implementation|name_or_path|pretrained|quantization"
    r"|remote|revision|^repo|use_kernels"
)
# Keys that say how often something is built, in whatever words.
_COUNTS = re.compile(r"layers|depth|blocks|stages|levels|repeats|experts|coefficient|multiplier")
_MOST_OF_A_KIND, _MOST_NUMBER, _MOST_ENTRIES, _MOST_NESTED = 256, 2**20, 2**15, 4
_MOST_OWN_NESTED = 16


def _configuration(value: Any) -> str:
    if not isinstance(value, dict):
        return "the configuration of a model of transformers"
    kind = value.get("model_type")
    if not isinstance(kind, str) or kind not in VISION_MODELS:
        return f"of a model_type known to be built from its configuration alone, which {_shown(kind)} is not"
    return _harmful(value, "", _MOST_NESTED)


def _harmful(value: Any, key: str, nested: int) -> str:
    """Say what the first entry would have to be that brings something in or asks for something huge."""
    if isinstance(value, dict | list):
        if not nested or len(value) > _MOST_ENTRIES:
            return f"of fewer entries, less nested ({_shown(key)})"
        entries = value.items() if isinstance(value, dict) else ((key, item) for item in value)
        for name, item in entries:
            if not isinstance(name, str) or _FORBIDDEN.search(name):
                return f"without {_shown(name)}, which could bring in code, files or another network"
            if wrong := _harmful(item, name, nested - 1):
                return wrong
        return ""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        return "" if len(value) <= 1000 and "${" not in value else f"plain in {_shown(key)}"
    most = _MOST_OF_A_KIND if _COUNTS.search(key) else _MOST_NUMBER
    possible = isinstance(value, int | float) and -most <= value <= most
    return "" if possible else f"within bounds, in {_shown(key)} {most} at most"


_MODEL = "clip3dreid.model"
_Part = dict[str, _Check]
_POOLINGS: dict[str, _Part] = {
    f"{_MODEL}.pooling.{name}": keys
    for name, keys in {
        "Average": {},
        "Maximum": {},
        "MaximumAverage": {},
        "ClassToken": {},
        "FullyConnected": {"channels": _whole(1, 2**16), "width": _whole(1, 2**16)},
        "ProjectedToken": {"channels": _whole(1, 2**16), "width": _whole(1, 2**16)},
        "GeneralisedMean": {"p": _number(1e-3, 1e3), "eps": _number(0, 1)},
        "WeighedPositions": {
            "positions": _whole(1, 2**16),
            "channels": _whole(1, 2**16),
            "width": _whole(1, 2**16),
        },
    }.items()
}
_BACKBONES: dict[str, _Part] = {
    f"{_MODEL}.resnet.ResNet": {
        "depth": _whole(1, 1000),
        "last_stride": _whole(1, 2),
        "width": _whole(1, 1024),
        "ibn": _flag,
        "ceil_pool": _flag,
    },
    f"{_MODEL}.video.ClipResNet": {
        "time": _one_of("i3d", "ap3d", "none"),
        "non_local": _flag,
        "depth": _whole(1, 1000),
        "last_stride": _whole(1, 2),
        "width": _whole(1, 1024),
        "temperature": _number(1e-6, 1e6),
        "attention": _flag,
    },
    f"{_MODEL}.osnet.OSNet": {"width": _whole(1, 1024), "instance_norm": _flag},
    f"{_MODEL}.vision_transformer.VisionTransformer": {
        "height": _whole(1, MOST_PIXELS),
        "width": _whole(1, MOST_PIXELS),
        "channels": _whole(1, 2**13),
        "depth": _whole(1, 256),
        "heads": _whole(1, 1024),
        "patch": _whole(1, 1024),
        "stride": _whole(1, 1024),
        "eps": _number(0, 1),
        "clip": _flag,
    },
    f"{_MODEL}.tiny_vit.TinyViT": {
        "widths": _several(4, _whole(1, 2**13)),
        "depths": _several(4, _whole(1, 256)),
        "heads": _several(4, _whole(1, 1024)),
        "windows": _several(4, _whole(1, 1024)),
        "drop_path": _number(0, 1),
    },
    f"{_MODEL}.transformer.TransformersBackbone": {
        "config": _configuration,
        "final_norm": _optional(_name),
        "forward": _optional(_arguments),
        "batch_norm_momentum": _optional(_number(0, 1)),
    },
}
_PLAIN: _Part = {
    "mean": _several(3, _number(-1e3, 1e3)),
    "std": _several(3, _number(1e-6, 1e3)),
    "neck": _flag,
    "neck_bias": _flag,
    "neck_dim": _optional(_whole(1, 2**16)),
    "ghost_group": _optional(_whole(2, 2**20)),
    "freeze_batch_norm": _flag,
}
_STUDENT: dict[str, _Part] = {
    f"{_MODEL}.student.Student": _PLAIN,
    f"{_MODEL}.clip_student.ClipStudent": {
        **_PLAIN,
        "time": _one_of("average", "maximum", "attention"),
        "guided": _one_of("middle", "all"),
    },
}


def valid_card(card: Any, path: Path | str) -> dict[str, Any]:
    """Check that a card is one of ours, of this version and of pictures of a possible size, and return it.

    Args:
        card: from a file that may come from anywhere.
        path: of that file, for messages.

    Raises:
        InputError: if it is none, another version's, or its height or width cannot be.
    """
    if not isinstance(card, dict):
        raise InputError(
            f"{path} does not say which student it holds, so it is no checkpoint of this project; "
            "make it one with clip3dreid weights convert=FILE out=NAME.safetensors"
        )
    if card.get("version") != CARD_VERSION:
        raise InputError(
            f"{path} has checkpoint version {_shown(card.get('version'))}, this program reads {CARD_VERSION}; "
            "evaluate it with the release that wrote it, or train anew"
        )
    for key in ("height", "width"):
        picture_size(card, key, path)
    return card


def check_network(config: Any, path: Path | str) -> None:
    """Check that the configuration of a model of `transformers` is of one that is made of it alone.

    Args:
        config: from a file that may come from anywhere.
        path: of that file, for messages.

    Raises:
        InputError: saying what it would have to be.
    """
    if wrong := _configuration(config):
        raise InputError(f"{path} is refused: it must be {wrong}")


def picture_size(card: Mapping[str, Any], key: str, name: Path | str) -> int:
    """Return height or width of a card.

    Raises:
        InputError: if it is none.
    """
    value = card.get(key)
    if wrong := _whole(1, MOST_PIXELS)(value):
        raise InputError(f"{name}: its {key} is {_shown(value)}, but must be {wrong}, in pixels")
    return int(value)  # type: ignore[arg-type]  # just checked


def check_student(config: Any, path: Path | str, trusted: Collection[str] = ()) -> None:
    """Check that the description of a student names parts of one, their keys and possible values alone.

    Args:
        config: from a file that may come from anywhere.
        path: of that file, for messages.
        trusted: packages whose classes may stand for the student or its parts, with any plain values.

    Raises:
        InputError: naming what is refused.
    """
    rest = _check_part(config, _STUDENT, "student", path, trusted)
    for part, known in (("backbone", _BACKBONES), ("pooling", _POOLINGS)):
        if is_trusted(config[TARGET], trusted):  # whose parts are called as it likes
            break
        where = f"student.{part}"
        _refuse_keys(_check_part(rest.pop(part, None), known, where, path, trusted), where, path)
    _refuse_keys(rest, "student", path)


def _check_part(
    config: Any, known: Mapping[str, _Part], where: str, path: Path | str, trusted: Collection[str]
) -> dict[str, Any]:
    """Return the keys of a part that are none of its plain ones."""
    target = config.get(TARGET) if isinstance(config, dict) else None
    if is_trusted(target, trusted):
        _check_own(config, where, path, trusted, _MOST_OWN_NESTED)
        return {}
    if not isinstance(target, str) or target not in known:
        what = f"is a {type(config).__name__}" if target is None else f"wants to build {_shown(target)}"
        names = ", ".join(name.rpartition(".")[2] for name in known)
        raise InputError(
            f"{path} is refused: its {where} {what}, where only {names} may stand{trust_hint(target)}"
        )
    rest = {key: value for key, value in config.items() if key != TARGET}
    for key, check in known[target].items():
        if key in rest and (wrong := check(value := rest.pop(key))):
            raise InputError(f"{path} is refused: its {where}.{key} is {_shown(value)}, but must be {wrong}")
    return rest


def _check_own(value: Any, where: str, path: Path | str, trusted: Collection[str], nested: int) -> None:
    """Check arguments of a trusted class: plain values, in which every object is a trusted one or a part of ours."""
    if isinstance(value, dict | list):
        if not nested or len(value) > _MOST_ENTRIES:
            raise InputError(f"{path} is refused: its {where} must be of fewer entries, less nested")
        if isinstance(value, dict) and TARGET in value and not is_trusted(value[TARGET], trusted):
            if value[TARGET] in _STUDENT:
                check_student(value, path, trusted)
            else:
                _refuse_keys(_check_part(value, _BACKBONES | _POOLINGS, where, path, trusted), where, path)
            return
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if not isinstance(key, int | str) or (str(key).startswith("_") and key != TARGET):
                _refuse_keys({key: item}, where, path)
            _check_own(item, f"{where}.{_shown(key)}", path, trusted, nested - 1)
    elif not (value is None or isinstance(value, bool | int | float | str)) or "${" in str(value):
        raise InputError(f"{path} is refused: its {where} is {_shown(value)}, but must be a plain value")


def _refuse_keys(unknown: Mapping[Any, Any], where: str, path: Path | str) -> None:
    """Refuse keys that are left."""
    if unknown:
        raise InputError(f"{path} is refused: its {where} has no key {_shown(next(iter(unknown)))}")


def _shown(value: Any) -> str:
    """Return a value of a file in a message: short, and on one line."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return f"a number of {int(math.log10(abs(value))) + 1} digits"
    try:
        text = " ".join(repr(value).split()) if not isinstance(value, str) else ascii(value)[1:-1]
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}..."


class ClipSize(NamedTuple):
    """How clips are cut out of tracklets, to be looked at."""

    frames: int
    """T, of a clip."""
    stride: int
    """How many frames further the next frame of a clip is."""


def clip_size(card: Mapping[str, Any], path: Path | str) -> ClipSize | None:
    """Return frames and stride of the clips that a model was trained on; None: it was trained on pictures.

    Args:
        card: of the model.
        path: of its file, for messages.

    Raises:
        InputError: if they cannot be.
    """
    if card.get("clips") is None:
        return None
    wrong = f"{path} says that its clips are {_shown(card['clips'])}, which cannot be; get the file again"
    if not isinstance(card["clips"], dict) or set(card["clips"]) != {"frames", "stride"}:
        raise InputError(wrong)
    frames, stride = card["clips"]["frames"], card["clips"]["stride"]
    if _whole(1, MOST_FRAMES)(frames) or _whole(1, MOST_FRAMES)(stride):
        raise InputError(wrong)
    return ClipSize(frames, stride)
