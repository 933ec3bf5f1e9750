"""Every choice that a plan makes, and the plan through plan.json and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stacklab import base, choice, files, plan, releases, topology
from stacklab.errors import InvalidInput
from stacklab.model import Topology
from stacklab.plan import Plan, from_json, resolve

TOPOLOGIES = files.PROJECT / "topologies"
CHOSEN = (
    "provider: lxc (containers: needs no working KVM; not libvirt, "
    "no virsh or no vagrant-libvirt: `invoke doctor --provider libvirt`)",
    "distribution: debian-12 (the one that the lxc provider has a golden image for)",
)
USERSPACE = "Open vSwitch: userspace datapath (this kernel has no openvswitch module)"


def load(name: str = "two-node") -> Topology:
    return topology.load(name, TOPOLOGIES)


@pytest.mark.parametrize("name", ["two-node", "all-in-one"])
@pytest.mark.parametrize("datapath", ["system", "netdev"])
def test_shipped_topologies(name: str, datapath: str, make_plan: Callable[..., Plan]) -> None:
    topology = dataclasses.replace(load(name), network_agent="openvswitch")
    if datapath == "system":
        nodes = tuple(dataclasses.replace(node, tunnel=node.management) for node in topology.nodes)
        topology = dataclasses.replace(topology, nodes=nodes)
    assert make_plan(name, datapath) == Plan(
        lab=name,
        topology=topology,
        provider="lxc",
        distribution="debian-12",
        release="zed",
        packstack="21.0.1",
        datapath=datapath,
        reasons=(*CHOSEN, USERSPACE) if datapath == "netdev" else CHOSEN,
    )


def test_storage_nodes_need_disks_where_they_are_machines(make_plan: Callable[..., Plan]) -> None:
    def bare(*roles: str, **changes: Any) -> Topology:
        lab = load("storage")
        nodes = [
            dataclasses.replace(node, extra_disks=()) if set(roles) & set(node.roles) else node
            for node in lab.nodes
        ]
        return dataclasses.replace(lab, nodes=tuple(nodes), **changes)

    make_plan("storage")
    assert resolve(bare("block-storage", "object-storage"), provider="lxc").provider == "lxc"
    with pytest.raises(InvalidInput) as caught:
        resolve(bare("block-storage", "object-storage"), provider="libvirt")
    assert [f"{problem.path}: {problem.message}" for problem in caught.value.problems] == [
        "nodes: block1 has no disk for volumes: give it one, extra_disks: [20 GB]",
        "nodes: object1 has no disk for objects: give it one, extra_disks: [20 GB]",
    ]
    elsewhere = {"CONFIG_CINDER_BACKEND": "nfs", "CONFIG_CINDER_NFS_MOUNTS": "192.0.2.7:/export"}
    assert resolve(bare("block-storage", answers=elsewhere), provider="libvirt").provider == "libvirt"
    assert resolve(load("storage"), provider="libvirt").provider == "libvirt"


@pytest.mark.parametrize("name", ["two-node", "vmware-notes", "storage"])
def test_json_round_trip(name: str, make_plan: Callable[..., Plan]) -> None:
    made = make_plan(name)
    made = dataclasses.replace(
        made, topology=dataclasses.replace(made.topology, answers={"CONFIG_NTP_SERVERS": "192.0.2.1"})
    )
    assert from_json(json.loads(json.dumps(made.as_json()))) == made


def test_an_explicit_choice_needs_no_reason(make_plan: Callable[..., Plan]) -> None:
    make_plan(datapath="system")
    given = dataclasses.replace(load(), provider="lxc", distribution="debian-12", release="zed")
    assert resolve(given).reasons == ()
    assert resolve(load(), provider="lxc", distribution="debian-12").reasons == ()


def test_names_follow_the_lab(make_plan: Callable[..., Plan], labs: Path) -> None:
    made = make_plan(lab="mine")
    assert (made.lab, made.topology.name) == ("mine", "two-node")
    assert made.directory == labs / "mine"
    assert made.namespace == "stacklab-mine"


def test_tunnel_interface(make_plan: Callable[..., Plan]) -> None:
    kernel, userspace = make_plan(datapath="system"), make_plan(datapath="netdev")
    assert (kernel.tunnel_interface, kernel.tunnel_network) == ("eth0", False)
    assert [node.tunnel for node in kernel.topology.nodes] == ["10.0.0.11", "10.0.0.31"]
    # Facter 4 would keep a dash, and Packstack would look for an underscore.
    assert (userspace.tunnel_interface, userspace.tunnel_network) == ("brvxlan", True)
    assert [node.tunnel for node in userspace.topology.nodes] == ["10.0.1.11", "10.0.1.31"]


@pytest.mark.parametrize(
    ("asked", "release", "distribution", "found"),
    [
        ("auto", "rocky", "centos-7", "openvswitch"),
        ("auto", "stein", "centos-7", "ovn"),
        ("auto", "epoxy", "rocky-9", "ovn"),
        ("auto", "zed", "centos-stream-9", "ovn"),
        ("auto", "zed", "debian-12", "openvswitch"),
        ("openvswitch", "epoxy", "rocky-9", "openvswitch"),
        ("linuxbridge", "yoga", "centos-stream-8", "linuxbridge"),
    ],
)
def test_network_agent(asked: str, release: str, distribution: str, found: str) -> None:
    topology = dataclasses.replace(load(), network_agent=asked)
    settled = plan.settled(topology, releases.release(release), distribution, "system")
    assert settled.network_agent == found


@pytest.mark.parametrize(
    ("asked", "release", "distribution", "rest"),
    [
        ("ovn", "zed", "debian-12", "openvswitch"),
        ("linuxbridge", "epoxy", "rocky-9", "ovn, openvswitch"),
    ],
)
def test_an_agent_that_is_not_to_be_had(asked: str, release: str, distribution: str, rest: str) -> None:
    topology = dataclasses.replace(load(), network_agent=asked)
    with pytest.raises(InvalidInput) as caught:
        plan.settled(topology, releases.release(release), distribution, "system")
    (problem,) = caught.value.problems
    assert (problem.path, problem.message) == (
        "network_agent",
        f"{release} on {distribution} has no {asked}: take {rest}",
    )


def test_a_provider_without_an_image_is_refused(make_plan: Callable[..., Plan]) -> None:
    make_plan()
    with pytest.raises(InvalidInput) as caught:
        resolve(load(), provider="lxc", distribution="rocky-9")
    assert str(caught.value) == (
        f"{TOPOLOGIES / 'two-node.yaml'}: provider: lxc has no rocky-9 image: "
        "take libvirt, virtualbox, vmware_desktop"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("provider", ["libvirt", "virtualbox", "vmware_desktop"])
@pytest.mark.parametrize("distribution", ["debian-12", "rocky-9", "centos-7"])
def test_virtual_machines_start_from_the_same_disk(provider: str, distribution: str) -> None:
    found = resolve(load(), provider=provider, distribution=distribution)
    assert (found.provider, found.datapath) == (provider, "system")
    spec = base.of(found)
    assert spec.provider == "libvirt" and spec.elements[-1] == "stacklab-seed"


def test_all_that_is_impossible_is_named_at_once(make_plan: Callable[..., Plan]) -> None:
    make_plan()
    with pytest.raises(InvalidInput) as caught:
        resolve(
            dataclasses.replace(
                load(), release="epoxy", network_agent="linuxbridge", answers={"CONFIG_DEBUG_MODE": "maybe"}
            ),
            provider="hyperv",
        )
    assert [(problem.path, problem.message) for problem in caught.value.problems] == [
        ("provider", "hyperv has no debian-12 image: take lxc, libvirt, virtualbox, vmware_desktop"),
        ("release", "epoxy does not run on debian-12: take centos-stream-9, rocky-9"),
        ("network_agent", "epoxy on debian-12 has no linuxbridge: take openvswitch"),
        ("answers.CONFIG_DEBUG_MODE", "'maybe' is none of y, n"),
    ]


def test_a_release_that_no_lab_can_have() -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve(dataclasses.replace(load(), release="yoga"), provider="libvirt")
    assert [problem.message for problem in caught.value.problems] == [
        "yoga does not run on debian-12: it runs on centos-stream-8 only, which no golden image is built of: "
        "`invoke answers` and `invoke releases` know it, labs do not"
    ]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of the test's own: its /sys, and a directory that is all of its PATH."""
    monkeypatch.setattr(plan, "Path", lambda path: tmp_path / path.lstrip("/"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    return tmp_path


def modprobe(kernel: Path, then: str) -> None:
    script = kernel / "bin" / "modprobe"
    script.write_text(f'#!/bin/sh\necho "$*" >>"{kernel}/asked"\n{then}\n')
    script.chmod(0o755)


def test_kernel_datapath_that_is_there(kernel: Path) -> None:
    modprobe(kernel, "exit 1")
    (kernel / "sys/module/openvswitch").mkdir(parents=True)
    assert plan.kernel_datapath()
    assert not (kernel / "asked").exists()


def test_kernel_datapath_is_loaded_where_it_can_be(kernel: Path) -> None:
    modprobe(kernel, f"/bin/mkdir -p {kernel}/sys/module/openvswitch")
    assert plan.kernel_datapath()
    assert (kernel / "asked").read_text() == "openvswitch\n"


def test_no_kernel_datapath(kernel: Path) -> None:
    assert not plan.kernel_datapath()  # not even a modprobe
    modprobe(kernel, "exit 1")
    assert not plan.kernel_datapath()
    modprobe(kernel, "exit 0")  # it says yes, and the module is not there all the same
    assert not plan.kernel_datapath()


@pytest.mark.parametrize(
    ("provider", "emulated", "setting", "expected"),
    [
        ("libvirt", False, "kvm_intel Y", "kvm"),
        ("libvirt", False, "kvm_amd 1", "kvm"),
        ("libvirt", False, "kvm_intel N", "qemu"),
        ("libvirt", False, "", "qemu"),
        ("libvirt", True, "kvm_intel Y", "qemu"),
        ("lxc", False, "kvm_intel Y", "qemu"),
    ],
)
def test_instances_have_kvm_where_the_nodes_have_it_for_them(
    provider: str, emulated: bool, setting: str, expected: str, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = choice.Chosen(provider, emulated=emulated)
    monkeypatch.setattr(plan, "choose", lambda *arguments: chosen)
    if setting:
        module, value = setting.split()
        parameter = kernel / "sys/module" / module / "parameters/nested"
        parameter.parent.mkdir(parents=True)
        parameter.write_text(f"{value}\n")
    assert resolve(load()).virt_type == expected
