"""What is wrong with a command is said before anything heavy is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE_S

HEAVY = {"torch", "lightning", "transformers"}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("synthesize", ["layout=ltcc", "out=w", "height=3"], "height=3 must be a whole number, 16 or more"),
        ("synthesize", ["layout=ltcc", "out=w", "world.places=0"], "world.places=0"),
        ("synthesize", ["layout=ltcc"], "out is not set"),
        ("inspect_data", [], "no data set: give data=NAME"),
        ("inspect_data", ["data=ltcc"], "data.root is not set"),
        ("inspect_data", ["data=ltcc", "data.root=.", "workers=few"], "workers=few"),
        ("pack", ["out=p"], "no data set: give data=NAME"),
        ("pack", ["data=ltcc", "data.root=.", "out=p", "height=tall"], "height=tall"),
        ("blur_faces", ["source=.", "out=b", "workers=-1"], "workers=-1"),
        ("blur_faces", ["source=.", "out=b", "on_error=ignore"], "on_error=ignore is unknown"),
    ],
)
def test_a_wrong_value_is_told_without_torch(
    command: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    code = (
        f"import sys; from clip3dreid.cli.{command} import main; sys.argv[1:] = {arguments!r}\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 2\nelse:\n    raise AssertionError\n"
        f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
