"""Count the kernels of batch norm by groups, forward and backward, and time it: `python benchmarks/ghost_norm.py`.

A ResNet-50 in training on the same pictures again and again, in groups of a fixed part of the batch. Kernels are the
operations that reach the device, views and allocations left out. On the CPU the processor's seconds count.
"""

from __future__ import annotations

import argparse
import collections
import copy
import time
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clip3dreid.model.normalisation import use_ghost
from clip3dreid.model.resnet import ResNet

VIEWS = """
detach view _unsafe_view t transpose permute slice select expand unsqueeze squeeze alias split split_with_sizes
as_strided unbind empty empty_like new_empty empty_strided new_empty_strided
"""


class Kernels(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name not in VIEWS.split():
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def step(network: nn.Module, images: torch.Tensor, precision: torch.dtype) -> None:
    """Do a forward and a backward pass."""
    network.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, dtype=precision, enabled=precision != torch.float32):
        found = network(images).map
    found.float().square().mean().backward()


def seconds(network: nn.Module, images: torch.Tensor, precision: torch.dtype, steps: int) -> float:
    """Return what a step takes."""
    cuda = images.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter() if cuda else time.process_time()
    for _ in range(steps):
        step(network, images, precision)
    if cuda:
        torch.cuda.synchronize()
    return ((time.perf_counter() if cuda else time.process_time()) - start) / steps


def main() -> None:
    """Print a row a number of groups."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 32))
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    torch.manual_seed(0)
    layout = torch.channels_last if asked.channels_last else torch.contiguous_format
    precision = getattr(torch, asked.precision)
    images = torch.randn(asked.batch, 3, *asked.size, device=asked.device).to(memory_format=layout)
    plain = ResNet(asked.depth).to(asked.device, memory_format=layout).train()  # type: ignore[call-overload]
    networks: dict[int, nn.Module] = {}
    kernels: dict[int, int] = {}
    for groups in asked.groups:
        network = copy.deepcopy(plain)
        if groups > 1:
            use_ghost(network, asked.batch // groups)
        step(network, images, precision)
        with Kernels() as counted:
            step(network, images, precision)
        kernels[groups] = sum(counted.counts.values())
        networks[groups] = torch.compile(network, fullgraph=True) if asked.compile else network  # type: ignore[assignment]
        step(networks[groups], images, precision)
    times: dict[int, list[float]] = {groups: [] for groups in networks}
    for _ in range(asked.rounds):
        for groups, network in networks.items():
            times[groups].append(seconds(network, images, precision, asked.steps))
    print("| groups | kernels | ms a step | beside one group |")
    print("|---|---|---|---|")
    best = {groups: min(found) for groups, found in times.items()}
    for groups, found in best.items():
        ratio = found / best[asked.groups[0]]
        print(f"| {groups} | {kernels[groups]:,} | {1e3 * found:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
