"""Where `up` goes on, and what happens around each stage; provider and stages are fakes that write down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from stacklab import files, lab, packstack, reuse, snapshots, stages
from stacklab.base import Golden
from stacklab.errors import LabError
from stacklab.plan import Plan
from stacklab.providers.lxc import Lxc
from stacklab.snapshots import Snapshot
from stacklab.stages import NAMES, Progress, Stage, Start


@dataclass
class Nodes:
    """Stands in for the provider: captures are numbers."""

    there: bool = True
    captures: int = 0
    kept: list[Any] = field(default_factory=list)

    def exists(self) -> bool:
        return self.there

    def capture(self) -> dict[str, Any]:
        self.captures += 1
        return {"layers": [str(self.captures)]}

    def parts(self, payload: dict[str, Any]) -> list[Path]:
        return [Path(name) for name in payload["layers"]]

    def prune(self, kept: list[dict[str, Any]]) -> None:
        self.kept = [payload["layers"] for payload in kept]


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


def snapshot(plan: Plan, name: str, key: str, created: int = 1, stage: str = "") -> Snapshot:
    made = Snapshot(name, stage or name, key, created, {"layers": [name]})
    files.write_json(plan.directory / "snapshots" / f"{name}.json", made.__dict__)
    return made


def stage(name: str, act: Callable[[], Any] = lambda: None) -> Stage:
    position = NAMES.index(name)
    previous = f"key-{NAMES[position - 1]}" if position else ""
    return Stage(name, f"key-{name}", act, (), {"version of the stage": 1}, previous)


STAGES = [stage(name) for name in NAMES]


def start(plan: Plan, nodes: Nodes) -> Start:
    return stages.start_of(plan, cast(Lxc, nodes), STAGES)


def test_a_new_lab_starts_from_nothing(two_node: Plan, nodes: Nodes) -> None:
    nodes.there = False
    assert start(two_node, nodes) == Start(0)


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES, 1)))
def test_running_nodes_go_on_where_they_are(number: int, name: str, two_node: Plan, nodes: Nodes) -> None:
    stages.set_progress(two_node, Progress(name, f"key-{name}"))
    snapshot(two_node, "nodes", "key-nodes")
    assert start(two_node, nodes) == Start(number)


def test_a_deeper_snapshot_is_better_than_running_nodes(two_node: Plan, nodes: Nodes) -> None:
    stages.set_progress(two_node, Progress("nodes", "key-nodes"))
    snapshot(two_node, "nodes", "key-nodes")
    deep = snapshot(two_node, "cloud", "key-cloud", created=2)
    snapshot(two_node, "openstack", "key-openstack", created=3)
    assert start(two_node, nodes) == Start(3, deep)


def test_running_nodes_are_better_than_a_snapshot_as_deep(two_node: Plan, nodes: Nodes) -> None:
    stages.set_progress(two_node, Progress("cloud", "key-cloud"))
    snapshot(two_node, "cloud", "key-cloud")
    assert start(two_node, nodes) == Start(3)


def test_ruins_are_never_gone_on_with(two_node: Plan, nodes: Nodes) -> None:
    stages.set_progress(two_node, Progress("openstack", "key-openstack", working="cloud"))
    assert start(two_node, nodes) == Start(0)
    saved = snapshot(two_node, "openstack", "key-openstack")
    assert start(two_node, nodes) == Start(2, saved)


def test_states_of_other_inputs_do_not_count(two_node: Plan, nodes: Nodes) -> None:
    stages.set_progress(two_node, Progress("verified", "an older key"))
    snapshot(two_node, "cloud", "an older key")
    assert start(two_node, nodes) == Start(0)
    saved = snapshot(two_node, "nodes", "key-nodes")
    assert start(two_node, nodes) == Start(1, saved)


def test_a_snapshot_by_any_name_counts(two_node: Plan, nodes: Nodes) -> None:
    mine = snapshot(two_node, "before-lesson-3", "key-images", stage="images")
    assert start(two_node, nodes) == Start(4, mine)


def test_without_nodes_only_snapshots_count(two_node: Plan, nodes: Nodes) -> None:
    stages.set_progress(two_node, Progress("images", "key-images"))
    nodes.there = False
    assert start(two_node, nodes) == Start(0)
    saved = snapshot(two_node, "cloud", "key-cloud")
    assert start(two_node, nodes) == Start(3, saved)
    inside = replace(saved, payload={"layers": []})  # it lay inside the nodes
    files.write_json(two_node.directory / "snapshots" / "cloud.json", inside.__dict__)
    assert start(two_node, nodes) == Start(0)


class Run:
    """run_stages with acts that write down what they saw, and fail as told."""

    def __init__(self, plan: Plan, nodes: Nodes) -> None:
        self.plan, self.nodes = plan, nodes
        self.seen: list[str] = []
        self.progress: dict[str, list[Progress]] = {}
        self.failures: dict[str, list[Exception]] = {}

    def act(self, name: str) -> None:
        self.seen.append(name)
        self.progress.setdefault(name, []).append(stages.progress(self.plan))
        if left := self.failures.get(name):
            raise left.pop(0)

    def restore(self, name: str) -> None:
        self.seen.append(f"restore {name}")
        # As the real one does: afterwards the nodes are at that stage, and nobody works on them.
        stages.set_progress(self.plan, Progress(name, f"key-{name}"))

    def __call__(self, done: int = 0) -> None:
        todo = [stage(name, lambda name=name: self.act(name)) for name in NAMES]  # type: ignore[misc]
        stages.run_stages(self.plan, cast(Lxc, self.nodes), todo, done, self.restore)


@pytest.fixture
def run(two_node: Plan, nodes: Nodes) -> Run:
    return Run(two_node, nodes)


def test_all_stages_in_order_a_snapshot_after_each(run: Run) -> None:
    run()
    assert run.seen == list(NAMES)
    assert sorted(s.name for s in snapshots.listed(run.plan)) == sorted(NAMES)
    for name in NAMES:
        saved = snapshots.get(run.plan, name)
        assert (saved.stage, saved.key) == (name, f"key-{name}")
    assert stages.progress(run.plan) == Progress("verified", "key-verified")


def test_progress_says_what_is_being_worked_on(run: Run) -> None:
    run()
    assert run.progress["nodes"] == [Progress("", "", "nodes")]
    assert run.progress["cloud"] == [Progress("openstack", "key-openstack", "cloud")]


def test_only_what_is_left_runs(run: Run) -> None:
    stages.set_progress(run.plan, Progress("cloud", "key-cloud"))
    run(done=3)
    assert run.seen == ["images", "verified"]


def test_an_error_stops_and_leaves_the_stage_marked(run: Run) -> None:
    run.failures["cloud"] = [LabError("no router")]
    with pytest.raises(LabError, match="no router"):
        run()
    assert run.seen == ["nodes", "openstack", "cloud"]  # not tried again
    assert stages.progress(run.plan) == Progress("openstack", "key-openstack", "cloud")
    assert sorted(s.name for s in snapshots.listed(run.plan)) == ["nodes", "openstack"]
    # What the next run makes of that:
    assert start(run.plan, run.nodes) == Start(2, snapshots.get(run.plan, "openstack"))


def test_a_snapshot_that_fails_leaves_the_stage_marked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> dict[str, Any]:
        raise LabError("disk full")

    monkeypatch.setattr(run.nodes, "capture", full)
    with pytest.raises(LabError, match="disk full"):
        run()
    assert stages.progress(run.plan) == Progress("", "", "nodes")
    assert snapshots.listed(run.plan) == ()


def test_slowness_is_tried_once_more_from_the_snapshot_before(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.failures["openstack"] = [packstack.TimedOut("too slow", hint="let it rest")]
    run()
    assert run.seen == ["nodes", "openstack", "restore nodes", *NAMES[1:]]
    # A kill during the second try must be seen, too.
    assert run.progress["openstack"] == [Progress("nodes", "key-nodes", "openstack")] * 2
    said = capsys.readouterr().err
    assert "too slow" in said and "let it rest" in said
    assert "trying the stage openstack once more, from the snapshot nodes" in said


def test_slowness_is_tried_once_more_only(run: Run) -> None:
    run.failures["openstack"] = [packstack.TimedOut("slow"), packstack.TimedOut("slow again")]
    with pytest.raises(packstack.TimedOut, match="slow again"):
        run()
    assert run.seen == ["nodes", "openstack", "restore nodes", "openstack"]
    assert stages.progress(run.plan).working == "openstack"


def test_before_the_first_stage_there_is_nothing_to_go_back_to(run: Run) -> None:
    run.failures["nodes"] = [packstack.TimedOut("slow")]
    with pytest.raises(packstack.TimedOut):
        run()
    assert run.seen == ["nodes"]


def keys(plan: Plan, golden: str = "1") -> list[str]:
    image = Golden(f"debian-12-lxc-{golden}", golden, Path("/nowhere"))
    made = lab.stages_of(plan, image, lambda rows: None)
    assert [stage.name for stage in made] == list(NAMES)
    assert all(stage.commands for stage in made)
    return [stage.key for stage in made]


def first_change(before: list[str], after: list[str]) -> str:
    """The first stage whose key differs; those after it must differ too, as they lie on it."""
    same = [one == other for one, other in zip(before, after, strict=True)]
    assert same == sorted(same, reverse=True)
    return "none" if all(same) else NAMES[same.index(False)]


def test_keys_are_stable_and_all_different(two_node: Plan) -> None:
    assert keys(two_node) == keys(two_node)
    assert len(set(keys(two_node))) == len(NAMES)


def test_what_runs_anew_when_the_topology_changes(two_node: Plan) -> None:
    before, topology = keys(two_node), two_node.topology
    compute = replace(topology.nodes[1], memory=8192)
    for changes, first in (
        ({"name": "other", "description": "other words", "file": "elsewhere.yaml"}, "none"),
        ({"nodes": (topology.nodes[0], compute)}, "nodes"),
        ({"management": replace(topology.management, host="10.0.0.2")}, "nodes"),
        ({"provider_network": replace(topology.provider_network, gateway="203.0.113.2")}, "nodes"),
        ({"answers": {"CONFIG_NOVA_LIBVIRT_VIRT_TYPE": "kvm"}}, "openstack"),
        ({"services": topology.services[:-1]}, "openstack"),
        ({"tenant": replace(topology.tenant, gateway="172.16.1.254")}, "cloud"),
        ({"provider_network": replace(topology.provider_network, pool_end="203.0.113.200")}, "cloud"),
    ):
        after = keys(replace(two_node, topology=replace(topology, **cast(Any, changes))))
        assert first_change(before, after) == first, changes


def test_what_else_runs_anew(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(two_node)
    assert first_change(before, keys(replace(two_node, reasons=()))) == "none"
    assert first_change(before, keys(two_node, golden="2")) == "nodes"
    assert first_change(before, keys(replace(two_node, datapath="system"))) == "nodes"
    for name in NAMES:
        with monkeypatch.context() as patch:
            patch.setitem(reuse.VERSIONS, name, 99)
            assert first_change(before, keys(two_node)) == name
