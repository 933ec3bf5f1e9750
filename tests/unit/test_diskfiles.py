"""Disks by Packer: what was deleted in the machine is not in the image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stacklab import diskfiles
from stacklab.errors import CommandFailed

OFFSET = 1 << 20
SECRET, KEPT = b"what a build leaves" * 100, b"what an image is for" * 100


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """One partition of 30 MiB with two files; one is deleted as a machine does it: its block stays."""
    for name, content in (("tree/secret", SECRET), ("tree/kept", KEPT)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    image = tmp_path / "disk.raw"
    image.touch()
    image.open("r+b").truncate(32 << 20)
    commands: tuple[tuple[list[str | Path], str], ...] = (
        (["sfdisk", "-q", image], "label: dos\nstart=2048, type=83\n"),
        (["mkfs.ext4", "-q", "-F", "-d", tmp_path / "tree", "-E", f"offset={OFFSET}", image, "30M"], ""),
        (["debugfs", "-w", "-R", "rm /secret", f"{image}?offset={OFFSET}"], ""),
    )
    for argv, text in commands:
        subprocess.run(argv, input=text, text=True, check=True, capture_output=True)
    return image


def test_deleted_files_leave_no_block(disk: Path, tmp_path: Path) -> None:
    assert SECRET in disk.read_bytes()
    # Blocks counted as used that are free: the first look has something to mend.
    argv = ["debugfs", "-w", "-R", "setb 7000 5", f"{disk}?offset={OFFSET}"]
    subprocess.run(argv, check=True, capture_output=True)
    diskfiles.forget_deleted(disk, tmp_path / "log")
    assert SECRET not in disk.read_bytes()
    diskfiles.extract(disk, tmp_path / "out", ("kept",), (), tmp_path / "log")
    assert (tmp_path / "out" / "kept").read_bytes() == KEPT


def test_a_broken_filesystem(disk: Path, tmp_path: Path) -> None:
    with disk.open("r+b") as handle:
        handle.seek(OFFSET)
        handle.write(bytes(31 << 20))
    with pytest.raises(CommandFailed, match="its filesystem is broken"):
        diskfiles.forget_deleted(disk, tmp_path / "log")
