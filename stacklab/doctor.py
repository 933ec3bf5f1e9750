"""Whether this machine can build the lab, found out by trying, each finding with what to type.

Nothing here changes the machine: what a check makes (a mount, a network namespace, a
directory) is private to it and gone when it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stacklab import kvm
from stacklab.errors import CommandFailed
from stacklab.model import Topology
from stacklab.run import Result, run

State = Literal["OK", "WARN", "FAIL"]

MEMORY_LXC = {"controller": 3.5, "network": 0.5, "compute": 1.5}
"""GiB that a node's roles take as containers. Two nodes with Neutron and instances: about 6 GB measured
with the host's own share; the controller 2.2-2.9 GB, a compute node 0.5 GB before its first instance."""
DISK_BUILD = 12
"""GiB in the cache to build a golden image: its tree, its tarball and what was downloaded."""
DISK_CACHE = 2
"""GiB in the cache once the golden image is there: guest images."""
DISK_LAB = 5
"""GiB for a lab: what its nodes write, and their snapshots."""

COMMANDS = {
    "vagrant": "vagrant",
    "lxc-start": "lxc",
    "lxc-attach": "lxc",
    "mmdebstrap": "mmdebstrap",
    "debootstrap": "debootstrap",
    "sudo": "sudo",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "sfdisk": "fdisk",
    "ip": "iproute2",
    "ethtool": "ethtool",
    "ping": "iputils-ping",
    "ps": "procps",
    "setpriv": "util-linux",
    "qemu-img": "qemu-utils",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "syslinux": "syslinux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nc": "netcat-openbsd",
    "tar": "tar",
    "rsync": "rsync",
    "zstd": "zstd",
    "cpio": "cpio",
    "patch": "patch",
    "git": "git",
}
"""Commands of the lxc path and the Debian package of each."""

EL_PACKAGES = {
    "fdisk": "util-linux",
    "iproute2": "iproute",
    "iputils-ping": "iputils",
    "procps": "procps-ng",
    "qemu-utils": "qemu-img",
    "openssh-client": "openssh-clients",
    "netcat-openbsd": "nmap-ncat",
    "git": "git-core",
}
"""Where EL calls a Debian package by another name."""

BY_HAND = {
    "vagrant": "install the package from https://developer.hashicorp.com/vagrant/install",
    "vagrant-lxc": "as root: vagrant plugin install vagrant-lxc",
    "lxc": "enable EPEL, then: dnf install lxc",
    "mmdebstrap": "install it from its authors: EL has no package of it",
    "debootstrap": "enable EPEL, then: dnf install debootstrap",
}
"""What has no package: vagrant and vagrant-lxc on Ubuntu 24.04 and later, all of it on EL."""


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is what to type or do; empty when nothing is to be done."""

    name: str
    state: State
    message: str
    fix: str = ""


@dataclass(frozen=True)
class Needs:
    """What the lab wants of the machine. `golden` says that its golden image is in `cache` already."""

    provider: str
    lab: Path
    cache: Path
    topology: Topology | None = None
    golden: bool = False


def _run(argv: Sequence[str]) -> Result:
    try:
        return run(argv, timeout=30, check=False)
    except CommandFailed as error:
        return Result(127, error.message)


@dataclass(frozen=True)
class Host:
    """How the checks ask the machine; a test gives answers of its own. `root` holds etc, proc, sys, dev."""

    root: Path = Path("/")
    home: Path = field(default_factory=Path.home)
    tools: Path = Path(sys.executable).parent
    euid: Callable[[], int] = os.geteuid
    which: Callable[[str], str | None] = shutil.which
    run: Callable[[Sequence[str]], Result] = _run
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    device: Callable[[Path], int] = lambda path: path.stat().st_dev
    kvm: Callable[[], tuple[bool, str]] = kvm.usable

    def read(self, path: str) -> str:
        """A file's text; empty when it is not there."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


def run_checks(needs: Needs, host: Host | None = None) -> list[Check]:
    """All checks for this lab, in the order in which their fixes are best done."""
    host = host or Host()
    found = [_root(host)]
    if needs.provider == "lxc":
        found += [*_commands(host), _builder(host), _plugin(host), _overlay(needs, host), _network(host)]
        found += [_tun(host), _cgroup(host), _datapath(host), _addresses()]
    else:
        found.append(Check("provider", "WARN", f"there are no checks for {needs.provider} yet", "choose lxc"))
    return [*found, *_memory(needs, host), *_disk(needs, host), _kvm(needs, host)]


def _root(host: Host) -> Check:
    if host.euid() == 0:
        return Check("root", "OK", "running as root")
    return Check("root", "FAIL", "not running as root", "scripts/stacklab TASK (it uses sudo)")


def _install(host: Host, package: str) -> str:
    """What installs `package`, called by its Debian name, on this distribution."""
    values = dict(line.split("=", 1) for line in host.read("etc/os-release").splitlines() if "=" in line)
    family = {values.get("ID", "").strip('"'), *values.get("ID_LIKE", "").strip('"').split()}
    if "rhel" in family:
        return BY_HAND.get(package) or f"dnf install {EL_PACKAGES.get(package, package)}"
    if "ubuntu" in family and package in ("vagrant", "vagrant-lxc"):
        return BY_HAND[package]
    return f"apt-get install {package}"


def _commands(host: Host) -> list[Check]:
    missing = [name for name in COMMANDS if host.which(name) is None]
    if not missing:
        return [Check("commands", "OK", f"all {len(COMMANDS)} are there")]
    return [
        Check(f"command {name}", "FAIL", f"{name} is not on PATH", _install(host, COMMANDS[name]))
        for name in missing
    ]


def _builder(host: Host) -> Check:
    tool = host.tools / "disk-image-create"
    if os.access(tool, os.X_OK):
        return Check("diskimage-builder", "OK", str(tool))
    fix = f"{host.tools / 'python'} -m pip install -e ."
    return Check("diskimage-builder", "FAIL", f"{tool} is not there", fix)


def _plugin(host: Host) -> Check:
    """Files first: asking Vagrant itself costs two seconds, so that is only done before saying no."""
    package = host.root / "usr/share/vagrant-plugins/plugins.d/vagrant-lxc.json"
    gems = host.root / "usr/share/rubygems-integration/all/specifications"
    if package.is_file() and any(gems.glob("vagrant-lxc-*.gemspec")):
        return Check("vagrant-lxc", "OK", "the distribution's package")
    own = Path(os.environ.get("VAGRANT_HOME") or host.home / ".vagrant.d")
    try:
        listed = "vagrant-lxc" in json.loads((own / "plugins.json").read_text(encoding="utf-8"))["installed"]
    except (OSError, ValueError, KeyError, TypeError):
        listed = False
    if listed and any(own.glob("gems/*/gems/vagrant-lxc-*")):
        return Check("vagrant-lxc", "OK", f"installed in {own}")
    if host.which("vagrant") is not None:
        answer = host.run(["vagrant", "plugin", "list"])
        if answer.code == 0 and any(line.startswith("vagrant-lxc ") for line in answer.output.splitlines()):
            return Check("vagrant-lxc", "OK", "Vagrant lists it")
    return Check("vagrant-lxc", "FAIL", "Vagrant does not know the plugin", _install(host, "vagrant-lxc"))


def _existing(path: Path) -> Path:
    """The directory itself, or what it would be made in."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def _why(result: Result) -> str:
    return (result.output.strip().splitlines() or [f"exit code {result.code}"])[-1]


def _overlay(needs: Needs, host: Host) -> Check:
    """Nodes are overlay mounts whose upper directory is in the lab's; not every filesystem can be that."""
    place = _existing(needs.lab)
    fix = "modprobe overlay, or keep the lab on ext4, XFS or btrfs (not on NFS, nor on an overlay)"
    try:
        trial = Path(tempfile.mkdtemp(prefix=".stacklab-doctor-", dir=place))
    except OSError as error:
        return Check(
            "overlayfs", "FAIL", f"{place}: {error.strerror}", "choose a lab directory you can write"
        )
    try:
        for name in ("lower", "upper", "work", "merged"):
            (trial / name).mkdir()
        options = f"lowerdir={trial}/lower,upperdir={trial}/upper,workdir={trial}/work"
        private = ["unshare", "-m", "--propagation", "private"]
        answer = host.run([*private, "mount", "-t", "overlay", "overlay", "-o", options, f"{trial}/merged"])
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    if answer.code == 0:
        return Check("overlayfs", "OK", f"mounts in {place}")
    return Check("overlayfs", "FAIL", f"does not mount in {place}: {_why(answer)}", fix)


def _network(host: Host) -> Check:
    # Not `ip netns add`: it leaves a mount on /run/netns behind, and the namespace when it is killed.
    inside = ["unshare", "-n", "ip", "link"]
    answer = host.run([*inside, "show"])
    if answer.code != 0:
        fix = "use a kernel with CONFIG_NET_NS; in a container, one that may make namespaces (privileged)"
        return Check("network", "FAIL", f"no network namespace: {_why(answer)}", fix)
    pair = ["add", "veth-a", "type", "veth", "peer", "name", "veth-b"]
    for kind, words in (("veth", pair), ("bridge", ["add", "br-a", "type", "bridge"])):
        answer = host.run([*inside, *words])
        if answer.code != 0:
            return Check("network", "FAIL", f"no {kind} device: {_why(answer)}", f"modprobe {kind}")
    return Check("network", "OK", "network namespaces, veth and bridge devices work")


def _tun(host: Host) -> Check:
    device = host.root / "dev/net/tun"
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError as error:
        fix = "modprobe tun; mkdir -p /dev/net; mknod /dev/net/tun c 10 200"
        return Check("tun", "FAIL", f"{device}: {error.strerror}", fix)
    return Check("tun", "OK", f"{device} opens")


def _cgroup(host: Host) -> Check:
    """systemd in a node needs a hierarchy to write in: version 2, or version 1's name=systemd."""
    writable = [line.split() for line in host.read("proc/mounts").splitlines()]
    writable = [words for words in writable if len(words) > 3 and "rw" in words[3].split(",")]
    options = {part for words in writable if words[2] == "cgroup" for part in words[3].split(",")}
    unified = any(words[1:3] == ["/sys/fs/cgroup", "cgroup2"] for words in writable)
    if unified:
        return Check("cgroup", "OK", "version 2, writable")
    if "devices" not in options:
        fix = "start the machine (or the container it is) with a writable /sys/fs/cgroup"
        return Check("cgroup", "FAIL", "neither version 2 nor version 1 with devices is writable", fix)
    if "name=systemd" in options:
        return Check("cgroup", "OK", "version 1 with devices and name=systemd, writable")
    fix = (
        "mkdir -p /sys/fs/cgroup/systemd; mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd"
    )
    return Check("cgroup", "FAIL", "version 1 without the name=systemd hierarchy", fix)


def _datapath(host: Host) -> Check:
    loaded = (host.root / "sys/module/openvswitch").exists()
    if loaded or (host.which("modprobe") and host.run(["modprobe", "-n", "openvswitch"]).code == 0):
        return Check("openvswitch", "OK", "the kernel's datapath is used")
    return Check("openvswitch", "OK", "this kernel has no datapath: the one in user space is used")


def _addresses() -> Check:
    return Check("addresses", "OK", "the lab's networks live in a network namespace of their own")


def _memory(needs: Needs, host: Host) -> list[Check]:
    if needs.topology is None:
        return []
    if needs.provider == "lxc":
        wanted = sum(MEMORY_LXC.get(role, 0) for node in needs.topology.nodes for role in node.roles)
    else:
        wanted = sum(node.memory for node in needs.topology.nodes) / 1024
    lines = (line.split() for line in host.read("proc/meminfo").splitlines())
    sizes = {words[0]: int(words[1]) / 1024**2 for words in lines if len(words) > 1 and words[1].isdigit()}
    total, available = sizes.get("MemTotal:", 0), sizes.get("MemAvailable:", 0)
    name = needs.topology.name
    if total < wanted:
        text = f"{name} takes about {wanted:.1f} GiB and this machine has {total:.1f}"
        return [Check("memory", "FAIL", text, "a machine with more memory, or --topology all-in-one")]
    if available < wanted:
        text = (
            f"{name} takes about {wanted:.1f} GiB and {available:.1f} are free (fine if the lab is running)"
        )
        return [Check("memory", "WARN", text, "end what uses memory; invoke down for another lab")]
    return [Check("memory", "OK", f"{available:.1f} GiB free, {name} takes about {wanted:.1f}")]


def _disk(needs: Needs, host: Host) -> list[Check]:
    cache, lab = _existing(needs.cache), _existing(needs.lab)
    wanted = [("cache", cache, DISK_CACHE if needs.golden else DISK_BUILD), ("lab", lab, DISK_LAB)]
    if host.device(cache) == host.device(lab):
        # One filesystem has to hold both.
        wanted = [("cache and lab", cache, wanted[0][2] + wanted[1][2])]
    found = []
    for what, place, need in wanted:
        free = host.free(place) / 1024**3
        text = f"{free:.0f} GiB free in {place}, {need} needed"
        if free >= need:
            found.append(Check(f"disk for {what}", "OK", text))
        else:
            fix = "free some space, or set XDG_CACHE_HOME to a larger disk"
            found.append(Check(f"disk for {what}", "FAIL", text, fix))
    return found


def _kvm(needs: Needs, host: Host) -> Check:
    works, why = host.kvm()
    if works:
        return Check("kvm", "OK", "a guest ran with KVM")
    if needs.provider == "lxc" and host.which(kvm.QEMU) is None:
        return Check("kvm", "OK", "not tried, no QEMU on this host; instances run under TCG in the nodes")
    message = f"no guest runs with KVM here, TCG is slower ({why.rsplit(': ', 1)[-1][:60]})"
    return Check("kvm", "WARN", message, "enable (nested) virtualisation")
