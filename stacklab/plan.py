"""The Plan: everything later steps need, resolved before anything runs. Frozen, kept as plan.json."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stacklab import distributions, files, releases, services
from stacklab.choice import choose
from stacklab.distributions import Distribution
from stacklab.errors import InvalidInput, Problem
from stacklab.model import Network, Node, ProviderNetwork, TenantNetwork, Topology
from stacklab.releases import Release

TUNNEL_BRIDGE = "brvxlan"

# How many times as long an emulated node may take for anything that has a time limit.
EMULATED_PATIENCE = 5.0


@dataclass(frozen=True)
class Plan:
    """A topology with every choice made, its own network agent and tunnel addresses included.

    `datapath` is Open vSwitch's: `system` where the nodes' kernel has it, else `netdev`
    (userspace). `isolated` says that the lab's networks live in a network namespace of
    their own, not in the host's; `emulated` that the nodes have no KVM, which makes them
    ten times as slow; `virt_type` is what instances run by, `kvm` where the nodes' KVM is
    known to be there for them. `reasons` say why an `auto` became what it is.
    """

    lab: str
    topology: Topology
    provider: str
    distribution: str
    release: str
    packstack: str
    datapath: str
    isolated: bool = True
    emulated: bool = False
    virt_type: str = "qemu"
    reasons: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        """The lab's own directory, mode 0700."""
        return files.labs_dir() / self.lab

    @property
    def patience(self) -> float:
        """What every time limit that depends on the nodes' speed is multiplied by."""
        return EMULATED_PATIENCE if self.emulated else 1.0

    @property
    def namespace(self) -> str:
        """The network namespace that holds the lab's networks."""
        return f"stacklab-{self.lab}"

    @property
    def tunnel_interface(self) -> str:
        """The interface with a node's tunnel address, which is the management one where it can be.

        A userspace Open vSwitch finds VXLAN routes only through a bridge of its own. No
        dash in its name: Packstack looks facts up with underscores, Facter 4 keeps dashes.
        """
        return TUNNEL_BRIDGE if self.tunnel_network else "eth0"

    @property
    def tunnel_network(self) -> bool:
        """Whether tunnels between nodes have a network of their own, and the nodes a third NIC on it."""
        return self.datapath == "netdev"

    @property
    def way_out(self) -> bool:
        """Whether nodes reach the outside through this host: EL's fetch OpenStack's packages themselves."""
        family = distributions.distribution(self.distribution).family
        return family == "el" and self.provider == "libvirt" and not self.isolated

    @property
    def dns(self) -> tuple[str, ...]:
        """The nodes' name servers: the topology's, else the host where their way out is through it."""
        management = self.topology.management
        return management.dns or ((management.host,) if self.way_out else ())

    @property
    def dashboard(self) -> str:
        """The path of Horizon on the controller."""
        return distributions.distribution(self.distribution).dashboard

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values, for plan.json."""
        return asdict(self)


def from_json(value: dict[str, Any]) -> Plan:
    """The Plan that `as_json` gave `value` for."""
    topology = dict(value["topology"])
    for name in ("management", "tunnel"):
        network = topology[name]
        topology[name] = Network(**{**network, "dns": tuple(network["dns"])})
    topology["provider_network"] = ProviderNetwork(**topology["provider_network"])
    topology["tenant"] = TenantNetwork(**topology["tenant"])
    topology["nodes"] = tuple(
        Node(**{**node, "roles": tuple(node["roles"]), "extra_disks": tuple(node["extra_disks"])})
        for node in topology["nodes"]
    )
    for name in ("services", "named_services"):
        topology[name] = tuple(topology.get(name, ()))
    return Plan(**{**value, "topology": Topology(**topology), "reasons": tuple(value["reasons"])})


def resolve(
    topology: Topology,
    *,
    lab: str = "",
    distribution: str = "auto",
    release: str = "auto",
    provider: str = "auto",
    own_network: bool = False,
) -> Plan:
    """Make every choice that the topology and the command line leave open.

    `own_network` wants the lab's networks in a namespace of their own where they need not be.

    Raises InvalidInput for a combination that cannot work.
    """
    name = lab or topology.name
    chosen = distribution if distribution != "auto" else topology.distribution
    named = chosen != "auto"
    row = distributions.distribution(chosen if named else "debian-12")
    chosen = row.name
    wanted = provider if provider != "auto" else topology.provider
    where = choose(topology, wanted, name, row.runs_on, own_network)
    chosen_provider = where.provider
    reasons = list(where.reasons)
    if not named:
        reasons.append(
            f"distribution: {chosen} (the one that the {chosen_provider} provider has a golden image for)"
        )
    problems = without_image(topology, row, chosen_provider)
    asked = release if release != "auto" else topology.release
    found = releases.release(row.release if asked == "auto" else asked)
    if chosen not in found.distributions:
        message = f"{found.name} does not run on {chosen}: {distributions.advice(found.distributions)}"
        problems.append(Problem(topology.file, "release", message))
    choice = services.choose(topology, found.packstack, chosen)
    reasons += choice.left_out
    problems += choice.problems
    problems += _without_disks(topology, chosen_provider)
    # A virtual machine has a kernel of its own, whatever the host's can do.
    datapath, kept = "system", where.datapath == "netdev"
    if chosen_provider == "lxc" and (kept or not kernel_datapath()):
        datapath = "netdev"
        why = "this lab was made so" if kept else "this kernel has no openvswitch module"
        reasons.append(f"Open vSwitch: userspace datapath ({why})")
    try:
        topology = settled(topology, found, chosen, datapath)
    except InvalidInput as error:
        problems += error.problems
    plan = Plan(
        lab=name,
        topology=replace(topology, services=choice.services),
        provider=chosen_provider,
        distribution=chosen,
        release=found.name,
        packstack=found.packstack,
        datapath=datapath,
        isolated=where.isolated,
        emulated=where.emulated,
        virt_type="kvm" if chosen_provider == "libvirt" and not where.emulated and nested() else "qemu",
        reasons=tuple(reasons),
    )
    if problems:
        raise InvalidInput([*problems, *_wrong_answers(plan)])
    return plan


def _wrong_answers(plan: Plan) -> list[Problem]:
    """What is wrong with the topology's own answers, to be named with all else that is."""
    from stacklab import packstack  # which is about plans

    try:
        packstack.shape(plan)
    except InvalidInput as error:
        return [problem for problem in error.problems if problem.path.startswith("answers.")]
    return []


def without_image(topology: Topology, row: Distribution, provider: str) -> list[Problem]:
    """The problem of a provider whose nodes cannot start from the distribution's images; none of `auto`."""
    if provider in ("auto", *row.runs_on):
        return []
    message = f"{provider} has no {row.name} image: take {', '.join(row.runs_on)}"
    return [Problem(topology.file, "provider", message)]


def _without_disks(topology: Topology, provider: str) -> list[Problem]:
    """Storage nodes that have no disk to keep anything on; a container keeps it in its own file system."""
    if provider == "lxc":
        return []
    what = {"object-storage": "objects"}
    if "lvm" in topology.answers.get("CONFIG_CINDER_BACKEND", "lvm"):
        what["block-storage"] = "volumes"
    return [
        Problem(
            topology.file,
            "nodes",
            f"{node.name} has no disk for {what[role]}: give it one, extra_disks: [20 GB]",
        )
        for node in topology.nodes
        if not node.extra_disks and node != topology.controller
        for role in node.roles
        if role in what
    ]


def settled(topology: Topology, release: Release, distribution: str, datapath: str) -> Topology:
    """The topology with its network agent chosen, and with the tunnel addresses that nodes really have.

    `datapath` is Open vSwitch's. Raises InvalidInput for an agent that is not to be had there.
    """
    agents = release.network_agents
    if distribution in distributions.names():
        only = distributions.distribution(distribution).network_agents
        agents = tuple(agent for agent in agents if not only or agent in only)
    agent = agents[0] if topology.network_agent == "auto" else topology.network_agent
    if agent not in agents:
        message = f"{release.name} on {distribution} has no {agent}: take {', '.join(agents)}"
        raise InvalidInput([Problem(topology.file, "network_agent", message)])
    nodes = topology.nodes
    if datapath == "system":
        # The kernel sends tunnels by whatever route it has: they go over the management network.
        nodes = tuple(replace(node, tunnel=node.management) for node in nodes)
    return replace(topology, network_agent=agent, nodes=nodes)


def nested() -> bool:
    """Whether this kernel's KVM lets its guests have KVM, too."""
    for module in ("kvm_intel", "kvm_amd"):
        path = Path(f"/sys/module/{module}/parameters/nested")
        if path.exists() and path.read_text(encoding="utf-8").strip() in ("Y", "1"):
            return True
    return False


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
