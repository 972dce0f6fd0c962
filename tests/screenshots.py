"""Screenshots of what tests see in a browser, kept where somebody asks for them."""

import os
import re
from pathlib import Path
from typing import Any

FOLDER = "CLIP3DREID_SCREENSHOTS"
"""Environment variable: the folder that gets a PNG of each page, as it is when its test ends. Unset: none is made."""


def keep(page: Any, test: str) -> None:
    """Saves a page whole, under the name of the test that it was opened in."""
    if folder := os.environ.get(FOLDER):
        name = re.sub(r"[^\w.-]+", "_", test)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
