from pathlib import Path

import numpy as np
import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.export.formats import Onnx, prepare
from clip3dreid.inference.model import ReidModel


def test_pictures_are_prepared_by_hand_computed_numbers() -> None:
    pictures = np.full((1, 3, 1, 1), 51, np.uint8)  # 0.2
    inside = {"input": {"dtype": "float32"}, "normalise": "inside"}
    assert prepare(pictures, inside).ravel().tolist() == pytest.approx([0.2] * 3)
    outside = inside | {"normalise": "outside", "mean": [0.2, 0.1, 0.4], "std": [0.5, 0.5, 0.1]}
    assert prepare(pictures, outside).ravel().tolist() == pytest.approx([0, 0.2, -2], abs=1e-6)
    assert prepare(pictures, {"input": {"dtype": "uint8"}}) is pictures


def test_weights_that_one_onnx_file_cannot_hold_are_refused(model: ReidModel, tmp_path: Path) -> None:
    class Huge:
        state_dict = {"weight": torch.empty(600_000_000, device="meta")}  # noqa: RUF012

    with pytest.raises(InputError, match=r"2\.4 GB and one ONNX file holds 2"):
        Onnx().write(Huge(), {}, tmp_path / "model.onnx")  # type: ignore[arg-type]
