"""A bootable disk made of a root filesystem's tree: the same tree gives the same bytes.

No device of the build host takes part: mke2fs fills the filesystem from the tree, debugfs
sets the times that it takes from the clock, and GRUB's image is written where grub-bios-setup
would write it. BIOS, a partition table of the old kind, one ext4 partition.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from stacklab.errors import CommandFailed
from stacklab.run import run

# Part of an image's inputs: raise it when a disk of the same tree becomes another.
VERSION = 1

LABEL = "stacklab-root"
SIZE = 8 << 30
"""Bytes of the disk; nodes get larger ones, and the filesystem grows with them."""

_SECTOR = 512
_START = 2048  # sector of the partition
_UUID = "5ca1ab1e-0000-4000-8000-000000000001"
_HASH_SEED = "5ca1ab1e-0000-4000-8000-000000000002"
_DISK_ID = "0x5ca1ab1e"
# As old as GRUB in EL 7 and e2fsprogs there can read.
_FEATURES = "^metadata_csum_seed,^orphan_file"
_GRUB_MODULES = (
    *("biosdisk", "part_msdos", "ext2", "linux", "normal", "search", "search_label", "configfile"),
    *("serial", "terminal", "echo", "test", "minicmd", "reboot", "halt"),
)
_GRUB = Path("usr/lib/grub/i386-pc")


def disk(tree: Path, image: Path, epoch: int, log: Path) -> None:
    """Write the raw disk `image` of `tree`, which has GRUB's modules and /boot/grub/grub.cfg.

    All times of the filesystem but those of changes of contents are `epoch`, in seconds.
    Raises CommandFailed when a step fails, as when the tree is larger than the disk.
    """
    with image.open("wb") as handle:
        handle.truncate(SIZE)
    table = f"label: dos\nlabel-id: {_DISK_ID}\nstart={_START}, type=83, bootable\n"
    run(["sfdisk", "--quiet", image], log=log, stdin=table)
    _filesystem(tree, image, epoch, log)
    _boot_loader(tree, image, log)


def _filesystem(tree: Path, image: Path, epoch: int, log: Path) -> None:
    offset = _START * _SECTOR
    kibibytes = (SIZE - offset) // 1024
    extended = (
        f"hash_seed={_HASH_SEED},offset={offset},root_owner=0:0,nodiscard"
        ",lazy_itable_init=0,lazy_journal_init=0"
    )
    # The names are sorted as the locale says.
    env = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "E2FSPROGS_FAKE_TIME": str(epoch)}
    run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", LABEL, "-U", _UUID),
            *("-O", _FEATURES, "-E", extended, "-d", tree, image, f"{kibibytes}k"),
        ],
        log=log,
        env=env,
        hint=f"is the tree larger than {SIZE >> 30} GiB, or the host's disk full?",
    )
    place = f"{image}?offset={offset}"
    head = run(["dumpe2fs", "-h", place], log=log).output
    count, free = (int(re.search(rf"^{name}:\s+(\d+)", head, re.MULTILINE)[1]) for name in _COUNTS)  # type: ignore[index]
    # Inodes are given out one after the other; 2 is the root, those before 11 are the filesystem's own.
    requests = "".join(
        f"set_inode_field <{inode}> {field} @{epoch}\n"
        for inode in (2, *range(11, count - free + 1))
        for field in ("atime", "ctime")
    )
    said = run(["debugfs", "-w", "-f", "/dev/stdin", place], env=env, stdin=requests).output
    wrong = [line for line in said.splitlines() if not line.startswith("debugfs")]
    if wrong:
        raise CommandFailed("the filesystem's times could not be set: " + wrong[0])


_COUNTS = ("Inode count", "Free inodes")


def _boot_loader(tree: Path, image: Path, log: Path) -> None:
    core_file = tree / "tmp" / "core.img"
    try:
        run(
            [
                *("chroot", tree, "grub-mkimage", "-O", "i386-pc", "-o", "/tmp/core.img"),
                # No disk is named: the one that the BIOS boots from.
                *("-p", "(,msdos1)/boot/grub", *_GRUB_MODULES),
            ],
            log=log,
            hint="the package grub-pc-bin has to be in the image",
        )
        core = bytearray(core_file.read_bytes())
    finally:
        core_file.unlink(missing_ok=True)
    boot = bytearray((tree / _GRUB / "boot.img").read_bytes())
    sectors = -(-len(core) // _SECTOR)
    if sectors >= _START:
        raise CommandFailed(f"GRUB's image of {sectors} sectors does not fit before the partition")
    # What grub-bios-setup fills in: where the rest of the image lies, and that the drive
    # to read it from is the one that the BIOS started from.
    struct.pack_into("<Q", boot, 0x5C, 1)
    boot[0x64] = 0xFF
    boot[0x66:0x68] = b"\x90\x90"
    struct.pack_into("<QHH", core, _SECTOR - 12, 2, sectors - 1, 0x820)
    with image.open("r+b") as handle:
        handle.write(boot[:440])  # then comes the partition table
        handle.seek(_SECTOR)
        handle.write(core)
