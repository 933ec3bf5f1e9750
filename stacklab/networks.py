"""The networks of a topology file, checked: their addresses, the floating pool, no overlaps."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations
from typing import Any

from stacklab.checker import Checker, show

# For DHCP, a router's gateway, the checks' instance and floating IP, and as many again for Heat's check.
LEAST_POOL = 6

# Each network with its default and its own keys, of which the first is an address: the network's first.
NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "management": ("10.0.0.0/24", ("host", "gateway", "dns")),
    "tunnel": ("10.0.1.0/24", ("host",)),
    "provider": ("203.0.113.0/24", ("gateway", "pool")),
    "tenant": ("172.16.1.0/24", ("gateway",)),
}


@dataclass
class Networks:
    """What is sound of the networks; addresses by names such as `management.host` and `pool.start`."""

    cidr: dict[str, IPv4Network] = field(default_factory=dict)
    address: dict[str, IPv4Address] = field(default_factory=dict)
    dns: tuple[str, ...] = ()

    def text(self, key: str) -> str:
        return str(self.cidr[key] if key in self.cidr else self.address.get(key, ""))


def read(check: Checker, value: Any) -> Networks:
    """Check the section `networks`, None for all defaults; what is wrong is noted and left out."""
    networks = Networks()
    given = check.mapping("networks", value, NETWORKS)
    for name, (default, keys) in NETWORKS.items():
        path = f"networks.{name}"
        spec = check.mapping(path, given.get(name), ("cidr", *keys))
        network = check.network(f"{path}.cidr", spec.get("cidr", default))
        if network is not None:
            networks.cidr[name] = network
            spec.setdefault(keys[0], str(network.network_address + 1))
        for key in ("host", "gateway"):
            if key in keys and key in spec:
                address = check.address(f"{path}.{key}", spec[key], network)
                if address is not None:
                    networks.address[f"{name}.{key}"] = address
        if "dns" in keys:
            networks.dns = _dns(check, f"{path}.dns", spec.get("dns", []))
        if "pool" in keys:
            _pool(check, f"{path}.pool", spec.get("pool"), networks)
    for (one, network), (other, later) in combinations(networks.cidr.items(), 2):
        if network.overlaps(later):
            message = f"{later} overlaps networks.{one}, which is {network}: change one of them"
            check.problem(f"networks.{other}.cidr", message)
    return networks


def _dns(check: Checker, path: str, value: Any) -> tuple[str, ...]:
    """Name servers, which may be outside the network."""
    if not isinstance(value, list):
        check.problem(path, f"{show(value)} is not a list: write it such as [10.0.0.2]")
        return ()
    return tuple(str(address) for item in value if (address := check.any_address(path, item)) is not None)


def _pool(check: Checker, path: str, value: Any, networks: Networks) -> None:
    """Floating IPs: by default .101 to .250 of a /24 or larger network, the upper half of a smaller one."""
    network, gateway = networks.cidr.get("provider"), networks.address.get("provider.gateway")
    if value is None and network is not None:
        count = network.num_addresses
        first, last = (101, 250) if count >= 256 else (count // 2, count - 2)
        value = f"{network[first]}-{network[last]}"
    if value is None:
        return
    ends = value.split("-") if isinstance(value, str) else []
    if len(ends) != 2:
        check.problem(path, f"{show(value)} is not a range: write it such as 203.0.113.101-203.0.113.250")
        return
    start, end = (check.address(path, part.strip(), network) for part in ends)
    if start is None or end is None:
        return
    if start > end:
        check.problem(path, f"{value} is backwards: write {end}-{start}")
    elif gateway is not None and start <= gateway <= end:
        check.problem(path, f"{value} contains the gateway {gateway}: leave the gateway out of the pool")
    elif (count := int(end) - int(start) + 1) < LEAST_POOL:
        shown = "1 address" if count == 1 else f"{count} addresses"
        check.problem(path, f"{value} has {shown}, too few for a lab: take {LEAST_POOL} or more")
    networks.address |= {"pool.start": start, "pool.end": end}
