"""Report in one call, and make of a run's config its data set, wherever run and pictures come from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from clip3dreid.config import objects
from clip3dreid.config.renamed import renamed_config
from clip3dreid.errors import InputError
from clip3dreid.model.build import TARGET, is_trusted, trust_hint
from clip3dreid.review.settings import ReportSettings, published_scores

if TYPE_CHECKING:
    from clip3dreid.training.data import RunData

_OURS = re.compile(
    r"clip3dreid\.data\.datasets\.\w+\.read|clip3dreid\.retrieval\.protocol\.(Protocol|[a-z]+(_[a-z]+)*)"
    r"|hydra\.utils\.get_method",
    re.ASCII,
)
"""What a run's data may be made by, beside the packages that are trusted."""


def write_report(
    runs: Path | str | Sequence[Path | str],
    out: Path | str = "report",
    *,
    moved: Mapping[str, str] | None = None,
    published: str | None = "default",
    trusted: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Report one finished run, or several side by side, as `clip3dreid report` does.

    Args:
        runs: a run's folder; or several, or folders that hold some anywhere below.
        out: folder to write to: `report.html`, or `report.md` with its figures.
        moved: where folders of pictures are now, by where they were.
        published: option of `conf/published_scores`, shown beside the run's scores; None: nobody's.
        trusted: packages of your own whose classes a run or its checkpoint may name.
        settings: of `review.settings.ReportSettings`: `format`, `without`, `queries` …

    Returns:
        The page.

    Raises:
        InputError: if a run is not finished or its results are damaged, or the page cannot be written.

    Example:
        >>> import clip3dreid
        >>> clip3dreid.write_report("runs/mine", "report", without=("bodies",))  # doctest: +SKIP
    """
    from clip3dreid.config.hydra import composed
    from clip3dreid.review import report

    scores = []
    if published is not None:
        scores = published_scores(
            objects.plain(composed("report", f"published_scores={published}").published_scores)
        )
    return report.write_report(
        runs,
        out,
        ReportSettings(trusted=tuple(trusted), **settings),
        data=partial(run_source, moved=moved, trusted=trusted),
        published=scores,
    )


def moved_roots(cfg: DictConfig) -> dict[str, str]:
    """Return where folders of pictures are now, by where they were.

    Raises:
        InputError: if `moved` is no mapping of folders.
    """
    given = objects.plain(cfg.moved) or {}
    if not isinstance(given, dict) or any(value is None or not str(value) for value in given.values()):
        raise InputError(
            f"moved={given} must be {{OLD: NEW}}, folders of pictures, as 'moved={{/old: /new}}'"
        )
    return {str(old): str(new) for old, new in given.items()}


def run_source(
    config: Mapping[str, Any], moved: Mapping[str, str] | None = None, trusted: Sequence[str] = ()
) -> RunData:
    """Make of a run's config its data set proper, with its protocols.

    Args:
        config: as `config.yaml` of a run has it. It may come from anywhere: of what it names only readers of data
            sets and rules of protocols are used, or what the user trusts.
        moved: folder, or the beginning of one, as it was -> as it is now.
        trusted: packages of the user's own.

    Raises:
        InputError: if it names something else, holds no data set, or its pictures are not there.
    """
    whole = renamed_config(config)
    node = whole.get("data")
    if not isinstance(node, Mapping) or not node.get("root") or not node.get("name"):
        raise InputError("the run's config names no data set")
    kept = {"data": {**node, "also": {}}, "protocol": whole.get("protocol") or {}}
    for key, value in _values(kept, ""):
        if isinstance(value, str) and "${" in value:
            raise InputError(f"the run's config has something computed: {key}={value}; it is not looked up")
        last = key.rpartition(".")[2]
        named = last == TARGET or (last == "path" and isinstance(value, str) and "." in value)
        if named and not (isinstance(value, str) and (_OURS.fullmatch(value) or is_trusted(value, trusted))):
            raise InputError(
                f"the run's config names {value} at {key}, which reads no data set{trust_hint(value)}"
            )
    root = str(node["root"])
    now = _now(root, moved or {})
    if not now.expanduser().exists():
        where = f"{root}, now {now}" if str(now) != root else root
        raise InputError(
            f"the pictures are not there ({where}); say where they are: 'moved={{{root}: FOLDER}}'"
        )
    cfg: Any = OmegaConf.create(kept)
    cfg.data.root = str(now)
    from clip3dreid.config.training import run_data

    return run_data(cfg)[0]


def _now(root: str, moved: Mapping[str, str]) -> Path:
    """Return where a folder is now: by the longest beginning that is known to have moved."""
    parts = PurePath(root).parts
    for old in sorted(moved, key=lambda old: -len(PurePath(old).parts)):
        begin = PurePath(old).parts
        if parts[: len(begin)] == begin:
            return Path(moved[old], *parts[len(begin) :])
    return Path(root)


def _values(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield every plain value of nested settings with its dotted key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _values(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list | tuple):
        for place, value in enumerate(node):
            yield from _values(value, f"{prefix}.{place}")
    else:
        yield prefix, node
