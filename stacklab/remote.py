"""Commands on nodes, over ssh as root with the lab's own key."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stacklab import files
from stacklab.errors import CommandFailed, LabError, NotHealthy
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.run import Result, run

SCRIPTS = files.PROJECT / "scripts"


def ssh_argv(plan: Plan, node: Node, *command: str) -> list[str]:
    """The ssh command for a node; without `command` it opens a shell."""
    return ["ssh", "-F", str(plan.directory / "ssh_config"), node.name, *command]


def ssh(
    plan: Plan,
    node: Node,
    command: str,
    *,
    log: Path | None = None,
    timeout: float = 60,
    check: bool = True,
    stdin: str = "",
    hint: str = "",
    each_line: Callable[[str], None] | None = None,
) -> Result:
    """Run a shell command on a node, for `timeout` seconds times the plan's patience.

    Raises CommandFailed as `run` does.
    """
    argv = ["ssh", "-F", str(plan.directory / "ssh_config"), "-o", "BatchMode=yes", node.name, command]
    limit = timeout * plan.patience
    return run(argv, log=log, timeout=limit, check=check, stdin=stdin, hint=hint, each_line=each_line)


def script(
    plan: Plan,
    node: Node,
    name: str,
    *args: str,
    log: Path | None = None,
    timeout: float = 120,
    check: bool = True,
) -> Result:
    """Run one of scripts/ on a node; its text goes over standard input."""
    text = (SCRIPTS / name).read_text(encoding="utf-8")
    return ssh(
        plan, node, " ".join(["bash", "-s", "--", *args]), log=log, timeout=timeout, check=check, stdin=text
    )


def put(plan: Plan, node: Node, text: str, path: str, mode: str = "0600") -> None:
    """Write a file on a node, at once and with its mode from the start."""
    command = f"umask 077 && cat > {path}.part && chmod {mode} {path}.part && mv {path}.part {path}"
    ssh(plan, node, command, stdin=text)


def wait_for_ssh(plan: Plan, deadline: float = 120.0, greet: Callable[[Node], Result] | None = None) -> None:
    """Return when every node answers: when `greet`, by default a command that does nothing, ends well there.

    NotHealthy names those that do not within `deadline` seconds, times the plan's patience.
    """
    deadline *= plan.patience
    greet = greet or (lambda node: ssh(plan, node, "true", timeout=15, check=False))
    over = threading.Event()

    def answers(node: Node) -> bool:
        end = time.monotonic() + deadline
        while time.monotonic() < end and not over.is_set():
            try:
                if greet(node).code == 0:
                    return True
            except CommandFailed:
                pass
            time.sleep(0.3)
        return False

    with ThreadPoolExecutor(len(plan.topology.nodes)) as pool:
        try:
            reached = dict(zip(plan.topology.nodes, pool.map(answers, plan.topology.nodes), strict=True))
        finally:
            over.set()  # after Ctrl-C nobody waits any longer
    silent = [node.name for node, answered in reached.items() if not answered]
    if silent:
        raise NotHealthy(
            f"no ssh to {', '.join(silent)} within {deadline:.0f} s",
            hint=f"see {plan.directory / 'logs' / 'nodes.log'}",
        )


def node_named(plan: Plan, name: str) -> Node:
    """The node of that name; LabError names those that exist."""
    for node in plan.topology.nodes:
        if name in (node.name, node.fqdn):
            return node
    names = ", ".join(node.name for node in plan.topology.nodes)
    raise LabError(f"the lab {plan.lab} has no node {name!r}", hint=f"there are: {names}")


def openstack_argv(plan: Plan, words: list[str]) -> list[str]:
    """The OpenStack client on the controller, as admin, as an ssh command."""
    command = ". /root/keystonerc_admin && exec openstack " + shlex.join(words)
    return ssh_argv(plan, plan.topology.controller, command)
