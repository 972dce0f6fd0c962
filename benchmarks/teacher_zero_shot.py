"""What does a small teacher see in people it never met? Against chance, and against a network told the words.

    python benchmarks/teacher_zero_shot.py --taught worlds/teacher --out worlds/zero_shot [--teacher teacher/teacher]

For each of five seeds it writes a world of 100 people whom no training ever saw (people, outfits and places are
theirs alone) and lets the teacher choose a word of every group, for each picture and for each person, as
`clip3dreid label` does. The same with sentences of training in place of the vocabulary's prompts, and with
sentences that were kept from training. The ceiling is a probe: the demo's student with a classifier for every group,
trained on the pictures and words that the teacher was taught with. The crop hides stature and blurs lengths from
it too.

Figures are balanced accuracies in %, mean over the seeds; `share` is (teacher - chance) / (probe - chance).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from world_difficulty import pixels, varied

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.language.agreement import agreement, true_words
from clip3dreid.language.labels import aggregate, choose
from clip3dreid.language.prompts import word_embeddings
from clip3dreid.language.sentences import Sentences
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.model.student import Student
from clip3dreid.model.teacher import Teacher, load_teacher
from clip3dreid.report.tables import print_table

SEEDS = (201, 202, 203, 204, 205)


class Probe(torch.nn.Module):
    """The demo's student with one linear classifier for the words of all groups."""

    def __init__(self, words: int) -> None:
        super().__init__()
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            cfg = compose("train", ["+experiment=demo", "data.root=x"])
        self.student: Student = instantiate(cfg.model.student)
        self.head = torch.nn.Linear(self.student.width, words)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 to (B, W)."""
        out: torch.Tensor = self.head(self.student(images.float() / 255).embedding)
        return out


def train_probe(world: Path, vocabulary: Vocabulary, epochs: int) -> Probe:
    """Return a probe that was told the words of a world's training people."""
    torch.manual_seed(0)
    table = pl.read_parquet(world / "truth.parquet").filter(pl.col("split") == "train")
    images = pixels(world, table)
    groups = vocabulary.groups
    targets = torch.tensor(
        [
            [groups[group].index(word) for group, word in zip(groups, row, strict=True)]
            for row in table.select(f"word_{group}" for group in groups).iter_rows()
        ]
    )
    sizes = [len(words) for words in groups.values()]
    probe = Probe(sum(sizes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=5e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (len(images) // 64))
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for epoch in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            if len(batch) < 64:
                continue
            parts = probe(varied(images[batch], generator)).split(sizes, 1)
            losses = [
                torch.nn.functional.cross_entropy(part, targets[batch, group])
                for group, part in enumerate(parts)
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
        print(f"probe: epoch {epoch + 1} of {epochs}, {time.perf_counter() - start:.0f} s", flush=True)
    return probe.eval()


@torch.no_grad()
def in_batches(model: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    return torch.cat([model(part) for part in images.split(128)]).numpy()


def write_world(out: Path, seed: int) -> pl.DataFrame:
    command = [sys.executable, "-m", "clip3dreid", "synthesize", "layout=ltcc", f"out={out}", f"seed={seed}"]
    command += ["train_people=1", "test_people=100", "layout.test_pictures=2", "workers=2"]
    command += ["layout.outfits=2", "layout.seen=2"]
    subprocess.run(command, check=True, capture_output=True)
    return pl.read_parquet(out / "truth.parquet").filter(pl.col("split") == "test")


def balanced(
    scores: np.ndarray, table: pl.DataFrame, vocabulary: Vocabulary, level: str, calibration: str
) -> pl.DataFrame:
    """Return a row a group: what labels chosen from these scores are worth."""
    rows = table.with_columns(data_set=pl.lit("world"))
    units, means = aggregate(scores, rows, calibration=calibration, level=level)
    return agreement(
        choose(units, means, vocabulary), true_words(table, "world", vocabulary, level), vocabulary
    )


def spoken(teacher: Teacher, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """(W, d): the mean embedding of every word's sentences."""
    means = torch.stack([teacher.embed_texts(own).mean(0) for own in texts])
    return torch.nn.functional.normalize(means, dim=1).numpy()


def main() -> None:
    register()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--taught", type=Path, required=True, help="the world that the teacher was taught with"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", help="its folder; by default the one that ships with the package")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--epochs", type=int, default=20, help="of the probe")
    parser.add_argument("--without-probe", action="store_true")
    arguments = parser.parse_args()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        where = [f"model.teacher.path={arguments.teacher}"] if arguments.teacher else []
        cfg = compose("label", ["+language@sentences=body_sentences", *where])
    vocabulary: Vocabulary = instantiate(cfg.language, _convert_="all")
    sentences: Sentences = instantiate(cfg.sentences, vocabulary=vocabulary, _convert_="all")
    teacher = load_teacher(cfg.model.teacher)
    words = [word for _, word in vocabulary.flat]
    texts = {
        "prompts": word_embeddings(vocabulary.prompts, lambda own: teacher.embed_texts(own).numpy()),
        "trained": spoken(teacher, [sentences.ensemble(word) for word in words]),
        "unseen": spoken(teacher, [sentences.unseen(word) for word in words]),
    }
    probe = None if arguments.without_probe else train_probe(arguments.taught, vocabulary, arguments.epochs)
    found: dict[str, list[pl.DataFrame]] = {}
    for seed in arguments.seeds:
        world = arguments.out / f"world_{seed}"
        table = write_world(world, seed)
        images = pixels(world, table)
        embeddings = in_batches(teacher, images)
        for name, embedded in texts.items():
            for level in ("image", "person"):
                scores = embeddings @ embedded.T
                found.setdefault(f"{name} {level}", []).append(
                    balanced(scores, table, vocabulary, level, "zscore")
                )
        if probe is not None:
            logits = in_batches(probe, images)
            for level in ("image", "person"):
                found.setdefault(f"probe {level}", []).append(
                    balanced(logits, table, vocabulary, level, "none")
                )
        print(f"seed {seed}: {len(table)} pictures", flush=True)

    def mean(name: str, column: str = "balanced_accuracy") -> np.ndarray:
        return np.mean([frame[column].to_numpy() for frame in found[name]], axis=0)

    chance = mean("prompts image", "chance")
    columns: dict[str, np.ndarray] = {"chance": 100 * chance}
    for name in found:
        columns[name] = 100 * mean(name)
    if probe is not None:
        columns["share"] = (mean("prompts image") - chance) / (mean("probe image") - chance)
    rank = [
        [float("nan") if v is None else v for v in frame["spearman"]] for frame in found["prompts person"]
    ]
    columns["Spearman person"] = np.mean(np.array(rank, float), axis=0)
    groups = list(vocabulary.groups)
    rows = [[group, *(float(values[i]) for values in columns.values())] for i, group in enumerate(groups)]
    rows.append(["mean", *(float(np.nanmean(values)) for values in columns.values())])
    print_table(
        f"{teacher.name}, {len(arguments.seeds)} worlds of 100 people",
        ["group", *columns],
        [[row[0], *(f"{v:.2f}" if abs(v) <= 2 else f"{v:.1f}" for v in row[1:])] for row in rows],
    )
    sd = np.std([f["balanced_accuracy"].mean() for f in found["prompts image"]], ddof=1)
    print(f"mean over groups, picture by picture: sd over worlds {100 * sd:.2f}")
    facts = {"seeds": list(arguments.seeds), "teacher": teacher.fingerprint, "groups": groups}
    facts["columns"] = {name: [round(float(v), 4) for v in values] for name, values in columns.items()}
    (arguments.out / "zero_shot.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
