"""A tree that diskimage-builder made, without what differs from build to build.

What is left follows from the packages and the elements alone, so the same package set gives
the same tree, whatever the machine and the hour.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

from stacklab.errors import CommandFailed

# Part of an image's inputs: raise it when a tree of the same packages becomes another.
VERSION = 1

# Caches, logs and marks of one build, which their programs make anew; patterns below the root.
_REMOVED = (
    "dev/loop*",
    "etc/*-",
    "run/*",
    "tmp/*",
    "var/cache/apt/*.bin",
    "var/cache/debconf/*-old",
    "var/cache/fontconfig/*",
    "var/cache/ldconfig/aux-cache",
    "var/cache/man/*",
    "var/lib/apt/lists/*",
    "var/lib/dpkg/*-old",
    "var/lib/systemd/catalog/database",
    "var/lib/systemd/random-seed",
    "var/log/apt/*",
    "var/log/journal/*",
    "var/tmp/*",
)
_LOGS = "var/log"


def tree(root: Path, started: float) -> int:
    """Normalise the tree below `root`, whose build began at `started` (seconds since 1970).

    Returns the time that everything made during the build is given: that of the newest file
    that a package brought.
    """
    for name in ("proc", "sys"):
        # dib leaves them out together with what was mounted on them.
        (root / name).mkdir(mode=0o555, exist_ok=True)
    for pattern in _REMOVED:
        for path in root.glob(pattern):
            _remove(path)
    for path in (root / _LOGS).rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.truncate(path, 0)
    machine_id = root / "etc/machine-id"
    if machine_id.is_file() and machine_id.read_text(encoding="utf-8").strip() == "uninitialized":
        # Empty: else systemd goes through all presets at the first boot, for ten seconds when emulated.
        machine_id.write_text("", encoding="utf-8")
    return _clamp(root, int(started))


def digest(root: Path) -> str:
    """sha256 over the tree's names, owners, modes, times, attributes and contents, as one archive."""
    found = hashlib.sha256()
    argv = ["tar", "--create", "--format=pax", "--pax-option=exthdr.name=%d/%f,delete=atime,delete=ctime"]
    argv += ["--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(root), "."]
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        while block := process.stdout.read(1 << 20):
            found.update(block)
    if process.returncode:
        raise CommandFailed(f"{root} cannot be read as a whole")
    return found.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _clamp(root: Path, started: int) -> int:
    paths = [root, *root.rglob("*")]
    times = [(path, path.lstat()) for path in paths]
    brought = (int(found.st_mtime) for _, found in times if stat.S_ISREG(found.st_mode))
    epoch = max((when for when in brought if when < started), default=started)
    for path, found in times:
        # Whole seconds: what a filesystem keeps beyond them is the build's.
        when = min(int(found.st_mtime), epoch)
        os.utime(path, (when, when), follow_symlinks=False)
    return epoch
