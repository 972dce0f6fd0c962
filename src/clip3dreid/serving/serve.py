"""Serve the page: from a model and a gallery to an address."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip3dreid.errors import InputError
from clip3dreid.io.files import reason_of
from clip3dreid.serving.settings import ServeSettings
from clip3dreid.serving.source import Source, find_source

if TYPE_CHECKING:
    from fastapi import FastAPI

    from clip3dreid.search.gallery import Gallery
    from clip3dreid.search.query import MakeTeacher
    from clip3dreid.search.search import Engine
    from clip3dreid.serving.backend import Backend

log = logging.getLogger(__name__)

_SLACK = 1_000_000
"""Bytes of a request beside its pictures."""


def serve(
    gallery: Gallery | Source | Path | str | None = None,
    model: str | Path | None = None,
    settings: ServeSettings | None = None,
    *,
    demo: Path | str = "demo",
    options: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    teacher: MakeTeacher | None = None,
) -> None:
    """Serve a page to try a model on, until Ctrl-C.

    The page is there at once; model and gallery are loaded as soon as somebody looks at it, or after two seconds.

    Args:
        gallery: a `Gallery`, which has its model; or shards, a folder of pictures, a table of them, or boxes, as
            `Gallery.open` and `Gallery.add` take them; None: what `clip3dreid demo` has left, else a small rendered
            world.
        model: what `clip3dreid.load` takes; None: `source.find_source` says which.
        settings: address and limits; None: as they are by default.
        demo: folder of `clip3dreid demo`.
        options: further arguments of `clip3dreid.load`.
        engine: searches shards, as of `Gallery`.
        teacher: reads texts without a word that the model knows, as of `Gallery.search`.

    Raises:
        InputError: if gallery or model are not there or do not fit, the address cannot be had, or gradio is not
            installed.

    Example:
        >>> import clip3dreid
        >>> gallery = clip3dreid.Gallery.from_pictures(model, "crops")
        >>> clip3dreid.serve(gallery)  # doctest: +SKIP
    """
    settings = settings or ServeSettings()
    source = _source(gallery, model, Path(demo).expanduser())
    # First of all, so that an address that is taken is told of at once, and a browser waits instead of failing.
    listener = _listen(settings)
    with listener, _kept_to_itself():
        _require_gradio()
        from clip3dreid.serving.backend import Backend

        backend = Backend(source, settings, options=options, engine=engine, teacher=teacher)
        _run(application(backend), listener, backend)
    backend.check()


def application(backend: Backend) -> FastAPI:
    """Return the page as an application of FastAPI, behind its guard, for a server of one's own.

    Args:
        backend: what answers.

    Raises:
        InputError: if gradio is not installed.
    """
    _require_gradio()
    from fastapi import FastAPI

    from clip3dreid.serving.guard import Guard
    from clip3dreid.serving.page import build_page, mount

    settings = backend.settings
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    mount(app, build_page(backend))
    names = {"localhost", "127.0.0.1", "::1", settings.host} if settings.is_local else None
    app.add_middleware(Guard, hosts=names, most_bytes=settings.most_bytes * 4 // 3 + _SLACK)
    return app


def _source(
    gallery: Gallery | Source | Path | str | None, model: str | Path | None, demo: Path
) -> Gallery | Source:
    """Return what is to be tried.

    Raises:
        InputError: as `find_source`, or if a model is given beside a gallery that has its own.
    """
    if gallery is None or isinstance(gallery, str | Path):
        place = None if gallery is None else Path(gallery).expanduser()
        return find_source(place, None if model is None else str(model), demo)
    if model is not None:
        raise InputError(f"model={model}: the gallery has its model already; leave it out")
    return gallery


def _listen(settings: ServeSettings) -> socket.socket:
    """Return a socket that listens.

    Raises:
        InputError: if the address cannot be had.
    """
    where = f"host={settings.host} port={settings.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise InputError(
            f"{where} cannot be had ({reason_of(error)}); stop what listens there, or give another port, 0 for a "
            "free one"
        ) from error


@contextmanager
def _kept_to_itself() -> Iterator[None]:
    """Let gradio and the hub's library ask nobody anything, and gradio have a folder of files that ends with it."""
    with tempfile.TemporaryDirectory(prefix="clip3dreid-page-") as folder:
        wanted = {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": folder,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # gradio asks for it at every call; unless it is set, pyplot is imported during the first view.
            "MPLBACKEND": "agg",
        }
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _require_gradio() -> None:
    from clip3dreid.io.lean import import_gradio

    try:
        import_gradio()
    except ImportError as error:
        raise InputError(
            f"the page needs gradio ({reason_of(error)}); install it: pip install 'clip3dreid[serve]'"
        ) from error


def _run(app: FastAPI, listener: socket.socket, backend: Backend) -> None:
    import uvicorn

    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port} shows the page; Ctrl-C ends it", flush=True)  # noqa: T201
    if not backend.settings.is_local:
        log.warning("host=%s: whoever reaches this machine can use the page; there is no password", host)
    # Open pages keep a connection, and are not waited for.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)

    def end_on_failure() -> None:
        if not backend.wait():
            server.should_exit = True

    threading.Thread(target=end_on_failure, name="watching", daemon=True).start()
    # Loading takes the interpreter for itself now and then: the first view goes before it.
    beginning = threading.Timer(2.0, backend.start)
    beginning.daemon = True
    beginning.start()
    server.run(sockets=[listener])
