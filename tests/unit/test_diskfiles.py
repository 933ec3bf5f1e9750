"""Disks by Packer: what was deleted in the machine is not in the image."""

from __future__ import annotations

import os
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


def test_what_a_disk_has_on_it(disk: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert diskfiles.filesystems(disk, tmp_path, log) == ["ext4"]
    # As publishers make them: the root far behind, a piece for the boot loader, and in a format of QEMU's.
    other = tmp_path / "other.raw"
    other.touch()
    os.truncate(other, 200 << 20)
    table = "label: gpt\nstart=262144\nstart=2048, size=6144\nstart=8192, size=65536, type=U\n"
    for argv, text in (
        (["sfdisk", "-q", str(other)], table),
        (["mkfs.ext4", "-q", "-F", "-E", f"offset={128 << 20}", str(other), "60M"], ""),
        (["mkfs.vfat", "--offset", "8192", str(other), "32768"], ""),
        (["qemu-img", "convert", "-O", "qcow2", str(other), str(tmp_path / "other,.qcow2")], ""),
    ):
        subprocess.run(argv, input=text, text=True, check=True, capture_output=True)
    found = diskfiles.filesystems(tmp_path / "other,.qcow2", tmp_path, log)
    assert found == ["ext4", "no filesystem", "vfat"]
    other.write_bytes(bytes(1 << 20))
    assert diskfiles.filesystems(other, tmp_path, log) == []


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
