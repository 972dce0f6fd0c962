"""The pages as a site: it builds without a warning, asks no other host for anything, and everybody can read it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE_S

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        # Not --quiet: what is not said is not counted, and a warning would be none.
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_on_it_and_none_asks_another_host(site: Path) -> None:
    pages = {page.relative_to(ROOT).with_suffix(".html") for page in (ROOT / "docs").glob("*.md")}
    assert {path for path in pages if not (site / path).is_file()} == set()
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|iframe|link)[^>]*?(?:src|href)="(https?:[^"]+)"',
            page.read_text(encoding="utf-8"),
        )
        assert loaded == [], page


def test_names_on_a_page_lead_to_their_docstrings(site: Path) -> None:
    page = (site / "docs/api.html").read_text(encoding="utf-8")
    (file, anchor), *_ = re.findall(r'href="(reference/\w+\.html)#(clip3dreid\.training\.run\.train)"', page)
    docstring = (site / "docs" / file).read_text(encoding="utf-8")
    assert f'id="{anchor}"' in docstring
    assert "Train a student and evaluate it under every protocol of its data." in docstring
    # The prompts of an example are code; as text they would be quotations in quotations.
    for reference in (site / "docs/reference").glob("*.html"):
        assert "<blockquote>" not in reference.read_text(encoding="utf-8"), reference


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("page", ["index.html", "docs/ablation.html", "docs/reference/search.html"])
def test_everybody_can_read_it(site: Path, page: str) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for scheme in ("light", "dark"):
            tab = browser.new_page(color_scheme=scheme)
            tab.goto((site / page).as_uri())
            tab.wait_for_load_state("load")
            broken = Axe().run(tab).response["violations"]
            assert [one["id"] for one in broken if one["impact"] in ("serious", "critical")] == [], scheme
        browser.close()
