"""Clocks of nodes that went on from a snapshot of their memory: they show its time, not today's."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from stacklab import remote
from stacklab.model import Node
from stacklab.plan import Plan


def step(plan: Plan) -> None:
    """Set the clocks of all nodes, which answer ssh, to this host's, and chrony in step again."""
    log = plan.directory / "logs" / "nodes.log"

    def one(node: Node) -> None:
        remote.script(plan, node, "step-clock", f"{time.time():.3f}", log=log)

    with ThreadPoolExecutor(len(plan.topology.nodes)) as pool:
        list(pool.map(one, plan.topology.nodes))
