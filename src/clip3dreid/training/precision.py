"""Let float32 products be less than float32 while a model trains, and at no other time."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class MatmulPrecision(Callback):
    """Set torch's precision of float32 products for the steps of a training; what was set before counts elsewhere.

    Evaluation compares features to the last bit of float32, or neighbours in a ranking change places.

    Args:
        precision: as `torch.set_float32_matmul_precision` has it.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self._before: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set it."""
        self._before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the earlier one back while held-out people are ranked."""
        if self._before is not None:
            torch.set_float32_matmul_precision(self._before)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set it again."""
        if self._before is not None:
            torch.set_float32_matmul_precision(self.precision)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the earlier one back."""
        self.on_exception(trainer, pl_module, None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException | None
    ) -> None:
        """Put the earlier one back."""
        if self._before is not None:
            torch.set_float32_matmul_precision(self._before)
            self._before = None
