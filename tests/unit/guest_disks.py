"""A guest's files that keep the contract, and a disk with them."""

from __future__ import annotations

import subprocess
from pathlib import Path

KERNEL = "6.1.0-56-amd64"
SYSTEM = "etc/systemd/system"
ONE = "label: dos\nstart=2048, type=83, bootable\n"
_SECTOR = b"\xeb\x63GRUB \x00Geom".ljust(510, b"\0") + b"\x55\xaa"


def sound(root: Path) -> Path:
    """The least that keeps the contract of guests."""
    for name, text in {
        f"boot/vmlinuz-{KERNEL}": "kernel",
        f"boot/initrd.img-{KERNEL}": "initramfs",
        "boot/vmlinuz-6.1.0-9-amd64": "an older kernel",
        "boot/grub/grub.cfg": f"menuentry {{\n\tlinux\t/boot/vmlinuz-{KERNEL} ro console=ttyS0,115200\n}}\n",
        f"usr/lib/modules/{KERNEL}/modules.dep": "",
        "usr/bin/cloud-init": "",
        "usr/bin/growpart": "",
        "usr/sbin/qemu-ga": "",
        "usr/sbin/sshd": "",
        "usr/share/stacklab/packages.txt": "acl 2.3.1-3 amd64\n",
        "etc/machine-id": "uninitialized\n",
        "etc/ssh/sshd_config": "",
        "etc/shadow": "root:!*:20778:0:99999:7:::\n",
        "etc/environment": "",
        "etc/cloud/cloud.cfg.d/90_dpkg.cfg": "datasource_list: [ NoCloud ]\n",
        "etc/cloud/cloud.cfg.d/95_stacklab.cfg": "datasource_list: [ConfigDrive, NoCloud, OpenStack, None]\n",
        f"{SYSTEM}/cloud-init.target.wants/cloud-init.service": "",
        f"{SYSTEM}/multi-user.target.wants/chrony.service": "",
        f"{SYSTEM}/multi-user.target.wants/ssh.service": "",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "mbr").write_bytes(_SECTOR)
    (root / "root").mkdir()
    (root / "lib").symlink_to("usr/lib")
    return root


def make_disk(tree: Path, disk: Path, partitions: str = ONE, boots: bool = True) -> None:
    """A raw disk of 32 MiB whose first partition holds `tree`."""
    with disk.open("wb") as handle:
        handle.truncate(32 << 20)
    subprocess.run(["sfdisk", "-q", disk], input=partitions, text=True, check=True)
    subprocess.run(
        ["mkfs.ext4", "-q", "-d", tree, "-E", "offset=1048576", disk, "24M"], check=True, capture_output=True
    )
    if boots:
        with disk.open("r+b") as handle:
            handle.write(_SECTOR[:440])
