"""Ask a page as a browser does, without one."""

import base64
import json
import urllib.error
import urllib.request
import uuid
from typing import Any, NamedTuple

PATIENCE_S = 300


class Told(NamedTuple):
    """What came of a question."""

    status: int
    """Of the request that asks."""
    data: list[Any]
    """What each part of the page gets; empty where the question was refused."""


def function_of(url: str, element: str, event: str) -> tuple[int, int]:
    """Return the number of what an event calls, and how many inputs it has."""
    with urllib.request.urlopen(f"{url}/config", timeout=PATIENCE_S) as answer:
        config = json.load(answer)
    (component,) = (one["id"] for one in config["components"] if one["props"].get("elem_id") == element)
    for number, call in enumerate(config["dependencies"]):
        if [component, event] in call["targets"]:
            return call.get("id", number), len(call["inputs"])
    raise AssertionError((element, event))


def uploaded(*files: tuple[str, bytes]) -> dict[str, Any]:
    """Return pictures as the page sends them."""
    return {
        "pictures": [
            {"name": name, "data": f"data:image/png;base64,{base64.b64encode(content).decode()}"}
            for name, content in files
        ]
    }


def ask(url: str, element: str, event: str, first: Any, where: tuple[Any, ...] = ([], [], "")) -> Told:
    """Ask, and wait for what comes of it."""
    function, _ = function_of(url, element, event)
    session = uuid.uuid4().hex
    body = json.dumps({"data": [first, *where], "fn_index": function, "session_hash": session}).encode()
    request = urllib.request.Request(
        f"{url}/gradio_api/queue/join", body, {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(request, timeout=PATIENCE_S).close()
    except urllib.error.HTTPError as error:
        return Told(error.code, [error.read().decode()])
    with urllib.request.urlopen(
        f"{url}/gradio_api/queue/data?session_hash={session}", timeout=PATIENCE_S
    ) as lines:
        for line in lines:
            told = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if told.get("msg") == "process_completed":
                assert told["success"], told
                return Told(200, told["output"]["data"])
    raise AssertionError("the connection ended without an answer")
