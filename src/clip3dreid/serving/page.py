"""Lay out the page and join it to what answers. gradio is imported here alone, and here is nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

import gradio as gr

from clip3dreid.errors import InputError, one_line
from clip3dreid.io.lean import without_stubs
from clip3dreid.serving import markup
from clip3dreid.serving.backend import Backend
from clip3dreid.serving.question import data_url, uploads_of

if TYPE_CHECKING:
    from clip3dreid.serving.answering import Answer

log = logging.getLogger(__name__)

_SHOWN = 12
"""People of the gallery to choose from."""
_CHOICES = ("camera", "clothes")
"""Labels with a list of their own; the others are typed."""
_POLL_S = 0.25
_HIDDEN = "hidden"
"""Not seen, and there: gradio's viewer never loads where it comes and is given something at once."""


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


def build_page(backend: Backend) -> gr.Blocks:
    """Return the page; it loads model and gallery when it is first looked at.

    Args:
        backend: what answers.
    """
    settings = backend.settings
    with gr.Blocks(title="clip3dreid", analytics_enabled=False) as page:
        asked = gr.State("")
        state = gr.HTML(markup.title(backend.state), elem_classes="ours", elem_id="state")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                drop = gr.HTML(
                    html_template=_file("drop.html"),
                    js_on_load=_file("drop.js"),
                    pictures=settings.pictures,
                    megabytes=settings.megabytes,
                    elem_classes="ours",
                    elem_id="drop",
                )
                people = gr.HTML(js_on_load=_file("choose.js"), elem_classes="ours", elem_id="people")
                others = gr.Button("Others", size="sm", visible=False, elem_id="others")
                text = gr.Textbox(
                    label="Or say what they look like",
                    placeholder="a tall, heavyset man with broad shoulders",
                    lines=2,
                    submit_btn=False,
                    elem_id="text",
                )
                search = gr.Button("Search by words", variant="primary", elem_id="search")
                vocabulary = gr.HTML(elem_classes="ours", elem_id="vocabulary")
                with gr.Accordion("Only among", open=False, elem_id="filters"):
                    chosen = [
                        gr.Dropdown([], label=label, multiselect=True, visible=False, elem_id=label)
                        for label in _CHOICES
                    ]
                    more = gr.Textbox(
                        label="other labels",
                        placeholder="person=[3,7] frame=[100,900]",
                        elem_id="more",
                    )
            with gr.Column(scale=5, min_width=300):
                message = gr.HTML(elem_classes="ours", elem_id="message")
                hits = gr.HTML(
                    '<p class="quiet">Whoever is found is shown here.</p>',
                    elem_classes="ours",
                    elem_id="hits",
                )
                with gr.Row():
                    with gr.Column(scale=3, min_width=300):
                        words = gr.HTML(elem_classes="ours", elem_id="words")
                    with gr.Column(scale=2, min_width=260):
                        body = _Body(
                            label="Body, without pose and clothes",
                            interactive=False,
                            visible=_HIDDEN,
                            height=420,
                            camera_position=(75, 85, 3.0),
                            elem_id="body",
                        )
                places = gr.HTML(elem_classes="ours", elem_id="places")
        filters, answers = [*chosen, more], [message, hits, words, body, places]

        def among(limits: tuple[Any, ...]) -> Mapping[str, Any]:
            *values, typed = limits
            return backend.load().where(dict(zip(_CHOICES, values, strict=True)), typed or "")

        def by_pictures(payload: Any, *limits: Any) -> list[Any]:
            return _answered(lambda: backend.load().ask_pictures(uploads_of(payload), among(limits)))

        def by_words(said: str, *limits: Any) -> list[Any]:
            return _answered(lambda: backend.load().ask_text(said or "", among(limits)))

        def by_row(event: gr.EventData, *limits: Any) -> list[Any]:
            try:
                upload = backend.load().picture(int(event.row))
            except InputError as error:
                return [gr.skip(), gr.skip(), *_refused(str(error))]
            one = {"name": upload.name, "data": data_url(upload.content, "image/png"), "path": upload.path}
            return ["pictures", {"pictures": [one]}, *by_pictures({"pictures": [one]}, *limits)]

        def again(how: str, payload: Any, said: str, *limits: Any) -> list[Any]:
            if not how:
                return [gr.skip()] * len(answers)
            return by_pictures(payload, *limits) if how == "pictures" else by_words(said, *limits)

        how = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        busy = {**how, "show_progress_on": [hits]}
        drop.submit(
            lambda *given: ["pictures", *by_pictures(*given)], [drop, *filters], [asked, *answers], **busy
        )
        people.select(by_row, filters, [asked, drop, *answers], **busy)
        for ask in (search.click, text.submit):
            ask(lambda *given: ["words", *by_words(*given)], [text, *filters], [asked, *answers], **busy)
        for label in chosen:
            label.change(again, [asked, drop, text, *filters], answers, **busy)
        more.submit(again, [asked, drop, text, *filters], answers, **busy)

        seed = gr.State(0)
        shown = [state, people, others, vocabulary, *chosen]
        waiting = {"concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden"}
        page.load(_opening(backend), None, shown, **waiting)
        others.click(
            lambda last: [last + 1, markup.people(backend.load().people(_SHOWN, last + 1))],
            seed,
            [seed, people],
            **how,
            show_progress="hidden",
        )
    page.queue(max_size=settings.queue)
    return page


def mount(app: Any, page: gr.Blocks) -> None:
    """Put the page at the root of an application of FastAPI."""
    gr.mount_gradio_app(
        app,
        page,
        "/",
        css=_file("page.css"),
        theme=_theme(),
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )


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


def _opening(backend: Backend) -> Callable[[], AsyncIterator[list[Any]]]:
    """Return what tells a page that has just been opened how loading goes, until there is something to ask."""

    async def opening() -> AsyncIterator[list[Any]]:
        backend.start()
        nothing = [gr.skip()] * (3 + len(_CHOICES))
        last = None
        while backend.is_loading:
            if backend.state != last:
                last = backend.state
                yield [markup.title(last), *nothing]
            await asyncio.sleep(_POLL_S)
        if backend.has_failed:
            yield [markup.title(backend.state, wrong=True), *nothing]
            return
        answering = backend.load()
        values = [answering.values(label) for label in _CHOICES]
        yield [
            markup.title(backend.state),
            markup.people(answering.people(_SHOWN, 0)),
            gr.update(visible=True),
            markup.vocabulary(answering.words()),
            *(gr.update(choices=own, visible=bool(own)) for own in values),
        ]

    return opening


def _answered(ask: Callable[[], Answer]) -> list[Any]:
    """Return what all parts of the page show of an answer, or of why there is none."""
    try:
        answer = ask()
    except Exception as error:
        told = one_line(error)
        if told is None:
            log.exception("a question could not be answered")
        return _refused(told or "something went wrong here; the terminal says what")
    return [
        markup.understood(answer),
        markup.hits(answer),
        markup.words(answer.words),
        gr.update(value=answer.body, visible=answer.body is not None or _HIDDEN),
        markup.places(answer.places, answer.words),
    ]


def _refused(why: str) -> list[Any]:
    return [markup.message(why, wrong=True), "", "", gr.update(value=None, visible=_HIDDEN), ""]


def _file(name: str) -> str:
    return (resources.files("clip3dreid.serving") / "static" / name).read_text(encoding="utf-8")
