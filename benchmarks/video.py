"""What tracklets cost beside pictures: `python benchmarks/video.py [loading] [memory] [size]`.

`loading`: JPEG files of 256x128, walks of different lengths. Frames a second that loaders make of them as clips of 8
(`TrainClips`, `EvaluationClips`), against pictures a second of the same files (`TrainPictures`,
`EvaluationPictures`), with the same workers, sizes and augmentation. The ways take turns; read the ratios.

`memory`: peak memory of evaluating a tracklet of 50 and one of 5,000 frames, each in a process of its own: loader,
a small C2D ResNet and ranking.

`size`: labels drawn as CCVID has them (2,856 tracklets of 347,833 frames; 834 queries, 1,074 gallery tracklets of 151
people) with random features of 2,048 columns: seconds by the clock to make tables of tracklets out of a table of
frames, with frame numbers and without, and to evaluate them under CCVID's three protocols.

RESULTS.md has what came of it.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH, BATCH, FRAMES = 256, 128, 64, 8
PEOPLE, TEST_PEOPLE, QUERIES, GALLERY, TRAIN, ALL_FRAMES = 75, 151, 834, 1_074, 948, 347_833
SHORT, LONG = 50, 5_000


def photograph(rng):
    """Something with a photograph's mix of smooth and fine parts, as JPEG."""
    coarse = rng.integers(0, 256, (HEIGHT // 16 + 1, WIDTH // 16 + 1, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(float)
    picture += rng.normal(0, 6, picture.shape)
    data = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=92)
    return data.getvalue()


def walks(root, lengths, split="train", roles=("train",)):
    """Write walks of so many frames, one a person and role, of few pictures, and return their manifest."""
    from clip3dreid.data.manifest import build

    rng = np.random.default_rng(7)
    originals = []
    for number in range(16):
        originals.append(root / f"original{number}.jpg")
        originals[-1].write_bytes(photograph(rng))
    rows = []
    for person, length in enumerate(lengths):
        for place, role in enumerate(roles):
            folder = f"{role}/{person}"
            (root / folder).mkdir(parents=True)
            for frame in range(length):
                path = f"{folder}/{frame:05d}.jpg"
                os.link(originals[(person + frame + 5 * place) % len(originals)], root / path)
                rows.append(
                    {"path": path, "person": str(person), "camera": role, "clothes": f"{person}_{role}",
                     "tracklet": folder, "frame": frame, "split": split, "role": role}
                )  # fmt: skip
    return build("walks", root, rows)


def rate(loader, per_batch):
    """Return pictures a second by the clock; the first batch waits for workers to start and does not count."""
    batches = iter(loader)
    next(batches)
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += per_batch(batch)
    return count / (time.perf_counter() - start)


def loading(workers, repeats):
    from functools import partial

    from clip3dreid.data.clips import ClipSettings
    from clip3dreid.data.datamodule import ReidDataModule

    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "train").mkdir()
        (root / "test").mkdir()
        lengths = rng.integers(60, 180, 32).tolist()
        train = walks(root / "train", lengths)
        test = walks(root / "test", lengths[:12], "test", ("query", "gallery"))
        # As many pictures in a batch of clips as in one of pictures; augmented alike.
        sized = partial(
            ReidDataModule, height=HEIGHT, width=WIDTH, workers=workers, evaluation_batch=BATCH, people=8
        )
        clips = ClipSettings(FRAMES, 4, piece=8 * 2)
        made = {
            "train, pictures": lambda: sized([train], pictures=BATCH // 8).train_dataloader(),
            "train, clips": lambda: sized(
                [train], pictures=BATCH // 8 // FRAMES, clips=clips, sampler="chunks"
            ).train_dataloader(),
            "evaluation, pictures": lambda: sized([test]).test_dataloader()[0],
            "evaluation, clips": lambda: sized([test], clips=clips).test_dataloader()[0],
        }
        found = {name: [] for name in made}
        for _ in range(repeats):
            for name, loader in made.items():
                found[name].append(rate(loader(), lambda batch: batch.images.shape[:-3].numel()))
    print(
        f"\nloading, {workers} workers, batches of {BATCH} pictures or {BATCH // FRAMES} clips of {FRAMES} frames"
    )
    print("| | pictures a second | frames of clips a second | ratio (aim 0.8) |\n|---|---|---|---|")
    for part in ("train", "evaluation"):
        pictures, frames = found[f"{part}, pictures"], found[f"{part}, clips"]
        ratios = [mine / theirs for mine, theirs in zip(frames, pictures, strict=True)]
        print(
            f"| {part} | {statistics.median(pictures):,.0f} | {statistics.median(frames):,.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
            flush=True,
        )


def evaluated(folder, length):
    """Evaluate a tracklet of so many frames among short ones, and say what memory the process took."""
    import lightning.pytorch as pl

    from clip3dreid.data.clips import ClipSettings
    from clip3dreid.data.datamodule import ReidDataModule
    from clip3dreid.model.clip_student import ClipStudent
    from clip3dreid.model.pooling import Maximum
    from clip3dreid.model.resnet import ResNet
    from clip3dreid.retrieval.standard import GENERAL
    from clip3dreid.training.evaluation_module import EvaluationModule

    manifest = walks(folder, [length, 8, 8], "test", ("query", "gallery"))
    # Half as high and wide, for the student's time.
    data = ReidDataModule(
        [manifest],
        height=HEIGHT // 2,
        width=WIDTH // 2,
        evaluation_batch=BATCH,
        clips=ClipSettings(FRAMES, 4),
    )
    student = ClipStudent(ResNet(18, width=16), Maximum(), [0.5] * 3, [0.25] * 3)
    module = EvaluationModule(
        student, protocols={"test": {"walks": GENERAL.protocols}}, metric="cosine", flip=False
    )
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.test(module, datamodule=data, verbose=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"mib": peak, "r1": module.results["test"]["walks"]["general"]["r1"]}))


def memory():
    print("\nmemory\n| frames of a tracklet | peak of the process, MiB |\n|---|---|")
    peaks = {}
    for length in (SHORT, LONG):
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, __file__, "--evaluate", temporary, str(length)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        peaks[length] = json.loads(said.stdout.splitlines()[-1])["mib"]
        print(f"| {length:,} | {peaks[length]:.0f} |", flush=True)
    print(f"ratio {peaks[LONG] / peaks[SHORT]:.3f}", flush=True)


def frames_like_ccvid(rng):
    """Draw a table of frames with CCVID's counts: each test person in one to three outfits, past up to 24 cameras."""
    import polars as pl

    counts = {"train": TRAIN, "query": QUERIES, "gallery": GALLERY}
    lengths = rng.integers(30, 220, sum(counts.values()))
    lengths = np.maximum(27, np.round(lengths * (ALL_FRAMES / lengths.sum()))).astype(int)
    lengths[-1] += ALL_FRAMES - lengths.sum()
    rows, number = {name: [] for name in ("person", "camera", "clothes", "tracklet", "split", "role")}, 0
    for role, count in counts.items():
        people = np.arange(PEOPLE) if role == "train" else PEOPLE + np.arange(TEST_PEOPLE)
        for place in range(count):
            person = int(people[place % len(people)])
            outfit, walk = int(rng.integers(1 + person % 3)), int(rng.integers(12))
            values = (
                *(str(person), str(walk + 12 * (outfit == 2)), f"{person}_u{outfit}"),
                *(
                    f"session{outfit + 1}/{person:03d}_{number:04d}",
                    "train" if role == "train" else "test",
                    role,
                ),
            )
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
            number += 1
    table = pl.DataFrame(rows)
    which = np.repeat(np.arange(len(table)), lengths)
    frame = np.concatenate([np.arange(1, one + 1) for one in lengths])
    return table[which].with_columns(frame=pl.Series(frame)).with_columns(
        path=pl.format("{}/{}.jpg", "tracklet", pl.col("frame").cast(pl.String).str.zfill(5))
    )  # fmt: skip


def size(width, repeats):
    import polars as pl
    import torch

    from clip3dreid.data.manifest import build
    from clip3dreid.data.tracklets import tracklets
    from clip3dreid.retrieval.standard import CLOTHES
    from clip3dreid.training.evaluation import evaluate_features

    rng = np.random.default_rng(3)
    manifest = build("ccvid", Path("/nowhere"), frames_like_ccvid(rng))
    unnumbered = manifest.replace(table=manifest.table.with_columns(frame=pl.lit(None, pl.Int64)))
    times = {name: [] for name in ("tracklets, numbered", "tracklets, by path", "evaluation")}

    def timed(name, work):
        start = time.perf_counter()
        made = work()
        times[name].append(time.perf_counter() - start)
        return made

    def tables(one):
        parts = (("train", None), ("test", "query"), ("test", "gallery"))
        return [tracklets(one.part(split, role), "ccvid").table for split, role in parts]

    for _ in range(repeats):
        _, query, gallery = timed("tracklets, numbered", lambda: tables(manifest))
        timed("tracklets, by path", lambda: tables(unnumbered))
        assert (len(query), len(gallery)) == (QUERIES, GALLERY)
        labels = pl.concat([query, gallery])
        people = torch.from_numpy(rng.normal(size=(TEST_PEOPLE, width)).astype(np.float32))
        noise = torch.from_numpy(rng.normal(size=(len(labels), width)).astype(np.float32))
        features = people[labels["person"].cast(pl.Int64).to_numpy() - PEOPLE] + 4 * noise
        scores = timed("evaluation", lambda: evaluate_features(features, CLOTHES, data=labels)).results[""]  # noqa: B023
    print(f"\nsize of CCVID, {ALL_FRAMES:,} frames, {width:,} columns, {torch.get_num_threads()} thread(s)")
    print("| | seconds by the clock, median (least to most) |\n|---|---|")
    for name, taken in times.items():
        print(f"| {name} | {statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f}) |")
    whole = statistics.median(times["tracklets, numbered"]) + statistics.median(times["evaluation"])
    shown = ", ".join(f"{name} {values['r1']:.3f}" for name, values in scores.items())
    print(f"tracklets and evaluation: {whole:.2f} s (aim 5); R1 {shown}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", help="loading, memory, size; all of them by default")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width", type=int, default=2_048, help="columns of a feature")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--evaluate", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.evaluate:
        evaluated(Path(options.evaluate[0]), int(options.evaluate[1]))
        return
    parts = options.parts or ["loading", "memory", "size"]
    if unknown := set(parts) - {"loading", "memory", "size"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if "loading" in parts:
        loading(options.workers, options.repeats)
    if "memory" in parts:
        memory()
    if "size" in parts:
        size(options.width, options.repeats)


if __name__ == "__main__":
    main()
