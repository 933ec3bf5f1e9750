"""The Plan: everything later steps need, resolved before anything runs. Frozen, kept as plan.json."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stacklab import distributions, files, releases
from stacklab.errors import InvalidInput, Problem
from stacklab.model import Network, Node, ProviderNetwork, TenantNetwork, Topology


@dataclass(frozen=True)
class Plan:
    """A topology with every choice made.

    `datapath` is Open vSwitch's: `system` where the kernel has it, else `netdev`
    (userspace). `reasons` say why an `auto` became what it is.
    """

    lab: str
    topology: Topology
    provider: str
    distribution: str
    release: str
    packstack: str
    datapath: str
    reasons: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        """The lab's own directory, mode 0700."""
        return files.labs_dir() / self.lab

    @property
    def namespace(self) -> str:
        """The network namespace that holds the lab's networks."""
        return f"stacklab-{self.lab}"

    @property
    def tunnel_interface(self) -> str:
        """The interface with a node's tunnel address.

        A userspace Open vSwitch finds VXLAN routes only through a bridge of its own. No
        dash in its name: Packstack looks facts up with underscores, Facter 4 keeps dashes.
        """
        return "brvxlan" if self.datapath == "netdev" else "eth2"

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values, for plan.json."""
        return asdict(self)


def from_json(value: dict[str, Any]) -> Plan:
    """The Plan that `as_json` gave `value` for."""
    topology = dict(value["topology"])
    topology["management"] = Network(**topology["management"])
    topology["tunnel"] = Network(**topology["tunnel"])
    topology["provider_network"] = ProviderNetwork(**topology["provider_network"])
    topology["tenant"] = TenantNetwork(**topology["tenant"])
    topology["nodes"] = tuple(Node(**{**node, "roles": tuple(node["roles"])}) for node in topology["nodes"])
    topology["services"] = tuple(topology["services"])
    return Plan(**{**value, "topology": Topology(**topology), "reasons": tuple(value["reasons"])})


def resolve(topology: Topology, *, lab: str = "", distribution: str = "auto", provider: str = "auto") -> Plan:
    """Make every choice that the topology and the command line leave open.

    Raises InvalidInput for a combination that cannot work.
    """
    reasons = []
    chosen_provider = provider if provider != "auto" else topology.provider
    if chosen_provider == "auto":
        chosen_provider = "lxc"
        reasons.append("provider: lxc (containers: needs no working KVM)")
    chosen = distribution if distribution != "auto" else topology.distribution
    if chosen == "auto":
        chosen = "debian-12"
        reasons.append("distribution: debian-12 (the one that the lxc provider has a golden image for)")
    row = distributions.distribution(chosen)
    release = topology.release if topology.release != "auto" else row.release
    problems = []
    if chosen_provider not in row.providers:
        message = f"{chosen_provider} has no {chosen} image: take {', '.join(row.providers)}"
        problems.append(Problem(topology.file, "provider", message))
    runs_on = releases.release(release).distributions
    if chosen not in runs_on:
        message = f"{release} does not run on {chosen}: take {', '.join(runs_on)}"
        problems.append(Problem(topology.file, "release", message))
    if problems:
        raise InvalidInput(problems)
    datapath = "system" if kernel_datapath() else "netdev"
    if datapath == "netdev":
        reasons.append("Open vSwitch: userspace datapath (this kernel has no openvswitch module)")
    return Plan(
        lab=lab or topology.name,
        topology=topology,
        provider=chosen_provider,
        distribution=chosen,
        release=release,
        packstack=releases.release(release).packstack,
        datapath=datapath,
        reasons=tuple(reasons),
    )


def kernel_datapath() -> bool:
    """Whether this kernel has Open vSwitch's datapath, loading its module where that is possible."""
    if Path("/sys/module/openvswitch").exists():
        return True
    try:
        subprocess.run(
            ["modprobe", "openvswitch"],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=20,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return Path("/sys/module/openvswitch").exists()
