"""The provider libvirt's commands in order, against a virsh that refuses what is out of order."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stacklab import clocks, files, namespace, providers, remote
from stacklab.base import Golden
from stacklab.errors import CommandFailed
from stacklab.plan import Plan
from stacklab.providers import libvirt
from stacklab.providers.libvirt import Libvirt
from tests.fakes import Fake, install

NODES = ("controller", "compute1")


@pytest.fixture
def plan(two_node: Plan) -> Plan:
    """A lab with the host's own libvirtd, emulated."""
    nodes = tuple(dataclasses.replace(node, tunnel=node.management) for node in two_node.topology.nodes)
    shape = dataclasses.replace(two_node.topology, nodes=nodes)
    return dataclasses.replace(
        two_node, topology=shape, provider="libvirt", datapath="system", isolated=False, emulated=True
    )


@pytest.fixture
def lab(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Libvirt, Fake, list[str]]:
    monkeypatch.setattr(libvirt, "_SYSTEM_IMAGES", tmp_path / "images")
    steps: list[str] = []
    monkeypatch.setattr(remote, "wait_for_ssh", lambda plan, deadline: steps.append(f"ssh {deadline}"))
    monkeypatch.setattr(
        clocks, "step", lambda plan, are_set: steps.append("clocks" if are_set else "clocks by ssh")
    )
    made = providers.provider(plan, Golden("g", "1", tmp_path))
    assert isinstance(made, Libvirt)
    made.images.mkdir(parents=True)
    for name in ("libvirt", "vagrant"):
        (plan.directory / name).mkdir(parents=True)
    domains = {}
    for node in NODES:
        disk = made.images / f"{node}.img"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
        domains[f"stacklab-two-node-{node}"] = {
            "state": "running",
            "snapshots": {},
            "disks": {"vda": str(disk)},
        }
    networks = {"stacklab-two-node-management": True, "stacklab-two-node-provider": True}
    fake = install("virsh", tmp_path / "fake", monkeypatch, {"domains": domains, "networks": networks})
    return made, fake, steps


def states(fake: Fake) -> list[str]:
    return [one["state"] for one in fake.state["domains"].values()]


def change(fake: Fake, **values: Any) -> None:
    """Change something of all domains."""
    state = fake.state
    for one in state["domains"].values():
        one.update(values)
    fake.set(state)


def acts(fake: Fake) -> list[str]:
    """The commands that change something."""
    names = (call.split()[3] for call in fake.calls())
    asking = ("list", "net-list", "snapshot-list", "dumpxml", "domtime")
    return [name for name in names if name not in asking]


def test_all_nodes_stand_still_for_a_capture(lab: tuple[Libvirt, Fake, list[str]]) -> None:
    provider, fake, steps = lab
    payload = provider.capture()
    assert acts(fake) == ["suspend"] * 2 + ["snapshot-create-as"] * 2 + ["resume"] * 2
    assert payload["kind"] == "memory" and states(fake) == ["running"] * 2
    assert steps == ["clocks"]


def test_clocks_by_ssh_where_an_agent_does_not_answer(lab: tuple[Libvirt, Fake, list[str]]) -> None:
    provider, fake, steps = lab
    change(fake, agentless=True)
    provider.capture()
    assert steps == ["clocks by ssh"]


def test_none_runs_before_all_are_back(lab: tuple[Libvirt, Fake, list[str]]) -> None:
    provider, fake, steps = lab
    payload = provider.capture()
    later = provider.capture()
    steps.clear()
    fake.forget()
    provider.revert(payload)
    assert states(fake) == ["paused"] * 2
    assert sorted(acts(fake)) == ["qemu-monitor-command"] * 2 + ["suspend"] * 2
    assert provider.running() == {"controller": False, "compute1": False} and provider.exists()
    provider.start()
    assert states(fake) == ["running"] * 2
    assert steps == ["clocks"]
    provider.prune([payload])
    for one in fake.state["domains"].values():
        assert set(one["snapshots"]) == {payload["name"]} != {later["name"]}


@pytest.mark.parametrize("why", [{"state": "off"}, {"other_devices": True}])
def test_another_qemu_where_the_running_one_cannot_go_back(
    lab: tuple[Libvirt, Fake, list[str]], why: dict[str, Any]
) -> None:
    provider, fake, _ = lab
    payload = provider.capture()
    change(fake, **why)
    fake.forget()
    provider.revert(payload)
    assert states(fake) == ["paused"] * 2 and acts(fake).count("snapshot-revert") == 2


def test_after_the_hosts_reboot_networks_come_first(lab: tuple[Libvirt, Fake, list[str]]) -> None:
    provider, fake, steps = lab
    change(fake, state="off")
    fake.set({**fake.state, "networks": dict.fromkeys(fake.state["networks"], False)})
    provider.start()
    assert acts(fake) == ["net-start"] * 2 + ["start"] * 2
    assert steps == ["ssh 180.0"], "a node that booted has the host's time already"


def test_disks_alone_where_memory_cannot_be_kept(lab: tuple[Libvirt, Fake, list[str]]) -> None:
    provider, fake, steps = lab
    change(fake, pflash=True)
    payload = provider.capture()
    assert payload["kind"] == "layers"
    assert payload["disks"] == {node: {"vda": str(provider.images / f"{node}.img")} for node in NODES}
    tops = [one["disks"]["vda"] for one in fake.state["domains"].values()]
    assert all(top.endswith(f"{payload['name']}.layer.qcow2") for top in tops)
    # Of this lab every later one is of that kind, whatever libvirt would do by then.
    for top, node in zip(tops, NODES, strict=True):
        backed(Path(top), provider.images / f"{node}.img")
    change(fake, pflash=False)
    later = provider.capture()
    assert later["kind"] == "layers" and [one["vda"] for one in later["disks"].values()] == tops
    for one in fake.state["domains"].values():
        backed(Path(one["disks"]["vda"]), Path(one["disks"]["vda"].replace(later["name"], payload["name"])))

    provider.revert(payload)
    assert states(fake) == ["off"] * 2
    for name, one in fake.state["domains"].items():
        below = provider.images / f"{name.removeprefix('stacklab-two-node-')}.img"
        assert chain(Path(one["disks"]["vda"])) == [Path(one["disks"]["vda"]), below]
    provider.prune([later])
    assert all(Path(top).is_file() for top in tops), "the later snapshot stands on them"
    provider.prune([payload])
    left = {Path(one["disks"]["vda"]) for one in fake.state["domains"].values()}
    assert set(provider.images.glob("*.layer.qcow2")) == left
    provider.start()
    assert states(fake) == ["running"] * 2 and steps[-1] == "ssh 180.0"


def backed(top: Path, below: Path) -> None:
    """Make the layer that libvirt would have made."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", top], check=True)


def chain(top: Path) -> list[Path]:
    told = subprocess.run(
        ["qemu-img", "info", "--backing-chain", top], check=True, capture_output=True, text=True
    ).stdout
    return [Path(line.removeprefix("image: ")) for line in told.splitlines() if line.startswith("image: ")]


def test_a_later_refusal_does_not_mix_the_kinds(lab: tuple[Libvirt, Fake, list[str]]) -> None:
    provider, fake, _ = lab
    provider.capture()
    change(fake, pflash=True)
    with pytest.raises(CommandFailed, match="not supported"):
        provider.capture()
    assert states(fake) == ["running"] * 2, "they go on all the same"
    for one in fake.state["domains"].values():
        assert len(one["snapshots"]) == 1


def test_stop_is_patient_but_not_for_ever(
    lab: tuple[Libvirt, Fake, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, fake, _ = lab
    monkeypatch.setattr("stacklab.providers.machines.BOOT_SECONDS", 0.04)
    change(fake, deaf=True)
    provider.stop()
    assert states(fake) == ["off"] * 2 and "destroy" in acts(fake)


def test_nothing_is_left_of_it_on_the_hosts_libvirtd(lab: tuple[Libvirt, Fake, list[str]]) -> None:
    provider, fake, _ = lab
    provider.capture()
    provider.destroy()
    assert fake.state == {"domains": {}, "networks": {}}
    assert not provider.images.exists()
    provider.destroy()


def test_nothing_goes_where_no_libvirtd_answers(
    lab: tuple[Libvirt, Fake, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    provider, _, _ = lab
    mute = tmp_path / "mute" / "virsh"
    mute.parent.mkdir()
    mute.write_text("#!/bin/sh\nexit 1\n")
    mute.chmod(0o755)
    monkeypatch.setenv("PATH", f"{mute.parent}:{os.environ['PATH']}")
    with pytest.raises(CommandFailed) as caught:
        provider.destroy()
    assert "libvirtd" in caught.value.hint
    assert len(list(provider.images.glob("*.img"))) == len(NODES), "their machines may run"


def test_networks(lab: tuple[Libvirt, Fake, list[str]], plan: Plan, tmp_path: Path) -> None:
    provider, _, _ = lab
    networks = [ET.fromstring(provider.network_xml(name)) for name in ("management", "provider", "tunnel")]
    found = [[(ip.get("address"), ip.get("netmask")) for ip in network.findall("ip")] for network in networks]
    assert found == [
        [("10.0.0.1", "255.255.255.0")],
        [("203.0.113.1", "255.255.255.0")],
        [("10.0.1.1", "255.255.255.0")],
    ]
    bridges = [network.find("bridge").get("name", "") for network in networks]  # type: ignore[union-attr]
    assert len(set(bridges)) == 3 and all(len(bridge) <= 15 for bridge in bridges)
    assert all(network.find("ip/dhcp") is None for network in networks)
    # The host's firewall keeps a lab in; in a namespace of its own there is nothing to be kept from.
    assert all(network.find("forward") is None for network in networks)
    own = Libvirt(dataclasses.replace(plan, isolated=True), Golden("g", "1", tmp_path))
    forward = ET.fromstring(own.network_xml("management")).find("forward")
    assert forward is not None and forward.get("mode") == "open"


def test_the_way_out_of_el(plan: Plan, tmp_path: Path) -> None:
    def shapes(**changes: Any) -> list[tuple[str | None, str | None]]:
        """How each network leads out, and whether it answers for names."""
        made = Libvirt(dataclasses.replace(plan, **changes), Golden("g", "1", tmp_path))
        found = [ET.fromstring(made.network_xml(name)) for name in ("management", "provider")]
        assert all(one.find("ip/dhcp") is None for one in found), "addresses are the seed's"
        modes = [None if (way := one.find("forward")) is None else way.get("mode") for one in found]
        return list(zip(modes, (one.find("dns").get("enable") for one in found), strict=True))  # type: ignore[union-attr]

    for distribution in ("rocky-9", "centos-stream-9", "centos-7"):
        assert shapes(distribution=distribution) == [("nat", "yes"), (None, "no")]
    # Debian's packages are in the image; and in a namespace nothing is behind the host's address.
    assert shapes() == [(None, "no"), (None, "no")]
    assert shapes(distribution="rocky-9", isolated=True) == [("open", "no"), ("open", "no")]


def test_settings_of_emulated_nodes_and_others(
    lab: tuple[Libvirt, Fake, list[str]], plan: Plan, tmp_path: Path
) -> None:
    provider, _, _ = lab
    emulated = provider.vagrant_settings({})
    assert (emulated["driver"], emulated["cpu_mode"], emulated["cache"]) == ("qemu", "maximum", "unsafe")
    assert emulated["autostart"] and emulated["enter"] == []
    fast = dataclasses.replace(plan, emulated=False, isolated=True)
    found = Libvirt(fast, Golden("g", "1", tmp_path)).vagrant_settings({})
    assert (found["driver"], found["cpu_mode"], found["cache"]) == ("kvm", "host-passthrough", "writeback")
    assert not found["autostart"] and found["enter"] == namespace.enter(fast)
    controller = found["nodes"][0]
    assert [network["name"] for network in controller["networks"]] == ["stacklab-two-node-provider"]
    assert controller["console"].endswith("logs/console-controller.log")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like the QEMU of a node."""
    words = ["qemu-system-x86_64", "-name", "guest=stacklab-two-node-compute1,debug-threads=on"]
    argv = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", *words]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()  # until then /proc may not have its command line yet
    yield process
    process.kill()
    process.wait()


def test_nodes_end_without_a_libvirtd(plan: Plan, tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    own = Libvirt(dataclasses.replace(plan, isolated=True, lab="two-nodes"), Golden("g", "1", tmp_path))
    own._end_processes()
    assert sleeper.poll() is None, "it is another lab's"
    own = Libvirt(dataclasses.replace(plan, isolated=True), Golden("g", "1", tmp_path))
    own._end_processes()
    assert sleeper.wait(timeout=5) == -9


def test_an_own_libvirtd_that_does_not_run(plan: Plan, tmp_path: Path) -> None:
    own = Libvirt(dataclasses.replace(plan, isolated=True), Golden("g", "1", tmp_path))
    assert own.states() == {} and not own.exists()
    for node in NODES:
        files.write(plan.directory / "libvirt" / "etc" / "qemu" / f"stacklab-two-node-{node}.xml", "")
    (plan.directory / "vagrant").mkdir()
    assert own.exists() and own.running() == {"controller": False, "compute1": False}
