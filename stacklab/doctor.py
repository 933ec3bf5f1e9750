"""Whether this machine can build the lab, found out by trying, each finding with what to type.

Nothing here changes the machine: what a check makes (a mount, a network namespace, a
directory) is private to it and gone when it ends. Only `repair` does, when it is asked to.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from stacklab import doctor_machines, files, kvm
from stacklab.examination import Check, Do, Host, Needs, existing, install, installation, plugin, why

MEMORY_LXC = {"controller": 3.5, "network": 0.5, "compute": 1.5}
"""GiB that a node's roles take as containers. Two nodes with Neutron and instances: about 6 GB measured
with the host's own share; the controller 2.2-2.9 GB, a compute node 0.5 GB before its first instance."""
DISK_BUILD = 12
"""GiB in the cache to build a golden image: its tree, its tarball and what was downloaded."""
DISK_CACHE = 2
"""GiB in the cache once the golden image is there: guest images."""
DISK_LAB = 5
"""GiB for a lab of containers: what its nodes write, and their snapshots."""
DISK_MACHINE = 6
"""GiB that the disk of a virtual machine grows to, the box of its image included."""
SNAPSHOTS = 3
"""Snapshots of virtual machines that there should be room for, half of their memory in each."""

LXC_COMMANDS = {"lxc-start": "lxc", "lxc-attach": "lxc"}
COMMANDS = {
    "vagrant": "vagrant",
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
"""Commands that every provider needs and the Debian package of each."""


def run_checks(needs: Needs, host: Host | None = None) -> list[Check]:
    """All checks for this lab, in the order in which their fixes are best done."""
    host = host or Host()
    found = [_root(host)]
    if needs.provider == "lxc":
        found += [*_commands(host, COMMANDS | LXC_COMMANDS), _builder(host), plugin(host, "vagrant-lxc")]
        found += [_overlay(needs, host), _network(host), _tun(host), _cgroup(host), _datapath(host)]
        found += [_addresses()]
    else:
        commands = COMMANDS | doctor_machines.SEED_COMMANDS | doctor_machines.COMMANDS[needs.provider]
        if needs.provider == "libvirt" and needs.family == "el" and not needs.isolated:
            commands |= doctor_machines.WAY_OUT_COMMANDS
        if needs.builder == "packer" and not needs.golden:
            commands |= {"packer": "packer"}
        found += [*_commands(host, commands), _builder(host)]
        found += [_network(host)] if needs.isolated else []
        found += doctor_machines.checks(needs, host)
    return [*found, *_memory(needs, host), *_disk(needs, host), *_mirrors(needs, host), _kvm(needs, host)]


def repair(found: Sequence[Check], host: Host | None = None) -> list[tuple[str, str]]:
    """Run what is safe of the fixes; what was run and how it went ("done", or why not)."""
    host = host or Host()
    told = []
    for do in dict.fromkeys(do for check in found if check.state != "OK" for do in check.do):
        answer = host.run(do.argv, do.stdin, 900)
        told.append((" ".join(do.argv), "done" if answer.code == 0 else why(answer)))
    return told


def _root(host: Host) -> Check:
    if host.euid() == 0:
        return Check("root", "OK", "running as root")
    return Check("root", "FAIL", "not running as root", "scripts/stacklab TASK (it uses sudo)")


def _commands(host: Host, wanted: Mapping[str, str]) -> list[Check]:
    missing = [name for name in wanted if host.which(name) is None]
    if not missing:
        return [Check("commands", "OK", f"all {len(wanted)} are there")]
    return [
        Check(
            *(f"command {name}", "FAIL", f"{name} is not on PATH", install(host, wanted[name])),
            installation(host, wanted[name]),
        )
        for name in missing
    ]


def _builder(host: Host) -> Check:
    tool = host.tools / "disk-image-create"
    if os.access(tool, os.X_OK):
        return Check("diskimage-builder", "OK", str(tool))
    fix = f"{host.tools / 'python'} -m pip install -e ."
    return Check("diskimage-builder", "FAIL", f"{tool} is not there", fix)


def _overlay(needs: Needs, host: Host) -> Check:
    """Nodes are overlay mounts whose upper directory is in the lab's; not every filesystem can be that."""
    place = existing(needs.lab)
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
    return Check("overlayfs", "FAIL", f"does not mount in {place}: {why(answer)}", fix)


def _network(host: Host) -> Check:
    # Not `ip netns add`: it leaves a mount on /run/netns behind, and the namespace when it is killed.
    inside = ["unshare", "-n", "ip", "link"]
    answer = host.run([*inside, "show"])
    if answer.code != 0:
        fix = "use a kernel with CONFIG_NET_NS; in a container, one that may make namespaces (privileged)"
        return Check("network", "FAIL", f"no network namespace: {why(answer)}", fix)
    pair = ["add", "veth-a", "type", "veth", "peer", "name", "veth-b"]
    for kind, words in (("veth", pair), ("bridge", ["add", "br-a", "type", "bridge"])):
        answer = host.run([*inside, *words])
        if answer.code != 0:
            fix = f"modprobe {kind}"
            return Check(
                "network", "FAIL", f"no {kind} device: {why(answer)}", fix, (Do(tuple(fix.split())),)
            )
    return Check("network", "OK", "network namespaces, veth and bridge devices work")


def _tun(host: Host) -> Check:
    device = host.root / "dev/net/tun"
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError as error:
        fix = "modprobe tun; mkdir -p /dev/net; mknod /dev/net/tun c 10 200"
        return Check("tun", "FAIL", f"{device}: {error.strerror}", fix, (Do(("modprobe", "tun")),))
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


def _mirrors(needs: Needs, host: Host) -> list[Check]:
    """Whether the golden image's packages can be had, where it is still to be built."""
    silent = [url for url in needs.mirrors if not host.reaches(url)]
    if not needs.mirrors:
        return []
    if not silent:
        return [Check("mirrors", "OK", f"{len(needs.mirrors)} answer")]
    fix = "look at the network, or set mirror and proxy in invoke.yaml"
    return [Check("mirrors", "FAIL", f"{url} does not answer", fix) for url in silent]


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


def _lab_disk(needs: Needs) -> int:
    """GiB that a lab takes in time, beside what it has already."""
    if needs.provider == "lxc" or needs.topology is None:
        return DISK_LAB
    nodes = needs.topology.nodes
    # A snapshot has what a node's memory holds; there is one a stage.
    wanted = len(nodes) * DISK_MACHINE + sum(node.memory for node in nodes) * SNAPSHOTS // 1024 // 2
    return max(0, wanted - files.disk_usage(needs.lab) // 1024**3) if needs.lab.is_dir() else wanted


def _disk(needs: Needs, host: Host) -> list[Check]:
    cache, lab = existing(needs.cache), existing(needs.lab)
    wanted = [("cache", cache, DISK_CACHE if needs.golden else DISK_BUILD), ("lab", lab, _lab_disk(needs))]
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
    works, reason = host.kvm()
    if works:
        return Check("kvm", "OK", "a guest ran with KVM")
    if needs.provider == "lxc" and host.which(kvm.QEMU) is None:
        return Check("kvm", "OK", "not tried, no QEMU on this host; instances run under TCG in the nodes")
    if needs.provider in ("virtualbox", "vmware_desktop"):
        return Check("kvm", "OK", f"not used by {needs.provider}")
    slow = "nodes are emulated, ten times as slow" if needs.provider == "libvirt" else "TCG is slower"
    message = f"no guest runs with KVM here, {slow} ({reason.rsplit(': ', 1)[-1][:60]})"
    return Check("kvm", "WARN", message, "enable (nested) virtualisation")
