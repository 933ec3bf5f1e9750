"""Clocks of nodes that went on from a snapshot of their memory: they show its time, not today's."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from stacklab import remote
from stacklab.model import Node
from stacklab.plan import Plan


def step(plan: Plan, are_set: bool = False) -> None:
    """Set the clocks of all nodes, which answer ssh, to this host's, and chrony in step again.

    A clock is late by what ssh takes to log in. Where the provider has a quicker way it
    sets them itself: then `are_set`, and only chrony is told.
    """
    log = plan.directory / "logs" / "nodes.log"

    def one(node: Node) -> None:
        now = "-" if are_set else f"{time.time():.3f}"
        remote.script(plan, node, "step-clock", now, log=log)

    with ThreadPoolExecutor(len(plan.topology.nodes)) as pool:
        list(pool.map(one, plan.topology.nodes))
