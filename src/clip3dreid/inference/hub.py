"""Read and write the folder of a model, on this disk and on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.inference.parts import EMBEDDING, Feature
from clip3dreid.io.files import inside, write_json, write_text
from clip3dreid.io.formats import damaged, peek_json, read_json, unsealed
from clip3dreid.io.locks import LOCK, at_work
from clip3dreid.io.staging import together
from clip3dreid.model.card import CARD, valid_card
from clip3dreid.model.network_file import AnyStudent, NetworkStudent
from clip3dreid.model.places import LIBRARY, ModelPlace
from clip3dreid.model.student import Student
from clip3dreid.model.weights import build_student, has_card, read_checkpoint, save_weights

_README = "README.md"
# Keys of a config that are no part of the card.
_ABOUT = ("library", "library_version")
# In a README: nobody has made it theirs yet.
_GENERATED = "<!-- Written anew by every save_pretrained; remove this line to keep your own words. -->"


class ModelFiles(NamedTuple):
    """What the files of a model hold."""

    student: Student
    card: dict[str, Any]
    heads: dict[str, Tensor]
    place: ModelPlace
    weights_card: Any
    """The card in the file of weights; None where that has none."""

    def check_same_card(self) -> None:
        """Check that config and weights, which carry the same card, are of one model and whole.

        Raises:
            InputError: if they are of two models or one is damaged.
        """
        if self.place.config is None:
            return
        ours = {key: value for key, value in self.card.items() if key not in _ABOUT}
        if self.weights_card is None:
            unsealed(self.place.config, CARD, (), "")
        elif json.dumps(ours, sort_keys=True) != json.dumps(self.weights_card, sort_keys=True):
            raise damaged(
                self.place.config,
                f"{SAFETENSORS_SINGLE_FILE} says otherwise",
                "copy both anew, or save the model again",
            )


def read_files(place: ModelPlace, trusted: Collection[str]) -> ModelFiles:
    """Read a model's files, and build the student that they describe.

    Args:
        place: of `model.places.find_model`.
        trusted: packages of the user's own whose classes the card may name.

    Raises:
        InputError: as `ReidModel.from_pretrained`.
    """
    checkpoint = read_checkpoint(place.weights)
    source = place.config or place.weights
    card = valid_card(checkpoint.card if place.config is None else _read_config(place.config), source)
    student = build_student(card, checkpoint.state, source, trusted)
    return ModelFiles(student, card, checkpoint.heads, place, checkpoint.card)


class ModelFolder(ModelHubMixin):
    """Let a model be saved as a folder, and pushed to the hub."""

    student: AnyStudent
    card: dict[str, Any]
    heads: nn.ModuleDict
    body_card: dict[str, Any] | None
    feature: Feature

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a folder that `load` reads: `model.safetensors`, `config.json`, `README.md`.

        A README that somebody wrote stays; one of an earlier save would describe another model and does not.

        The body's file stays out, by its checksum alone: official ones may not be passed on.

        Args:
            save_directory: the folder; made if it is not there.
            options: of `huggingface_hub.ModelHubMixin.save_pretrained`, such as `push_to_hub=True`.

        Returns:
            The commit's address on the hub where it was pushed, else None.

        Raises:
            InputError: if the model is a network of others, or the folder cannot be written, a full disk included, or
                holds another program's model; what was there before is still there.
        """
        if isinstance(self.student, NetworkStudent):
            raise InputError(
                f"{self.student.about.network} is a network of others; pass its own files on, with their description"
            )
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
        """Save the model to the Hugging Face hub.

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
        if self.body_card is not None:
            # The checksum says which file it is; where it lay is nobody's business.
            card["body"] = self.body_card | {"name": Path(self.body_card["name"]).name}
        # The weights carry the card too, so that evaluation and training take the file by itself.
        save_weights(self.student.state_dict() | tensors, card, save_directory / SAFETENSORS_SINGLE_FILE)
        write_text(save_directory / _README, str(self.generate_model_card()))
        about = dict(zip(_ABOUT, (LIBRARY, version("clip3dreid")), strict=True))
        write_json(save_directory / CONFIG_NAME, about | card)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """Return a short model card: what the model is and was trained on, how to use it, what is not known of it."""
        parts = "" if self.feature == EMBEDDING else f", made of {self.feature}"
        can = [f"`model.embed(pictures)`: features for retrieval{parts}"]
        if "joint" in self.heads and "joint.words" in self.heads.state_dict():
            groups = self.card["vocabulary"]["groups"]
            can.append(f"`model.describe(pictures)`: words of {len(groups)} groups, with scores")
        if self.body_card is not None and "shape" in self.heads:
            can.append(
                f"`model.shape(pictures)`: {self.body_card['num_betas']} shape coefficients and a mesh of the body "
                f"file {Path(self.body_card['name']).name}"
            )
        data = self.card.get("data") or []
        trained = (
            ", ".join(map(str, data)) if isinstance(data, list) and data else "data that it does not name"
        )
        teacher = self.card.get("teacher")
        guided = f" Teacher: {teacher['name']}." if isinstance(teacher, dict) and "name" in teacher else ""
        network = self.card["student"].get("backbone", {}).get("_target_", self.card["student"]["_target_"])
        network = network.rpartition(".")[2]
        size = f"{self.card['height']} x {self.card['width']}"
        text = f"""---
{self._hub_mixin_info.model_card_data.to_yaml()}
---

{_GENERATED}

# A model for clothes-changing person re-identification

A student of the Python package `clip3dreid` ({network}, {self.student.width} features) for pictures
of single people, {size} pixels. Trained on: {trained}.{guided}

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


def _is_written(readme: Path) -> bool:
    """Return whether somebody has made a README theirs."""
    return readme.exists() and _GENERATED not in readme.read_text(encoding="utf-8", errors="replace")


def _check_place(folder: Path) -> None:
    """Check that saving there writes over no other program's model."""
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
