"""Topology files: read once, checked whole, handed on as frozen plain values.

Every check notes its problem and goes on, so that a user sees all of them at once. A value that
failed its own check is left out of the later ones: one mistake, one message.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from stacklab import answercheck, distributions, keytable, releases, services
from stacklab import networks as network_section
from stacklab.checker import Checker, join, show
from stacklab.errors import InvalidInput, Problem
from stacklab.model import ROLES, Network, Node, ProviderNetwork, TenantNetwork, Topology
from stacklab.networks import Networks
from stacklab.yamlfile import read_yaml

# Of each of these, the first is the default.
PROVIDERS = ("auto", "lxc", "libvirt", "virtualbox", "vmware_desktop")
DISTRIBUTIONS = ("auto", *distributions.names())
RELEASES = ("auto", *releases.names())
NETWORK_AGENTS = ("auto", "ovn", "openvswitch", "linuxbridge")

TOP_KEYS = (
    *("name", "description", "distribution", "release", "provider", "domain"),
    *("networks", "nodes", "services", "network_agent", "answers"),
)
_TOP_REQUIRED = {
    "name": "give the lab a name, such as two-node",
    "nodes": "describe the nodes, such as controller: {roles: [controller, network], management: 10.0.0.11}",
}
NODE_KEYS = ("roles", "count", "management", "cpus", "memory", "disk", "extra_disks")
_NODE_REQUIRED = {
    "roles": f"give a list of {', '.join(ROLES)}",
    "management": "give an address of the management network, such as 10.0.0.31",
}

# Vagrant's providers attach them by letter; a lab has no use for more.
MOST_DISKS = 8
# Characters of a lab's and of a node's name; the least and the most of a group's nodes and of a node's CPUs.
NAME_LENGTH, NODE_NAME_LENGTH = 24, 30
COUNT, CPUS = (1, 50), (1, 64)

ANSWER = "CONFIG_[A-Z0-9_]+"
# What stacklab writes into the answer file itself; an override would let the lab and its plan disagree.
_OWN_ANSWERS = (
    (("_PW", "_PASSWORD", "_TOKEN"), "holds a secret, and stacklab makes those for each lab: leave it out"),
    (("_HOST", "_HOSTS"), "places a service on a host, which the roles of the nodes decide: change those"),
)


def available(directory: Path) -> list[Path]:
    """The topology files of a directory, sorted by name; empty when there is no such directory."""
    return sorted(directory.glob("*.yaml"))


def load(path_or_name: str, directory: Path) -> Topology:
    """Read a topology: `directory`/NAME.yaml for a bare name, else the file at that path.

    Raises InvalidInput when there is no such file, when it cannot be read, and for all that is wrong in it.
    """
    path = Path(path_or_name)
    if path.name == path_or_name and path.suffix not in (".yaml", ".yml"):
        path = directory / f"{path_or_name}.yaml"
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise InvalidInput([_no_such(path_or_name, directory)]) from error
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else error.reason
        message = f"cannot be read, {cause}: give a readable file in UTF-8"
        raise InvalidInput([Problem(str(path), "", message)]) from error


def parse(text: str, file: str) -> Topology:
    """Check the text of a topology file, `file` for messages. Raises InvalidInput with all its problems."""
    check = Checker(file)
    top = check.mapping("", read_yaml(check, text), TOP_KEYS, _TOP_REQUIRED)
    domain = check.domain("domain", top.get("domain", "lab.test"))
    networks = network_section.read(check, top.get("networks"))
    at = networks.text
    topology = Topology(
        name=check.hostname("name", top.get("name"), NAME_LENGTH),
        description=check.text("description", top.get("description", "")),
        file=file,
        domain=domain,
        provider=check.choice(top, "provider", PROVIDERS),
        distribution=check.choice(top, "distribution", DISTRIBUTIONS),
        release=check.choice(top, "release", RELEASES),
        management=Network(
            at("management"),
            at("management.host"),
            at("management.gateway") or at("management.host"),
            networks.dns,
        ),
        provider_network=ProviderNetwork(
            at("provider"), at("provider.gateway"), at("pool.start"), at("pool.end")
        ),
        tenant=TenantNetwork(at("tenant"), at("tenant.gateway")),
        tunnel=Network(at("tunnel"), at("tunnel.host")),
        nodes=_nodes(check, top.get("nodes"), networks, domain),
        services=services.expand(chosen := _services(check, top.get("services", [services.DEFAULT]))),
        named_services=tuple(name for name in chosen if name not in services.presets()),
        network_agent=check.choice(top, "network_agent", NETWORK_AGENTS),
        answers=_answers(check, top.get("answers")),
    )
    for problem in _purposeless(topology):
        check.problem("nodes", problem)
    if check.problems:
        raise InvalidInput([*check.problems, *_strange_answers(topology)])
    return topology


def _strange_answers(topology: Topology) -> list[Problem]:
    """Keys that no Packstack has; which one it will be, and with it the values, only a plan can tell."""
    versions = [releases.release(name).packstack for name in releases.names()]
    known = {name: key for version in versions for name, key in keytable.table(version).items()}
    return [
        answercheck.unknown(topology.file, f"answers.{name}", name, known)
        for name in topology.answers
        if name not in known
    ]


def _purposeless(topology: Topology) -> list[str]:
    """What nodes of a storage role lack: the service whose data they are to keep."""
    needs = {role: services.of_role(role) for role in ROLES}
    return [
        f"{node.name} has the role {role}, for {needs[role]}: add '{needs[role]}' to services"
        for node in topology.nodes
        for role in node.roles
        if topology.services and needs[role] and needs[role] not in topology.services
    ]


def _nodes(check: Checker, value: Any, networks: Networks, domain: str) -> tuple[Node, ...]:
    groups = check.mapping("nodes", value)
    if value == {}:
        check.problem("nodes", f"there are none: {_TOP_REQUIRED['nodes']}")
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    nodes: list[Node] = []
    for name, spec in groups.items():
        group = _group(check, name, spec, networks, domain)
        path = join("nodes", name)
        # Two overlapping ranges are one mistake, however many addresses they share.
        if (twin := next((node for node in group if node.name in names), None)) is not None:
            whose = names[twin.name]
            check.problem(path, f"its '{twin.name}' exists already, from {whose}: rename one of them")
        if (node := next((node for node in group if node.management in taken), None)) is not None:
            whose = taken[node.management]
            message = f"{node.management} is {whose}'s already: take a free address"
            check.problem(f"{path}.management", message)
        names |= {node.name: path for node in group}
        taken |= {node.management: node.name for node in group if node.management}
        nodes += group
    _roles(check, nodes)
    return tuple(nodes)


def _roles(check: Checker, nodes: list[Node]) -> None:
    """The totals of a lab, unless a node's own roles are in doubt, which would make them wrong."""
    if not nodes or not all(node.roles for node in nodes):
        return
    controllers = [node.name for node in nodes if "controller" in node.roles]
    if len(controllers) != 1:
        several = f"{', '.join(controllers)} have the role controller"
        shown = several if controllers else "no node has the role controller"
        check.problem("nodes", f"{shown}: give it to exactly one")
    for role in ("network", "compute"):
        if not any(role in node.roles for node in nodes):
            check.problem("nodes", f"no node has the role {role}: give it to at least one")


def _group(check: Checker, name: str, value: Any, networks: Networks, domain: str) -> list[Node]:
    """The nodes that one entry stands for; their addresses are empty when they could not be worked out."""
    path = join("nodes", name)
    spec = check.mapping(path, value, NODE_KEYS, _NODE_REQUIRED)
    roles = check.choices(f"{path}.roles", spec["roles"], ROLES, "role") if "roles" in spec else ()
    names = [name]
    if "count" in spec:
        names = [f"{name}{i + 1}" for i in range(check.integer(f"{path}.count", spec["count"], *COUNT))]
    check.hostname(path, names[-1], NODE_NAME_LENGTH)
    large = "controller" in roles
    cpus = check.integer(f"{path}.cpus", spec.get("cpus", 2), *CPUS)
    memory = check.size(f"{path}.memory", spec.get("memory", "8 GB" if large else "4 GB"), 1)
    disk = _disk(check, f"{path}.disk", spec.get("disk", "60 GB" if large else "40 GB"), 10)
    extra = _extra_disks(check, f"{path}.extra_disks", spec.get("extra_disks", []))
    pairs = [("", "")] * len(names)
    if "management" in spec:
        pairs = _addresses(check, f"{path}.management", spec["management"], len(names), networks) or pairs
    return [
        Node(each, f"{each}.{domain}", roles, management, tunnel, cpus, memory, disk, extra)
        for each, (management, tunnel) in zip(names, pairs, strict=True)
    ]


def _disk(check: Checker, path: str, value: Any, least: int) -> int:
    """A disk's size in GiB."""
    size = check.size(path, value, least)
    if size % 1024:
        check.problem(path, f"'{value}' is not a whole number of GB: say {size // 1024 + 1} GB")
    return size // 1024


def _extra_disks(check: Checker, path: str, value: Any) -> tuple[int, ...]:
    """Further disks of a node: block devices without a file system, for volumes and objects."""
    if not isinstance(value, list):
        check.problem(path, f"{show(value)} is not a list: write it such as [20 GB]")
        return ()
    if len(value) > MOST_DISKS:
        check.problem(path, f"{len(value)} disks are too many: take at most {MOST_DISKS}")
    return tuple(_disk(check, path, item, 1) for item in value)


def _addresses(
    check: Checker, path: str, value: Any, count: int, networks: Networks
) -> list[tuple[str, str]]:
    """`count` consecutive management addresses, each with the tunnel address of the same host number."""
    network, tunnel = networks.cidr.get("management"), networks.cidr.get("tunnel")
    first = check.address(path, value, network)
    if network is None or first is None:
        return []
    if first + (count - 1) >= network.broadcast_address:
        reach = f"{count} nodes from {first} reach {first + (count - 1)}, past the last address of {network}"
        fits = count <= network.num_addresses - 2
        advice = f"start at {network.broadcast_address - count} or below" if fits else "take a larger network"
        check.problem(path, f"{reach}: {advice}")
        return []
    addresses = [first + i for i in range(count)]
    host, gateway = networks.address.get("management.host"), networks.address.get("management.gateway")
    if host in addresses:
        check.problem(path, f"{host} is the lab host's own (networks.management.host): take a free address")
    if gateway in addresses and gateway != host:
        check.problem(path, f"{gateway} is the gateway (networks.management.gateway): take a free address")
    numbers = [int(address) - int(network.network_address) for address in addresses]
    tunnels = [""] * count
    if tunnel is not None and numbers[-1] >= tunnel.num_addresses - 1:
        high = (
            f"{addresses[-1]} has host number {numbers[-1]}, too high for networks.tunnel, which is {tunnel}"
        )
        check.problem(path, f"{high}: take a lower address or a larger tunnel network")
    elif tunnel is not None:
        tunnels = [str(tunnel[number]) for number in numbers]
        own = networks.text("tunnel.host")
        if own in tunnels and host not in addresses:
            clash = f"the tunnel address would be {own}, the lab host's own (networks.tunnel.host)"
            check.problem(path, f"{clash}: change one of them")
    return list(zip(map(str, addresses), tunnels, strict=True))


def _services(check: Checker, value: Any) -> tuple[str, ...]:
    """The names as they stand there: services, presets, or one of them without brackets."""
    value = [value] if isinstance(value, str) else value
    chosen = check.choices("services", value, services.words(), "service")
    for problem in services.missing(services.expand(chosen)):
        check.problem("services", problem)
    return chosen


def _answers(check: Checker, value: Any) -> dict[str, str]:
    answers: dict[str, str] = {}
    for key, item in check.mapping("answers", value).items():
        path = join("answers", key)
        owned = next((reason for ends, reason in _OWN_ANSWERS if key.endswith(ends)), None)
        if not re.fullmatch(ANSWER, key):
            check.problem(
                path, f"{show(key)} is no key of an answer file: write it such as CONFIG_NTP_SERVERS"
            )
        elif owned:
            check.problem(path, f"'{key}' {owned}")
        elif not isinstance(item, str | int | float):
            check.problem(path, f"{show(item)} is not a single value: write text or a number, or '' for none")
        elif isinstance(item, str) and not item.isprintable():
            check.problem(path, f"{show(item)} does not fit on a line of the answer file: write one line")
        else:
            # Packstack says y and n where YAML says true and false.
            answers[key] = ("y" if item else "n") if isinstance(item, bool) else str(item)
    return answers


def _no_such(name: str, directory: Path) -> Problem:
    names = [path.stem for path in available(directory)]
    close = difflib.get_close_matches(Path(name).stem, names, n=len(names) or 1, cutoff=0.5)
    listed = ", ".join([*close, *(other for other in names if other not in close)]) or "none yet"
    message = f"there is no topology {show(name)}: give the path of a file or a name ({listed})"
    return Problem(str(directory), "", message)
