"""The command: what it says and how it ends, and how it bears many who ask at once."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import clip3dreid
from clip3dreid.errors import InputError
from clip3dreid.serving.serve import application
from clip3dreid.serving.settings import ServeSettings
from tests.conftest import Command
from tests.processes import PATIENCE_S
from tests.serving.asking import ask, uploaded
from tests.serving.conftest import Page, Rendered, served

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'clip3dreid[serve]')")


@pytest.fixture
def gallery(saved_model: Path, rendered: Rendered) -> clip3dreid.Gallery:
    return clip3dreid.Gallery.open(rendered.gallery, clip3dreid.load(saved_model))


def test_a_gallery_that_is_not_there_ends_with_status_2(invoke: Command) -> None:
    done = invoke("serve", "gallery=nowhere", "port=0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: gallery=nowhere is not there; give a folder")


def test_a_port_in_use_ends_with_status_2(invoke: Command, rendered: Rendered, saved_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = invoke("serve", f"gallery={rendered.gallery}", f"checkpoint={saved_model}", f"port={port}")
    assert done.returncode == 2
    assert f"host=127.0.0.1 port={port} cannot be had" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_address_that_is_not_this_machines_ends_with_status_2(
    invoke: Command, rendered: Rendered, saved_model: Path
) -> None:
    done = invoke("serve", f"gallery={rendered.gallery}", f"checkpoint={saved_model}", "host=192.0.2.1")
    assert done.returncode == 2
    assert "host=192.0.2.1 port=7860 cannot be had" in done.stderr


def until_it_is_to_end(server: Any, sockets: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not server.should_exit:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_model_that_cannot_be_loaded_ends_the_server_with_status_2(
    invoke: Command, rendered: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", until_it_is_to_end)
    before = dict(os.environ)
    done = invoke("serve", f"gallery={rendered.gallery}", f"checkpoint={tmp_path}", "port=0")
    assert done.returncode == 2
    assert "holds no model" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    # The program that serves is left as it was.
    changed = {key for key in os.environ if os.environ[key] != before.get(key)}
    assert not {key for key in changed if key.startswith("GRADIO")}


def test_ctrl_c_ends_it_and_leaves_nothing_behind(
    rendered: Rendered, saved_model: Path, tmp_path: Path
) -> None:
    serving = served(tmp_path / "page", f"gallery={rendered.gallery}", f"checkpoint={saved_model}")
    page = next(serving)
    assert list(page.folder.glob("clip3dreid-page-*"))
    page.process.send_signal(signal.SIGINT)
    assert page.process.wait(PATIENCE_S) == 130
    assert [path.name for path in page.folder.iterdir()] == ["errors.txt"]
    assert (page.folder / "errors.txt").read_text() == "stopped by Ctrl-C\n"
    serving.close()


def test_thirty_at_once_are_answered_or_told_to_come_again(page: Page, rendered: Rendered) -> None:
    picture = rendered.queries[2]
    payload = uploaded((picture.name, picture.read_bytes()))
    hits = ask(page.url, "drop", "submit", payload)[2]
    assert "<figcaption>" in hits
    with ThreadPoolExecutor(30) as together:
        told = list(together.map(lambda _: ask(page.url, "drop", "submit", payload), range(30)))
    answered = [one for one in told if one[2] == hits]
    refused = [one for one in told if one[2] == ""]
    assert len(answered) + len(refused) == 30
    # Five wait, beside the one that is answered.
    assert len(answered) >= 6
    assert {one[1] for one in refused} <= {
        '<p class="wrong" role="alert">5 questions are waiting already; ask again in a moment</p>'
    }
    assert ask(page.url, "drop", "submit", payload)[2] == hits


def test_a_gallery_in_python_is_served_and_another_host_is_warned_of(
    gallery: clip3dreid.Gallery,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    served_on: list[Any] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: served_on.extend(sockets))
    clip3dreid.serve(gallery, settings=ServeSettings(host="0.0.0.0", port=0))
    assert capsys.readouterr().out.startswith("http://0.0.0.0:")
    assert caplog.messages == [
        "host=0.0.0.0: whoever reaches this machine can use the page; there is no password"
    ]
    caplog.clear()
    clip3dreid.serve(gallery, settings=ServeSettings(port=0))
    assert caplog.messages == []
    assert len(served_on) == 2


def test_a_model_beside_a_gallery_that_has_one_is_refused(gallery: clip3dreid.Gallery) -> None:
    with pytest.raises(InputError, match="the gallery has its model already"):
        clip3dreid.serve(gallery, "other")


def test_the_page_is_an_application_for_a_server_of_ones_own(gallery: clip3dreid.Gallery) -> None:
    from clip3dreid.serving.backend import Backend

    assert callable(application(Backend(gallery)))
    # gradio writes stubs beside the source of components.
    assert not list(Path(clip3dreid.__file__).parent.rglob("*.pyi"))
