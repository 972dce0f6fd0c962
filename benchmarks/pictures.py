"""How many pictures a second one thread decodes and augments: `python benchmarks/pictures.py`.

JPEG files of three sizes become 384x192 training pictures, once by `TrainView`, once by the same recipe in plain
Pillow and numpy (to float, as is usual there), once by albumentations' transforms. The ways take turns, so that
a busy machine slows all of them; read the ratios.

Measured (2 busy cores; OpenCV 5.0, Pillow 13.0, albumentations 2.0.8), pictures a second:

    source     decode alone   TrainView   plain Pillow   albumentations
    128x64            3,304       1,175            237              819
    384x192           1,109         832            506              652
    720x300             379         175            183              165

Shrinking is Pillow's own in TrainView too, and takes most of the last row's time.
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
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image, ImageOps

from clip3dreid.config.folder import conf_dir
from clip3dreid.io.pictures import read_rgb

HEIGHT, WIDTH = 384, 192
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


def main(rounds, pictures):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        datamodule = compose(
            overrides=["+datamodule=default", f"datamodule.height={HEIGHT}", f"datamodule.width={WIDTH}"]
        ).datamodule
    view = instantiate(datamodule.train_view)
    ways = {
        "decode alone": lambda path, seed: read_rgb(path),
        "TrainView": lambda path, seed: view(read_rgb(path), seed),
        "plain Pillow": pillow_recipe,
        "albumentations": albumentations_recipe(),
    }
    rng = np.random.default_rng(0)
    print(f"pictures a second to {HEIGHT}x{WIDTH}, one thread, median of {rounds} rounds of {pictures}")
    with tempfile.TemporaryDirectory() as folder:
        for height, width in SOURCES:
            paths = []
            for i in range(pictures):
                paths.append(Path(folder) / f"{height}_{i}.jpg")
                paths[-1].write_bytes(photograph(height, width, rng))
            seconds = {name: [] for name in ways}
            for turn in range(rounds):
                for name, way in ways.items():
                    start = time.perf_counter()
                    for i, path in enumerate(paths):
                        way(path, turn * pictures + i)
                    seconds[name].append(time.perf_counter() - start)
            rates = {name: pictures / statistics.median(times) for name, times in seconds.items()}
            line = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
            ours = rates["TrainView"]
            against = ", ".join(f"{ours / rate:.2f} x {name}" for name, rate in rates.items() if rate != ours)
            print(f"from {height}x{width}: {line}\n    TrainView is {against}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=40)
    main(**vars(parser.parse_args()))
