"""The golden image contract, checked offline from the image's own files.

diskimage-builder ends well on broken images (a kernel that could not be installed, a
failing maintainer script), so every image is looked at before it gets its name.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Sequence
from pathlib import Path

# Part of an image's inputs: raise it when a check changes, and old images are built anew.
VERSION = 2


def check(rootfs: Path, provider: str, hosts: Sequence[str] = ()) -> list[str]:
    """All that is wrong with an image, as sentences; an empty list means it is good.

    `hosts` served the build: no file of the image may name them.
    """
    checks: tuple[Callable[[Path], list[str]], ...] = (
        kernel,
        _packstack,
        _clock,
        identity,
        secrets,
        _enabled,
        _manifest,
    )
    problems = [problem for one in checks for problem in one(rootfs)]
    problems += _traces(rootfs, hosts)
    problems += _container(rootfs) if provider == "lxc" else [*_mount_points(rootfs), *boot(rootfs)]
    return problems


# What `check` looks at, beside what is only asked whether it is there.
TREES = ("boot", "etc", "root")
PROBES = (
    "usr/bin/packstack",
    "usr/share/openstack-puppet/modules/packstack/manifests/prereqs.pp",
    "var/lib/openvswitch/conf.db",
    "var/lib/rabbitmq/.erlang.cookie",
    "var/lib/mysql/mysql/user.frm",
    *("dev", "proc", "run", "sys"),
)


def release(name: str) -> list[object]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def kernels(tree: Path) -> list[str]:
    """The versions of all kernels in /boot, the newest last."""
    names = (path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*"))
    return sorted((name for name in names if "rescue" not in name), key=release)


def kernel(rootfs: Path) -> list[str]:
    found = kernels(rootfs)
    if not found:
        return ["/boot has no kernel"]
    newest = found[-1]
    problems = []
    if not any(
        (rootfs / "boot" / name).is_file() for name in (f"initrd.img-{newest}", f"initramfs-{newest}.img")
    ):
        problems.append(f"the newest kernel {newest} has no initramfs")
    if not any((rootfs / "lib" / "modules" / newest).glob("modules.dep*")):
        problems.append(f"the newest kernel {newest} has no modules")
    return problems


def _mount_points(rootfs: Path) -> list[str]:
    return [
        f"/{name} is missing: systemd would stop there"
        for name in ("dev", "proc", "run", "sys")
        if not (rootfs / name).exists()
    ]


def boot(tree: Path) -> list[str]:
    """What is wrong with how a disk boots: its first sector, the entry of its newest kernel."""
    found = kernels(tree)
    if not found:
        return []  # said already
    newest = found[-1]
    problems = []
    if b"GRUB" not in (tree / "mbr").read_bytes():
        problems.append("the disk's first sector holds no GRUB: nothing would boot")
    entries = _entries(tree)
    own = [line for line in entries if f"vmlinuz-{newest}" in line]
    if not own:
        problems.append(f"the newest kernel {newest} has no boot entry")
    elif not any(re.search(r"\bconsole=ttyS0\b", line) for line in own):
        problems.append(f"the boot entry of {newest} has no serial console: console=ttyS0 is missing")
    return problems


def _entries(tree: Path) -> list[str]:
    """Kernel and arguments of every boot entry, one a line, from GRUB's own or the loader's files."""
    lines = []
    for name in ("boot/grub/grub.cfg", "boot/grub2/grub.cfg"):
        if (tree / name).is_file():
            text = (tree / name).read_text(encoding="utf-8", errors="replace")
            lines += re.findall(r"^\s*linux(?:16|efi)?\s+(.*)$", text, re.MULTILINE)
    for path in sorted((tree / "boot/loader/entries").glob("*.conf")):
        values = dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if " " in line.strip())
        lines.append(f"{values.get('linux', '')} {values.get('options', '')}")
    return lines


def _packstack(rootfs: Path) -> list[str]:
    problems = []
    if not (rootfs / "usr/bin/packstack").is_file():
        problems.append("Packstack is not installed: no /usr/bin/packstack")
    if not (rootfs / "usr/share/openstack-puppet/modules/packstack").is_dir():
        problems.append("Packstack's Puppet modules are not in /usr/share/openstack-puppet/modules")
    return problems


def _clock(rootfs: Path) -> list[str]:
    return [] if is_enabled(rootfs, "chrony.service", "chronyd.service") else ["chrony is not enabled"]


def identity(rootfs: Path) -> list[str]:
    problems = []
    machine_id = rootfs / "etc/machine-id"
    if machine_id.is_file() and machine_id.read_text(encoding="utf-8").strip() not in ("", "uninitialized"):
        problems.append("/etc/machine-id is baked in: nodes would share it, and their MAC addresses with it")
    for key in sorted((rootfs / "etc/ssh").glob("ssh_host_*key*")):
        problems.append(f"/etc/ssh/{key.name}: a host key is baked in")
    for name in ("var/lib/rabbitmq/.erlang.cookie", "var/lib/mysql/mysql/user.frm"):
        if (rootfs / name).exists():
            problems.append(f"/{name} is baked in: all nodes would share it")
    for database in (rootfs / "etc/openvswitch/conf.db", rootfs / "var/lib/openvswitch/conf.db"):
        if database.is_file():
            problems.append(f"/{database.relative_to(rootfs)}: Open vSwitch's state is baked in")
    return problems


def secrets(rootfs: Path) -> list[str]:
    problems = []
    shadow = _text(rootfs / "etc/shadow")
    if not shadow:
        problems.append("/etc/shadow is missing")
    for line in shadow.splitlines():
        user, password, *_ = line.split(":")
        if password and not password.startswith(("!", "*")):
            problems.append(f"user {user} has a password")
        if user == "root" and not password:
            problems.append("root has an empty password")
    if (rootfs / "root/.ssh/authorized_keys").exists():
        problems.append("/root/.ssh/authorized_keys is baked in")
    for path in (rootfs / "etc/apt/apt.conf", *(rootfs / "etc/apt/apt.conf.d").glob("*")):
        if re.search(r"\bproxy\b", _text(path), re.IGNORECASE):
            problems.append(f"/{path.relative_to(rootfs)} names a proxy")
    return problems


def _traces(rootfs: Path, hosts: Sequence[str]) -> list[str]:
    """Where the image names a host that only the build knows: a mirror, a proxy."""
    named = {host: _named(host) for host in hosts}
    problems = []
    for path in sorted((rootfs / "etc").rglob("*")) if hosts else ():
        if path.is_symlink() or not path.is_file():
            continue
        text = _text(path)
        name = path.relative_to(rootfs)
        problems += [f"/{name} names {host}" for host, known in named.items() if known.search(text)]
    return problems


def _named(host: str) -> re.Pattern[str]:
    """How a file names a host as a place: in a URL, or with its port, as proxies are written too.

    Alone it may be any word: a host may be called `cache`.
    """
    name, end = re.escape(host), r"(?![\w-]|\.\w)"
    with_port = rf"|(?<![\w.-]){name}" if re.search(r":\d+$", host) else ""
    return re.compile(rf"(?://(?:[^\s/@]*@)?{name}{with_port}){end}")


# Nothing of OpenStack may run before the deployer configures it.
_DEPLOYED = (
    "mariadb",
    "rabbitmq-server",
    "memcached",
    "apache2",
    "keystone",
    "glance-api",
    "nova-api",
    "neutron-api",
)


def _enabled(rootfs: Path) -> list[str]:
    problems = [f"{name} is enabled" for name in _DEPLOYED if is_enabled(rootfs, f"{name}.service")]
    if not is_enabled(rootfs, "ssh.service", "sshd.service"):
        problems.append("sshd is not enabled")
    if is_enabled(rootfs, "firewalld.service"):
        problems.append("firewalld is enabled")
    return problems


def is_enabled(rootfs: Path, *units: str) -> bool:
    system = rootfs / "etc/systemd/system"
    return any(link.name in units for link in system.glob("*.wants/*"))


def _manifest(rootfs: Path) -> list[str]:
    manifest = rootfs / "etc/dib-manifests/packages.txt"
    if not manifest.is_file() or not manifest.read_text(encoding="utf-8").strip():
        return ["there is no manifest of packages"]
    return []


def _container(rootfs: Path) -> list[str]:
    problems = []
    if (rootfs / "etc/systemd/system/systemd-udev-trigger.service").resolve() != Path("/dev/null"):
        problems.append(
            "systemd-udev-trigger is not masked: a container would announce the host's devices again"
        )
    if _text(rootfs / "etc/fstab").strip():
        problems.append("/etc/fstab is not empty: a container's filesystems are mounted by LXC")
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(rootfs / "etc/systemd/system/chrony.service.d/10-container.conf", encoding="utf-8")
    if "-x" not in unit.get("Service", "ExecStart", fallback=""):
        problems.append("chronyd would set the host's clock")
    return problems
