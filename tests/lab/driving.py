"""Running stacklab as a user does, watching it, and killing it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import AnyStr

PROJECT = Path(__file__).resolve().parents[2]
INVOKE = Path(sys.executable).with_name("invoke")
LIMIT = 2400.0
"""Seconds that a command may take where a test does not say."""


@dataclass(frozen=True)
class Ran:
    """How a command ended and all that it said."""

    code: int
    output: str


def invoke(*words: str, timeout: float = LIMIT) -> Ran:
    """Run an Invoke task to its end; its output goes to the test's log as it comes."""
    started = time.monotonic()
    print(f"\n$ invoke {' '.join(words)}", flush=True)
    lines = []
    with ending(_start(words), timeout) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(f"{time.monotonic() - started:7.1f}  {line}", end="", flush=True)
        return Ran(process.wait(), "".join(lines))


def invoke_and_kill(*words: str, at: str, after: float, timeout: float = LIMIT) -> str:
    """Start a task; `after` seconds past the line that holds `at`, kill -9 it with all its children."""
    print(f"\n$ invoke {' '.join(words)}   (killed {after} s after '{at}')", flush=True)
    with ending(_start(words), timeout) as process:
        lines = _until(process, at)
        time.sleep(after)
        _kill_tree(process.pid)
        return "".join(lines)


def invoke_and_interrupt(*words: str, at: str, after: float, timeout: float = LIMIT) -> Ran:
    """Start a task; `after` seconds past the line that holds `at`, press Ctrl-C, once."""
    print(f"\n$ invoke {' '.join(words)}   (Ctrl-C {after} s after '{at}')", flush=True)
    # What a shell starts in the background ignores SIGINT, and so would all that it starts.
    with ending(_start(words, "env", "--default-signal=INT"), timeout) as process:
        lines = _until(process, at)
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        with ending(process, 60):  # soon after Ctrl-C
            assert process.stdout is not None
            lines += process.stdout
            print("".join(lines[-8:]), flush=True)
            return Ran(process.wait(), "".join(lines))


def _until(process: subprocess.Popen[str], at: str) -> list[str]:
    """The lines up to the one that holds `at`."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        print(f"         {line}", end="", flush=True)
        if at in line:
            return lines
    raise AssertionError(f"it ended before it said {at!r}")


@contextmanager
def ending(
    process: subprocess.Popen[AnyStr], timeout: float | None = None
) -> Iterator[subprocess.Popen[AnyStr]]:
    """The process ends with the block, with all its children; after `timeout` seconds already, as a failure.

    What hangs says nothing: its end is what ends the reading of its output.
    """
    late = threading.Event()

    def end() -> None:
        if process.returncode is None:
            late.set()
            _kill_tree(process.pid)

    timer = threading.Timer(timeout or 0, end)
    timer.daemon = True
    if timeout is not None:
        timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        if process.poll() is None:
            _kill_tree(process.pid)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        assert not late.is_set(), f"it did not end within {timeout} s and was killed: {process.args!r}"


def down(*labs: str) -> None:
    """Remove labs: all of them, whatever becomes of one; that one stays is a failure."""
    with ExitStack() as each:
        for lab in reversed(labs):
            each.callback(_down, lab)


def _down(lab: str) -> None:
    ran = invoke("down", "--lab", lab)
    assert ran.code == 0, ran.output


def lab_name(name: str) -> str:
    """A lab's name for a test; STACKLAB_TEST_PREFIX keeps two checkouts of one machine apart.

    A short one: a lab's name has 24 characters at most, and some tests use 20.
    """
    return os.environ.get("STACKLAB_TEST_PREFIX", "") + name


def environment() -> dict[str, str]:
    """The test's own, with containers for nodes: `auto` takes virtual machines where KVM works."""
    return {**os.environ, "INVOKE_PROVIDER": "lxc"}


def _start(words: tuple[str, ...], *before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, str(INVOKE), *words],
        cwd=PROJECT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        parent = int(text.rsplit(")", 1)[1].split()[1])
        found.setdefault(parent, []).append(int(stat.parent.name))
    return found


def _kill_tree(root: int) -> None:
    # Stopped first: what one of them starts after it was looked at would outlive it, as nobody's child.
    doomed: list[int] = []
    while new := [pid for pid in _tree(root) if pid not in doomed]:
        _send(new, signal.SIGSTOP)
        doomed += new
    _send(doomed, signal.SIGKILL)


def _tree(root: int) -> list[int]:
    children = _children()
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def footprint() -> dict[str, set[str]]:
    """What a lab could leave behind on the host."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    loops = subprocess.run(["losetup", "-l", "-n"], capture_output=True, text=True, check=True).stdout
    places = (
        "/run/netns",
        "/run/stacklab",
        "/run/lxc/lock",
        "/var/lib/lxc",
        str(PROJECT / ".stacklab" / "labs"),
    )
    return {
        "namespaces": {path.name for path in Path("/run/netns").glob("*")},
        "interfaces": set(re.findall(r"^\d+: ([^:@]+)", links, re.MULTILINE)),
        "mounts": {line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()},
        "loop devices": set(loops.splitlines()),
        "processes": {
            command for command in _commands() if re.search(r"lxc|vagrant|stacklab-|dib|packstack", command)
        },
        "files": {
            str(path) for place in places for path in [Path(place), *Path(place).rglob("*")] if path.exists()
        },
    }


# Where stacklab mounts something.
_PLACES = re.compile(r"stacklab|^/run/netns|^/run/lxc|^/var/lib/lxc|^/etc/lxc")


def left_of(lab: str, before: dict[str, set[str]]) -> dict[str, set[str]]:
    """What a lab that is gone left of what a footprint shows; `before` is from before the lab.

    That is what has its name. Where no other lab is on the machine it is more: all that came meanwhile,
    but for mounts that are nowhere near stacklab's.
    """
    after = footprint()
    # Not the name that another checkout's prefix makes of it.
    own = re.compile(rf"(?:stacklab-|(?<![\w-])){re.escape(lab)}")
    names = before["namespaces"] | after["namespaces"]
    alone = all(own.search(name) for name in names if name.startswith("stacklab-"))

    def counts(kind: str, entry: str) -> bool:
        if own.search(entry):
            return True
        return alone and (kind != "mounts" or bool(_PLACES.search(entry)))

    return {kind: {one for one in after[kind] - before[kind] if counts(kind, one)} for kind in after}


def _commands() -> set[str]:
    own = {os.getpid(), os.getppid()}
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if int(path.parent.name) in own:
            continue
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if words and "pytest" not in words and ".ci/run" not in words:
            found.add(words)
    return found
