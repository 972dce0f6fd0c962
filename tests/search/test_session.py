"""One search after another: lines of JSON, what is typed, and how it ends."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

import clip3dreid
from clip3dreid.search.gallery import Gallery
from clip3dreid.search.search import Searcher
from clip3dreid.search.session import answer_lines, converse
from clip3dreid.search.settings import SearchSettings
from tests.processes import PATIENCE_S

COUNT = 9


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    numbers = np.random.default_rng(3)
    for number in range(COUNT):
        Image.fromarray(numbers.integers(0, 256, (32, 16, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(saved_model: Path) -> clip3dreid.ReidModel:
    return clip3dreid.load(saved_model)


@pytest.fixture(scope="module")
def shards(model: clip3dreid.ReidModel, crops: Path) -> Path:
    gallery = Gallery(model)
    for number in range(COUNT):
        gallery.add(
            crops / f"{number}.png", {"person": number // 3, "camera": number % 3, "frame": number}, workers=0
        )
    gallery.save(crops.parent / "shards")
    return crops.parent / "shards"


@pytest.fixture(scope="module")
def searcher(shards: Path, model: clip3dreid.ReidModel) -> Searcher:
    return Searcher(shards, model)


def answers(searcher: Searcher, *lines: Any, given: SearchSettings | None = None) -> list[dict[str, Any]]:
    sent = b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)
    out = io.StringIO()
    answer_lines(searcher, given or SearchSettings(), io.BytesIO(sent), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_each_line_is_answered_in_order_as_a_search_by_itself_would(
    searcher: Searcher, model: clip3dreid.ReidModel, crops: Path
) -> None:
    files = [str(crops / f"{number}.png") for number in (4, 1, 2)]
    one, person, words, folder = answers(
        searcher,
        {"query": files[0], "top": 3, "id": 7},
        {"query": files[1:], "id": "b"},
        b"",
        {"query": "a tall man", "top": 2},
        {"query": str(crops), "top": 1, "id": None},
    )
    features = F.normalize(model.embed([crops / f"{number}.png" for number in range(COUNT)]), dim=1)
    best = (features @ features[4]).sort(descending=True)
    assert one["id"] == 7
    assert [int(Path(hit["path"]).stem) for hit in one["hits"]] == best.indices[:3].tolist()
    assert [hit["score"] for hit in one["hits"]] == pytest.approx(best.values[:3].tolist(), abs=1e-5)
    assert one["hits"][0]["person"] == "1"
    assert (one["query"], one["score"], one["words"]) == (files[0], "cosine", [])
    mean = F.normalize(features[[1, 2]].mean(0), dim=0)
    assert person["id"] == "b"
    assert person["hits"][0]["score"] == pytest.approx(float((features @ mean).max()), abs=1e-5)
    assert len(person["hits"]) == COUNT
    assert "id" not in words
    assert (words["score"], words["words"]) == ("fit", ["tall", "masculine"])
    assert folder["query"] == f"{COUNT} pictures of a person"
    assert folder["id"] is None


def test_a_filter_of_a_line_stands_beside_that_of_the_settings(searcher: Searcher, crops: Path) -> None:
    file = str(crops / "0.png")
    given = SearchSettings(top=COUNT, where={"camera": 2, "person": None})
    as_set, narrower, another, lifted = answers(
        searcher,
        {"query": file},
        {"query": file, "where": {"person": [1, "02"]}},
        {"query": file, "where": {"camera": "1"}},
        {"query": file, "where": {"camera": None, "frame": [3, None]}},
        given=given,
    )
    assert {hit["camera"] for hit in as_set["hits"]} == {"2"}
    assert {(hit["person"], hit["camera"]) for hit in narrower["hits"]} == {("1", "2"), ("2", "2")}
    assert {hit["camera"] for hit in another["hits"]} == {"1"}
    assert sorted(hit["frame"] for hit in lifted["hits"]) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"a.jpg", "the line cannot be read as JSON"),
        (b"\xff{}", "the line cannot be read as JSON"),
        (b"[" * 100_000, "the line cannot be read as JSON"),
        (b"[1]", "the line is no object; give an object, such as"),
        ({"id": 1}, "query must be a picture's path, a list of them, or a description"),
        ({"query": ["a.jpg", 3]}, "query must be"),
        ({"query": []}, "there is no picture to look for"),
        ({"query": "absent.jpg"}, "absent.jpg"),
        ({"query": "a\0.jpg"}, "a\0.jpg"),
        ({"query": "~nobody-here/a.jpg"}, "there is no such home; give the whole path"),
        ({"query": " "}, "the text is empty"),
        ({"query": "cheerful"}, "'cheerful' has no word that this model knows"),
        (
            {"query": "tall", "topp": 3},
            "topp is unknown; the keys are query, top, where, id; did you mean top?",
        ),
        ({"query": "tall", "top": 0}, "top=0 must be a whole number, 1 or more"),
        ({"query": "tall", "top": "3"}, "top=3 must be"),
        ({"query": "tall", "where": [1]}, "where must be an object"),
        ({"query": "tall", "where": {"mood": 1}}, "where.mood: the gallery has no such label"),
        ({"query": "tall", "where": {"self": 1}}, "where.self: the gallery has no such label"),
        ({"query": "tall", "where": {"camera": 1.5}}, "where.camera: 1.5 is no label"),
        ({"query": "tall", "where": {"frame": 1.5}}, "where.frame=1.5 is no range"),
        ({"query": "tall", "where": {"camera": 9}}, "where.camera=[9] leaves no picture"),
        ({"query": "tall", "id": [1]}, "id must be a text or a number"),
        (b'{"query": "tall", "id": 1e999}', "id must be a text or a number"),
    ],
)
def test_a_bad_line_is_answered_with_one_line_and_the_next_is_answered(
    searcher: Searcher, line: Any, said: str
) -> None:
    bad, good = answers(searcher, line, {"query": "tall", "id": "next"})
    assert said in bad["error"]
    assert "\n" not in bad["error"]
    assert good["id"] == "next"
    assert len(good["hits"]) == COUNT


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("tall"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["camera", "frame", "person", "path", "words"]) | st.text(max_size=4), inner
        )
    ),
    max_leaves=5,
)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(["query", "top", "where", "id"]) | st.text(max_size=3), VALUES) | VALUES
)
def test_whatever_is_asked_has_one_answer(searcher: Searcher, asked: Any) -> None:
    first, second = answers(searcher, asked, {"query": "tall"})
    assert ("hits" in first) != ("error" in first)
    assert second["hits"]


def test_a_teacher_is_loaded_once_and_an_engine_made_once(shards: Path, model: clip3dreid.ReidModel) -> None:
    from clip3dreid.search.engine import Exact

    made: list[str] = []

    class Teacher:
        name, fingerprint = "mine", model.card["teacher"]["fingerprint"]

        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            return torch.ones(len(texts), 128)

    def teacher() -> Any:
        made.append("teacher")
        return Teacher()

    def engine(gallery: Any, column: str) -> Exact:
        made.append(column)
        return Exact(gallery, column)

    searcher = Searcher(shards, model, engine=engine, teacher=teacher)
    found = answers(
        searcher, {"query": "tall"}, {"query": "cheerful"}, {"query": "glad"}, {"query": "skinny"}
    )
    assert all(len(one["hits"]) == COUNT for one in found)
    assert made == ["joint", "teacher"]


# At a prompt.


def typed(searcher: Searcher, capsys: pytest.CaptureFixture[str], *lines: str) -> str:
    waiting = iter(lines)

    def read(prompt: str) -> str:
        line = next(waiting, None)
        if line is None:
            raise EOFError
        return line

    converse(searcher, SearchSettings(), read)
    return capsys.readouterr().out


def test_what_is_typed_is_searched_for_with_what_was_set_before(
    searcher: Searcher, crops: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sheet = tmp_path / "found.jpg"
    lines = [
        "help",
        "top=2",
        "where.camera=[1,2]",
        f"'{crops / '4.png'}'",
        f"sheet={sheet}",
        "tall, heavyset",
    ]
    said = typed(searcher, capsys, *lines)
    assert "9 pictures; a picture's path, a description, or help" in said
    assert "where.camera=[1,2]   only among these" in said
    assert f"{crops / '4.png'}\n" in said
    assert "1.000" in said
    assert "understood: tall, heavyset" in said
    assert said.count("│    2 │") == 2
    assert "│    3 │" not in said
    with Image.open(sheet) as drawn:
        assert drawn.width > 300
    # A person of two pictures, and a filter that is taken back.
    more = typed(
        searcher, capsys, "where.frame=[3,null]", f"[{crops / '4.png'}, {crops / '5.png'}]", "quit", "no"
    )
    assert "2 pictures of a person" in more
    assert "│    6 │" in more
    assert "│    7 │" not in more
    assert "│    9 │" in typed(searcher, capsys, "where.camera=1", "where.camera=null", "tall")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("absent.jpg", "absent.jpg"),
        ("top=none", "error: top=none must be a whole number"),
        ("where.mood=glad", "error: where.mood: the gallery has no such label"),
        ("sheet=found.jpg", "error: nothing was searched for yet"),
        ("cheerful", "has no word that this model knows"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_prompt_stays(
    searcher: Searcher, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    told = typed(searcher, capsys, line, "tall")
    assert said in told
    assert "understood: tall" in told


# The command.

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(shards: Path, saved_model: Path, tmp_path: Path) -> Iterator[Start]:
    processes = []

    def begin(*words: str, **pipes: Any) -> "subprocess.Popen[bytes]":
        arguments = [f"gallery={shards}", f"checkpoint={saved_model}", "interactive=true", *words]
        command = [sys.executable, "-m", "clip3dreid", "search", *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, **pipes)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def ask(process: "subprocess.Popen[bytes]", **asked: Any) -> dict[str, Any]:
    """Ask one thing and wait for its answer before anything else is said."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asked).encode() + b"\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_the_command_answers_at_once_goes_on_after_an_error_and_ends_with_its_input(
    start: Start, crops: Path
) -> None:
    process = start("top=2", **PIPES)
    assert ask(process, query=str(crops / "3.png"), id=1)["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert "absent.png" in ask(process, query="absent.png", id=2)["error"]
    # What is said of a query besides its answer is elsewhere.
    assert ask(process, query="a tall man, not heavyset", id=3)["words"] == ["tall", "masculine"]
    rest, told = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, rest) == (0, b"")
    assert b"denied (heavyset)" in told


def test_a_signal_ends_the_command_without_a_traceback(start: Start) -> None:
    process = start(**PIPES)
    assert ask(process, query="tall", top=1)["hits"]
    process.terminate()
    assert process.communicate(timeout=PATIENCE_S) == (b"", b"")
    assert process.returncode == -signal.SIGTERM


def test_a_reader_that_goes_is_no_error(searcher: Searcher) -> None:
    ear, mouth = os.pipe()
    asked: list[int] = []

    def lines() -> Iterator[bytes]:
        for number in range(9):
            if number == 2:
                os.close(ear)
            asked.append(number)
            yield b'{"query": "tall"}'

    # What is left in the buffer goes nowhere as it is closed.
    with os.fdopen(mouth, "w") as out:
        answer_lines(searcher, SearchSettings(), lines(), out)
    assert asked == [0, 1, 2]


def test_on_a_terminal_there_is_a_prompt_which_ctrl_c_ends(start: Start) -> None:
    ours, theirs = pty.openpty()
    process = start("top=1", stdin=theirs, stdout=theirs)
    os.close(theirs)
    os.write(ours, b"tall\n")
    said, until = b"", time.monotonic() + PATIENCE_S
    while b"understood: tall" not in said or not said.endswith(b"> "):
        ready, _, _ = select.select([ours], [], [], until - time.monotonic())
        assert ready, said
        said += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    # A signal between the prompt and the wait for a key is heeded with the next key.
    while process.poll() is None and time.monotonic() < until:
        os.write(ours, b"\n")
        time.sleep(0.1)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGINT
    os.close(ours)
    assert b"9 pictures; a picture's path" in said
    assert process.stderr is not None
    assert process.stderr.read().splitlines()[-1:] == [b"stopped by Ctrl-C"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["text=tall"], "interactive=true, not text and interactive"),
        (["out=found.json"], "out and sheet are of one search; leave them out with interactive=true"),
    ],
)
def test_what_is_of_one_search_does_not_go_with_many(
    invoke: Any, shards: Path, words: list[str], said: str
) -> None:
    done = invoke("search", f"gallery={shards}", "checkpoint=nothing", "interactive=true", *words)
    assert done.returncode == 2
    assert said in done.stderr
