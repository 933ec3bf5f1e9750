"""What the checks share: the lab, connections to its cloud, rows of the table, waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stacklab import ui
from stacklab.errors import NotHealthy
from stacklab.plan import Plan

# Everything that a check makes has a name that begins so, and is removed by it.
PREFIX = "stacklab-verify"


@dataclass(frozen=True)
class Row:
    """One line of the verification table: `seconds` since what it waits for began."""

    what: str
    result: str
    seconds: float


class Timer:
    """Makes rows with the seconds since it began."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def row(self, what: str, result: str) -> Row:
        """A row with what has passed until now."""
        return Row(what, result, time.monotonic() - self._start)


@dataclass
class Context:
    """A verification: openstacksdk connections as admin and demo, the instances that run."""

    plan: Plan
    admin: Any
    demo: Any
    servers: dict[str, Any] = field(default_factory=dict)

    def limit(self, seconds: float) -> float:
        """How many seconds this lab's nodes get for what should take others `seconds` at most."""
        return seconds * self.plan.patience

    @property
    def controller(self) -> str:
        """The controller's address."""
        return self.plan.topology.controller.management


def until(
    what: str,
    seconds: float,
    question: Callable[[], str],
    otherwise: Callable[[], NotHealthy] | None = None,
) -> str:
    """Ask every second until there is an answer, and return it; OSError (what requests raises) is none.

    After `seconds` raises what `otherwise` makes, by default NotHealthy that names `what`.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ui.detail(f"waiting for {what}")
        try:
            if answer := question():
                return answer
        except OSError:
            pass
        time.sleep(1)
    raise otherwise() if otherwise else NotHealthy(f"no {what} within {seconds:.0f} s")
