"""Clocks of nodes that went on from a snapshot of their memory: they show its time, not today's."""

from __future__ import annotations

import time

from stacklab import remote
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.run import Result

SECONDS = 180.0
"""Until a node answers that goes on, times the plan's patience."""


def step(plan: Plan, are_set: bool = False) -> None:
    """Set the clocks of all nodes, once they answer ssh, to this host's, and chrony in step again.

    A clock is late by what ssh takes to log in. Where the provider has a quicker way it
    sets them itself: then `are_set`, and only chrony is told.
    """
    log = plan.directory / "logs" / "nodes.log"

    def one(node: Node) -> Result:
        now = "-" if are_set else f"{time.time():.3f}"
        return remote.script(plan, node, "step-clock", now, log=log, check=False)

    # Not after a login that only shows that there is one: an emulated node's first takes seconds.
    remote.wait_for_ssh(plan, SECONDS, one)
