"""What a node is given before its first boot: every file, its mode, and what stays the same."""

from __future__ import annotations

import configparser
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from stacklab import distributions, files, interfaces, seed, seed_disc
from stacklab.plan import Plan

HIERA = "etc/puppet/code/environments/production/data/node.yaml"
HOSTS = (
    "127.0.0.1 localhost\n10.0.0.11 controller.lab.test controller\n10.0.0.31 compute1.lab.test compute1\n"
)
BOTH = {
    "etc/hostname": 0o644,
    "etc/systemd/system/stacklab-clear-ports.service": 0o644,
    "etc/systemd/system/ssh-keygen.service.d/10-stacklab.conf": 0o644,
    "usr/local/lib/stacklab/clear-ports": 0o755,
    "var/lib/systemd/linger/root": 0o644,
    "etc/machine-id": 0o444,
    "etc/hosts": 0o644,
    "etc/resolv.conf": 0o644,
    "etc/ssh/ssh_known_hosts": 0o644,
    "etc/ssh/ssh_host_ed25519_key": 0o600,
    "etc/ssh/ssh_host_ed25519_key.pub": 0o644,
    "etc/ssh/sshd_config.d/10-stacklab.conf": 0o644,
    "etc/chrony/chrony.conf": 0o644,
    "root/.ssh/authorized_keys": 0o600,
    HIERA: 0o644,
}
CONTROLLER = {"root/.ssh/id_ed25519": 0o600, "root/.ssh/id_ed25519.pub": 0o644}
NETDEV = {
    "etc/systemd/network/30-brvxlan.network": 0o644,
    "etc/systemd/system/stacklab-tunnel.service": 0o644,
}


def tree(root: Path) -> dict[str, int]:
    """The files of a seed with their modes."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(root)): path.stat().st_mode & 0o7777 for path in files}


def links(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): str(path.readlink()) for path in root.rglob("*") if path.is_symlink()
    }


def text(plan: Plan, node: str, name: str) -> str:
    return (plan.directory / "seed" / node / name).read_text()


@pytest.mark.parametrize(("datapath", "more"), [("system", {}), ("netdev", NETDEV)])
def test_files_and_modes(datapath: str, more: dict[str, int], make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(datapath=datapath)
    seed.write(plan)
    place = plan.directory / "seed"
    # The private key, with which one is root everywhere, is on the controller alone.
    assert tree(place / "controller") == {**BOTH, **CONTROLLER, **more}
    assert tree(place / "compute1") == {**BOTH, **more}
    for name in ("root", "root/.ssh"):
        assert (place / "compute1" / name).stat().st_mode & 0o7777 == 0o700


def test_units_only_for_the_userspace_datapath(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(datapath="netdev")
    seed.write(plan)
    wants = "etc/systemd/system/multi-user.target.wants"
    always = {
        f"{wants}/openvswitch-switch.service": "/lib/systemd/system/openvswitch-switch.service",
        f"{wants}/stacklab-clear-ports.service": "/etc/systemd/system/stacklab-clear-ports.service",
    }
    assert links(plan.directory / "seed" / "compute1") == {
        **always,
        f"{wants}/stacklab-tunnel.service": "/etc/systemd/system/stacklab-tunnel.service",
    }
    unit = text(plan, "compute1", "etc/systemd/system/stacklab-tunnel.service")
    assert "add-br brvxlan" in unit and "@" not in unit
    plan = make_plan(datapath="system")
    seed.write(plan)
    assert links(plan.directory / "seed" / "compute1") == always


def test_tunnel_address(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(datapath="netdev")
    seed.write(plan)
    for node, address in (("controller", "10.0.1.11/24"), ("compute1", "10.0.1.31/24")):
        network = text(plan, node, "etc/systemd/network/30-brvxlan.network")
        assert "Name=brvxlan\n" in network and f"Address={address}\n" in network
        assert "@" not in network


def test_name_servers_of_the_management_network(make_plan: Callable[..., Plan]) -> None:
    for name, expected in (
        ("vmware-notes", "nameserver 10.0.0.2\n"),
        ("two-node", "# no name server: every name a node needs is in /etc/hosts\n"),
    ):
        plan = make_plan(name)
        seed.write(plan)
        assert text(plan, "compute1", "etc/resolv.conf") == expected


@pytest.mark.parametrize(
    ("provider", "distribution", "isolated", "name", "servers"),
    [
        ("libvirt", "rocky-9", False, "two-node", ("10.0.0.1",)),
        ("libvirt", "centos-7", False, "two-node", ("10.0.0.1",)),
        ("libvirt", "rocky-9", False, "vmware-notes", ("10.0.0.2",)),
        # No way out, so nobody to ask: the doctor says so.
        ("libvirt", "rocky-9", True, "two-node", ()),
        ("virtualbox", "rocky-9", False, "two-node", ()),
        ("libvirt", "debian-12", False, "two-node", ()),
        ("libvirt", "debian-12", False, "vmware-notes", ("10.0.0.2",)),
    ],
)
def test_the_host_is_the_name_server_where_it_is_the_way_out(
    provider: str,
    distribution: str,
    isolated: bool,
    name: str,
    servers: tuple[str, ...],
    make_plan: Callable[..., Plan],
) -> None:
    plan = replace(make_plan(name, "system"), provider=provider, distribution=distribution, isolated=isolated)
    seed.write(plan)
    found = re.findall(r"^nameserver (.*)$", text(plan, "compute1", "etc/resolv.conf"), re.MULTILINE)
    assert tuple(found) == servers
    assert interfaces.of(plan, plan.topology.nodes[0])[0].dns == servers


def test_names(two_node: Plan) -> None:
    seed.write(two_node)
    assert text(two_node, "controller", "etc/hostname") == "controller.lab.test\n"
    assert text(two_node, "compute1", "etc/hostname") == "compute1.lab.test\n"
    for node in ("controller", "compute1"):
        assert text(two_node, node, "etc/hosts") == HOSTS


def test_each_node_has_a_machine_id_of_its_own(two_node: Plan) -> None:
    seed.write(two_node)
    first = [text(two_node, node, "etc/machine-id") for node in ("controller", "compute1")]
    assert all(re.fullmatch(r"[0-9a-f]{32}\n", identity) for identity in first)
    assert first[0] != first[1]
    seed.write(two_node)
    assert [text(two_node, node, "etc/machine-id") for node in ("controller", "compute1")] == first


def test_clocks(two_node: Plan) -> None:
    seed.write(two_node)
    controller = text(two_node, "controller", "etc/chrony/chrony.conf").splitlines()
    compute = text(two_node, "compute1", "etc/chrony/chrony.conf").splitlines()
    assert "local stratum 8" in controller and "allow 10.0.0.0/24" in controller
    assert not [line for line in controller if line.startswith(("server", "pool"))]
    assert [line for line in compute if line.startswith(("server", "pool", "local", "allow"))] == [
        "server 10.0.0.11 iburst minpoll 2 maxpoll 6"
    ]


@pytest.mark.parametrize(
    ("datapath", "expected"),
    [("system", {}), ("netdev", {"neutron::agents::ml2::ovs::datapath_type": "netdev"})],
)
def test_hiera(datapath: str, expected: dict[str, str], make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(datapath=datapath)
    seed.write(plan)
    assert yaml.safe_load(text(plan, "compute1", HIERA)) == expected


def test_keys_fit_each_other(two_node: Plan) -> None:
    seed.write(two_node)
    keys = two_node.directory / "ssh"
    public = (keys / "id_ed25519.pub").read_text()
    private = two_node.directory / "seed" / "controller" / "root/.ssh/id_ed25519"
    derived = subprocess.run(["ssh-keygen", "-y", "-f", private], capture_output=True, text=True, check=True)
    assert derived.stdout.split()[:2] == public.split()[:2]
    known = text(two_node, "compute1", "etc/ssh/ssh_known_hosts").splitlines()
    for node, line in zip(two_node.topology.nodes, known, strict=True):
        assert text(two_node, node.name, "root/.ssh/authorized_keys") == public
        host = text(two_node, node.name, "etc/ssh/ssh_host_ed25519_key.pub").split()
        assert line == f"{node.name},{node.fqdn},{node.management} {host[0]} {host[1]}"
    assert (keys / "known_hosts").read_text().splitlines() == known
    assert len({line.split()[2] for line in (*known, f"x {public}")}) == 3


def test_keys_are_drawn_once_and_kept_from_others(two_node: Plan) -> None:
    seed.write(two_node)
    keys = two_node.directory / "ssh"
    names = {"id_ed25519", "host_controller", "host_compute1"}
    assert {path.name for path in keys.iterdir()} == {
        *names,
        *(f"{name}.pub" for name in names),
        "known_hosts",
    }
    first = {path.name: path.read_bytes() for path in keys.iterdir()}
    assert {(keys / name).stat().st_mode & 0o7777 for name in names} == {0o600}
    assert keys.stat().st_mode & 0o7777 == 0o700
    seed.write(two_node)
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == first


def test_a_key_that_a_kill_left_half_is_drawn_anew(two_node: Plan) -> None:
    keys = two_node.directory / "ssh"
    keys.mkdir(parents=True)
    (keys / "id_ed25519").write_text("half")
    seed.write(two_node)
    assert (keys / "id_ed25519").read_text() != "half"
    assert text(two_node, "controller", "root/.ssh/id_ed25519") == (keys / "id_ed25519").read_text()


def test_nothing_stays_of_an_older_seed(make_plan: Callable[..., Plan]) -> None:
    seed.write(make_plan(datapath="netdev"))
    plan = make_plan(datapath="system")
    seed.write(plan)
    assert set(tree(plan.directory / "seed" / "compute1")) == set(BOTH)


def test_ssh_config(two_node: Plan, labs: Path) -> None:
    directory = labs / "two-node"

    def host(name: str, address: str) -> str:
        return f"""Host {name} {name}.lab.test {address}
  HostName {address}
  User root
  IdentityFile {directory}/ssh/id_ed25519
  IdentitiesOnly yes
  UserKnownHostsFile {directory}/ssh/known_hosts
  StrictHostKeyChecking yes
  ConnectTimeout 5
  ServerAliveInterval 15
  LogLevel ERROR
  ProxyCommand nsenter --net=/run/netns/stacklab-two-node nc %h %p
"""

    assert seed.ssh_config(two_node) == host("controller", "10.0.0.11") + host("compute1", "10.0.0.31")
    seed.write(two_node)
    assert (directory / "ssh_config").read_text() == seed.ssh_config(two_node)
    asked = subprocess.run(
        ["ssh", "-G", "-F", directory / "ssh_config", "compute1.lab.test"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"hostname 10.0.0.31", "user root", "stricthostkeychecking true"} <= set(asked.stdout.splitlines())


@pytest.fixture
def machine(make_plan: Callable[..., Plan]) -> Iterator[Callable[[str, str], Plan]]:
    """Plans of virtual machines, of a family and with a network service."""

    def make(family: str, network: str) -> Plan:
        plan = make_plan(datapath="system")
        row = replace(distributions.distribution("debian-12"), family=family, network=network)
        distributions_of[plan.distribution] = row
        return replace(plan, provider="libvirt")

    distributions_of: dict[str, distributions.Distribution] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "stacklab.seed.distributions.distribution",
            lambda name, real=distributions.distribution: distributions_of.get(name) or real(name),
        )
        yield make


MACHINE = {name: mode for name, mode in BOTH.items() if name != "etc/machine-id"}


def test_a_virtual_machine_of_debian(machine: Callable[[str, str], Plan]) -> None:
    plan = machine("debian", "systemd-networkd")
    seed.write(plan)
    networks = {f"etc/systemd/network/20-eth{number}.network": 0o644 for number in (0, 1)}
    # Its machine id is drawn by its systemd, which starts before any disc can be read.
    assert tree(plan.directory / "seed" / "compute1") == {**MACHINE, **networks}
    first, second = (text(plan, "compute1", name) for name in sorted(networks))
    node = plan.topology.nodes[1]
    # Not by the address that it has at the moment: br-ex has that of eth1, too.
    assert f"PermanentMACAddress={interfaces.mac(plan, node, 'eth0')}\n" in first
    assert "Address=10.0.0.31/24\n" in first and "Gateway=10.0.0.1\n" in first
    assert f"PermanentMACAddress={interfaces.mac(plan, node, 'eth1')}\n" in second
    assert not re.search("^(Address|Gateway|DHCP)=", second, re.MULTILINE)


def test_units_of_emulated_nodes_get_more_time_to_start(two_node: Plan) -> None:
    path = "etc/systemd/system.conf.d/10-stacklab.conf"
    seed.write(two_node)
    assert path not in tree(two_node.directory / "seed" / "compute1")
    seed.write(replace(two_node, emulated=True))
    assert "DefaultTimeoutStartSec=450\n" in text(two_node, "compute1", path)


def test_a_virtual_machine_of_el_with_networkmanager(machine: Callable[[str, str], Plan]) -> None:
    plan = machine("el", "NetworkManager")
    plan = replace(
        plan,
        topology=replace(
            plan.topology, management=replace(plan.topology.management, dns=("10.0.0.2", "192.0.2.53"))
        ),
    )
    seed.write(plan)
    place = "etc/NetworkManager/system-connections"
    found = tree(plan.directory / "seed" / "compute1")
    # It ignores a profile that others may read.
    assert {name: mode for name, mode in found.items() if name.startswith(place)} == {
        f"{place}/eth0.nmconnection": 0o600,
        f"{place}/eth1.nmconnection": 0o600,
    }
    assert found["etc/chrony.conf"] == 0o644 and "etc/chrony/chrony.conf" not in found
    assert HIERA not in found
    first, second = (configparser.ConfigParser(), configparser.ConfigParser())
    first.read_string(text(plan, "compute1", f"{place}/eth0.nmconnection"))
    second.read_string(text(plan, "compute1", f"{place}/eth1.nmconnection"))
    node = plan.topology.nodes[1]
    assert first["ethernet"]["mac-address"] == interfaces.mac(plan, node, "eth0").upper()
    assert dict(first["ipv4"]) == {
        "method": "manual",
        "address1": "10.0.0.31/24,10.0.0.1",
        "dns": "10.0.0.2;192.0.2.53;",
    }
    assert second["ethernet"]["mac-address"] == interfaces.mac(plan, node, "eth1").upper()
    assert dict(second["ipv4"]) == {"method": "disabled"}
    wants = "etc/systemd/system/multi-user.target.wants"
    assert links(plan.directory / "seed" / "compute1") == {
        f"{wants}/openvswitch.service": "/usr/lib/systemd/system/openvswitch.service",
        f"{wants}/stacklab-clear-ports.service": "/etc/systemd/system/stacklab-clear-ports.service",
    }
    unit = text(plan, "compute1", "etc/systemd/system/stacklab-clear-ports.service")
    assert "Requires=openvswitch.service\n" in unit and "openvswitch-switch" not in unit


def test_a_virtual_machine_of_centos_7(machine: Callable[[str, str], Plan]) -> None:
    plan = machine("el", "network")
    seed.write(plan)
    place = "etc/sysconfig/network-scripts"
    first, second = (
        dict(line.split("=", 1) for line in text(plan, "compute1", f"{place}/ifcfg-{name}").splitlines())
        for name in ("eth0", "eth1")
    )
    common = {"ONBOOT": "yes", "BOOTPROTO": "none", "NM_CONTROLLED": "no", "TYPE": "Ethernet"}
    assert {key: first[key] for key in common} == {key: second[key] for key in common} == common
    assert (first["DEVICE"], first["IPADDR"], first["PREFIX"]) == ("eth0", "10.0.0.31", "24")
    assert first["GATEWAY"] == "10.0.0.1" and not {"IPADDR", "GATEWAY"} & second.keys()
    node = plan.topology.nodes[1]
    for values, name in ((first, "eth0"), (second, "eth1")):
        assert values["HWADDR"] == interfaces.mac(plan, node, name).upper()


def test_the_disc_of_a_virtual_machine(machine: Callable[[str, str], Plan], tmp_path: Path) -> None:
    plan = machine("debian", "systemd-networkd")
    seed.write(plan)
    node = plan.topology.controller
    disc = tmp_path / "discs" / "controller.iso"
    seed_disc.write(plan, node, disc)
    assert disc.stat().st_mode & 0o7777 == 0o600, "it holds the key to every node"
    assert disc.read_bytes()[0x8028:0x8048].rstrip() == b"STACKLAB"
    assert [path.name for path in disc.parent.iterdir()] == ["controller.iso"]
    out = tmp_path / "out"
    subprocess.run(
        ["xorriso", "-osirrox", "on", "-indev", disc, "-extract", "/", out], check=True, capture_output=True
    )
    assert (out / "nics").read_text().splitlines() == [
        f"{interfaces.mac(plan, node, name)} {name}" for name in ("eth0", "eth1")
    ]
    with tarfile.open(out / "seed.tar") as tar:
        members = {member.name.removeprefix("./"): member for member in tar.getmembers()}
    assert {(one.uid, one.gid, one.uname, one.mtime) for one in members.values()} == {(0, 0, "", 0)}
    assert members["root/.ssh/id_ed25519"].mode == 0o600 and members["root/.ssh"].mode == 0o700
    wants = members["etc/systemd/system/multi-user.target.wants/openvswitch-switch.service"]
    assert wants.issym() and wants.linkname == "/lib/systemd/system/openvswitch-switch.service"
    first = (out / "id").read_text()
    for same in (True, False):
        if not same:
            files.write(plan.directory / "seed" / "controller" / "etc" / "motd", "changed\n")
        seed_disc.write(plan, node, disc)
        again = tmp_path / f"again-{same}"
        subprocess.run(
            ["xorriso", "-osirrox", "on", "-indev", disc, "-extract", "/", again],
            check=True,
            capture_output=True,
        )
        assert ((again / "id").read_text() == first) is same


def test_addresses_of_interfaces(make_plan: Callable[..., Plan]) -> None:
    plan, other = make_plan(), make_plan(lab="other")
    found = [
        interfaces.mac(one, node, interface)
        for one in (plan, other)
        for node in one.topology.nodes
        for interface in ("eth0", "eth1", "eth2")
    ]
    assert len(set(found)) == 12
    for address in found:
        assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", address)
        assert int(address[:2], 16) & 0b11 == 0b10  # locally administered, unicast
    # The same in every process.
    assert interfaces.mac(plan, plan.topology.nodes[0], "eth0") == "02:1e:f2:41:06:26"


def test_what_open_vswitch_brings_back_goes(tmp_path: Path) -> None:
    """The script of a node, with an Open vSwitch that has two of Neutron's ports on two bridges."""
    fake = tmp_path / "bin" / "ovs-vsctl"
    files.write(
        fake,
        f"""#!/bin/sh
shift; echo "$*" >>{tmp_path}/calls
case "$*" in *find*) printf "tap1\\n\\nqr-2\\n" ;; list-br) printf "br-int\\nbr-ex\\n" ;; esac
""",
    )
    fake.chmod(0o755)
    script = seed._SHARED / "clear-ports"
    subprocess.run(["bash", script], env={"PATH": f"{fake.parent}:/usr/bin:/bin"}, check=True)
    assert (tmp_path / "calls").read_text().splitlines()[1:] == [
        "--if-exists del-port tap1",
        "--if-exists del-port qr-2",
        "list-br",
        "del-controller br-int",
        "del-controller br-ex",
    ]
