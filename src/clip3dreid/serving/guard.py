"""Stand before the page's server: whom it answers, how much it reads, and that nothing of it goes elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api/"
OPEN = ("run/predict", "heartbeat/", "info", "startup-events", "app_id")
"""What of gradio's API the page itself uses. The rest reads and writes files, or calls other servers."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        # gradio makes functions of templates, and workers of blobs.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "worker-src 'self' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Content security policy: a browser that keeps it asks no other host for anything."""


class Guard:
    """Refuse what the page never asks for, and tell browsers to ask nobody else.

    Args:
        app: what answers.
        hosts: names that the server may be called by, which keeps away pages whose own name was pointed at this
            machine; None: any.
        most_bytes: of a request.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None, most_bytes: int) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(hosts)
        self._most = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it in a line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope), scope["path"])
        if refusal is not None:
            status, why = refusal
            await PlainTextResponse(why, status)(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            # Whoever did not say how much comes: the rest is not read.
            return {"type": "http.disconnect"} if read > self._most else message

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, limited, sealed)

    def _refusal(self, headers: Headers, path: str) -> tuple[int, str] | None:
        """Return status and reason where a request is refused."""
        host = headers.get("host", "")
        if self._hosts is not None and urlsplit(f"//{host}").hostname not in self._hosts:
            return 421, "this page is for this machine alone"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "another page may not ask here"
        if path.startswith(API) and not path.removeprefix(API).startswith(OPEN):
            return 404, "this is closed"
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > self._most:
            return 413, f"a question may hold {self._most / 1e6:.3g} MB"
        return None
