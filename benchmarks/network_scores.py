"""Compare what `evaluate` says of a network of others with the network's own runtime and a dozen lines of numpy.

    python benchmarks/network_scores.py FILE.xml PKU

FILE.xml is a network of OpenVINO for BGR bytes of 256x128, described by FILE.yaml beside it (docs/networks.md) with
flip: false; PKU a folder of PKU-Reid. Every person's pictures of camera 1 are looked for among those of camera 2. The
direct run resizes with OpenCV's bilinear filter, as this project does.
"""

import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import openvino

from clip3dreid.data.datasets import pku_reid
from clip3dreid.data.sources import DataSpec
from clip3dreid.training.evaluation import evaluate_model


def direct(network: Path, root: Path) -> tuple[float, float]:
    files = sorted(root.glob("*.png"))
    person, camera = (np.array([int(file.stem.split("_")[place]) for file in files]) for place in (0, 1))
    core = openvino.Core()
    run = core.compile_model(core.read_model(network), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pictures = (
        cv2.resize(cv2.imread(str(file)), (128, 256), interpolation=cv2.INTER_LINEAR) for file in files
    )
    found = [run([one.transpose(2, 0, 1)[None].astype(np.float32)])[0].ravel().copy() for one in pictures]
    features = np.stack(found) / np.linalg.norm(found, axis=1, keepdims=True)
    query, gallery = camera == 1, camera == 2
    order = np.argsort(-(features[query] @ features[gallery].T), axis=1, kind="stable")
    right = person[gallery][order] == person[query][:, None]
    precisions = [(np.cumsum(row)[row] / (np.flatnonzero(row) + 1)).mean() for row in right]
    return float(right[:, 0].mean()), float(np.mean(precisions))


def main() -> None:
    network, root = map(Path, sys.argv[1:])
    scored = evaluate_model(network, DataSpec("pku_reid", root, partial(pku_reid.read, train_fraction=0)))
    ours = scored.results["pku_reid"]["general"]
    r1, mean_precision = direct(network, root)
    print(f"evaluate  R1 {100 * ours['r1']:.4f}  mAP {100 * ours['map']:.4f}")
    print(f"direct    R1 {100 * r1:.4f}  mAP {100 * mean_precision:.4f}")


if __name__ == "__main__":
    main()
