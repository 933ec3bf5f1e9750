"""The interfaces of a node: their names, MAC addresses and addresses, and how each network service is told.

On every provider eth0 is the management network, eth1 the provider network (without an
address, for br-ex), eth2 the tunnel network where the plan has one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network

from stacklab.model import Node
from stacklab.plan import Plan


@dataclass(frozen=True)
class Interface:
    """`address` is with its prefix length, such as 10.0.0.11/24; empty for none, as `gateway` is."""

    name: str
    network: str
    mac: str
    address: str = ""
    gateway: str = ""
    dns: tuple[str, ...] = ()


def mac(plan: Plan, node: Node, interface: str) -> str:
    """A stable, locally administered MAC address for one interface of one node."""
    octets = hashlib.sha256(f"{plan.lab}/{node.name}/{interface}".encode()).digest()
    return "02:" + ":".join(f"{octet:02x}" for octet in octets[:5])


def of(plan: Plan, node: Node) -> tuple[Interface, ...]:
    """A node's interfaces, in the order of their names."""
    management = plan.topology.management
    address = f"{node.management}/{ip_network(management.cidr).prefixlen}"
    found = [
        # Packstack wants a default route, even for its --version.
        Interface(*("eth0", "management", mac(plan, node, "eth0")), address, management.gateway, plan.dns),
        Interface("eth1", "provider", mac(plan, node, "eth1")),
    ]
    if plan.tunnel_network:
        # A bridge of the userspace Open vSwitch has the address, not the interface in it.
        found.append(Interface("eth2", "tunnel", mac(plan, node, "eth2")))
    return tuple(found)


def _networkd(interface: Interface) -> tuple[str, str, int]:
    # Not MACAddress: a bridge takes the address of the interface that is put into it.
    lines = ["[Match]", f"PermanentMACAddress={interface.mac}", "", "[Network]"]
    lines += [f"Address={interface.address}"] if interface.address else []
    lines += [f"Gateway={interface.gateway}"] if interface.gateway else []
    lines += [f"DNS={server}" for server in interface.dns]
    lines += ["LinkLocalAddressing=no", "IPv6AcceptRA=no", "ConfigureWithoutCarrier=yes"]
    return f"etc/systemd/network/20-{interface.name}.network", "\n".join(lines) + "\n", 0o644


def _keyfile(interface: Interface) -> tuple[str, str, int]:
    lines = ["[connection]", f"id={interface.name}", "type=ethernet", "autoconnect-priority=100", ""]
    lines += ["[ethernet]", f"mac-address={interface.mac.upper()}", "", "[ipv4]"]
    if interface.address:
        gateway = f",{interface.gateway}" if interface.gateway else ""
        lines += ["method=manual", f"address1={interface.address}{gateway}"]
        # NetworkManager writes /etc/resolv.conf itself.
        lines += [f"dns={';'.join(interface.dns)};"] if interface.dns else []
    else:
        lines += ["method=disabled"]
    lines += ["", "[ipv6]", "method=disabled"]
    # NetworkManager ignores a profile that others may read.
    path = f"etc/NetworkManager/system-connections/{interface.name}.nmconnection"
    return path, "\n".join(lines) + "\n", 0o600


def _ifcfg(interface: Interface) -> tuple[str, str, int]:
    values = {
        "DEVICE": interface.name,
        "HWADDR": interface.mac.upper(),
        "TYPE": "Ethernet",
        "ONBOOT": "yes",
        "BOOTPROTO": "none",
        "NM_CONTROLLED": "no",
        "IPV6INIT": "no",
    }
    if interface.address:
        address, prefix = interface.address.split("/")
        values |= {"IPADDR": address, "PREFIX": prefix}
    if interface.gateway:
        values["GATEWAY"] = interface.gateway
    values |= {f"DNS{number}": server for number, server in enumerate(interface.dns, start=1)}
    text = "".join(f"{name}={value}\n" for name, value in values.items())
    return f"etc/sysconfig/network-scripts/ifcfg-{interface.name}", text, 0o644


SERVICES: dict[str, Callable[[Interface], tuple[str, str, int]]] = {
    "systemd-networkd": _networkd,
    "NetworkManager": _keyfile,
    "network": _ifcfg,
}
"""How a distribution's network service is told of one interface: path below the root, text, mode."""
