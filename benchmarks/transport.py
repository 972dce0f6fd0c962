"""What a solver of optimal transport costs beside a bare pass of matrix scaling, and how its memory grows.

    OMP_NUM_THREADS=1 python benchmarks/transport.py [--iterations 30] [--repeats 15]

`bare` is written out: cost product, exponential, that many steps on rows and columns, value. Times are medians of
interleaved repeats on the same 64 pictures, 24 x 12 positions, 16 tokens, 512 wide: random directions with a part in
common. All steps are taken (tolerance 0) but in `default`, which is what loss=local asks for. `logarithmic` is
Sinkhorn at an eps just below the change of form; `geomloss` takes its own 62 steps. Memory is the peak of tensors
alive beyond the inputs; with the backward pass, 0.56 MiB a picture of it are the gradient of the positions.
"""

import argparse
import itertools
import statistics
import time

import torch
from torch.nn import functional as F

from clip3dreid.loss.transport import GeomLoss, Sinkhorn, UnbalancedSinkhorn

PICTURES, POSITIONS, TOKENS, WIDTH, EPS = 64, 288, 16, 512, 0.1


def problem(pictures):
    torch.manual_seed(0)
    x = torch.randn(pictures, POSITIONS, WIDTH) + 0.5 * torch.randn(pictures, 1, WIDTH)
    y = torch.randn(pictures, TOKENS, WIDTH) + 0.5 * torch.randn(WIDTH)
    a, b = torch.full((pictures, POSITIONS), 1 / POSITIONS), torch.full((pictures, TOKENS), 1 / TOKENS)
    return F.normalize(x, dim=2), F.normalize(y, dim=2), a, b


def bare(iterations):
    def solve(x, y, a, b):
        cost = 1 - x @ y.mT
        with torch.no_grad():
            kernel = torch.exp(-cost / EPS)
            v = torch.ones_like(b)[:, :, None]
            for _ in range(iterations):
                u = a[:, :, None] / (kernel @ v)
                v = b[:, :, None] / (kernel.mT @ u)
            plan = u * kernel * v.mT
        return (plan * cost).sum((1, 2))

    return solve


def value(solver):
    return lambda *inputs: solver(*inputs).value


def forward(solve, inputs):
    with torch.no_grad():
        solve(*inputs)


def both(solve, inputs):
    x, y, a, b = inputs
    solve(x.requires_grad_(), y.requires_grad_(), a, b).mean().backward()
    x.grad = y.grad = None


def time_of(work, solve, inputs):
    start = time.perf_counter()
    work(solve, inputs)
    return time.perf_counter() - start


def peak(work, solve, pictures):
    """MiB of tensors alive at once, beyond the inputs."""
    inputs = problem(pictures)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
        work(solve, inputs)
    events = run.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes)) / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    steps = {"iterations": options.iterations, "tolerance": 0.0}
    solvers = {
        "bare": bare(options.iterations),
        "scaled": value(Sinkhorn(eps=EPS, **steps)),
        "default": value(Sinkhorn(eps=EPS, iterations=50, tolerance=1e-3)),
        "logarithmic": value(Sinkhorn(eps=0.039, **steps)),
        "unbalanced": value(UnbalancedSinkhorn(eps=EPS, rows_rho=0.5, **steps)),
        "geomloss": value(GeomLoss(eps=EPS, scaling=0.97)),
    }
    print(f"{torch.get_num_threads()} threads, {options.iterations} steps; ms, and share of the bare pass's")
    inputs = problem(PICTURES)
    for work in (forward, both):
        times = {name: [] for name in solvers}
        for repeat in range(options.repeats + 1):
            for name, solve in solvers.items():
                spent = time_of(work, solve, inputs)
                if repeat:  # the first warms up
                    times[name].append(spent)
        medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
        cells = (f"{name} {ms:.1f} ({ms / medians['bare']:.2f})" for name, ms in medians.items())
        print(f"{work.__name__:8}", "  ".join(cells))
    for name, solve in solvers.items():
        for work in (forward, both):
            mib = [f"{peak(work, solve, pictures):.1f}" for pictures in (32, 64, 128)]
            print(f"{name:12} {work.__name__:8} peak at 32, 64, 128 pictures: {', '.join(mib)} MiB")


if __name__ == "__main__":
    main()
