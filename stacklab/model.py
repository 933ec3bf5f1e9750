"""The shapes of a lab: what a topology file says, read and checked. All frozen, all plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

ROLES = ("controller", "network", "compute", "block-storage", "object-storage")


@dataclass(frozen=True)
class Network:
    """A network that nodes have an address on.

    `host` is the lab host's own address there; `gateway` and `dns` are empty where nodes have none.
    """

    cidr: str
    host: str
    gateway: str = ""
    dns: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProviderNetwork:
    """The flat network that instances reach the outside by; nodes have no address on it."""

    cidr: str
    gateway: str
    pool_start: str
    pool_end: str


@dataclass(frozen=True)
class TenantNetwork:
    """The first project network, behind a router."""

    cidr: str
    gateway: str


@dataclass(frozen=True)
class Node:
    """One machine. `memory` in MiB, `disk` in GiB; `tunnel` is its address for tunnels between nodes.

    `extra_disks` are further, empty disks, each in GiB.
    """

    name: str
    fqdn: str
    roles: tuple[str, ...]
    management: str
    tunnel: str
    cpus: int
    memory: int
    disk: int
    extra_disks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Topology:
    """A topology file, checked: every address belongs to its network, every name is known."""

    name: str
    description: str
    file: str
    domain: str
    provider: str
    distribution: str
    release: str
    management: Network
    provider_network: ProviderNetwork
    tenant: TenantNetwork
    tunnel: Network
    nodes: tuple[Node, ...]
    services: tuple[str, ...]
    network_agent: str
    answers: dict[str, str] = field(default_factory=dict)
    # Of the services, those that the file names one by one; the others came with a preset.
    named_services: tuple[str, ...] = ()

    def with_role(self, role: str) -> tuple[Node, ...]:
        """The nodes of a role, in the file's order."""
        return tuple(node for node in self.nodes if role in node.roles)

    @property
    def controller(self) -> Node:
        """The one controller."""
        return self.with_role("controller")[0]
