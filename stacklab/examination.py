"""What a check of this machine is: what it is asked for, what it finds, what to type then."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

from stacklab import choice, kvm
from stacklab.errors import CommandFailed
from stacklab.model import Topology
from stacklab.run import Result, run

State = Literal["OK", "WARN", "FAIL"]

EL_PACKAGES = {
    "fdisk": "util-linux",
    "iproute2": "iproute",
    "iputils-ping": "iputils",
    "procps": "procps-ng",
    "qemu-utils": "qemu-img",
    "openssh-client": "openssh-clients",
    "netcat-openbsd": "nmap-ncat",
    "git": "git-core",
    "libvirt-clients": "libvirt-client",
    "libvirt-daemon-system": "libvirt-daemon",
    "qemu-system-x86": "qemu-kvm",
    "dnsmasq-base": "dnsmasq",
}
"""Where EL calls a Debian package by another name."""

BY_HAND = {
    "vagrant": "install the package from https://developer.hashicorp.com/vagrant/install",
    "vagrant-lxc": "as root: vagrant plugin install vagrant-lxc",
    "vagrant-libvirt": "as root: vagrant plugin install vagrant-libvirt",
    "vagrant-vmware-desktop": "vagrant plugin install vagrant-vmware-desktop, and install its utility from "
    "https://developer.hashicorp.com/vagrant/install/vmware",
    "virtualbox": "install the package from https://www.virtualbox.org/wiki/Downloads",
    "vmware": "install VMware Workstation or Fusion",
    "packer": "install the package from https://developer.hashicorp.com/packer/install",
    "lxc": "enable EPEL, then: dnf install lxc",
    "mmdebstrap": "install it from its authors: EL has no package of it",
    "debootstrap": "enable EPEL, then: dnf install debootstrap",
}
"""What has no package: vagrant and vagrant-lxc on Ubuntu 24.04 and later, all of it on EL."""
_NOWHERE = ("virtualbox", "vmware", "vagrant-vmware-desktop")


@dataclass(frozen=True)
class Do:
    """One command of a fix, with its standard input."""

    argv: tuple[str, ...]
    stdin: str = ""


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is what to type or do; empty when nothing is to be done.

    `do` are the commands of it that are safe to run unasked: `invoke doctor --fix` runs them.
    """

    name: str
    state: State
    message: str
    fix: str = ""
    do: tuple[Do, ...] = ()


@dataclass(frozen=True)
class Needs:
    """What the lab wants of the machine.

    `golden` says that its golden image is in `cache` already; where it is not, `builder` makes
    it, and `mirrors` are URLs that have to answer. `isolated` and `exists` are about the lab's
    networks: in a namespace of their own, there already. `family` is that of the nodes' system,
    `level` the x86-64 level that it needs.
    """

    provider: str
    lab: Path
    cache: Path
    topology: Topology | None = None
    golden: bool = False
    builder: str = "dib"
    isolated: bool = True
    exists: bool = False
    family: str = "debian"
    level: int = 1
    mirrors: tuple[str, ...] = ()


def _run(argv: Sequence[str], stdin: str = "", timeout: float = 30) -> Result:
    try:
        return run(argv, timeout=timeout, check=False, stdin=stdin)
    except CommandFailed as error:
        return Result(127, error.message)


def _reaches(url: str) -> bool:
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10):
            return True
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Host:
    """How the checks ask the machine; a test gives answers of its own. `root` holds etc, proc, sys, dev."""

    root: Path = Path("/")
    home: Path = field(default_factory=Path.home)
    tools: Path = Path(sys.executable).parent
    euid: Callable[[], int] = os.geteuid
    which: Callable[[str], str | None] = shutil.which
    run: Callable[..., Result] = _run
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    device: Callable[[Path], int] = lambda path: path.stat().st_dev
    kvm: Callable[[], tuple[bool, str]] = kvm.known
    reaches: Callable[[str], bool] = _reaches
    routes: Callable[[], list[IPv4Network]] = choice.routes

    def read(self, path: str) -> str:
        """A file's text; empty when it is not there."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


def install(host: Host, package: str) -> str:
    """What installs `package`, called by its Debian name, on this distribution."""
    values = dict(line.split("=", 1) for line in host.read("etc/os-release").splitlines() if "=" in line)
    family = {values.get("ID", "").strip('"'), *values.get("ID_LIKE", "").strip('"').split()}
    if package in _NOWHERE:
        return BY_HAND[package]
    if "rhel" in family:
        return BY_HAND.get(package) or f"dnf install {EL_PACKAGES.get(package, package)}"
    if "ubuntu" in family and package in ("vagrant", "vagrant-lxc", "vagrant-libvirt"):
        return BY_HAND[package]
    return f"apt-get install {package}"


def installation(host: Host, package: str) -> tuple[Do, ...]:
    """The command for it, where it is a package of this distribution."""
    words = install(host, package).split()
    if words[:2] == ["apt-get", "install"]:
        return (Do(("env", "DEBIAN_FRONTEND=noninteractive", *words[:2], "-q", "-y", *words[2:])),)
    if words[:2] == ["dnf", "install"]:
        return (Do((*words[:2], "-q", "-y", *words[2:])),)
    return ()


def plugin(host: Host, name: str) -> Check:
    """Files first: asking Vagrant itself costs two seconds, so that is only done before saying no."""
    package = host.root / f"usr/share/vagrant-plugins/plugins.d/{name}.json"
    gems = host.root / "usr/share/rubygems-integration/all/specifications"
    if package.is_file() and any(gems.glob(f"{name}-*.gemspec")):
        return Check(name, "OK", "the distribution's package")
    own = Path(os.environ.get("VAGRANT_HOME") or host.home / ".vagrant.d")
    try:
        listed = name in json.loads((own / "plugins.json").read_text(encoding="utf-8"))["installed"]
    except (OSError, ValueError, KeyError, TypeError):
        listed = False
    if listed and any(own.glob(f"gems/*/gems/{name}-*")):
        return Check(name, "OK", f"installed in {own}")
    if host.which("vagrant") is not None:
        answer = host.run(["vagrant", "plugin", "list"])
        if answer.code == 0 and any(line.startswith(f"{name} ") for line in answer.output.splitlines()):
            return Check(name, "OK", "Vagrant lists it")
    return Check(
        name, "FAIL", "Vagrant does not know the plugin", install(host, name), installation(host, name)
    )


def existing(path: Path) -> Path:
    """The directory itself, or what it would be made in."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def why(result: Result) -> str:
    return (result.output.strip().splitlines() or [f"exit code {result.code}"])[-1]
