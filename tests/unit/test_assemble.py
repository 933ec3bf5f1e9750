"""Disks made of trees: the same bytes whatever the clock says, and the tree's files in them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from stacklab import assemble
from stacklab.errors import CommandFailed

EPOCH = 1700000000


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few files; what GRUB's own program would write is put there in its place."""
    root = tmp_path / "tree"
    for name in ("etc/zebra", "etc/apple", "usr/bin/su", "tmp/.keep"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "usr/bin/su").chmod(0o4755)
    (root / "etc/link").symlink_to("apple")
    grub = root / "usr/lib/grub/i386-pc"
    grub.mkdir(parents=True)
    (grub / "boot.img").write_bytes(b"\xeb\x63\x90" + b"GRUB ".ljust(509, b"B"))
    monkeypatch.setattr(assemble, "SIZE", 64 << 20)
    fake = tmp_path / "bin" / "chroot"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nhead -c 1300 /dev/zero | tr "\\0" C >"$1/tmp/core.img"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}", prepend=":")
    return root


def made(tree: Path, image: Path) -> str:
    assemble.disk(tree, image, EPOCH, image.with_suffix(".log"))
    return hashlib.sha256(image.read_bytes()).hexdigest()


def debugfs(image: Path, request: str) -> str:
    argv = ["debugfs", "-R", request, f"{image}?offset={2048 * 512}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_the_same_tree_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    time.sleep(1.1)
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy, symlinks=True)  # with new inodes, times of change and of birth
    for path in copy.rglob("*"):
        os.utime(path, ns=(0, path.lstat().st_mtime_ns), follow_symlinks=False)
    first = made(tree, tmp_path / "one.raw")
    assert made(copy, tmp_path / "two.raw") == first
    (copy / "etc/apple").write_text("changed")
    assert made(copy, tmp_path / "three.raw") != first


def test_the_filesystem_is_whole_and_has_the_files(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    made(tree, image)
    assert debugfs(image, "cat /etc/zebra") == "etc/zebra"
    assert "Mode:  04755" in debugfs(image, "stat /usr/bin/su")
    assert 'Fast link dest: "apple"' in debugfs(image, "stat /etc/link")
    part = tmp_path / "part.raw"
    part.write_bytes(image.read_bytes()[2048 * 512 :])
    checked = subprocess.run(["e2fsck", "-fn", part], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    label = subprocess.run(["e2label", part], capture_output=True, text=True, check=True).stdout
    assert label.strip() == assemble.LABEL


def test_the_boot_loader_is_where_the_bios_looks(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    made(tree, image)
    data = image.read_bytes()
    assert data[:8] == b"\xeb\x63\x90GRUB "
    assert data[510:512] == b"\x55\xaa" and data[446] == 0x80  # a table with an active partition
    assert data[0x5C:0x64] == (1).to_bytes(8, "little")
    # 1300 bytes are 3 sectors: the first one loads the two that follow it, from sector 2 on
    assert data[512 + 500 : 512 + 512] == bytes([2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 0x08])
    assert data[1024:1812] == b"C" * 788
    assert not (tree / "tmp/core.img").exists()


def test_a_tree_that_is_too_large(tree: Path, tmp_path: Path) -> None:
    (tree / "large").write_bytes(os.urandom(70 << 20))
    with pytest.raises(CommandFailed, match="mke2fs"):
        made(tree, tmp_path / "disk.raw")


def test_without_grub(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "chroot").write_text("#!/bin/sh\necho no grub-mkimage here; exit 127\n")
    with pytest.raises(CommandFailed, match="no grub-mkimage here") as caught:
        made(tree, tmp_path / "disk.raw")
    assert "grub-pc-bin" in caught.value.hint
