"""Ask a page as a browser does, without one."""

import base64
import json
import urllib.request
import uuid
from typing import Any

PATIENCE_S = 300


def function_of(url: str, element: str, event: str) -> int:
    """Return the number of what an event calls."""
    with urllib.request.urlopen(f"{url}/config", timeout=PATIENCE_S) as answer:
        config = json.load(answer)
    (component,) = (one["id"] for one in config["components"] if one["props"].get("elem_id") == element)
    for number, call in enumerate(config["dependencies"]):
        if [component, event] in call["targets"]:
            return int(call.get("id", number))
    raise AssertionError((element, event))


def uploaded(*files: tuple[str, bytes]) -> dict[str, Any]:
    """Return pictures as the page sends them."""
    return {
        "pictures": [
            {"name": name, "data": f"data:image/png;base64,{base64.b64encode(content).decode()}"}
            for name, content in files
        ]
    }


def ask(url: str, element: str, event: str, first: Any, where: tuple[Any, ...] = ([], [], "")) -> list[Any]:
    """Ask, and return what each part of the page gets."""
    function = function_of(url, element, event)
    body = json.dumps({"data": [first, *where], "fn_index": function, "session_hash": uuid.uuid4().hex})
    request = urllib.request.Request(
        f"{url}/gradio_api/run/predict", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)["data"]
