"""What an exported file computes, and what it says of itself."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.data.images import to_unit
from clip3dreid.errors import InputError
from clip3dreid.export.formats import CONTRACT_VERSION, INPUT, Contract
from clip3dreid.export.settings import ExportSettings
from clip3dreid.inference.features import Layer, joint_features, part_layers, retrieval_features
from clip3dreid.inference.model import ReidModel
from clip3dreid.inference.parts import EMBEDDING
from clip3dreid.model.card import clip_size
from clip3dreid.model.network_file import NetworkStudent
from clip3dreid.model.student import Student


class Graph(nn.Module):
    """Compute what a file computes: a model's student, and the heads of what is asked for.

    Args:
        model: on the CPU; it is copied.
        settings: what to take and give.

    Raises:
        InputError: if the model has not learnt an output, or is a network of others.
    """

    def __init__(self, model: ReidModel, settings: ExportSettings) -> None:
        super().__init__()
        self.settings = settings
        # Files are float32, whatever the precision that the model was moved to.
        self.student = copy.deepcopy(_own(model)).float()
        if settings.normalise == "outside":
            self.student.mean.zero_()
            self.student.std.fill_(1)
        self.joint: nn.Linear | None = None
        if "joint" in settings.outputs:
            if "joint" not in model.heads:
                raise InputError(
                    "outputs: this model has no joint, which the loss term loss.local (projection=student) teaches; "
                    "leave it out"
                )
            head = model.heads["joint"]
            self.joint = _linear(Layer(head.get_buffer("weight"), head.get_buffer("bias")))
        self.feature = model.feature
        self.frames = frames_of(model)
        parts = (
            part_layers(model.feature, model.heads.state_dict()) if "embedding" in settings.outputs else {}
        )
        self.parts = nn.ModuleDict({part: _linear(layer) for part, layer in parts.items()})
        self.requires_grad_(False)
        self.eval()

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W), or clips (B, T, 3, H, W), to (B, F) and (B, d), by name, in the order of the settings."""
        pictures = to_unit(pictures)
        wanted = "embedding" in self.settings.outputs
        seen = retrieval_features(
            self.student,
            pictures,
            flip=self.settings.flip and wanted,
            at_once=True,
            feature=self.feature if wanted else EMBEDDING,
            layers=dict(self.parts.items()),
        )
        made = F.normalize(seen.feature, dim=1) if self.settings.unit_length else seen.feature
        outputs = {"embedding": made}
        if self.joint is not None:
            outputs["joint"] = joint_features(seen.upright.map, self.joint)
        return {name: outputs[name] for name in self.settings.outputs}


def _own(model: ReidModel) -> Student:
    """Return a model's student, if it is one."""
    if isinstance(model.student, NetworkStudent):
        raise InputError(f"{model.student.about.network} is a network of others; use its own file")
    return model.student


def _linear(layer: Layer) -> nn.Linear:
    """Return a layer as a module, whose tensors go into the file."""
    module = nn.Linear(layer.weight.shape[1], len(layer.bias))
    module.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    return module


def frames_of(model: ReidModel) -> int:
    """Return T, frames of the clips that a model was trained on; 1: of pictures, or of clips of one."""
    size = clip_size(model.card, model.name)
    return 1 if size is None else size[0]


def contract_of(model: ReidModel, settings: ExportSettings) -> Contract:
    """Return what every file says of itself."""
    outside = settings.normalise == "outside"
    student = _own(model)
    clips = clip_size(model.card, model.name)

    def values(buffer: Tensor) -> list[float] | None:
        # Nothing to apply, nothing to apply twice.
        return [float(str(value)) for value in buffer.flatten().numpy()] if outside else None

    return {
        "version": CONTRACT_VERSION,
        "input": {"name": INPUT, "dtype": settings.input, "channels": "RGB"},
        "height": model.height,
        "width": model.width,
        "square": model.square,
        "clips": None if clips is None else {"frames": clips[0], "stride": clips[1]},
        "normalise": settings.normalise,
        "mean": values(student.mean),
        "std": values(student.std),
        "flip": settings.flip,
        "unit_length": settings.unit_length,
        "feature": model.feature.weights,
        "outputs": {name: model.widths[name] for name in settings.outputs},
        "data": model.card.get("data") or [],
    }
