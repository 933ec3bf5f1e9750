"""The check after the stage `nodes`: names, networks, clocks and ssh, before anything is built on them."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from stacklab import remote, ui
from stacklab.errors import NotHealthy
from stacklab.model import Node
from stacklab.plan import Plan

# Seconds that two clocks of a lab may be apart.
CLOCK_TOLERANCE = 0.1


def check(plan: Plan, new: Sequence[Node] = ()) -> None:
    """Look at every node, or at those that are `new`, and at the ways between all of them.

    NotHealthy names all that is wrong.
    """
    with ui.step("checking the nodes: names, networks, clocks, ssh"):
        remote.wait_for_ssh(plan)
        problems = []
        for node in new or plan.topology.nodes:
            problems += [f"{node.name}: {problem}" for problem in _settled(plan, node)]
        problems += _ways(plan)
        problems += _clocks(plan)
        if problems:
            raise NotHealthy(
                "the nodes are not as they should be:\n" + "\n".join(f"  {problem}" for problem in problems),
                hint=f"see {plan.directory / 'logs' / 'nodes.log'}",
            )


def _settled(plan: Plan, node: Node, deadline: float = 30.0) -> list[str]:
    """What is still wrong on a node after it had time to finish its start."""
    end = time.monotonic() + deadline
    while True:
        output = remote.script(plan, node, "check-node", node.fqdn, plan.tunnel_interface, node.tunnel).output
        problems = output.splitlines()
        if not problems or time.monotonic() > end:
            return problems
        time.sleep(1)


def _ways(plan: Plan) -> list[str]:
    """Ping between all nodes on both networks, and root's ssh from the controller to every node."""
    problems = []
    for node in plan.topology.nodes:
        targets = dict.fromkeys(
            address
            for other in plan.topology.nodes
            if other != node
            for address in (other.management, other.tunnel)
        )
        for target in targets:
            if remote.ssh(plan, node, f"ping -q -c 1 -W 5 {target}", check=False).code != 0:
                problems.append(f"{node.name}: {target} does not answer a ping")
    for node in plan.topology.nodes:
        command = f"ssh -o BatchMode=yes -o StrictHostKeyChecking=yes root@{node.management} hostname -f"
        result = remote.ssh(plan, plan.topology.controller, command, check=False)
        if result.output.strip() != node.fqdn:
            problems.append(
                f"{plan.topology.controller.name}: no ssh as root to {node.name}: {result.output.strip()}"
            )
    return problems


_OFFSET = re.compile(r"System time\s*:\s*([\d.]+) seconds")


def _clocks(plan: Plan) -> list[str]:
    problems = []
    for node in plan.topology.nodes:
        # The controller is its own reference, which waitsync does not count.
        wait = "true" if node == plan.topology.controller else f"chronyc waitsync 40 {CLOCK_TOLERANCE} 0 0.5"
        synced = remote.ssh(plan, node, wait, check=False)
        tracking = remote.ssh(plan, node, "chronyc -n tracking", check=False).output
        offset = _OFFSET.search(tracking)
        if synced.code != 0 or offset is None or "Not synchronised" in tracking:
            problems.append(f"{node.name}: chrony is not in step: {tracking.strip().splitlines()[-1:]}")
        elif float(offset[1]) > CLOCK_TOLERANCE:
            problems.append(f"{node.name}: its clock is {offset[1]} s off")
    return problems
