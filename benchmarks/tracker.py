"""How often a public tracker confuses people, with the exported embedder and without appearance.

    clip3dreid synthesize layout=ccvid out=walks seed=11 train_people=1 test_people=8 height=128 width=64
               layout.outfits=2 layout.walks=2 layout.frames=30    (one line)
    clip3dreid export checkpoint=RUN out=exported
    python benchmarks/tracker.py walks exported/model.onnx out [--sequences 5]

Needs `deep-sort-realtime` (MIT) and onnxruntime, not this package. Rendered walkers are laid over one another, eight
in a frame, and cross it at speeds of their own; detections are shifted by two pixels and scaled by 3 %, one in 20
is missing, and so are people of whom less than 40 % shows. The walkers keep the background of their walk, which makes
it easier than a street. Sequences are written to `out` in MOTChallenge's layout. The threshold of 0.3 was chosen on
another sequence.

Printed for each threshold of appearance (-1: overlap alone): changes of identity, IDF1 (Ristani et al., 2016) and the
share of visible people that are found.
"""

import argparse
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from deep_sort_realtime.deepsort_tracker import DeepSort
from PIL import Image
from scipy.optimize import linear_sum_assignment

FRAMES, WIDTH, HEIGHT = 90, 720, 220
BOX = 64, 128
SEEN = 0.4
"""Share of a person that shows, at least, to be detected and to count."""

Box = tuple[float, float, float, float]


def compose(walks: list[list[Image.Image]], folder: Path, seed: int) -> None:
    """Write a sequence of people who walk to and fro before a grey wall."""
    rng = np.random.default_rng(seed)
    count, span = len(walks), WIDTH - BOX[0]
    start, height = rng.uniform(0, span, count), rng.uniform(5, 80, count)
    speed = rng.choice([-1, 1], count) * rng.uniform(3, 7, count)
    truth, found = [], []
    for part in ("img1", "gt", "det"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for time in range(FRAMES):
        frame, owner = Image.new("RGB", (WIDTH, HEIGHT), (96, 104, 96)), np.full((HEIGHT, WIDTH), -1)
        way = (start + speed * time) % (2 * span)
        left = np.where(way < span, way, 2 * span - way).astype(int)
        top = (height + 3 * np.sin(time / 4 + np.arange(count))).astype(int)
        for who in np.argsort(height):  # the lowest is nearest
            frame.paste(walks[who][time // 2 % len(walks[who])], (left[who], top[who]))
            owner[top[who] : top[who] + BOX[1], left[who] : left[who] + BOX[0]] = who
        frame.save(folder / "img1" / f"{time + 1:06}.png")
        for who in range(count):
            shows = (owner == who).sum() / (BOX[0] * BOX[1])
            # MOTChallenge counts frames, people and pixels from 1.
            truth.append(
                f"{time + 1},{who + 1},{left[who] + 1},{top[who] + 1},{BOX[0]},{BOX[1]},1,1,{shows:.3f}"
            )
            if shows > SEEN and rng.random() > 0.05:
                shift, size = rng.normal(0, 2, 2), rng.normal(1, 0.03)
                x, y = left[who] + 1 + shift[0], top[who] + 1 + shift[1]
                box = f"{x:.2f},{y:.2f},{BOX[0] * size:.2f},{BOX[1] * size:.2f}"
                found.append(f"{time + 1},-1,{box},{min(1, 0.5 + shows / 2):.3f},-1,-1,-1")
    (folder / "gt" / "gt.txt").write_text("\n".join(truth) + "\n")
    (folder / "det" / "det.txt").write_text("\n".join(found) + "\n")


def embedder(file: Path) -> Callable[[list[Image.Image]], np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["clip3dreid"])
    size = about["width"], about["height"]

    def embed(crops: list[Image.Image]) -> np.ndarray:
        resized = [np.asarray(crop.resize(size, Image.Resampling.BILINEAR)) for crop in crops]
        pictures = np.stack(resized).transpose(0, 3, 1, 2).astype(np.float32) / 255
        (features,) = session.run(["embedding"], {"pictures": pictures})
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    return embed


def track(sequence: Path, embed: Callable[[list[Image.Image]], np.ndarray], threshold: float) -> Any:
    """Return frame -> (track, box) of the tracks that a frame confirms."""
    seen: dict[int, list[Any]] = defaultdict(list)
    for frame, _, left, top, width, height, score, *_ in _rows(sequence / "det" / "det.txt"):
        seen[int(frame)].append(((left - 1, top - 1, width, height), score, "person"))
    tracker = DeepSort(embedder=None, max_cosine_distance=threshold, max_age=30)
    tracks = defaultdict(list)
    for path in sorted((sequence / "img1").iterdir()):
        number, image = int(path.stem), Image.open(path)
        crops = [image.crop((x, y, x + w, y + h)) for (x, y, w, h), *_ in seen[number]]
        features = list(embed(crops)) if crops else []
        for one in tracker.update_tracks(seen[number], embeds=features):
            if one.is_confirmed() and one.time_since_update == 0:
                tracks[number].append((one.track_id, tuple(one.to_ltwh())))
    return tracks


def score(sequence: Path, tracks: Any) -> tuple[int, float, float]:
    """Return changes of identity, IDF1 and recall; a track is a person's where boxes overlap by half."""
    truth: dict[int, list[tuple[int, Box]]] = defaultdict(list)
    for frame, who, left, top, width, height, _, _, shows in _rows(sequence / "gt" / "gt.txt"):
        if shows > SEEN:
            truth[int(frame)].append((int(who), (left - 1, top - 1, width, height)))
    last: dict[int, Any] = {}
    pairs: Counter[tuple[int, Any]] = Counter()
    changes = 0
    for frame, people in truth.items():
        overlaps = np.array([[_overlap(box, other) for _, other in tracks[frame]] for _, box in people])
        if not overlaps.size:
            continue
        for row, column in zip(*linear_sum_assignment(-overlaps), strict=True):
            if overlaps[row, column] >= 0.5:
                who, name = people[row][0], tracks[frame][column][0]
                changes += last.get(who, name) != name
                last[who] = name
                pairs[who, name] += 1
    people, names = (sorted({pair[place] for pair in pairs}) for place in (0, 1))
    together = np.array([[pairs[who, name] for name in names] for who in people])
    right = together[linear_sum_assignment(-together)].sum()
    total = sum(map(len, truth.values()))
    return changes, 2 * right / (total + sum(map(len, tracks.values()))), pairs.total() / total


def _rows(file: Path) -> list[list[float]]:
    with file.open() as lines:
        return [[float(cell) for cell in row] for row in csv.reader(lines)]


def _overlap(a: Box, b: Box) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("walks", type=Path)
    parser.add_argument("embedder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sequences", type=int, default=5)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[-1, 0.3])
    args = parser.parse_args()
    folders = sorted(path for path in (args.walks / "session1").iterdir() if path.name.endswith("_01"))[-8:]
    walks = [[Image.open(file).convert("RGB") for file in sorted(folder.iterdir())] for folder in folders]
    embed = embedder(args.embedder)
    sequences = [args.out / str(number) for number in range(1, args.sequences + 1)]
    for number, sequence in enumerate(sequences, 1):
        compose(walks, sequence, number)
    print("| threshold | changes of identity | IDF1 | found |\n|---|---|---|---|")
    for threshold in args.thresholds:
        scores = [score(sequence, track(sequence, embed, threshold)) for sequence in sequences]
        changes, idf1, recall = zip(*scores, strict=True)
        print(f"| {threshold:g} | {sum(changes)} | {np.mean(idf1):.3f} | {np.mean(recall):.3f} |")


if __name__ == "__main__":
    main()
