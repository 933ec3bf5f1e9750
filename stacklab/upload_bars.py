"""How uploads show how far they are: a bar for each on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from stacklab import ui
from stacklab.glance_send import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_EVERY = 30.0  # seconds between two plain lines of the same upload


class Display(Protocol):
    """Called by the threads that upload."""

    def begin(self, name: str, size: int) -> Progress:
        """An upload of `size` bytes begins; the result is told how far it is."""

    def end(self, name: str, text: str) -> None:
        """It has ended; `text` says how."""


@contextmanager
def display() -> Iterator[Display]:
    """What fits where the messages go: for as long as the block runs, nothing else writes there."""
    if not ui.on_terminal():
        yield Lines()
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=30),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True, highlight=False)) as bars:
        yield Bars(bars)


class Bars:
    """One bar for each upload."""

    def __init__(self, bars: RichProgress) -> None:
        self.bars = bars
        self.tasks = {}  # type: ignore[var-annotated]

    def begin(self, name: str, size: int) -> Progress:
        """See Display."""
        task = self.tasks[name] = self.bars.add_task(name, total=size)
        return lambda sent, _size: self.bars.update(task, completed=sent)

    def end(self, name: str, text: str) -> None:
        """See Display."""
        self.bars.update(self.tasks[name], description=f"{name}: {text}")
        self.bars.stop_task(self.tasks[name])


class Lines:
    """A line when an upload begins, each half minute, and when it ends."""

    def begin(self, name: str, size: int) -> Progress:
        """See Display."""
        ui.say(f"{name}: uploading {amount(size)}")
        last = time.monotonic()

        def told(sent: int, size: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _EVERY:
                last = time.monotonic()
                ui.say(f"{name}: {100 * sent // max(size, 1)} %, {amount(sent)} of {amount(size)}")

        return told

    def end(self, name: str, text: str) -> None:
        """See Display."""
        ui.say(f"{name}: {text}")


def amount(size: float) -> str:
    """Bytes as people read them: 900 B, 12.3 MiB, 1.0 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
