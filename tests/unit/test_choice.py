"""What `auto` becomes on machines of every kind, with its reason; what a lab that is there keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from stacklab import choice, files, topology
from stacklab.choice import Chosen, choose
from stacklab.model import Topology
from tests.unit.conftest import BARE

ALL = ("lxc", "libvirt", "virtualbox")


@pytest.fixture
def two(labs: Path) -> Topology:
    return topology.load("two-node", files.PROJECT / "topologies")


def machine(tmp_path: Path, *tools: str, kvm: bool = False, libvirtd: bool = False) -> choice.Machine:
    """A machine with these tools; with virsh come Vagrant and its plugin."""
    if "virsh" in tools:
        tools = (*tools, "vagrant")
        files.write(tmp_path / "usr/share/vagrant-plugins/plugins.d/vagrant-libvirt.json", "{}")

    def answers(argv: Sequence[str]) -> bool:
        assert "qemu:///system" in argv
        return libvirtd

    return dataclasses.replace(
        BARE,
        kvm=lambda: (kvm, "a guest ran" if kvm else "no KVM"),
        which=lambda name: f"/usr/bin/{name}" if name in tools else None,
        answers=answers,
        root=tmp_path,
    )


def test_libvirt_where_a_guest_really_runs(two: Topology, tmp_path: Path) -> None:
    best = machine(tmp_path, "virsh", "VBoxManage", kvm=True, libvirtd=True)
    assert choose(two, "auto", "two-node", ALL, machine=best) == Chosen(
        "libvirt", isolated=False, reasons=("provider: libvirt (KVM runs a guest here)",)
    )


def test_virtualbox_where_there_is_no_kvm_and_lxc_where_there_is_nothing(
    two: Topology, tmp_path: Path
) -> None:
    found = choose(two, "auto", "two-node", ALL, machine=machine(tmp_path, "virsh", "VBoxManage"))
    assert (found.provider, found.isolated, found.emulated) == ("virtualbox", False, False)
    found = choose(two, "auto", "two-node", ALL, machine=machine(tmp_path, "virsh"))
    assert found == Chosen(
        "lxc", reasons=("provider: lxc (containers: needs no working KVM; not libvirt, no KVM)",)
    )
    bare = machine(tmp_path, kvm=True)  # a guest would run, but nothing is there to run it
    found = choose(two, "auto", "two-node", ALL, machine=bare)
    assert found.provider == "lxc" and "invoke doctor --provider libvirt" in found.reasons[0]


def test_only_what_there_is_an_image_for(two: Topology, tmp_path: Path) -> None:
    best = machine(tmp_path, "virsh", "VBoxManage", kvm=True, libvirtd=True)
    assert choose(two, "auto", "two-node", ("lxc",), machine=best).provider == "lxc"
    # Not containers: what it would be is tried emulated.
    found = choose(two, "auto", "two-node", ("libvirt",), machine=machine(tmp_path, "virsh"))
    assert (found.provider, found.emulated) == ("libvirt", True)
    assert "emulated nodes, about ten times as slow (no KVM)" in found.reasons


def test_networks_of_the_lab_where_the_hosts_collide(two: Topology, tmp_path: Path) -> None:
    here = machine(tmp_path, "virsh", kvm=True, libvirtd=True)
    assert not choose(two, "libvirt", "two-node", ALL, machine=here).isolated
    taken = dataclasses.replace(here, routes=lambda: [IPv4Network("10.0.0.0/16")])
    found = choose(two, "libvirt", "two-node", ALL, machine=taken)
    assert found.isolated
    assert "management 10.0.0.0/24 is also the host's 10.0.0.0/16" in found.reasons[0]
    # One of them is where tunnels of containers go.
    beside = dataclasses.replace(
        here, routes=lambda: [IPv4Network(n) for n in ("192.168.0.0/16", "10.0.1.0/24")]
    )
    assert not choose(two, "libvirt", "two-node", ALL, machine=beside).isolated


def test_networks_of_the_lab_where_no_libvirtd_answers_or_it_is_asked_for(
    two: Topology, tmp_path: Path
) -> None:
    found = choose(two, "libvirt", "two-node", ALL, machine=machine(tmp_path, "virsh", kvm=True))
    assert found.isolated and "no libvirtd of the host answers" in found.reasons[0]
    here = machine(tmp_path, "virsh", kvm=True, libvirtd=True)
    found = choose(two, "libvirt", "two-node", ALL, own_network=True, machine=here)
    assert found.isolated and "asked for" in found.reasons[0]


def test_a_lab_keeps_what_was_chosen_for_it(two: Topology, labs: Path, tmp_path: Path) -> None:
    saved = {"provider": "libvirt", "isolated": False, "emulated": True}
    files.write_json(labs / "two-node" / "plan.json", {"plan": saved})

    def never() -> tuple[bool, str]:
        raise AssertionError("a lab that is there was looked for again")

    # Its own networks are the host's routes now.
    taken = dataclasses.replace(
        machine(tmp_path, "virsh", libvirtd=True),
        kvm=never,
        routes=lambda: [IPv4Network("10.0.0.0/24")],
    )
    for wanted in ("auto", "libvirt"):
        found = choose(two, wanted, "two-node", ALL, machine=taken)
        assert (found.provider, found.isolated, found.emulated) == ("libvirt", False, True)
    # Another provider is another lab.
    assert choose(two, "lxc", "two-node", ALL, machine=taken).provider == "lxc"


def test_plugins_of_the_distribution_and_of_root(tmp_path: Path) -> None:
    bare = dataclasses.replace(BARE, root=tmp_path / "root", home=tmp_path)
    assert not bare.has_plugin("vagrant-libvirt")
    files.write_json(tmp_path / ".vagrant.d/plugins.json", {"installed": {"vagrant-libvirt": {}}})
    assert bare.has_plugin("vagrant-libvirt") and not bare.has_plugin("vagrant-lxc")


def test_networks_of_routes() -> None:
    told = (
        "default via 192.0.2.1 dev eth0 \n10.0.0.0/24 dev virbr1 proto kernel scope link src 10.0.0.1 \n"
        "172.16.5.9 via 192.0.2.7 dev eth0 \nlocal 10.0.0.1 dev virbr1 table local proto kernel \n"
        "broadcast 10.0.0.255 dev virbr1 table local \n\n"
        # A VPN takes the place of the default route by its halves.
        "0.0.0.0/1 via 192.0.2.9 dev tun0 \n128.0.0.0/1 via 192.0.2.9 dev tun0 \n"
    )
    assert choice.networks_of(told) == [IPv4Network("10.0.0.0/24"), IPv4Network("172.16.5.9/32")]
