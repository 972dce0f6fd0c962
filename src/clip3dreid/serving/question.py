"""Read what a page sends: pictures inside the question, never in a file."""

from __future__ import annotations

import base64
import binascii
from typing import Any, NamedTuple

from clip3dreid.errors import InputError
from clip3dreid.io.files import reason_of


class Upload(NamedTuple):
    """A picture as a page sends it."""

    name: str
    content: bytes
    path: str | None = None
    """Of a gallery's own picture, which then does not find itself."""


def uploads_of(payload: Any) -> list[Upload]:
    """Read what a page sends: `{"pictures": [{"name": …, "data": "data:…;base64,…", "path": …}]}`.

    Raises:
        InputError: if it is something else.
    """
    if not payload:
        return []
    try:
        return [
            Upload(
                str(one["name"])[:200],
                base64.b64decode(str(one["data"]).partition(",")[2], validate=True),
                None if one.get("path") is None else str(one["path"]),
            )
            for one in payload["pictures"]
        ]
    except (TypeError, KeyError, AttributeError, binascii.Error) as error:
        raise InputError(
            f"the question is not as the page asks it ({reason_of(error)}); load the page anew"
        ) from error


def data_url(content: bytes, kind: str) -> str:
    """Return a file as a page has it inside itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
