"""The stage `verified`: instances really boot, get addresses and metadata, and answer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stacklab import cloud, namespace, settle, ui
from stacklab.errors import NotHealthy
from stacklab.plan import Plan
from stacklab.run import run

PREFIX = "stacklab-verify"
IMAGE = "stacklab-probe"
FLAVOR = "m1.tiny"
# Seconds: a probe guest boots in under 20 s under TCG on an idle machine; a loaded one gets its time.
ACTIVE_SECONDS = 300.0
ANSWER_SECONDS = 240.0


@dataclass(frozen=True)
class Row:
    """One line of the verification table: `seconds` since what it waits for began."""

    what: str
    result: str
    seconds: float


def verify(plan: Plan) -> list[Row]:
    """Boot one instance on the provider network and one behind a floating IP, and talk to both.

    Returns the table's rows. Raises NotHealthy naming what did not answer and where to
    look; the test's instances are removed either way.
    """
    rows = []
    start = time.monotonic()
    reason = settle.quick(plan)
    if reason:
        raise NotHealthy(reason, hint="`invoke status` shows the rest")
    rows.append(Row("services and agents", "all up", time.monotonic() - start))
    with namespace.entered(plan):
        demo = cloud.connect(plan, cloud.DEMO)
        with ui.step("verifying with two instances"):
            _sweep(demo)
            try:
                rows += _boot_and_ask(plan, demo)
            finally:
                ui.say("removing the test's instances")
                _sweep(demo)
    return rows


def _boot_and_ask(plan: Plan, demo: Any) -> list[Row]:
    admin = cloud.connect(plan)
    network = {name: _network(demo, name) for name in ("provider", "tenant")}
    group = demo.network.create_security_group(name=PREFIX)
    cloud.allow(demo, group, ("icmp", None), ("tcp", 22), ("tcp", 80))
    image = demo.image.find_image(IMAGE)
    flavor = demo.compute.find_flavor(FLAVOR)
    if image is None or flavor is None:
        raise NotHealthy(
            f"the cloud has no image {IMAGE} or no flavor {FLAVOR}", hint="`invoke up` makes them"
        )
    start = time.monotonic()
    servers = {
        name: demo.compute.create_server(
            name=f"{PREFIX}-{name}",
            image_id=image.id,
            flavor_id=flavor.id,
            key_name=cloud.KEYPAIR,
            networks=[{"uuid": network[name].id}],
            security_groups=[{"name": PREFIX}],
        )
        for name in network
    }
    rows = []
    for name, server in servers.items():
        servers[name] = _active(demo, server)
        seconds = time.monotonic() - start
        host = admin.compute.get_server(server.id).compute_host
        rows.append(Row(f"instance on the {name} network", f"ACTIVE on {host}", seconds))
    addresses = {
        "provider": next(iter(demo.network.ports(device_id=servers["provider"].id))).fixed_ips[0][
            "ip_address"
        ],
        "tenant": _floating_ip(demo, servers["tenant"], network["provider"]),
    }
    for name, server in servers.items():
        rows += _answers(plan, demo, name, server, addresses[name])
    return rows


def _network(demo: Any, name: str) -> Any:
    found = demo.network.find_network(name)
    if found is None:
        raise NotHealthy(f"the cloud has no network {name!r}", hint="`invoke up` makes it")
    return found


def _active(demo: Any, server: Any) -> Any:
    end = time.monotonic() + ACTIVE_SECONDS
    while time.monotonic() < end:
        server = demo.compute.get_server(server.id)
        ui.detail(f"{server.name}: {server.status} {server.task_state or ''}")
        if server.status == "ACTIVE":
            return server
        if server.status == "ERROR":
            reason = (server.fault or {}).get("message", "no reason given")
            raise NotHealthy(
                f"instance {server.name} failed: {reason}",
                hint="see nova-compute.log on the compute node and nova-conductor.log on the controller",
            )
        time.sleep(1)
    raise NotHealthy(
        f"{server.name} was still {server.status} ({server.task_state}) after {ACTIVE_SECONDS:.0f} s",
        hint="on the compute node: /var/log/nova/nova-compute.log",
    )


def _floating_ip(demo: Any, server: Any, provider: Any) -> str:
    port = next(iter(demo.network.ports(device_id=server.id)))
    address = demo.network.create_ip(floating_network_id=provider.id, port_id=port.id, description=PREFIX)
    return str(address.floating_ip_address)


def _answers(plan: Plan, demo: Any, name: str, server: Any, address: str) -> list[Row]:
    kind = "floating IP" if name == "tenant" else "provider address"
    rows = []
    start = time.monotonic()

    def ask(what: str, question: Callable[[], str]) -> None:
        rows.append(
            Row(
                f"{kind} {address}: {what}",
                _until(plan, demo, server, address, what, question),
                _since(start),
            )
        )

    ask("ping", lambda: _ping(address))
    ask("HTTP and metadata", lambda: _page(address, server.id))
    ask("console log", lambda: _console(demo, server))
    return rows


def _since(start: float) -> float:
    return time.monotonic() - start


def _until(plan: Plan, demo: Any, server: Any, address: str, what: str, question: Callable[[], str]) -> str:
    end = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < end:
        ui.detail(f"{address}: waiting for {what}")
        try:
            if answer := question():
                return answer
        except OSError:  # what requests raises
            pass
        time.sleep(1)
    tail = "".join(f"\n    {line}" for line in _console_text(demo, server).splitlines()[-15:])
    network_node = plan.topology.with_role("network")[0].name
    raise NotHealthy(
        f"{server.name} at {address}: no {what} within {ANSWER_SECONDS:.0f} s; its console says:{tail}",
        hint=f"see /var/log/neutron on {network_node}, and `invoke openstack -- port list`",
    )


def _ping(address: str) -> str:
    # The main thread is in the lab's namespace, and so is what it starts.
    answered = run(["ping", "-q", "-c", "1", "-W", "2", address], check=False, timeout=10)
    return "answers" if answered.code == 0 else ""


def _page(address: str, instance: str) -> str:
    import requests

    session = requests.Session()
    session.trust_env = False
    text = session.get(f"http://{address}/", timeout=10).text
    # The guest serves the instance id that the metadata service told it: nova's name for it, not the UUID.
    found = re.search(r"instance-id[=: ]+(i-[0-9a-f]+)", text)
    return f"metadata says {found[1]}" if found else ""


def _console_text(demo: Any, server: Any) -> str:
    output = demo.compute.get_server_console_output(server.id)
    return str(output.get("output", output) if isinstance(output, dict) else output)


def _console(demo: Any, server: Any) -> str:
    found = re.search(r"STACKLAB-PROBE booted ([\d.]+)", _console_text(demo, server))
    return f"shows the boot ({found[1]} s)" if found else ""


def _sweep(demo: Any) -> None:
    """Remove everything of a verification, this one's or one that was killed."""
    servers = [server for server in demo.compute.servers() if server.name.startswith(PREFIX)]
    for address in demo.network.ips(description=PREFIX):
        demo.network.delete_ip(address)
    for server in servers:
        demo.compute.delete_server(server, ignore_missing=True)
    for server in servers:
        demo.compute.wait_for_delete(server, wait=120)
    for group in demo.network.security_groups(name=PREFIX, project_id=demo.current_project_id):
        demo.network.delete_security_group(group)
