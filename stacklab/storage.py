"""Storage on nodes of its own: Packstack puts all of it on the controller, and from there it moves here.

This is the last step of the stage `openstack`, for labs with nodes of the roles block-storage (Cinder's
volumes) and object-storage (Swift's objects). The files that Packstack wrote are copied from the controller,
with the node's address in place of the controller's, so that every answer holds there, too.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stacklab import files, remote, services, ui
from stacklab.errors import LabError
from stacklab.model import Node, Topology
from stacklab.plan import Plan

BLOCK, OBJECT = "block-storage", "object-storage"
# Packstack's ports of the servers of objects, containers and accounts.
PORTS = {6000: "swift-object-server", 6001: "swift-container-server", 6002: "swift-account-server"}

_CINDER = r"(openstack-)?cinder-volume\.service"
_PARTS = "auditor|reaper|reconstructor|replicator|sharder|sync|updater"
_SWIFT = rf"(openstack-)?swift-(account|container|object)(-({_PARTS}))?\.service"
_RSYNC = r"rsyncd?\.service"  # what replicators send with
_PROXY = r"(openstack-)?swift-proxy\.service"
# Of /etc/swift what storage servers need; the proxy's password is not among it.
_SWIFT_FILES = (
    *("/etc/swift/swift.conf", "/etc/rsyncd.conf"),
    *(f"/etc/swift/{kind}-server.conf" for kind in ("account", "container", "object")),
    *(f"/etc/swift/{kind}.ring.gz" for kind in ("account", "container", "object")),
)


def keepers(topology: Topology, role: str) -> tuple[Node, ...]:
    """The nodes that keep the data of a storage role: the controller where no node has the role."""
    return topology.with_role(role) or (topology.controller,)


def moved(topology: Topology, role: str) -> tuple[Node, ...]:
    """The nodes that the data of a storage role moves to from the controller."""
    there = services.of_role(role) in topology.services
    return tuple(node for node in topology.with_role(role) if there and node != topology.controller)


def inputs(plan: Plan) -> dict[str, Any]:
    """What the stage's key depends on besides Packstack's answers; nothing where nothing moves."""
    if not any(moved(plan.topology, role) for role in (BLOCK, OBJECT)):
        return {}
    return {"storage nodes": files.tree_digest(remote.SCRIPTS / "storage")}


def commands(plan: Plan) -> tuple[str, ...]:
    """What runs after Packstack, for a dry run."""
    found = []
    for role, what in ((BLOCK, "volumes"), (OBJECT, "objects")):
        for node in moved(plan.topology, role):
            found.append(f"on {node.name}: scripts/storage/{what}")
    return tuple(found)


def place(plan: Plan) -> None:
    """Move volumes and objects to the nodes of their roles; can be repeated.

    Raises CommandFailed with the log's path where a command fails, LabError for missing disks.
    """
    topology = plan.topology
    blocks, objects = moved(topology, BLOCK), moved(topology, OBJECT)
    log = plan.directory / "logs" / "storage.log"
    log.unlink(missing_ok=True)
    if blocks or objects:
        _let_in(plan, {*blocks, *objects}, log)
    if blocks:
        with ui.step(f"volumes: cinder-volume on {', '.join(node.name for node in blocks)}"):
            _volumes(plan, blocks, log)
    if objects:
        with ui.step(f"objects: Swift's storage on {', '.join(node.name for node in objects)}"):
            _objects(plan, objects, log)


def _script(plan: Plan, node: Node, log: Path, name: str, *args: str) -> str:
    quoted = [shlex.quote(arg) for arg in args]
    return remote.script(plan, node, f"storage/{name}", *quoted, log=log, timeout=300).output


def _let_in(plan: Plan, nodes: set[Node], log: Path) -> None:
    """Packstack's firewalls name the hosts that it knows of, which storage nodes are not."""
    for node in plan.topology.nodes:
        others = plan.topology.nodes if node in nodes else nodes
        addresses = sorted(other.management for other in others if other != node)
        remote.script(plan, node, "let-in", *addresses, log=log)


def _volumes(plan: Plan, nodes: tuple[Node, ...], log: Path) -> None:
    controller = plan.topology.controller
    for node in nodes:
        _script(plan, controller, log, "hand-over", node.management, "/etc/cinder")
        _script(plan, node, log, "volumes", controller.management, node.management, *_disks(plan, node, log))
        _script(plan, node, log, "services", "on", _CINDER)
    if controller not in keepers(plan.topology, BLOCK):
        _script(plan, controller, log, "services", "off", _CINDER)
        _script(plan, controller, log, "retire-volumes", controller.fqdn)


def _objects(plan: Plan, nodes: tuple[Node, ...], log: Path) -> None:
    controller = plan.topology.controller
    alone = controller not in keepers(plan.topology, OBJECT)
    disks = {node: _disks(plan, node, log) for node in nodes}
    # A zone for each node: replicas are kept apart. Weights are sizes in GiB; one directory stands for all.
    devices = {
        node: {f"disk{number}": size for number, size in enumerate(node.extra_disks or (node.disk,), start=1)}
        for node in nodes
    }
    ring = [
        f"{node.management}:{name}:{zone}:{size}"
        for zone, (node, found) in enumerate(devices.items(), start=1 if alone else 2)
        for name, size in found.items()
    ]
    _script(plan, controller, log, "rings", controller.management if alone else "none", *ring)
    for node, found in devices.items():
        _script(plan, controller, log, "hand-over", node.management, *_SWIFT_FILES)
        pairs = [f"{name}={disk}" for name, disk in zip(found, disks[node], strict=False)]
        places = pairs or list(found)
        _script(plan, node, log, "objects", controller.management, node.management, *places)
        _script(plan, node, log, "services", "on", f"{_SWIFT}|{_RSYNC}")
    if alone:
        _script(plan, controller, log, "services", "off", _SWIFT)
    _script(plan, controller, log, "services", "on", _PROXY)


def _disks(plan: Plan, node: Node, log: Path) -> list[str]:
    """The extra disks of a node by their device names; none of a container."""
    if plan.provider == "lxc":
        return []
    found = _script(plan, node, log, "disks").split()
    if len(found) != len(node.extra_disks):
        raise LabError(
            f"{node.name} has the extra disks {', '.join(found) or 'none'}, and its topology gives it "
            f"{len(node.extra_disks)}",
            hint=f"`invoke ssh {node.name} -c lsblk` shows its disks",
        )
    return found


def servers(plan: Plan) -> Iterator[tuple[str, Node, bool]]:
    """Swift's storage servers: name, node, and whether it answers. To be asked where the lab's networks are.

    Every server that there should be, and those of the controller that answer and should not be there.
    """
    there = keepers(plan.topology, OBJECT)
    for node in dict.fromkeys((*there, plan.topology.controller)):
        for port, name in PORTS.items():
            up = _listens(node.management, port)
            if up or node in there:
                yield name, node, up


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False
