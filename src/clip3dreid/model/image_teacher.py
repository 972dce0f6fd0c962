"""Teachers of the global term: what embeds whole pictures, whether or not it reads texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.model.embedder import Embedder, Network, Pixels
from clip3dreid.model.frozen import FrozenNetwork
from clip3dreid.model.networks import OnnxNetwork, OpenVinoNetwork, TransformersNetwork
from clip3dreid.model.teacher_files import PIXELS, read_pixels
from clip3dreid.model.teacher_view import View

FINGERPRINT_VERSION = 1
"""Goes up when the same files begin to give other embeddings."""


class ImageTeacher(FrozenNetwork):
    """A teacher of the global term: what it says of a picture is an embedding of length 1."""


class NetworkTeacher(ImageTeacher):
    """Any network that embeds pictures, and reads no text.

    Args:
        network: what a library made of its files.
        view: how pictures are fitted to its input.
        pixels: what values it wants.
        name: for people to read.

    Raises:
        InputError: as `Embedder`.
    """

    def __init__(self, network: Network, view: View, pixels: Pixels, *, name: str) -> None:
        super().__init__()
        self.name, self.view = name, view
        self.embedder = Embedder(network, pixels, view.size)
        self.width = self.embedder.width
        self.train(False)

    @property
    def device(self) -> torch.device:
        """Return where the network is; libraries that know the CPU alone stay there."""
        return self.embedder.device

    @cached_property
    def fingerprint(self) -> str:
        """Return a hexadecimal digest of all that decides an embedding: content of the files, view and pixels."""
        said = f"{FINGERPRINT_VERSION}\n{self.view.describe()}\n{self.embedder.describe()}\n"
        digest = hashlib.sha256(said.encode())
        for path in self.embedder.network.files:
            with path.open("rb") as file:
                digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W), uint8 0..255 or floating 0..1, to embeddings (B, d) of length 1.

        They lie on the device of the pictures.

        Raises:
            TypeError: if the pictures are neither bytes nor fractions.
        """
        return F.normalize(self.embedder(self.view(images)), dim=-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Of what `fn` does, the device alone counts: the network keeps its own precision.
        self.embedder.to(fn(torch.empty(0, device=self.device)).device)
        return self


class FileTeacher(NetworkTeacher):
    """A network in one file as teacher; what kind of file is a subclass's to say.

    Args:
        path: the file.
        view: how pictures are fitted to its input.
        pixels: what values it wants.
        name: for people to read.
        output: name or number of the output that is the embedding; None: the only one.
        fetch: the command that gets the file, for the message where it is missing.

    Attributes:
        reads: makes the network of a file and the output.
        looks: such a file's name, for messages.

    Raises:
        InputError: as `reads` and `Embedder`, and if the file is not there.
    """

    reads: ClassVar[type[OnnxNetwork | OpenVinoNetwork]]
    looks: ClassVar[str]

    def __init__(
        self,
        path: str | None,
        view: View,
        pixels: Pixels,
        *,
        name: str,
        output: str | int | None = None,
        fetch: str | None = None,
    ) -> None:
        super().__init__(self.reads(_there(path, self.looks, fetch), output), view, pixels, name=name)


class OnnxTeacher(FileTeacher):
    """A file of ONNX as teacher; see `FileTeacher` and `OnnxNetwork`."""

    reads = OnnxNetwork
    looks = "FILE.onnx"


class OpenVinoTeacher(FileTeacher):
    """A network in OpenVINO's IR, an `.xml` with its `.bin` beside it; see `FileTeacher` and `OpenVinoNetwork`."""

    reads = OpenVinoNetwork
    looks = "FILE.xml"


class TransformersTeacher(NetworkTeacher):
    """A vision model of `transformers` as teacher.

    Args:
        path: its folder.
        view: how pictures are fitted to its input.
        pixels: what values it wants; None: what `preprocessor_config.json` in the folder says.
        name: for people to read.
        output: `token`, `average`, or None: the class token of networks that have one.
        fetch: the command that gets the files, for the message where they are missing.

    Raises:
        InputError: as `TransformersNetwork` and `Embedder`, and if the folder is not there or does not say what
            pixels are wanted.
    """

    def __init__(
        self,
        path: str | None,
        view: View,
        pixels: Pixels | None = None,
        *,
        name: str,
        output: str | None = None,
        fetch: str | None = None,
    ) -> None:
        folder = _there(path, "FOLDER", fetch)
        wanted = pixels or _published_pixels(folder)
        super().__init__(TransformersNetwork(folder, output), view, wanted, name=name)


def _published_pixels(folder: Path) -> Pixels:
    if not (folder / PIXELS).is_file():
        raise InputError(
            f"{folder} has no {PIXELS}, which says what pixels its network wants; copy it there, or give "
            "model.teacher.pixels"
        )
    mean, std = read_pixels(folder)
    return Pixels(mean=tuple(mean), std=tuple(std))


def _there(path: str | None, what: str, fetch: str | None) -> Path:
    """Return a path that is there."""
    if path is None:
        raise InputError(f"this teacher's files are not given; give model.teacher.path={what}")
    place = Path(path).expanduser()
    if not place.exists():
        advice = f"give model.teacher.path={what}" if fetch is None else f"get it: {fetch}"
        raise InputError(f"no network at {place}; {advice}")
    return place
