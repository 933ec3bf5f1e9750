"""The provider libvirt's snapshots of disks alone: layers of qcow2, where libvirt keeps no memory.

A capture puts a new layer over each disk; what lies below is never written again. Going
back puts another new layer over what was kept, and the nodes boot.
"""

from __future__ import annotations

import json
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.run import Result, run

Disks = dict[str, dict[str, str]]
"""By node and target (vda …), the file that a capture left below its layer."""


class Host(Protocol):
    """What of the provider is needed here."""

    plan: Plan
    images: Path
    log: Path

    def machine(self, node: Node) -> str:
        """A node's name in libvirt."""

    def virsh(self, *words: str, check: bool = True, timeout: float = 300) -> Result:
        """Run virsh."""


def push(host: Host, name: str) -> Disks:
    """Put a layer over every disk of every node, all of them paused or off; what lies below now."""
    found: Disks = {}
    for node in host.plan.topology.nodes:
        disks = found[node.name] = _disks(host, node)
        words = [host.machine(node), name, "--disk-only", "--atomic", "--no-metadata"]
        for target in disks:
            words += ["--diskspec", f"{target},file={_new(host, node, target, name)}"]
        host.virsh("snapshot-create-as", *words)
    return found


def revert(host: Host, kept: Disks) -> None:
    """Let the nodes, which are off, start from what `push` returned `kept` for."""
    name = uuid.uuid4().hex[:12]
    for node in host.plan.topology.nodes:
        domain = ET.fromstring(host.virsh("dumpxml", host.machine(node), "--inactive").output)
        for target, disk in _by_target(domain).items():
            top = _new(host, node, target, name)
            below = kept[node.name][target]
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", top], log=host.log)
            _source(disk).set("file", str(top))
            for old in disk.findall("backingStore"):
                disk.remove(old)
        described = host.images / f"{node.name}.xml"
        described.write_text(ET.tostring(domain, encoding="unicode"), encoding="utf-8")
        host.virsh("define", str(described))
        described.unlink()


def prune(host: Host, kept: Iterable[Disks]) -> None:
    """Remove the layers that neither the nodes nor the captures `kept` stand on."""
    layers = set(host.images.glob("*.layer.qcow2"))
    if not layers:
        return
    tops = {path for disks in kept for paths in disks.values() for path in paths.values()}
    for node in host.plan.topology.nodes:
        tops |= set(_disks(host, node).values())
    needed = {below for top in tops for below in _chain(Path(top))}
    for layer in layers - needed:
        layer.unlink()


def _new(host: Host, node: Node, target: str, name: str) -> Path:
    return host.images / f"{node.name}-{target}-{name}.layer.qcow2"


def _by_target(domain: ET.Element) -> dict[str, ET.Element]:
    """The disks of a domain that have a file, by target; no CD-ROM."""
    found = {}
    for disk in domain.findall("devices/disk"):
        target = disk.find("target")
        if disk.get("device", "disk") == "disk" and target is not None and disk.find("source") is not None:
            found[target.get("dev", "")] = disk
    return found


def _source(disk: ET.Element) -> ET.Element:
    found = disk.find("source")
    assert found is not None  # or `_by_target` would not have it
    return found


def _disks(host: Host, node: Node) -> dict[str, str]:
    """The files that a node's disks are now, by target."""
    domain = ET.fromstring(host.virsh("dumpxml", host.machine(node)).output)
    return {target: _source(disk).get("file", "") for target, disk in _by_target(domain).items()}


def _chain(top: Path) -> list[Path]:
    told = run(
        ["qemu-img", "info", "-U", "--backing-chain", "--output=json", top], merge_stderr=False, timeout=60
    ).output
    return [Path(one["filename"]) for one in json.loads(told)]
