"""The provider libvirt for real: two emulated nodes in a network namespace with a libvirtd of its own.

From the box to checked nodes, back to a snapshot of their memory, and away without a trace.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from stacklab import interfaces, namespace, nodes, providers, remote, removal
from stacklab.errors import LabError
from stacklab.plan import Plan
from stacklab.providers.libvirt import Libvirt
from tests.integration import small_lab
from tests.lab.driving import footprint

pytestmark = pytest.mark.integration

LAB = "it-libvirt"


@pytest.fixture
def provider() -> Iterator[Libvirt]:
    """The two nodes, not made yet; whatever becomes of them is removed."""
    with suppress(LabError):
        removal.down(LAB)
    plan = small_lab.two_nodes(LAB)
    made = providers.provider(plan, small_lab.image())
    assert isinstance(made, Libvirt)
    yield made
    removal.down(LAB)


def on(plan: Plan, name: str, command: str) -> str:
    """What a command says on a node."""
    return remote.ssh(plan, remote.node_named(plan, name), command, timeout=120).output.strip()


def everywhere(plan: Plan, command: str) -> list[str]:
    """What a command says on each node, on all at once."""
    with ThreadPoolExecutor(len(plan.topology.nodes)) as pool:
        return list(pool.map(lambda node: on(plan, node.name, command), plan.topology.nodes))


def test_two_nodes_from_nothing_to_nothing(provider: Libvirt) -> None:
    before = footprint()
    plan = provider.plan
    provider.create()
    nodes.check(plan)  # names, networks, clocks, ssh as root between the nodes
    check_interfaces(plan)
    check_systems(plan)
    assert provider.exists() and provider.running() == {"controller": True, "compute1": True}
    memory_comes_back(provider)
    daemon = provider.daemon
    assert daemon is not None
    pid = daemon.pid()
    assert pid is not None
    removal.down(LAB)
    assert has_ended(pid)
    after = footprint()
    left = {what: sorted(one for one in found - before[what] if LAB in one) for what, found in after.items()}
    assert not any(left.values()), left
    assert not plan.directory.exists() and not daemon.sockets.exists()
    assert not namespace.path(plan).exists()


def has_ended(pid: int) -> bool:
    """Whether a process is gone; one that nobody has reaped yet has no command line any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    except FileNotFoundError:
        return True


def check_interfaces(plan: Plan) -> None:
    """By their MAC addresses they have their names, and only the management one has an address."""
    for node in plan.topology.nodes:
        links = json.loads(on(plan, node.name, "ip -j address"))
        found = {link["ifname"]: link for link in links}
        for one in interfaces.of(plan, node):
            assert found[one.name]["address"] == one.mac
            assert "UP" in found[one.name]["flags"], f"{one.name} of {node.name} is down"
        addresses = {
            name: [address["local"] for address in link["addr_info"] if address["family"] == "inet"]
            for name, link in found.items()
            if name != "lo"
        }
        assert addresses == {"eth0": [node.management], "eth1": []}


def check_systems(plan: Plan) -> None:
    """What each node is by itself."""
    assert len(set(everywhere(plan, "cat /etc/machine-id"))) == 2
    # The disk is larger than the image's, and the filesystem has grown to it.
    assert all(int(size) > 10 << 30 for size in everywhere(plan, "df --output=size -B1 / | tail -n 1"))
    # Open vSwitch's datapath is the nodes' own kernel's, whatever the host's has.
    everywhere(plan, "modprobe openvswitch && test -d /sys/module/openvswitch")


def memory_comes_back(provider: Libvirt) -> None:
    """All nodes go on where they were, with today's time, and none was started anew."""
    plan = provider.plan
    everywhere(plan, "echo memory > /run/kept; echo disk > /root/kept; sync")
    boots = everywhere(plan, "cat /proc/sys/kernel/random/boot_id")
    payload = provider.capture()
    assert payload["kind"] == "memory"
    taken = time.time()
    everywhere(plan, "rm /run/kept /root/kept; echo later > /root/later; sync")
    time.sleep(max(0.0, taken + 40 - time.time()))
    provider.revert(payload)
    assert provider.running() == {"controller": False, "compute1": False}, "one ran before all were back"
    assert "snapshot-revert" not in provider.log.read_text(), "libvirt had to start other QEMUs"
    provider.start()
    assert everywhere(plan, "cat /run/kept /root/kept") == ["memory\ndisk"] * 2
    assert everywhere(plan, "test -e /root/later || echo gone") == ["gone"] * 2
    assert everywhere(plan, "cat /proc/sys/kernel/random/boot_id") == boots
    for shown in everywhere(plan, "date +%s"):
        assert abs(int(shown) - time.time()) < 15, f"a clock shows the snapshot's time ({taken:.0f})"
    nodes.check(plan)
    provider.prune([])
    for node in plan.topology.nodes:
        assert provider.virsh("snapshot-list", provider.machine(node), "--name").output.split() == []
