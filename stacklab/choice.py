"""What `auto` becomes on this machine: the provider, and where the lab's networks live.

Each choice comes with its reason. A lab that is there keeps what was chosen for it: its
own networks would look like a collision, and its nodes cannot change what they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Any

from stacklab import files, kvm
from stacklab.errors import CommandFailed
from stacklab.model import Topology
from stacklab.run import run


def _answers(argv: Sequence[str]) -> bool:
    try:
        return run(argv, check=False, timeout=20).code == 0
    except CommandFailed:
        return False


def routes() -> list[IPv4Network]:
    """The networks that this host has routes of its own into."""
    try:
        return networks_of(run(["ip", "-4", "route", "show", "table", "all"], check=False, timeout=20).output)
    except CommandFailed:
        return []


def networks_of(routes: str) -> list[IPv4Network]:
    """The networks in what `ip route` printed: by an interface or a gateway, but not the default.

    Nor its halves, by which a VPN takes the default's place.
    """
    found = []
    for line in routes.splitlines():
        try:
            found.append(IPv4Network(line.split()[0]))
        except (IndexError, ValueError):
            continue  # default, and local, broadcast and the like, which other lines imply
    return [network for network in found if network.prefixlen > 1]


@dataclass(frozen=True)
class Machine:
    """How the choices ask the machine; a test gives answers of its own."""

    kvm: Callable[[], tuple[bool, str]] = kvm.known
    which: Callable[[str], str | None] = shutil.which
    answers: Callable[[Sequence[str]], bool] = _answers
    routes: Callable[[], list[IPv4Network]] = routes
    home: Path = field(default_factory=Path.home)
    root: Path = Path("/")

    def has_plugin(self, name: str) -> bool:
        """Whether Vagrant has a plugin: the distribution's, or one that root installed."""
        if (self.root / f"usr/share/vagrant-plugins/plugins.d/{name}.json").is_file():
            return True
        own = Path(os.environ.get("VAGRANT_HOME") or self.home / ".vagrant.d")
        return name in ((files.read_json(own / "plugins.json") or {}).get("installed") or {})

    def has_libvirt(self) -> bool:
        """Whether the provider libvirt could be used at all."""
        return bool(self.which("virsh") and self.which("vagrant")) and self.has_plugin("vagrant-libvirt")


@dataclass(frozen=True)
class Chosen:
    """The fields of a Plan that depend on the machine, and why they are what they are.

    `datapath` is that of the lab that is there, empty where there is none on this provider.
    """

    provider: str
    isolated: bool = True
    emulated: bool = False
    datapath: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collision:
    """A network of the lab, by its name in the topology, that the host has a route of its own into."""

    name: str
    cidr: str
    route: IPv4Network

    def __str__(self) -> str:
        return f"{self.name} {self.cidr} is also the host's {self.route}"


def collisions(topology: Topology, routes: Collection[IPv4Network]) -> list[Collision]:
    """What collides of the networks that virtual machines have: none of them is for tunnels."""
    lab = {"management": topology.management.cidr, "provider": topology.provider_network.cidr}
    return [
        Collision(name, cidr, route)
        for name, cidr in lab.items()
        for route in routes
        if route.overlaps(ip_network(cidr))
    ]


def choose(
    topology: Topology,
    wanted: str,
    lab: str,
    images: Collection[str] = (),
    own_network: bool = False,
    machine: Machine | None = None,
) -> Chosen:
    """Choose for a lab. `images` are the providers that the distribution has an image for.

    `own_network` asks for a network namespace of the lab's own, whatever the host's
    network is like.
    """
    machine = machine or Machine()
    saved: dict[str, Any] = (files.read_json(files.labs_dir() / lab / "plan.json") or {}).get("plan", {})
    reasons: list[str] = []
    provider = wanted
    if wanted == "auto":
        provider, why = _provider(images, saved, machine)
        reasons.append(f"provider: {provider} ({why})")
    kept = saved.get("provider") == provider
    if provider == "lxc" or provider not in images:
        datapath = str(saved["datapath"]) if kept else ""
        return Chosen(provider, datapath=datapath, reasons=tuple(reasons))
    emulated = False
    if provider == "libvirt":
        works, why = (not saved["emulated"], "as this lab was made") if kept else machine.kvm()
        emulated = not works
        if emulated:
            reasons.append(f"emulated nodes, about ten times as slow ({_short(why)})")
        isolated = saved["isolated"] if kept else _isolated(topology, own_network, machine, reasons)
    else:
        isolated = False
    return Chosen(provider, isolated, emulated, reasons=tuple(reasons))


def provider(images: Collection[str], machine: Machine | None = None) -> tuple[str, str]:
    """The provider of a new lab, of those that there is an image for, and why."""
    return _provider(images, {}, machine or Machine())


def _provider(images: Collection[str], saved: dict[str, Any], machine: Machine) -> tuple[str, str]:
    if saved.get("provider") in images:
        return str(saved["provider"]), "as this lab was made"
    why = ""
    if "libvirt" in images and machine.has_libvirt():
        works, why = machine.kvm()
        if works:
            return "libvirt", "KVM runs a guest here"
        why = _short(why)
    elif "libvirt" in images:
        why = "no virsh or no vagrant-libvirt: `invoke doctor --provider libvirt`"
    if "virtualbox" in images and machine.which("VBoxManage"):
        return "virtualbox", "VirtualBox is installed, and libvirt with KVM is not to be had"
    if "lxc" in images or not images:
        return "lxc", f"containers: needs no working KVM{f'; not libvirt, {why}' if why else ''}"
    return next(iter(images)), "there is an image for it"


def _isolated(topology: Topology, own_network: bool, machine: Machine, reasons: list[str]) -> bool:
    place = "networks: in a network namespace of the lab's own, with its own libvirtd"
    if own_network:
        reasons.append(f"{place} (asked for)")
        return True
    found = collisions(topology, machine.routes())
    if found:
        reasons.append(f"{place} ({found[0]})")
        return True
    if not machine.answers(["virsh", "-q", "-c", "qemu:///system", "version"]):
        reasons.append(f"{place} (no libvirtd of the host answers)")
        return True
    return False


def _short(why: str) -> str:
    """QEMU begins what it says with its own name and place."""
    return why.rsplit(": ", 1)[-1][:60]
