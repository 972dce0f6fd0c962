"""How well people are found by a description of their bodies, in rendered worlds where the truth is known.

    python benchmarks/search_by_words.py worlds/501=runs/… worlds/502=runs/… [--resamples 10000]

Each argument is a world that `synthesize` wrote and a model that was trained on it. A test person is described by
their true words, which come from measures of the body: `full` says all groups but gender, `short` stature, weight,
shoulders and legs, as somebody might who has seen the person. All test people of the same gender are ranked by the
mean score of their pictures; a relative rank of 0 is the first place, 1 the last, chance 0.5 (ties count half).
Compared are

    student     what `search text=…` does: mean score of the words in the model's joint space
    sentence    the whole sentence through the teacher's text encoder, in the same space
    teacher     mean score of the words by the teacher's own embeddings of the pictures, and the whole sentence
    oracle      agreement of the true words themselves, the best that these words can do: people may share them

Intervals are 95 %, by resampling people in each world, and t intervals over worlds for the mean.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.nn import functional as F

import clip3dreid
from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import quieten, register
from clip3dreid.data.datasets import ltcc
from clip3dreid.guidance.embeddings import embed_pictures
from clip3dreid.language.prompts import word_embeddings
from clip3dreid.language.query_parser import parse_query
from clip3dreid.model.teacher import load_teacher
from clip3dreid.retrieval.bootstrap import QueryScores, interval, t_interval
from clip3dreid.search.query import words_query

SHORT = ("stature", "weight", "shoulders", "leg_length")


def by_person(scores, code):
    """(N, Q) scores of pictures to (P, Q) means of people."""
    sums = np.zeros((code.max() + 1, scores.shape[1]))
    np.add.at(sums, code, scores)
    return sums / np.bincount(code)[:, None]


def relative_ranks(scores, gender):
    """(P,) of each query's own person among those of the same gender; ties count half."""
    found = []
    for query, mine in enumerate(gender):
        same = np.flatnonzero(gender == mine)
        own, others = scores[query, query], np.delete(scores[same, query], np.flatnonzero(same == query))
        found.append(((others > own).sum() + (others == own).sum() / 2) / len(others))
    return np.array(found)


def measure(world, run, vocabulary, teacher):
    manifest = ltcc.read(world)
    table = manifest.part("test")
    truth = pl.read_parquet(world / "truth.parquet").filter(pl.col("split") == "test")
    people = truth.unique("person", keep="first").sort("person")
    names = people["person"].to_list()
    gender = people["word_gender"].to_numpy()
    code = np.array([names.index(person) for person in table["person"]])
    model = clip3dreid.load(run)
    joint = model.joint(manifest.files(table))
    seen = embed_pictures(
        teacher, manifest, table, cache="memory", folder=world, batch=64, workers=0, progress=lambda _: None
    ).read(torch.arange(len(table)))
    embeddings = word_embeddings(vocabulary.prompts, lambda texts: teacher.embed_texts(texts).cpu().numpy())
    words = [word for _, word in vocabulary.flat]
    teacher_scores = seen.numpy() @ embeddings.T
    teacher_scores = (teacher_scores - teacher_scores.mean(0)) / teacher_scores.std(0)
    centre = model.heads["joint"].get_buffer("centre")
    results = {}
    for kind in ("full", "short"):
        groups = [g for g in vocabulary.groups if (g in SHORT if kind == "short" else g != "gender")]
        said = [[person[f"word_{group}"] for group in groups] for person in people.iter_rows(named=True)]
        texts = [vocabulary.prompts.sentence(own) for own in said]
        asked = [words_query(model, text, parse_query(text, model.groups, {}).words) for text in texts]
        sentences = F.normalize(teacher.embed_texts(texts).cpu() - centre, dim=1)
        chosen = np.array([[word in own for word in words] for own in said], float)
        whole = F.normalize(
            teacher.embed_texts(texts).cpu() - teacher.embed_texts(texts).cpu().mean(0), dim=1
        )
        scores = {
            "student": by_person((joint @ torch.stack([q.vector for q in asked]).T).numpy(), code),
            "sentence": by_person((joint @ sentences.T).numpy(), code),
            "teacher, words": by_person(teacher_scores @ chosen.T, code),
            "teacher, sentence": by_person(((seen - seen.mean(0)) @ whole.T).numpy(), code),
            "oracle": chosen @ chosen.T,
        }
        for name, values in scores.items():
            results[kind, name] = relative_ranks(values, gender)
    return results, np.array([f"{world.name}/{name}" for name in names])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("worlds", nargs="+", metavar="WORLD=RUN")
    parser.add_argument("--resamples", type=int, default=10_000)
    options = parser.parse_args()
    register()
    quieten()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("label", overrides=["data=embedded", "data.root=."])
    vocabulary, teacher = instantiate(cfg.language, _convert_="all"), load_teacher(cfg.model.teacher)
    found = [
        measure(Path(w), Path(run), vocabulary, teacher)
        for w, _, run in (p.partition("=") for p in options.worlds)
    ]
    print(f"{len(found)} worlds, {sum(len(people) for _, people in found)} people; relative rank, chance 0.5")
    print("| description | by | median | mean | 95 % over people | 95 % over worlds | first, % |")
    print("|---|---|---|---|---|---|---|")
    for kind, name in found[0][0]:
        parts = [(results[kind, name], people) for results, people in found]
        values = np.concatenate([ranks for ranks, _ in parts])
        people = interval([QueryScores(ranks, who) for ranks, who in parts], resamples=options.resamples)
        worlds = t_interval([float(ranks.mean()) for ranks, _ in parts])
        over_people = f"{people.low:.2f} to {people.high:.2f}"
        over_worlds = "" if worlds is None else f"{worlds.low:.2f} to {worlds.high:.2f}"
        first = 100 * (values == 0).mean()
        numbers = (
            f"{np.median(values):.3f} | {values.mean():.3f} | {over_people} | {over_worlds} | {first:.0f}"
        )
        print(f"| {kind} | {name} | {numbers} |")


if __name__ == "__main__":
    main()
