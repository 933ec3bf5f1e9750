"""`settle`: after nodes start or are restored, wait until the whole cloud answers again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

from stacklab import cloud, namespace, remote, services, storage, ui
from stacklab.errors import CommandFailed, LabError, NotHealthy
from stacklab.plan import Plan

DEADLINE = 420.0


@dataclass(frozen=True)
class Answer:
    """One thing that came back, and after how many seconds."""

    name: str
    seconds: float


def settle(plan: Plan, *, since: datetime | None = None, deadline: float = DEADLINE) -> list[Answer]:
    """Wait until nodes, APIs, compute services and network agents are all up.

    With `since`, a report of an agent counts only when it is newer: a restored database
    says "up" of agents that have not started yet. Returns what came back after how long;
    NotHealthy names what did not within `deadline` seconds (times the plan's patience), and
    where to look.
    """
    start = time.monotonic()
    waiting: dict[str, Callable[[], str]] = {}
    answers: list[Answer] = []
    with ui.step("settling: nodes, APIs, agents"):
        remote.wait_for_ssh(plan, deadline)
        answers.append(Answer("ssh to all nodes", time.monotonic() - start))
        deadline *= plan.patience
        with namespace.entered(plan):
            waiting = dict(_checks(plan, since))
            reasons: dict[str, str] = {}
            while waiting:
                for name in list(waiting):
                    reasons[name] = _ask(waiting[name])
                    if not reasons[name]:
                        del waiting[name]
                        answers.append(Answer(name, time.monotonic() - start))
                    ui.detail(f"waiting for {', '.join(waiting)}")
                if waiting and time.monotonic() - start > deadline:
                    raise NotHealthy(_missing(plan, waiting, reasons, deadline), hint=_where(plan))
                if waiting:
                    time.sleep(0.5)
    return answers


def _ask(check: Callable[[], str]) -> str:
    try:
        return check()
    except LabError as error:
        return error.message
    except Exception as error:  # the SDK raises many kinds while services start
        return f"{type(error).__name__}: {error}"


def _checks(plan: Plan, since: datetime | None) -> Iterator[tuple[str, Callable[[], str]]]:
    for name, url in _apis(plan).items():
        yield f"{name} API", partial(_api, plan, url)
    made: list[Any] = []

    def connection() -> Any:
        if not made:
            made.append(cloud.connect(plan))
        return made[0]

    if "nova" in plan.topology.services:
        yield "compute services", lambda: _compute(plan, connection(), since)
    if "neutron" in plan.topology.services:
        yield "network agents", lambda: _agents(plan, connection(), since)
    if "cinder" in plan.topology.services:
        yield "volume services", lambda: _volumes(plan, connection(), since)
    if "swift" in plan.topology.services:
        yield "object servers", lambda: _objects(plan)
    if "heat" in plan.topology.services:
        yield "heat engines", lambda: _engines(connection(), since)


def _apis(plan: Plan) -> dict[str, str]:
    """The URL of every API that has to answer."""
    places = {name: services.table()[name].api_of(plan.packstack) for name in plan.topology.services}
    if "nova" in places and plan.emulated:
        # Apache loads it with its first request. That takes two minutes there, longer than an instance waits;
        # elsewhere it is there before the first guest has booted, and would only make a reset longer.
        places["metadata"] = ":8775/"
    base = f"http://{plan.topology.controller.management}"
    return {name: base + place.format(dashboard=plan.dashboard) for name, place in places.items() if place}


def _api(plan: Plan, url: str) -> str:
    import requests

    session = requests.Session()
    session.trust_env = False
    answer = session.get(url, timeout=10 * plan.patience)
    return "" if answer.status_code < 400 else f"answers {answer.status_code}"


def _recent(text: str | None, since: datetime | None) -> bool:
    if since is None:
        return True
    if not text:
        return False
    reported = datetime.fromisoformat(text.replace(" ", "T"))
    return reported.replace(tzinfo=reported.tzinfo or UTC) >= since


def _compute(plan: Plan, connection: Any, since: datetime | None) -> str:
    services = list(connection.compute.services())
    down = [
        f"{s.binary} on {s.host}" for s in services if s.state != "up" or not _recent(s.updated_at, since)
    ]
    expected = {node.fqdn for node in plan.topology.with_role("compute")}
    missing = expected - {service.host for service in services if service.binary == "nova-compute"}
    down += [f"nova-compute on {host} (not registered)" for host in sorted(missing)]
    return f"down: {', '.join(down)}" if down else ""


def _agents(plan: Plan, connection: Any, since: datetime | None) -> str:
    agents = list(connection.network.agents())
    down = [
        f"{a.binary} on {a.host}" for a in agents if not a.is_alive or not _recent(a.last_heartbeat_at, since)
    ]
    registered = {(agent.binary, agent.host) for agent in agents}
    down += [f"{binary} on {host} (not registered)" for binary, host in sorted(_expected(plan) - registered)]
    return f"down: {', '.join(down)}" if down else _unwired(plan, connection)


def _unwired(plan: Plan, connection: Any) -> str:
    """What Neutron itself has on the provider network: an agent reports before it has wired anything."""
    provider = ip_network(plan.topology.provider_network.cidr)
    silent = [
        f"{address} ({owner})"
        for owner in ("network:dhcp", "network:router_gateway")
        for port in connection.network.ports(device_owner=owner)
        for fixed in port.fixed_ips
        if ip_address(address := fixed["ip_address"]) in provider and not namespace.ping(address)
    ]
    return f"no ping: {', '.join(silent)}" if silent else ""


def _expected(plan: Plan) -> set[tuple[str, str]]:
    """The network agents that a lab has, with their hosts."""
    topology = plan.topology
    switched = {*topology.with_role("network"), *topology.with_role("compute")}
    if topology.network_agent == "ovn":  # routers and DHCP are in it
        return {("ovn-controller", node.fqdn) for node in switched}
    found = {(f"neutron-{topology.network_agent}-agent", node.fqdn) for node in switched}
    for node in topology.with_role("network"):
        found |= {(f"neutron-{kind}-agent", node.fqdn) for kind in ("dhcp", "l3", "metadata")}
    return found


def _volumes(plan: Plan, connection: Any, since: datetime | None) -> str:
    services = list(connection.block_storage.services())
    down = [
        f"{s.binary} on {s.host}" for s in services if s.state != "up" or not _recent(s.updated_at, since)
    ]
    # cinder-volume's host is node@backend
    registered = {(service.binary, service.host.partition("@")[0]) for service in services}
    there = {node.fqdn for node in storage.keepers(plan.topology, storage.BLOCK)}
    expected = {("cinder-volume", host) for host in there}
    expected.add(("cinder-scheduler", plan.topology.controller.fqdn))
    down += [f"{binary} on {host} (not registered)" for binary, host in sorted(expected - registered)]
    stray = [f"{b} on {host}" for b, host in sorted(registered) if b == "cinder-volume" and host not in there]
    return _of_storage(down, stray)


def _objects(plan: Plan) -> str:
    there = storage.keepers(plan.topology, storage.OBJECT)
    found = list(storage.servers(plan))
    return _of_storage(
        [f"{name} on {node.fqdn}" for name, node, up in found if not up],
        [f"{name} on {node.fqdn}" for name, node, up in found if up and node not in there],
    )


def _of_storage(down: list[str], stray: list[str]) -> str:
    """What is down, and what runs on a node that is not for it."""
    found = [f"down: {', '.join(down)}"] if down else []
    return "; ".join([*found, *([f"on the wrong node: {', '.join(stray)}"] if stray else [])])


def _engines(connection: Any, since: datetime | None) -> str:
    """Heat's engines: each start registers anew, so old ones stay in the list as down."""
    engines = connection.orchestration.get("/services").json()["services"]
    up = [e for e in engines if e["status"] == "up" and _recent(e["updated_at"] or e["created_at"], since)]
    return "" if up else "no engine is up"


def _missing(
    plan: Plan, waiting: dict[str, Callable[[], str]], reasons: dict[str, str], deadline: float
) -> str:
    lines = [f"  {name}: {reasons.get(name, '')}" for name in waiting]
    for node in plan.topology.nodes:
        try:
            lines += [
                f"  {node.name}: {line}"
                for line in remote.script(plan, node, "settle-node").output.splitlines()
            ]
        except CommandFailed:
            lines.append(f"  {node.name}: no answer by ssh")
    return f"not back within {deadline:.0f} s:\n" + "\n".join(lines)


def _where(plan: Plan) -> str:
    return (
        f"`invoke ssh {plan.topology.controller.name} -c 'journalctl -b -p err'` shows what the services say"
    )


def quick(plan: Plan) -> str:
    """'' when everything is up right now, else what is not: one look, no waiting for it."""
    with namespace.entered(plan):
        for name, check in _checks(plan, None):
            # On a loaded machine one answer may come too late; what is down stays down.
            if _ask(check) and (reason := _ask(check)):
                return f"{name}: {reason}"
    return ""
