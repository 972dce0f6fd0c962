"""The teacher: a frozen vision-language model whose two towers end in one space, read from this disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose
from clip3dreid.model.backbone import exactly
from clip3dreid.model.build import build
from clip3dreid.model.frozen import FrozenNetwork
from clip3dreid.model.image_teacher import ImageTeacher
from clip3dreid.model.teacher_files import (
    deciding_files,
    locate,
    read_config,
    read_model,
    read_pixels,
    read_tokenizer,
)
from clip3dreid.model.teacher_view import View

FINGERPRINT_VERSION = 1
"""Goes up when the same files begin to give other embeddings."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEXTS_AT_ONCE = 64

# Keys of the config that are the entry points' and not the teacher's: where embeddings are kept, and what the
# download weighs.
NODE_KEYS = ("cache", "cache_dir", "megabytes")


class ImageEmbedding(NamedTuple):
    """What a teacher makes of pictures: rows of length 1 in the joint space."""

    embedding: Tensor
    """(B, d) float32."""
    patches: Tensor | None
    """(B, P, d) float32, patches row by row on `Teacher.grid`; None where they were not asked for."""


class TextTokens(NamedTuple):
    """What a teacher makes of texts, token by token: rows of length 1 in the joint space."""

    states: Tensor
    """(L, T, d) float32."""
    mask: Tensor
    """(L, T) bool: True for tokens of the text itself, False for those that begin, end and pad it."""


class Teacher(ImageTeacher):
    """CLIP (Radford et al., ICML 2021), SigLIP (Zhai et al., ICCV 2023) or kin, frozen.

    The network is no part of the module's parameters, buffers or state: optimisers and checkpoints never meet it.
    It stays in evaluation mode and in its own dtype; it follows the module from device to device.

    Args:
        path: a folder in the layout of `transformers` (config, tokenizer, preprocessor_config.json and
            safetensors); or `package:NAME`, a folder that ships with this project; or a model's name on the
            Hugging Face hub, which is looked for in that library's cache and then on the network. A folder of
            that name wins, also one that `fetch` would make.
        view: how pictures are fitted to the network's input.
        name: for people to read.
        dtype: float32, bfloat16 or float16, of weights and arithmetic; pictures come and embeddings go as
            float32.
        fetch: the command that gets the files, for the message where they are missing.

    Attributes:
        width: d, of the joint space.
        grid: rows and columns of patches.
        context: tokens in the longest text, those that begin and end it included.
        logit_scale: factor on cosines before the softmax or sigmoid of the training, if the model has one.

    Raises:
        InputError: if the files are not there, incomplete, damaged, or of a model of another kind.
    """

    model: Any

    def __init__(
        self, path: str, view: View, *, name: str, dtype: str = "float32", fetch: str | None = None
    ) -> None:
        super().__init__()
        choose("model.teacher.dtype", dtype, DTYPES)
        self.name, self.view, self.dtype = name, view, dtype
        self.folder = locate(str(path), name, fetch)
        config, self._family = read_config(self.folder)
        mean, std = read_pixels(self.folder)
        model = read_model(self.folder, config, self._family)
        vision, text = config.vision_config, config.text_config
        self.width, text_width = self._family.widths(config)
        if text_width != self.width:
            raise InputError(
                f"{self.folder}: images get {self.width} dimensions and texts {text_width}; no joint space"
            )
        self.grid = view.size[0] // vision.patch_size, view.size[1] // vision.patch_size
        if 0 in self.grid:
            raise InputError(
                f"a view of {view.size[0]}x{view.size[1]} pixels is smaller than a patch of {name} "
                f"({vision.patch_size}); set model.teacher.view larger"
            )
        self.context: int = text.max_position_embeddings
        scale = getattr(model, "logit_scale", None)
        self.logit_scale = None if scale is None else float(scale.detach().float().exp())
        self._interpolates = view.size != (vision.image_size, vision.image_size)
        # Past nn.Module's own bookkeeping, or the network would be trained, saved and cast with its owner.
        self.__dict__["model"] = model.to(DTYPES[dtype]).requires_grad_(False).eval()
        self.__dict__["_pixels"] = torch.tensor([mean, std], dtype=torch.float32).view(2, 3, 1, 1)
        self.__dict__["_texts"] = {}
        self.tokenizer = read_tokenizer(self.folder)
        self._tokenize(["person"])
        self.train(False)

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        device: torch.device = self.model.device
        return device

    @cached_property
    def fingerprint(self) -> str:
        """Return a hexadecimal digest of all that decides an embedding: content of the files, view and dtype."""
        digest = hashlib.sha256(f"{FINGERPRINT_VERSION}\n{self.view.describe()}\n{self.dtype}\n".encode())
        for path in deciding_files(self.folder):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W), uint8 0..255 or floating 0..1, to embeddings (B, d) of length 1."""
        return self.embed_images(images).embedding

    def embed_images(self, images: Tensor, patches: bool = False) -> ImageEmbedding:
        """Embed pictures, without gradient.

        Args:
            images: (B, 3, H, W) RGB of any size, uint8 0..255 or floating 0..1, not normalised. Bytes are turned
                into fractions before they are resampled, so both give the same.
            patches: embed patches too: their last states go the way of the class token's, through norm and
                projection (SigLIP has no such token: through its pooling, one patch at a time).

        Returns:
            Embeddings (B, d) and, if asked for, patches (B, P, d), row by row on `grid`; float32, of length 1.

        Raises:
            TypeError: if the pictures are neither bytes nor fractions.
        """
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"pictures must be uint8 0..255 or floating point 0..1, not {images.dtype}")
        images = images.to(self.device)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        with exactly(self.device):
            mean, std = self.__dict__["_pixels"]
            pixels = ((self.view(images) - mean) / std).to(DTYPES[self.dtype])
            output = self.model.get_image_features(pixels, interpolate_pos_encoding=self._interpolates)
            embedding = F.normalize(output.pooler_output.float(), dim=-1)
            if not patches:
                return ImageEmbedding(embedding, None)
            states = output.last_hidden_state[:, self._family.first_patch :]
            projected = self._family.patches(self.model, states).float()
        return ImageEmbedding(embedding, F.normalize(projected, dim=-1))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts, without gradient; each is computed once in the life of the teacher.

        Args:
            texts: L of them.

        Returns:
            (L, d) float32, of length 1, on the teacher's device.

        Raises:
            InputError: if a text is longer than the model's context.
        """
        known: dict[str, Tensor] = self.__dict__["_texts"]
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for start in range(0, len(new), TEXTS_AT_ONCE):
            chunk = new[start : start + TEXTS_AT_ONCE]
            output, _ = self._read_texts(chunk)
            known.update(zip(chunk, F.normalize(output.pooler_output.float(), dim=-1), strict=True))
        if not texts:
            return torch.zeros(0, self.width, device=self.device)
        # A new tensor: texts first embedded in inference mode, by a validation, must serve in training too.
        return torch.stack([known[text] for text in texts])

    def embed_tokens(self, texts: Sequence[str]) -> TextTokens:
        """Embed texts token by token, without gradient: last states after norm and projection.

        Args:
            texts: L of them, at least one; all in one batch.

        Returns:
            States (L, T, d) and their mask (L, T); T is the longest text's length (SigLIP: the context's).

        Raises:
            InputError: if a text is longer than the model's context.
        """
        output, words = self._read_texts(texts)
        with exactly(self.device):
            projected = self._family.tokens(self.model, output.last_hidden_state).float()
            return TextTokens(F.normalize(projected, dim=-1), words)

    def _read_texts(self, texts: Sequence[str]) -> tuple[Any, Tensor]:
        """Return outputs of the text tower, and which tokens are the text's own."""
        ids, mask, words = self._tokenize(texts)
        with exactly(self.device):
            ids = ids.to(self.device)
            attention = None if self._family.fills_context else mask.to(self.device)
            output = self.model.get_text_features(input_ids=ids, attention_mask=attention)
            return output, words.to(self.device)

    def _tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return token numbers, a mask of what is no padding (int64), one of the texts' own tokens (bool): (L, T)."""
        encoded: list[list[int]] = self.tokenizer(list(texts), verbose=False)["input_ids"]
        for text, numbers in zip(texts, encoded, strict=True):
            if len(numbers) > self.context:
                shown = " ".join(text.split())
                shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
                raise InputError(
                    f"{self.name} reads texts of at most {self.context} tokens, this one has {len(numbers)}; "
                    f"shorten it: {shown!r}"
                )
        longest = self.context if self._family.fills_context else max(len(numbers) for numbers in encoded)
        padding = self.tokenizer.pad_token_id
        ids = torch.full((len(encoded), longest), 0 if padding is None else padding)
        mask = torch.zeros_like(ids)
        for row, numbers in enumerate(encoded):
            ids[row, : len(numbers)] = torch.tensor(numbers)
            mask[row, : len(numbers)] = 1
        self._check_tokens(ids)
        # Padding is told by place and not by number: some tokenizers pad with a number that words have too.
        ends = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id]
        ends = [number for number in ends if number is not None]
        return ids, mask, mask.bool() & ~torch.isin(ids, torch.tensor(ends))

    def _check_tokens(self, ids: Tensor) -> None:
        """Refuse a tokenizer that is not this model's: its texts would be read, and their meaning lost."""
        text = self.model.config.text_config
        if int(ids.max()) >= text.vocab_size:
            raise InputError(
                f"{self.folder}: the tokenizer knows more than the model's {text.vocab_size} tokens; "
                "it is another model's"
            )
        # CLIP reads a text off its end token. With the 2 of old configs, transformers takes the greatest number for
        # it; with any other and none of them in the text, the first token.
        end = text.eos_token_id
        found = ids.amax(1) == self.tokenizer.eos_token_id if end == 2 else (ids == end).any(1)
        if not self._family.fills_context and not bool(found.all()):
            raise InputError(
                f"{self.folder}: the model would not find where the tokenizer ends a text (eos_token_id {end} in "
                f"config.json, {self.tokenizer.eos_token_id} in the tokenizer, where 2 means the greatest of all); "
                "they must agree, and not on 2"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Of what `fn` does, the device alone counts: the dtype is the teacher's own, or cached embeddings of the
        # same fingerprint would differ.
        device = fn(torch.empty(0, device=self.device)).device
        if device != self.device:
            self.model.to(device)
            self.__dict__["_pixels"] = self.__dict__["_pixels"].to(device)
            self.__dict__["_texts"] = {
                key: value.to(device) for key, value in self.__dict__["_texts"].items()
            }
        return self


def load_teacher(node: Mapping[str, Any], trusted: Collection[str] = ()) -> ImageTeacher:
    """Build the teacher that a mapping describes, such as the node `model.teacher` of a config.

    Args:
        node: `_target_` and arguments of a `Teacher`, or of another `ImageTeacher`; `NODE_KEYS` beside them are the
            caller's and left alone.
        trusted: packages of the user's own whose classes it may name.

    Raises:
        InputError: as the teacher, and if the node describes something else.
    """
    teacher = build({key: value for key, value in node.items() if key not in NODE_KEYS}, trusted)
    if not isinstance(teacher, ImageTeacher):
        raise InputError(f"model.teacher._target_ makes a {type(teacher).__name__}, not a teacher")
    return teacher


def text_tower(teacher: FrozenNetwork) -> Teacher:
    """Return a teacher as one that embeds texts too.

    Raises:
        InputError: if it embeds pictures alone.
    """
    if not isinstance(teacher, Teacher):
        raise InputError(
            f"model/teacher={teacher.name} embeds pictures and no texts, so it can choose and say no words; give one "
            "with a text tower, such as model/teacher=clip_vit_b16, or train without words: loss=[identity,global]"
        )
    return teacher
