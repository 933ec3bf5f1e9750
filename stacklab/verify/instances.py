"""Nova and Neutron: instances really boot, get addresses and metadata, and answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from stacklab import cloud, namespace, settle, ui
from stacklab.errors import NotHealthy
from stacklab.verify.context import PREFIX, Context, Row, Timer, until

IMAGE = "stacklab-probe"
FLAVOR = "m1.tiny"
# Seconds: a probe guest boots in under 20 s under TCG on an idle machine; a loaded one gets its time.
ACTIVE_SECONDS = 300.0
ANSWER_SECONDS = 240.0
PAGE_SECONDS = 10.0


def check(context: Context) -> Iterator[Row]:
    """Boot one instance on the provider network and one behind a floating IP, and talk to both.

    They stay for other checks, in `context.servers`.
    """
    demo, timer = context.demo, Timer()
    for name, server in _boot(demo).items():
        context.servers[name] = active(context, server)
        host = context.admin.compute.get_server(server.id).compute_host
        yield timer.row(f"instance on the {name} network", f"ACTIVE on {host}")
    servers = context.servers
    port = next(iter(demo.network.ports(device_id=servers["provider"].id)))
    yield from _answers(context, "provider address", servers["provider"], port.fixed_ips[0]["ip_address"])
    address = _floating_ip(demo, servers["tenant"], _network(demo, "provider"))
    yield from _answers(context, "floating IP", servers["tenant"], address)


def _boot(demo: Any) -> dict[str, Any]:
    network = {name: _network(demo, name) for name in ("provider", "tenant")}
    group = demo.network.create_security_group(name=PREFIX)
    cloud.allow(demo, group, ("icmp", None), ("tcp", 22), ("tcp", 80))
    image = demo.image.find_image(IMAGE)
    flavor = demo.compute.find_flavor(FLAVOR)
    if image is None or flavor is None:
        raise NotHealthy(
            f"the cloud has no image {IMAGE} or no flavor {FLAVOR}", hint="`invoke up` makes them"
        )
    return {
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


def _network(demo: Any, name: str) -> Any:
    found = demo.network.find_network(name)
    if found is None:
        raise NotHealthy(f"the cloud has no network {name!r}", hint="`invoke up` makes it")
    return found


def active(context: Context, server: Any) -> Any:
    """The server once it is ACTIVE. Raises NotHealthy when it fails or takes too long."""
    seconds = context.limit(ACTIVE_SECONDS)

    def state() -> Any:
        found = context.demo.compute.get_server(server.id)
        ui.detail(f"{found.name}: {found.status} {found.task_state or ''}")
        if found.status == "ERROR":
            reason = (found.fault or {}).get("message", "no reason given")
            raise NotHealthy(
                f"instance {found.name} failed: {reason}",
                hint="see nova-compute.log on the compute node and nova-conductor.log on the controller",
            )
        return found

    def late() -> NotHealthy:
        last = state()
        return NotHealthy(
            f"{last.name} was still {last.status} ({last.task_state}) after {seconds:.0f} s",
            hint="on the compute node: /var/log/nova/nova-compute.log",
        )

    until(server.name, seconds, lambda: "yes" if state().status == "ACTIVE" else "", late)
    return state()


def _floating_ip(demo: Any, server: Any, provider: Any) -> str:
    port = next(iter(demo.network.ports(device_id=server.id)))
    address = demo.network.create_ip(floating_network_id=provider.id, port_id=port.id, description=PREFIX)
    return str(address.floating_ip_address)


def _answers(context: Context, kind: str, server: Any, address: str) -> Iterator[Row]:
    timer = Timer()
    questions: tuple[tuple[str, Callable[[], str]], ...] = (
        ("ping", lambda: ping(address)),
        ("HTTP and metadata", lambda: _page(address, context.limit(PAGE_SECONDS))),
        ("console log", lambda: _console(context.demo, server)),
    )
    for what, question in questions:
        answer = _answer(context, server, address, what, question)
        yield timer.row(f"{kind} {address}: {what}", answer)


def _answer(context: Context, server: Any, address: str, what: str, question: Callable[[], str]) -> str:
    seconds = context.limit(ANSWER_SECONDS)

    def silent() -> NotHealthy:
        text = console(context.demo, server)
        tail = "".join(f"\n    {line}" for line in text.splitlines()[-15:])
        network_node = context.plan.topology.with_role("network")[0].name
        rest = settle.quick(context.plan) or "all services, agents and Neutron's own addresses answer"
        return NotHealthy(
            f"{server.name} at {address}: no {what} within {seconds:.0f} s ({rest}); its console says:{tail}",
            hint=f"see /var/log/neutron on {network_node}, and `invoke openstack -- port list`",
        )

    return until(f"{what} of {address}", seconds, question, silent)


def ping(address: str) -> str:
    """Whether an address answers one ping."""
    return "answers" if namespace.ping(address) else ""


def _page(address: str, seconds: float) -> str:
    import requests

    session = requests.Session()
    session.trust_env = False
    text = session.get(f"http://{address}/", timeout=seconds).text
    # The guest serves the instance id that the metadata service told it: nova's name for it, not the UUID.
    found = re.search(r"instance-id[=: ]+(i-[0-9a-f]+)", text)
    return f"metadata says {found[1]}" if found else ""


def console(demo: Any, server: Any) -> str:
    """All that an instance has said on its console."""
    output = demo.compute.get_server_console_output(server.id)
    return str(output.get("output", output) if isinstance(output, dict) else output)


def _console(demo: Any, server: Any) -> str:
    found = re.search(r"STACKLAB-PROBE booted ([\d.]+)", console(demo, server))
    return f"shows the boot ({found[1]} s)" if found else ""


def sweep(context: Context) -> None:
    """Remove the instances with their floating IP and security group."""
    demo = context.demo
    servers = [server for server in demo.compute.servers() if server.name.startswith(PREFIX)]
    for address in demo.network.ips(description=PREFIX):
        demo.network.delete_ip(address)
    for server in servers:
        demo.compute.delete_server(server, ignore_missing=True)
    for server in servers:
        demo.compute.wait_for_delete(server, wait=context.limit(120))
    for group in demo.network.security_groups(name=PREFIX, project_id=demo.current_project_id):
        demo.network.delete_security_group(group)
