"""A small CLIP from nothing: its tokenizer, its network, and the folder it is kept in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from clip3dreid.errors import InputError
from clip3dreid.model.checked_folder import CARD, write_folder, write_plain

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

    def fill(made: Path) -> None:
        half = {name: value.half() for name, value in model.state_dict().items()}
        model.save_pretrained(made, state_dict=half)
        tokenizer.save_pretrained(made)
        pixels = {"image_mean": list(mean), "image_std": list(std), "rescale_factor": 1 / 255}
        write_plain(made / "preprocessor_config.json", pixels | {"do_normalize": True, "do_rescale": True})
        write_plain(made / CARD, card)

    write_folder(folder, fill)


def parameters(model: torch.nn.Module) -> int:
    """Return how many numbers a model has learnt."""
    return sum(parameter.numel() for parameter in model.parameters())
