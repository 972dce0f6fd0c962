"""What threads that wait cost on a busy machine: `python benchmarks/threads.py [--seconds 8] [--loads 0 2 8]`.

The demo's student learns random pictures in a process of its own, beside so many processes that do nothing but count,
with torch's threads as they come, with waiting threads that yield (OMP_WAIT_POLICY=passive), and with one thread.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = {
    "as it comes": {},
    "spin count 10000": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
PICTURES = 80  # the demo's: 64 of people, 16 of bodies


def measure(seconds: float) -> None:
    """Return steps a second, in this process."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from clip3dreid.config.folder import conf_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        student = instantiate(compose(overrides=["+model/student=resnet18_quarter"]).model.student)
    student.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(student.parameters())
    pictures = torch.rand(PICTURES, 3, 128, 64)
    steps, start = 0, time.perf_counter()
    while True:
        if steps == 3:  # the first steps build what the others use
            start = time.perf_counter()
        optimizer.zero_grad()
        student(pictures).embedding.square().mean().backward()
        optimizer.step()
        steps += 1
        if steps > 3 and (past := time.perf_counter() - start) > seconds:
            break
    cpu = sum(os.times()[:2])
    print(f"{(steps - 3) / past:.2f} {cpu / steps:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--loads", type=int, nargs="+", default=[0, 2, 8])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.seconds)
        return
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))
    }
    print(f"{os.cpu_count()} cores; load of others {os.getloadavg()[0]:.1f}")
    for load in options.loads:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        try:
            for _ in range(options.rounds):
                for name, setting in SETTINGS.items():
                    done = subprocess.run(
                        [sys.executable, Path(__file__), "--measure", "--seconds", str(options.seconds)],
                        env=clean | setting, check=True, capture_output=True, text=True,
                    )  # fmt: skip
                    print(f"{load} busy processes, {name}: {done.stdout.strip()}", flush=True)
        finally:
            for other in others:
                other.kill()


if __name__ == "__main__":
    main()
