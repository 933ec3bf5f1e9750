"""What a node gets before it boots for the first time: names, keys, networks, clock.

A seed is a tree of files, laid over the golden image. Nothing of it is in the image:
keys and identities are drawn once per lab. A container has it in its file system; a
virtual machine takes it from a disc (`seed_disc`).
"""

from __future__ import annotations

import shutil
import uuid
from ipaddress import ip_network

from stacklab import distributions, files, interfaces, releases
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.run import run

_SHARED = releases.DATA / "seed"
# Where families differ: Open vSwitch's unit, the place of packages' units, chrony's configuration.
_OPENVSWITCH = {"debian": "openvswitch-switch.service", "el": "openvswitch.service"}
_UNITS = {"debian": "/lib/systemd/system", "el": "/usr/lib/systemd/system"}
_CHRONY = {"debian": "etc/chrony/chrony.conf", "el": "etc/chrony.conf"}


def write(plan: Plan) -> None:
    """Write the seeds of all nodes below the lab's directory, and the lab's ssh configuration.

    Keys and machine ids are drawn once and kept; the rest follows the plan.
    """
    _keys(plan)
    known = known_hosts(plan)
    for node in plan.topology.nodes:
        root = plan.directory / "seed" / node.name
        identity = _machine_id(plan, node)
        if root.exists():
            shutil.rmtree(root)
        for name, (text, mode) in _files(plan, node, identity, known).items():
            files.write(root / name, text, mode)
        (root / "root").chmod(0o700)
        (root / "root/.ssh").chmod(0o700)
        for unit in _units(plan):
            link = root / "etc/systemd/system/multi-user.target.wants" / unit
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(_unit_path(plan, unit))
    files.write(plan.directory / "ssh_config", ssh_config(plan), 0o600)
    files.write(plan.directory / "ssh" / "known_hosts", known, 0o600)


def _keys(plan: Plan) -> None:
    keys = plan.directory / "ssh"
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("id_ed25519", *(f"host_{node.name}" for node in plan.topology.nodes)):
        if not (keys / f"{name}.pub").is_file():
            (keys / name).unlink(missing_ok=True)
            run(
                [
                    "ssh-keygen",
                    "-q",
                    "-t",
                    "ed25519",
                    "-N",
                    "",
                    "-C",
                    f"stacklab {plan.lab}",
                    "-f",
                    keys / name,
                ]
            )


def _machine_id(plan: Plan, node: Node) -> str:
    path = plan.directory / "seed" / f"{node.name}.machine-id"
    if not path.is_file():
        files.write(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8")


def known_hosts(plan: Plan) -> str:
    """The host keys of all nodes, which must have been drawn already."""
    lines = []
    for node in plan.topology.nodes:
        kind, key, *_ = (plan.directory / "ssh" / f"host_{node.name}.pub").read_text(encoding="utf-8").split()
        lines.append(f"{node.name},{node.fqdn},{node.management} {kind} {key}\n")
    return "".join(lines)


def hosts(plan: Plan) -> str:
    """/etc/hosts: every node by its full name, on the management network."""
    lines = ["127.0.0.1 localhost"]
    lines += [f"{node.management} {node.fqdn} {node.name}" for node in plan.topology.nodes]
    return "\n".join(lines) + "\n"


def _files(plan: Plan, node: Node, identity: str, known: str) -> dict[str, tuple[str, int]]:
    keys = plan.directory / "ssh"
    public = (keys / "id_ed25519.pub").read_text(encoding="utf-8")
    family = distributions.distribution(plan.distribution).family
    seed = {
        "etc/hostname": (node.fqdn + "\n", 0o644),
        "etc/hosts": (hosts(plan), 0o644),
        "etc/resolv.conf": (_resolver(plan), 0o644),
        "etc/ssh/ssh_known_hosts": (known, 0o644),
        "etc/ssh/ssh_host_ed25519_key": ((keys / f"host_{node.name}").read_text(encoding="utf-8"), 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": (
            (keys / f"host_{node.name}.pub").read_text(encoding="utf-8"),
            0o644,
        ),
        "etc/ssh/sshd_config.d/10-stacklab.conf": (
            "HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\nUseDNS no\n",
            0o644,
        ),
        # Else each login starts a service manager for root and ends it after: 2 s on an emulated node.
        "var/lib/systemd/linger/root": ("", 0o644),
        # The host key is here: no others have to be drawn, which takes a minute on an emulated node.
        "etc/systemd/system/ssh-keygen.service.d/10-stacklab.conf": (
            "[Unit]\nConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n",
            0o644,
        ),
        _CHRONY[family]: (_chrony(plan, node), 0o644),
        "root/.ssh/authorized_keys": (public, 0o600),
        **_clear_ports(family),
        **_network(plan, node),
    }
    if family == "debian":
        seed["etc/puppet/code/environments/production/data/node.yaml"] = (_hiera(plan), 0o644)
    if plan.emulated:
        # systemd ends what has not started after 90 s; some of OpenStack takes longer here.
        seed["etc/systemd/system.conf.d/10-stacklab.conf"] = (
            f"[Manager]\nDefaultTimeoutStartSec={90 * plan.patience:.0f}\n",
            0o644,
        )
    if plan.provider == "lxc":
        # A virtual machine draws its own at its first boot, before it can read any disc.
        seed["etc/machine-id"] = (identity, 0o444)
    if "controller" in node.roles:
        # Packstack, on the controller, reaches every node as root.
        seed["root/.ssh/id_ed25519"] = ((keys / "id_ed25519").read_text(encoding="utf-8"), 0o600)
        seed["root/.ssh/id_ed25519.pub"] = (public, 0o644)
    return seed


def _clear_ports(family: str) -> dict[str, tuple[str, int]]:
    unit = (_SHARED / "stacklab-clear-ports.service").read_text(encoding="utf-8")
    return {
        "usr/local/lib/stacklab/clear-ports": (
            (_SHARED / "clear-ports").read_text(encoding="utf-8"),
            0o755,
        ),
        "etc/systemd/system/stacklab-clear-ports.service": (
            unit.replace(_OPENVSWITCH["debian"], _OPENVSWITCH[family]),
            0o644,
        ),
    }


def _network(plan: Plan, node: Node) -> dict[str, tuple[str, int]]:
    """The interfaces of a virtual machine, and where the tunnel address lies.

    A container's interfaces are LXC's, which gives the management address, too.
    """
    found: dict[str, tuple[str, int]] = {}
    if plan.provider != "lxc":
        configure = interfaces.SERVICES[distributions.distribution(plan.distribution).network]
        for interface in interfaces.of(plan, node):
            path, text, mode = configure(interface)
            found[path] = (text, mode)
    elif plan.tunnel_network:
        name = plan.tunnel_interface
        prefix = ip_network(plan.topology.tunnel.cidr).prefixlen
        network = (_SHARED / "tunnel.network").read_text(encoding="utf-8")
        found[f"etc/systemd/network/30-{name}.network"] = (
            network.replace("@NAME@", name).replace("@ADDRESS@", f"{node.tunnel}/{prefix}"),
            0o644,
        )
    if plan.datapath == "netdev":
        unit = (_SHARED / "stacklab-tunnel.service").read_text(encoding="utf-8")
        found["etc/systemd/system/stacklab-tunnel.service"] = (
            unit.replace("@NAME@", plan.tunnel_interface),
            0o644,
        )
    return found


def _resolver(plan: Plan) -> str:
    if not plan.dns:
        return "# no name server: every name a node needs is in /etc/hosts\n"
    return "".join(f"nameserver {server}\n" for server in plan.dns)


def _units(plan: Plan) -> tuple[str, ...]:
    family = distributions.distribution(plan.distribution).family
    units = (_OPENVSWITCH[family], "stacklab-clear-ports.service")
    return (*units, "stacklab-tunnel.service") if plan.datapath == "netdev" else units


def _unit_path(plan: Plan, unit: str) -> str:
    if unit.startswith("stacklab-"):
        return f"/etc/systemd/system/{unit}"
    return f"{_UNITS[distributions.distribution(plan.distribution).family]}/{unit}"


def _chrony(plan: Plan, node: Node) -> str:
    controller = plan.topology.controller
    lines = ["driftfile /var/lib/chrony/chrony.drift", "rtcsync", "makestep 1 3"]
    if node == controller:
        lines += ["# the lab's own time, good enough for all its nodes to agree", "local stratum 8"]
        lines += [f"allow {plan.topology.management.cidr}"]
    else:
        lines += [f"server {controller.management} iburst minpoll 2 maxpoll 6"]
    return "\n".join(lines) + "\n"


def _hiera(plan: Plan) -> str:
    if plan.datapath == "netdev":
        return "---\nneutron::agents::ml2::ovs::datapath_type: netdev\n"
    return "---\n{}\n"


def ssh_config(plan: Plan) -> str:
    """An ssh configuration that reaches the nodes from anywhere on this host."""
    directory = plan.directory
    lines = []
    for node in plan.topology.nodes:
        lines += [
            f"Host {node.name} {node.fqdn} {node.management}",
            f"  HostName {node.management}",
            "  User root",
            f"  IdentityFile {directory}/ssh/id_ed25519",
            "  IdentitiesOnly yes",
            f"  UserKnownHostsFile {directory}/ssh/known_hosts",
            "  StrictHostKeyChecking yes",
            "  ConnectTimeout 5",
            "  ServerAliveInterval 15",
            "  LogLevel ERROR",
        ]
        if plan.isolated:
            lines.append(f"  ProxyCommand nsenter --net=/run/netns/{plan.namespace} nc %h %p")
    return "\n".join(lines) + "\n"
