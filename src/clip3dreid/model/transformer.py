"""Any vision backbone of `transformers` as a student, from its configuration, offline."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, some
from clip3dreid.io.formats import decoding
from clip3dreid.io.pickle_scan import scan_torch_file
from clip3dreid.model.backbone import Backbone, BackboneOutput, quiet

# What changes the outputs of a network but the shape of none of its weights.
SHAPELESS = ("hidden_act", "layer_norm_eps", "num_attention_heads", "num_heads", "tf_padding")


class TransformersBackbone(Backbone):
    """A vision model of `transformers` (ViT, Swin, ConvNeXt, DINOv2, CLIP's, MobileNetV2, …) up to its last map.

    Args:
        config: `model_type` and whatever of that model's configuration differs from its defaults, as in the
            `config.json` of a published model (for CLIP its `vision_config`, model type
            `clip_vision_model`). The network is made from this alone, with random weights, so that a
            checkpoint can be rebuilt without the published files; `load_published` brings their weights.
        final_norm: name of a submodule to pass the tokens through; for CLIP, whose tokens come out before
            the norm that its class token gets.
        forward: further arguments of the model's forward.
        batch_norm_momentum: share of the newest batch in the running statistics of the model's batch norms, 0 to 1;
            None: as the library has it, which for MobileNetV2 is 0.997 (TensorFlow's decay, whose sense is the
            opposite): statistics of the last batch alone.

    Pictures may be of any size that the model's patches allow: learnt positions are interpolated, and what
    a row or column of patches does not cover is left out (as by the models themselves). Patch tokens become
    the map; class and register tokens are not in it, the first of them is the `token` of the output.

    Raises:
        InputError: if the configuration names no vision model, or holds a key that could load code, or the
            momentum is out of its range.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        final_norm: str | None = None,
        forward: Mapping[str, Any] | None = None,
        batch_norm_momentum: float | None = None,
    ) -> None:
        super().__init__()
        plain = _plain(config)
        _refuse_code(plain)
        if "model_type" not in plain:
            raise InputError("the config of a transformers backbone needs model_type, such as vit or swin")
        try:
            self.model = AutoModel.from_config(AutoConfig.for_model(**plain), trust_remote_code=False)
        except ValueError as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(f"transformers has no backbone for {plain['model_type']!r}: {reason}") from error
        parts = [name for name, _ in self.model.named_children()]
        if final_norm is not None and final_norm not in parts:
            raise InputError(f"final_norm={final_norm} is not a part of the model; it has {parts}")
        if batch_norm_momentum is not None:
            check_number("batch_norm_momentum", batch_norm_momentum, Range(0, 1))
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = batch_norm_momentum
        # Its name: the module itself would be registered, and saved, twice.
        self._final_norm = final_norm
        self.example_size = _pair(getattr(self.model.config, "image_size", 224))
        self._arguments: dict[str, Any] = dict(forward or {})
        if "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters:
            self._arguments["interpolate_pos_encoding"] = True

    def forward(self, images: Tensor) -> BackboneOutput:
        """Map normalised pictures (B, 3, H, W) to the map (B, C, h, w) and the class token (B, C), if any."""
        tokens: Tensor = self.model(pixel_values=images, **self._arguments).last_hidden_state
        if tokens.ndim == 4:
            return BackboneOutput(tokens, None)
        if self._final_norm is not None:
            tokens = self.model.get_submodule(self._final_norm)(tokens)
        height, width = self._grid(*images.shape[-2:])
        others = tokens.shape[1] - height * width
        if others < 0:
            raise InputError(
                f"{self.model.config.model_type} gives {tokens.shape[1]} tokens for a picture of "
                f"{images.shape[-2]}x{images.shape[-1]}, not the {height}x{width} of its patches"
            )
        # By shape, not by len(), which would fix the size of the batch in an exported model.
        patches = tokens[:, others:].transpose(1, 2).reshape(*tokens.shape[::2], height, width)
        return BackboneOutput(patches, tokens[:, 0] if others else None)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the last stage's patches."""
        config = self.model.config
        patch = _pair(config.patch_size)
        if not hasattr(config, "depths"):
            return height // patch[0], width // patch[1]
        # Models in stages pad the picture, and halve the grid (rounded up) between one stage and the next.
        halvings = 2 ** (len(config.depths) - 1)
        return math.ceil(height / (patch[0] * halvings)), math.ceil(width / (patch[1] * halvings))

    def load_published(self, source: str) -> None:
        """Take weights from a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`.

        Heads and towers that this backbone lacks (classifiers, CLIP's text side) are left out. Names of
        models on a hub are not looked up: even for files in its cache that library talks to the network.

        Args:
            source: path of the folder.

        Raises:
            FileNotFoundError: if there is no such folder.
            InputError: if it holds no model, or one of another architecture.
        """
        if not Path(source).is_dir():
            raise FileNotFoundError(source)
        for pickled in sorted(Path(source).glob("*.bin")):
            scan_torch_file(pickled)
        with decoding(source, "a model of transformers", "download it again"), quiet():
            config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
            loaded, report = type(self.model).from_pretrained(
                source,
                config=self.model.config,
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        self._check(source, getattr(config, "vision_config", config), report)
        self.model.load_state_dict(loaded.state_dict())

    def _check(self, source: str, config: Any, report: Mapping[str, Any]) -> None:
        """Refuse weights that would not compute what the published model computes."""
        ours = self.model.config
        for key in SHAPELESS:
            theirs = getattr(config, key, None)
            if theirs is not None and theirs != getattr(ours, key, None):
                raise InputError(
                    f"{source} has {key}={theirs}, the student's config {key}={getattr(ours, key, None)}; "
                    "set model.student.backbone.config to match"
                )
        trained = {name for name, value in self.model.named_parameters() if value.requires_grad}
        parts = {name for name, _ in self.model.named_children()}
        problems = {
            "missing": [key for key in report["missing_keys"] if key in trained],
            "of another shape": [key for key, *_ in report["mismatched_keys"]],
            # A deeper network's layers would be dropped silently; a head is no part of this model.
            "left over": [key for key in report["unexpected_keys"] if key.split(".")[0] in parts],
        }
        found = [f"{what}: {some(sorted(keys))}" for what, keys in problems.items() if keys]
        if found:
            raise InputError(f"{source} does not fit {type(self.model).__name__}: {'; '.join(found)}")


def _plain(value: Any) -> Any:
    """Return mappings as dicts and sequences as lists, all the way down: `transformers` saves what it is given."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value


def _refuse_code(config: Any) -> None:
    """Refuse configuration keys that make `transformers` fetch or run code of somebody else's.

    A config may come out of a downloaded checkpoint. `auto_map` names Python files of a model's repository,
    `attn_implementation` (and its underscored forms) a kernel on the hub.
    """
    if isinstance(config, dict):
        for key, value in config.items():
            if str(key).startswith("_") or key == "auto_map" or "implementation" in str(key):
                raise InputError(f"the config of a transformers backbone must not set {key}")
            _refuse_code(value)
    elif isinstance(config, list):
        for value in config:
            _refuse_code(value)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
