"""A small CLIP from nothing: its tokenizer, its network, and the folder it is kept in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.files import inside, writing
from clip3dreid.io.staging import UNFINISHED, close_stages, open_stage

WEIGHTS = "model.safetensors"
CHECKSUMS = "SHA256SUMS"
# The end is not number 2: `transformers` takes that for the sign of an old config, and reads a text elsewhere.
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<start>", "unk_token": "<unk>", "eos_token": "<end>"}


def train_tokenizer(texts: Iterable[str], size: int, context: int) -> Any:
    """Learn a byte-pair tokenizer from texts, in CLIP's manner: lower case, start and end marked.

    Args:
        texts: to learn from; the same texts give the same tokenizer.
        size: tokens at most, at least 260 (the bytes and four special ones).
        context: tokens in the longest text.

    Raises:
        InputError: if the size is too small.
    """
    # Here, since whoever reads the sums of a teacher's folder needs no network.
    from transformers import PreTrainedTokenizerFast

    if size < 260:
        raise InputError(f"vocabulary_size={size} is too small; give 260 or more")
    tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start, end = _SPECIAL["bos_token"], _SPECIAL["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context, padding_side="right", **_SPECIAL
    )


def make_small_clip(tokenizer: Any, config: Mapping[str, Any]) -> Any:
    """Make a `transformers.CLIPModel` with random weights.

    Args:
        tokenizer: whose number of tokens, and special tokens, the text tower gets.
        config: `vision_config`, `text_config`, `projection_dim` and whatever else of CLIP's configuration.

    Raises:
        InputError: if the configuration does not fit together.
    """
    from transformers import CLIPConfig, CLIPModel

    text = dict(config.get("text_config", {})) | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": tokenizer.model_max_length,
    }
    try:
        return CLIPModel(CLIPConfig(**{**config, "text_config": text}))
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).strip().splitlines()[-1].split())
        raise InputError(f"clip: {reason}; correct the configuration") from error


def check_place(folder: Path) -> None:
    """Check that a teacher may be written there, for the sake of what the folder holds."""
    inside(folder.parent, folder.name)
    if not folder.exists():
        return
    if not (folder / CHECKSUMS).is_file():
        raise InputError(f"{folder} is there and holds no teacher of ours; give another place")
    own = {name for _, name in _listed(folder)} | {CHECKSUMS}
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in own or path.is_dir())
    if foreign:
        raise InputError(
            f"{folder} holds {len(foreign)} files that are not of the teacher there ({some(foreign, 3)}); move "
            "them away, or give another place"
        )


def save_small_clip(
    folder: Path,
    model: Any,
    tokenizer: Any,
    mean: Sequence[float],
    std: Sequence[float],
    card: Mapping[str, Any],
) -> None:
    """Write a teacher's folder, all of it or nothing; a teacher of ours that was there before is replaced.

    Weights are kept in half precision, half the bytes: they are read back as float32.

    Args:
        folder: where. Whoever else may write it must be kept away (`locks.at_work`).
        model: a `CLIPModel`.
        tokenizer: its tokenizer.
        mean: of R, G and B, that pictures in 0..1 are normalised with.
        std: likewise.
        card: what the folder says of itself, JSON-ready, as `card.json`.

    Raises:
        InputError: if the place cannot be written, a full disk included, or holds something that is no such folder,
            or other files beside it.
    """
    check_place(folder)
    work = folder.parent / f".{folder.name}{UNFINISHED}"
    stage = open_stage(work)
    made, earlier = stage / "new", stage / "earlier"
    try:
        # The libraries that write weights and tokenizer have errors of their own.
        with writing(folder):
            made.mkdir()
            half = {name: value.half() for name, value in model.state_dict().items()}
            model.save_pretrained(made, state_dict=half)
            tokenizer.save_pretrained(made)
            pixels = {"image_mean": list(mean), "image_std": list(std), "rescale_factor": 1 / 255}
            _write(made / "preprocessor_config.json", pixels | {"do_normalize": True, "do_rescale": True})
            _write(made / "card.json", card)
            lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(made.iterdir())]
            (made / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
            # Training takes its time: once more.
            check_place(folder)
            if folder.exists():
                folder.rename(earlier)
            made.rename(folder)
    finally:
        with suppress(OSError):
            close_stages(work)


def check_sums(folder: Path) -> None:
    """Compare the files of a folder with its list of checksums, if it has one.

    Raises:
        InputError: naming the first file that is missing or differs, or the list if it is damaged.
    """
    if not (folder / CHECKSUMS).is_file():
        return
    for expected, name in _listed(folder):
        path = folder / name
        if not path.is_file() or _sha256(path) != expected:
            raise InputError(f"{path} is not the file that {CHECKSUMS} lists; get the folder anew")


def _listed(folder: Path) -> list[tuple[str, str]]:
    """Return checksums and names of a folder's list."""
    path = folder / CHECKSUMS
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(expected, name) for expected, name in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no list of checksums, or damaged; get the folder anew") from error


def parameters(model: torch.nn.Module) -> int:
    """Return how many numbers a model has learnt."""
    return sum(parameter.numel() for parameter in model.parameters())


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
