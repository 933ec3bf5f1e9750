"""Heat: a stack with a network, a server and a floating IP is made from a template and deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from stacklab.errors import NotHealthy
from stacklab.releases import DATA
from stacklab.verify import instances
from stacklab.verify.context import PREFIX, Context, Row, Timer, until

TEMPLATE = DATA / "verify" / "stack.yaml"
SECONDS = 300.0


def check(context: Context) -> Iterator[Row]:
    """Make the stack as demo, ping the address that it gives, delete it."""
    timer, heat = Timer(), context.demo.orchestration
    stack = heat.create_stack(
        name=PREFIX,
        template=yaml.safe_load(TEMPLATE.read_text(encoding="utf-8")),
        parameters={"image": instances.IMAGE, "flavor": instances.FLAVOR, "provider": "provider"},
    )
    _wait(context, stack, "CREATE_COMPLETE")
    outputs = {output["output_key"]: output["output_value"] for output in heat.get_stack(stack.id).outputs}
    yield timer.row("Heat stack", f"complete, its server at {outputs['address']}")
    until(f"ping of {outputs['address']}", context.limit(SECONDS), lambda: instances.ping(outputs["address"]))
    yield timer.row("Heat stack's server", "answers by its floating IP")
    heat.delete_stack(stack)
    heat.wait_for_delete(stack, wait=context.limit(SECONDS))
    yield timer.row("Heat stack deleted", "nothing is left")


def _wait(context: Context, stack: Any, status: str) -> None:
    def reached() -> str:
        found = context.demo.orchestration.get_stack(stack.id)
        if found.status.endswith("FAILED"):
            raise NotHealthy(
                f"the stack is {found.status}: {found.status_reason}",
                hint="see /var/log/heat/heat-engine.log on the controller",
            )
        return str(found.status) if found.status == status else ""

    until(f"stack that is {status}", context.limit(SECONDS), reached)


def sweep(context: Context) -> None:
    """Delete the stack and wait until it is gone."""
    heat = context.demo.orchestration
    for stack in heat.stacks():
        if stack.name == PREFIX:
            heat.delete_stack(stack)
            heat.wait_for_delete(stack, wait=context.limit(SECONDS))
