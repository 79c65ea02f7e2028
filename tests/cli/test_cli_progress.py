"""Progress: lines in a log, a bar on a terminal, nothing where it is not wanted."""

import io
import sys

import pytest

from actstore.cli.progress import Progress


def test_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, "things", shown=True) as progress:
        for done in (1, 2, 3):
            progress.update(done, f"note {done}")
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("1/3 things  note 1  ")
    assert last.startswith("3/3 things  note 3  ")
    assert last.endswith("ETA 0:00")


def test_work_that_was_done_before_does_not_count_for_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1000, "things", shown=True, first=998)
    progress._started -= 10
    progress.advance(1)
    assert capsys.readouterr().err == "999/1000 things  0/s  ETA 0:10\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Progress(3, "things", shown=True) as progress:
        progress.advance(3, "the note")
    shown = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "3/3" in shown
    assert "the note" in shown
    assert "/s" in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(3, "things", shown=False) as progress:
        progress.update(3)
    assert stream.getvalue() == ""
