"""What colour alone finds, and what chance does: features of test pictures, for the project's own evaluator.

    python benchmarks/colour_histogram.py data=pku_reid data.root=FOLDER out=histogram.npz
    clip3dreid evaluate features=histogram.npz protocol=general
    python benchmarks/colour_histogram.py data=pku_reid data.root=FOLDER out=chance.npz random
    clip3dreid evaluate features=chance.npz protocol=general

Six horizontal stripes, 8 x 8 x 8 RGB bins each, square roots of the shares (so that the cosine of two features is
the mean Bhattacharyya coefficient of their stripes). Nothing is trained and nothing tuned. With `random`, the
features are 64 draws from a normal distribution instead.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from hydra import compose, initialize_config_dir

from clip3dreid.config import objects
from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.sources import read_manifest
from clip3dreid.io.pictures import read_rgb

STRIPES, BINS = 6, 8


def histogram(path: Path) -> np.ndarray:
    """(STRIPES * BINS^3,) float32 of unit length."""
    stripes = []
    for stripe in np.array_split(read_rgb(path), STRIPES):
        cells = (stripe.reshape(-1, 3).astype(np.int64) * BINS) // 256
        code = (cells[:, 0] * BINS + cells[:, 1]) * BINS + cells[:, 2]
        stripes.append(np.bincount(code, minlength=BINS**3) / len(code))
    return np.sqrt(np.concatenate(stripes) / STRIPES).astype(np.float32)


def noise(path: Path) -> np.ndarray:
    """(64,) float32, the same for the same file name."""
    return np.random.default_rng(list(path.name.encode())).standard_normal(64).astype(np.float32)


def arrays(manifest: Manifest, role: str, features: Callable[[Path], np.ndarray]) -> dict[str, np.ndarray]:
    """Features and labels of one side, as `evaluate features=` takes them."""
    table: pl.DataFrame = manifest.part("test", role)
    found = {
        f"{role}_features": np.stack([features(path) for path in manifest.files(table)]),
        f"{role}_pids": table["person"].to_numpy().astype(str),
        f"{role}_camids": table["camera"].fill_null("-1").to_numpy().astype(str),
    }
    if not table["clothes"].null_count():
        found[f"{role}_clothes"] = table["clothes"].to_numpy().astype(str)
    return found


def main() -> None:
    register()
    given = [
        argument for argument in sys.argv[1:] if argument != "random" and not argument.startswith("out=")
    ]
    (out,) = [argument.removeprefix("out=") for argument in sys.argv[1:] if argument.startswith("out=")]
    features = noise if "random" in sys.argv else histogram
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        manifest = read_manifest(objects.data_spec(compose("inspect_data", given).data))
    np.savez(out, **arrays(manifest, "query", features), **arrays(manifest, "gallery", features))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
