"""Progress on long work: bars with time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

LINE_EVERY_SECONDS = 20.0


class Progress:
    """Shows what is being done and how long it will take.

    `track` gives a function to be called with how much is done, of `total`, and an optional remark.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Print one line, above any bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def track(self, description: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        """Show a bar to `total`, `done` of it already; the given `advance(done, remark="")` moves it."""
        if self.console.is_terminal:
            with self._bars() as bars:
                task = bars.add_task(description, total=total, completed=done, remark="")
                yield lambda done, remark="": bars.update(task, completed=done, remark=remark)
        else:
            yield self._lines(description, total, done)

    def _bars(self) -> Bars:
        return Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[remark]}"),
            console=self.console,
            transient=True,
        )

    def _lines(self, description: str, total: int, start: int) -> Callable[..., None]:
        began = last = time.monotonic()

        def advance(done: int, remark: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= LINE_EVERY_SECONDS and start < done < total:
                last = now
                left = (now - began) / (done - start) * (total - done)
                self.say(f"  {description}: {done}/{total}, {left:.0f} s left {remark}".rstrip())

        return advance
