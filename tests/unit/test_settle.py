"""Waiting for a cloud to come back: what counts as back, and what is named when it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace as Thing
from typing import Any

import pytest
import requests

from stacklab import cloud, namespace, remote, settle, storage
from stacklab.errors import CommandFailed, NotHealthy
from stacklab.plan import Plan
from stacklab.run import Result

SINCE = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
BEFORE, AFTER = "2026-01-02T11:59:59.000000", "2026-01-02T12:00:01.000000"


@pytest.mark.parametrize(
    ("text", "recent"),
    [
        (AFTER, True),
        ("2026-01-02T12:00:00", True),
        ("2026-01-02 12:00:01", True),  # neutron writes a space
        (BEFORE, False),
        ("2026-01-02 11:59:59", False),
        ("2026-01-02T12:30:00+01:00", False),
        ("2026-01-02T13:30:00+01:00", True),
        (None, False),
        ("", False),
    ],
)
def test_recent(text: str | None, recent: bool) -> None:
    assert settle._recent(text, SINCE) is recent
    assert settle._recent(text, None)


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Cloud:
    """Stands in for openstacksdk: all is up until a test changes it."""

    def __init__(self) -> None:
        binaries = [
            ("nova-conductor", "controller"),
            ("nova-scheduler", "controller"),
            ("nova-compute", "compute1"),
        ]
        self.services = [
            Thing(binary=binary, host=f"{host}.lab.test", state="up", updated_at=AFTER)
            for binary, host in binaries
        ]
        kinds = [("openvswitch-agent", "compute1")]
        kinds += [(f"{kind}-agent", "controller") for kind in ("dhcp", "l3", "metadata", "openvswitch")]
        self.agents = [
            Thing(binary=f"neutron-{kind}", host=f"{host}.lab.test", is_alive=True, last_heartbeat_at=AFTER)
            for kind, host in kinds
        ]
        self.compute = Thing(services=lambda: iter(self.services))
        self.ports = [
            Thing(device_owner=owner, fixed_ips=[{"ip_address": address}])
            for owner, address in (
                ("network:dhcp", "203.0.113.101"),
                ("network:dhcp", "172.16.1.2"),
                ("network:router_gateway", "203.0.113.150"),
            )
        ]
        self.network = Thing(
            agents=lambda: iter(self.agents),
            ports=lambda device_owner: (port for port in self.ports if port.device_owner == device_owner),
        )


SILENT: set[str] = set()


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    SILENT.clear()
    SILENT.add("172.16.1.2")  # a tenant's network is not reached from here
    monkeypatch.setattr(namespace, "ping", lambda address: address not in SILENT)
    return Cloud()


def test_all_is_up(two_node: Plan, connection: Cloud) -> None:
    for since in (None, SINCE):
        assert settle._compute(two_node, connection, since) == ""
        assert settle._agents(two_node, connection, since) == ""


def test_compute_services_that_are_down(two_node: Plan, connection: Cloud) -> None:
    connection.services[0].state = "down"
    connection.services[2].state = "down"
    assert settle._compute(two_node, connection, None) == (
        "down: nova-conductor on controller.lab.test, nova-compute on compute1.lab.test"
    )


def test_a_compute_service_from_before_the_restore(two_node: Plan, connection: Cloud) -> None:
    connection.services[1].updated_at = BEFORE
    assert settle._compute(two_node, connection, SINCE) == "down: nova-scheduler on controller.lab.test"
    assert settle._compute(two_node, connection, None) == ""


def test_a_compute_node_that_never_registered(two_node: Plan, connection: Cloud) -> None:
    connection.services.pop()
    connection.services.append(Thing(binary="nova-compute", host="else", state="up", updated_at=AFTER))
    assert (
        settle._compute(two_node, connection, None)
        == "down: nova-compute on compute1.lab.test (not registered)"
    )


def test_agents_that_are_down(two_node: Plan, connection: Cloud) -> None:
    connection.agents[2].is_alive = False
    assert settle._agents(two_node, connection, None) == "down: neutron-l3-agent on controller.lab.test"


def test_an_agent_from_before_the_restore(two_node: Plan, connection: Cloud) -> None:
    connection.agents[0].last_heartbeat_at = "2026-01-02 11:00:00"
    expected = "down: neutron-openvswitch-agent on compute1.lab.test"
    assert settle._agents(two_node, connection, SINCE) == expected
    assert settle._agents(two_node, connection, None) == ""


def test_an_agent_that_has_wired_nothing_yet(two_node: Plan, connection: Cloud) -> None:
    SILENT.add("203.0.113.150")
    assert settle._agents(two_node, connection, SINCE) == "no ping: 203.0.113.150 (network:router_gateway)"
    connection.agents[2].is_alive = False
    assert settle._agents(two_node, connection, None).startswith("down: ")


CONTROLLER = "controller.lab.test"


def cinder(*services: tuple[str, str, str, str]) -> Thing:
    found = [Thing(binary=b, host=host, state=state, updated_at=at) for b, host, state, at in services]
    return Thing(block_storage=Thing(services=lambda: iter(found)))


def test_volume_services(two_node: Plan) -> None:
    scheduler = ("cinder-scheduler", CONTROLLER, "up", AFTER)
    volume = ("cinder-volume", f"{CONTROLLER}@nfs", "up", AFTER)
    assert settle._volumes(two_node, cinder(scheduler, volume), SINCE) == ""
    missing = f"down: cinder-volume on {CONTROLLER} (not registered)"
    assert settle._volumes(two_node, cinder(scheduler), SINCE) == missing
    missing = f"down: cinder-scheduler on {CONTROLLER} (not registered)"
    assert settle._volumes(two_node, cinder(volume), SINCE) == missing
    stale = ("cinder-volume", f"{CONTROLLER}@nfs", "up", BEFORE)
    down = f"down: cinder-volume on {CONTROLLER}@nfs"
    assert settle._volumes(two_node, cinder(scheduler, stale), SINCE) == down
    assert settle._volumes(two_node, cinder(scheduler, stale), None) == ""
    dead = ("cinder-volume", f"{CONTROLLER}@nfs", "down", AFTER)
    assert settle._volumes(two_node, cinder(scheduler, dead), SINCE) == down


def test_volumes_belong_to_the_nodes_of_their_role(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan("storage")
    scheduler = ("cinder-scheduler", CONTROLLER, "up", AFTER)
    right = ("cinder-volume", "block1.lab.test@nfs", "up", AFTER)
    wrong = ("cinder-volume", f"{CONTROLLER}@nfs", "up", AFTER)
    assert settle._volumes(plan, cinder(scheduler, right), SINCE) == ""
    stray = f"on the wrong node: cinder-volume on {CONTROLLER}"
    assert settle._volumes(plan, cinder(scheduler, right, wrong), SINCE) == stray
    missing = "down: cinder-volume on block1.lab.test (not registered)"
    assert settle._volumes(plan, cinder(scheduler, wrong), SINCE) == f"{missing}; {stray}"


def test_objects_belong_to_the_nodes_of_their_role(
    make_plan: Callable[..., Plan], two_node: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan("storage")
    listening = {("10.0.0.51", port) for port in storage.PORTS}
    monkeypatch.setattr(storage, "_listens", lambda *place: place in listening)
    assert settle._objects(plan) == ""
    names = [f"swift-{kind}-server on {CONTROLLER}" for kind in ("object", "container", "account")]
    assert settle._objects(two_node) == f"down: {', '.join(names)}"
    listening.remove(("10.0.0.51", 6001))
    assert settle._objects(plan) == "down: swift-container-server on object1.lab.test"
    listening |= {("10.0.0.51", 6001), ("10.0.0.11", 6000)}
    assert settle._objects(plan) == f"on the wrong node: swift-object-server on {CONTROLLER}"


def test_heat_engines_of_earlier_starts_do_not_count() -> None:
    def heat(*engines: tuple[str, str | None, str]) -> Thing:
        rows = [
            {"status": s, "updated_at": updated, "created_at": created} for s, updated, created in engines
        ]
        answer = Thing(json=lambda: {"services": rows})
        return Thing(orchestration=Thing(get=lambda path: answer))

    old = ("down", BEFORE, BEFORE)
    assert settle._engines(heat(old, ("up", AFTER, AFTER)), SINCE) == ""
    assert settle._engines(heat(old, ("up", None, AFTER)), SINCE) == ""
    assert settle._engines(heat(old), SINCE) == "no engine is up"
    assert settle._engines(heat(("up", BEFORE, BEFORE)), SINCE) == "no engine is up"
    assert settle._engines(heat(("up", BEFORE, BEFORE)), None) == ""


@pytest.mark.parametrize("number", range(5))
def test_every_agent_is_expected(number: int, two_node: Plan, connection: Cloud) -> None:
    gone = connection.agents.pop(number)
    assert (
        settle._agents(two_node, connection, None) == f"down: {gone.binary} on {gone.host} (not registered)"
    )


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("keystone", "http://10.0.0.11:5000/v3/"),
        ("glance", "http://10.0.0.11:9292/"),
        ("placement", "http://10.0.0.11:8778/"),
        ("nova", "http://10.0.0.11:8774/"),
        ("neutron", "http://10.0.0.11:9696/"),
        ("horizon", "http://10.0.0.11:80/horizon/auth/login/"),
    ],
)
def test_apis(name: str, url: str, two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {200: "", 300: "", 404: "answers 404", 503: "answers 503"}
    for code, expected in codes.items():
        seen: list[Any] = []

        def get(
            session: requests.Session, where: str, code: int = code, seen: list[Any] = seen, **_: Any
        ) -> Thing:
            seen.append((where, session.trust_env))
            return Thing(status_code=code)

        monkeypatch.setattr(requests.Session, "get", get)
        assert settle._api(two_node, settle._apis(two_node)[name]) == expected
        assert seen == [(url, False)]  # never by a proxy of the host's


@pytest.mark.parametrize(
    ("packstack", "place"),
    [
        ("15.1.0", ":8778/placement/"),
        ("19.0.1", ":8778/placement/"),
        ("20.0.1", ":8778/"),
        ("26.0.0", ":8778/"),
    ],
)
def test_placement_is_where_the_version_puts_it(packstack: str, place: str, two_node: Plan) -> None:
    apis = settle._apis(dataclasses.replace(two_node, packstack=packstack))
    assert apis["placement"] == f"http://10.0.0.11{place}"
    assert apis["nova"] == "http://10.0.0.11:8774/"


class Machine:
    """What settle() sees of a lab: APIs that come back after some seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, connection: Cloud) -> None:
        self.clock = Clock()
        self.back: dict[str, float] = {}
        self.connects = 0
        self.connection = connection
        monkeypatch.setattr(settle, "time", self.clock)
        monkeypatch.setattr(namespace, "entered", lambda plan: nullcontext())
        monkeypatch.setattr(remote, "wait_for_ssh", lambda plan, deadline: self.clock.sleep(3))
        monkeypatch.setattr(remote, "script", self.script)
        monkeypatch.setattr(settle, "_api", self.api)
        monkeypatch.setattr(cloud, "connect", self.connect)

    def api(self, plan: Plan, url: str) -> str:
        name = next(name for name, place in settle._apis(plan).items() if place == url)
        return "" if self.clock.now >= self.back.get(name, 0) else "answers 503"

    def connect(self, plan: Plan) -> Cloud:
        self.connects += 1
        if self.clock.now < self.back.get("keystone", 0):
            raise ConnectionRefusedError("no keystone")
        return self.connection

    def script(self, plan: Plan, node: Any, name: str) -> Result:
        assert name == "settle-node"
        if node.name == "compute1":
            raise CommandFailed("no route to host")
        return Result(0, "nova-scheduler.service is failed\nload 12\n")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, connection: Cloud) -> Machine:
    return Machine(monkeypatch, connection)


def test_settle_says_what_came_back_when(two_node: Plan, machine: Machine) -> None:
    machine.back = {"keystone": 5, "nova": 9.5}
    found = {answer.name: answer.seconds for answer in settle.settle(two_node, since=SINCE)}
    assert found["ssh to all nodes"] == 3
    assert (found["glance API"], found["keystone API"], found["nova API"]) == (3, 5, 9.5)
    assert (found["compute services"], found["network agents"]) == (5, 5)
    assert set(found) == {
        "ssh to all nodes",
        *(f"{name} API" for name in two_node.topology.services),
        "compute services",
        "network agents",
    }


def test_settle_names_what_did_not_come_back(two_node: Plan, machine: Machine) -> None:
    machine.back = {"nova": 1000}
    machine.connection.agents[2].last_heartbeat_at = BEFORE
    with pytest.raises(NotHealthy) as caught:
        settle.settle(two_node, since=SINCE, deadline=60)
    assert caught.value.message.splitlines() == [
        "not back within 60 s:",
        "  nova API: answers 503",
        "  network agents: down: neutron-l3-agent on controller.lab.test",
        "  controller: nova-scheduler.service is failed",
        "  controller: load 12",
        "  compute1: no answer by ssh",
    ]
    assert "invoke ssh controller -c 'journalctl" in caught.value.hint
    assert 60 < machine.clock.now < 62


def test_settle_waits_longer_for_emulated_nodes(two_node: Plan, machine: Machine) -> None:
    machine.back = {"nova": 200, "metadata": 240}
    emulated = dataclasses.replace(two_node, emulated=True)
    assert settle._apis(emulated) == {**settle._apis(two_node), "metadata": "http://10.0.0.11:8775/"}
    found = {answer.name: answer.seconds for answer in settle.settle(emulated, deadline=60)}
    assert (found["nova API"], found["metadata API"]) == (200, 240)


def test_settle_says_why_an_agent_check_fails(two_node: Plan, machine: Machine) -> None:
    machine.back = {"keystone": 1000}
    with pytest.raises(NotHealthy) as caught:
        settle.settle(two_node, deadline=10)
    assert "  compute services: ConnectionRefusedError: no keystone" in caught.value.message


def test_one_connection_is_enough(two_node: Plan, machine: Machine) -> None:
    machine.back = {"glance": 20}
    settle.settle(two_node)
    assert machine.connects == 1


def test_a_look_without_waiting(two_node: Plan, machine: Machine) -> None:
    assert settle.quick(two_node) == ""
    machine.connection.services[0].state = "down"
    assert settle.quick(two_node) == "compute services: down: nova-conductor on controller.lab.test"
    machine.back = {"placement": 1}
    assert settle.quick(two_node) == "placement API: answers 503"
    assert machine.clock.now == 0


def test_one_late_answer_is_not_taken_for_a_service_that_is_down(
    machine: Machine, two_node: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, urls = settle._api, settle._apis(two_node)
    late = [urls["keystone"], urls["nova"]]

    def api(plan: Plan, url: str) -> str:
        if url in late:
            late.remove(url)
            raise TimeoutError("read timed out")
        return real(plan, url)

    monkeypatch.setattr(settle, "_api", api)
    assert settle.quick(two_node) == ""
    assert late == []


@pytest.mark.parametrize(
    ("name", "agent", "expected"),
    [
        (
            "three-node",
            "openvswitch",
            [
                "neutron-dhcp-agent on network",
                "neutron-l3-agent on network",
                "neutron-metadata-agent on network",
                "neutron-openvswitch-agent on compute1",
                "neutron-openvswitch-agent on network",
            ],
        ),
        ("storage", "ovn", ["ovn-controller on compute1", "ovn-controller on controller"]),
        (
            "all-in-one",
            "linuxbridge",
            [f"neutron-{kind}-agent on controller" for kind in ("dhcp", "l3", "linuxbridge", "metadata")],
        ),
    ],
)
def test_agents_follow_roles_and_the_network_agent(
    name: str, agent: str, expected: list[str], make_plan: Callable[..., Plan]
) -> None:
    plan = make_plan(name)
    plan = dataclasses.replace(plan, topology=dataclasses.replace(plan.topology, network_agent=agent))
    found = sorted(f"{binary} on {host.partition('.')[0]}" for binary, host in settle._expected(plan))
    assert found == expected
