"""What several tests of networks look at."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE_S


@pytest.fixture(scope="session")
def sixteen_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered world with sixteen dressed test people, of a seed that no network in the package has seen."""
    world = tmp_path_factory.mktemp("sixteen") / "world"
    command = [sys.executable, "-m", "clip3dreid", "synthesize", "layout=ltcc", f"out={world}", "seed=301"]
    command += [
        "train_people=1",
        "test_people=16",
        "layout.outfits=2",
        "layout.seen=2",
        "layout.test_pictures=2",
    ]
    subprocess.run([*command, "workers=0"], check=True, capture_output=True, timeout=PATIENCE_S)
    return world
