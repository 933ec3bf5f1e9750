"""Files that are whole or not there, hashes, and locks that die with their process."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stacklab import files
from stacklab.errors import Busy


def test_write_sets_text_and_mode_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    files.write(path, "first é\n")
    assert (path.read_text("utf-8"), path.stat().st_mode & 0o7777) == ("first é\n", 0o644)
    files.write(path, "second\n", mode=0o600)
    assert (path.read_text("utf-8"), path.stat().st_mode & 0o7777) == ("second\n", 0o600)
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_the_umask_does_not_change_a_mode(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.write(tmp_path / "file", "", mode=0o755)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o755


def test_a_reader_sees_the_old_text_until_the_new_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    files.write(path, "old")
    seen: list[tuple[str, str, int]] = []

    def power_cut(_: int) -> None:
        (partial,) = (entry for entry in tmp_path.iterdir() if entry != path)
        seen.append((partial.name, partial.read_text(), partial.stat().st_mode & 0o7777))
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="no space"):
        files.write(path, "new", mode=0o600)
    ((name, text, mode),) = seen
    assert (text, mode) == ("new", 0o600)  # secret from its first byte on
    # Whoever looks for *.json finds no half one.
    assert name.startswith(".") and not name.endswith(".json")
    assert path.read_text() == "old"


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, None, "é"], "a": {"c": True}}
    files.write_json(tmp_path / "x.json", value, mode=0o600)
    assert files.read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").stat().st_mode & 0o7777 == 0o600
    assert files.read_json(tmp_path / "none.json") is None


def test_digest_is_stable() -> None:
    assert files.digest("nodes", {"b": 1, "a": (1, 2)}) == files.digest("nodes", {"a": [1, 2], "b": 1})
    # Another process must find the same: a change here would build every image and lab anew.
    assert files.digest("a") == "0eb5b8d6f81bc677da8a08567cc4fa9a06a57e9ec8da85ed73a7f62727996002"


@pytest.mark.parametrize("other", [("a", "b", "c"), ("ab",), ("b", "a"), (["a", "b"],), ("a", "B")])
def test_digest_tells_values_apart(other: tuple[object, ...]) -> None:
    assert files.digest("a", "b") != files.digest(*other)


def tree(root: Path) -> Path:
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "script").write_text("#!/bin/sh\n")
    (root / "data").write_text("data")
    (root / "link").symlink_to("data")
    return root


def cache(root: Path) -> None:
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "x.pyc").write_text("x")


def relink(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("sub/script")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda root: (root / "data").write_text("date"), True),
        (lambda root: (root / "data").rename(root / "datum"), True),
        (lambda root: (root / "data").rename(root / "sub" / "data"), True),
        (lambda root: (root / "sub" / "script").chmod(0o755), True),
        (lambda root: (root / "new").touch(), True),
        (lambda root: (root / "data").unlink(), True),
        (relink, True),
        (lambda root: (root / "data").chmod(0o600), False),
        (lambda root: os.utime(root / "data", (1, 1)), False),
        (cache, False),
    ],
    ids=["content", "name", "place", "executable", "new", "gone", "link", "mode", "time", "bytecode"],
)
def test_tree_digest(change: Callable[[Path], object], differs: bool, tmp_path: Path) -> None:
    before = files.tree_digest(tree(tmp_path / "one"))
    other = tree(tmp_path / "two")
    assert files.tree_digest(other) == before
    change(other)
    assert (files.tree_digest(other) != before) is differs


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.lock"
    with files.lock(path, "the lab x"):
        with pytest.raises(Busy) as caught, files.lock(path, "the lab x"):
            pass
        assert caught.value.message == f"the lab x is in use by process {os.getpid()}"
        assert caught.value.hint
    with files.lock(path, "the lab x"):
        pass


def test_a_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), files.lock(tmp_path / "x.lock", "x"):
        raise KeyError
    with files.lock(tmp_path / "x.lock", "x"):
        pass


def test_waiting_for_a_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, order = tmp_path / "x.lock", []
    held = threading.Event()

    def hold() -> None:
        with files.lock(path, "the image"):
            held.set()
            time.sleep(0.7)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(5)
    with files.lock(path, "the image", wait=10):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    # Said once, not at every look.
    assert capsys.readouterr().err == f"waiting for process {os.getpid()} to finish with the image\n"


def test_a_lock_whose_directory_its_holder_removed(tmp_path: Path) -> None:
    """As `down` of the last lab does, while another command waits."""
    path, held = tmp_path / "labs" / "x.lock", threading.Event()

    def hold() -> None:
        with files.lock(path, "the lab"):
            held.set()
            time.sleep(0.7)
            path.unlink()
            path.parent.rmdir()

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(5)
    with files.lock(path, "the lab", wait=10):
        assert path.exists()
    holder.join()


def test_a_lock_file_that_its_holder_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "x.lock", fcntl.flock
    calls: list[int] = []

    def flock(handle: int, operation: int) -> None:
        if not calls:
            path.unlink()  # the holder's last act, just before this process gets its turn
        calls.append(handle)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.lock(path, "x"):
        assert path.exists()
        with pytest.raises(Busy), files.lock(path, "x"):
            pass


def test_a_kill_leaves_no_stale_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom stacklab import files\n"
        "with files.lock(Path(sys.argv[1]), 'x'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], cwd=files.PROJECT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"in use by process {holder.pid}$"), files.lock(path, "x"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with files.lock(path, "x"):
        assert path.read_text() == f"process {os.getpid()}"


def test_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_dir() == tmp_path / "stacklab"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/x")
    assert files.cache_dir() == Path("/home/x/.cache/stacklab")
