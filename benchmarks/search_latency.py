"""How long a search by picture takes: a process for each query, against one that answers them all.

    python benchmarks/search_latency.py [--pictures 1000] [--student resnet18_quarter] [--queries 50]

An untrained model and crops of noise of 128x64; neither changes what it costs. Elapsed and processor time (user and
system, of the process alone), medians: of five processes, and of the queries behind the first.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from clip3dreid.config.folder import conf_dir
from clip3dreid.inference.model import ReidModel
from clip3dreid.model.card import CARD_VERSION
from clip3dreid.report.tables import print_table
from clip3dreid.search.gallery import Gallery

HEIGHT, WIDTH = 128, 64
PROCESSES = 5


def prepare(place: Path, student: str, pictures: int) -> None:
    """Write a model, crops and their gallery."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        node = compose(overrides=[f"+model/student={student}", "+weights_dir=weights"]).model.student
    torch.manual_seed(0)
    sizes = {"height": HEIGHT, "width": WIDTH}
    card = {"version": CARD_VERSION, "student": OmegaConf.to_container(node), "data": [], **sizes}
    model = ReidModel(instantiate(node), card, {})
    model.save_pretrained(place / "model")
    (place / "crops").mkdir()
    rng = np.random.default_rng(0)
    for number in range(pictures):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(place / "crops" / f"{number:06}.jpg")
    Gallery.from_pictures(model, place / "crops").save(place / "shards")


def processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(place: Path, *words: str) -> list[str]:
    asked = [f"gallery={place / 'shards'}", f"checkpoint={place / 'model'}", "top=10", *words]
    return [sys.executable, "-m", "clip3dreid", "search", *asked]


def alone(place: Path, query: Path) -> tuple[float, float]:
    """Seconds, elapsed and of processor time, of a process for one query."""
    before, start = processor(), time.perf_counter()
    subprocess.run(command(place, f"picture={query}"), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, processor() - before


def answers(place: Path, queries: list[Path]) -> Iterator[float]:
    """Seconds until each answer of one process, that of the first from its start on."""
    start = time.perf_counter()
    with subprocess.Popen(
        command(place, "interactive=true"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for query in queries:
            process.stdin.write(json.dumps({"query": str(query)}).encode() + b"\n")
            process.stdin.flush()
            assert "hits" in json.loads(process.stdout.readline())
            yield time.perf_counter() - start
            start = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--student", default="resnet18_quarter")
    parser.add_argument("--queries", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place, arguments.student, arguments.pictures)
        queries = sorted((place / "crops").iterdir())[: arguments.queries]
        elapsed, used = zip(*(alone(place, queries[0]) for _ in range(PROCESSES)), strict=True)
        before = processor()
        first, *next_ones = answers(place, queries)
        one_for_all = processor() - before
    whole, following = statistics.median(elapsed), statistics.median(next_ones)
    rows = [
        ["a process for one query", f"{whole:.2f}", f"{statistics.median(used):.2f}"],
        ["one process: the first answer", f"{first:.2f}", ""],
        [
            "each answer behind it",
            f"{following:.4f}",
            f"{one_for_all / len(queries):.3f} (all over their number)",
        ],
        ["times faster", f"{whole / following:.0f}", ""],
    ]
    what = f"{arguments.student}, {arguments.pictures:,} pictures, {torch.get_num_threads()} threads"
    print_table(what, ["", "elapsed, s", "processor, s"], rows)


if __name__ == "__main__":
    main()
