"""What the doctor looks at for virtual machines: processor, hypervisor, host-only networks, addresses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Network

from stacklab import choice
from stacklab.examination import Check, Do, Host, Needs, install, installation, plugin, why

COMMANDS = {
    "libvirt": {
        "virsh": "libvirt-clients",
        "libvirtd": "libvirt-daemon-system",
        "qemu-system-x86_64": "qemu-system-x86",
    },
    "virtualbox": {"VBoxManage": "virtualbox"},
    "vmware_desktop": {"vmrun": "vmware"},
}
"""Commands of each provider of virtual machines and the Debian package of each."""
SEED_COMMANDS = {"xorriso": "xorriso"}
WAY_OUT_COMMANDS = {"dnsmasq": "dnsmasq-base"}
"""What libvirt needs for networks that answer for names."""

PLUGINS = {"libvirt": ("vagrant-libvirt",), "vmware_desktop": ("vagrant-vmware-desktop",)}

LEVELS = {
    2: ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"),
    3: ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"),
}
"""Flags in /proc/cpuinfo that each x86-64 level adds (the x86-64 psABI; EL 9 needs 2, EL 10 needs 3)."""

NETWORKS_CONF = "etc/vbox/networks.conf"
_VBOX_DEFAULT = IPv4Network("192.168.56.0/21")
"""Where VirtualBox since 6.1.28 allows host-only networks when it is not told otherwise."""


def checks(needs: Needs, host: Host) -> list[Check]:
    """The checks of the plan's provider."""
    found = [plugin(host, name) for name in PLUGINS.get(needs.provider, ())]
    if needs.provider == "libvirt":
        found += [_libvirtd(needs, host), processor(needs, host), _nested(host)]
    elif needs.provider == "virtualbox":
        found += [processor(needs, host), _host_only(needs, host)]
    else:
        found.append(processor(needs, host))
    found += [_way_out(needs, host)] if needs.family == "el" else []
    return [*found, _addresses(needs, host)]


def _libvirtd(needs: Needs, host: Host) -> Check:
    """The host's own libvirtd; or what a lab's own needs, which is a user that libvirt wants to exist."""
    if needs.isolated:
        if host.run(["id", "libvirt-qemu"]).code == 0 or host.run(["id", "qemu"]).code == 0:
            return Check("libvirtd", "OK", "the lab has its own, in its network namespace")
        package = "libvirt-daemon-system"
        text = "neither the user libvirt-qemu nor qemu is there, as whom libvirtd runs QEMU"
        return Check("libvirtd", "FAIL", text, install(host, package), installation(host, package))
    answer = host.run(["virsh", "-q", "-c", "qemu:///system", "version"])
    if answer.code == 0:
        return Check("libvirtd", "OK", "the host's answers")
    start = ("systemctl", "enable", "--now", "libvirtd")
    return Check("libvirtd", "FAIL", why(answer), " ".join(start), (Do(start),))


def level(family: str, version: str) -> int:
    """The x86-64 level that a distribution is built for."""
    major = version.partition("-")[0]
    return {"9": 2, "10": 3}.get(major, 1) if family == "el" else 1


def processor(needs: Needs, host: Host) -> Check:
    """Whether the nodes' system runs on this processor: EL 9 panics at once on one that is too old."""
    flags = set(re.findall(r"^flags\s*:\s*(.*)$", host.read("proc/cpuinfo"), re.MULTILINE)[:1])
    here = set(" ".join(flags).split())
    level = 1
    for one, added in LEVELS.items():
        if level == one - 1 and here >= set(added):
            level = one
    if level >= needs.level:
        return Check("processor", "OK", f"x86-64-v{level}, the nodes need v{needs.level}")
    lacking = [flag for one in LEVELS if one <= needs.level for flag in LEVELS[one] if flag not in here]
    text = f"x86-64-v{level}, the nodes need v{needs.level}: {', '.join(lacking)} missing"
    return Check(
        "processor", "FAIL", text, "another machine; on a virtual one the CPU model host-passthrough"
    )


def _nested(host: Host) -> Check:
    """Whether instances in the nodes can have KVM."""
    for module in ("kvm_intel", "kvm_amd"):
        value = host.read(f"sys/module/{module}/parameters/nested").strip()
        if value in ("Y", "1"):
            return Check("nested", "OK", f"{module}: instances in the nodes can have KVM")
        if value:
            fix = (
                f"echo 'options {module} nested=1' > /etc/modprobe.d/stacklab-nested.conf, "
                f"end all virtual machines, modprobe -r {module} && modprobe {module}"
            )
            return Check("nested", "WARN", f"{module}: off, instances in the nodes are emulated", fix)
    return Check("nested", "OK", "no KVM here, so instances in the nodes are emulated, too")


def _host_only(needs: Needs, host: Host) -> Check:
    """Whether VirtualBox may make the lab's two networks."""
    if needs.topology is None:
        return Check("host-only networks", "OK", "no topology was asked for")
    allowed = allowed_networks(host.read(NETWORKS_CONF))
    topology = needs.topology
    lab = [IPv4Network(topology.management.cidr), IPv4Network(topology.provider_network.cidr)]
    missing = [network for network in lab if not any(network.subnet_of(one) for one in allowed)]
    if not missing:
        return Check("host-only networks", "OK", "VirtualBox may make both")
    line = f"* {' '.join(map(str, missing))}\n"
    path = f"/{NETWORKS_CONF}"
    fix = f"mkdir -p /etc/vbox; echo '{line.strip()}' >> {path}"
    do = (Do(("mkdir", "-p", "/etc/vbox")), Do(("tee", "-a", path), line))
    text = f"VirtualBox refuses {' and '.join(map(str, missing))} (since 6.1.28, see {path})"
    return Check("host-only networks", "FAIL", text, fix, do)


def allowed_networks(conf: str) -> list[IPv4Network]:
    """The IPv4 networks that VirtualBox's networks.conf allows; its default where it says nothing."""
    found = []
    for line in conf.splitlines():
        mark, _, rest = line.strip().partition(" ")
        if mark != "*":
            continue  # a comment
        for word in rest.split():
            try:
                found.append(IPv4Network(word, strict=False))
            except ValueError:
                continue  # IPv6
    return found or [_VBOX_DEFAULT]


def _way_out(needs: Needs, host: Host) -> Check:
    """Whether nodes of EL get to repositories: Packstack installs OpenStack's packages on each of them."""
    why_not = "EL nodes fetch OpenStack's packages from repositories; "
    if needs.provider == "libvirt":
        if not needs.isolated:
            return Check("way out", "OK", "through the host, NAT")
        taken = choice.collisions(needs.topology, host.routes()) if needs.topology else []
        fix = "start the host's libvirtd (systemctl enable --now libvirtd); no --own-network"
        if taken:
            fix = f"take networks that are free on this host ({_keys(taken)} in the topology)"
        text = f"{why_not}a namespace of the lab's own has no way out"
        return Check("way out", "FAIL", text, fix)
    if needs.topology is None:
        return Check("way out", "OK", "no topology was asked for")
    management = needs.topology.management
    if management.gateway != management.host and management.dns:
        return Check("way out", "OK", f"{management.gateway}, names by {', '.join(management.dns)}")
    text = f"{why_not}this host is no way out of its host-only networks"
    fix = "give networks.management in the topology a gateway and dns that lead out"
    return Check("way out", "FAIL", text, fix)


def _keys(found: Sequence[choice.Collision]) -> str:
    """Where the topology has the networks that collide."""
    return ", ".join(dict.fromkeys(f"networks.{one.name}.cidr" for one in found))


def _addresses(needs: Needs, host: Host) -> Check:
    """Whether the lab's networks are free on this host."""
    if needs.isolated:
        return Check("addresses", "OK", "the lab's networks live in a network namespace of their own")
    if needs.exists or needs.topology is None:
        return Check("addresses", "OK", "the lab is there: its networks are the host's")
    found = choice.collisions(needs.topology, host.routes())
    if not found:
        return Check("addresses", "OK", "the lab's networks are free on this host")
    fix = f"other networks in the topology ({_keys(found)}), or the route away: ip route del …"
    if needs.provider == "libvirt" and needs.family != "el":
        fix = f"up --own-network, or {fix}"
    return Check("addresses", "FAIL", "; ".join(map(str, found)), fix)
