"""The shape teacher: a small frozen network that says from a picture of a dressed person what the body is like.

It is to the 3D identity space what CLIP is to the words: it learnt once, from rendered people whose shape is known,
and a student is taught by its answers. It says how sure it is, so that a picture that hides the body counts less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Positive, allows, choose, some
from clip3dreid.io.formats import damaged, decoding, read_json
from clip3dreid.model.backbone import exactly
from clip3dreid.model.build import build
from clip3dreid.model.checked_folder import CARD, WEIGHTS, check_sums, write_folder, write_plain
from clip3dreid.model.frozen import FrozenNetwork
from clip3dreid.model.places import PACKAGED, packaged
from clip3dreid.model.student import Student
from clip3dreid.model.teacher_view import Native

SHAPE_CARD_VERSION = 1
KINDS = ("betas", "identity")
"""What a network has learnt: shape coefficients; or, as a control, who is who among the same people."""
LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE = -5.0, 3.0
"""Of a standardised coefficient: no answer is surer than a tenth of a deviation, none less sure than four."""
# Keys of the config that are the entry points' and not the shape teacher's: where its answers are kept.
NODE_KEYS = ("cache", "cache_dir")
_NEEDS = {
    **{"version": Positive, "learns": str, "student": dict, "height": Positive, "width": Positive},
    **{"coefficients": list, "mean": list, "deviation": list, "rest": list, "body": dict},
}
_AGAIN = "get the folder anew, or give model.shape_teacher.path"


class ShapeAnswers(NamedTuple):
    """What a network says of B pictures."""

    value: Tensor
    """(B, A) float32: coefficients, standardised over the people that it learnt from; or an embedding."""
    log_variance: Tensor
    """(B, A) float32: of each value as it sees it; 0 for an embedding."""


class ShapeNetwork(nn.Module):
    """A student's network, and a linear head that answers with means and logarithms of variances.

    Args:
        student: the network.
        answers: A, how many coefficients it says; None: its embedding is the answer.
    """

    def __init__(self, student: Student, answers: int | None) -> None:
        super().__init__()
        self.student = student
        self.head = None if answers is None else nn.Linear(student.width, 2 * answers)
        self.width = student.width if answers is None else answers

    def forward(self, images: Tensor) -> ShapeAnswers:
        """Answer for pictures (B, 3, H, W) RGB, floating point, 0..1."""
        embedding = self.student(images).embedding.float()
        if self.head is None:
            return ShapeAnswers(embedding, torch.zeros_like(embedding))
        value, log_variance = self.head(embedding).chunk(2, dim=1)
        return ShapeAnswers(value, log_variance.clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE))


def mirrored(network: Callable[[Tensor], ShapeAnswers], images: Tensor) -> ShapeAnswers:
    """Return the mean of what a network says of pictures (B, 3, H, W) in 0..1 and of their mirror images.

    Both show the same body.
    """
    upright, flipped = network(images), network(images.flip(-1))
    return ShapeAnswers(*((one + other) / 2 for one, other in zip(upright, flipped, strict=True)))


class ShapeCard(NamedTuple):
    """What the folder of a shape teacher says of it, as far as anything depends on it."""

    learns: str
    """One of `KINDS`."""
    student: Mapping[str, Any]
    """The description of its network."""
    height: int
    """H that it is shown pictures in, pixels."""
    width: int
    coefficients: tuple[int, ...]
    """(A,) which of the body's shape coefficients it says; empty for an embedding."""
    mean: tuple[float, ...]
    """(A,) of the people that it learnt from: a coefficient is mean + deviation * answer."""
    deviation: tuple[float, ...]
    """(A,) above 0."""
    rest: tuple[float, ...]
    """(K,) what all of the body's coefficients are where nothing is known: the means of these people."""
    body: Mapping[str, Any]
    """`name`, `sha256` and `num_betas` of the body file whose coefficients they are."""


class ShapeTeacher(FrozenNetwork):
    """A shape teacher, frozen.

    The network is no part of the module's parameters, buffers or state: optimisers and checkpoints never meet it.

    Args:
        path: a folder that `clip3dreid pretrain_shape_teacher` wrote, or `package:NAME`, one that ships with this
            project.
        name: for people to read.
        trusted: packages of the user's own whose classes its network may be made of.

    Attributes:
        card: what its folder says of it.
        width: 2 A, columns of what it answers.
        view: how pictures are fitted to its input.

    Raises:
        InputError: if the files are not there, incomplete or damaged.
    """

    network: ShapeNetwork

    def __init__(self, path: str, *, name: str, trusted: Collection[str] = ()) -> None:
        super().__init__()
        self.name = name
        self.folder = _locate(str(path), name)
        self.card = read_shape_card(self.folder)
        # Its first, random weights are drawn from nobody's generator: whoever reads it trains as without it.
        with torch.random.fork_rng(devices=[]):
            student = build(self.card.student, trusted)
            network = ShapeNetwork(student, len(self.card.coefficients) or None)
        _load(network, self.folder / WEIGHTS)
        # Past nn.Module's own bookkeeping, or the network would be trained, saved and cast with its owner.
        self.__dict__["network"] = network.requires_grad_(False).eval()
        self.width = 2 * network.width
        self.view = Native(self.card.height, self.card.width)
        self.train(False)

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return self.network.student.mean.device

    @cached_property
    def fingerprint(self) -> str:
        """Return a hexadecimal digest of all that decides an answer."""
        digest = hashlib.sha256(f"shape teacher {SHAPE_CARD_VERSION}\n{self.view.describe()}\n".encode())
        for name in (CARD, WEIGHTS):
            with (self.folder / name).open("rb") as file:
                digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W), uint8 0..255 or floating 0..1, to values and log variances (B, 2 A) float32."""
        images = images.to(self.device)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        with exactly(self.device):
            return torch.cat(mirrored(self.network, self.view(images)), dim=1)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0, device=self.device)).device
        if device != self.device:
            self.network.to(device)
        return self


def load_shape_teacher(node: Mapping[str, Any], trusted: Collection[str] = ()) -> ShapeTeacher:
    """Build the shape teacher that a mapping describes, such as the node `model.shape_teacher` of a config.

    Args:
        node: `_target_` and arguments of a `ShapeTeacher`; `NODE_KEYS` beside them are the caller's and left alone.
        trusted: packages of the user's own whose classes its network may be made of.

    Raises:
        InputError: as `ShapeTeacher`, and if the node describes something else.
    """
    plain = {key: value for key, value in node.items() if key not in NODE_KEYS}
    teacher = build({**plain, "trusted": list(trusted)} if trusted else plain, trusted)
    if not isinstance(teacher, ShapeTeacher):
        raise InputError(
            f"model.shape_teacher._target_ makes a {type(teacher).__name__}, not a shape teacher"
        )
    return teacher


def answers_of(rows: Tensor) -> ShapeAnswers:
    """Return values and log variances of rows (N, 2 A) that a `ShapeTeacher` gave."""
    return ShapeAnswers(*rows.chunk(2, dim=1))


def save_shape_teacher(
    folder: Path, network: ShapeNetwork, card: ShapeCard, facts: Mapping[str, Any]
) -> None:
    """Write a shape teacher's folder, all of it or nothing.

    Args:
        folder: where.
        network: that has learnt.
        card: of it.
        facts: what else `card.json` is to say, as plain values.

    Raises:
        InputError: as `checked_folder.write_folder`.
    """

    def fill(made: Path) -> None:
        state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        save_file(state, made / WEIGHTS)
        write_plain(made / CARD, {"version": SHAPE_CARD_VERSION, **card._asdict(), **facts})

    write_folder(folder, fill)


def read_shape_card(folder: Path) -> ShapeCard:
    """Read what a shape teacher's folder says of it.

    Raises:
        InputError: if it is of another version, or damaged.
    """
    facts = read_json(folder / CARD, "the card of a shape teacher", _AGAIN)
    if wrong := [key for key, wanted in _NEEDS.items() if not allows(wanted, facts.get(key))]:
        raise damaged(folder / CARD, f"it says nothing usable of {some(wrong)}", _AGAIN)
    if facts["version"] != SHAPE_CARD_VERSION:
        raise InputError(f"{folder / CARD} is of version {facts['version']}; {_AGAIN}")
    choose(f"{folder / CARD}: learns", facts["learns"], KINDS)
    with decoding(folder / CARD, "the card of a shape teacher", _AGAIN):
        coefficients: tuple[int, ...] = tuple(int(one) for one in facts["coefficients"])
        mean, deviation, rest = (tuple(float(x) for x in facts[key]) for key in ("mean", "deviation", "rest"))
    if not len(coefficients) == len(mean) == len(deviation) or not _fits(
        coefficients, deviation, rest, facts
    ):
        raise damaged(folder / CARD, "coefficients, mean, deviation and rest do not fit together", _AGAIN)
    plain = {key: facts[key] for key in ("learns", "student", "height", "width", "body")}
    return ShapeCard(**plain, coefficients=coefficients, mean=mean, deviation=deviation, rest=rest)


def _fits(
    coefficients: Sequence[int], deviation: Sequence[float], rest: Sequence[float], facts: Mapping[str, Any]
) -> bool:
    within = all(0 <= one < len(rest) for one in coefficients) and min(deviation, default=1.0) > 0
    return within and (bool(coefficients) == (facts["learns"] == "betas"))


def _locate(path: str, name: str) -> Path:
    folder = packaged(path) if path.startswith(PACKAGED) else Path(path).expanduser()
    absent = [file for file in (CARD, WEIGHTS) if not (folder / file).is_file()]
    if absent:
        raise InputError(
            f"shape teacher {name} ({path}): no {' and no '.join(absent)}; make one with clip3dreid "
            "pretrain_shape_teacher, or give model.shape_teacher.path"
        )
    check_sums(folder)
    return folder


def _load(network: ShapeNetwork, path: Path) -> None:
    with decoding(path, "the weights of a shape teacher", _AGAIN):
        state = load_file(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} does not fit its card ({reason}); {_AGAIN}") from error
