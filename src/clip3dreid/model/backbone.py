"""What every backbone answers, whoever wrote it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class BackboneOutput(NamedTuple):
    """What a backbone makes of pictures."""

    map: Tensor
    """(B, C, h, w): the last feature map."""
    token: Tensor | None
    """(B, C): the class token, of backbones that have one."""


class Backbone(nn.Module):
    """From normalised pictures (B, 3, H, W) to a `BackboneOutput`."""

    example_size: tuple[int, int] = (64, 64)
    """Height and width of a picture that this backbone can take."""
    map_channels: int | None = None
    """C of the map, of a backbone that says it and whose parameters all count; None: the student finds it by a run.

    A class that derives from one that says it, and makes another map, sets it anew.
    """
    looks_across_frames: bool = False
    """Whether `forward` takes `length`, how many rows in a row are the frames of one clip."""

    def load_published(self, source: str) -> None:
        """Take weights from a folder in the layout its makers publish.

        Args:
            source: path of the folder.

        Raises:
            FileNotFoundError: if there is nothing by that name, or this kind of backbone has no such layout.
            InputError: if the weights do not fit.
        """
        raise FileNotFoundError(source)

    def completed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make of tensors by this backbone's names, which are to be loaded into it, those that fit.

        Here kernels of clips that look at a single frame, (out, in, 1, h, w), become those of pictures.

        Args:
            state: of a file, without the part's name (`layer2.0.conv2.weight`).
        """
        return {
            name: tensor.squeeze(2) if tensor.ndim == 5 and tensor.shape[2] == 1 else tensor
            for name, tensor in state.items()
        }


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the loading report and progress bar of `transformers`: what matters of them becomes an error."""
    # Here, since students that are no transformers do without that import.
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Switch gradient and autocast off: a trainer's would make a frozen network's arithmetic another than it was."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield
