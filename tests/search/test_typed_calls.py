"""Extraction and search as a notebook calls them: plain values in, objects out."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

import clip3dreid
from clip3dreid.data.datasets import ltcc
from clip3dreid.errors import InputError
from clip3dreid.inference.parts import as_feature
from clip3dreid.io.files import write_json
from clip3dreid.io.formats import CHECKSUM, seal
from clip3dreid.search.extraction import extract
from clip3dreid.search.search import search
from clip3dreid.search.settings import (
    ExtractSettings,
    PersonQuery,
    PictureQueries,
    SearchSettings,
    TextQueries,
)
from clip3dreid.search.shards import Shards
from tests.processes import PATIENCE_S

QUICK = ExtractSettings(batch=8, workers=0, rows_per_shard=10)


@pytest.fixture(scope="module")
def model(saved_model: Path) -> clip3dreid.ReidModel:
    return clip3dreid.load(saved_model)


@pytest.fixture(scope="module")
def gallery(model, ltcc_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("typed") / "shards"
    result = extract(model, ltcc_root / "query", QUICK, folder)
    assert (result.folder, result.pictures, result.skipped, result.computed) == (folder, 16, 0, 16)
    return folder


def test_a_manifest_is_extracted_with_its_labels_and_a_part_of_it_alone(model, ltcc_root, tmp_path):
    manifest = ltcc.read(ltcc_root)
    settings = ExtractSettings(split="test", outputs=("embedding",), workers=0)
    result = extract(model, manifest, settings, tmp_path / "shards")
    shards = Shards(tmp_path / "shards")
    assert result.pictures == len(shards) == len(manifest.part("test"))
    assert set(shards.labels["person"]) == {"20", "21", "22", "23"}
    assert shards.facts["source"] == f"ltcc {manifest.root} test"


def test_each_picture_finds_itself_and_a_person_is_one_query(model, gallery, ltcc_root):
    files = tuple(sorted((ltcc_root / "query").iterdir())[:3])
    result = search(gallery, model, PictureQueries(files), SearchSettings(top=4))
    assert [answer.hits["path"][0] for answer in result.answers] == [file.name for file in files]
    assert [len(answer.hits) for answer in result.answers] == [4, 4, 4]
    person = search(Shards(gallery), model, PersonQuery(files))
    assert len(person.answers) == 1
    assert len(person.answers[0].hits) == 16  # all there are, of twenty asked for
    assert person.score == "cosine"


def test_texts_are_read_for_words_and_synonyms(model, gallery):
    result = search(
        gallery, model, TextQueries(("a lanky man", " ")), SearchSettings(synonyms={"lanky": "tall"})
    )
    (answer,) = result.answers
    assert [word for _, word in answer.query.understood] == ["tall", "masculine"]
    assert answer.hits["score"].is_sorted(descending=True)
    assert result.as_json()["queries"][0]["words"] == ["tall", "masculine"]
    none = search(gallery, model, TextQueries(("a tall man",)), SearchSettings(synonyms=None))
    assert none.as_json()["queries"][0]["words"] == ["tall"]


def test_a_filter_is_plain_values(model, ltcc_root, tmp_path):
    extract(model, ltcc.read(ltcc_root), ExtractSettings(workers=0), tmp_path / "shards")
    settings = SearchSettings(where={"camera": 2, "clothes": None})
    result = search(tmp_path / "shards", model, TextQueries(("tall",)), settings)
    assert set(result.answers[0].hits["camera"]) == {"2"}
    assert result.where == {"camera": 2}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ExtractSettings(format="csv"), "format=csv is unknown; choose parquet or safetensors"),
        (lambda: ExtractSettings(dtype="float61"), "did you mean float16"),
        (lambda: ExtractSettings(flip="no"), "flip=no is unknown; choose true or false"),
        (lambda: ExtractSettings(split="tests"), "split=tests is unknown"),
        (lambda: ExtractSettings(batch=0), "batch=0 must be a whole number, 1 or more"),
        (lambda: SearchSettings(top=0), "top=0 must be"),
        (lambda: PictureQueries(()), "there is no picture to look for"),
        (lambda: PersonQuery(()), "there is no picture to look for"),
        (lambda: TextQueries((" ",)), "the text is empty"),
    ],
)
def test_settings_are_checked_as_they_are_made(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_outputs_that_a_model_has_not_learnt_are_named_with_the_nearest(model, ltcc_root, tmp_path):
    settings = ExtractSettings(outputs=("embeding",))
    with pytest.raises(InputError, match=r"outputs=embeding cannot be had .*did you mean embedding\?"):
        extract(model, ltcc_root / "query", settings, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_a_split_of_a_folder_is_refused(model, ltcc_root, tmp_path):
    with pytest.raises(InputError, match="split belongs to data=NAME"):
        extract(model, ltcc_root / "query", ExtractSettings(split="test"), tmp_path / "shards")


@pytest.mark.parametrize(("asked", "said"), [("picture={file}", "rank"), ("text=tall", "understood: tall")])
def test_a_search_starts_without_transformers_and_lightning(gallery, saved_model, ltcc_root, asked, said):
    file = next((ltcc_root / "query").iterdir())
    code = (
        "import sys; from clip3dreid.cli.search import main; main()\n"
        "print([name for name in ('transformers', 'lightning', 'lightning.pytorch') if name in sys.modules])"
    )
    arguments = [f"gallery={gallery}", f"checkpoint={saved_model}", asked.format(file=file), "top=3"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_neither_extraction_nor_search_needs_hydra(saved_model, ltcc_root, tmp_path):
    code = f"""
import sys
from pathlib import Path
import clip3dreid
from clip3dreid.search.extraction import extract
from clip3dreid.search.search import search
from clip3dreid.search.settings import ExtractSettings, TextQueries

model = clip3dreid.load({str(saved_model)!r})
extract(model, {str(ltcc_root / "query")!r}, ExtractSettings(workers=0), Path("shards"))
hits = search(Path("shards"), model, TextQueries(("a tall woman",))).answers[0].hits
hits.select("path", "score").write_csv("hits.csv")
print([name for name in ("hydra", "omegaconf") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(pl.read_csv(tmp_path / "hits.csv")) == 16


def test_an_engine_of_the_users_own_is_asked_in_the_place_of_ours(model, gallery):
    class Backwards:
        def __init__(self, shards, column):
            self.rows, self.column = len(shards), column

        def search(self, query, k, where):
            from clip3dreid.search.top_k import TopK

            rows = torch.arange(self.rows - 1, self.rows - 1 - k, -1).expand(len(query), k)
            return TopK(rows, torch.zeros(len(query), k))

    settings = SearchSettings(top=2)
    result = search(gallery, model, TextQueries(("tall",)), settings, engine=Backwards)
    assert result.answers[0].hits["row"].to_list() == [15, 14]


# Features of several parts.

PARTS = as_feature({"embedding": 1, "joint": 0.5, "betas": 2})


def record(folder: Path, **changed) -> dict:
    """What the index of shards says, perhaps changed and whole again; what is None is taken out."""
    facts = json.loads((folder / "index.json").read_text())
    facts = {key: value for key, value in (facts | changed).items() if key != CHECKSUM and value is not None}
    write_json(folder / "index.json", seal(facts))
    return facts


def test_shards_of_several_parts_are_searched_by_the_same_parts(model, ltcc_root, tmp_path):
    files = sorted((ltcc_root / "query").iterdir())
    settings = replace(QUICK, feature=PARTS, outputs=("embedding", "joint"))
    extract(model, ltcc_root / "query", settings, tmp_path / "parts")
    shards = Shards(tmp_path / "parts")
    assert shards.facts["feature"] == {"embedding": 1.0, "joint": 0.5, "betas": 2.0}
    assert shards.facts["vectors"] == {"embedding": 128 + 128 + 4, "joint": 128}
    stored = torch.cat(list(shards.blocks("embedding")))
    torch.testing.assert_close(stored, model.embed(files, feature=PARTS), atol=1e-5, rtol=1e-4)
    # The model's own feature is the embedding; the gallery says what its queries are made of.
    result = search(shards, model, PictureQueries(tuple(files[:2])), SearchSettings(top=3))
    for answer, row in zip(result.answers, stored, strict=False):
        cosines = (stored @ row).sort(descending=True).values[:3]
        assert answer.hits["score"].to_list() == pytest.approx(cosines.tolist(), abs=1e-5)
    assert search(shards, model, TextQueries(("tall",))).score == "fit"


def test_shards_of_another_feature_are_not_gone_on_with_and_older_ones_hold_the_embedding(
    model, gallery, ltcc_root, tmp_path
):
    folder = tmp_path / "shards"
    shutil.copytree(gallery, folder)
    assert record(folder).pop("feature") == {"embedding": 1.0}
    record(folder, feature=None)
    query = PictureQueries((next((ltcc_root / "query").iterdir()),))
    assert search(folder, model, query).answers[0].hits["score"][0] == pytest.approx(1, abs=1e-5)
    asked = replace(QUICK, feature=PARTS)
    with pytest.raises(
        InputError,
        match=r"holds shards of feature=embedding, not of embedding \+ 0.5 joint \+ 2 betas; give another",
    ):
        extract(model, ltcc_root / "query", asked, folder)
    assert extract(model, ltcc_root / "query", QUICK, folder).computed == 0


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ({"embedding": 1, "teacher": 1}, "cannot compute: its pictures were looked at by another model"),
        ({"embedding": 1, "betas": 1}, "was made by another model"),
        ({"nose": 1}, r"index\.json: its feature=nose is unknown"),
    ],
)
def test_shards_whose_feature_is_another_than_the_model_can_have_made_are_refused(
    model, gallery, ltcc_root, tmp_path, feature, said
):
    folder = tmp_path / "shards"
    shutil.copytree(gallery, folder)
    record(folder, feature=feature)
    query = PictureQueries((next((ltcc_root / "query").iterdir()),))
    with pytest.raises(InputError, match=said) as error:
        search(folder, model, query)
    assert "\n" not in str(error.value)


def test_a_part_that_the_model_has_not_learnt_is_refused_before_a_folder_is_made(model, ltcc_root, tmp_path):
    asked = replace(QUICK, feature=as_feature("teacher"))
    with pytest.raises(InputError, match=r"feature=teacher: .* does not know teacher, which loss\.global"):
        extract(model, ltcc_root / "query", asked, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
