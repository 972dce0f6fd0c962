"""What each switch of `trainer=gpu` is worth: steps of a ResNet-50 on random pictures, one switch after another.

    python benchmarks/trainer_switches.py --device cuda              batch 64 of 384x192; under 90 s with the compiler
    python benchmarks/trainer_switches.py --device cpu [--compile]   batch 8 of 256x128, by turns
    python benchmarks/trainer_switches.py --processes 2              DistributedDataParallel's switches, on the CPU

A step is the base recipe's: student with ghost batch norm, cross-entropy over 77 people, Adam with weight decay. On a
GPU the rows add up, each a student of its own that is gone before the next; `activation checkpointing` and `ema` are
counted on top of the last row before the compiler. Kernels are what the GPU ran in a step, operators what torch
dispatched. On a CPU all students are there at once and take turns; times are medians of processor seconds, ratios
medians over rounds.
"""

import argparse
import gc
import inspect
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.profiler import ProfilerActivity, profile

from clip3dreid.model.blocks import recompute
from clip3dreid.model.pooling import MaximumAverage
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.student import Student

PEOPLE, GROUP = 77, 32
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
Job = Callable[[], object]


class Switches(NamedTuple):
    """What is on."""

    benchmark: bool = False
    high: bool = False
    bf16: bool = False
    channels_last: bool = False
    fused: bool = False
    recompute: bool = False
    ema: bool = False
    compile: bool = False


class Network(nn.Module):
    """A student with the head of its loss."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.student = Student(ResNet(depth), MaximumAverage(), MEAN, STD, ghost_group=GROUP)
        self.head = nn.Linear(self.student.width, PEOPLE)

    def forward(self, images: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
        """Return the loss of pictures (B, 3, H, W) of people (B,)."""
        logits = self.head(self.student(images).embedding)
        return F.cross_entropy(logits.float(), person, label_smoothing=0.1)


def make_step(on: Switches, device: str, images: torch.Tensor, person: torch.Tensor) -> Job:
    """Return one training step."""
    torch.backends.cudnn.benchmark = on.benchmark
    torch.set_float32_matmul_precision("high" if on.high else "highest")
    network = Network(50).to(device)
    if on.channels_last:
        network.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if on.recompute:
        recompute(network.student.backbone)
    if on.compile:
        network.student.compile()
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, 3.5e-4, weight_decay=5e-4, fused=on.fused or None)
    average = [one.detach().clone() for one in parameters] if on.ema else []
    update = get_ema_multi_avg_fn(0.999)

    def step() -> None:
        mixed: AbstractContextManager[Any] = nullcontext()
        if on.bf16:
            mixed = torch.autocast(device, torch.bfloat16)
        with mixed:
            loss = network(images, person)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if on.ema:
            with torch.no_grad():
                update(average, parameters, 1)

    return step


def launched(step: Job, device: str) -> tuple[int, int]:
    """Return how many kernels a GPU ran in a step, and how many operators torch dispatched."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as seen:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    events = seen.events()
    kernels = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
    return kernels, sum(event.name.startswith("aten::") for event in events)


def say(name: str, *columns: object) -> None:
    print(f"{name:<28}" + "".join(f"{column:>14}" for column in columns), flush=True)


def on_gpu(batch: int, size: tuple[int, int], steps: int, compiled: bool) -> None:
    """Add one switch after another."""
    images, person = torch.rand(batch, 3, *size, device="cuda"), torch.arange(batch, device="cuda") % PEOPLE
    base = Switches()
    rows = [("plain: float32, eager", base)]
    for name, more in (
        ("+ cudnn benchmark", {"benchmark": True}),
        ("+ matmul precision high", {"high": True}),
        ("+ bf16-mixed", {"bf16": True}),
        ("+ channels-last", {"channels_last": True}),
        ("+ fused optimiser", {"fused": True}),
    ):
        base = base._replace(**more)
        rows.append((name, base))
    rows += [
        ("  with activation checkp.", base._replace(recompute=True)),
        ("  with ema", base._replace(ema=True)),
    ]
    rows += [("+ compile", base._replace(compile=True))] if compiled else []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; batch {batch} of {size[0]}x{size[1]}")
    say("", "pictures/s", "times plain", "GB", "first step s", "kernels", "operators")
    plain = 0.0
    for name, on in rows:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step = make_step(on, "cuda", images, person)
        step()
        torch.cuda.synchronize()
        first = time.perf_counter() - start
        for _ in range(4):
            step()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        rate = steps * batch / (time.perf_counter() - start)
        plain = plain or rate
        memory = torch.cuda.max_memory_allocated() / 1e9
        say(
            name,
            f"{rate:.0f}",
            f"{rate / plain:.2f}",
            f"{memory:.1f}",
            f"{first:.1f}",
            *launched(step, "cuda"),
        )
        del step


def on_cpu(batch: int, size: tuple[int, int], rounds: int, compiled: bool) -> None:
    """Let all students take turns."""
    images, person = torch.rand(batch, 3, *size), torch.arange(batch) % PEOPLE
    last = Switches(channels_last=True)
    settings = {
        "plain: float32, eager": Switches(),
        "+ channels-last": last,
        "+ fused optimiser": last._replace(fused=True),
        "  with activation checkp.": last._replace(fused=True, recompute=True),
        "  with ema": last._replace(fused=True, ema=True),
    }
    if compiled:
        settings["+ compile"] = last._replace(fused=True, compile=True)
    threads = torch.get_num_threads()
    print(f"CPU, {threads} thread(s), torch {torch.__version__}; batch {batch} of {size[0]}x{size[1]}")
    made, first = {}, {}
    for name, on in settings.items():
        made[name] = make_step(on, "cpu", images, person)
        start = time.process_time()
        made[name]()
        first[name] = time.process_time() - start
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, step in made.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    say("", "ms a step", "times plain", "first step s", "operators")
    plain = times["plain: float32, eager"]
    for name, step in made.items():
        # Of each round by itself: what else the machine does is much the same within one.
        ratio = statistics.median(one / own for one, own in zip(plain, times[name], strict=True))
        took = f"{1e3 * statistics.median(times[name]):.0f}"
        say(name, took, f"{ratio:.2f}", f"{first[name]:.1f}", launched(step, "cpu")[1])


TAKES = inspect.signature(DistributedDataParallel).parameters
NO_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in TAKES else "broadcast_buffers": False}
DDP: dict[str, dict[str, Any]] = {
    "as before: search, buffers": {"find_unused_parameters": True},
    "+ no search": {},
    "+ no buffers sent": NO_BUFFERS,
    "+ gradients as views": NO_BUFFERS | {"gradient_as_bucket_view": True},
}


def one_process(rank: int, processes: int, rounds: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    torch.set_num_threads(1)
    images, person = torch.rand(8, 3, 64, 32), torch.arange(8)
    made: dict[str, tuple[nn.Module, Job]] = {}

    def step(network: nn.Module) -> None:
        network(images, person).backward()
        for parameter in network.parameters():
            parameter.grad = None

    for name, options in DDP.items():
        torch.manual_seed(0)
        network = DistributedDataParallel(Network(50), **options)
        made[name] = network, partial(step, network)
    times: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds + 2):
        for name, (_, job) in made.items():
            dist.barrier()
            start = time.process_time()
            job()
            if number > 1:
                times[name].append(time.process_time() - start)
    if rank == 0:
        print(
            f"{processes} processes, gloo, one thread each, torch {torch.__version__}; ResNet-50, batch 8 of 64x32"
        )
        say("", "ms a step", "of before", "collectives", "MB held twice")
    for name, (network, job) in made.items():
        counts = collectives(job)
        network(images, person).backward()
        gradients = [one.grad for one in network.parameters() if one.grad is not None]
        held = sum(one.nbytes for one in gradients if not one._is_view())
        if rank == 0:
            before = next(iter(times.values()))
            ratio = statistics.median(own / one for one, own in zip(before, times[name], strict=True))
            say(
                name,
                f"{1e3 * statistics.median(times[name]):.0f}",
                f"{ratio:.3f}",
                counts,
                f"{held / 1e6:.0f}",
            )
    dist.destroy_process_group()


def collectives(job: Job) -> int:
    """Return how many messages a step sends."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        job()
    return sum(event.name.startswith("gloo:") for event in seen.events())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--batch", type=int)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, help="steps that are timed")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="on a GPU unless told otherwise"
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--port", type=int, default=29517)
    given = parser.parse_args()
    if given.processes > 1:
        arguments = (given.processes, given.rounds or 8, given.port)
        multiprocessing.spawn(one_process, arguments, nprocs=given.processes)
    elif given.device == "cuda":
        size = tuple(given.size or (384, 192))
        on_gpu(given.batch or 64, size, given.rounds or 20, given.compile is not False)
    else:
        size = tuple(given.size or (256, 128))
        on_cpu(given.batch or 8, size, given.rounds or 5, bool(given.compile))


if __name__ == "__main__":
    main()
