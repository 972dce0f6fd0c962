"""An independent implementation to compare with: loops, lists and a full stable sort; no torch but for the lots."""

import numpy as np
import torch


def score_matrix(query, gallery, metric):
    """(Q, G) in double precision, higher is nearer."""
    query, gallery = np.asarray(query, np.float64), np.asarray(gallery, np.float64)
    if metric == "cosine":
        query = query / np.sqrt((query**2).sum(1, keepdims=True))
        gallery = gallery / np.sqrt((gallery**2).sum(1, keepdims=True))
        return query @ gallery.T
    return np.array([[-((q - g) ** 2).sum() for g in gallery] for q in query])


def same_camera(query, gallery):
    return query["camera"] is not None and query["camera"] == gallery["camera"]


JUNK = {
    "general": same_camera,
    "clothes_changing": lambda q, g: same_camera(q, g) or q["clothes"] == g["clothes"],
    "same_clothes": lambda q, g: same_camera(q, g) or q["clothes"] != g["clothes"],
    "no_removal": lambda q, g: False,
    "celeb_first_digit": lambda q, g: str(q["frame"])[0] == str(g["frame"])[0],
    "deepchange_tracklet": lambda q, g: q["tracklet"] == g["tracklet"],
}


def evaluate_plain(scores, queries, gallery, junk, trapezoid=False, draws=0, per_person=1, seed=0):
    """For each query None, or (first hit, ap, inp); means over draws."""
    if not draws:
        return [
            _one(row, q, gallery, junk, trapezoid, None, 1) for row, q in zip(scores, queries, strict=True)
        ]
    generator = torch.Generator().manual_seed(seed)
    rounds = []
    for _ in range(draws):
        lots = torch.randperm(len(gallery), generator=generator).tolist()
        rounds.append(
            [
                _one(row, q, gallery, junk, trapezoid, lots, per_person)
                for row, q in zip(scores, queries, strict=True)
            ]
        )
    return [
        None if found[0] is None else tuple(np.mean(found, axis=0)) for found in zip(*rounds, strict=True)
    ]


def _one(scores, query, gallery, junk, trapezoid, lots, per_person):
    order = np.argsort(-scores, kind="stable")
    same = {j for j in order if gallery[j]["person"] == query["person"]}
    kept = [j for j in order if not (j in same and junk(query, gallery[j]))]
    if lots is not None:
        drawn = set()
        for person in {gallery[j]["person"] for j in kept}:
            pictures = sorted((j for j in kept if gallery[j]["person"] == person), key=lambda j: lots[j])
            drawn.update(pictures[:per_person])
        kept = [j for j in kept if j in drawn]
    ranks = [place for place, j in enumerate(kept, start=1) if j in same]
    if not ranks:
        return None
    total = 0.0
    for hits, place in enumerate(ranks, start=1):
        now = hits / place
        before = (hits - 1) / (place - 1) if place > 1 else 1.0
        total += (before + now) / 2 if trapezoid else now
    return ranks[0], total / len(ranks), len(ranks) / ranks[-1]
