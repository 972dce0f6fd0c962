"""How near `extract` is to what decoding and the model alone take, and whether its memory stays flat.

    python benchmarks/extract.py [--pictures 4000] [--repeats 3]
    python benchmarks/extract.py --memory 10000 100000

Pictures are made here: JPEG files of 128x64 with smooth noise, a few hundred that are linked again and again. The
model is the demo's small student (ResNet-18, quarter width), untrained. `floor` decodes, resizes and looks, batch
by batch, in one process with torch's threads, and writes nothing; the ratio is its time over that of the command's
work.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import quieten, register
from clip3dreid.data.images import TestView, read_rgb, to_unit
from clip3dreid.inference.model import ReidModel, load

DIFFERENT = 300


def write_model(folder):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=["+experiment=demo", "method=ce", "data.root=."])
    student = instantiate(cfg.model.student)
    node = json.loads(json.dumps(plain(cfg.model.student)))
    card = {
        "version": 1,
        "student": node,
        "height": cfg.datamodule.height,
        "width": cfg.datamodule.width,
        "data": [],
    }
    ReidModel(student, card, {}).save_pretrained(folder)


def plain(node):
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=True)


def write_pictures(folder, count):
    rng = np.random.default_rng(1)
    (folder / "different").mkdir(parents=True)
    for number in range(DIFFERENT):
        small = Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8))
        small.resize((64, 128), Image.Resampling.BICUBIC).save(
            folder / "different" / f"{number}.jpg", quality=90
        )
    (folder / "crops").mkdir()
    for number in range(count):
        (folder / "crops" / f"{number:07d}.jpg").symlink_to(
            folder / "different" / f"{number % DIFFERENT}.jpg"
        )
    return folder / "crops"


def floor(model, files, batch):
    view = TestView(model.height, model.width, model.square)
    start = time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(files), batch):
            planes = np.stack([view(read_rgb(file)) for file in files[first : first + batch]])
            model(to_unit(torch.from_numpy(planes)), flip=True)
    return time.perf_counter() - start


def extracted(model, crops, out, workers):
    """Seconds of the work, and the peak of all memory of the process and of its largest child, MiB."""
    code = (
        "import resource, sys, json\n"
        "from functools import partial\n"
        "from pathlib import Path\n"
        "import lightning.pytorch as lightning\n"
        "from clip3dreid.inference.model import load\n"
        "from clip3dreid.search.extraction import extract\n"
        "from clip3dreid.search.settings import ExtractSettings\n"
        "model, crops, out, workers = sys.argv[1:]\n"
        "cpu = partial(lightning.Trainer, accelerator='cpu', devices=1, enable_model_summary=False)\n"
        "result = extract(load(model), crops, ExtractSettings(workers=int(workers)), Path(out), cpu)\n"
        "whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN\n"
        "peak = [resource.getrusage(who).ru_maxrss / 1024 for who in whose]\n"
        "print(json.dumps([result.seconds, *peak]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(crops), str(out), str(workers)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", default=[], metavar="PICTURES")
    options = parser.parse_args()
    register()
    quieten()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_model(place / "model")
        if options.memory:
            for count in options.memory:
                crops = write_pictures(place / str(count), count)
                seconds, own, child = extracted(place / "model", crops, place / f"out{count}", 1)
                memory = f"peak {own:.0f} MiB, a loader's {child:.0f} MiB"
                print(f"{count:8} pictures: {count / seconds:.0f} a second, {memory}")
            return
        crops = write_pictures(place / "few", options.pictures)
        model, files = load(place / "model"), sorted(crops.iterdir())
        ratios = {0: [], 1: [], 2: []}
        for repeat in range(options.repeats):
            for workers, kept in ratios.items():
                bare = floor(model, files, 64)
                whole = extracted(place / "model", crops, place / f"out{repeat}{workers}", workers)[0]
                kept.append((bare / whole, options.pictures / bare, options.pictures / whole))
        print(f"{torch.get_num_threads()} threads, {options.pictures} pictures, medians of {options.repeats}")
        for workers, kept in ratios.items():
            ratio, bare, whole = (statistics.median(values) for values in zip(*kept, strict=True))
            print(f"workers={workers}: {whole:.0f} pictures a second, floor {bare:.0f}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
