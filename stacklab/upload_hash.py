"""The sha512 of files that stacklab did not build, taken once and remembered."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

from stacklab import files, ui
from stacklab.errors import LabError

# A file that changed just now may change again without its time of change showing it.
_YOUNG = 2.0
_LARGE = 256 << 20


def sha512_of(path: Path) -> str:
    """The sha512 of a file, in hex; remembered by its path, size and times of change.

    Raises LabError where there is no such file, and for one that changes while it is read.
    """
    return _opened(path, _sha512)


def digest_of(path: Path, algorithm: str) -> str:
    """The digest of a file by any algorithm, in hex. LabError as `sha512_of`."""
    if algorithm == "sha512":
        return sha512_of(path)
    return _opened(path, lambda _, handle: hashlib.file_digest(handle, _hasher(algorithm)).hexdigest())


def remembered(path: Path) -> str:
    """The sha512 that was taken of the file as it is; '' where it was not. LabError as `sha512_of`."""
    return _opened(path, _remembered)


def _opened(path: Path, look: Callable[[Path, BufferedReader], str]) -> str:
    try:
        with path.open("rb") as handle:
            return look(path.resolve(), handle)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        reason = {"FileNotFoundError": "is not there", "IsADirectoryError": "is a directory"}
        told = reason.get(type(error).__name__, "cannot be read by this user")
        raise LabError(f"{path} {told}", hint="give an image file") from error


class Later:
    """The digest of a file, taken while other work goes on, and only if it is not known.

    A program that is interrupted does not wait for it.
    """

    def __init__(self, path: Path, known: str = "", algorithm: str = "sha512") -> None:
        self._path, self._value, self._algorithm = path, known, algorithm
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in a thread."""
        if not self._value and self._thread is None:
            self._thread = threading.Thread(target=self._take, daemon=True)
            self._thread.start()

    def value(self, left: Callable[[], object]) -> str:
        """The digest, once it is there. `left` is called meanwhile, and may raise to give up."""
        self.start()
        while self._thread is not None and self._thread.is_alive():
            left()
            self._thread.join(0.5)
        if self._error is not None:
            raise self._error
        return self._value

    def _take(self) -> None:
        try:
            self._value = digest_of(self._path, self._algorithm)
        except BaseException as error:  # for the thread that wants the value
            self._error = error


def forget(path: Path) -> None:
    """Take the sha512 of this file anew the next time."""
    _place(path.resolve()).unlink(missing_ok=True)


def _hasher(algorithm: str) -> Callable[[], Any]:
    return lambda: hashlib.new(algorithm, usedforsecurity=False)


def _remembered(path: Path, handle: BufferedReader) -> str:
    try:
        kept = files.read_json(_place(path))
    except (ValueError, OSError):
        return ""
    state = {**_state(handle), "path": str(path), "sha512": ""}
    return str(kept["sha512"]) if isinstance(kept, dict) and {**kept, "sha512": ""} == state else ""


def _sha512(path: Path, handle: BufferedReader) -> str:
    if kept := _remembered(path, handle):
        return kept
    state = _state(handle)
    if state["size"] >= _LARGE:
        ui.say(f"taking the sha512 of {path.name}, once")
    found = hashlib.file_digest(handle, "sha512").hexdigest()
    if _state(handle) != state:
        raise LabError(f"{path} is changing while it is read", hint="wait until it is whole")
    if time.time() - state["ctime_ns"] / 1e9 > _YOUNG:
        files.write_json(_place(path), {**state, "path": str(path), "sha512": found})
    return found


def _state(handle: BufferedReader) -> dict[str, Any]:
    # The time of change of the inode tells of a copy that was given an older file's time and size.
    found = os.fstat(handle.fileno())
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}


def _place(path: Path) -> Path:
    return files.cache_dir() / "sha512" / f"{files.digest(str(path))[:24]}.json"
