"""The stage `verified`: what people do with the services is done, and everything is removed again.

Each service has a module of its own here. Its `check` yields the table's rows; `sweep` removes
what a check made, this time or at one that was killed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import ModuleType

from stacklab import cloud, files, namespace, redact, remote, settle, ui
from stacklab.errors import CommandFailed, NotHealthy
from stacklab.plan import Plan
from stacklab.verify import heat, horizon, instances, magnum, swift, telemetry, volumes
from stacklab.verify.context import Context, Row, Timer

__all__ = ["CHECKS", "Row", "verify"]

RETRIES = 3
# Which service each check needs. Instances come first and stay to the end: others look at them.
CHECKS: tuple[tuple[str, ModuleType], ...] = (
    ("nova", instances),
    ("horizon", horizon),
    ("swift", swift),
    ("cinder", volumes),
    ("heat", heat),
    ("magnum", magnum),
    ("ceilometer", telemetry),
)


def verify(plan: Plan) -> list[Row]:
    """Try every service of the lab that there is a check for; instances always.

    Returns the table's rows. Raises NotHealthy naming what did not work and where to look;
    what the checks made is removed either way.
    """
    timer = Timer()
    if reason := settle.quick(plan):
        raise NotHealthy(reason, hint="`invoke status` shows the rest")
    rows = [timer.row("services and agents", "all up")]
    checks = [(name, check) for name, check in CHECKS if name in plan.topology.services]
    with namespace.entered(plan):
        context = Context(plan, *(cloud.connect(plan, who, RETRIES) for who in (cloud.ADMIN, cloud.DEMO)))
        with ui.step(f"verifying {', '.join(name for name, _ in checks)}"):
            _sweep(context, checks)
            failed = True
            try:
                for name, check in checks:
                    ui.detail(f"verifying {name}")
                    with cloud.explained(name):
                        rows += check.check(context)
                failed = False
            except NotHealthy as error:
                message = f"{error.message}\n  the nodes as they were: {_evidence(plan)}"
                raise NotHealthy(message, error.hint) from error
            finally:
                ui.say("removing what the checks made")
                try:
                    _sweep(context, checks)
                except NotHealthy as error:
                    if not failed:
                        raise
                    ui.warn(error.message)  # what failed first says more
    return rows


def _evidence(plan: Plan) -> Path:
    """Write down what the nodes' networks look like, a file for each; returns the directory."""
    place = plan.directory / "logs" / "verify"
    for node in plan.topology.nodes:
        with suppress(CommandFailed):  # a node that is gone is told of by the rest
            said = remote.script(plan, node, "network-state").output
            files.write(place / f"{node.name}.log", redact.text(said), mode=0o600)
    return place


def _sweep(context: Context, checks: list[tuple[str, ModuleType]]) -> None:
    """Remove what all checks made, last things first; one that fails keeps none of the others from it."""
    failed = []
    for name, check in reversed(checks):
        try:
            with cloud.explained(name):
                check.sweep(context)
        except NotHealthy as error:
            failed.append(error)
    if failed:
        hints = dict.fromkeys(error.hint for error in failed if error.hint)
        raise NotHealthy("\n".join(error.message for error in failed), hint="; ".join(hints))
