"""A run of the method, as small as it gets: trained once, and looked at by all."""

import contextlib
import io
import logging
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from clip3dreid.cli.train import main
from clip3dreid.config.review import run_source
from clip3dreid.review.looked import Looked
from clip3dreid.review.pictures import look_at_test
from clip3dreid.review.run import read_run
from clip3dreid.review.settings import ReportSettings
from tests.conftest import TINY


@pytest.fixture(scope="session")
def finished(ltcc_root: Path, guided: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that knows words and bodies."""
    folder = tmp_path_factory.mktemp("finished")
    asked = [
        *("data=ltcc", f"data.root={ltcc_root}", *TINY, "epochs=1", "loss=[identity,local,shape]", *guided),
        *("variant=all", "hydra.run.dir=run"),
    ]
    deterministic, root = torch.are_deterministic_algorithms_enabled(), logging.getLogger()
    before = root.level, list(root.handlers)
    # In this process, which has torch and Lightning already.
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["clip3dreid.train", *asked])
        main()
    GlobalHydra.instance().clear()
    torch.use_deterministic_algorithms(deterministic)
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    return folder / "run"


@pytest.fixture(scope="session")
def looked(finished: Path) -> Looked:
    """The run with its test pictures: 4 people in 2 outfits, 16 queries and 16 gallery pictures."""
    run, settings = read_run(finished, "last"), ReportSettings(queries=1, workers=0)
    return Looked(run, look_at_test(run, run_source(run.config), settings), settings)
