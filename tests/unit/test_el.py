"""What nodes of Enterprise Linux get after Packstack: which scripts run where, and what they do."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from stacklab import el, files, lab, packstack, plan, remote, settle, storage, topology
from stacklab.base import Golden
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.run import Result

SCRIPTS = files.PROJECT / "scripts" / "el"


def planned(name: str, agent: str, distribution: str = "rocky-9", *services: str) -> Plan:
    shape = topology.load(name, files.PROJECT / "topologies")
    shape = dataclasses.replace(shape, network_agent=agent, services=(*shape.services, *services))
    return plan.resolve(shape, distribution=distribution, provider="libvirt")


@pytest.mark.usefixtures("labs")
@pytest.mark.parametrize(
    ("name", "agent", "distribution", "services", "expected"),
    [
        ("three-node", "openvswitch", "rocky-9", (), ["network: el/metadata"]),
        ("two-node", "linuxbridge", "centos-7", (), ["controller: el/metadata"]),
        ("two-node", "ovn", "rocky-9", (), []),
        (
            "multi-compute",
            "ovn",
            "centos-stream-9",
            ("ceilometer", "gnocchi"),
            ["controller: el/polling", "compute1: el/polling", "compute2: el/polling"],
        ),
        (
            "all-in-one",
            "openvswitch",
            "rocky-9",
            ("ceilometer", "gnocchi"),
            ["controller: el/metadata", "controller: el/polling"],
        ),
        ("two-node", "openvswitch", "debian-12", ("ceilometer", "gnocchi"), []),
    ],
)
def test_what_runs_where(
    name: str,
    agent: str,
    distribution: str,
    services: tuple[str, ...],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []

    def script(plan: Plan, node: Node, name: str, log: Path) -> Result:
        assert (remote.SCRIPTS / name).is_file()
        ran.append(f"{node.name}: {name}")
        return Result(0, "")

    monkeypatch.setattr(remote, "script", script)
    found = planned(name, agent, distribution, *services)
    el.settings(found)
    assert ran == expected
    assert list(el.commands(found)) == [f"on {line.replace(': ', ': scripts/')}" for line in expected]


@pytest.mark.usefixtures("labs")
def test_it_is_part_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned("two-node", "openvswitch")
    stage = lab.stages_of(found, Golden("image", "key", Path("/image")), print)[1]
    assert stage.inputs["settings"] == files.tree_digest(SCRIPTS)
    assert "on controller: scripts/el/metadata" in stage.commands
    # Labs that need none of it keep the key that they had.
    for other in (planned("two-node", "ovn"), planned("two-node", "openvswitch", "debian-12")):
        stage = lab.stages_of(other, Golden("image", "key", Path("/image")), print)[1]
        assert set(stage.inputs) == {"version of the stage", "answer file"}

    steps: list[str] = []
    for module, name in (
        (packstack, "deploy"),
        (el, "settings"),
        (storage, "place"),
        (settle, "settle"),
        (packstack, "map_hosts"),
    ):
        monkeypatch.setattr(module, name, lambda plan, name=name: steps.append(name))
    lab._deploy(found)
    # What it restarts is waited for.
    assert steps == ["deploy", "settings", "place", "settle", "map_hosts"]


class Machine:
    """A directory in place of /etc, and a systemctl that writes down what it is called with."""

    def __init__(self, place: Path) -> None:
        self.place = place
        files.write(place / "bin/systemctl", f'#!/bin/sh\necho "$*" >> {place}/said\n', 0o755)

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        text = (SCRIPTS / name).read_text().replace("/etc/", f"{self.place}/etc/")
        environment = {"PATH": f"{self.place}/bin:/usr/bin:/bin"}
        return subprocess.run(
            ["bash", "-s"], input=text, env=environment, capture_output=True, text=True, check=False
        )

    def said(self) -> list[str]:
        path = self.place / "said"
        return path.read_text().splitlines() if path.is_file() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


DHCP = """\
[DEFAULT]
{line}debug=False
#enable_isolated_metadata = false
[agent]
availability_zone=nova
"""


@pytest.mark.parametrize(
    "line", ["enable_isolated_metadata=False\n", "enable_isolated_metadata = false\n", ""]
)
def test_metadata(line: str, machine: Machine) -> None:
    config = machine.place / "etc/neutron/dhcp_agent.ini"
    files.write(config, DHCP.format(line=line))
    for _ in range(2):
        ran = machine.run("metadata")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert config.read_text() == DHCP.format(line="enable_isolated_metadata = true\n")
    assert machine.said() == ["restart neutron-dhcp-agent"] * 2


def test_metadata_that_cannot_be_set(machine: Machine) -> None:
    files.write(machine.place / "etc/neutron/dhcp_agent.ini", "# nothing\n")
    assert machine.run("metadata").returncode != 0
    assert machine.said() == []


POLLING = """\
---
sources:
    - name: some_pollsters
      interval: {0}
      meters:
        - cpu
    - interval: {0}
      name: others
"""


@pytest.mark.parametrize("before", ["600", "300", "30"])
def test_polling(before: str, machine: Machine) -> None:
    config = machine.place / "etc/ceilometer/polling.yaml"
    files.write(config, POLLING.format(before))
    ran = machine.run("polling")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert config.read_text() == POLLING.format("30")
    assert machine.said() == ["restart openstack-ceilometer-polling"]


@pytest.mark.parametrize("text", ["", "---\nsources: []\n"])
def test_polling_that_cannot_be_set(text: str, machine: Machine) -> None:
    files.write(machine.place / "etc/ceilometer/polling.yaml", text)
    assert machine.run("polling").returncode != 0
    assert machine.said() == []
