"""A lab on one screen, and its nodes for Ansible."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace as Thing
from typing import Any

import pytest
import yaml

from stacklab import cloud, dashboard, files, inventory, lab, namespace, settle, status, storage
from stacklab.errors import LabError
from stacklab.plan import Plan


class Cloud:
    """A small cloud in which one agent is down."""

    def __init__(self) -> None:
        server = Thing(
            name="web",
            status="ACTIVE",
            compute_host="compute1.lab.test",
            addresses={"tenant": [{"addr": "172.16.1.5"}, {"addr": "203.0.113.7"}]},
        )
        nova = [("nova-compute", "compute1.lab.test", "up"), ("nova-conductor", "controller.lab.test", "up")]
        self.compute = Thing(
            services=lambda: [Thing(binary=b, host=h, state=s) for b, h, s in nova],
            servers=lambda all_projects: [server] if all_projects else [],
        )
        self.network = Thing(
            agents=lambda: [Thing(binary="neutron-l3-agent", host="controller.lab.test", is_alive=False)],
            ips=lambda: [
                Thing(floating_ip_address="203.0.113.7", fixed_ip_address="172.16.1.5", status="ACTIVE"),
                Thing(floating_ip_address="203.0.113.9", fixed_ip_address=None, status="DOWN"),
            ],
        )
        self.image = Thing(images=lambda: [Thing(name="cirros", status="active", size=13 << 20)])


@pytest.fixture
def running(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> Plan:
    nodes = {node.name: True for node in two_node.topology.nodes}
    monkeypatch.setattr(lab, "provider_of", lambda plan: Thing(running=lambda: nodes))
    monkeypatch.setattr(settle, "quick", lambda plan: "")
    monkeypatch.setattr(namespace, "entered", lambda plan: nullcontext())
    monkeypatch.setattr(cloud, "connect", lambda plan: Cloud())
    files.write_json(two_node.directory / "progress.json", {"stage": "verified", "key": "1", "working": ""})
    return two_node


def test_all_on_one_screen(running: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    status.show(running)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 24
    for text in (
        "stage: verified; all services and agents are up",
        "down: neutron-l3-agent",
        "1 up",
        "172.16.1.5, 203.0.113.7",
        "cirros (13 MiB)",
        "floating IPs without an instance: 203.0.113.9",
        "http://10.0.0.11/horizon",
    ):
        assert text in shown


def test_no_dashboard_without_horizon(running: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    plan = dataclasses.replace(running, topology=dataclasses.replace(running.topology, services=("nova",)))
    status.show(plan)
    assert "dashboard:" not in capsys.readouterr().out
    with pytest.raises(LabError, match="two-node has no dashboard"), dashboard.forwarded(plan):
        pass


def test_for_machines(running: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    status.show(running, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [service["name"] for service in found["services"] if not service["up"]] == ["neutron-l3-agent"]
    assert found["instances"][0]["host"] == "compute1.lab.test"
    assert found["images"] == [{"name": "cirros", "status": "active", "size": 13 << 20}]
    assert found["nodes"][0]["address"] == "10.0.0.11"


def test_storage_is_shown_on_the_nodes_that_have_it(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Cloud()
    volume = Thing(binary="cinder-volume", host="block1.lab.test@nfs", state="up")
    vars(connection)["block_storage"] = Thing(services=lambda: [volume])
    monkeypatch.setattr(storage, "_listens", lambda address, port: (address, port) == ("10.0.0.51", 6000))
    found = list(status._services(make_plan("storage"), connection))
    assert status._of_node(found, "block1.lab.test") == "1 up"
    assert status._of_node(found, "object1.lab.test") == "down: swift-account-server, swift-container-server"


def test_a_cloud_that_does_not_answer(running: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no keystone")

    half = Cloud()
    half.image.images = broken
    monkeypatch.setattr(cloud, "connect", lambda plan: half)
    monkeypatch.setattr(settle, "quick", lambda plan: "glance API: answers 503")
    found = status.gather(running)
    assert found["health"] == "glance API: answers 503"
    assert found["images"] == []
    assert [server["name"] for server in found["instances"]] == ["web"]


def test_stopped_nodes_are_not_asked(running: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = {"controller": True, "compute1": False}
    monkeypatch.setattr(lab, "provider_of", lambda plan: Thing(running=lambda: stopped))
    monkeypatch.setattr(cloud, "connect", lambda plan: pytest.fail("it asked"))
    found = status.gather(running)
    assert found["health"] == "the nodes are not running"
    assert found["services"] == []


def test_watching_shows_it_again(running: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def sleep(seconds: float) -> None:
        seen.append(seconds)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("stacklab.status.time", Thing(sleep=sleep))
    with pytest.raises(KeyboardInterrupt):
        status.show(running, watch=True)
    assert seen == [status.WATCH_SECONDS] * 3


def test_inventory(two_node: Plan) -> None:
    found = yaml.safe_load(inventory.inventory(two_node))["all"]
    assert set(found["hosts"]) == {"controller", "compute1"}
    assert found["hosts"]["compute1"] == {"management": "10.0.0.31"}
    assert {name: list(group["hosts"]) for name, group in found["children"].items()} == {
        "controller": ["controller"],
        "network": ["controller"],
        "compute": ["compute1"],
    }
    assert found["vars"]["ansible_ssh_common_args"] == f"-F {two_node.directory}/ssh_config"
