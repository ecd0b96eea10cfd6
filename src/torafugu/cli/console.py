"""How the commands talk: tables and progress on the terminal, plain lines where there is none.

Results go to stdout, everything else to stderr, so that output can be piped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

__all__ = ["Stages", "err", "out", "percent", "print_table", "usd"]

_PIPED_COLUMNS = 200
"""Where there is no terminal, nothing is cut to fit one."""

# What is printed is names, paths and workers' words: brackets and colons in them mean nothing.
out = Console(
    markup=False, emoji=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPED_COLUMNS
)
err = Console(markup=False, emoji=False, highlight=False, soft_wrap=True, stderr=True)


class Stages:
    """A progress bar for each stage of a long command. Without a terminal: one line when a stage ends."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
            disable=not err.is_terminal,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._done = self._total = 0

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, name: str, total: int) -> None:
        self._task = self._progress.add_task(escape(name), total=total)
        self._name, self._done, self._total = name, 0, total

    def advance(self, units: int) -> None:
        if self._task is None:
            return
        self._progress.advance(self._task, units)
        self._done += units
        if self._done >= self._total and not err.is_terminal:
            self.say(f"{self._name}: {self._total} done")

    def describe(self, text: str) -> None:
        """Change what stands before the bar."""
        if self._task is not None:
            self._progress.update(self._task, description=escape(text))

    def say(self, line: str) -> None:
        err.print(line)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column left, the others right."""
    table = Table(title=title or None, title_justify="left")
    for number, column in enumerate(columns):
        widest = max((len(row[0]) for row in rows), default=0) if number == 0 else None  # never cut what names the row
        table.add_column(column, justify="left" if number == 0 else "right", min_width=widest)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def percent(share: float | None, *, sign: bool = False) -> str:
    """`63.6 %`; unknown is `-`."""
    if share is None:
        return "-"
    return f"{share * 100:+.1f} %" if sign else f"{share * 100:.1f} %"


def usd(amount: object) -> str:
    """`$0.00123`; unknown is `unknown`."""
    if amount is None:
        return "unknown"
    text = f"{float(str(amount)):.8f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.ljust(2, '0')}"
