import sys
import warnings

import pytest

from clip3dreid.io.progress import progress


def test_a_bar_that_stays_says_how_many_of_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("drawing", 3, keep=True) as update:
        for done in range(4):
            update(done)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "drawing" in captured.err
    assert "3/3" in captured.err


def test_a_notebook_without_widgets_is_not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with progress("drawing", 3) as update:
            update(3)
