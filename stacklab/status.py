"""A lab on one screen: nodes, services, instances, images, addresses, what to type next."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from stacklab import cloud, lab, namespace, settle, snapshots, stages, storage, ui
from stacklab.plan import Plan

WATCH_SECONDS = 5.0


def show(plan: Plan, *, as_json: bool = False, watch: bool = False) -> None:
    """Print the state of a lab; with `watch` again and again, until it is interrupted."""
    while True:
        found = gather(plan)
        if watch:
            ui.clear()
        if as_json:
            ui.out(json.dumps(found, indent=2))
        else:
            _print(plan, found)
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


def gather(plan: Plan) -> dict[str, Any]:
    """The state of a lab as plain values. What the cloud is asked is empty while it does not answer."""
    there = stages.progress(plan)
    running = lab.provider_of(plan).running()
    deployed = all(running.values()) and there.stage not in ("", "nodes")
    health = "only the nodes are made" if all(running.values()) else "the nodes are not running"
    if deployed:
        health = settle.quick(plan) or "all services and agents are up"
    controller = plan.topology.controller.management
    has_horizon = "horizon" in plan.topology.services
    return {
        "lab": plan.lab,
        "provider": plan.provider,
        "distribution": plan.distribution,
        "release": plan.release,
        "stage": there.stage,
        "working": there.working,
        "health": health,
        "nodes": [
            {**dataclasses.asdict(node), "address": node.management, "running": running[node.name]}
            for node in plan.topology.nodes
        ],
        **(_cloud(plan) if deployed else {"services": [], "instances": [], "images": [], "addresses": []}),
        "urls": {
            "identity": f"http://{controller}:5000/v3",
            **({"dashboard": f"http://{controller}{plan.dashboard}"} if has_horizon else {}),
        },
        "snapshots": [snapshot.name for snapshot in snapshots.listed(plan)],
        "directory": str(plan.directory),
    }


def _cloud(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    questions: dict[str, Callable[[Any], list[dict[str, Any]]]] = {
        "services": lambda connection: list(_services(plan, connection)),
        "instances": _instances,
        "images": _images,
        "addresses": _addresses,
    }
    with namespace.entered(plan):
        connection = cloud.connect(plan)
        for name, question in questions.items():
            try:
                found[name] = question(connection)
            except Exception:  # the SDK raises many kinds while services start; `health` says what is wrong
                found[name] = []
    return found


def _services(plan: Plan, connection: Any) -> Iterator[dict[str, Any]]:
    for service in connection.compute.services():
        yield {"name": service.binary, "host": service.host, "up": service.state == "up"}
    for agent in connection.network.agents():
        yield {"name": agent.binary, "host": agent.host, "up": bool(agent.is_alive)}
    if "cinder" in plan.topology.services:
        for service in connection.block_storage.services():
            yield {"name": service.binary, "host": service.host, "up": service.state == "up"}
    if "swift" in plan.topology.services:
        for name, node, up in storage.servers(plan):
            yield {"name": name, "host": node.fqdn, "up": up}


def _instances(connection: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": server.name,
            "status": server.status,
            "host": server.compute_host,
            "addresses": [entry["addr"] for each in (server.addresses or {}).values() for entry in each],
        }
        for server in connection.compute.servers(all_projects=True)
    ]


def _images(connection: Any) -> list[dict[str, Any]]:
    return [
        {"name": image.name, "status": image.status, "size": image.size or 0}
        for image in connection.image.images()
    ]


def _addresses(connection: Any) -> list[dict[str, Any]]:
    return [
        {
            "address": address.floating_ip_address,
            "fixed": address.fixed_ip_address or "",
            "status": address.status,
        }
        for address in connection.network.ips()
    ]


def _print(plan: Plan, found: dict[str, Any]) -> None:
    working = f", in the middle of {found['working']}" if found["working"] else ""
    ui.out(
        f"Lab {plan.lab}: {plan.provider}, {plan.distribution}, OpenStack {plan.release}; "
        f"stage: {found['stage'] or 'none'}{working}; {found['health']}"
    )
    nodes = [
        (
            node["name"],
            node["address"],
            ", ".join(node["roles"]),
            "running" if node["running"] else "stopped",
            _of_node(found["services"], node["fqdn"]),
        )
        for node in found["nodes"]
    ]
    ui.table("", ("node", "address", "roles", "state", "services and agents"), nodes)
    if found["instances"]:
        rows = [
            (i["name"], i["status"], i["host"] or "", ", ".join(i["addresses"])) for i in found["instances"]
        ]
        ui.table("", ("instance", "status", "host", "addresses"), rows)
    images = ", ".join(f"{image['name']} ({ui.size(image['size'])})" for image in found["images"])
    free = ", ".join(address["address"] for address in found["addresses"] if not address["fixed"])
    ui.out(f"images: {images or 'none'}")
    if free:
        ui.out(f"floating IPs without an instance: {free}")
    ui.out(f"snapshots: {', '.join(found['snapshots']) or 'none'}")
    if url := found["urls"].get("dashboard"):
        ui.out(f"dashboard: {url} inside {plan.namespace}; `invoke dashboard` brings it here")
    ui.out(f"credentials: {plan.directory}/openrc-admin, openrc-demo, clouds.yaml")


def _of_node(services: list[dict[str, Any]], fqdn: str) -> str:
    """What runs on a node, in short; all that is down by name."""
    # cinder-volume's host is node@backend
    here = [
        service for service in services if service["host"].partition("@")[0] in (fqdn, fqdn.partition(".")[0])
    ]
    down = sorted(service["name"] for service in here if not service["up"])
    return f"down: {', '.join(down)}" if down else f"{len(here)} up" if here else ""
