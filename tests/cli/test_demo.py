from pathlib import Path
from typing import Any

import pytest

TINY_WORLD = (
    "train_people=4",
    "test_people=3",
    "workers=0",
    "rendering=['height=32','width=16','antialias=1']",
)
TRAINING = ("epochs=2", "milestones=[1]", "clothes_start_epoch=1")
SIZES = ("datamodule.people=2", "datamodule.pictures=2", "datamodule.workers=0")
TINY_TRAINING = f"training=[{','.join(repr(key) for key in (*TRAINING, *SIZES))}]"


@pytest.mark.slow
def test_the_demo_makes_people_trains_and_uses_what_exists(tmp_path: Path, command: Any) -> None:
    first = command("demo", "out=demo", *TINY_WORLD, TINY_TRAINING)
    assert first.returncode == 0, first.stderr
    for protocol in ("general", "same_clothes", "clothes_changing"):
        assert protocol in first.stdout
    out = tmp_path / "demo"
    (sheet,) = out.glob("people_*.jpg")
    results = [next(out.glob(f"{method}_*/results.json")) for method in ("ce", "clip3dreid")]
    assert next(out.glob("compare_*/compare.png")).stat().st_size
    assert "understood: tall, heavyset, masculine, broad shoulders" in first.stdout
    (found,) = out.glob("found_*.jpg")
    assert found.stat().st_size
    made = (sheet, *results, out / "world" / "truth.parquet")
    before = {path: path.stat().st_mtime_ns for path in made}
    again = command("demo", "out=demo", *TINY_WORLD, TINY_TRAINING)
    assert again.returncode == 0, again.stderr
    assert "complete already" in again.stdout
    assert "holds a finished training" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_step_that_fails_ends_the_demo_with_its_line_and_status(tmp_path: Path, command: Any) -> None:
    (tmp_path / "demo" / "world").mkdir(parents=True)
    (tmp_path / "demo" / "world" / "mine.txt").write_text("keep")
    done = command("demo", "out=demo", *TINY_WORLD)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (tmp_path / "demo" / "world" / "mine.txt").read_text() == "keep"
    assert not list((tmp_path / "demo").glob("ce_*"))
