"""Packstack's answer file: written whole from a topology, and checked by the version's own key table.

Packstack lets unknown and missing keys pass, and wrong values of many kinds; the table lets us refuse
them first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stacklab import answercheck, distributions, plan, releases, services
from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.keytable import SAME_SECRET, Key, draw, secret_names, table
from stacklab.model import Node, Topology

SSH_KEY = "/root/.ssh/id_ed25519.pub"

# Not for a topology to choose.
OWN_SERVICES = ("client", "mariadb")
# Agent: tunnel type, prefix of its keys.
AGENTS = {
    "openvswitch": ("vxlan", "CONFIG_NEUTRON_OVS_"),
    "ovn": ("geneve", "CONFIG_NEUTRON_OVN_"),
    "linuxbridge": ("vxlan", "CONFIG_NEUTRON_LB_"),
}

BRIDGE, PHYSICAL_NETWORK, PROVIDER_NIC = "br-ex", "extnet", "eth1"

# Backends of Cinder that need a password from outside the lab, and a topology holds none.
FOREIGN_BACKENDS = ("netapp", "solidfire", "vmdk")

# What Packstack would make beside the lab's own.
PROVISION = ("CONFIG_PROVISION_DEMO", "CONFIG_PROVISION_TEMPEST")

Choices = dict[str, tuple[str, str]]  # by key: a value, and where it comes from


def render(
    topology: Topology,
    *,
    packstack: str,
    secrets: Mapping[str, str],
    datapath: str,
    workers: int,
    virt_type: str = "qemu",
    installed: Sequence[Node] = (),
) -> str:
    """The text of the answer file: every key of the version, each with a comment on where it comes from.

    `datapath` is Open vSwitch's, "system" or "netdev"; `workers` is a number per service; `virt_type`
    is what instances run by, "qemu" or "kvm"; nodes that are `installed` already are left alone.
    Raises InvalidInput for overrides (`answers` of the topology) and services that cannot be,
    LabError where a secret is missing.
    """
    keys = table(packstack)
    chosen = _chosen(topology, keys, datapath, workers)
    refused = _contradictions(topology, keys, chosen, datapath)
    problems = _input_problems(topology, keys)
    problems += [Problem(topology.file, f"answers.{name}", why) for name, why in refused.items()]
    hardware = "they have KVM of their own" if virt_type == "kvm" else "they have no KVM to count on"
    chosen["CONFIG_NOVA_LIBVIRT_VIRT_TYPE"] = (virt_type, f"stacklab: the nodes, {hardware}")
    if installed:
        addresses = ",".join(node.management for node in installed)
        chosen["EXCLUDE_SERVERS"] = (addresses, "stacklab: they are installed already")
    for name in set(secret_names(packstack)) & secrets.keys():
        chosen[name] = (secrets[name], "drawn for this lab")
    for name, value in topology.answers.items():
        if value.isprintable() and name not in refused:
            chosen[name] = (value, f"topology {topology.name}: answers")
    for name, other in SAME_SECRET.items():
        if other in chosen:
            chosen.setdefault(name, (chosen[other][0], f"stacklab: the same user as {other}"))
    missing = [name for name, key in keys.items() if name not in chosen and key.default is None]
    if missing:
        message = f"Packstack {packstack}: no value for {', '.join(missing)}"
        raise LabError(message, hint="the lab's secrets are incomplete, or of another Packstack version")
    lines = [f"# Answers for Packstack {packstack}, written by stacklab", "[general]"]
    for name, key in keys.items():
        value, source = chosen.get(name, (key.default or "", "Packstack's default"))
        lines += ["", f"# {source}", f"{name}={value}"]
    text = "\n".join(lines) + "\n"
    for problem in answercheck.check(text, packstack, topology.file):
        path = f"answers.{problem.path}" if problem.path in topology.answers else problem.path
        problems.append(Problem(problem.where, path, problem.message))
    if problems:
        raise InvalidInput(problems)
    return text


def workers(topology: Topology) -> int:
    """Processes of each service: a number that fits the smallest node."""
    return max(min(node.cpus for node in topology.nodes) // 2, 1)


def of_release(
    topology: Topology, release: str = "auto", distribution: str = "auto", provider: str = ""
) -> str:
    """An answer file with secrets of its own, for a release and the distribution that it is to run on.

    What is `auto` is as in a lab: debian-12, or what has the release that is asked for. What the machine
    decides is as for virtual machines. With a `provider`, which may be `auto`, it is the file of a lab there.

    Raises InvalidInput for what the release, its Packstack, the distribution or the provider cannot have.
    """
    on = distribution if distribution != "auto" else topology.distribution
    asked = release if release != "auto" else topology.release
    if asked == "auto":
        asked = distributions.distribution("debian-12" if on == "auto" else on).release
    row = releases.release(asked)
    if on == "auto":
        anywhere = release != "auto" and "debian-12" not in row.distributions
        on = row.distributions[0] if anywhere else "debian-12"
    problems = []
    if provider:
        wanted = topology.provider if provider == "auto" else provider
        problems += plan.without_image(topology, distributions.distribution(on), wanted)
    if on not in row.distributions:
        message = f"{row.name} does not run on {on}: take {', '.join(row.distributions)}"
        problems.append(Problem(topology.file, "release", message))
    choice = services.choose(topology, row.packstack, on)
    problems += choice.problems
    if problems:
        raise InvalidInput(problems)
    lab = replace(plan.settled(topology, row, on, "system"), services=choice.services)
    secrets = draw(row.packstack)
    return render(lab, packstack=row.packstack, secrets=secrets, datapath="system", workers=workers(lab))


def _input_problems(topology: Topology, keys: Mapping[str, Key]) -> list[Problem]:
    """What of the topology has no place in an answer file."""
    problems = []
    switched = set(services.switches().values()) - set(_switches(keys).values())
    known = [name for name in services.table() if name not in switched]
    for service in topology.services:
        if service not in known:
            message = f"'{service}' is none of {', '.join(known)}"
            problems.append(Problem(topology.file, "services", message))
    if topology.network_agent not in AGENTS:
        message = f"'{topology.network_agent}' is none of {', '.join(AGENTS)}"
        problems.append(Problem(topology.file, "network_agent", message))
    for name, value in topology.answers.items():
        if name not in keys:
            problems.append(answercheck.unknown(topology.file, f"answers.{name}", name, keys))
        elif not value.isprintable():
            problems.append(Problem(topology.file, f"answers.{name}", "a line break or control character"))
    return problems


def _contradictions(
    topology: Topology, keys: Mapping[str, Key], chosen: Choices, datapath: str
) -> dict[str, str]:
    """Overrides of what all of stacklab goes by: services, networks, passwords. Each with what to change."""
    decided = {*_switches(keys), *_networking(topology, datapath), *PROVISION} & chosen.keys()
    found = {}
    for name in (name for name in topology.answers if name in decided):
        (right, source), value = chosen[name], topology.answers[name]
        whose, _, what = source.partition(": ")
        instead = f"change {what}" if whose.startswith("topology") else f"leave it out ({what})"
        if value != right:
            found[name] = f"'{value}' contradicts the lab, which has '{right}': {instead}"
    if (backend := topology.answers.get(name := "CONFIG_CINDER_BACKEND")) in FOREIGN_BACKENDS:
        found[name] = f"'{backend}' needs a password, and a topology holds none: take lvm or nfs"
    return found


def _switches(keys: Mapping[str, Key]) -> dict[str, str]:
    """The keys that say whether a service is installed, each with the service's name."""
    own = {f"CONFIG_{service.upper()}_INSTALL": service for service in OWN_SERVICES}
    return {name: service for name, service in {**own, **services.switches()}.items() if name in keys}


def _chosen(topology: Topology, keys: Mapping[str, Key], datapath: str, workers: int) -> Choices:
    """What the topology and stacklab decide, of the keys that the version has."""
    nodes, controller = f"topology {topology.name}: nodes", topology.controller
    chosen = {
        "CONFIG_KEYSTONE_LDAP_URL": (f"ldap://{controller.management}", nodes),
        "CONFIG_SSL_CERT_SUBJECT_MAIL": (f"admin@{controller.fqdn}", nodes),
    }
    for key in keys.values():
        if key.runtime == "address":
            # Packstack's default is the default route's address, which may be a NAT network's.
            chosen.setdefault(key.name, (controller.management, nodes))
        elif key.runtime == "host-name":
            chosen.setdefault(key.name, (controller.fqdn, nodes))
    for name, role in (("CONFIG_COMPUTE_HOSTS", "compute"), ("CONFIG_NETWORK_HOSTS", "network")):
        chosen[name] = (",".join(node.management for node in topology.with_role(role)), nodes)
    for name, service in _switches(keys).items():
        answer = "y" if service in OWN_SERVICES or service in topology.services else "n"
        core = "stacklab: every lab has it"
        chosen[name] = (answer, core if service in OWN_SERVICES else f"topology {topology.name}: services")
    chosen |= _own_choices(workers) | _networking(topology, datapath)
    return {name: choice for name, choice in chosen.items() if name in keys}


def _own_choices(workers: int) -> Choices:
    """What is the same in every lab, each with its reason."""
    return {
        name: (value, f"stacklab: {why}")
        for name, value, why in (
            ("CONFIG_SSH_KEY", SSH_KEY, "the lab's key, on every node already"),
            ("CONFIG_DEFAULT_PASSWORD", "", "every password is drawn by itself"),
            ("CONFIG_SERVICE_WORKERS", str(workers), "a number that fits the node"),
            ("CONFIG_NTP_SERVERS", "", "the golden image has chrony configured"),
            ("CONFIG_DEBUG_MODE", "n", "debug logs fill a small disk"),
            ("CONFIG_AMQP_ENABLE_SSL", "n", "no certificates in a lab"),
            ("CONFIG_HORIZON_SSL", "n", "no certificates in a lab"),
            ("CONFIG_NEUTRON_METERING_AGENT_INSTALL", "n", "nothing in a lab reads it"),
            ("CONFIG_NEUTRON_ML2_VNI_RANGES", "10:100", "enough project networks for a lab"),
            ("CONFIG_PROVISION_DEMO", "n", "its network is 10.0.0.0/24, a management network"),
            ("CONFIG_PROVISION_TEMPEST", "n", "stacklab verifies the lab itself"),
        )
    }


def _networking(topology: Topology, datapath: str) -> Choices:
    """Neutron: a flat provider network on the second NIC, tunnels between the nodes."""
    if topology.network_agent not in AGENTS:
        return {}
    agent, from_agent = topology.network_agent, f"topology {topology.name}: network_agent"
    tunnel, prefix = AGENTS[agent]
    choices = {
        "CONFIG_NEUTRON_L2_AGENT": (agent, from_agent),
        "CONFIG_NEUTRON_ML2_MECHANISM_DRIVERS": (agent, from_agent),
        "CONFIG_NEUTRON_ML2_TYPE_DRIVERS": (f"{tunnel},flat", from_agent),
        "CONFIG_NEUTRON_ML2_TENANT_NETWORK_TYPES": (tunnel, from_agent),
        "CONFIG_NEUTRON_ML2_FLAT_NETWORKS": ("*", "stacklab: the provider network is flat"),
    }
    if agent == "linuxbridge":
        nic = (f"{PHYSICAL_NETWORK}:{PROVIDER_NIC}", "stacklab: the provider NIC")
        return {**choices, f"{prefix}INTERFACE_MAPPINGS": nic}
    return {
        **choices,
        f"{prefix}BRIDGE_MAPPINGS": (f"{PHYSICAL_NETWORK}:{BRIDGE}", "stacklab: the provider network"),
        f"{prefix}BRIDGE_IFACES": (f"{BRIDGE}:{PROVIDER_NIC}", "stacklab: the provider NIC"),
        f"{prefix}BRIDGES_COMPUTE": (BRIDGE, "stacklab: instances on the provider network itself"),
        f"{prefix}EXTERNAL_PHYSNET": (PHYSICAL_NETWORK, "stacklab: the provider network"),
        **_tunnels(topology, prefix, datapath),
    }


def _tunnels(topology: Topology, prefix: str, datapath: str) -> Choices:
    """Where tunnels go: by the nodes' own addresses, but for a userspace Open vSwitch, which has a network.

    Without the subnets the firewall of every node would let in the controller's tunnel address only
    (plugins/neutron_350.py reads the interface of the host that Packstack runs on).
    """
    if datapath != "netdev":
        why = "stacklab: over the management network"
        return {f"{prefix}TUNNEL_IF": ("", why), f"{prefix}TUNNEL_SUBNETS": ("", why)}
    return {
        f"{prefix}TUNNEL_IF": (
            plan.TUNNEL_BRIDGE,
            "stacklab: where a userspace Open vSwitch looks for its route",
        ),
        f"{prefix}TUNNEL_SUBNETS": (topology.tunnel.cidr, f"topology {topology.name}: networks.tunnel"),
    }
