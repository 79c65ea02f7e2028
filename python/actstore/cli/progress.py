"""Progress of long work: a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.progress import Progress as Bar

_LINE_INTERVAL_SECONDS = 10.0


class Progress:
    """Shows `done` of `total` `unit` with a note, the rate and the time left. A context manager; silent if told so."""

    def __init__(self, total: int, unit: str, *, shown: bool, first: int = 0) -> None:
        self._total = total
        self._unit = unit
        self._first = self._done = first
        self._shown = shown
        self._started = time.monotonic()
        self._quiet_until = 0.0
        self._bar: Bar | None = None
        if shown and sys.stderr.isatty():
            self._bar = self._make_bar()

    def _make_bar(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(self._unit),
            TextColumn("{task.fields[note]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=Console(stderr=True))
        bar.add_task(self._unit, total=self._total, completed=self._first, note="")
        return bar

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the total are through; `note` is what else is worth knowing."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, note=f"{note}  {self._rate(done):.0f}/s".lstrip())
        elif self._shown and (time.monotonic() >= self._quiet_until or done == self._total):
            self._quiet_until = time.monotonic() + _LINE_INTERVAL_SECONDS
            typer.echo(self._line(done, note), err=True)

    def advance(self, more: int, note: str = "") -> None:
        """Show that `more` than before are through."""
        self.update(self._done + more, note)

    def _line(self, done: int, note: str) -> str:
        rate = self._rate(done)
        left = (self._total - done) / rate if rate else 0.0
        parts = [f"{done}/{self._total} {self._unit}", note, f"{rate:.0f}/s", f"ETA {left // 60:.0f}:{left % 60:02.0f}"]
        return "  ".join(part for part in parts if part)

    def _rate(self, done: int) -> float:
        return (done - self._first) / max(time.monotonic() - self._started, 1e-9)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
