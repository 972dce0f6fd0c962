"""What a command says, in each of its ways."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io.launch import launch
from clip3dreid.io.progress import progress
from clip3dreid.io.talk import TerminalHandler, bars_wanted, say, talking


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.Logger("speaker")
    yield logger
    logger.handlers.clear()


def said(log: logging.Logger, output: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    """Lines on stdout and on stderr of a line, a table, a warning and an error."""
    log.addHandler(TerminalHandler(output))
    log.info("mere words")
    say(log, "epoch 1 of 2", {"event": "epoch", "epoch": 1, "loss": float("nan")})
    say(log, "a plain table", {"event": "results"}, printed=True)
    log.warning("careful")
    log.error("stopped")
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def test_people_read_every_line_but_what_is_printed_more_finely(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(log, "auto", capsys) == (["mere words", "epoch 1 of 2", "careful", "stopped"], [])


def test_quiet_leaves_errors(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(log, "quiet", capsys) == ([], ["stopped"])


def test_a_program_reads_an_object_a_line_and_nothing_else(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = said(log, "json", capsys)
    # JSON has no word for a number that is none.
    assert [json.loads(line) for line in out] == [
        {"event": "epoch", "epoch": 1, "loss": None},
        {"event": "results"},
    ]
    assert "NaN" not in out[0]
    assert err == ["careful", "stopped"]


@pytest.mark.parametrize("output", ["auto", "json"])
def test_of_further_processes_errors_alone_are_seen(
    output: str, log: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    launch.cache_clear()
    try:
        out, err = said(log, output, capsys)
    finally:
        launch.cache_clear()
    assert out + err == ["stopped"]


def test_the_log_s_file_has_all_of_it(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    log.addHandler(logging.StreamHandler(file))
    said(log, "quiet", capsys)
    assert file.getvalue().splitlines() == [
        "mere words",
        "epoch 1 of 2",
        "a plain table",
        "careful",
        "stopped",
    ]


def test_a_program_without_a_log_has_the_lines_printed(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    say(log, "epoch 1 of 2", {"event": "epoch"})
    say(log, "a table", {"event": "results"}, printed=True)
    assert capsys.readouterr().out == "epoch 1 of 2\n"


def test_no_bar_beside_results_alone_or_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert bars_wanted()
    for output in ("quiet", "json"):
        with talking(output):
            assert not bars_wanted()
            with progress("decoding", 3, keep=True) as update:
                update(3)
    assert bars_wanted()
    assert capsys.readouterr() == ("", "")


def test_a_way_to_talk_that_there_is_not_is_refused() -> None:
    with (
        pytest.raises(InputError, match="output=jsno is unknown; choose auto, quiet or json"),
        talking("jsno"),
    ):
        pass


def test_what_is_printed_beside_a_bar_stays_where_stdout_goes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rich would send it to the terminal that the bar is on."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal on stderr, as rich sees it
    with progress("decoding", 3) as update:
        update(1)
        sys.stdout.write("a line for the file\n")
    assert capsys.readouterr().out == "a line for the file\n"
