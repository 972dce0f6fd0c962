"""Report finished runs: one page, or Markdown, of all that their files, pictures and checkpoints tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clip3dreid.comparison.runs import run_folders
from clip3dreid.errors import InputError
from clip3dreid.io.run_folder import RESULTS
from clip3dreid.report.document import Block, Document, Section, section
from clip3dreid.report.html import write_html
from clip3dreid.report.markdown import write_markdown
from clip3dreid.report.tables import percent
from clip3dreid.review import recorded, several
from clip3dreid.review.run import ReviewedRun, read_run
from clip3dreid.review.settings import PublishedScore, ReportSettings

if TYPE_CHECKING:  # loads torch, which a report of files alone does without
    from clip3dreid.review.looked import Looked
    from clip3dreid.training.data import RunData

Sources: TypeAlias = "Callable[[Mapping[str, Any]], RunData]"
"""Makes of a run's config its data set proper, with the protocols that it is evaluated under."""

_TITLES = {
    "scores": "Scores",
    "cmc": "CMC curves",
    "training": "Training",
    "ranked_lists": "Ranked lists",
    "clothes_failures": "Lost when clothes change",
    "distances": "Distances",
    "words": "Words",
    "plans": "Which part answers to which word",
    "maps": "Activation maps",
    "bodies": "Bodies",
    "embedding_map": "Embedding map",
    "configuration": "Configuration",
    "environment": "Environment",
    "cost": "Cost",
}
"""Part -> its heading."""
_LOOKED = ("ranked_lists", "clothes_failures", "distances", "plans", "maps", "bodies", "embedding_map")
"""Parts that need pictures and checkpoint."""


def write_report(
    runs: Path | str | Sequence[Path | str],
    out: Path | str,
    settings: ReportSettings | None = None,
    *,
    data: Sources | RunData | None = None,
    published: Sequence[PublishedScore] = (),
    progress: bool = False,
) -> Path:
    """Report one finished run, or several side by side.

    What needs pictures or checkpoint is there if these are, and else left out with the reason; a page never fails for
    it.

    Args:
        runs: a run's folder; or several, or folders that hold some anywhere below.
        out: folder to write to: `report.html`, or `report.md` with its figures.
        settings: what is reported; None: everything, as HTML.
        data: the run's data set proper with its protocols, or what makes it of the run's config; None: pictures are
            not looked at.
        published: scores of others, shown beside those of the same data set and protocol.
        progress: show a bar while pictures are looked at.

    Returns:
        The page.

    Raises:
        InputError: if a run is not finished or its results are damaged, or the page cannot be written.

    Example:
        >>> from clip3dreid.review.report import write_report
        >>> write_report("runs/ltcc/2026-11-24_18-00-00_seed1", "report")  # doctest: +SKIP
    """
    settings = settings or ReportSettings()
    given = [runs] if isinstance(runs, Path | str) else list(runs)
    read = [read_run(folder, settings.checkpoint) for folder in _folders([Path(one) for one in given])]
    single = len(read) == 1
    made = _of_one(read[0], settings, data, published, progress) if single else _of_several(read, settings)
    write = write_html if settings.format == "html" else write_markdown
    return write(made, Path(out).expanduser())


def _folders(given: Sequence[Path]) -> list[Path]:
    """Return the folders of finished runs at and below those that are given, each once."""
    if not given:
        raise InputError("no run is given; name its folder: clip3dreid report run=FOLDER")
    found: dict[Path, Path] = {}
    for path in given:
        below = (
            []
            if (path / RESULTS).exists()
            else [one for one in run_folders(path) if (one / RESULTS).exists()]
        )
        # What is no run says so where it is read.
        for folder in below or [path]:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _of_one(
    run: ReviewedRun,
    settings: ReportSettings,
    data: Sources | RunData | None,
    published: Sequence[PublishedScore],
    progress: bool,
) -> Document:
    @cache
    def reason_or_looked() -> Looked | str:
        # Each part says why it is left out; pictures are looked at once.
        try:
            return _looked(run, settings, data, progress)
        except InputError as reason:
            return str(reason)

    def made_of_pictures(part: str) -> Sequence[Block]:
        seen = reason_or_looked()
        if isinstance(seen, str):
            raise InputError(seen)
        from clip3dreid.review import looked

        blocks: list[Block] = getattr(looked, part)(seen)
        return blocks

    makers: dict[str, Callable[[], Sequence[Block]]] = {
        "scores": partial(recorded.scores, run, published),
        "cmc": partial(recorded.curves, run),
        "training": partial(recorded.training, run),
        "words": partial(recorded.words, run),
        "configuration": partial(recorded.configuration, run),
        "environment": partial(recorded.environment, run),
        "cost": partial(recorded.cost, run),
        **{part: partial(made_of_pictures, part) for part in _LOOKED},
    }
    parts = [part for part in _TITLES if part not in settings.without]
    scores, one = run.scores, run.evaluation
    bounds = scores.get("interval") or {}
    headline = ", ".join(
        f"{name} {percent(scores[key], bounds.get(key))} %" for key, name in (("r1", "R1"), ("map", "mAP"))
    )
    return Document(
        title=f"{run.name} on {one.data}",
        subtitle=f"{one.headline}: {headline}; chance R1 {percent(scores['chance_r1'], None)} %; {one.checkpoint} "
        f"checkpoint, metric {run.results.metric or 'not recorded'}",
        sections=[section(part, _TITLES[part], makers[part]) for part in parts],
        footer=_footer(),
    )


def _looked(
    run: ReviewedRun, settings: ReportSettings, data: Sources | RunData | None, progress: bool
) -> Looked:
    if data is None:
        raise InputError("no data set was given, so no picture was looked at")
    source = data(run.config) if callable(data) else data
    from clip3dreid.review.looked import Looked
    from clip3dreid.review.pictures import look_at_test

    if source.name != run.evaluation.data:
        raise InputError(f"the data set is {source.name}, and the run was tested on {run.evaluation.data}")
    return Looked(run, look_at_test(run, source, settings, progress), settings)


def _of_several(runs: Sequence[ReviewedRun], settings: ReportSettings) -> Document:
    makers: dict[str, tuple[str, Callable[[], Sequence[Block]]]] = {
        "comparison": ("Comparison", partial(several.comparison, runs, settings)),
        "scores": (_TITLES["scores"], partial(several.scores, runs)),
        "cmc": (_TITLES["cmc"], partial(several.curves, runs)),
        "training": (_TITLES["training"], partial(several.training, runs)),
        "configuration": (_TITLES["configuration"], partial(several.configuration, runs)),
        "cost": (_TITLES["cost"], partial(several.cost, runs)),
    }
    sections: list[Section] = [
        section(part, title, make) for part, (title, make) in makers.items() if part not in settings.without
    ]
    names = several.names_of(runs)
    data = ", ".join(dict.fromkeys(run.evaluation.data for run in runs))
    return Document(
        title=f"{len(runs)} runs on {data}",
        subtitle=", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else ""),
        sections=sections,
        footer=_footer(),
        notes=["Pictures, words and bodies are in the reports of single runs: clip3dreid report run=FOLDER."],
    )


def _footer() -> str:
    return f"Made by clip3dreid {version('clip3dreid')} (clip3dreid report)."
