"""Adding compute nodes to a running lab: what runs keeps running.

A topology whose `count` was raised is another one, and its stages have other keys. Where new compute
nodes are all that differs, they alone are made, and Packstack runs with the others in EXCLUDE_SERVERS.

Before anything changes all nodes are captured and growth.json is written. A growth that does not end
is undone by the next command, from that snapshot; it never goes on over its own ruins. Afterwards the
older snapshots are gone, since they lack the new nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacklab import (
    archive,
    files,
    nodes,
    packstack,
    providers,
    remote,
    reuse,
    seed,
    settle,
    snapshots,
    stages,
    ui,
)
from stacklab.base import Golden
from stacklab.errors import LabError
from stacklab.model import Node
from stacklab.plan import Plan, from_json
from stacklab.providers import Growing, Provider
from stacklab.stages import Progress, Stage

SNAPSHOT = "before-growth"
# What a growth begins with at the least, and what it leaves to be done.
_FIRST, _LAST = stages.NAMES.index("openstack"), stages.NAMES.index("images")


@dataclass(frozen=True)
class Growth:
    """A running lab as it is planned, and as it should be; `added` are the nodes that it lacks."""

    old: Plan
    new: Plan
    added: tuple[Node, ...]
    stage: int

    @property
    def names(self) -> str:
        return ", ".join(node.name for node in self.added)


def of(
    plan: Plan, golden: Golden, provider: Provider, stages_of: Callable[[Plan], Sequence[Stage]]
) -> Growth | None:
    """The growth that turns the lab that is there into the plan's; None where that is no growth.

    `stages_of` gives the stages of a plan, of which the running nodes must have reached one
    with OpenStack in it. A growth that did not end counts as taken back already.
    """
    there = stages.progress(plan)
    saved = files.read_json(plan.directory / "plan.json")
    image = archive.own_image(plan)
    if not isinstance(provider, Growing) or saved is None or image is None or image.key != golden.key:
        return None
    old = from_json(saved["plan"])
    if (before := unfinished(plan)) and (
        found := [one for one in snapshots.listed(plan) if one.name == SNAPSHOT]
    ):
        old, there = before, Progress(found[0].stage, found[0].key)
    added = _added(old, plan)
    if not added or there.working:
        return None
    keys = [stage.key for stage in stages_of(old)]
    if there.key not in keys or keys.index(there.key) < _FIRST:
        return None
    return Growth(old, plan, added, min(keys.index(there.key), _LAST))


def _added(old: Plan, new: Plan) -> tuple[Node, ...]:
    """The compute nodes that `new` has more; none where anything else differs."""
    before = old.topology.nodes
    added = tuple(node for node in new.topology.nodes if node not in before)
    kept = tuple(node for node in new.topology.nodes if node in before)
    alike = kept == before and _shape(old) == _shape(new)
    return added if alike and all(node.roles == ("compute",) for node in added) else ()


def _shape(plan: Plan) -> dict[str, Any]:
    """What must not differ."""
    shape = {name: value for name, value in plan.as_json().items() if name != "reasons"}
    for name in ("nodes", "name", "file", "description"):
        del shape["topology"][name]
    return shape


def grow(
    growth: Growth, golden: Golden, todo: Sequence[Stage], wake: Callable[[Plan, Provider], None]
) -> None:
    """Add the nodes. `todo` are the new plan's stages; the lab has reached one of them afterwards.

    `wake` makes sure that the lab that is there runs and answers.
    """
    new, old = growth.new, growth.old
    there = stages.progress(old)
    provider, before = providers.provider(new, golden), providers.provider(old, golden)
    assert isinstance(provider, Growing)
    wake(old, before)
    with ui.step(f"adding {growth.names}; what runs keeps running"):
        with ui.step(f"snapshot {SNAPSHOT}"):
            snapshots.save(old, before, SNAPSHOT, there.stage, there.key)
        files.write_json(_file(new), {"plan": old.as_json()}, mode=0o600)
        stages.set_progress(new, Progress(there.stage, there.key, working="growth"))
        with ui.step("creating the new nodes with Vagrant"):
            provider.add(growth.added)
        _introduce(growth)
        nodes.check(new, growth.added)
        packstack.deploy(new, installed=old.topology.nodes)
        settle.settle(new)
        packstack.map_hosts(new)
        for stage in todo[: growth.stage + 1]:
            reuse.record(new, stage)
        reached = todo[growth.stage]
        stages.set_progress(new, Progress(reached.name, reached.key))
        snapshots.forget_all(new)
        _file(new).unlink()
        snapshots.prune(new, provider)


def _introduce(growth: Growth) -> None:
    """Tell the nodes that run of the new ones: names and host keys, which their seeds lacked; let them in."""
    plan = growth.new
    for node in growth.old.topology.nodes:
        remote.put(plan, node, seed.hosts(plan), "/etc/hosts", mode="0644")
        remote.put(plan, node, seed.known_hosts(plan), "/etc/ssh/ssh_known_hosts", mode="0644")
        remote.script(plan, node, "let-in", *(new.management for new in growth.added))


def unfinished(plan: Plan) -> Plan | None:
    """The plan of before a growth that did not end; None where there was none such."""
    saved = files.read_json(_file(plan))
    return from_json(saved["plan"]) if saved is not None else None


def refuse_unfinished(plan: Plan) -> None:
    """Raise LabError in the middle of a growth, which the next `up` or `reset` takes back."""
    if unfinished(plan):
        hint = "`invoke up` or `invoke reset` takes it back from its snapshot"
        raise LabError(f"nodes were being added to the lab {plan.lab}, and that did not end", hint=hint)


def undo(plan: Plan, restore: Callable[[Plan, Provider, snapshots.Snapshot], None]) -> Plan:
    """Take back a growth that did not end; the plan that the lab then has, else `plan`."""
    old = unfinished(plan)
    if old is None:
        return plan
    found = {snapshot.name: snapshot for snapshot in snapshots.listed(plan)}
    if SNAPSHOT not in found:  # all was done but for the last steps
        _file(plan).unlink()
        return plan
    # The image that the nodes lie on, which need not be the one that a new lab would get.
    image = archive.own_image(plan)
    assert image is not None
    provider = providers.provider(old, image)
    assert isinstance(provider, Growing)
    with ui.step("taking back the growth that did not end"):
        provider.drop()
        restore(old, provider, found[SNAPSHOT])
        _file(plan).unlink()
        snapshots.delete(old, provider, SNAPSHOT)
    return old


def _file(plan: Plan) -> Path:
    return plan.directory / "growth.json"
