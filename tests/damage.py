"""Damages files of every kind that is read, over and over, and says what became of the reading.

Run as a program: `python -m tests.damage FOLDER COUNT [KIND …]` prints a line of JSON a kind. It imports everything
and then only forks, so that a child can be ended by a file without ending the count, and so that libraries with
threads of their own have none yet when they are forked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["POLARS_MAX_THREADS"] = "1"

import numpy as np
import polars as pl
import scipy.sparse
import torch
from hydra.utils import instantiate
from PIL import Image

from clip3dreid.body.poses import load_poses
from clip3dreid.body.smpl import read_arrays, shipped
from clip3dreid.data import listing, manifest
from clip3dreid.data.bodies import read_bodies
from clip3dreid.data.pack import Pack
from clip3dreid.data.pack_settings import PackSettings
from clip3dreid.data.packing import pack
from clip3dreid.errors import InputError
from clip3dreid.inference import model as api
from clip3dreid.inference.model import ReidModel
from clip3dreid.io.files import FileIdentity, write_json
from clip3dreid.io.formats import write_table
from clip3dreid.io.pictures import read_rgb
from clip3dreid.language import labels
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.model.card import CARD
from clip3dreid.model.weights import HEADS, add_checksum
from clip3dreid.retrieval.feature_file import load_features
from clip3dreid.search.settings import ShardSettings
from clip3dreid.search.shard_writer import ShardWriter
from clip3dreid.search.shards import Shards
from clip3dreid.synthetic import folder as world_folder
from clip3dreid.training.teacher_data import read_training_set
from tests.conftest import MODEL_GROUPS, STUDENT, write_bodies

SECONDS, BYTES = 30, 3 << 30
"""Of a child's time for one reading, and of memory beyond what it has."""

RNG = np.random.default_rng(3)


def digest(*parts: Any) -> str:
    """Of anything that prints all that it holds."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else repr(part).encode(errors="surrogateescape"))
    return found.hexdigest()


class Kind(NamedTuple):
    """A kind of file."""

    make: Callable[[Path], Path]
    """Writes a sample, and what belongs to it, to an empty folder."""
    read: Callable[[Path], str]
    """Reads it, and gives a digest of all that was read."""
    tells: bool = True
    """Whether damage can be told, so that another result is a failure."""


def vocabulary() -> Vocabulary:
    groups = {
        name: {
            "measure": name,
            "words": words,
            "cuts": [100 * i / len(words) for i in range(1, len(words))],
        }
        for name, words in MODEL_GROUPS.items()
    }
    return Vocabulary(groups=groups, prompts={"templates": ["a {phrase} person"]})


def model() -> ReidModel:
    torch.manual_seed(1)
    words = sum(map(len, MODEL_GROUPS.values()))
    card = {"version": 1, "student": STUDENT, "height": 32, "width": 16, "data": ["ltcc"]}
    card["vocabulary"] = {"digest": "0123", "groups": MODEL_GROUPS}
    heads = {
        "joint.weight": torch.randn(6, 64),
        "joint.bias": torch.randn(6),
        "joint.centre": torch.randn(6),
        "joint.words": torch.randn(words, 6),
    }
    return ReidModel(instantiate(STUDENT), card, heads)


def saved_model(folder: Path) -> Path:
    model().save_pretrained(folder)
    return folder / "model.safetensors"


def checkpoint(folder: Path) -> Path:
    ours = model()
    state = {f"student.{name}": tensor for name, tensor in ours.student.state_dict().items()}
    content = {
        "epoch": 3,
        "state_dict": state | {"losses.identity.weight": torch.zeros(7, 128)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(30)}}, "param_groups": [{"lr": 0.1}]}],
        CARD: ours.card,
        HEADS: ours.heads.state_dict(),
    }
    add_checksum(content)
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def write_labels(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        words = vocabulary()
        units = pl.DataFrame(
            {"data_set": ["a"] * 40, "person": [f"{i:04d}" for i in range(40)], "pictures": 1}
        )
        scores = RNG.normal(size=(40, len(words.flat)))
        table = labels.choose(units, scores, words)
        labels.save(
            labels.WordLabels(table, "body_clip", "0123", words.digest, "zscore", "person", ("a",), 40),
            folder / f"labels.{'csv' if name.endswith('json') else name.partition('.')[2]}",
        )
        return folder / name

    return write


def read_labels(path: Path) -> str:
    found = labels.load(path.with_suffix(".csv") if path.suffix == ".json" else path, vocabulary())
    return digest(found.table.rows(), found.facts)


def write_shards(form: str, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        table = pl.DataFrame(
            {"path": [f"{i}.png" for i in range(60)], "person": [str(i % 5) for i in range(60)]}
        )
        facts = {"fingerprint": "0123", "vectors": {"embedding": 16}}
        identities = [FileIdentity(path, 10, 20) for path in table["path"]]
        settings = ShardSettings(format=form, rows_per_shard=32)
        writer = ShardWriter(folder, table, identities, facts, settings, notes={"root": "/r", "model": "m"})
        for number in writer.missing():
            rows = np.array(writer.rows(number))
            vectors = {"embedding": RNG.normal(size=(len(rows), 16))}
            writer.put(number, rows, vectors, [["tall", "slim"]] * len(rows), [])
        return folder / name

    return write


def read_shards(path: Path) -> str:
    shards = Shards(path.parent)
    blocks = [block.numpy().tobytes() for block in shards.blocks("embedding")]
    return digest(shards.facts, shards.labels.rows(), *blocks)


def write_pack(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pictures = RNG.integers(0, 256, (10, 8, 4, 3), dtype=np.uint8)
        for row, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{row}.png")
        rows = [{"path": f"{row}.png", "person": "1", "split": "train", "role": "train"} for row in range(10)]
        settings = PackSettings(folder / "pack", height=8, width=4, workers=0)
        pack([manifest.build("damage", folder, rows)], settings, rows_per_part=4)
        return folder / "pack" / name

    return write


def read_pack(path: Path) -> str:
    found = Pack(path.parent)
    found.check_whole()
    return digest(found.size, found.identity.tobytes(), *(found[row].tobytes() for row in range(len(found))))


def features(save: Callable[..., None]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        sides = {
            f"{side}_{name}": value
            for side, count in (("query", 20), ("gallery", 40))
            for name, value in {
                "features": RNG.normal(size=(count, 16)).astype(np.float32),
                "pids": np.arange(count) % 5,
                "camids": np.arange(count) % 3,
                "paths": np.array([f"{i}.jpg" for i in range(count)]),
            }.items()
        }
        save(folder / "features.npz", **sides)
        return folder / "features.npz"

    return write


def read_features(path: Path) -> str:
    query, query_table, gallery, gallery_table = load_features(path)
    return digest(
        query.numpy().tobytes(), query_table.rows(), gallery.numpy().tobytes(), gallery_table.rows()
    )


def bodies(folder: Path) -> Path:
    return write_bodies(folder) / "truth.parquet"


def read_truth_of_bodies(path: Path) -> str:
    found = read_bodies(path.parent)
    return digest(found.files, found.betas.tobytes(), found.body.tobytes())


def crowd(folder: Path) -> Path:
    count = 80
    truth = {"path": [f"train/{i}.png" for i in range(count)], "split": "train", "bad_box": False}
    truth |= {
        f"word_{name}": [words[i % len(words)] for i in range(count)] for name, words in MODEL_GROUPS.items()
    }
    table = pl.DataFrame(truth).with_columns(pose=pl.Series(RNG.normal(size=(count, 72)).tolist()))
    write_table(folder / "truth.parquet", table)
    return folder / "truth.parquet"


def world(folder: Path) -> Path:
    files = sorted([f"train/{i}.png" for i in range(30)])
    facts = {
        "format": world_folder.FORMAT,
        "version": world_folder.SCHEMA_VERSION,
        "fingerprint": "0123",
        "config": {"seed": 1, "layout": {"name": "ltcc"}},
        "environment": {"torch": "2"},
        "counts": {"train/train": {"pictures": 30, "people": 3}},
        "files": files,
    }
    write_json(folder / world_folder.WORLD, world_folder.sealed_facts(facts, complete=True))
    return folder / "world.json"


def smpl_npz(folder: Path) -> Path:
    shutil.copy(shipped("anny_light"), folder / "body.npz")
    return folder / "body.npz"


def smpl_pickle(folder: Path) -> Path:
    arrays: dict[str, Any] = {
        k: v for k, v in read_arrays("anny_light").items() if not k.startswith("phenotype")
    }
    arrays["J_regressor"] = scipy.sparse.csc_matrix(arrays["J_regressor"])
    (folder / "body.pkl").write_bytes(pickle.dumps(arrays | {"bs_type": "lrotmin"}, protocol=2))
    return folder / "body.pkl"


def read_body(path: Path) -> str:
    return digest(
        *(part for key, array in sorted(read_arrays(path).items()) for part in (key, array.tobytes()))
    )


def poses(folder: Path) -> Path:
    np.savez(folder / "poses.npz", poses=RNG.uniform(-0.3, 0.3, (20, 72)))
    return folder / "poses.npz"


def picture(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        rows, columns = np.mgrid[0:64, 0:32]
        pixels = np.stack([rows * 3, columns * 6, RNG.integers(0, 40, (64, 32))], -1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
        return folder / name

    return write


def table_of(folder: Path) -> pl.DataFrame:
    count = 40
    return pl.DataFrame(
        {
            "path": [f"{i}.png" for i in range(count)],
            "person": [str(i % 8) for i in range(count)],
            "camera": [str(i % 3) for i in range(count)],
            "split": "train",
            "role": "train",
        }
    )


def saved_manifest(folder: Path) -> Path:
    manifest.save(manifest.build("mine", Path("/pictures"), table_of(folder)), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def read_manifest(path: Path) -> str:
    found = manifest.load(path)
    return digest(found.table.rows(), found.name, found.root, found.notes, found.published)


def csv(folder: Path) -> Path:
    table_of(folder).write_csv(folder / "pictures.csv")
    return folder / "pictures.csv"


def read_listing(path: Path) -> str:
    return digest(listing.list_pictures(path).table.rows())


def read_model(path: Path) -> str:
    found = api.load(path if path.suffix == ".ckpt" else path.parent)
    card = {key: value for key, value in found.card.items() if key != "library_version"}
    return digest(found.fingerprint, sorted(found.heads.state_dict()), card)


KINDS = {
    "checkpoint": Kind(checkpoint, read_model),
    "model.safetensors": Kind(saved_model, read_model),
    "config.json": Kind(lambda folder: saved_model(folder).with_name("config.json"), read_model),
    "labels.parquet": Kind(write_labels("labels.parquet"), read_labels),
    # Made to be edited.
    "labels.csv": Kind(write_labels("labels.csv"), read_labels, tells=False),
    "labels.json": Kind(write_labels("labels.json"), read_labels),
    "shard, parquet": Kind(write_shards("parquet", "shard-000001.parquet"), read_shards),
    "shard, safetensors": Kind(write_shards("safetensors", "shard-000001.safetensors"), read_shards),
    "shard, labels of safetensors": Kind(write_shards("safetensors", "shard-000001.parquet"), read_shards),
    "shards' index": Kind(write_shards("parquet", "index.json"), read_shards),
    "pack's part": Kind(write_pack("pictures-00001.safetensors"), read_pack),
    "pack's index": Kind(write_pack("index.json"), read_pack),
    "features": Kind(features(np.savez), read_features),
    "features, compressed": Kind(features(np.savez_compressed), read_features),
    "truth of a crowd": Kind(
        crowd, lambda path: digest(read_training_set([path.parent], list(MODEL_GROUPS)))
    ),
    "truth of bodies": Kind(bodies, read_truth_of_bodies),
    "world.json": Kind(world, lambda path: digest(sorted(world_folder.world_facts(path.parent).items()))),
    "body, npz": Kind(smpl_npz, read_body),
    # Other people's format, without checksums.
    "body, pickle": Kind(smpl_pickle, read_body, tells=False),
    "poses": Kind(poses, lambda path: digest(load_poses(path).tobytes())),
    # Pillow compares no checksum of what it decodes.
    "picture, jpg": Kind(picture("a.jpg"), lambda path: digest(read_rgb(path).tobytes()), tells=False),
    "picture, png": Kind(picture("a.png"), lambda path: digest(read_rgb(path).tobytes()), tells=False),
    "manifest": Kind(saved_manifest, read_manifest),
    "table of pictures, csv": Kind(csv, read_listing, tells=False),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file as it might come back from a bad disk or connection, or from somebody who means it."""
    if not data:
        return b"x"
    out = bytearray(data)
    # Where a file says what it is: at its beginning and its end.
    where = rng.choice([rng.randrange(min(len(out), 600)), len(out) - 1 - rng.randrange(min(len(out), 1500))])
    where = rng.choice([where, rng.randrange(len(out))])
    length = rng.choice([1, 4, 8, 64, 512])
    match rng.choice(["cut", "lost", "more", "zeros", "twice", "number", *["bits"] * 6]):
        case "cut":
            del out[where:]
        case "lost":
            del out[where : where + length]
        case "more":
            out[where:where] = rng.randbytes(length)
        case "zeros":
            out[where : where + length] = bytes(len(out[where : where + length]))
        case "twice":
            out[where:where] = out[where : where + length]
        case "number":
            out[where : where + 4] = rng.choice(
                [b"\x00" * 4, b"\xff" * 4, b"\x00\x00\x00\x7f", b"\x01\x00\x00\x00"]
            )
        case _:
            for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
                place = min(max(0, where + rng.randrange(-40, 40)), len(out) - 1)
                place = rng.choice([place, rng.randrange(len(out))])
                out[place] ^= 1 << rng.randrange(8)
    return bytes(out)


def outcome(kind: Kind, path: Path) -> tuple[str, str]:
    """`read` and the digest, `refused` and the line, or `raised` and what."""
    try:
        return "read", kind.read(path)
    except InputError as error:
        line = str(error)
        plain = "\n" not in line and len(line) < 1500 and str(path.parent) in line
        return ("refused" if plain else "raised"), line
    except BaseException:
        return "raised", traceback.format_exc()[-600:]


def child(kind: Kind, path: Path, data: bytes, first: int, count: int, pipe: int) -> None:
    """Reads the file as it is and damaged, from the given mutation on, and tells each outcome before it begins."""
    logging.disable()
    with Path("/proc/self/statm").open() as statistics:
        held = int(statistics.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, held + BYTES))
    # What Rust prints of its panics.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for number in range(first, count):
        signal.alarm(SECONDS)
        path.write_bytes(mutated(data, random.Random(f"{path.name} {number}")) if number >= 0 else data)
        said = json.dumps([number, *outcome(kind, path)]) + "\n"
        os.write(pipe, said.encode())


def lines_of(kind: Kind, path: Path, data: bytes, count: int) -> list[tuple[int, str, str]]:
    """Outcomes of all mutations, -1 being none; a child that is ended by one is followed by another."""
    found: list[tuple[int, str, str]] = []
    while not found or found[-1][0] + 1 < count:
        first = found[-1][0] + 1 if found else -1
        reading, writing = os.pipe()
        if not (pid := os.fork()):
            os.close(reading)
            try:
                child(kind, path, data, first, count, writing)
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as stream:
            found += [tuple(json.loads(line)) for line in stream]
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            at = found[-1][0] + 1 if found else -1
            found.append((at, "hung" if name == "SIGALRM" else "ended", name))
    return found


def report(name: str, folder: Path, count: int) -> dict[str, Any]:
    """What became of a kind's mutations: how many `equal`, `refused`, `other`, `raised`, `ended`, `hung`."""
    kind = KINDS[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if not (pid := os.fork()):
        logging.disable()
        try:
            (folder.parent / "made").write_text(str(kind.make(folder)))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    path = Path((folder.parent / "made").read_text())
    (folder.parent / "made").unlink()
    found = lines_of(kind, path, path.read_bytes(), count)
    (_, how, whole), *rest = found
    counts: Counter[str] = Counter()
    examples = {}
    if how != "read":
        counts["unreadable"], examples["unreadable"] = 1, whole
    for number, how, what in rest:
        result = how if how != "read" else ("equal" if what == whole else "other")
        counts[result] += 1
        examples.setdefault(result, f"{number}: {what}")
    return {"kind": name, "counts": counts, "examples": examples}


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, number, *names = sys.argv[1:]
    for one in names or KINDS:
        print(json.dumps(report(one, Path(place) / one.replace(" ", "_"), int(number))), flush=True)  # noqa: T201
