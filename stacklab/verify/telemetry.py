"""Ceilometer and Gnocchi: a measure of a running instance is read back; Aodh keeps an alarm on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keystoneauth1.adapter import Adapter

from stacklab.errors import NotHealthy
from stacklab.verify.context import PREFIX, Context, Row, Timer, until

METRIC = "cpu"  # polled from libvirt on the compute node, so it proves the agent there too
SECONDS = 240.0  # the agents poll every half minute and find new instances a little later


def check(context: Context) -> Iterator[Row]:
    """Wait for the CPU time of the instance on the provider network; make an alarm on it."""
    timer, server = Timer(), context.servers["provider"]
    gnocchi = _service(context.admin, "metric")
    found: list[float] = []

    def measured() -> str:
        resource = gnocchi.get(f"/v1/resource/instance/{server.id}", raise_exc=False)
        metric = resource.json().get("metrics", {}).get(METRIC) if resource.ok else None
        if metric is None:
            return ""
        # `refresh` counts in what is not processed yet.
        answer = gnocchi.get(f"/v1/metric/{metric}/measures?refresh=true", raise_exc=False)
        found[:] = [value for _, _, value in answer.json()] if answer.ok else []
        return "measures" if found else ""

    seconds = context.limit(SECONDS)
    until(
        f"measure of {server.name}",
        seconds,
        measured,
        lambda: NotHealthy(
            f"Gnocchi has no {METRIC} of {server.name} within {seconds:.0f} s",
            hint="see /var/log/ceilometer on the compute node and on the controller",
        ),
    )
    yield timer.row(f"metric {METRIC} of {server.name}", f"{found[-1] / 1e9:.1f} s of CPU time")
    if "aodh" in context.plan.topology.services:
        yield _alarm(context, server)


def _alarm(context: Context, server: Any) -> Row:
    timer, aodh = Timer(), _service(context.demo, "alarming")
    rule = {
        "resource_type": "instance",
        "resource_id": server.id,
        "metric": METRIC,
        "aggregation_method": "mean",
        "comparison_operator": "gt",
        "threshold": 1,
        "granularity": 300,
        "evaluation_periods": 1,
    }
    body = {"name": PREFIX, "type": "gnocchi_resources_threshold", "gnocchi_resources_threshold_rule": rule}
    alarm = aodh.post("/v2/alarms", json=body).json()
    kept = aodh.get(f"/v2/alarms/{alarm['alarm_id']}").json()
    if kept["gnocchi_resources_threshold_rule"]["resource_id"] != server.id:
        raise NotHealthy("Aodh kept another alarm than it was given")
    return timer.row("alarm", f"kept, state: {kept['state']}")


def _service(connection: Any, service_type: str) -> Adapter:
    return Adapter(connection.session, service_type=service_type, interface="public")


def sweep(context: Context) -> None:
    """Delete the alarm; measures go with their age."""
    if "aodh" not in context.plan.topology.services:
        return
    aodh = _service(context.demo, "alarming")
    for alarm in aodh.get("/v2/alarms").json():
        if alarm["name"] == PREFIX:
            aodh.delete(f"/v2/alarms/{alarm['alarm_id']}")
