"""Running stacklab as a user does, watching it, and killing it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
INVOKE = Path(sys.executable).with_name("invoke")


@dataclass(frozen=True)
class Ran:
    """How a command ended and all that it said."""

    code: int
    output: str


def invoke(*words: str, timeout: float = 2400) -> Ran:
    """Run an Invoke task to its end; its output goes to the test's log as it comes."""
    started = time.monotonic()
    print(f"\n$ invoke {' '.join(words)}", flush=True)
    process = _start(words)
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        print(f"{time.monotonic() - started:7.1f}  {line}", end="", flush=True)
        assert time.monotonic() - started < timeout, "it did not end"
    return Ran(process.wait(), "".join(lines))


def invoke_and_kill(*words: str, at: str, after: float) -> str:
    """Start a task; `after` seconds past the line that holds `at`, kill -9 it with all its children."""
    print(f"\n$ invoke {' '.join(words)}   (killed {after} s after '{at}')", flush=True)
    process = _start(words)
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        print(f"         {line}", end="", flush=True)
        if at in line:
            time.sleep(after)
            _kill_tree(process.pid)
            break
    else:
        raise AssertionError(f"it ended before it said {at!r}")
    process.wait()
    process.stdout.close()
    return "".join(lines)


def invoke_and_interrupt(*words: str, at: str, after: float) -> Ran:
    """Start a task; `after` seconds past the line that holds `at`, press Ctrl-C, once."""
    print(f"\n$ invoke {' '.join(words)}   (Ctrl-C {after} s after '{at}')", flush=True)
    # What a shell starts in the background ignores SIGINT, and so would all that it starts.
    process = _start(words, "env", "--default-signal=INT")
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        print(f"         {line}", end="", flush=True)
        if at in line:
            time.sleep(after)
            process.send_signal(signal.SIGINT)
            break
    else:
        raise AssertionError(f"it ended before it said {at!r}")
    started = time.monotonic()
    lines += process.stdout
    print("".join(lines[-8:]), flush=True)
    code = process.wait()
    assert time.monotonic() - started < 60, "it did not end soon after Ctrl-C"
    return Ran(code, "".join(lines))


def lab_name(name: str) -> str:
    """A lab's name for a test; STACKLAB_TEST_PREFIX keeps two checkouts of one machine apart."""
    return os.environ.get("STACKLAB_TEST_PREFIX", "") + name


def _start(words: tuple[str, ...], *before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, str(INVOKE), *words],
        cwd=PROJECT,
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
    tree = _children()
    doomed = [root]
    for pid in doomed:
        doomed += tree.get(pid, [])
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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
