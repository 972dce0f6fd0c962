import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (pip install 'clip3dreid[serve]')")

from clip3dreid.serving.guard import Guard

Headers = dict[str, str]


def answer(
    path: str, headers: Headers | None = None, body: Sequence[bytes] = (), hosts: Any = ("localhost", "::1")
) -> tuple[int, dict[str, str], str]:
    """Send a request to a server that says how much it was sent; return status, headers and text."""

    async def server(scope: Any, receive: Any, send: Any) -> None:
        read, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                read, more = -1, False
            else:
                read, more = read + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(read).encode()})

    parts = [*body[:-1], body[-1]] if body else [b""]
    coming = [
        {"type": "http.request", "body": part, "more_body": number + 1 < len(parts)}
        for number, part in enumerate(parts)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "localhost:7860"} | (headers or {})
    scope = {
        "type": "http", "path": path, "method": "POST",
        "headers": [(key.encode(), value.encode()) for key, value in given.items()],
    }  # fmt: skip
    asyncio.run(Guard(server, hosts=hosts, most_bytes=100)(scope, receive, send))
    start, *rest = sent
    told = {key.decode(): value.decode() for key, value in start["headers"]}
    return start["status"], told, b"".join(part["body"] for part in rest).decode()


@pytest.mark.parametrize(
    "path", ["/", "/assets/index.js", "/gradio_api/run/predict", "/gradio_api/heartbeat/x"]
)
def test_what_the_page_asks_for_is_answered(path: str) -> None:
    status, headers, text = answer(path, body=[b"x" * 60, b"y" * 40])
    assert (status, text) == (200, "100")
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=http://example.org",
        "/gradio_api/queue/join",
        "/gradio_api/call/predict",
        "/gradio_api/process_recording",
        "/gradio_api/component_server",
        "/gradio_api/vibe-edit",
    ],
)
def test_what_reads_or_writes_files_or_calls_others_is_closed(path: str) -> None:
    assert answer(path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example:7860", "evil.example", "", "localhost.evil.example", "[::2]:1"]
)
def test_a_name_that_was_pointed_at_this_machine_is_refused(host: str) -> None:
    assert answer("/", {"host": host})[0] == 421
    assert answer("/", {"host": host}, hosts=None)[0] == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "[::1]:7860"])
def test_the_machines_own_names_are_not(host: str) -> None:
    assert answer("/", {"host": host})[0] == 200


def test_another_page_may_not_ask() -> None:
    assert answer("/gradio_api/run/predict", {"origin": "http://evil.example"})[0] == 403
    assert answer("/gradio_api/run/predict", {"origin": "http://localhost:9"})[0] == 403
    assert answer("/gradio_api/run/predict", {"origin": "null"})[0] == 403
    assert answer("/gradio_api/run/predict", {"origin": "http://localhost:7860"})[0] == 200


def test_more_than_is_taken_is_not_read() -> None:
    assert answer("/", {"content-length": "101"})[0] == 413
    assert answer("/", {"content-length": "-1"})[0] == 413
    # One that does not say how much comes is cut off.
    assert answer("/", body=[b"x" * 60, b"y" * 60, b"z"])[2] == "-1"
