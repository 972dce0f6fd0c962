"""How many pictures a processor second makes of files and of a pack: `python benchmarks/pictures.py`.

JPEG files of three sizes become 384x192 training pictures, once by `TrainView`, once with Pillow decoding every file
as before, once by the same recipe in plain Pillow and numpy (to float, as is usual there), once by albumentations'
transforms; and from a pack, augmented by `TrainView` and left to the training device. Batches of 64, in one process
of one thread. The ways take turns, so that a busy machine slows all of them, and processor seconds are counted; read
the ratios.

RESULTS.md has what came of it.
"""

import argparse
import io
import random
import statistics
import tempfile
import time
from pathlib import Path

import albumentations
import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image, ImageOps

from clip3dreid.config.folder import conf_dir
from clip3dreid.data.images import FileRows
from clip3dreid.data.manifest import build
from clip3dreid.data.pack import Pack, PackedRows
from clip3dreid.data.pack_settings import PackSettings
from clip3dreid.data.packing import pack
from clip3dreid.data.picture_batches import TrainPictures
from clip3dreid.data.raw_batches import RawTrainPictures
from clip3dreid.io.files import identify
from clip3dreid.io.pictures import open_picture, read_rgb, upright_rgb

HEIGHT, WIDTH = 384, 192
BATCH, ROWS = 64, 256
SOURCES = ((128, 64), (384, 192), (720, 300))


def photograph(height, width, rng):
    """Something with a photograph's mix of smooth and fine parts, as JPEG."""
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(float)
    picture += rng.normal(0, 6, picture.shape)
    data = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=92)
    return data.getvalue()


def pillow_recipe(path, seed):
    draw = random.Random(seed)
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file).convert("RGB")
    picture = picture.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    if draw.random() < 0.5:
        width, height = round(WIDTH * 1.125), round(HEIGHT * 1.125)
        left, top = draw.randint(0, width - WIDTH), draw.randint(0, height - HEIGHT)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        picture = picture.crop((left, top, left + WIDTH, top + HEIGHT))
    if draw.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    planes = np.ascontiguousarray(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)) / 255
    if draw.random() < 0.5:
        for _ in range(100):
            area, aspect = draw.uniform(0.02, 0.4) * HEIGHT * WIDTH, draw.uniform(0.3, 3.33)
            height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if height < HEIGHT and width < WIDTH:
                top, left = draw.randint(0, HEIGHT - height), draw.randint(0, WIDTH - width)
                planes[:, top : top + height, left : left + width] = 0.5
                break
    return planes


def albumentations_recipe():
    enlarge = [
        albumentations.Resize(round(HEIGHT * 1.125), round(WIDTH * 1.125)),
        albumentations.RandomCrop(HEIGHT, WIDTH),
    ]
    transforms = albumentations.Compose(
        [
            albumentations.Resize(HEIGHT, WIDTH, area_for_downscale="image"),
            albumentations.Sequential(enlarge, p=0.5),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Erasing(scale=(0.02, 0.4), ratio=(0.3, 3.33), fill=128, p=0.5),
        ]
    )

    def run(path, seed):
        transforms.set_random_seed(seed)
        return np.ascontiguousarray(transforms(image=read_rgb(path))["image"].transpose(2, 0, 1))

    return run


def pillow(path):
    with open_picture(path) as image:
        return upright_rgb(image, own=True)


class ByPillow:
    """Pictures by row, as every file was read before."""

    def __init__(self, paths):
        self.paths = paths

    def __getitem__(self, row):
        return pillow(self.paths[row])


def batches(count, turn):
    """Batches of 64 rows with seeds, of `count` pictures in all."""
    rng = np.random.default_rng(turn)
    for _ in range(count // BATCH):
        rows, seeds = rng.integers(ROWS, size=BATCH), rng.integers(2**63, size=BATCH)
        yield list(zip(rows.tolist(), seeds.tolist(), strict=True))


def loaded(dataset):
    def run(plan):
        for batch in plan:
            dataset.__getitems__(batch)

    return run


def each(recipe, paths):
    def run(plan):
        for batch in plan:
            torch.from_numpy(np.stack([recipe(paths[row], seed) for row, seed in batch]))

    return run


def decoded(read, paths):
    def run(plan):
        for batch in plan:
            for row, _ in batch:
                read(paths[row])

    return run


def packed(folder, paths):
    rows = [{"path": path.name, "person": "1", "split": "train", "role": "train"} for path in paths]
    manifest = build("benchmark", folder, rows)
    pack([manifest], PackSettings(folder / "pack", height=HEIGHT, width=WIDTH, workers=0))
    found = Pack(folder / "pack")
    names = [path.name for path in paths]
    return PackedRows(found, found.rows_of(identify(folder, names), "benchmark"))


def main(rounds, pictures):
    torch.set_num_threads(1)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        datamodule = compose(
            overrides=["+datamodule=default", f"datamodule.height={HEIGHT}", f"datamodule.width={WIDTH}"]
        ).datamodule
    view = instantiate(datamodule.train_view)
    rng, labels = np.random.default_rng(0), np.zeros((ROWS, 3), np.int64)
    print(f"pictures a processor second to {HEIGHT}x{WIDTH}, median of {rounds} rounds of {pictures}")
    for height, width in SOURCES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = []
            for i in range(ROWS):
                paths.append(folder / f"{i}.jpg")
                paths[-1].write_bytes(photograph(height, width, rng))
            rows = packed(folder, paths)
            ways = {
                "decode, Pillow": decoded(pillow, paths),
                "decode": decoded(read_rgb, paths),
                "files, decoded by Pillow": loaded(TrainPictures(ByPillow(paths), labels, view)),
                "files": loaded(TrainPictures(FileRows(paths), labels, view)),
                "plain Pillow": each(pillow_recipe, paths),
                "albumentations": each(albumentations_recipe(), paths),
                "pack": loaded(TrainPictures(rows, labels, view)),
                "pack, device augments": loaded(RawTrainPictures(rows, labels, view)),
            }
            rates = {way: [] for way in ways}
            for turn in range(rounds):
                for way, run in ways.items():
                    count = pictures * (8 if "device" in way else 1)  # long enough for the clock
                    plan = list(batches(count, turn))
                    start = time.process_time()
                    run(plan)
                    rates[way].append(len(plan) * BATCH / (time.process_time() - start))
        middle = {way: statistics.median(values) for way, values in rates.items()}
        before = middle["files, decoded by Pillow"]
        print(f"from {height}x{width}")
        for way, rate in middle.items():
            print(f"    {way:26}{rate:8,.0f}   {rate / before:6.2f} x files, decoded by Pillow")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=128)
    main(**vars(parser.parse_args()))
