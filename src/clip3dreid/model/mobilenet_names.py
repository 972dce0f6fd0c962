"""MobileNetV2's tensors by the names that its ImageNet files have, and by those of `transformers`."""

from __future__ import annotations

from collections.abc import Collection, Iterator

_BLOCKS = 17
"""Inverted residuals (Sandler et al., CVPR 2018, table 2); the first, without expansion, is in the stem here."""


def mobilenet_names(names: Collection[str]) -> dict[str, str]:
    """Return where each tensor of a file of MobileNetV2 is in `transformers.MobileNetV2Model`.

    Two layouts are published: torchvision's, where convolution and norm of a layer stand in a part of their own
    (`features.2.conv.0.1.weight`), and the earlier one of files from before torchvision had the model, where all of a
    block's are numbered in one row (`features.2.conv.1.weight`).

    Args:
        names: of all tensors of a file.

    Returns:
        Name there -> name in the model; of a file of anything else, nothing.
    """
    if "features.18.0.weight" not in names:
        return {}
    in_a_row = "features.1.conv.0.weight" in names
    places = {"features.0": "conv_stem.first_conv", "features.18": "conv_1x1"}
    pairs = [
        (f"{there}.{number}.", f"{ours}.{part}.")
        for there, ours in places.items()
        for number, part in enumerate(("convolution", "normalization"))
    ]
    pairs += [pair for block in range(1, _BLOCKS + 1) for pair in _block(block, in_a_row)]
    return {
        name: ours + name.removeprefix(there)
        for there, ours in pairs
        for name in names
        if name.startswith(there)
    }


def _block(block: int, in_a_row: bool) -> Iterator[tuple[str, str]]:
    """Yield the beginnings of names of a block's convolutions and norms, there and here."""
    layers = ("expand_1x1", "conv_3x3", "reduce_1x1")[1 if block == 1 else 0 :]
    ours = "conv_stem" if block == 1 else f"layer.{block - 2}"
    for number, layer in enumerate(layers):
        if in_a_row:  # convolution, norm, activation
            places = f"{3 * number}", f"{3 * number + 1}"
        elif layer == layers[-1]:  # which has no activation, and so no part of its own
            places = f"{number}", f"{number + 1}"
        else:
            places = f"{number}.0", f"{number}.1"
        for place, part in zip(places, ("convolution", "normalization"), strict=True):
            yield f"features.{block}.conv.{place}.", f"{ours}.{layer}.{part}."
