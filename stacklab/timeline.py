"""What was done to a lab, and when: the file timeline.jsonl in its directory.

Every command that changes a lab adds its steps to it, one line an event, each line by one
write: what was there before a kill is whole, and a line that a power cut tore is passed over.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from stacklab import files, redact, ui
from stacklab.errors import LabError
from stacklab.plan import Plan

FILE = "timeline.jsonl"
# A file longer than this (bytes) loses its oldest runs when the next one begins.
LIMIT = 1_000_000
KEPT_RUNS = 30

_current: Recorder | None = None


class Recorder:
    """Writes one run. All text is redacted; the answer file's values are not taken at all."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):
            _shorten(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()  # uploads say lines from threads of their own
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # after a torn line

    def close(self) -> None:
        """No more events."""
        os.close(self._descriptor)

    def event(self, kind: str, **values: Any) -> None:
        """Add one event with the time of now (seconds since the epoch).

        On a full disk it is left out: what frees the disk is recorded too.
        """
        line = json.dumps({"event": kind, "time": round(time.time(), 3), **_redacted(values)})
        with self._lock, suppress(OSError):
            os.write(self._descriptor, line.encode() + b"\n")

    # -- what ui tells -----------------------------------------------------------------

    def begin(self, title: str, stage: str) -> None:
        """A step begins."""
        self.event("begin", title=title, stage=stage)

    def end(self, failed: bool) -> None:
        """The innermost step is over."""
        self.event("end", failed=failed)

    def took(self, title: str, seconds: float, failed: bool) -> None:
        """Something that was no step is over."""
        self.event("took", title=title, seconds=round(seconds, 3), failed=failed)

    def said(self, text: str) -> None:
        """A line within the innermost step."""
        self.event("said", text=text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of results."""
        self.event("table", title=title, columns=list(columns), rows=[list(row) for row in rows])


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact.text(value)
    if isinstance(value, dict):
        return {name: _redacted(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(one) for one in value]
    return value


@contextmanager
def recorded(plan: Plan, command: str) -> Iterator[None]:
    """Record what the block does as one run of `command`, and how it ended."""
    global _current  # noqa: PLW0603 - one run a process
    recorder = Recorder(plan.directory / FILE)
    recorder.event("run", command=command, pid=os.getpid(), lab=_lab(plan), versions=_versions())
    before, _current = _current, recorder
    try:
        with ui.watched(recorder):
            yield
        recorder.event("over", result="done")
    except LabError as error:
        recorder.event("over", result="failed", error=error.message, hint=error.hint)
        raise
    except KeyboardInterrupt:
        recorder.event("over", result="interrupted")
        raise
    except BaseException as error:
        recorder.event("over", result="failed", error=f"{type(error).__name__}: {error}", hint="")
        raise
    finally:
        _current = before
        recorder.close()


def reused(what: str, name: str, how: str) -> None:
    """Note that something did not have to be made: `what` it is, its name, where it came from."""
    if _current is not None:
        _current.event("reused", what=what, name=name, how=how)


def _lab(plan: Plan) -> dict[str, Any]:
    """What a reader has to know of the plan; its answers may hold secrets and stay out."""
    return {
        "name": plan.lab,
        "topology": plan.topology.name,
        "provider": plan.provider,
        "distribution": plan.distribution,
        "release": plan.release,
        "packstack": plan.packstack,
        "datapath": plan.datapath,
        "nodes": [
            [node.fqdn, ", ".join(node.roles), node.management, node.cpus, node.memory, node.disk]
            for node in plan.topology.nodes
        ],
    }


def _versions() -> dict[str, str]:
    found = {"kernel": platform.release(), "Python": platform.python_version()}
    for name in ("stacklab", "diskimage-builder", "openstacksdk", "python-vagrant"):
        found[name] = metadata.version(name)
    return found


# -- reading -----------------------------------------------------------------------------


def read(path: Path) -> list[list[dict[str, Any]]]:
    """The events of every run, the oldest run first. Lines that are not whole are passed over."""
    runs: list[list[dict[str, Any]]] = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return runs
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict) or "event" not in event:
            continue
        if event["event"] == "run":
            runs.append([])
        if runs:
            runs[-1].append(event)
    return runs


def _shorten(path: Path) -> None:
    if not path.is_file() or path.stat().st_size <= LIMIT:
        return
    kept = read(path)[-KEPT_RUNS:]
    files.write(path, "".join(json.dumps(event) + "\n" for run in kept for event in run), mode=0o600)
