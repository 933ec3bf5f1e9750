"""Files that are whole or not there: atomic writes, content hashes, locks, places."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stacklab import ui
from stacklab.errors import Busy

PROJECT = Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """Where golden images and guests live, shared by all labs ($XDG_CACHE_HOME/stacklab)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stacklab"


def labs_dir() -> Path:
    """Where the labs of this checkout keep their state."""
    return PROJECT / ".stacklab" / "labs"


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace `path` by `text` at once: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        partial.chmod(mode)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """`write` for a JSON value."""
    write(path, json.dumps(value, indent=2, sort_keys=True) + "\n", mode)


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def digest(*values: Any) -> str:
    """sha256 (hex) over values that JSON can hold; the same values give the same digest."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tree_digest(root: Path) -> str:
    """sha256 over the names, modes and contents of all files below `root`."""
    found = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file() or path.is_symlink()):
        if "__pycache__" in path.parts:
            continue
        found.update(str(path.relative_to(root)).encode() + b"\0")
        if path.is_symlink():
            found.update(b"link " + str(path.readlink()).encode())
        else:
            executable = b"x" if path.stat().st_mode & 0o100 else b"-"
            found.update(executable + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


@contextmanager
def lock(path: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` for as long as the block runs.

    The kernel drops it with the process, so a kill leaves no stale lock. Waits up to
    `wait` seconds, saying who holds it; then raises Busy.
    """
    deadline = time.monotonic() + wait
    told = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            continue  # who held it may have removed the directory, too
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have removed the file: then this lock is on nothing.
            if path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
                break
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            if time.monotonic() >= deadline:
                handle.close()
                raise Busy(
                    f"{what} is in use by {holder}", hint="wait for it to end, then try again"
                ) from None
            if not told:
                ui.say(f"waiting for {holder} to finish with {what}")
                told = True
            time.sleep(0.5)
        handle.close()
    with handle:
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield


def held(path: Path) -> bool:
    """Whether a process holds the lock file `path` just now."""
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def disk_usage(path: Path) -> int:
    """Bytes that a file, or everything below a directory, takes on the disk; hard links count once."""
    seen = set()
    total = 0
    for place in (path, *path.rglob("*")):
        try:
            found = place.lstat()
        except FileNotFoundError:
            continue  # nodes may be running
        if found.st_nlink == 1 or (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            total += found.st_blocks * 512
    return total
