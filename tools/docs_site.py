"""Let mkdocs see the pages where they lie in the repository, so that links mean the same there and on the site.

Pages of docstrings are added to them, and names of the library in other pages lead there.
"""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import api_pages

ROOT = Path(__file__).parents[1]
REFERENCE = api_pages.Reference(api_pages.PAGE.read_text(encoding="utf-8"))
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
    "Dockerfile",
)


def on_config(config: MkDocsConfig, **_: Any) -> MkDocsConfig:
    """Put the pages of docstrings behind those that are written by hand."""
    config.nav = [*(config.nav or []), {"API": list(REFERENCE.pages)}]
    return config


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Put the repository's pages and pictures in the place of those of `docs_dir` alone; the theme's own stay."""
    theirs = [one for one in files if not (one.abs_src_path or "").startswith(config.docs_dir)]
    ours = [
        File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path))
        for pattern in (*PAGES, *OTHERS)
        for path in sorted(ROOT.glob(pattern))
    ]
    docstrings = [File.generated(config, path, content=content) for path, content in REFERENCE.pages.items()]
    return Files([*theirs, *ours, *docstrings])


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let names of the library lead to their docstrings."""
    return markdown if page.file.src_uri in REFERENCE.pages else REFERENCE.linked(markdown)
