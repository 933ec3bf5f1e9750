"""Adding compute nodes: when it is a growth, what happens in which order, and what a failure leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stacklab import (
    files,
    growth,
    nodes,
    packstack,
    providers,
    remote,
    seed,
    settle,
    snapshots,
    stages,
    topology,
)
from stacklab.base import Golden
from stacklab.errors import LabError
from stacklab.growth import Growth
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.providers import Provider
from stacklab.stages import NAMES, Progress, Stage

GOLDEN = Golden("debian-12-lxc-1", "1", Path("/golden"))
Maker = Callable[..., Plan]


class Nodes:
    """Stands in for the provider, whatever the plan: what is done is written down."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def add(self, added: Sequence[Node]) -> None:
        self.done.append(f"add {' '.join(node.name for node in added)}")

    def drop(self) -> None:
        self.done.append("drop")

    def capture(self) -> dict[str, Any]:
        self.done.append("capture")
        return {"layers": ["one"]}

    def prune(self, kept: list[dict[str, Any]]) -> None:
        self.done.append(f"prune but {len(kept)}")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """Everything that would touch nodes, as names in `done`."""
    made = Nodes()

    def named(text: str) -> Callable[..., None]:
        return lambda *arguments, **options: made.done.append(text)

    def deploy(plan: Plan, installed: Sequence[Node] = ()) -> None:
        made.done.append(f"packstack but {' '.join(node.name for node in installed)}")

    def provider(plan: Plan, golden: Golden) -> Nodes:
        assert golden == GOLDEN, "not the image that the nodes lie on"
        return made

    monkeypatch.setattr(providers, "provider", provider)
    monkeypatch.setattr(
        remote, "put", lambda plan, node, text, path, mode: made.done.append(f"{node.name}: {path} {mode}")
    )
    monkeypatch.setattr(
        remote,
        "script",
        lambda plan, node, name, *args: made.done.append(f"{node.name}: {name} {' '.join(args)}"),
    )
    monkeypatch.setattr(seed, "known_hosts", lambda plan: "keys")
    monkeypatch.setattr(
        nodes, "check", lambda plan, new: made.done.append(f"check {' '.join(node.name for node in new)}")
    )
    monkeypatch.setattr(packstack, "deploy", deploy)
    monkeypatch.setattr(settle, "settle", named("settle"))
    monkeypatch.setattr(packstack, "map_hosts", named("map hosts"))
    return made


def lab(make_plan: Maker, count: int, change: str = "") -> Plan:
    """multi-compute with so many compute nodes; `change` is `text -> other text` of its file."""
    text = (files.PROJECT / "topologies" / "multi-compute.yaml").read_text(encoding="utf-8")
    text = text.replace("count: 2", f"count: {count}")
    before, _, after = change.partition(" -> ")
    assert before in text
    made = make_plan("multi-compute")
    return dataclasses.replace(
        made,
        topology=dataclasses.replace(
            topology.parse(text.replace(before, after, 1) if change else text, "lab.yaml"),
            network_agent=made.topology.network_agent,
            services=made.topology.services,
        ),
    )


def stages_of(plan: Plan) -> list[Stage]:
    size = len(plan.topology.nodes)
    return [Stage(name, f"{name} of {size}", lambda: None, (), {"size": size}, "") for name in NAMES]


def write(plan: Plan, stage: str = "verified", working: str = "", key: str = GOLDEN.key) -> None:
    """The lab is there, and reached a stage."""
    files.write_json(plan.directory / "plan.json", {"plan": plan.as_json()})
    files.write_json(
        plan.directory / "golden.json", {"name": GOLDEN.name, "key": key, "directory": "/golden"}
    )
    reached = stage and f"{stage} of {len(plan.topology.nodes)}"
    stages.set_progress(plan, Progress(stage, reached, working))


def of(plan: Plan, machine: Nodes) -> Growth | None:
    return growth.of(plan, GOLDEN, machine, stages_of)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
    ("stage", "reached"),
    [("openstack", "openstack"), ("cloud", "cloud"), ("images", "images"), ("verified", "images")],
)
def test_a_raised_count_is_a_growth(
    count: int, stage: str, reached: str, make_plan: Maker, machine: Nodes
) -> None:
    write(lab(make_plan, 1), stage)
    found = of(lab(make_plan, count), machine)
    assert found is not None
    assert [node.name for node in found.added] == [f"compute{i}" for i in range(2, count + 1)]
    assert NAMES[found.stage] == reached
    assert len(found.old.topology.nodes) == 2


def test_a_compute_node_of_another_name_and_size_is_one_too(make_plan: Maker, machine: Nodes) -> None:
    write(lab(make_plan, 1))
    big = "\nnodes: -> \nnodes:\n  big: {roles: [compute], management: 10.0.0.71, memory: 16 GB}"
    found = of(lab(make_plan, 1, big), machine)
    assert found is not None and found.names == "big"


def test_a_raised_count_in_a_copy_of_the_file_is_one_too(make_plan: Maker, machine: Nodes) -> None:
    write(lab(make_plan, 1))
    found = of(lab(make_plan, 2, "name: multi-compute -> name: other"), machine)
    assert found is not None and found.names == "compute2"


@pytest.mark.parametrize(
    ("count", "change"),
    [
        (1, ""),
        (2, "cpus: 2 -> cpus: 4"),
        (2, "management: 10.0.0.31 -> management: 10.0.0.41"),
        (2, "roles: [controller, network] -> roles: [controller, network, compute]"),
        (2, "\nnodes: -> \nanswers: {CONFIG_DEBUG_MODE: true}\nnodes:"),
        (2, "\nnodes: -> \nnetworks: {tenant: {cidr: 172.16.2.0/24}}\nnodes:"),
        (
            1,
            "\nnodes: -> \nservices: [beginner, cinder]\nnodes:\n"
            "  block: {roles: [block-storage], management: 10.0.0.71}",
        ),
        (1, "\nnodes: -> \nnodes:\n  both: {roles: [compute, network], management: 10.0.0.71}"),
    ],
)
def test_anything_else_is_none(count: int, change: str, make_plan: Maker, machine: Nodes) -> None:
    write(lab(make_plan, 1))
    assert of(lab(make_plan, count, change), machine) is None


def test_a_lab_gets_no_smaller_by_it(make_plan: Maker, machine: Nodes) -> None:
    write(lab(make_plan, 3))
    assert of(lab(make_plan, 2), machine) is None


@pytest.mark.parametrize(
    "state",
    [
        {"stage": "nodes"},
        {"stage": ""},
        {"stage": "cloud", "working": "images"},
        {"key": "another image"},
    ],
)
def test_only_a_lab_that_is_whole_can_grow(state: dict[str, str], make_plan: Maker, machine: Nodes) -> None:
    write(lab(make_plan, 1), **state)
    assert of(lab(make_plan, 2), machine) is None


def test_nothing_grows_out_of_nothing(make_plan: Maker, machine: Nodes) -> None:
    assert of(lab(make_plan, 2), machine) is None


def test_a_provider_that_cannot_add_nodes_does_not(make_plan: Maker, machine: Nodes) -> None:
    write(lab(make_plan, 1))
    assert growth.of(lab(make_plan, 2), GOLDEN, object(), stages_of) is None  # type: ignore[arg-type]


def grown(make_plan: Maker, machine: Nodes) -> Plan:
    """Grow a lab from one compute node to two; the new plan."""
    write(lab(make_plan, 1))
    plan = lab(make_plan, 2)
    snapshots.save(lab(make_plan, 1), machine, "mine", "cloud", "cloud of 2")  # type: ignore[arg-type]
    machine.done.clear()
    found = of(plan, machine)
    assert found is not None

    def wake(plan: Plan, provider: Provider) -> None:
        machine.done.append(f"wake {len(plan.topology.nodes)} nodes")

    growth.grow(found, GOLDEN, stages_of(plan), wake)
    return plan


GROWTH = [
    "wake 2 nodes",
    "capture",
    "prune but 2",
    "add compute2",
    *(
        f"{node}: {what}"
        for node in ("controller", "compute1")
        for what in ("/etc/hosts 0644", "/etc/ssh/ssh_known_hosts 0644", "let-in 10.0.0.32")
    ),
    "check compute2",
    "packstack but controller compute1",
    "settle",
    "map hosts",
    "prune but 0",
]


def test_only_the_new_nodes_are_worked_on(make_plan: Maker, machine: Nodes) -> None:
    plan = grown(make_plan, machine)
    assert machine.done == GROWTH
    # The stage `verified` is left to be done, on a lab with other keys.
    assert stages.progress(plan) == Progress("images", "images of 3")
    assert snapshots.listed(plan) == ()
    assert not (plan.directory / "growth.json").exists()
    recorded = {path.stem for path in (plan.directory / "stages").glob("*.json")}
    assert recorded == {f"{name} of 3" for name in NAMES[:4]}


def restored(machine: Nodes) -> Callable[[Plan, Provider, snapshots.Snapshot], None]:
    def restore(plan: Plan, provider: Provider, snapshot: snapshots.Snapshot) -> None:
        machine.done.append(f"restore {snapshot.name} of {len(plan.topology.nodes)} nodes")
        stages.set_progress(plan, Progress(snapshot.stage, snapshot.key))

    return restore


@pytest.mark.parametrize("where", ["add", "check", "deploy", "settle", "map_hosts", "forget_all"])
def test_a_growth_that_fails_is_taken_back(
    where: str, make_plan: Maker, machine: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise LabError("no")

    owner = {
        **{"add": machine, "check": nodes, "deploy": packstack, "settle": settle, "map_hosts": packstack},
        "forget_all": snapshots,
    }[where]
    with monkeypatch.context() as patched, pytest.raises(LabError):
        patched.setattr(owner, where, fail)
        grown(make_plan, machine)
    plan = lab(make_plan, 2)
    if where != "forget_all":
        assert stages.progress(plan).working == "growth"
        with pytest.raises(LabError, match="nodes were being added to the lab multi-compute"):
            growth.refuse_unfinished(plan)
    again = of(plan, machine)  # what a dry run says comes next
    assert again is not None and again.names == "compute2"
    assert of(lab(make_plan, 1), machine) is None
    machine.done.clear()
    old = growth.undo(plan, restored(machine))
    assert [node.name for node in old.topology.nodes] == ["controller", "compute1"]
    assert machine.done == ["drop", "restore before-growth of 2 nodes", "prune but 1"]
    assert stages.progress(plan) == Progress("verified", "verified of 2")
    assert [snapshot.name for snapshot in snapshots.listed(plan)] == ["mine"]
    assert not (plan.directory / "growth.json").exists()
    assert growth.undo(plan, restored(machine)) is plan
    growth.refuse_unfinished(plan)


def test_one_that_was_killed_at_its_very_end_is_no_failure(make_plan: Maker, machine: Nodes) -> None:
    plan = grown(make_plan, machine)
    files.write_json(plan.directory / "growth.json", {"plan": lab(make_plan, 1).as_json()})
    machine.done.clear()
    assert growth.undo(plan, restored(machine)) is plan
    assert machine.done == []
    assert not (plan.directory / "growth.json").exists()
    assert stages.progress(plan) == Progress("images", "images of 3")
