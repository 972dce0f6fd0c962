"""Let mkdocs see the pages where they lie in the repository, so that links mean the same there and on the site."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = (
    "*.md",
    "docs/*.md",
    "benchmarks/*.md",
    "src/clip3dreid/*/assets/*.md",
    "src/clip3dreid/*/assets/*/*.md",
)
OTHERS = (
    "notebooks/*.ipynb",
    "docs/*.jpg",
    "docs/*.png",
    "docs/*.svg",
    "docs/site/*",
    "CITATION.cff",
    "LICENSE",
)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Put the repository's pages and pictures in the place of those of `docs_dir` alone; the theme's own stay."""
    theirs = [one for one in files if not (one.abs_src_path or "").startswith(config.docs_dir)]
    ours = [
        File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path))
        for pattern in (*PAGES, *OTHERS)
        for path in sorted(ROOT.glob(pattern))
    ]
    return Files([*theirs, *ours])
