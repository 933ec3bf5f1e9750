"""VirtualBox and VMware by their command lines, against fakes that refuse what is out of order."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stacklab import archive, clocks, files, providers, remote
from stacklab.base import Golden
from stacklab.errors import CommandFailed, LabError
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.providers import machines
from stacklab.providers.virtualbox import VirtualBox
from stacklab.providers.vmware import Vmware
from stacklab.run import Result
from tests.fakes import Fake, install

NODES = ("controller", "compute1")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """When nodes were waited for, and clocks stepped, instead of doing it."""
    found: list[str] = []
    monkeypatch.setattr(remote, "wait_for_ssh", lambda plan, deadline: found.append(f"ssh {deadline}"))
    monkeypatch.setattr(clocks, "step", lambda plan: found.append("clocks"))
    return found


@pytest.fixture
def virtualbox(
    two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[str]
) -> tuple[VirtualBox, Fake]:
    plan = dataclasses.replace(two_node, provider="virtualbox", datapath="system", isolated=False)
    made = providers.provider(plan, Golden("g", "1", tmp_path))
    assert isinstance(made, VirtualBox)
    (plan.directory / "vagrant").mkdir(parents=True)
    machine = {"state": "running", "snapshots": {}}
    state = {
        "machines": {
            **{f"stacklab-two-node-{name}": dict(machine, snapshots={}) for name in NODES},
            "somebody-elses": machine,
        },
        "interfaces": {"vboxnet0": "192.168.56.1"},
    }
    return made, install("VBoxManage", tmp_path / "fake", monkeypatch, state)


def states(fake: Fake) -> dict[str, Any]:
    return {name.rsplit("-", 1)[-1]: one["state"] for name, one in fake.state["machines"].items()}


def test_virtualbox_states(virtualbox: tuple[VirtualBox, Fake]) -> None:
    provider, fake = virtualbox
    assert provider.exists() and provider.running() == {"controller": True, "compute1": True}
    state = fake.state
    state["machines"]["stacklab-two-node-compute1"]["state"] = "saved"
    fake.set(state)
    assert provider.states() == {"controller": "running", "compute1": "paused"}
    del state["machines"]["stacklab-two-node-compute1"]
    fake.set(state)
    assert not provider.exists()
    assert provider.running() == {"controller": True, "compute1": False}


def test_virtualbox_keeps_all_nodes_while_all_of_them_stand_still(
    virtualbox: tuple[VirtualBox, Fake], steps: list[str]
) -> None:
    provider, fake = virtualbox
    payload = provider.capture()
    said = [call for call in fake.calls() if call.startswith(("controlvm", "snapshot"))]
    acts = [" ".join(call.split()[:1] + call.split()[2:3]) for call in said]
    assert acts == ["controlvm pause"] * 2 + ["snapshot take"] * 2 + ["controlvm resume"] * 2
    assert set(states(fake).values()) == {"running"}
    assert steps == ["clocks"]
    name = payload["name"]
    assert [set(fake.state["machines"][f"stacklab-two-node-{node}"]["snapshots"]) for node in NODES] == [
        {name},
        {name},
    ]


def test_virtualbox_nodes_go_on_after_a_capture_that_failed(virtualbox: tuple[VirtualBox, Fake]) -> None:
    provider, fake = virtualbox
    real = provider.manage

    def failing(*words: str, **more: Any) -> Any:
        if words[:1] == ("snapshot",) and words[1].endswith("compute1"):
            raise CommandFailed("the disk is full")
        return real(*words, **more)

    provider.manage = failing  # type: ignore[method-assign]
    with pytest.raises(CommandFailed, match="the disk is full"):
        provider.capture()
    assert set(states(fake).values()) == {"running"}


def test_virtualbox_goes_back(virtualbox: tuple[VirtualBox, Fake], steps: list[str]) -> None:
    provider, fake = virtualbox
    payload = provider.capture()
    later = provider.capture()
    steps.clear()
    provider.revert(payload)
    # None runs before all are back.
    assert states(fake) == {"controller": "saved", "compute1": "saved", "elses": "running"}
    provider.start()
    assert set(states(fake).values()) == {"running"}
    assert steps == ["clocks"]
    provider.prune([payload])
    left = [one["snapshots"] for name, one in fake.state["machines"].items() if "two-node" in name]
    assert left == [{payload["name"]: "saved"}] * 2 and later["name"] != payload["name"]


def test_virtualbox_stops_what_does_not_heed(
    virtualbox: tuple[VirtualBox, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, fake = virtualbox
    state = fake.state
    state["machines"]["stacklab-two-node-compute1"]["deaf"] = True
    fake.set(state)
    monkeypatch.setattr(machines, "BOOT_SECONDS", 0.2)
    provider.stop()
    assert states(fake) == {"controller": "poweroff", "compute1": "poweroff", "elses": "running"}
    cut = [call for call in fake.calls() if call.endswith("poweroff")]
    assert cut == ["controlvm stacklab-two-node-compute1 poweroff"]


def test_virtualbox_leaves_nothing_and_nothing_else(virtualbox: tuple[VirtualBox, Fake]) -> None:
    provider, fake = virtualbox
    provider.prepare()
    state = fake.state
    # Vagrant's two, one of somebody who came meanwhile, and one that was there.
    state["interfaces"] |= {"vboxnet1": "10.0.0.1", "vboxnet2": "203.0.113.1", "vboxnet3": "172.28.128.1"}
    fake.set(state)
    provider.destroy()
    assert set(fake.state["machines"]) == {"somebody-elses"}
    assert set(fake.state["interfaces"]) == {"vboxnet0", "vboxnet3"}
    provider.destroy()  # again: nothing to do
    assert set(fake.state["interfaces"]) == {"vboxnet0", "vboxnet3"}


@pytest.fixture
def vmware(
    two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[str]
) -> tuple[Vmware, Fake]:
    plan = dataclasses.replace(two_node, provider="vmware_desktop", datapath="system", isolated=False)
    made = providers.provider(plan, Golden("g", "1", tmp_path))
    assert isinstance(made, Vmware)
    known = {}
    for name in NODES:
        vmx = tmp_path / "machines" / name / f"{name}.vmx"
        files.write(vmx, "")
        state = plan.directory / "vagrant" / "state" / "machines" / name / "vmware_desktop"
        files.write(state / "id", f"{vmx}\n")
        known[str(vmx)] = {"state": "running", "snapshots": {}}
    return made, install("vmrun", tmp_path / "fake", monkeypatch, {"machines": known})


def test_vmware_captures_and_goes_back(vmware: tuple[Vmware, Fake], steps: list[str]) -> None:
    provider, fake = vmware
    payload = provider.capture()
    acts = [call.split()[2] for call in fake.calls() if call != "-T ws list"]
    assert acts == ["suspend"] * 2 + ["snapshot"] * 2 + ["start"] * 2
    assert provider.running() == {"controller": True, "compute1": True}
    steps.clear()
    provider.revert(payload)
    assert provider.states() == {"controller": "paused", "compute1": "paused"}
    provider.start()
    assert provider.running() == {"controller": True, "compute1": True}
    assert steps == ["clocks"]
    other = provider.capture()
    provider.prune([other])
    assert {tuple(one["snapshots"]) for one in fake.state["machines"].values()} == {(other["name"],)}


def test_vmware_stops_and_leaves_nothing(vmware: tuple[Vmware, Fake]) -> None:
    provider, fake = vmware
    provider.stop()
    assert provider.states() == {"controller": "off", "compute1": "off"}
    provider.start()
    provider.destroy()
    assert fake.state["machines"] == {}


@pytest.mark.parametrize("kind", ["virtualbox", "vmware_desktop"])
def test_without_the_providers_tool_nothing_that_was_made_is_denied(
    kind: str, two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = providers.provider(dataclasses.replace(two_node, provider=kind), Golden("g", "1", tmp_path))
    assert not made.exists()
    assert not two_node.directory.exists()
    (two_node.directory / "vagrant").mkdir(parents=True)
    for act in (made.exists, made.running, made.destroy):
        with pytest.raises(CommandFailed, match="not found"):
            act()
    assert [path.name for path in two_node.directory.iterdir()] == ["vagrant"]


def test_settings_of_networks(two_node: Plan, tmp_path: Path, make_plan: Callable[..., Plan]) -> None:
    plan = dataclasses.replace(two_node, provider="virtualbox", datapath="system", isolated=False)
    made = VirtualBox(plan, Golden("g", "1", tmp_path))
    management, provider = made.node_settings(plan.topology.nodes[0])["networks"]
    assert (management["address"], management["host"]) == ("10.0.0.11", "10.0.0.1")
    # The host has the gateway's address there, and the node none: some other one stands for the network.
    assert (provider["address"], provider["host"]) == ("203.0.113.2", "203.0.113.1")
    assert management["netmask"] == provider["netmask"] == "255.255.255.0"
    assert management["mac"] != provider["mac"]


def test_a_lab_of_virtual_machines_is_not_exported(
    virtualbox: tuple[VirtualBox, Fake], tmp_path: Path
) -> None:
    provider, _ = virtualbox
    with pytest.raises(LabError, match="inside its nodes' disks"):
        archive.export(provider.plan, provider.golden, (), tmp_path / "lab.tar", with_image=False)
    assert not (tmp_path / "lab.tar").exists()


@pytest.mark.parametrize("are_set", [False, True])
def test_the_first_login_steps_the_clock(
    two_node: Plan, monkeypatch: pytest.MonkeyPatch, are_set: bool
) -> None:
    tried: list[tuple[str, str]] = []

    def script(plan: Plan, node: Node, name: str, now: str, **_: Any) -> Result:
        tried.append((node.name, now))
        return Result(255 if len([one for one, _ in tried if one == node.name]) == 1 else 0, "")

    monkeypatch.setattr(remote, "script", script)
    before = time.time()
    clocks.step(two_node, are_set)
    assert sorted(name for name, _ in tried) == ["compute1", "compute1", "controller", "controller"]
    for _, now in tried:
        assert now == "-" if are_set else before - 1 < float(now) < time.time() + 1
