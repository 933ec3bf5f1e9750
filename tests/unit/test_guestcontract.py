"""The contract of guests: a sound tree, everything that can be wrong with one, a real filesystem."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stacklab import contract, guestcontract
from stacklab.errors import CommandFailed
from tests.unit.guest_disks import KERNEL, SYSTEM, make_disk, sound


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return sound(tmp_path / "tree")


def test_a_sound_tree(tree: Path) -> None:
    assert guestcontract.check(tree) == []
    assert contract.kernels(tree) == ["6.1.0-9-amd64", KERNEL]


def test_the_boot_entries_of_red_hats_family(tree: Path) -> None:
    (tree / "boot/grub/grub.cfg").unlink()
    entry = tree / "boot/loader/entries/x.conf"
    entry.parent.mkdir(parents=True)
    entry.write_text(
        f"title Rocky\nlinux /boot/vmlinuz-{KERNEL}\noptions root=LABEL=x console=ttyS0,115200\n"
    )
    assert guestcontract.check(tree) == []
    entry.write_text(f"title Rocky\nlinux /boot/vmlinuz-{KERNEL}\noptions root=LABEL=x\n")
    assert guestcontract.check(tree) == [
        f"the boot entry of {KERNEL} has no serial console: console=ttyS0 is missing"
    ]


def remove(name: str) -> Callable[[Path], None]:
    return lambda tree: (tree / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (remove(f"boot/initrd.img-{KERNEL}"), "has no initramfs"),
        (remove(f"usr/lib/modules/{KERNEL}/modules.dep"), "has no modules"),
        (write("boot/grub/grub.cfg", "linux /boot/vmlinuz-6.1.0-9-amd64 console=ttyS0\n"), "no boot entry"),
        (write("boot/grub/grub.cfg", f"linux /boot/vmlinuz-{KERNEL} ro\n"), "no serial console"),
        (write("mbr", "nothing"), "holds no GRUB"),
        (remove("usr/bin/cloud-init"), "cloud-init is not installed"),
        (remove("usr/bin/growpart"), "growpart (cloud-guest-utils) is not installed"),
        (remove("usr/sbin/qemu-ga"), "qemu-guest-agent is not installed"),
        (remove(f"{SYSTEM}/cloud-init.target.wants/cloud-init.service"), "cloud-init is not enabled"),
        (remove(f"{SYSTEM}/multi-user.target.wants/chrony.service"), "chrony is not enabled"),
        (remove(f"{SYSTEM}/multi-user.target.wants/ssh.service"), "sshd is not enabled"),
        (write("etc/cloud/cloud-init.disabled", ""), "switches cloud-init off"),
        (write("etc/cloud/cloud.cfg.d/99_own.cfg", "datasource_list: [None, ConfigDrive]\n"), "OpenStack"),
        (write("etc/machine-id", "0123456789abcdef0123456789abcdef\n"), "/etc/machine-id is baked in"),
        (write("etc/ssh/ssh_host_rsa_key", ""), "a host key is baked in"),
        (write("etc/shadow", "root:!*:1::::::\ndebian:$y$j9T$x:1::::::\n"), "user debian has a password"),
        (write("root/.ssh/authorized_keys", "ssh-ed25519 x"), "authorized_keys is baked in"),
        (write("etc/apt/apt.conf.d/proxy", 'Acquire::http::Proxy "x";'), "names a proxy"),
        (
            write("etc/environment", "http_proxy=http://proxy.example:3128\n"),
            "/etc/environment names a proxy",
        ),
        (write("etc/dnf/dnf.conf", "[main]\nproxy = http://p.example\n"), "/etc/dnf/dnf.conf names a proxy"),
        (write("usr/share/stacklab/packages.txt", ""), "no list of packages"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken(change: Callable[[Path], None], problem: str, tree: Path) -> None:
    change(tree)
    (found,) = guestcontract.check(tree)
    assert problem in found


def test_a_real_filesystem_is_read_without_a_mount(tree: Path, tmp_path: Path) -> None:
    (tree / "etc/link").symlink_to("/etc/shadow")
    disk, out, log = tmp_path / "disk.raw", tmp_path / "out", tmp_path / "log"
    make_disk(tree, disk)
    guestcontract.extract(disk, out, log)
    assert guestcontract.check(out) == []
    assert (out / "etc/shadow").read_text() == (tree / "etc/shadow").read_text()
    assert (out / "etc/link").readlink() == Path("/etc/shadow")


def test_what_is_missing_is_missed_in_a_real_filesystem_too(tree: Path, tmp_path: Path) -> None:
    for name in ("usr/bin/growpart", f"usr/lib/modules/{KERNEL}/modules.dep"):
        (tree / name).unlink()
    disk, out = tmp_path / "disk.raw", tmp_path / "out"
    make_disk(tree, disk, boots=False)
    guestcontract.extract(disk, out, tmp_path / "log")
    assert guestcontract.check(out) == [
        f"the newest kernel {KERNEL} has no modules",
        "the disk's first sector holds no GRUB: nothing would boot",
        "growpart (cloud-guest-utils) is not installed: no /usr/bin/growpart",
    ]


def test_a_disk_with_more_partitions_is_refused(tree: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    make_disk(tree, disk, "label: dos\nstart=2048, size=4096, type=83\nstart=8192, type=83\n")
    with pytest.raises(CommandFailed, match="has 2 partitions"):
        guestcontract.extract(disk, tmp_path / "out", tmp_path / "log")
