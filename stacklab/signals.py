"""SIGTERM and SIGHUP as Ctrl-C: a closed terminal or a supervisor is no reason to leave programs behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LIKE_CTRL_C = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """While the block runs, either raises KeyboardInterrupt, where nobody handles or ignores it (`nohup`)."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in _LIKE_CTRL_C:
            if signal.getsignal(number) == signal.SIG_DFL:
                handlers[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
