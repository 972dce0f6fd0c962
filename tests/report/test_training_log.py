from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.report.training_log import read_log


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_parts_of_a_resumed_run_are_one_line_and_the_later_one_counts(tmp_path: Path) -> None:
    write(tmp_path / "csv" / "metrics.1.csv", "step,loss/a,lr\n0,,0.1\n1,5.0,\n2,4.0,\n3,99.0,\n")
    write(tmp_path / "csv" / "metrics.2.csv", "step,loss/a\n3,3.0\n4,98.0\n")
    write(tmp_path / "csv" / "metrics.10.csv", "step,loss/a\n4,2.0\n")
    write(tmp_path / "csv" / "metrics.csv", "step,loss/a,loss/b\n5,1.0,7.0\n6,nan,\n")
    write(tmp_path / "csv" / "metrics.old.csv", "step,loss/a\n0,77.0\n")
    found = read_log(tmp_path)
    assert list(found) == ["loss/a", "loss/b", "lr"]
    assert found["loss/a"].x.tolist() == [1, 2, 3, 4, 5]
    assert found["loss/a"].y.tolist() == [5, 4, 3, 2, 1]
    assert found["lr"].y.tolist() == [0.1]


def test_a_run_without_logs_has_no_lines(tmp_path: Path) -> None:
    assert read_log(tmp_path) == {}
    write(tmp_path / "csv" / "metrics.csv", "step,loss/a\n")
    assert read_log(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\x01\x02"])
def test_a_damaged_file_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    write(tmp_path / "csv" / "metrics.csv", text)
    with pytest.raises(InputError, match=r"metrics.csv cannot be read as what a training logged"):
        read_log(tmp_path)
