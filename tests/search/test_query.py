"""`search` as it is used: shards of a tiny data set, asked by picture, by person and by words."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import clip3dreid
from clip3dreid.search.filters import Filter
from clip3dreid.search.lance import Lance
from clip3dreid.search.query import words_query
from clip3dreid.search.search import Searcher
from clip3dreid.search.settings import PictureQueries, SearchSettings
from clip3dreid.search.shards import Shards
from tests.conftest import Command


@pytest.fixture(scope="module")
def gallery(saved_model, ltcc_root, tmp_path_factory) -> Path:
    """The test people of a tiny LTCC, extracted."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("gallery") / "shards"
    arguments = (f"checkpoint={saved_model}", "data=ltcc", f"data.root={ltcc_root}", "split=test", "trainer=cpu",
                 "workers=0", "batch=8", "rows_per_shard=10", f"out={folder}")  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "clip3dreid", "extract", *arguments], check=True, capture_output=True
    )
    return folder


@pytest.fixture
def search(invoke: Command, gallery, saved_model, tmp_path):
    def run(*arguments: str, **kwargs):
        done = invoke(
            "search", f"gallery={gallery}", f"checkpoint={saved_model}", "out=found.json", *arguments
        )
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "found.json").read_text()), done

    return run


def by_hand(gallery: Path, column: str, vector: torch.Tensor, count: int, keep=None) -> list[str]:
    shards = Shards(gallery)
    scores = F.normalize(torch.cat(list(shards.blocks(column))), dim=1) @ F.normalize(vector, dim=0)
    order = scores.argsort(descending=True, stable=True).tolist()
    paths = shards.labels["path"].to_list()
    return [paths[row] for row in order if keep is None or keep(row)][:count]


def test_each_picture_finds_itself_first_and_then_its_likes(search, gallery, ltcc_root, saved_model):
    files = sorted((ltcc_root / "query").iterdir())[:2]
    facts, done = search(f"picture=[{files[0]},{files[1]}]", "top=5", "sheet=found.jpg")
    model = clip3dreid.load(saved_model)
    for file, query in zip(files, facts["queries"], strict=True):
        assert query["query"] == str(file)
        hits = query["hits"]
        assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
        assert hits[0]["path"] == f"query/{file.name}"
        assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
        assert [hit["path"] for hit in hits] == by_hand(gallery, "embedding", model.embed(file)[0], 5)
        assert hits[0]["person"] == str(int(file.name[:3]))
    assert f"query/{files[0].name}" in done.stdout
    with Image.open("found.jpg") as sheet:
        assert sheet.width > 600
        assert np.asarray(sheet).std() > 20


def test_a_person_is_the_mean_direction_of_several_pictures(
    search, gallery, ltcc_root, saved_model, tmp_path
):
    files = sorted((ltcc_root / "query").iterdir())[:3]
    facts, _ = search(f"person=[{','.join(map(str, files))}]", "top=50")
    mean = F.normalize(clip3dreid.load(saved_model).embed(files), dim=1).mean(0)
    assert len(facts["queries"]) == 1
    assert [hit["path"] for hit in facts["queries"][0]["hits"]] == by_hand(gallery, "embedding", mean, 50)
    folder = tmp_path / "someone"
    folder.mkdir()
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    again, _ = search(f"person={folder}", "top=50")
    assert again["queries"][0]["hits"] == facts["queries"][0]["hits"]


def test_words_are_ranked_by_the_mean_of_their_scores(search, gallery, saved_model):
    facts, done = search('text="A tall, heavyset man with broad shoulders"', "top=32")
    query = facts["queries"][0]
    assert query["words"] == ["tall", "heavyset", "masculine", "broad shoulders"]
    assert "understood: tall, heavyset, masculine, broad shoulders" in done.stdout
    model, shards = clip3dreid.load(saved_model), Shards(gallery)
    flat = [word for words in model.groups.values() for word in words]
    columns = [flat.index(word) for word in query["words"]]
    means = model.word_scores(torch.cat(list(shards.blocks("joint"))))[:, columns].mean(1)
    order = means.argsort(descending=True, stable=True)
    assert [hit["path"] for hit in query["hits"]] == shards.labels["path"][order.tolist()].to_list()
    assert [hit["score"] for hit in query["hits"]] == pytest.approx(means[order].tolist(), abs=1e-4)


def test_a_query_for_words_scores_as_the_model_does(saved_model):
    model = clip3dreid.load(saved_model)
    joint = F.normalize(torch.randn(9, 128, generator=torch.Generator().manual_seed(2)), dim=1)
    query = words_query(model, "tall", [("stature", "tall"), ("gender", "feminine")])
    factor, offset = query.scale
    wanted = model.word_scores(joint)[:, [2, 10]].mean(1)
    assert torch.allclose(joint @ query.vector * factor + offset, wanted, atol=1e-4)
    assert float(query.vector.norm()) == pytest.approx(1, abs=1e-5)


def test_texts_of_a_file_and_what_is_denied(search, tmp_path):
    (tmp_path / "texts.txt").write_text("a tall woman\n\n  skinny, not tall\n")
    facts, done = search("text_file=texts.txt", "top=3")
    assert [query["words"] for query in facts["queries"]] == [["tall", "feminine"], ["skinny"]]
    assert "denied (tall)" in done.stdout + done.stderr


def test_only_those_that_are_asked_for_are_found(search, gallery, ltcc_root):
    file = sorted((ltcc_root / "query").iterdir())[0]
    facts, _ = search(f"picture={file}", "where.camera=2", "where.person=[20,22]", "top=99")
    hits = facts["queries"][0]["hits"]
    labels = Shards(gallery).labels.filter((pl.col("camera") == "2") & pl.col("person").is_in(["20", "22"]))
    assert {hit["path"] for hit in hits} == set(labels["path"])
    assert facts["where"]["camera"] == 2


def test_brackets_are_no_markup_and_a_sheet_has_an_end(search, tmp_path):
    texts = [f"tall [/b] man [{number}]" for number in range(90)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    facts, done = search("text_file=texts.txt", "top=3", "sheet=found.png", "synonyms=null", "where=null")
    assert len(facts["queries"]) == 90
    assert "tall [/b] man [89]" in done.stdout
    assert "has room for the first" in done.stdout + done.stderr
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.format == "PNG"
        assert 10_000 < sheet.height <= 16_000


def test_a_text_without_a_known_word_is_asked_of_the_teacher(invoke, saved_model, ltcc_root, tmp_path):
    """A model whose teacher is the shipped one; the sentence's vector is made by hand here."""
    from hydra import compose, initialize_config_dir

    from clip3dreid.config.folder import conf_dir
    from clip3dreid.model.teacher import load_teacher

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("search", overrides=["model/teacher=body_clip"])
    teacher = load_teacher(cfg.model.teacher)
    model = clip3dreid.load(saved_model)
    model.card["teacher"]["fingerprint"] = teacher.fingerprint
    model.save_pretrained(tmp_path / "model")
    pictures = (
        "extract",
        "checkpoint=model",
        f"pictures={ltcc_root / 'query'}",
        "out=shards",
        "trainer=cpu",
        "workers=0",
    )
    assert invoke(*pictures).returncode == 0
    asked = ("search", "gallery=shards", "checkpoint=model", "text=somebody cheerful", "out=found.json")
    refused = invoke(*asked)
    assert refused.returncode == 2
    assert "has no word that this model knows" in refused.stderr
    assert "model/teacher=body_clip" in refused.stderr
    done = invoke(*asked, "model/teacher=body_clip", "top=16")
    assert done.returncode == 0, done.stderr
    assert "searched for as a whole" in done.stdout + done.stderr
    text = teacher.embed_texts(["somebody cheerful"])[0].cpu() - model.heads["joint"].get_buffer("centre")
    hits = json.loads((tmp_path / "found.json").read_text())["queries"][0]["hits"]
    assert [hit["path"] for hit in hits] == by_hand(tmp_path / "shards", "joint", text, 16)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gallery=null", "text=tall"), "where to look"),
        (("gallery=nowhere", "text=tall"), "holds no shards"),
        (("checkpoint=null", "text=tall"), "give the model that made"),
        ((), "what to look for"),
        (("text=tall", "picture=x.png"), "not picture and text"),
        (("picture=absent.png",), "absent.png"),
        (("person=[]",), "there is no picture"),
        (("text=''",), "the text is empty"),
        (("text_file=absent.txt",), "absent.txt"),
        (("text=tall", "top=0"), "top=0"),
        (("text=tall", "top=abc"), "top=abc"),
        (("text=not tall",), "says only what does not fit (tall)"),
        (("picture=",), "is empty"),
        (("person=7",), "cannot read the picture 7"),
        (("text=tall", "sheet=found.gif"), "sheet=found.gif must end in"),
        (("text=tall", "out=."), "cannot write"),
        (("text=tall", "where.camera=9"), "camera"),
        (("text=tall", "+where.mood=glad"), "mood"),
        (("text=something", "model/teacher=body_clip"), "is not the teacher"),
        (("text=tall", "device=cuda:63"), "device=cuda:63 cannot be used"),
    ],
)
def test_bad_input_is_one_line_and_status_two(invoke, gallery, saved_model, tmp_path, arguments, said):
    done = invoke("search", f"gallery={gallery}", f"checkpoint={saved_model}", "out=found.json", *arguments)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "found.json").exists()


def test_another_models_shards_are_refused(invoke, gallery, saved_model, tmp_path):
    model = clip3dreid.load(saved_model)
    model.student.neck.weight.data[0] += 0.01
    model.save_pretrained(tmp_path / "other")
    done = invoke("search", f"gallery={gallery}", "checkpoint=other", "text=tall")
    assert done.returncode == 2
    assert "was made by another model" in done.stderr


def test_a_damaged_shard_is_named(invoke, gallery, saved_model, tmp_path):
    for path in gallery.iterdir():
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "copy" / "shard-000002.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    done = invoke("search", "gallery=copy", f"checkpoint={saved_model}", "text=tall")
    assert done.returncode == 2
    assert "shard-000002" in done.stderr
    assert "keeps the others" in done.stderr


def test_an_engine_finds_what_comparing_with_everything_finds(search, ltcc_root, tmp_path):
    pytest.importorskip("lancedb")
    file = sorted((ltcc_root / "query").iterdir())[0]
    asked = (f"picture={file}", "where.camera=2", "top=8")
    exact, _ = search(*asked)
    for _ in range(2):  # built, and found there
        other, _ = search(*asked, "engine=lance", f"engine.uri={tmp_path / 'index'}")
        hits = [
            [(hit["path"], round(hit["score"], 4)) for hit in facts["queries"][0]["hits"]]
            for facts in (exact, other)
        ]
        assert hits[0] == hits[1]


def test_an_index_with_the_labels_is_searched_without_a_look_at_the_shards(
    invoke, gallery, saved_model, ltcc_root, tmp_path
):
    """The shards are away: nothing could be read of them."""
    pytest.importorskip("lancedb")
    shutil.copytree(gallery, tmp_path / "copy")
    picture = next((ltcc_root / "query").glob("*.png"))
    asked = ("search", "gallery=copy", f"checkpoint={saved_model}", f"picture={picture}", "top=5")
    answers = {}
    for name, engine in (("exact", "exact"), ("built", "lance"), ("again", "lance")):
        done = invoke(*asked, f"engine={engine}", "where.camera=[1,2,3]", f"out={name}.json")
        assert done.returncode == 0, done.stderr
        answers[name] = json.loads((tmp_path / f"{name}.json").read_text())
        if name == "built":
            for shard in (tmp_path / "copy").glob("shard-*"):
                shard.unlink()
    for name in ("built", "again"):
        for side in answers.values():
            for hit in side["queries"][0]["hits"]:
                hit["score"] = round(hit["score"], 4)
        assert answers[name] == answers["exact"]


def test_no_parquet_is_opened_where_the_index_has_the_labels(gallery, saved_model, ltcc_root, monkeypatch):
    pytest.importorskip("lancedb")
    opened = []
    for name in ("read_parquet", "scan_parquet", "read_parquet_metadata"):
        real = getattr(pl, name)

        def counting(path, *rest, real=real, **how):
            opened.append(path)
            return real(path, *rest, **how)

        monkeypatch.setattr(pl, name, counting)
    model = clip3dreid.load(saved_model)
    engine = functools.partial(Lance, uri=str(gallery.parent / "kept"))
    asked = PictureQueries((next((ltcc_root / "query").glob("*.png")),))
    Searcher(gallery, model, engine=engine).search(asked)
    assert opened
    opened.clear()
    searcher = Searcher(gallery, model, engine=engine)
    found = searcher.search(asked, SearchSettings(where={"camera": [1, 2]}))
    assert len(found.answers[0].hits)
    assert len(searcher) == found.searched
    searcher.check(Filter(camera=1))
    assert not opened
