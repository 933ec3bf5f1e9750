"""What Packstack leaves otherwise than a lab wants it, on nodes of Enterprise Linux.

It is set in the stage `openstack`. On Debian the golden image has it (debian.yaml of packstack-debian).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stacklab import distributions, files, remote, ui
from stacklab.model import Node
from stacklab.plan import Plan


def _scripts(plan: Plan) -> Iterator[tuple[str, Node]]:
    """The scripts below scripts/el, each with a node that it runs on."""
    if distributions.distribution(plan.distribution).family != "el":
        return
    topology = plan.topology
    if topology.network_agent != "ovn":  # which has an agent of its own for the metadata
        for node in topology.with_role("network"):
            yield "metadata", node
    if "ceilometer" in topology.services:
        for node in dict.fromkeys((topology.controller, *topology.with_role("compute"))):
            yield "polling", node


def inputs(plan: Plan) -> dict[str, Any]:
    """What the stage's key depends on besides Packstack's answers; nothing where nothing is set."""
    return {"settings": files.tree_digest(remote.SCRIPTS / "el")} if list(_scripts(plan)) else {}


def commands(plan: Plan) -> tuple[str, ...]:
    """What runs after Packstack, for a dry run."""
    return tuple(f"on {node.name}: scripts/el/{name}" for name, node in _scripts(plan))


def settings(plan: Plan) -> None:
    """Set it, and restart what reads it; can be repeated. Raises CommandFailed with the log's path."""
    log = plan.directory / "logs" / "settings.log"
    for name, node in _scripts(plan):
        with ui.step(f"{name} on {node.name}"):
            remote.script(plan, node, f"el/{name}", log=log)
