"""Write what a page shows, as HTML. All that comes from pictures, labels or people is escaped."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from clip3dreid.serving.question import data_url

if TYPE_CHECKING:  # the page is there before torch is
    from PIL import Image

    from clip3dreid.inference.heads import Description
    from clip3dreid.serving.answering import Answer, Hit

_FIRST = ("person", "clothes", "camera")
"""Labels that stand below a hit, in this order."""


def title(state: str, *, wrong: bool = False) -> str:
    """Return the page's heading, and what there is to search."""
    return f"<h1>Find a person</h1>{message(state, wrong=wrong)}"


def message(text: str, *, wrong: bool = False) -> str:
    """Return a line about a question: what is wrong with it, which is read out at once, or how it was read."""
    kind = 'class="wrong" role="alert"' if wrong else 'role="status"'
    return f"<p {kind}>{escape(text)}</p>" if text else ""


def understood(answer: Answer) -> str:
    """Return how a question was read, and what else is to be said."""
    said = [f"Read as: {', '.join(answer.understood)}."] if answer.understood else []
    return message(" ".join([*said, *answer.notes]))


def hits(answer: Answer) -> str:
    """Return the people who were found, best first."""
    kind = "cosine" if answer.score == "cosine" else "fit of the words, in standard deviations"
    shown = "".join(f"<li>{_hit(hit, rank)}</li>" for rank, hit in enumerate(answer.hits, start=1))
    return f'<h2>The nearest {len(answer.hits)}</h2><ol class="hits">{shown}</ol><p class="quiet">Score: {kind}.</p>'


def _hit(hit: Hit, rank: int) -> str:
    labels = [f"{name} {hit.labels[name]}" for name in _FIRST if name in hit.labels] or [
        hit.path.rpartition("/")[2]
    ]
    every = "; ".join(f"{name} {value}" for name, value in hit.labels.items())
    caption = "".join(f"<br>{escape(label)}" for label in labels)
    if hit.picture is None:
        picture = '<div class="gone">not there</div>'
    else:
        picture = _image(hit.picture, f"hit {rank}: {', '.join(labels)}")
    return (
        f'<figure title="{escape(f"{hit.path} {every}")}">{picture}'
        f"<figcaption><b>{rank}. {hit.score:.3f}</b>{caption}</figcaption></figure>"
    )


def words(description: Description | None) -> str:
    """Return what the model says of a person: the best word of each group, its score, and the others."""
    if description is None:
        return ""
    rows = []
    for group, scored in description.items():
        best, *rest = scored
        others = ", ".join(f"{word.word} {word.score:+.1f}" for word in rest)
        rows.append(
            f'<tr><th scope="row">{escape(_titled(group))}</th><td>{escape(best.word)}</td>'
            f'<td class="score">{best.score:+.1f}</td><td class="rest">{escape(others)}</td></tr>'
        )
    head = '<tr><th scope="col">of</th><th scope="col">word</th><th scope="col" class="score">score</th>'
    return (
        '<h2>In words</h2><table class="words"><thead>'
        f'{head}<th scope="col" class="rest">the others</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        '<p class="quiet">Guesses of a body from a picture; scores in standard deviations from what the word '
        "scored on training pictures. They do not say who somebody is.</p>"
    )


def places(found: Sequence[tuple[str, str, Image.Image]], description: Description | None) -> str:
    """Return where in the first picture each word comes from."""
    if not found:
        return ""
    scores = {word.word: word.score for scored in (description or {}).values() for word in scored}
    figures = "".join(
        f"<figure>{_image(picture, f'where {word} comes from')}<figcaption>{escape(word)} "
        f"<span>{scores.get(word, 0):+.1f}</span></figcaption></figure>"
        for _, word, picture in found
    )
    return (
        f'<h2>Which part of the picture answers to which word</h2><div class="places">{figures}</div>'
        '<p class="quiet">The transport plan between the positions of the feature map and the words. Blue: '
        "nothing of the word comes from here; yellow: four times an even plan's share, or more. A white box marks "
        "the most of a word.</p>"
    )


def people(chosen: Sequence[tuple[int, Hit]]) -> str:
    """Return pictures of the gallery to choose from."""
    buttons = "".join(
        f'<button type="button" data-row="{row}">{_image(hit.picture, _who(hit, row))}</button>'
        for row, hit in chosen
        if hit.picture is not None
    )
    return f'<p class="quiet">or somebody of the gallery</p><div class="people">{buttons}</div>'


def vocabulary(groups: Mapping[str, Sequence[str]]) -> str:
    """Return the words that can be searched for, folded."""
    if not groups:
        return '<p class="quiet">This model has not learnt words (loss.local); search by picture.</p>'
    lines = "".join(
        f"<li>{escape(_titled(group))}: {escape(', '.join(own))}</li>" for group, own in groups.items()
    )
    return f'<details class="quiet"><summary>Words that are known</summary><ul>{lines}</ul></details>'


def _titled(group: str) -> str:
    return group.replace("_", " ")


def _who(hit: Hit, row: int) -> str:
    return f"person {hit.labels['person']}" if "person" in hit.labels else f"picture {row}"


def _image(picture: Image.Image, text: str) -> str:
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=88)
    url = data_url(written.getvalue(), "image/jpeg")
    width, height = picture.size
    return f'<img src="{url}" width="{width}" height="{height}" alt="{escape(text)}">'
