"""What embedding with a network of others takes, over decoding and the network's own runtime alone.

    python benchmarks/network_speed.py FILE.xml PICTURES [--repeats 5]

FILE.xml is a network of OpenVINO for BGR bytes of 256x128, described by FILE.yaml beside it (docs/networks.md) with
flip: false; PICTURES a folder. The floor decodes and resizes every picture with Pillow and OpenCV, in one process,
and runs the network on batches of 64; `embed` is `clip3dreid.load(FILE).embed(PICTURES, batch_size=64)`. Both by
turns, pictures in the cache. Printed: the floor's time over ours, lowest, median and highest.
"""

import argparse
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import openvino
from PIL import Image

import clip3dreid

BATCH = 64


def floor(run: openvino.CompiledModel, files: list[Path]) -> float:
    start = time.perf_counter()
    for first in range(0, len(files), BATCH):
        seen = []
        for file in files[first : first + BATCH]:
            with Image.open(file) as picture:
                rgb = np.asarray(picture.convert("RGB"))
            small = cv2.resize(rgb, (128, 256), interpolation=cv2.INTER_LINEAR)
            seen.append(small[:, :, ::-1].transpose(2, 0, 1))
        run([np.stack(seen).astype(np.float32)])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    files = sorted(arguments.pictures.glob("*.png")) or sorted(arguments.pictures.glob("*.jpg"))
    core = openvino.Core()
    read = core.read_model(arguments.network)
    read.reshape([-1, 3, 256, 128])
    run = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    model = clip3dreid.load(arguments.network)
    floor(run, files[:BATCH])
    model.embed(files[:BATCH], batch_size=BATCH)
    ratios = []
    for _ in range(arguments.repeats):
        bare = floor(run, files)
        start = time.perf_counter()
        model.embed(files, batch_size=BATCH)
        ours = time.perf_counter() - start
        ratios.append(bare / ours)
        print(f"floor {len(files) / bare:.0f} pictures/s, embed {len(files) / ours:.0f}")
    print(f"floor's time over ours: {min(ratios):.2f} {statistics.median(ratios):.2f} {max(ratios):.2f}")


if __name__ == "__main__":
    main()
