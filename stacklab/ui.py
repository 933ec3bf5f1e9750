"""All that stacklab says: timed step lines, tables, progress. Nothing else in the package prints.

Step lines go to standard error, results (tables, JSON) to standard output. On a
terminal a running step shows a spinner with its latest detail; elsewhere only plain
lines are written, so that a log stays readable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from stacklab import redact

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


class Watcher(Protocol):
    """Gets to know what is said, as it is said; the timeline is one."""

    def begin(self, title: str, stage: str) -> None:
        """A step begins; `stage` names the stage that it is, '' for all other steps."""

    def end(self, failed: bool) -> None:
        """The innermost step is over."""

    def took(self, title: str, seconds: float, failed: bool) -> None:
        """Something that was no step is over; it began `seconds` ago."""

    def said(self, text: str) -> None:
        """A line within the innermost step."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of results."""


_depth = 0
_status: Status | None = None
_watcher: Watcher | None = None


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher`, and nobody else, for as long as the block runs."""
    global _watcher  # noqa: PLW0603 - as below
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


def _console(stderr: bool = True) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def on_terminal() -> bool:
    """Whether a person watches the step lines."""
    return sys.stderr.isatty()


def duration(seconds: float) -> str:
    """Seconds as people read them: 0.4 s, 12 s, 3 min 05 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def size(count: float) -> str:
    """Bytes as people read them: 512 B, 13 MiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def clear() -> None:
    """Begin a new screen, on a terminal."""
    if sys.stdout.isatty():
        _console(stderr=False).clear()


def say(text: str, style: str = "") -> None:
    """One line at the current depth of steps."""
    if _watcher is not None:
        _watcher.said(text)
    _line(text, style)


def took(title: str, seconds: float, *, failed: bool = False) -> None:
    """A line for something that is over and was no step of its own."""
    if _watcher is not None:
        _watcher.took(title, seconds, failed)
    _line(f"{title}: {'failed' if failed else 'done'} after {duration(seconds)}")


def _line(text: str, style: str = "") -> None:
    line = "  " * _depth + redact.text(text)
    if on_terminal():
        _console().print(line, style=style or None, markup=False)
    else:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def warn(text: str) -> None:
    """A line that must not be overlooked."""
    say(f"warning: {text}", style="bold yellow")


def detail(text: str) -> None:
    """What the running step is doing just now; seen on a terminal only."""
    if _status is not None:
        _status.update(redact.text(text))


def amount(done: int, total: int) -> None:
    """`detail` for a download: bytes so far of bytes in all, 0 when nobody knows."""
    detail(f"{done >> 20} of {total >> 20} MiB" if total else f"{done >> 20} MiB")


@contextmanager
def step(title: str, stage: str = "") -> Iterator[None]:
    """A timed, nestable step: its title now, its duration at the end. `stage`: the stage that it is."""
    global _depth, _status  # noqa: PLW0603 - one terminal, one state
    start = time.monotonic()
    watcher = _watcher
    if watcher is not None:
        watcher.begin(title, stage)
    _line(title, style="bold")
    _depth += 1
    outer = _status
    if on_terminal() and outer is None:
        _status = _console().status("")
        _status.start()
    failed = True
    try:
        yield
        failed = False
        _line(f"done in {duration(time.monotonic() - start)}", style="green")
    except BaseException:
        _line(f"failed after {duration(time.monotonic() - start)}", style="red")
        raise
    finally:
        if watcher is not None:
            watcher.end(failed)
        _depth -= 1
        if outer is None and _status is not None:
            _status.stop()
            _status = None


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output."""
    if _watcher is not None:
        _watcher.table(title, columns, rows)
    from rich import box
    from rich.table import Table

    grid = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in columns:
        grid.add_column(column)
    for row in rows:
        grid.add_row(*(redact.text(cell) for cell in row))
    console = _console(stderr=False)
    if not sys.stdout.isatty():
        console.width = 160
    console.print(grid, markup=False)


def out(text: str) -> None:
    """A result on standard output, as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()
