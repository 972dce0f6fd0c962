"""A gallery in Python against exact search by hand; adding, removing, saving, opening."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import clip3dreid
from clip3dreid import Boxes
from clip3dreid.errors import InputError
from clip3dreid.inference.model import ReidModel
from clip3dreid.search.gallery import Gallery
from tests.processes import PATIENCE_S

COUNT = 12


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    numbers = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = numbers.integers(0, 256, (int(numbers.integers(20, 60)), 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def reid(saved_model: Path) -> ReidModel:
    return clip3dreid.load(saved_model)


@pytest.fixture(scope="module")
def table(crops: Path) -> Path:
    path = crops.parent / "table.csv"
    pl.DataFrame(
        {
            "path": [f"{crops.name}/{number:02}.png" for number in range(COUNT)],
            "person": [str(number // 3) for number in range(COUNT)],
            "camera": [number % 3 + 1 for number in range(COUNT)],
        }
    ).write_csv(path)
    return path


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("person", [False, True])
def test_what_was_looked_at_is_searched_for_as_its_pictures_are(
    reid: ReidModel, crops: Path, flip: bool, person: bool
) -> None:
    gallery = Gallery.from_pictures(reid, crops, workers=0, flip=flip)
    asked = files(crops)[3:5]
    seen = reid.look(asked, flip=gallery.flip)
    found, wanted = (gallery.search(query, person=person, top=4) for query in (seen, asked))
    assert len(found.answers) == (1 if person else 2)
    for one, other in zip(found.answers, wanted.answers, strict=True):
        assert one.hits.drop("score").equals(other.hits.drop("score"))
        assert one.hits["score"].to_list() == pytest.approx(other.hits["score"].to_list(), abs=1e-6)
    with pytest.raises(InputError, match=r"features have 5 columns, and those of .*model have 128"):
        gallery.search(seen._replace(embedding=torch.rand(1, 5)))
    with pytest.raises(InputError, match="there is no picture to look for"):
        gallery.search(seen._replace(embedding=seen.embedding[:0]))


def test_hits_are_those_of_an_exact_search(reid: ReidModel, crops: Path) -> None:
    gallery = Gallery.from_pictures(reid, crops, workers=0)
    assert len(gallery) == COUNT
    hits = gallery.search(crops / "05.png", top=4)
    features = F.normalize(reid.embed(files(crops)), dim=1)
    cosines = features @ features[5]
    order = cosines.argsort(descending=True)[:4]
    found = hits.to_polars()
    assert [Path(path).name for path in found["path"]] == [f"{number:02}.png" for number in order.tolist()]
    torch.testing.assert_close(torch.tensor(found["score"].to_list()), cosines[order], rtol=1e-4, atol=1e-5)
    assert "05.png" in repr(hits)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_way_in_fills_the_same_gallery(reid: ReidModel, crops: Path, table: Path, workers: int) -> None:
    wanted = F.normalize(reid.embed(files(crops)), dim=1)
    pictures = [np.array(Image.open(path)) for path in files(crops)]
    for given in (crops, str(crops / "*.png"), table, files(crops), pictures):
        gallery = Gallery.from_pictures(reid, given, workers=workers, batch_size=5)
        torch.testing.assert_close(next(gallery.blocks("embedding")), wanted, rtol=1e-4, atol=1e-5)
    assert Gallery.from_pictures(reid, table, workers=0).labels["person"].to_list()[3] == "1"


def test_a_hit_in_a_frame_says_where_and_is_drawn_alone(reid: ReidModel, crops: Path, tmp_path: Path) -> None:
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[:, :30], frame[:, 30:] = (250, 20, 20), (20, 20, 250)
    Image.fromarray(frame).save(tmp_path / "000007.png")
    (tmp_path / "t.txt").write_text("7,1,1,1,30,40,0.9,-1,-1,-1\n7,2,31,1,30,40,0.4,-1,-1,-1\n")
    boxes = Boxes(tmp_path / "t.txt", frames=tmp_path)
    gallery = Gallery.from_pictures(reid, boxes, workers=0, batch_size=1)
    torch.testing.assert_close(reid.embed(boxes), reid.embed([frame[:, :30].copy(), frame[:, 30:].copy()]))
    gallery.add(files(crops)[:2], workers=0)  # whole pictures beside them
    hits = gallery.search(frame[:, 30:].copy(), top=4)
    assert f"{tmp_path / '000007.png'} [30, 0, 60, 40]  tracklet 2" in repr(hits)
    best = hits.to_polars().row(0, named=True)
    assert (best["frame"], best["tracklet"], best["confidence"]) == (7, "2", 0.4)
    drawn = np.asarray(hits.picture().convert("RGB")).astype(int)
    # A tile is 110 wide behind two of the query; a frame of two colours would show both.
    tile = drawn[16:216, 244:354].reshape(-1, 3)
    assert (tile == (20, 20, 250)).all(1).mean() > 0.5
    assert not (tile == (250, 20, 20)).all(1).any()
    assert set(gallery.search(files(crops)[0], top=9, where={"tracklet": 1}).to_polars()["left"]) == {0}
    gallery.save(tmp_path / "kept")
    again = Gallery.open(tmp_path / "kept", reid).search(frame[:, 30:].copy(), top=1).to_polars()
    assert again.row(0, named=True)["left"] == 30


def test_pictures_come_and_go(reid: ReidModel, crops: Path) -> None:
    gallery = Gallery(reid)
    with pytest.raises(InputError, match="the gallery is empty; add pictures first"):
        gallery.search(crops / "00.png")
    for number, path in enumerate(files(crops)):
        assert gallery.add(path, {"person": number // 3, "camera": f"0{number % 3 + 1}"}, workers=0) == 1
    assert repr(gallery).startswith("Gallery(12 pictures, 4 of person, 3 of camera")
    best = gallery.search(crops / "00.png", top=20, where={"camera": [2, 3]}).to_polars()
    assert set(best["camera"]) == {"2", "3"}
    assert len(best) == 8
    assert gallery.remove(person=[0, 2]) == 6
    assert len(gallery) == 6
    assert set(gallery.search(crops / "00.png", top=20).to_polars()["person"]) == {"1", "3"}
    gallery.add(crops / "00.png", workers=0)
    first = gallery.search(crops / "00.png", top=1).to_polars()
    assert first["score"][0] == pytest.approx(1, abs=1e-5)
    assert first["person"].to_list() == [None]
    with pytest.raises(InputError, match="say which pictures are to go"):
        gallery.remove()
    with pytest.raises(InputError, match=r"where\.person=\[9\] leaves no picture"):
        gallery.remove(person=9)


def test_several_pictures_of_a_person_are_one_query(reid: ReidModel, crops: Path) -> None:
    gallery = Gallery.from_pictures(reid, crops, workers=0)
    asked = files(crops)[:3]
    assert len(gallery.search(asked).answers) == 3
    one = gallery.search(asked, person=True)
    mean = F.normalize(F.normalize(reid.embed(asked), dim=1).mean(0), dim=0)
    torch.testing.assert_close(one.answers[0].query.vector, mean)
    in_memory = gallery.search(np.array(Image.open(asked[0])), top=1)
    assert Path(in_memory.to_polars()["path"][0]).name == "00.png"


def test_words_find_people(reid: ReidModel, crops: Path) -> None:
    gallery = Gallery.from_pictures(reid, crops, workers=0)
    word = next(iter(reid.groups.values()))[0]
    found = gallery.search(f"somebody {word}")
    assert found.score == "fit"
    assert found.answers[0].query.understood
    # What people say is known without being told, as in the command.
    said = gallery.search("a lanky man", synonyms={"lanky": "tall"}).answers[0].query.understood
    assert [word for _, word in said] == ["tall", "masculine"]
    with pytest.raises(InputError, match="has no word that this model knows"):
        gallery.search("a man", synonyms=None)


def test_a_text_that_is_a_files_name_can_be_searched_for_without_opening_the_file(
    reid: ReidModel, crops: Path
) -> None:
    gallery = Gallery.from_pictures(reid, crops)
    name = str(next(crops.rglob("*.png")))
    assert gallery.search(name).score == "cosine"
    with pytest.raises(InputError, match="has no word that this model knows"):
        gallery.search_text(name)
    assert repr(gallery.search_text("tall", top=2)) == repr(gallery.search("tall", top=2))


def test_a_gallery_is_kept_and_is_what_the_commands_search(
    reid: ReidModel, crops: Path, table: Path, tmp_path: Path
) -> None:
    gallery = Gallery.from_pictures(reid, table, workers=0)
    gallery.add(np.array(Image.open(crops / "00.png")), {"person": "new"})
    before = gallery.search(crops / "04.png", top=20).to_polars()
    gallery.save(tmp_path / "kept")
    again = Gallery.open(tmp_path / "kept", reid)
    after = again.search(crops / "04.png", top=20).to_polars().select(before.columns)
    assert after.drop("path").equals(before.drop("path"))
    gallery.remove(person="new")
    gallery.save(tmp_path / "kept")
    assert len(Gallery.open(tmp_path / "kept", reid)) == COUNT
    from clip3dreid.search.search import search
    from clip3dreid.search.settings import PictureQueries

    by_command = search(tmp_path / "kept", reid, PictureQueries((crops / "04.png",)))
    assert by_command.to_polars()["score"].to_list() == pytest.approx(
        gallery.search(crops / "04.png", top=20).to_polars()["score"].to_list()
    )


def test_a_gallery_of_another_model_is_refused(reid: ReidModel, crops: Path, tmp_path: Path) -> None:
    Gallery.from_pictures(reid, crops, workers=0).save(tmp_path / "kept")
    other = clip3dreid.load(Path(reid.name))
    next(other.student.parameters()).data.add_(0.1)
    with pytest.raises(InputError, match="was made by another model"):
        Gallery.open(tmp_path / "kept", other)
    with pytest.raises(InputError, match="holds shards of another model"):
        Gallery.from_pictures(other, crops, workers=0).save(tmp_path / "kept")
    assert len(Gallery.open(tmp_path / "kept", reid)) == COUNT


def test_unreadable_pictures_are_left_out_or_refused(
    reid: ReidModel, crops: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    given = [crops / "00.png", tmp_path / "bad.png", crops / "01.png"]
    gallery = Gallery(reid)
    assert gallery.add(given, {"person": [1, 2, 3]}, workers=0) == 2
    assert gallery.labels["person"].to_list() == ["1", "3"]
    assert "1 of 3 pictures could not be read, first" in caplog.text
    with pytest.raises(InputError, match=r"bad\.png"):
        gallery.add(given, workers=0, on_error="fail")
    with pytest.raises(InputError, match="none of 1 pictures could be read"):
        gallery.add([tmp_path / "bad.png"], workers=0)
    with pytest.raises(InputError, match="labels: 2 of person for 3 pictures"):
        gallery.add(given, {"person": [1, 2]}, workers=0)
    assert len(gallery) == 2


def test_hits_are_drawn_and_written(reid: ReidModel, crops: Path, tmp_path: Path) -> None:
    hits = Gallery.from_pictures(reid, crops, workers=0).search(files(crops)[:2], top=3)
    for name in ("found.jpg", "found.json", "found.csv"):
        hits.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 100
    assert hits._repr_png_().startswith(b"\x89PNG")
    assert len(pl.read_csv(tmp_path / "found.csv")) == 6
    with pytest.raises(InputError, match=r"found\.pdf must end in"):
        hits.save(tmp_path / "found.pdf")


def test_pictures_in_memory_have_names_of_their_own(reid: ReidModel, crops: Path, tmp_path: Path) -> None:
    pictures = [np.array(Image.open(path)) for path in files(crops)[:3]]
    gallery = Gallery.from_pictures(reid, pictures)
    gallery.remove(path="picture 1")
    gallery.add(pictures[0])
    assert gallery.labels["path"].to_list() == ["picture 0", "picture 2", "picture 3"]
    hits = gallery.search(pictures[2], top=3)
    assert "picture 2" in repr(hits).splitlines()[2]
    hits.save(tmp_path / "found.jpg")
    with pytest.raises(InputError, match="flip is the whole gallery's"):
        gallery.add(pictures[0], flip=False)


def test_a_description_may_be_longer_than_a_name(reid: ReidModel, crops: Path) -> None:
    gallery = Gallery.from_pictures(reid, files(crops)[:3])
    word = next(iter(reid.groups.values()))[0]
    assert gallery.search(f"somebody {word} " + "and so on " * 500).score == "fit"


def test_shards_with_vectors_and_no_words_are_a_gallery_too(
    reid: ReidModel, crops: Path, tmp_path: Path
) -> None:
    from clip3dreid.search.extraction import extract
    from clip3dreid.search.settings import ExtractSettings

    settings = ExtractSettings(outputs=("embedding", "joint"), workers=0)
    extract(reid, crops, settings, tmp_path / "shards")
    gallery = Gallery.open(tmp_path / "shards", reid)
    word = next(iter(reid.groups.values()))[0]
    assert len(gallery.search(word, top=COUNT).to_polars()) == COUNT
    # Features are extracted as they are, and compared by cosine.
    cosines = reid.similarity(crops / "03.png", files(crops))[0].sort(descending=True)
    found = gallery.search(crops / "03.png", top=COUNT).to_polars()
    assert found["score"].to_list() == pytest.approx(cosines.values.tolist(), abs=1e-5)
    gallery.add(crops / "00.png")
    gallery.save(tmp_path / "kept")
    assert len(Gallery.open(tmp_path / "kept", reid)) == COUNT + 1


def test_a_search_does_not_look_at_the_whole_model_again(
    reid: ReidModel, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery.from_pictures(reid, crops)
    monkeypatch.setattr(
        ReidModel, "fingerprint", property(lambda model: pytest.fail("the fingerprint was taken"))
    )
    assert len(gallery.search(crops / "00.png").answers) == 1


SAVING = """
import sys, clip3dreid
model = clip3dreid.load(sys.argv[1])
gallery = clip3dreid.Gallery.from_pictures(model, sys.argv[2], workers=0)
print("ready", flush=True)
while True:
    gallery.save(sys.argv[3])
"""


def test_a_gallery_that_is_killed_while_it_is_saved_is_whole(
    reid: ReidModel, crops: Path, tmp_path: Path
) -> None:
    Gallery.from_pictures(reid, crops, workers=0).save(tmp_path / "kept")
    for wait in (0.05, 0.11, 0.17):
        arguments = [sys.executable, "-c", SAVING, reid.name, str(crops), str(tmp_path / "kept")]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(wait)
            process.kill()
            process.wait(PATIENCE_S)
        assert len(Gallery.open(tmp_path / "kept", reid)) == COUNT
        assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_what_was_set_aside_comes_back(reid: ReidModel, crops: Path, tmp_path: Path) -> None:
    gallery = Gallery.from_pictures(reid, crops, workers=0)
    gallery.save(tmp_path / "kept")
    work = tmp_path / ".kept.saving"
    work.mkdir()
    # As a kill between the two renamings leaves it.
    (tmp_path / "kept").rename(work / "before")
    (work / "new").mkdir()
    assert len(Gallery.open(tmp_path / "kept", reid)) == COUNT
    assert not work.exists()


def test_a_folder_that_holds_more_is_not_replaced(reid: ReidModel, crops: Path, tmp_path: Path) -> None:
    gallery = Gallery.from_pictures(reid, crops, workers=0)
    gallery.save(tmp_path / "kept")
    (tmp_path / "kept" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds more than a gallery \(notes\.txt\)"):
        gallery.save(tmp_path / "kept")
    assert (tmp_path / "kept" / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert len(Gallery.open(tmp_path / "kept", reid)) == COUNT
