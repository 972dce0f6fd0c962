"""Load what answers a page in the background; torch is imported there, so that the page is seen before."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clip3dreid.errors import one_line
from clip3dreid.serving.settings import ServeSettings
from clip3dreid.serving.source import Source

if TYPE_CHECKING:
    from clip3dreid.search.gallery import Gallery
    from clip3dreid.search.query import MakeTeacher
    from clip3dreid.search.search import Engine
    from clip3dreid.serving.answering import Answering


class Backend:
    """What answers a page, once it is loaded.

    Args:
        source: where model and gallery are; or a gallery that is in memory already, which has its model.
        settings: how many hits, how large uploads may be.
        options: further arguments of `clip3dreid.load`.
        engine: searches shards, as of `Gallery`.
        teacher: reads texts without a word that the model knows, as of `Gallery.search`.

    Attributes:
        settings: the same.
    """

    def __init__(
        self,
        source: Source | Gallery,
        settings: ServeSettings | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        engine: Engine | None = None,
        teacher: MakeTeacher | None = None,
    ) -> None:
        self.settings = settings or ServeSettings()
        self._source, self._options = source, dict(options or {})
        self._engine, self._teacher = engine, teacher
        self._state = "The model is loaded"
        self._answering: Answering | None = None
        self._failure: BaseException | None = None
        self._ended, self._begun = threading.Event(), threading.Lock()

    def start(self) -> None:
        """Begin to load, in a thread of its own; once, however often it is asked for."""
        if self._begun.acquire(blocking=False):
            threading.Thread(target=self._load, name="loading", daemon=True).start()

    @property
    def is_loading(self) -> bool:
        """Return whether there is neither what answers yet nor a reason why not."""
        return not self._ended.is_set()

    @property
    def has_failed(self) -> bool:
        """Return whether there is nothing to answer with."""
        return self._failure is not None

    @property
    def state(self) -> str:
        """Return what is being done, or what there is, for the page."""
        if self._failure is not None:
            return one_line(self._failure) or "The model cannot be loaded; the terminal says why."
        return f"{self._state} …" if self._answering is None else str(self._answering)

    def wait(self) -> bool:
        """Wait until loading has ended, and return whether it went well."""
        self._ended.wait()
        return not self.has_failed

    def check(self) -> None:
        """Raise what loading has failed with, if it has."""
        if self._failure is not None:
            raise self._failure

    def load(self) -> Answering:
        """Return what answers, once it is loaded.

        Raises:
            InputError: if it cannot be.
        """
        self.start()
        self.wait()
        self.check()
        assert self._answering is not None
        return self._answering

    def _load(self) -> None:
        try:
            from clip3dreid.serving.answering import Answering, load_answering

            if not isinstance(self._source, Source):
                self._answering = Answering(self._source, self.settings, self._teacher)
                return
            self._answering = load_answering(
                self._source,
                self.settings,
                options=self._options,
                engine=self._engine,
                teacher=self._teacher,
                tell=self._tell,
            )
        except BaseException as error:
            self._failure = error
        finally:
            self._ended.set()

    def _tell(self, state: str) -> None:
        self._state = state
