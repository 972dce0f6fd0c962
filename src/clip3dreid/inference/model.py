"""A trained model in three lines of Python: embed pictures, describe people in words, give them bodies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.body.smpl import SHIPPED, BodyModel, body_digest, load_body
from clip3dreid.data.images import TestView, to_unit
from clip3dreid.errors import InputError
from clip3dreid.io.files import LOCK, at_work, inside, together, write_json, write_text
from clip3dreid.io.formats import damaged, peek_json, read_json, unsealed
from clip3dreid.io.pictures import Pixels, read_rgb, unreadable, upright_rgb
from clip3dreid.model.card import CARD, picture_size, valid_card
from clip3dreid.model.places import LIBRARY, find_model
from clip3dreid.model.student import Student
from clip3dreid.model.weights import build_student, has_card, read_checkpoint, save_weights

Picture = str | Path | Image.Image | npt.NDArray[np.uint8] | Tensor
"""A file; an image of Pillow; (H, W, 3) uint8 RGB; or a tensor (3, H, W) RGB, uint8 or floating point 0..1."""
Pictures = Picture | Iterable[Picture]
"""One picture, several, or an array (N, H, W, 3) or tensor (N, 3, H, W) of them; sizes may differ."""

# Shape coefficients; SMPL's files have 300.
_MOST_BETAS = 1000
# How far floats may leave 0..1: resampling overshoots by rounding, normalised pictures by far more.
_SLACK = 1e-3

_README = "README.md"
# Keys of a config that are no part of the card.
_ABOUT = ("library", "library_version")
# In a README: nobody has made it theirs yet.
_GENERATED = "<!-- Written anew by every save_pretrained; remove this line to keep your own words. -->"


class Word(NamedTuple):
    """One word of a description."""

    word: str
    score: float
    """Cosine, -1..1, of the picture and the word in the teacher's space; comparable within a group."""


Description = dict[str, list[Word]]
"""Group of words -> its words, the best first."""


class Shape(NamedTuple):
    """Bodies in the rest pose, on the CPU."""

    betas: Tensor
    """(N, K) float32: shape coefficients in standard deviations of the body file's population."""
    vertices: Tensor
    """(N, V, 3) float32, metres, y up."""
    faces: Tensor
    """(F, 3) int64, counter-clockwise seen from outside."""


class Outputs(NamedTuple):
    """All that a model says of a batch, on its device."""

    embedding: Tensor
    """(B, D) float32: the retrieval feature."""
    joint: Tensor | None
    """(B, d) float32 of length 1: in the teacher's space; None where a model has not learnt that."""
    betas: Tensor | None
    """(B, K) float32: shape coefficients; None likewise."""


class _Head(nn.Module):
    """Tensors of a linear layer and what goes with it, fixed, which move with the model."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            # A copy: the file that they are mapped from may be written anew.
            self.register_buffer(name, tensor.detach().clone().float())

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def tensor(self, name: str) -> Tensor:
        """One of the tensors, float32 whatever the model's precision."""
        return self.get_buffer(name).float()

    def forward(self, features: Tensor) -> Tensor:
        """(N, in) to (N, out), float32."""
        return F.linear(features.float(), self.tensor("weight"), self.tensor("bias"))


class ReidModel(nn.Module, ModelHubMixin, library_name=LIBRARY, tags=["person-re-identification"]):
    """A trained student with what it learnt of words and bodies; for use, not for training.

    Results are on the CPU, whatever device the model is on (`model.to("cuda")` moves it).

    Args:
        student: the network.
        card: what a checkpoint says of itself (`model.weights.read_card`), with `vocabulary`, `teacher` and `body`
            where heads need them.
        heads: `joint.weight` (d, C), `joint.bias` (d,), `joint.centre` (d,), `joint.words` (W, d), `shape.weight`
            (K, D) and `shape.bias` (K,), or those of them that there are.
        body: name or file of the body model; None: the one of the package that has the card's checksum, if any.
        name: what messages call the model.

    Attributes:
        card: the same, as plain JSON values.
        height: H, in pixels, that pictures are resized to.
        width: W.
        square: whether pictures are padded to a square before they are resized.
        groups: group -> words of the vocabulary; empty where the model knows none.

    Raises:
        InputError: if card, heads and student do not fit together, or the body is another than the card's.
    """

    def __init__(
        self,
        student: Student,
        card: Mapping[str, Any],
        heads: Mapping[str, Tensor],
        body: str | Path | None = None,
        name: str = "this model",
    ) -> None:
        super().__init__()
        try:
            self.card: dict[str, Any] = json.loads(json.dumps(dict(card), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{name}: its card holds more than plain values ({error})") from error
        self.height, self.width = (picture_size(self.card, key, name) for key in ("height", "width"))
        self.groups = _groups(self.card, name)
        self._name = name
        self.square = _flag(self.card, "square", name)
        self._view = TestView(self.height, self.width, self.square)
        self._body_card = _body_card(self.card, name)
        _check_heads(heads, student, sum(map(len, self.groups.values())), self._body_card, name)
        self.student = student
        self.heads = nn.ModuleDict()
        for part in ("joint", "shape"):
            tensors = {key.partition(".")[2]: heads[key] for key in heads if key.startswith(f"{part}.")}
            if tensors:
                self.heads[part] = _Head(tensors)
        self._body_file = self._find_body(body)
        # In a list, so that it is no part of the model: it stays float32 whatever the model's precision.
        self._bodies: list[BodyModel] = []
        self.eval()

    @property
    def name(self) -> str:
        """What messages call the model: where it was loaded from."""
        return self._name

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.student.mean.device

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each part of `Outputs` that this model gives."""
        found = {"embedding": self.student.width}
        for name, part in (("joint", "joint"), ("betas", "shape")):
            if part in self.heads:
                found[name] = len(self._head(part, "", "").get_buffer("bias"))
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that results depend on: network, weights, heads, words and the size of pictures."""
        # What is padded is named only where it is, so that other models keep their fingerprints.
        facts = [
            self.card["student"],
            self.height,
            self.width,
            self.groups,
            *(["square"] if self.square else []),
        ]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            # The number of batches seen in training changes no result, and is absent in older files.
            if not name.endswith(".num_batches_tracked"):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def forward(self, images: Tensor, *, flip: bool = True) -> Outputs:
        """Pictures through the student, once, and on to all that it has learnt.

        Args:
            images: (B, 3, H, W) RGB 0..1 on the model's device.
            flip: add the embedding of the mirror image, as evaluation does.

        Returns:
            Features, and for words and bodies those of the pictures as they are.
        """
        seen = self.student(images)
        embedding = seen.embedding.float()
        if flip:
            embedding = embedding + self.student(images.flip(-1)).embedding.float()
        joint, betas = None, None
        if "joint" in self.heads:
            # The projection is linear: the projected mean is the mean of the projections, at a fraction of the work.
            joint = F.normalize(self.heads["joint"](seen.map.float().mean((2, 3))), dim=1)
        if "shape" in self.heads:
            betas = self.heads["shape"](seen.embedding)
        return Outputs(embedding, joint, betas)

    def embed(self, images: Pictures, *, flip: bool = True, batch_size: int = 64) -> Tensor:
        """Retrieval features: the nearer two of them, the likelier the same person.

        Args:
            images: N pictures.
            flip: add the embedding of the mirror image, as evaluation does.
            batch_size: pictures at a time.

        Returns:
            (N, D) float32 as evaluation has them, not of length 1: rank by cosine.

        Raises:
            InputError: if a picture cannot be read or is none, naming it.
        """
        return self._run(lambda seen: seen.embedding, images, batch_size, self.student.width, flip=flip)

    def joint(self, images: Pictures, *, batch_size: int = 64) -> Tensor:
        """Pictures in the teacher's joint space of images and texts, where words can be looked for.

        Args:
            images: N pictures.
            batch_size: pictures at a time.

        Returns:
            (N, d) float32 of length 1: the projected feature map, averaged over its positions.

        Raises:
            InputError: as `embed`, and if the model has not learnt this.
        """
        head = self._head("joint", "the teacher's space", "loss.local (projection=student)")
        return self._run(lambda seen: seen.joint, images, batch_size, len(head.get_buffer("bias")))

    def describe(self, images: Pictures, *, batch_size: int = 64) -> list[Description]:
        """People in words, picture by picture.

        Args:
            images: N pictures.
            batch_size: pictures at a time.

        Returns:
            N times, for each group of the vocabulary its words with scores, the best first. A score is the cosine
            with the picture in standard deviations from the word's mean over the training pictures (a model favours
            some words whatever it is shown), or the cosine alone where a model does not know those.

        Raises:
            InputError: as `joint`.
        """
        self._words()  # refused before the work
        return self._described(self.joint(images, batch_size=batch_size))

    def describe_person(self, images: Pictures, *, batch_size: int = 64) -> Description:
        """One person in words, from several pictures: their mean in the teacher's space is described.

        Args:
            images: pictures of the same person, at least one.
            batch_size: pictures at a time.

        Returns:
            As one entry of `describe`.

        Raises:
            InputError: as `describe`, and if there is no picture.
        """
        self._words()
        joint = self.joint(images, batch_size=batch_size)
        if not len(joint):
            raise InputError("there is no picture of the person; give one or more")
        return self._described(F.normalize(joint.mean(0, keepdim=True), dim=1))[0]

    def shape(self, images: Pictures, *, batch_size: int = 64) -> Shape:
        """Bodies: what the student takes the people's figures to be, without pose and clothes.

        Args:
            images: N pictures.
            batch_size: pictures at a time.

        Returns:
            Coefficients and meshes in the rest pose.

        Raises:
            InputError: as `embed`, and if the model has not learnt this or the body's file is not known.
        """
        head = self._head("shape", "body shapes", "loss.body")
        body = self._load_body()
        betas = self._run(lambda seen: seen.betas, images, batch_size, len(head.get_buffer("bias")))
        with torch.no_grad():
            parts = [
                body.rest(part.to(self.device)).vertices.cpu() for part in torch.split(betas, batch_size)
            ]
        return Shape(betas, torch.cat(parts), body.faces.cpu())

    def _run(
        self,
        part: Callable[[Outputs], Tensor | None],
        images: Pictures,
        batch_size: int,
        width: int,
        *,
        flip: bool = False,
    ) -> Tensor:
        """Rows of width `width` of all pictures, on the CPU."""
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, but must be at least 1")
        # Someone may have called train(), and one batch would then change the running statistics.
        self.eval()
        with torch.no_grad():
            found = [part(self(batch, flip=flip)) for batch in self._batches(images, batch_size)]
        # The caller has asked for the head, or there would be nothing to ask for.
        parts = [values.cpu() for values in found if values is not None]
        return torch.cat(parts) if parts else torch.empty(0, width)

    def _batches(self, images: Pictures, size: int) -> Iterator[Tensor]:
        """(B, 3, H, W) float32 0..1 on the model's device."""
        if isinstance(images, Tensor) and images.shape[1:] == (3, self.height, self.width):
            # Ready as they are, on the device perhaps.
            for start in range(0, len(images), size):
                yield to_unit(_checked(images[start : start + size], f"from {start} on").to(self.device))
            return
        pictures = _listed(images)
        for start in range(0, len(pictures), size):
            planes = [self._planes(p, start + i) for i, p in enumerate(pictures[start : start + size])]
            if len({part.dtype for part in planes}) > 1:
                planes = [to_unit(part) for part in planes]
            yield to_unit(torch.stack(planes).to(self.device))

    def _planes(self, picture: Picture, number: int) -> Tensor:
        """One picture as (3, H, W), on the CPU."""
        if isinstance(picture, Tensor):
            if picture.ndim != 3 or len(picture) != 3 or not picture.numel():
                raise InputError(
                    f"picture {number} is a tensor {tuple(picture.shape)}, but must be (3, H, W) or (N, 3, H, W)"
                )
            picture = _checked(picture.detach().cpu(), str(number))
            if picture.shape[1:] == (self.height, self.width):
                return picture
            if picture.is_floating_point():  # what resizes pictures in training and evaluation takes bytes
                picture = picture.float().clamp(0, 1).mul(255).round().to(torch.uint8)
            rgb = picture.permute(1, 2, 0).contiguous().numpy()
        elif isinstance(picture, np.ndarray):
            shaped = picture.ndim == 3 and picture.shape[2] == 3 and picture.size
            if picture.dtype != np.uint8 or not shaped:
                raise InputError(
                    f"picture {number} is an array {picture.shape} of {picture.dtype}, but must be (H, W, 3) of "
                    "uint8, red first"
                )
            rgb = np.ascontiguousarray(picture)
        elif isinstance(picture, Image.Image):
            rgb = _from_pillow(picture, number)
        elif isinstance(picture, str | Path):
            rgb = read_rgb(Path(picture).expanduser(), "give one that can be read")
        else:
            raise InputError(
                f"picture {number} is a {type(picture).__name__}; give a path, an image of Pillow, an array "
                "(H, W, 3) of uint8 or a tensor (3, H, W)"
            )
        return torch.from_numpy(self._view(rgb))

    def _head(self, part: str, what: str, loss: str) -> _Head:
        if part not in self.heads:
            raise InputError(
                f"{self._name} has not learnt {what}: that is what the loss term {loss} teaches; train with it, or "
                "load the checkpoint of a run that had it"
            )
        head = self.heads[part]
        assert isinstance(head, _Head)
        return head

    def _words(self) -> Tensor:
        """(W, d) of length 1: the words as seen from the centre of the vocabulary, where their differences are."""
        head = self._head("joint", "words", "loss.local (projection=student)")
        if "words" not in head:
            raise InputError(
                f"{self._name} has the teacher's space and no words; load the checkpoint of a run with loss.local"
            )
        return F.normalize(head.tensor("words") - head.tensor("centre"), dim=1)

    def word_scores(self, joint: Tensor) -> Tensor:
        """How well each word of the vocabulary fits.

        Args:
            joint: (N, d) of length 1, as `joint` gives it; on any device.

        Returns:
            (N, W) float32 on the same device: words in the order of `groups`, scores as `describe` has them.

        Raises:
            InputError: as `joint`.
        """
        scores = joint @ self._words().to(joint.device).T
        head = self._head("joint", "words", "loss.local (projection=student)")
        if "usual" in head:
            # A model favours some words whatever it is shown.
            usual, spread = (head.tensor(name).to(joint.device) for name in ("usual", "spread"))
            scores = (scores - usual) / spread
        return scores

    def best_words(self, joint: Tensor) -> list[list[str]]:
        """The best word of each group, in the order of `groups`.

        Args:
            joint: (N, d), as `word_scores` takes it.

        Raises:
            InputError: as `joint`.
        """
        groups = list(self.groups.values())
        parts = torch.split(self.word_scores(joint), [len(words) for words in groups], dim=1)
        best = [part.argmax(1).tolist() for part in parts]
        return [
            [words[index] for words, index in zip(groups, row, strict=True)]
            for row in zip(*best, strict=True)
        ]

    def _described(self, joint: Tensor) -> list[Description]:
        sizes = [len(words) for words in self.groups.values()]
        found: list[Description] = []
        for row in self.word_scores(joint):
            parts = zip(self.groups.items(), row.split(sizes), strict=True)
            found.append(
                {
                    group: sorted(map(Word, words, part.tolist()), key=lambda word: -word.score)
                    for (group, words), part in parts
                }
            )
        return found

    def _find_body(self, body: str | Path | None) -> str | Path | None:
        """The body's file or name if it is known; only checksums say which it is, names in a card do not."""
        if self._body_card is None or "shape" not in self.heads:
            if body is not None:
                raise InputError(
                    f"{self._name} has not learnt body shapes (loss.body); leave body={body} out"
                )
            return None
        wanted = self._body_card["sha256"]
        if body is None:
            return next((name for name in SHIPPED if body_digest(name) == wanted), None)
        if (found := body_digest(body)) != wanted:
            raise InputError(
                f"body={body} (SHA-256 {found[:12]}…) is not the body of {self._name}, which is "
                f"{self._body_card['name']} ({wanted[:12]}…); give that file"
            )
        return body

    def _load_body(self) -> BodyModel:
        if not self._bodies:
            assert self._body_card is not None
            if self._body_file is None:
                raise InputError(
                    f"the body of {self._name} is {self._body_card['name']} (SHA-256 "
                    f"{self._body_card['sha256'][:12]}…), which is not in the package; give its file: "
                    "load(…, body=FILE)"
                )
            self._bodies.append(load_body(self._body_file, self._body_card["num_betas"]))
        return self._bodies[0].to(self.device)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # there are no further options
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        body: str | Path | None = None,
    ) -> Self:
        """Reads a model; see `load`, whose first argument is called as everywhere on the hub here."""
        place = find_model(
            pretrained_model_name_or_path,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        checkpoint = read_checkpoint(place.weights)
        source = place.config or place.weights
        card = valid_card(checkpoint.card if place.config is None else _read_config(place.config), source)
        student = build_student(card, checkpoint.state, source)
        model = cls(student, card, checkpoint.heads, body, str(pretrained_model_name_or_path))
        if place.config is not None:
            # Last, since what is wrong with a card by itself says more.
            _check_same_card(card, checkpoint.card, place.config)
        return model

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes a folder that `load` reads: `model.safetensors`, `config.json`, `README.md`.

        A README that somebody wrote stays; one of an earlier save would describe another model and does not.

        The body's file stays out, by its checksum alone: official ones may not be passed on.

        Args:
            save_directory: the folder; made if it is not there.
            options: of `huggingface_hub.ModelHubMixin.save_pretrained`, such as `push_to_hub=True`.

        Returns:
            The commit's address on the hub where it was pushed, else None.

        Raises:
            InputError: if the folder cannot be written, a full disk included, or holds another program's model; what
                was there before is still there.
        """
        folder = Path(save_directory).expanduser()
        saving = {key: options.pop(key) for key in ("config", "model_card_kwargs") if key in options}
        push, repo_id = options.pop("push_to_hub", False), options.pop("repo_id", None)
        _check_place(folder)
        # Every process of a training on several GPUs may come here; all write the same.
        with at_work(folder, "saves a model", wait=True, tidy=True):
            _check_place(folder)
            with together(folder, last=CONFIG_NAME) as made:
                super().save_pretrained(made, **saving)
                if _is_written(folder / _README):
                    (made / _README).unlink()
        return self.push_to_hub(repo_id or folder.name, **saving, **options) if push else None

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Saves the model to the Hugging Face hub.

        Args:
            repo_id: `user/name`.
            options: of `huggingface_hub.ModelHubMixin.push_to_hub`.

        Returns:
            The commit's address.
        """
        ignored = options.pop("ignore_patterns", None) or []
        # The lock is this machine's business.
        patterns = [*([ignored] if isinstance(ignored, str) else ignored), LOCK]
        return super().push_to_hub(repo_id, ignore_patterns=patterns, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {f"heads.{name}": tensor for name, tensor in self.heads.state_dict().items()}
        card = {key: value for key, value in self.card.items() if key not in _ABOUT}
        if self._body_card is not None:
            # The checksum says which file it is; where it lay is nobody's business.
            card["body"] = self._body_card | {"name": Path(self._body_card["name"]).name}
        # The weights carry the card too, so that evaluation and training take the file by itself.
        save_weights(self.student.state_dict() | tensors, card, save_directory / SAFETENSORS_SINGLE_FILE)
        write_text(save_directory / _README, str(self.generate_model_card()))
        about = dict(zip(_ABOUT, (LIBRARY, version("clip3dreid")), strict=True))
        write_json(save_directory / CONFIG_NAME, about | card)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """A short model card: what the model is and was trained on, how to use it, what is not known of it."""
        can = ["`model.embed(pictures)`: features for retrieval"]
        if "joint" in self.heads and "words" in self._head("joint", "", ""):
            can.append(f"`model.describe(pictures)`: words of {len(self.groups)} groups, with scores")
        if self._body_card is not None and "shape" in self.heads:
            can.append(
                f"`model.shape(pictures)`: {self._body_card['num_betas']} shape coefficients and a mesh of the body "
                f"file {Path(self._body_card['name']).name}"
            )
        data = self.card.get("data") or []
        trained = (
            ", ".join(map(str, data)) if isinstance(data, list) and data else "data that it does not name"
        )
        teacher = self.card.get("teacher")
        guided = f" Teacher: {teacher['name']}." if isinstance(teacher, dict) and "name" in teacher else ""
        network = str(self.card["student"].get("backbone", {}).get("_target_", "student")).rpartition(".")[2]
        text = f"""---
{self._hub_mixin_info.model_card_data.to_yaml()}
---

{_GENERATED}

# A model for clothes-changing person re-identification

A student of the Python package `clip3dreid` ({network}, {self.student.width} features) for pictures
of single people, {self.height} x {self.width} pixels. Trained on: {trained}.{guided}

```python
import clip3dreid

model = clip3dreid.load("THIS FOLDER OR ITS ID")
features = model.embed(["a.png", "b.png"])
```

{chr(10).join(f"- {line}" for line in can)}

## Limits

No score is given here: evaluate it on your own data with `clip3dreid evaluate`. Other cameras, crops and
people than those it was trained on may fare worse. Words and bodies are guesses from a picture, not measurements. The
terms of the training data may bind the weights too. Recognising people without a legal ground is unlawful in many
places.
"""
        return ModelCard(text)


def load(
    model: str | Path,
    *,
    body: str | Path | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
) -> ReidModel:
    """Reads a trained model, on the CPU; nothing in a file is run, and nothing is unpickled.

    Args:
        model: a folder that `save_pretrained` wrote; a folder of a training run, of which the last checkpoint is
            taken (give `checkpoints/best.ckpt` itself for the selected one); a checkpoint; safetensors of this
            project; or the id `user/name` of a model on the Hugging Face hub, which alone is ever downloaded. A
            folder or file of that name comes first.
        body: file of the body model, where the model knows bodies of a file that is not in the package.
        revision: on the hub: a branch, tag or commit.
        cache_dir: where downloads are kept; by default where all of the hub's are.
        local_files_only: take what has been downloaded before, and ask no network.
        force_download: download again.
        token: for the hub's private models; by default the one that is logged in.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: if there is nothing, or it is no model of this project or of this version, damaged or refused, or
            the body is another than the model's.
    """
    return ReidModel.from_pretrained(
        model,
        body=body,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
        token=token,
    )


def _is_written(readme: Path) -> bool:
    """Whether somebody has made a README theirs."""
    return readme.exists() and _GENERATED not in readme.read_text(encoding="utf-8", errors="replace")


def _check_place(folder: Path) -> None:
    """Raises InputError if saving there would write over another program's model."""
    config, weights = inside(folder, CONFIG_NAME), inside(folder, SAFETENSORS_SINGLE_FILE)
    said = peek_json(config)
    ours = said is not None and said.get("library") == LIBRARY
    # What a crash has left of ours may be its weights alone.
    if said is None:
        ours = has_card(weights) or not (config.exists() or weights.exists())
    if not ours:
        raise InputError(f"{folder} holds a model that is not of this project; choose another place")


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(
        path, "the config of a model", "load takes what save_pretrained wrote, or a checkpoint"
    )
    if config.get("library") != LIBRARY:
        raise InputError(
            f"{path} is not of this project; load takes what save_pretrained wrote, or a checkpoint"
        )
    return config


def _check_same_card(config: Mapping[str, Any], weights: Any, path: Path) -> None:
    """Raises InputError if config and weights, which carry the same card, are of two models or one is damaged."""
    ours = {key: value for key, value in config.items() if key not in _ABOUT}
    if weights is None:
        unsealed(path, CARD, (), "")
    elif json.dumps(ours, sort_keys=True) != json.dumps(weights, sort_keys=True):
        raise damaged(
            path, f"{SAFETENSORS_SINGLE_FILE} says otherwise", "copy both anew, or save the model again"
        )


def _flag(card: Mapping[str, Any], key: str, name: str) -> bool:
    """What a card says, false where it says nothing: those of older releases have no flags."""
    value = card.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{name}: its {key} is {value}, but must be true or false")
    return value


def _groups(card: Mapping[str, Any], name: str) -> dict[str, list[str]]:
    vocabulary = card.get("vocabulary")
    if vocabulary is None:
        return {}
    groups = vocabulary.get("groups") if isinstance(vocabulary, dict) else None
    if not isinstance(groups, dict) or not all(
        isinstance(words, list) and words and all(isinstance(word, str) for word in words)
        for words in groups.values()
    ):
        raise InputError(f"{name}: its vocabulary must give each group a list of words")
    if any(len(set(words)) < len(words) for words in groups.values()):
        raise InputError(f"{name}: its vocabulary has a word twice in a group")
    return groups


def _body_card(card: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    body = card.get("body")
    if body is None:
        return None
    kinds = {"name": str, "sha256": str, "num_betas": int}
    if not isinstance(body, dict) or not all(isinstance(body.get(key), kind) for key, kind in kinds.items()):
        raise InputError(f"{name}: its body must have name, sha256 and num_betas")
    if not 1 <= body["num_betas"] <= _MOST_BETAS or not re.fullmatch("[0-9a-f]{64}", body["sha256"]):
        raise InputError(f"{name}: its body must have 1 to {_MOST_BETAS} num_betas and a SHA-256 as sha256")
    return body


def _check_heads(
    heads: Mapping[str, Tensor], student: Student, words: int, body: Mapping[str, Any] | None, name: str
) -> None:
    """Raises InputError unless the heads are known, complete, and of the shapes that student and card ask for."""
    wanted: dict[str, tuple[int, ...]] = {}
    if "joint.weight" in heads:
        space = heads["joint.weight"].shape[:1]
        wanted |= {"joint.weight": (*space, student.channels), "joint.bias": (*space,)}
        if "joint.words" in heads:
            wanted |= {"joint.centre": (*space,), "joint.words": (words, *space)}
        if "joint.usual" in heads or "joint.spread" in heads:
            wanted |= {"joint.usual": (words,), "joint.spread": (words,)}
    if "shape.weight" in heads:
        betas = int(body["num_betas"]) if body is not None else 0
        wanted |= {"shape.weight": (betas, student.width), "shape.bias": (betas,)}
    for key, shape in wanted.items():
        if key not in heads or heads[key].shape != shape:
            found = tuple(heads[key].shape) if key in heads else "missing"
            raise InputError(f"{name} does not fit together: its {key} is {found}, but must be {shape}")
    if unknown := sorted(heads.keys() - wanted.keys() - {"joint.centre"}):
        raise InputError(
            f"{name} has heads that this program does not know ({', '.join(unknown[:5])}); load it with the release "
            "that wrote it"
        )


def _listed(images: Pictures) -> Sequence[Picture]:
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | Path | Image.Image) or not isinstance(images, Iterable):
        return [images]
    return list(images)


def _checked(pictures: Tensor, which: str) -> Tensor:
    """Pictures as they are, if they are bytes or floats in 0..1."""
    if pictures.is_floating_point():
        low, high = (float(value) for value in pictures.aminmax())
        if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN is refused too
            raise InputError(
                f"picture {which} has values from {low:.3g} to {high:.3g}, but floats must be in 0..1 and not "
                "normalised: the model does that"
            )
    elif pictures.dtype != torch.uint8:
        raise InputError(
            f"picture {which} is a tensor of {pictures.dtype}, but must be uint8 or floating point in 0..1"
        )
    return pictures


def _from_pillow(image: Image.Image, number: int) -> Pixels:
    """As `read_rgb` has it from a file, and as little of the image itself is changed."""
    try:
        return upright_rgb(image)
    except Exception as error:  # files are decoded only here, and decoders raise a dozen types
        raise InputError(f"picture {number} cannot be decoded: {unreadable('', error).reason}") from error
