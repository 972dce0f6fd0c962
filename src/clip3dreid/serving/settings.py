"""Say where the page is served, and how much it takes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Positive, Range, check


@dataclass(frozen=True)
class ServeSettings:
    """How the page is served (`conf/serve.yaml`).

    Args:
        host: address that is listened on. Others than this machine's own (127.0.0.1, ::1, localhost) let everybody in
            who reaches it: there is no password.
        port: that is listened on; 0: a free one.
        top: people that are shown.
        pictures: most of a question, of one person.
        megabytes: most of a question's pictures together.
        queue: questions that wait; who comes when it is full is told so.
        synonyms: what people say -> the word of the model's vocabulary, as of `search.settings.SearchSettings`.

    Raises:
        InputError: if a value is none of these.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Range(0, 65535)] = 7860
    top: Positive = 20
    pictures: Positive = 8
    megabytes: Annotated[float, Range(0, above=True)] = 10.0
    queue: Positive = 32
    synonyms: Mapping[str, str | None] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)
        if not self.host or "/" in self.host:
            raise InputError(f"host={self.host} is no address; give 127.0.0.1, or one of this machine's")

    @property
    def most_bytes(self) -> int:
        """Return how much a question's pictures may hold."""
        return round(self.megabytes * 1_000_000)

    @property
    def is_local(self) -> bool:
        """Return whether only this machine reaches the page."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
