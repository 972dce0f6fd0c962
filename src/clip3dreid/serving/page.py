"""Lay out the page and join it to what answers. gradio is imported here alone, and here is nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from clip3dreid.errors import one_line
from clip3dreid.io.lean import without_stubs
from clip3dreid.serving import markup
from clip3dreid.serving.backend import Backend
from clip3dreid.serving.question import data_url, uploads_of
from clip3dreid.serving.settings import ServeSettings
from clip3dreid.serving.waiting import WaitingLine

if TYPE_CHECKING:
    from clip3dreid.serving.answering import Answer, Answering

log = logging.getLogger(__name__)

_SHOWN = 12
"""People of the gallery to choose from."""
_CHOICES = ("camera", "clothes")
"""Labels with a list of their own; the others are typed."""
_HIDDEN = "hidden"
"""Not seen, and there: gradio's viewer never loads where it comes and is given something at once."""
_POLL_S = 0.5
_FRAME = "<style>@media (max-width: 640px) { .gradio-container .main { padding: 8px !important; } }</style>"
"""Beside `page.css`, which gradio keeps to what is inside its frame."""

with without_stubs():

    class _Body(gr.Model3D):  # type: ignore[misc]  # which is not typed
        """A viewer that is given a file's content, not a file: nothing is written anywhere."""

        is_template = True  # for its looks it is its base class

        def postprocess(self, value: bytes | None) -> Any:
            """Return what the viewer loads."""
            if value is None:
                return None
            # Without the mark of gradio's own files, which would be looked for on the disk.
            return {"path": "body.glb", "orig_name": "body.glb", "url": data_url(value, "model/gltf-binary")}


class _Parts(NamedTuple):
    """What the page is made of."""

    state: gr.HTML
    drop: gr.HTML
    people: gr.HTML
    others: gr.Button
    text: gr.Textbox
    search: gr.Button
    vocabulary: gr.HTML
    chosen: list[gr.Dropdown]
    more: gr.Textbox
    message: gr.HTML
    hits: gr.HTML
    words: gr.HTML
    body: gr.Model3D
    places: gr.HTML

    @property
    def filters(self) -> list[Any]:
        """Return what says among whom is searched."""
        return [*self.chosen, self.more]

    @property
    def answers(self) -> list[Any]:
        """Return what shows an answer."""
        return [self.message, self.hits, self.words, self.body, self.places]

    @property
    def opened(self) -> list[Any]:
        """Return what shows what there is to search."""
        return [self.state, self.people, self.others, self.vocabulary, *self.chosen]


def build_page(backend: Backend) -> gr.Blocks:
    """Return the page; it loads model and gallery when it is first looked at.

    Args:
        backend: what answers.
    """
    with gr.Blocks(title="clip3dreid", analytics_enabled=False) as page:
        parts = _lay_out(backend)
        _join(page, parts, backend)
    return page


def mount(app: Any, page: gr.Blocks) -> None:
    """Put the page at the root of an application of FastAPI."""
    gr.mount_gradio_app(
        app,
        page,
        "/",
        css=_file("page.css"),
        head=_FRAME,
        theme=_theme(),
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )


def _lay_out(backend: Backend) -> _Parts:
    """Lay out the page within the block that is open."""
    settings: ServeSettings = backend.settings
    made: dict[str, Any] = {"state": _html("state", markup.title(backend.state))}
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            made["drop"] = _html(
                "drop",
                html_template=_file("drop.html"),
                js_on_load=_file("drop.js"),
                pictures=settings.pictures,
                megabytes=settings.megabytes,
            )
            made["people"] = _html("people", js_on_load=_file("choose.js"))
            made["others"] = gr.Button("Others", size="sm", visible=False, elem_id="others")
            made["text"] = gr.Textbox(
                label="Or say what they look like",
                placeholder="a tall, heavyset man with broad shoulders",
                lines=2,
                elem_id="text",
            )
            made["search"] = gr.Button("Search by words", variant="primary", elem_id="search")
            made["vocabulary"] = _html("vocabulary")
            with gr.Accordion("Only among", open=False, elem_id="filters"):
                made["chosen"] = [
                    gr.Dropdown([], label=label, multiselect=True, visible=False, elem_id=label)
                    for label in _CHOICES
                ]
                made["more"] = gr.Textbox(
                    label="other labels", placeholder="person=[3,7] frame=[100,900]", elem_id="more"
                )
        with gr.Column(scale=5, min_width=300):
            reveal = {"js_on_load": _file("reveal.js")}
            made["message"] = _html("message", **reveal)
            made["hits"] = _html("hits", '<p class="quiet">Whoever is found is shown here.</p>', **reveal)
            with gr.Row():
                with gr.Column(scale=3, min_width=300):
                    made["words"] = _html("words")
                with gr.Column(scale=2, min_width=260):
                    made["body"] = _Body(
                        label="Body, without pose and clothes",
                        interactive=False,
                        visible=_HIDDEN,
                        height=420,
                        camera_position=(75, 85, 2.6),
                        elem_id="body",
                    )
            made["places"] = _html("places")
    return _Parts(**made)


def _html(name: str, value: str = "", **more: Any) -> gr.HTML:
    return gr.HTML(value or None, elem_classes="ours", elem_id=name, **more)


def _join(page: gr.Blocks, parts: _Parts, backend: Backend) -> None:
    """Join the parts of a page to what answers, within the block of the page."""
    line = WaitingLine(backend.settings.queue)
    # What was asked with last, to be asked again when the filter changes; and which people are offered.
    asked, offered = gr.State(""), gr.State(0)

    async def answered(
        ask: Callable[[Answering, dict[str, Any]], Answer], limits: tuple[Any, ...]
    ) -> list[Any]:
        def work() -> list[Any]:
            answering = backend.load()
            *values, typed = limits
            where = answering.where(dict(zip(_CHOICES, values, strict=True)), typed or "")
            return _shown(ask(answering, where))

        try:
            return await line.turn(work)
        except Exception as error:
            return _refused(_told(error))

    async def by_pictures(payload: Any, *limits: Any) -> list[Any]:
        return await answered(lambda who, where: who.ask_pictures(uploads_of(payload), where), limits)

    async def by_words(said: str | None, *limits: Any) -> list[Any]:
        return await answered(lambda who, where: who.ask_text(said or "", where), limits)

    async def pictures(*given: Any) -> list[Any]:
        return ["pictures", *await by_pictures(*given)]

    async def words(*given: Any) -> list[Any]:
        return ["words", *await by_words(*given)]

    async def somebody(event: gr.EventData, *limits: Any) -> list[Any]:
        try:
            upload = await line.turn(lambda: backend.load().picture(int(event.row)))
        except Exception as error:
            return [gr.skip(), gr.skip(), *_refused(_told(error))]
        one = {"name": upload.name, "data": data_url(upload.content, "image/png"), "path": upload.path}
        return ["pictures", {"pictures": [one]}, *await by_pictures({"pictures": [one]}, *limits)]

    async def again(how: str, payload: Any, said: str, *limits: Any) -> list[Any]:
        if not how:
            return [gr.skip()] * len(parts.answers)
        return await (by_pictures(payload, *limits) if how == "pictures" else by_words(said, *limits))

    async def others(last: int) -> list[Any]:
        return [last + 1, await line.turn(lambda: markup.people(backend.load().people(_SHOWN, last + 1)))]

    # The line above is the queue. In gradio's own, two questions of one page at a time now and then lose an answer:
    # their common stream is closed with the first.
    plain = {"queue": False, "api_visibility": "private"}
    busy = {**plain, "trigger_mode": "always_last", "show_progress_on": [parts.hits]}
    filters, answers = parts.filters, parts.answers
    parts.drop.submit(pictures, [parts.drop, *filters], [asked, *answers], **busy)
    parts.people.select(somebody, filters, [asked, parts.drop, *answers], **busy)
    parts.search.click(words, [parts.text, *filters], [asked, *answers], **busy)
    parts.text.submit(words, [parts.text, *filters], [asked, *answers], **busy)
    for changed in (*(label.change for label in parts.chosen), parts.more.submit):
        changed(again, [asked, parts.drop, parts.text, *filters], answers, **busy)
    parts.others.click(others, offered, [offered, parts.people], **plain, show_progress="hidden")

    timer = gr.Timer(_POLL_S)
    for looks in (page.load, timer.tick):
        looks(lambda: _opened(backend), None, [timer, *parts.opened], **plain, show_progress="hidden")


def _opened(backend: Backend) -> list[Any]:
    """Return what a page shows that has just been opened: how loading goes, until there is something to ask."""
    backend.start()
    nothing = [gr.skip()] * (3 + len(_CHOICES))
    if backend.is_loading:
        return [gr.skip(), markup.title(backend.state), *nothing]
    done = gr.Timer(active=False)
    if backend.has_failed:
        return [done, markup.title(backend.state, wrong=True), *nothing]
    answering = backend.load()
    values = [answering.values(label) for label in _CHOICES]
    return [
        done,
        markup.title(backend.state),
        markup.people(answering.people(_SHOWN, 0)),
        gr.update(visible=True),
        markup.vocabulary(answering.words()),
        *(gr.update(choices=own, visible=bool(own)) for own in values),
    ]


def _shown(answer: Answer) -> list[Any]:
    """Return what the parts of the page show of an answer."""
    return [
        markup.understood(answer),
        markup.hits(answer),
        markup.words(answer.words),
        gr.update(value=answer.body, visible=answer.body is not None or _HIDDEN),
        markup.places(answer.places, answer.words),
    ]


def _refused(why: str) -> list[Any]:
    return [markup.message(why, wrong=True), "", "", gr.update(value=None, visible=_HIDDEN), ""]


def _told(error: Exception) -> str:
    """Return one line for an error; what is a defect is in the log with its traceback."""
    told = one_line(error)
    if told is None:
        log.error("a question could not be answered", exc_info=error)
    return told or "something went wrong here; the terminal says what"


def _theme() -> Any:
    """Return gradio's own looks, with the machine's letters, which no other host is asked for, and readable greys."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_label_text_color="*neutral_700",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
    )


def _file(name: str) -> str:
    return (resources.files("clip3dreid.serving") / "static" / name).read_text(encoding="utf-8")
