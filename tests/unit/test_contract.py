"""The golden image contract: a good image passes, and of a broken one exactly its fault is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stacklab import contract

KERNEL = "6.1.0-56-amd64"
SYSTEM = "etc/systemd/system"


@pytest.fixture
def root(tmp_path: Path, make_rootfs: Callable[[Path], Path]) -> Path:
    return make_rootfs(tmp_path / "rootfs")


def test_a_good_image_passes(root: Path) -> None:
    assert contract.check(root, "lxc") == []


def put(name: str, text: str = "") -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    return change


def remove(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    return change


def enable(unit: str) -> Callable[[Path], None]:
    """A symbolic link as systemctl makes it, which leads nowhere outside the image."""

    def change(root: Path) -> None:
        link = root / SYSTEM / "multi-user.target.wants" / unit
        link.symlink_to(f"/lib/systemd/system/{unit}")

    return change


def newer_kernel(*files: str) -> Callable[[Path], None]:
    """A kernel that sorts before the old one by letters, and after it by number."""

    def change(root: Path) -> None:
        for file in ("boot/vmlinuz-6.1.0-100-amd64", *files):
            put(file)(root)

    return change


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no kernel": (remove(f"boot/vmlinuz-{KERNEL}"), "/boot has no kernel"),
    "no initramfs": (remove(f"boot/initrd.img-{KERNEL}"), f"the newest kernel {KERNEL} has no initramfs"),
    "no modules": (remove(f"lib/modules/{KERNEL}"), f"the newest kernel {KERNEL} has no modules"),
    "modules without an index": (
        remove(f"lib/modules/{KERNEL}/modules.dep"),
        f"the newest kernel {KERNEL} has no modules",
    ),
    "newer kernel half installed": (
        newer_kernel("lib/modules/6.1.0-100-amd64/modules.dep"),
        "the newest kernel 6.1.0-100-amd64 has no initramfs",
    ),
    "no Packstack": (remove("usr/bin/packstack"), "Packstack is not installed: no /usr/bin/packstack"),
    "no modules of Packstack": (
        remove("usr/share/openstack-puppet/modules/packstack"),
        "Packstack's Puppet modules are not in /usr/share/openstack-puppet/modules",
    ),
    "machine-id": (
        put("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        "/etc/machine-id is baked in: nodes would share it, and their MAC addresses with it",
    ),
    "host key": (
        put("etc/ssh/ssh_host_ed25519_key", "x"),
        "/etc/ssh/ssh_host_ed25519_key: a host key is baked in",
    ),
    "public host key": (
        put("etc/ssh/ssh_host_rsa_key.pub", "x"),
        "/etc/ssh/ssh_host_rsa_key.pub: a host key is baked in",
    ),
    "Open vSwitch's state": (
        put("etc/openvswitch/conf.db", "x"),
        "/etc/openvswitch/conf.db: Open vSwitch's state is baked in",
    ),
    "Open vSwitch's state, Debian": (
        put("var/lib/openvswitch/conf.db", "x"),
        "/var/lib/openvswitch/conf.db: Open vSwitch's state is baked in",
    ),
    "Erlang's cookie": (
        put("var/lib/rabbitmq/.erlang.cookie", "x"),
        "/var/lib/rabbitmq/.erlang.cookie is baked in: all nodes would share it",
    ),
    "a database": (
        put("var/lib/mysql/mysql/user.frm", "x"),
        "/var/lib/mysql/mysql/user.frm is baked in: all nodes would share it",
    ),
    "root's password": (put("etc/shadow", "root:$y$j9T$x$y:1::::::\n"), "user root has a password"),
    "root without password": (put("etc/shadow", "root::1::::::\n"), "root has an empty password"),
    "a user's password": (
        put("etc/shadow", "root:*:1::::::\nvagrant:x1:1::::::\n"),
        "user vagrant has a password",
    ),
    "authorized_keys": (
        put("root/.ssh/authorized_keys", "ssh-ed25519 AAAA\n"),
        "/root/.ssh/authorized_keys is baked in",
    ),
    "proxy": (
        put("etc/apt/apt.conf.d/60proxy", 'Acquire::http::Proxy "http://192.0.2.1:3128";\n'),
        "/etc/apt/apt.conf.d/60proxy names a proxy",
    ),
    "sshd off": (remove(f"{SYSTEM}/multi-user.target.wants/ssh.service"), "sshd is not enabled"),
    "chrony off": (remove(f"{SYSTEM}/multi-user.target.wants/chrony.service"), "chrony is not enabled"),
    "firewalld on": (enable("firewalld.service"), "firewalld is enabled"),
    "no manifest": (remove("etc/dib-manifests"), "there is no manifest of packages"),
    "empty manifest": (put("etc/dib-manifests/packages.txt", "\n"), "there is no manifest of packages"),
    "udev trigger": (
        remove(f"{SYSTEM}/systemd-udev-trigger.service"),
        "systemd-udev-trigger is not masked: a container would announce the host's devices again",
    ),
    "fstab": (
        put("etc/fstab", "/dev/vda1 / ext4 defaults 0 1\n"),
        "/etc/fstab is not empty: a container's filesystems are mounted by LXC",
    ),
    "chronyd sets the clock": (
        put(f"{SYSTEM}/chrony.service.d/10-container.conf", "[Service]\nExecStart=/usr/sbin/chronyd -F 1\n"),
        "chronyd would set the host's clock",
    ),
    "chronyd as it came": (
        remove(f"{SYSTEM}/chrony.service.d/10-container.conf"),
        "chronyd would set the host's clock",
    ),
    **{
        f"{name} on": (enable(f"{name}.service"), f"{name} is enabled")
        for name in (
            "mariadb",
            "rabbitmq-server",
            "memcached",
            "apache2",
            "keystone",
            "glance-api",
            "nova-api",
        )
    },
}


@pytest.mark.parametrize(("change", "problem"), BROKEN.values(), ids=BROKEN)
def test_broken(change: Callable[[Path], None], problem: str, root: Path) -> None:
    change(root)
    assert contract.check(root, "lxc") == [problem]


@pytest.mark.parametrize(
    "change",
    [
        newer_kernel("boot/initramfs-6.1.0-100-amd64.img", "lib/modules/6.1.0-100-amd64/modules.dep.bin"),
        put("etc/machine-id"),
        remove("etc/machine-id"),
        put("etc/apt/apt.conf.d/99own", 'Acquire::Retries "3";\n'),
    ],
    ids=["newer kernel, whole", "empty machine-id", "no machine-id", "apt settings"],
)
def test_still_good(change: Callable[[Path], None], root: Path) -> None:
    change(root)
    assert contract.check(root, "lxc") == []


def test_names_of_the_other_family(root: Path) -> None:
    wants = root / SYSTEM / "multi-user.target.wants"
    (wants / "chrony.service").rename(wants / "chronyd.service")
    (wants / "ssh.service").rename(wants / "sshd.service")
    assert contract.check(root, "lxc") == []


MENU = f"""menuentry 'Linux {KERNEL}' {{
    linux /boot/vmlinuz-{KERNEL} root=LABEL=stacklab-root ro console=tty0 console=ttyS0,115200
    initrd /boot/initrd.img-{KERNEL}
}}
"""


@pytest.fixture
def machine(root: Path) -> Path:
    """What is for containers only is not there; what a disk needs to boot is."""
    put("etc/fstab", "LABEL=stacklab-root / ext4 defaults 0 1\n")(root)
    remove(f"{SYSTEM}/systemd-udev-trigger.service")(root)
    remove(f"{SYSTEM}/chrony.service.d")(root)
    put("boot/grub/grub.cfg", MENU)(root)
    for name in ("dev", "proc", "run", "sys"):
        (root / name).mkdir()
    (root / "mbr").write_bytes(b"\xeb\x63\x90GRUB ".ljust(512, b"\0"))
    return root


def test_a_machine_needs_nothing_that_is_for_containers(machine: Path) -> None:
    assert contract.check(machine, "libvirt") == []
    assert len(contract.check(machine, "lxc")) == 3


UNBOOTABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no boot loader": (put("mbr"), "the disk's first sector holds no GRUB: nothing would boot"),
    "no /proc": (remove("proc"), "/proc is missing: systemd would stop there"),
    "no menu": (remove("boot/grub"), f"the newest kernel {KERNEL} has no boot entry"),
    "another kernel's menu": (
        put("boot/grub/grub.cfg", MENU.replace(KERNEL, "6.1.0-9-amd64")),
        f"the newest kernel {KERNEL} has no boot entry",
    ),
    "no serial console": (
        put("boot/grub/grub.cfg", MENU.replace("console=ttyS0,115200", "quiet")),
        f"the boot entry of {KERNEL} has no serial console: console=ttyS0 is missing",
    ),
}


@pytest.mark.parametrize(("change", "problem"), UNBOOTABLE.values(), ids=UNBOOTABLE)
def test_unbootable(change: Callable[[Path], None], problem: str, machine: Path) -> None:
    change(machine)
    assert contract.check(machine, "libvirt") == [problem]


def test_the_hosts_that_served_the_build_are_not_named(root: Path) -> None:
    hosts = ("mirror.example:8080", "proxy.example:3128")
    assert contract.check(root, "lxc", hosts) == []
    put("etc/yum.repos.d/rocky.repo", "baseurl=http://mirror.example:8080/pub\n")(root)
    put("etc/profile.d/proxy.sh", "export https_proxy=http://proxy.example:3128\n")(root)
    assert contract.check(root, "lxc") == []
    assert contract.check(root, "lxc", hosts) == [
        "/etc/profile.d/proxy.sh names proxy.example:3128",
        "/etc/yum.repos.d/rocky.repo names mirror.example:8080",
    ]


NAMED = {
    "baseurl=http://cache/pub": True,
    "deb http://cache:3142/debian bookworm main": True,
    "url = https://user:word@cache": True,
    "# what a cache is, and the user proxy": False,
    "baseurl=http://cache.example/pub": False,
    "baseurl=http://cache-2/pub": False,
    "http://other/cache/": False,
    'Acquire::http::Proxy "http://proxy:3128";': True,
    "proxy=proxy:3128": True,
    "http://proxy:31280/": False,
    "my-proxy:3128": False,
    "proxy:x:13:13::/:/usr/sbin/nologin": False,
}


@pytest.mark.parametrize(("line", "named"), NAMED.items(), ids=NAMED)
def test_a_host_is_named_where_it_is_a_place(line: str, named: bool, root: Path) -> None:
    put("etc/some.conf", f"before\n{line}\nafter\n")(root)
    assert bool(contract.check(root, "lxc", ("cache", "proxy:3128"))) is named


def test_all_faults_are_named_at_once(root: Path) -> None:
    for change, _ in (BROKEN["no kernel"], BROKEN["proxy"], BROKEN["sshd off"], BROKEN["fstab"]):
        change(root)
    assert len(contract.check(root, "lxc")) == 4
