"""A trained model in three lines of Python: embed pictures, describe people in words, give them bodies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.body.smpl import SHIPPED, BodyModel, body_digest, load_body
from clip3dreid.data.images import TestView
from clip3dreid.errors import InputError
from clip3dreid.inference.features import (
    Layer,
    feature_width,
    joint_features,
    part_layers,
    retrieval_features,
)
from clip3dreid.inference.heads import Description, Head, body_of, check_heads, describe, flag_of, groups_of
from clip3dreid.inference.hub import ModelFolder, read_files
from clip3dreid.inference.looking import Looking, look_at
from clip3dreid.inference.parts import EMBEDDING, FeatureLike, as_feature, feature_of
from clip3dreid.inference.pictures import Pictures
from clip3dreid.inference.tracklets import TrackletLikes, look_at_tracklets
from clip3dreid.io.checks import choose
from clip3dreid.io.files import reason_of
from clip3dreid.model.card import ClipSize, clip_size, picture_size
from clip3dreid.model.network_file import (
    AnyStudent,
    NetworkStudent,
    check_no_network,
    is_network,
    network_student,
)
from clip3dreid.model.places import LIBRARY, find_model

DTYPES = ("float32", "bfloat16", "float16")
"""Precisions that a model may be brought to."""


class Shape(NamedTuple):
    """Bodies, in the rest pose where no other was asked for, on the CPU."""

    betas: Tensor
    """(N, K) float32: shape coefficients in standard deviations of the body file's population."""
    vertices: Tensor
    """(N, V, 3) float32, metres, y up."""
    faces: Tensor
    """(F, 3) int64, counter-clockwise seen from outside."""


class Outputs(NamedTuple):
    """All that a model says of a batch, on its device."""

    embedding: Tensor
    """(B, F) float32: the retrieval feature; with the model's `feature` as it is by default, D columns."""
    joint: Tensor | None
    """(B, d) float32 of length 1: in the teacher's space; None where a model has not learnt that."""
    betas: Tensor | None
    """(B, K) float32: shape coefficients; None likewise."""
    map: Tensor | None = None
    """(B, C, h, w) float32: the student's feature maps; None where they were not asked for."""

    def cpu(self) -> Outputs:
        """Return the same on the CPU."""
        return Outputs(*(part if part is None else part.cpu() for part in self))  # type: ignore[arg-type]


class ReidModel(nn.Module, ModelFolder, library_name=LIBRARY, tags=["person-re-identification"]):
    """A trained student with what it learnt of words and bodies, or a network of others; for use, not for training.

    Results are on the CPU, whatever device the model is on (`model.to("cuda")` moves it).

    Args:
        student: the network.
        card: what a checkpoint says of itself (`model.weights.read_card`), with `vocabulary`, `teacher` and `body`
            where heads need them.
        heads: `joint.weight` (d, C), `joint.bias` (d,), `joint.centre` (d,), `joint.words` (W, d), `shape.weight`
            (K, D), `shape.bias` (K,), `shape.usual` (K,), `shape.spread` (K,), `teacher.weight` (d, D) and
            `teacher.bias` (d,), or those of them that there are (`loss.term.Term.heads`).
        body: name or file of the body model; None: the one of the package that has the card's checksum, if any.
        name: what messages call the model.

    Attributes:
        card: the same, as plain JSON values.
        body_card: what it says of the body: `name`, `sha256`, `num_betas`; None where it says nothing.
        feature: which parts the retrieval feature is made of: those that the card records, with which the model was
            evaluated.
        height: H, in pixels, that pictures are resized to.
        width: W.
        square: whether pictures are padded to a square before they are resized.
        flip: whether the mirror image is looked at too, unless something else is asked for.
        view: resizes pictures as evaluation does.
        clips: how tracklets are cut into clips: as the model was trained, and frame by frame where that was on
            pictures.
        trained_on_clips: whether it was trained on clips.
        groups: group -> words of the vocabulary; empty where the model knows none.

    Raises:
        InputError: if card, heads and student do not fit together, or the body is another than the card's.
    """

    def __init__(
        self,
        student: AnyStudent,
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
        self.groups = groups_of(self.card, name)
        self._name = name
        self.square = flag_of(self.card, "square", name)
        self.flip = flag_of(self.card, "flip", name, absent=True)
        self.view = TestView(self.height, self.width, self.square)
        clips = clip_size(self.card, name)
        self.clips, self.trained_on_clips = clips or ClipSize(1, 1), clips is not None
        self._dimensions = (4, 5) if getattr(student, "takes_clips", False) else (4,)
        if self.clips.frames > 1 and 5 not in self._dimensions:
            raise InputError(
                f"{name} says that it was trained on clips of {self.clips.frames} frames, and its student looks at "
                "pictures; get the file again"
            )
        self.body_card = body_of(self.card, name)
        check_heads(heads, student, sum(map(len, self.groups.values())), self.body_card, name)
        self.student = student
        self.heads = nn.ModuleDict()
        for part in ("joint", "shape", "teacher"):
            tensors = {key.partition(".")[2]: heads[key] for key in heads if key.startswith(f"{part}.")}
            if tensors:
                self.heads[part] = Head(tensors)
        self.feature = feature_of(self.card, name)
        self.feature.check_learnt(heads, name)
        self._body_file = self._find_body(body)
        # In a list, so that it is no part of the model: it stays float32 whatever the model's precision.
        self._bodies: list[BodyModel] = []
        self._layers: tuple[list[tuple[Tensor, int]], dict[str, Layer]] = ([], {})
        self.eval()

    @property
    def name(self) -> str:
        """Return what messages call the model: where it was loaded from."""
        return self._name

    @property
    def device(self) -> torch.device:
        """Return where the model runs."""
        return self.student.device

    @property
    def body(self) -> BodyModel:
        """Return the body model that the model's shapes are of, on its device.

        Raises:
            InputError: if the model has not learnt body shapes, or the body's file is not known.
        """
        self._head("shape", "body shapes", "loss.shape or loss.body")
        return self._load_body()

    @property
    def widths(self) -> dict[str, int]:
        """Return columns of each part of `Outputs` that this model gives."""
        layers = self._part_layers()
        found = {"embedding": feature_width(self.feature, self.student.width, layers)}
        for name, part in (("joint", "joint"), ("betas", "shape")):
            if part in self.heads:
                found[name] = len(self.heads[part].get_buffer("bias"))
        return found

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of all that results depend on: network, weights, heads, words, size, feature."""
        # Padding and feature are named only where they are not as ever, so that other models keep their fingerprints.
        facts = [
            self.card["student"],
            self.height,
            self.width,
            self.groups,
            *(["square"] if self.square else []),
            *([self.feature.weights] if self.feature != EMBEDDING else []),
        ]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            # The number of batches seen in training changes no result, and is absent in older files.
            if not name.endswith(".num_batches_tracked"):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def forward(self, images: Tensor, *, flip: bool | None = None, maps: bool = False) -> Outputs:
        """Take pictures through the student, once, and on to all that it has learnt.

        Args:
            images: (B, 3, H, W) RGB 0..1 on the model's device; or clips (B, T, 3, H, W), of a model of clips.
            flip: look at the mirror image too, as evaluation does; None: as the model's `flip` says.
            maps: return feature maps too.

        Returns:
            Features, and for words, bodies and maps those of the pictures as they are.
        """
        mirrored = self.flip if flip is None else flip
        feature, _, upright = retrieval_features(
            self.student, images, flip=mirrored, feature=self.feature, layers=self._part_layers()
        )
        joint, betas = None, None
        if "joint" in self.heads:
            joint = joint_features(upright.map, self.heads["joint"])
        if "shape" in self.heads:
            betas = self.heads["shape"](upright.embedding)
        return Outputs(feature, joint, betas, upright.map.float() if maps else None)

    def _part_layers(self) -> dict[str, Layer]:
        """Return the layers of the feature's parts, made anew only where the heads were moved or written to.

        Which coefficients were learnt is a question that waits for the device.
        """
        heads = self.heads.state_dict()
        tensors = list(self.heads.buffers())
        now = [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        then, layers = self._layers
        if not layers or any(a is not b or c != d for (a, c), (b, d) in zip(then, now, strict=True)):
            layers = part_layers(self.feature, heads)
            self._layers = now, layers
        return layers

    def placed(self, device: str | torch.device | None, dtype: str | torch.dtype | None) -> Self:
        """Put the model on a device and into a precision, as `load` does.

        Args:
            device: where it is to run; None: where it is.
            dtype: of `DTYPES`, of weights and arithmetic; None: as it is.

        Returns:
            The model itself.

        Raises:
            InputError: if there is no such device or precision, or the network keeps its own.
        """
        if dtype is not None:
            names = {name: getattr(torch, name) for name in DTYPES}
            wanted = names.get(dtype, dtype) if isinstance(dtype, str) else dtype
            choose("dtype", str(wanted).removeprefix("torch."), DTYPES)
            if wanted != torch.float32 and isinstance(self.student, NetworkStudent):
                raise InputError(f"{self._name} computes in its file's precision; leave dtype={dtype} out")
            self.to(wanted)
        if device is not None:
            try:
                self.to(torch.device(device))
            except (RuntimeError, AssertionError) as error:
                raise InputError(
                    f"device={device} cannot be used ({reason_of(error)}); choose cpu, cuda or cuda:1"
                ) from error
        return self

    def with_feature(self, feature: FeatureLike) -> ReidModel:
        """Return the same model with another retrieval feature; network and device are shared.

        `load("model").with_feature({"embedding": 1, "betas": 0.5}).save_pretrained("other")` keeps it.

        Args:
            feature: a `inference.parts.Feature`, names of parts, or their weights.

        Raises:
            InputError: if a part is unknown, or the model has not learnt it.

        Example:
            >>> parts = {"embedding": 1, "betas": 0.5}
            >>> model.with_feature(parts).embed("a.jpg").shape
            torch.Size([1, 132])
        """
        wanted = as_feature(feature)
        if wanted == self.feature:
            return self
        wanted.check_learnt(self.heads.state_dict(), self._name)
        card = self.card | {"feature": wanted.weights}
        return ReidModel(self.student, card, self.heads.state_dict(), self._body_file, self._name)

    def embed(
        self,
        images: Pictures,
        *,
        feature: FeatureLike | None = None,
        normalize: bool = False,
        **how: Unpack[Looking],
    ) -> Tensor:
        """Compute retrieval features: the nearer two of them, the likelier the same person.

        Args:
            images: N pictures: files or pictures in memory, one or many; or a folder, a table with a column `path`,
                or a pattern such as `crops/*.jpg`.
            feature: what the feature is made of, as `with_feature` takes it; None: the model's own, that it was
                evaluated with.
            normalize: make each of length 1.
            how: `flip`, `batch_size`, `workers`, `progress`, `on_error` (`inference.looking.Looking`); rows of files
                that were skipped are NaN.

        Returns:
            (N, F) float32 as evaluation has them: rank by cosine. The embedding alone, which most models have, is
            (N, D) and not of length 1.

        Raises:
            InputError: if a picture cannot be read or is none, naming it, or as `with_feature`.

        Example:
            >>> features = model.embed(["a.jpg", "b.jpg"], normalize=True)
            >>> features.shape
            torch.Size([2, 128])
        """
        model = self if feature is None else self.with_feature(feature)
        features = model.look(images, **how).embedding
        return F.normalize(features, dim=1) if normalize else features

    def look(self, images: Pictures, **how: Unpack[Looking]) -> Outputs:
        """Compute all that the model says of pictures, in one go.

        Args:
            images: N pictures, as of `embed`.
            how: likewise.

        Returns:
            On the CPU, N rows each: `embedding` (N, F), `joint` (N, d), `betas` (N, K), and `map` (N, C, h, w) where
            `maps=True` asks for it.

        Raises:
            InputError: as `embed`.

        Example:
            >>> seen = model.look("crops")
            >>> seen.embedding.shape, seen.joint.shape, seen.betas.shape
            (torch.Size([8, 128]), torch.Size([8, 128]), torch.Size([8, 4]))
        """
        seen = look_at(self, images, **how)
        sizes: dict[str, Sequence[int]] = {name: (width,) for name, width in self.widths.items()}
        if seen.batches and seen.batches[0].map is not None:
            sizes["map"] = seen.batches[0].map.shape[1:]
        made = {name: torch.full((len(seen.table), *size), torch.nan) for name, size in sizes.items()}
        if seen.batches:
            for name, rows in made.items():
                rows[seen.rows] = torch.cat([getattr(batch, name) for batch in seen.batches]).float()
        return Outputs(made["embedding"], made.get("joint"), made.get("betas"), made.get("map"))

    def embed_tracklets(
        self,
        tracklets: TrackletLikes,
        *,
        feature: FeatureLike | None = None,
        normalize: bool = False,
        **how: Unpack[Looking],
    ) -> Tensor:
        """Compute retrieval features of tracklets, one each: the mean over all of their clips, as evaluation has it.

        Frames are read as they are looked at, `batch_size` at a time, however long a tracklet is. A model of pictures
        looks at every frame by itself.

        Args:
            tracklets: N of them, each the frames of one person in order of time: a folder of frames, a list of
                pictures, an array (T, H, W, 3) or a tensor (T, 3, H, W). A folder, array or tensor alone is one.
            feature: as of `embed`.
            normalize: make each of length 1.
            how: as of `embed`; frames that are skipped are left out of their clip, and rows of tracklets without any
                are NaN.

        Returns:
            (N, F) float32, to be compared by cosine with those of pictures and tracklets.

        Raises:
            InputError: if a tracklet has no frames or is none, or as `embed`.

        Example:
            >>> walk = ["a.jpg", "b.jpg", "c.jpg"]
            >>> model.embed_tracklets([walk, "crops"]).shape
            torch.Size([2, 128])
        """
        model = self if feature is None else self.with_feature(feature)
        features = model.look_at_tracklets(tracklets, **how).embedding
        return F.normalize(features, dim=1) if normalize else features

    def look_at_tracklets(self, tracklets: TrackletLikes, **how: Unpack[Looking]) -> Outputs:
        """Compute all that the model says of tracklets, in one go: the means over the clips of each.

        `describe_joint` says the words of it, and `bodies` makes the meshes.

        Args:
            tracklets: N of them, as of `embed_tracklets`.
            how: likewise.

        Returns:
            On the CPU, N rows each: `embedding` (N, F), `joint` (N, d) of length 1, `betas` (N, K).

        Raises:
            InputError: as `embed_tracklets`.

        Example:
            >>> seen = model.look_at_tracklets("crops")
            >>> list(model.describe_joint(seen.joint)[0])
            ['stature', 'weight', 'shoulders', 'gender']
        """
        made = look_at_tracklets(self, tracklets, **how).vectors
        return Outputs(made["embedding"], made.get("joint"), made.get("betas"))

    def similarity(
        self,
        images: Pictures,
        others: Pictures,
        *,
        feature: FeatureLike | None = None,
        **how: Unpack[Looking],
    ) -> Tensor:
        """Compare pictures: the nearer to 1, the likelier the same person.

        Args:
            images: N pictures.
            others: M pictures.
            feature: as of `embed`.
            how: likewise.

        Returns:
            (N, M) float32 cosines.

        Raises:
            InputError: as `embed`.

        Example:
            >>> model.similarity("someone.jpg", ["b.jpg", "a.jpg", "someone.jpg"]).argmax(1)
            tensor([2])
        """
        rows, columns = (self.embed(one, feature=feature, normalize=True, **how) for one in (images, others))
        return rows @ columns.T

    def __call__(self, images: Any, **options: Any) -> Any:
        """Take a batch as `forward` does; or embed pictures, whatever they are, as `embed` does."""
        ready = isinstance(images, Tensor) and images.ndim in self._dimensions and images.is_floating_point()
        return super().__call__(images, **options) if ready else self.embed(images, **options)

    def joint(self, images: Pictures, *, batch_size: int = 64) -> Tensor:
        """Compute features in the teacher's joint space of images and texts, where words can be looked for.

        Args:
            images: N pictures.
            batch_size: pictures at a time.

        Returns:
            (N, d) float32 of length 1: the projected feature map, averaged over its positions.

        Raises:
            InputError: as `embed`, and if the model has not learnt this.

        Example:
            >>> model.joint(["a.jpg", "b.jpg"]).shape
            torch.Size([2, 128])
        """
        self._head("joint", "the teacher's space", "loss.local (projection=student)")
        joint = self.look(images, flip=False, batch_size=batch_size).joint
        assert joint is not None
        return joint

    def describe(self, images: Pictures, *, batch_size: int = 64) -> list[Description]:
        """Describe people in words, picture by picture.

        Args:
            images: N pictures.
            batch_size: pictures at a time.

        Returns:
            N times, for each group of the vocabulary its words with scores, the best first. A score is the cosine
            with the picture in standard deviations from the word's mean over the training pictures (a model favours
            some words whatever it is shown), or the cosine alone, -1..1, where a model does not know those. `print`
            says the best words, and how sure each is (`Description.confidences`).

        Raises:
            InputError: as `joint`.

        Example:
            >>> person = model.describe("a.jpg")[0]
            >>> sorted(scored.word for scored in person["gender"])
            ['feminine', 'masculine']
        """
        self._words()  # refused before the work
        return self.describe_joint(self.joint(images, batch_size=batch_size))

    def describe_person(self, images: Pictures, *, batch_size: int = 64) -> Description:
        """Describe one person in words, by the mean of several pictures in the teacher's space.

        Args:
            images: pictures of the same person, at least one.
            batch_size: pictures at a time.

        Returns:
            As one entry of `describe`.

        Raises:
            InputError: as `describe`, and if there is no picture.

        Example:
            >>> list(model.describe_person(["a.jpg", "b.jpg"]))
            ['stature', 'weight', 'shoulders', 'gender']
        """
        self._words()
        joint = self.joint(images, batch_size=batch_size)
        if not len(joint):
            raise InputError("there is no picture of the person; give one or more")
        return self.describe_joint(F.normalize(joint.mean(0, keepdim=True), dim=1))[0]

    def describe_joint(self, joint: Tensor) -> list[Description]:
        """Describe people in words, by what `joint` and `look` say of them.

        Args:
            joint: (N, d), as `word_scores` takes it.

        Returns:
            N descriptions, as of `describe`.

        Raises:
            InputError: as `joint`.

        Example:
            >>> seen = model.look(["a.jpg", "b.jpg"])
            >>> model.describe_joint(seen.joint) == model.describe(["a.jpg", "b.jpg"])
            True
        """
        calibrated = "usual" in self._words()
        return describe(self.word_scores(joint), self.groups, calibrated=calibrated)

    def shape(self, images: Pictures, *, batch_size: int = 64) -> Shape:
        """Compute bodies: what the student takes people's figures to be, without pose and clothes.

        Args:
            images: N pictures.
            batch_size: pictures at a time.

        Returns:
            Coefficients and meshes in the rest pose.

        Raises:
            InputError: as `embed`, and if the model has not learnt this or the body's file is not known.

        Example:
            >>> body = model.shape("a.jpg")
            >>> body.betas.shape, body.vertices.shape
            (torch.Size([1, 4]), torch.Size([1, 1200, 3]))
        """
        _ = self.body  # refused before the work
        betas = self.look(images, flip=False, batch_size=batch_size).betas
        assert betas is not None
        return self.bodies(betas, batch_size=batch_size)

    def bodies(self, betas: Tensor, *, pose: Tensor | None = None, batch_size: int = 64) -> Shape:
        """Compute the meshes of shape coefficients, such as the mean of several pictures of a person.

        Args:
            betas: (N, K), as `shape` and `look` give them.
            pose: (24, 3) axis-angle in radians of all of them; None: the rest pose.
            batch_size: bodies at a time.

        Raises:
            InputError: as `shape`, or if the coefficients are of another body.

        Example:
            >>> betas = model.look(["a.jpg", "b.jpg"]).betas
            >>> model.bodies(betas.mean(0, keepdim=True)).vertices.shape
            torch.Size([1, 1200, 3])
        """
        body = self.body
        with torch.no_grad():
            parts = [
                body(
                    part.to(self.device),
                    None if pose is None else pose.to(self.device).expand(len(part), -1, -1),
                ).vertices.cpu()
                for part in torch.split(betas, batch_size)
            ]
        return Shape(betas, torch.cat(parts), body.faces.cpu())

    def _head(self, part: str, what: str, loss: str) -> Head:
        if part not in self.heads:
            raise InputError(
                f"{self._name} has not learnt {what}: that is what the loss term {loss} teaches; train with it, or "
                "load the checkpoint of a run that had it"
            )
        head = self.heads[part]
        assert isinstance(head, Head)
        return head

    def word_scores(self, joint: Tensor) -> Tensor:
        """Score how well each word of the vocabulary fits.

        Args:
            joint: (N, d) of length 1, as `joint` gives it; on any device.

        Returns:
            (N, W) float32 on the same device: words in the order of `groups`, scores as `describe` has them.

        Raises:
            InputError: as `joint`.
        """
        return self._words().scores(joint)

    def best_words(self, joint: Tensor) -> list[list[str]]:
        """Return the best word of each group, in the order of `groups`.

        Args:
            joint: (N, d), as `word_scores` takes it.

        Raises:
            InputError: as `joint`.
        """
        return self.words_of(self.choices(joint))

    def choices(self, joint: Tensor) -> Tensor:
        """Return which word of each group is the best, (N, groups) int64 on the device of the features.

        Args:
            joint: (N, d), as `word_scores` takes it.

        Raises:
            InputError: as `joint`.
        """
        sizes = [len(words) for words in self.groups.values()]
        parts = torch.split(self.word_scores(joint), sizes, dim=1)
        return torch.stack([part.argmax(1) for part in parts], dim=1)

    def words_of(self, choices: Tensor) -> list[list[str]]:
        """Return the words that `choices` (N, groups) stand for, in the order of `groups`."""
        groups = list(self.groups.values())
        return [[words[index] for words, index in zip(groups, row, strict=True)] for row in choices.tolist()]

    def _words(self) -> Head:
        """Return the head that knows words."""
        head = self._head("joint", "words", "loss.local (projection=student)")
        if "words" not in head:
            raise InputError(
                f"{self._name} has the teacher's space and no words; load the checkpoint of a run with loss.local"
            )
        return head

    def _find_body(self, body: str | Path | None) -> str | Path | None:
        """Return the body's file or name if known; only checksums say which it is, names in a card do not."""
        if self.body_card is None or "shape" not in self.heads:
            if body is not None:
                raise InputError(
                    f"{self._name} has not learnt body shapes (loss.shape or loss.body); leave body={body} out"
                )
            return None
        wanted = self.body_card["sha256"]
        if body is None:
            return next((name for name in SHIPPED if body_digest(name) == wanted), None)
        if (found := body_digest(body)) != wanted:
            raise InputError(
                f"body={body} (SHA-256 {found[:12]}…) is not the body of {self._name}, which is "
                f"{self.body_card['name']} ({wanted[:12]}…); give that file"
            )
        return body

    def _load_body(self) -> BodyModel:
        if not self._bodies:
            assert self.body_card is not None
            if self._body_file is None:
                raise InputError(
                    f"the body of {self._name} is {self.body_card['name']} (SHA-256 "
                    f"{self.body_card['sha256'][:12]}…), which is not in the package; give its file: "
                    "load(…, body=FILE)"
                )
            self._bodies.append(load_body(self._body_file, self.body_card["num_betas"]))
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
        trusted: Collection[str] = (),
        network: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a model; see `load`, whose first argument is called as everywhere on the hub here."""
        name = str(pretrained_model_name_or_path)
        if is_network(pretrained_model_name_or_path):
            student, card = network_student(pretrained_model_name_or_path, network)
            return cls(student, card, {}, body, name)
        check_no_network(pretrained_model_name_or_path, network)
        place = find_model(
            pretrained_model_name_or_path,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        files = read_files(place, trusted)
        model = cls(files.student, files.card, files.heads, body, name)
        # Last, since what is wrong with a card by itself says more.
        files.check_same_card()
        return model


def load(
    model: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    body: str | Path | None = None,
    trusted: Collection[str] = (),
    network: Mapping[str, Any] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
) -> ReidModel:
    """Read a trained model; nothing in a file is run, and nothing is unpickled.

    Args:
        model: a folder that `save_pretrained` wrote; a folder of a training run, of which the last checkpoint is
            taken (give `checkpoints/best.ckpt` itself for the selected one); a checkpoint; safetensors of this
            project; `body_student`, which ships with the package; or the id `user/name` of a model on the Hugging
            Face hub, which alone is ever downloaded. A folder or file of that name comes first. Or a network of
            others: an ONNX file, an OpenVINO IR (`.xml`), a `.pt2` of torch.export, a vision model, CLIP or SigLIP
            in a folder of `transformers`; or a YAML file that describes one (`model.network_file`).
        device: where it runs; None: on the CPU.
        dtype: `float32`, `bfloat16` or `float16`, of weights and arithmetic; None: float32. Features are float32.
        body: file of the body model, where the model knows bodies of a file that is not in the package.
        trusted: names of packages of your own, `("mypkg",)`, whose classes the model may be made of; code of theirs
            is run.
        network: what is said of a network of others where no YAML file beside it does: `{"height": 256, "width": 128,
            "channels": "bgr", "range": 255}` (`model.network_file.NetworkFile` has all keys).
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

    Example:
        >>> import clip3dreid
        >>> model = clip3dreid.load("model")
        >>> model.embed("someone.jpg").shape
        torch.Size([1, 128])
    """
    read = ReidModel.from_pretrained(
        model,
        body=body,
        trusted=trusted,
        network=network,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
        token=token,
    )
    return read.placed(device, dtype)
