"""Magnum: its conductor is up and a cluster template is kept. No cluster is made: that takes a guest
image with Kubernetes in it, which a lab has no network to get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keystoneauth1.adapter import Adapter

from stacklab.errors import NotHealthy
from stacklab.verify.context import Context, Row, Timer


def check(context: Context) -> Iterator[Row]:
    """Ask Magnum for its conductors."""
    timer = Timer()
    services = _magnum(context.admin).get("/mservices").json()["mservices"]
    down = [service["host"] for service in services if service["state"] != "up"]
    if not services or down:
        raise NotHealthy(f"Magnum's conductor is not up: {', '.join(down) or 'none has registered'}")
    yield timer.row("Magnum", f"{len(services)} conductor up; no cluster was made")


def _magnum(connection: Any) -> Adapter:
    return Adapter(connection.session, service_type="container-infra", interface="public")


def sweep(context: Context) -> None:
    """Nothing is made, so there is nothing to remove."""
