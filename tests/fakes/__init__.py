"""Tools that are not on this machine, faked: programs on PATH that record their argv.

Each keeps what it was told in one JSON file and refuses what the real tool refuses in that
state, so that commands in a wrong order fail here as they would there.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Fake:
    """One faked tool."""

    name: str
    place: Path

    def calls(self) -> list[str]:
        """The command lines that it was called with, in order, without its own name."""
        log = self.place / "calls"
        return log.read_text(encoding="utf-8").splitlines() if log.is_file() else []

    def forget(self) -> None:
        """Forget the calls so far."""
        (self.place / "calls").unlink(missing_ok=True)

    @property
    def state(self) -> dict[str, Any]:
        """What it knows."""
        found: dict[str, Any] = json.loads((self.place / "state").read_text(encoding="utf-8"))
        return found

    def set(self, state: dict[str, Any]) -> None:
        """Let it know this."""
        (self.place / "state").write_text(json.dumps(state), encoding="utf-8")


def install(name: str, place: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any]) -> Fake:
    """Put the fake of a tool first on PATH; `place` is an empty directory of the test's own."""
    program = place / "bin" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    module = HERE / f"{name.lower()}.py"
    words = [sys.executable, "-I", "-S", str(module), str(place)]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    fake = Fake(name, place)
    fake.set(state)
    return fake
