"""Take a network of others for a model: any file that embeds pictures, with a few lines that say what it wants.

A file says little of its input: 0..1 or 0..255, RGB or BGR cannot be read off it, and what is guessed wrongly runs
all the same and finds fewer people. So these are asked for, once, in a small YAML file beside the network or by
arguments; only what this project exported says it by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.constants import CONFIG_NAME
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.io.checks import check, hint, some
from clip3dreid.io.formats import peek_json, read_yaml
from clip3dreid.model.card import MOST_PIXELS, VISION_MODELS
from clip3dreid.model.embedder import Network, Pixels
from clip3dreid.model.image_teacher import ImageTeacher, NetworkTeacher
from clip3dreid.model.networks import (
    OnnxNetwork,
    OpenVinoNetwork,
    TorchExportNetwork,
    TransformersNetwork,
)
from clip3dreid.model.places import LIBRARY
from clip3dreid.model.student import Student
from clip3dreid.model.teacher_files import FAMILIES, PIXELS, read_pixels
from clip3dreid.model.teacher_view import Native
from clip3dreid.types import Features

FILES = {".onnx": "ONNX", ".xml": "OpenVINO", ".pt2": "torch.export"}
"""Ends of a network's file, and what it is."""
ABOUT = (".yaml", ".yml")
"""Ends of a file that describes a network."""
_TAKEN = "a network's file (.onnx, .xml, .pt2), a YAML file that describes one, or a folder of transformers"
_SIDE = "a whole number of pixels"


@dataclass(frozen=True)
class NetworkFile:
    """Say which file a network is, and what pictures it wants.

    Args:
        network: the file, or a folder of `transformers`; in YAML relative to the YAML file, and by default the one of
            its name.
        height: H, in pixels, that pictures are resized to; None: the only one that the file takes.
        width: W, likewise.
        square: pad pictures to a square first, instead of stretching them.
        channels: rgb or bgr.
        range: what white is: 255 or 1.
        mean: that is subtracted from each channel, in units of `range`; None: nothing is.
        std: that each is divided by; None: nothing is.
        output: name or number of the output that is the feature; of a vision model of `transformers` `token` or
            `average`; None: the only one.
        flip: look at the mirror image too, unless something else is asked for.
        providers: of onnxruntime, by preference; None: the CPU.
        name: for people to read; None: the file's.
        licence: of the weights; None: not known.
        source: where they come from; None: not known.

    Raises:
        InputError: if a value is none of these.
    """

    network: Path
    height: int | None = None
    width: int | None = None
    square: bool = False
    channels: Literal["rgb", "bgr"] | None = None
    range: Literal[1, 255] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    output: str | int | None = None
    flip: bool = True
    providers: tuple[str, ...] | None = None
    name: str | None = None
    licence: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        check(self)
        for key in ("height", "width"):
            side = getattr(self, key)
            if side is not None and not 1 <= side <= MOST_PIXELS:
                raise InputError(f"{key}={side} must be {_SIDE} from 1 to {MOST_PIXELS}")

    @property
    def pixels(self) -> Pixels | None:
        """Return what pixels it wants; None where nothing is said of them."""
        said = {
            key: value
            for key in ("channels", "range", "mean", "std")
            if (value := getattr(self, key)) is not None
        }
        return Pixels(**said) if said else None


KEYS = tuple(one.name for one in fields(NetworkFile) if one.name != "network")
"""What may be said of a network beside its file."""


class NetworkStudent(nn.Module):
    """A network of others in a student's place: it is evaluated and never trained, and shares its interface.

    Map, pooled feature and embedding are the same vector, of length 1.

    Args:
        network: what embeds.
        about: what was said of it.

    Attributes:
        width: D, of the embedding.
        channels: the same.
        about: what was said of it.
    """

    def __init__(self, network: ImageTeacher, about: NetworkFile) -> None:
        super().__init__()
        self.network, self.about = network, about
        self.width = self.channels = network.width

    @property
    def device(self) -> torch.device:
        """Return where pictures are wanted; a library that knows the CPU alone fetches them."""
        return self.network.device

    def forward(self, images: Tensor) -> Features:
        """Embed pictures (B, 3, H, W), RGB 0..1."""
        embedding = self.network(images)
        return Features(map=embedding[:, :, None, None], pooled=embedding, embedding=embedding)


AnyStudent = Student | NetworkStudent
"""What embeds pictures: a student of ours, or what stands in its place."""


def is_network(place: str | Path) -> bool:
    """Return whether a place is of a network of others: its file, its description, or a folder of `transformers`."""
    path = Path(place).expanduser()
    if path.suffix.lower() in (*FILES, *ABOUT):
        return not path.is_dir()
    config = path / CONFIG_NAME
    said = peek_json(config) if config.is_file() else None
    kind = None if said is None or said.get("library") == LIBRARY else said.get("model_type")
    return isinstance(kind, str) and (kind in FAMILIES or kind in VISION_MODELS)


def network_student(
    place: str | Path, said: Mapping[str, Any] | None = None
) -> tuple[NetworkStudent, dict[str, Any]]:
    """Read a network of others.

    Args:
        place: as of `is_network`.
        said: of `KEYS`, what counts more than a description beside the file.

    Returns:
        It, and the card of the model that it is: plain values.

    Raises:
        InputError: if it is not there or not described, or it takes or gives something else than was said.
    """
    about = describe_network(Path(place).expanduser(), said or {})
    path = about.network
    if not path.exists():
        raise InputError(
            f"{path} is not there; give a network's file (.onnx, .xml, .pt2) or a folder of transformers"
        )
    kind = "transformers" if path.is_dir() else FILES.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path} is no network that can be read; give {', '.join(FILES)} or a folder of transformers"
        )
    teacher = _folder(about) if path.is_dir() else _file(about)
    student = NetworkStudent(teacher, about).eval()
    card = {
        "student": {"_target_": f"{NetworkStudent.__module__}.{NetworkStudent.__name__}", "network": kind}
        | {"sha256": teacher.fingerprint},
        "height": teacher.view.size[0],
        "width": teacher.view.size[1],
        "square": about.square,
        "flip": about.flip,
        "network": {key: value for key in ("name", "licence", "source") if (value := getattr(about, key))},
    }
    return student, card


def check_no_network(place: str | Path, said: Mapping[str, Any] | None) -> None:
    """Check that nothing is said of a network of others where a model of ours says all by itself.

    Raises:
        InputError: naming what was said.
    """
    if said:
        raise InputError(
            f"{place} is a model of ours, which knows its pictures itself; leave {some(list(said))} out"
        )


def describe_network(place: Path, said: Mapping[str, Any]) -> NetworkFile:
    """Return what is said of a network: by arguments, then by its YAML file, then by the file itself if it is ours.

    Args:
        place: the network or its description.
        said: of `KEYS`.

    Raises:
        InputError: if something is said of it that there is no key for.
    """
    beside = next(filter(Path.is_file, map(place.with_suffix, ABOUT)), None)
    sheet = place if place.suffix.lower() in ABOUT else beside
    written: Any = (
        {} if sheet is None else read_yaml(sheet, "the description of a network", f"give {some(KEYS)}")
    )
    if not isinstance(written, dict):
        raise InputError(f"{sheet} must say height: 256 and the like, not a list")
    for where, keys in ((sheet, written.keys() - {"network"}), ("the model", said)):
        if unknown := next((key for key in keys if key not in KEYS), None):
            raise InputError(
                f"{where}: {unknown} is nothing that is said of a network; say {', '.join(KEYS)}"
                f"{hint(str(unknown), KEYS)}"
            )
    network = place
    if sheet == place:
        network = _beside(place, written.get("network"))
    values = {
        key: value for key, value in (written | dict(said)).items() if value is not None and key != "network"
    }
    values |= {
        key: tuple(values[key]) for key in ("mean", "std", "providers") if isinstance(values.get(key), list)
    }
    return NetworkFile(network, **values)


def _beside(sheet: Path, named: Any) -> Path:
    """Return the network that a description is of."""
    if named is not None:
        return sheet.parent / str(named)
    found = [sheet.with_suffix(end) for end in FILES if sheet.with_suffix(end).is_file()]
    if len(found) != 1:
        raise InputError(f"{sheet} says of no network which it is; add network: FILE.onnx")
    return found[0]


def _file(about: NetworkFile) -> ImageTeacher:
    path = about.network
    readers = {".onnx": OnnxNetwork, ".xml": OpenVinoNetwork, ".pt2": TorchExportNetwork}
    read: Any = readers[path.suffix.lower()]
    if about.providers is not None:
        if read is not OnnxNetwork:
            raise InputError(f"{path}: providers are onnxruntime's, and this is no ONNX; leave them out")
        read = partial(read, providers=about.providers)
    network: Network = read(path, about.output)
    about = _of_ours(about, getattr(network, "contract", None))
    pixels = about.pixels
    if pixels is None:
        raise InputError(
            f"{path} does not say what pixels it takes; write {path.with_suffix('.yaml').name} beside it with "
            "channels: rgb, range: 1, mean: [...], std: [...], or give them as arguments"
        )
    takes = network.takes
    height, width = about.height or takes.height, about.width or takes.width
    if height is None or width is None:
        raise InputError(f"{path} takes pictures of any size; say height and width, as it was trained")
    # Here and not where teachers are asked the same: there the keys have other names.
    if (height, width) != (takes.height or height, takes.width or width):
        raise InputError(
            f"{path} takes pictures of {takes.height or height}x{takes.width or width} pixels, not {height}x{width}; "
            "leave height and width out, or say these"
        )
    if network.takes_bytes and not pixels.are_bytes:
        raise InputError(f"{path} takes bytes; say range=255, and no mean and std")
    return NetworkTeacher(network, Native(height, width), pixels, name=about.name or path.name)


def _of_ours(about: NetworkFile, contract: Mapping[str, Any] | None) -> NetworkFile:
    """Return what a file of this project's export says of itself, where nobody says otherwise."""
    if contract is None or about.pixels is not None:
        return about
    try:
        return replace(
            about,
            height=about.height or contract["height"],
            width=about.width or contract["width"],
            square=about.square or contract["square"],
            channels="rgb",
            range=255 if contract["input"]["dtype"] == "uint8" else 1,
            mean=None if contract["mean"] is None else tuple(contract["mean"]),
            std=None if contract["std"] is None else tuple(contract["std"]),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{about.network}: what it says of itself is damaged; export it anew") from error


def _folder(about: NetworkFile) -> ImageTeacher:
    path = about.network
    config = peek_json(path / CONFIG_NAME) or {}
    height, width = about.height, about.width
    if height is None or width is None:
        size = config.get("vision_config", config).get("image_size")
        if not isinstance(size, int):
            raise InputError(f"{path} does not say what size it was trained at; say height and width")
        height, width = height or size, width or size
    view = Native(height, width)
    name = about.name or path.name
    if config.get("model_type") in FAMILIES:
        # Here: it loads the library.
        from clip3dreid.model.teacher import Teacher

        if about.pixels is not None or about.output is not None:
            raise InputError(
                f"{path} is a {config['model_type']}, whose pixels and output are known; leave them out"
            )
        return Teacher(str(path), view, name=name)
    pixels = about.pixels
    if pixels is None:
        if not (path / PIXELS).is_file():
            raise InputError(
                f"{path} has no {PIXELS}, which says what pixels it takes; copy it there, or say mean and std"
            )
        mean, std = read_pixels(path)
        pixels = Pixels(mean=tuple(mean), std=tuple(std))
    if isinstance(about.output, int):
        raise InputError(f"{path}: output={about.output} must be token or average")
    return NetworkTeacher(TransformersNetwork(path, about.output), view, pixels, name=name)
