"""What the faked tools share: their state, one call at a time, and their calls."""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Refused(Exception):
    """The real tool would end with an error."""


def main(act: Callable[[dict[str, Any], list[str]], str]) -> None:
    """Run one call: `act` changes the state and returns what is printed."""
    place, words = Path(sys.argv[1]), sys.argv[2:]
    with (place / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (place / "calls").open("a", encoding="utf-8") as log:
            log.write(" ".join(words) + "\n")
        state = json.loads((place / "state").read_text(encoding="utf-8"))
        try:
            said = act(state, words)
        except Refused as error:
            sys.exit(f"error: {error}")
        (place / "state").write_text(json.dumps(state), encoding="utf-8")
    sys.stdout.write(said)


def need(condition: object, why: str) -> None:
    """Refuse unless the condition holds."""
    if not condition:
        raise Refused(why)
