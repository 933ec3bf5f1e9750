"""`up`, `reset` and `down` as a whole, with nodes that only write down what is done to them."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stacklab import (
    archive,
    base,
    cloud,
    files,
    growth,
    lab,
    namespace,
    nodes,
    packstack,
    providers,
    removal,
    settle,
    show,
    snapshots,
    stages,
    storage,
    verify,
)
from stacklab.base import Golden
from stacklab.errors import Busy, InvalidInput, LabError
from stacklab.plan import Plan
from stacklab.providers import libvirt
from stacklab.providers.libvirt import Libvirt
from stacklab.providers.lxc import Lxc
from stacklab.stages import Progress
from tests.fakes import install

Maker = Callable[..., Plan]


@dataclasses.dataclass
class World:
    """The nodes that there are, by the plan that made them, and what was done."""

    made: set[str] = dataclasses.field(default_factory=set)
    done: list[str] = dataclasses.field(default_factory=list)
    inside: bool = False
    captures: int = 0


class Nodes:
    """Stands in for a provider. `world.inside`: captures lie in the nodes, and go with them."""

    def __init__(self, plan: Plan, golden: Golden, world: World) -> None:
        self.plan, self.golden, self.world = plan, golden, world
        self.names = {node.name for node in plan.topology.nodes}

    def create(self) -> None:
        self.world.made -= self.names
        self.world.done.append(f"create {' '.join(sorted(self.names))}")
        self.world.made |= self.names
        place = self.plan.directory / "plan.json"
        files.write_json(place, {"plan": self.plan.as_json(), "vagrant": "its settings"})

    def create_commands(self) -> list[list[str]]:
        return []

    def exists(self) -> bool:
        return self.names <= self.world.made

    def running(self) -> dict[str, bool]:
        return dict.fromkeys(self.names, True)

    def start(self) -> None:
        self.world.done.append("start")

    def destroy(self) -> None:
        self.world.done.append(f"destroy {' '.join(sorted(self.names))}")
        self.world.made -= self.names

    def capture(self) -> dict[str, Any]:
        self.world.captures += 1
        return {"layers": [str(self.world.captures)]}

    def revert(self, payload: dict[str, Any]) -> None:
        assert self.exists()
        self.world.done.append("revert")

    def parts(self, payload: dict[str, Any]) -> list[Path]:
        return [] if self.world.inside else [Path("layer")]

    def prune(self, kept: list[dict[str, Any]]) -> None:
        pass


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()
    monkeypatch.setattr(providers, "provider", lambda plan, golden: Nodes(plan, golden, found))
    monkeypatch.setattr(files, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(base, "build", lambda spec: pytest.fail("no image is missing"))
    monkeypatch.setattr(namespace, "refuse_foreign", lambda plan: None)
    for module, name in (
        *((nodes, "check"), (packstack, "deploy"), (packstack, "map_hosts"), (storage, "place")),
        *((cloud, "build"), (lab, "upload_probe")),
    ):
        monkeypatch.setattr(module, name, lambda *arguments, **options: None)
    monkeypatch.setattr(verify, "verify", lambda plan: [])
    monkeypatch.setattr(settle, "quick", lambda plan: False)

    def settled(plan: Plan, **options: Any) -> list[settle.Answer]:
        found.done.append(f"settle {' '.join(plan.topology.services)}")
        return []

    monkeypatch.setattr(settle, "settle", settled)
    return found


def image(plan: Plan, key: str = "", made_of: Any = None) -> Golden:
    """An image in the cache: the one that is wanted, or one of another name."""
    spec = base.of(plan)
    golden = base.wanted(spec)
    if key:
        golden = Golden(f"{spec.distribution}-{spec.provider}-{key}", key, golden.directory.with_name(key))
    files.write_json(
        golden.directory / "metadata.json",
        {"name": golden.name, "inputs": made_of or base.inputs(spec)},
    )
    return golden


def up(plan: Plan) -> None:
    lab.up(plan, lambda rows: None)


def without(plan: Plan, service: str) -> Plan:
    services = tuple(one for one in plan.topology.services if one != service)
    return dataclasses.replace(plan, topology=dataclasses.replace(plan.topology, services=services))


def planned(plan: Plan) -> Plan:
    return lab.open_plan(plan.lab)


def test_a_lab_is_what_it_was_last_planned_as(two_node: Plan, world: World) -> None:
    image(two_node)
    up(two_node)
    lab.save(two_node, "mine")
    fewer = without(two_node, "horizon")
    world.done.clear()
    up(fewer)
    assert "create compute1 controller" not in world.done, "the nodes are the same"
    assert planned(fewer) == fewer
    assert files.read_json(fewer.directory / "plan.json")["vagrant"] == "its settings"
    lab.reset(planned(fewer))
    assert "horizon" not in world.done[-1], "what the lab no longer has is not waited for"
    lab.reset(planned(fewer), "mine")
    assert "horizon" in world.done[-1], "the snapshot has it"
    assert planned(fewer) == two_node


def test_a_snapshot_of_another_lab_keeps_this_ones_name(two_node: Plan, world: World) -> None:
    image(two_node)
    up(two_node)
    saved = snapshots.get(two_node, "verified")
    assert saved.planned(dataclasses.replace(two_node, lab="mine")).lab == "mine"
    assert dataclasses.replace(saved, plan={}).planned(two_node) == two_node


def test_nodes_that_the_plan_no_longer_has_go(make_plan: Maker, world: World) -> None:
    both = make_plan("multi-compute")
    image(both)
    up(both)
    assert world.made == {"controller", "compute1", "compute2"}
    kept = tuple(node for node in both.topology.nodes if node.name != "compute2")
    up(dataclasses.replace(both, topology=dataclasses.replace(both.topology, nodes=kept)))
    assert world.made == {"controller", "compute1"}


def test_a_lab_that_is_there_does_not_change_its_provider(two_node: Plan, world: World) -> None:
    image(two_node)
    up(two_node)
    done = list(world.done)
    with pytest.raises(InvalidInput, match=r"libvirt.*two-node is there, on lxc.*invoke down"):
        up(dataclasses.replace(two_node, provider="libvirt"))
    assert world.done == done


def test_a_lab_keeps_its_image_until_that_is_made_of_other_things(two_node: Plan, world: World) -> None:
    old = image(two_node, "old")
    image(two_node)
    files.write_json(two_node.directory / "golden.json", archive.golden_json(old))
    assert lab.golden_of(two_node) == old
    image(two_node, "old", made_of={"elements": "others"})
    assert lab.golden_of(two_node) == base.wanted(base.of(two_node))


def test_a_lab_keeps_its_datapath_when_the_kernel_can_more(make_plan: Maker, world: World) -> None:
    before = make_plan()
    image(before)
    up(before)
    again = make_plan(datapath="system")
    assert (again.datapath, again.topology.nodes) == ("netdev", before.topology.nodes)
    assert "Open vSwitch: userspace datapath (this lab was made so)" in again.reasons
    world.done.clear()
    up(again)
    assert world.done == []


def test_a_kernel_that_can_less_is_the_reason(make_plan: Maker, world: World) -> None:
    before = make_plan(datapath="system")
    image(before)
    up(before)
    assert "Open vSwitch: userspace datapath (this kernel has no openvswitch module)" in make_plan().reasons


@pytest.mark.parametrize(("inside", "anew"), [(True, False), (False, True)])
def test_killed_just_after_the_snapshot_of_its_nodes(
    inside: bool, anew: bool, two_node: Plan, world: World
) -> None:
    image(two_node)
    up(two_node)
    for path in (two_node.directory / "snapshots").glob("*.json"):
        if path.stem != "nodes":
            path.unlink()
    stages.set_progress(two_node, Progress(working="nodes"))
    world.inside = inside
    world.done.clear()
    up(two_node)
    assert world.done[:2] == (["create compute1 controller", "revert"] if anew else ["revert", "start"])


def test_machines_of_another_checkout_are_left_alone(
    two_node: Plan, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(two_node, provider="libvirt", isolated=False)
    machines = {f"{plan.namespace}-{node.name}" for node in plan.topology.nodes}
    state = {"domains": {name: {"state": "off", "snapshots": {}, "disks": {}} for name in machines}}
    fake = install("virsh", tmp_path / "fake", monkeypatch, {**state, "networks": {}})
    monkeypatch.setattr(providers, "provider", Libvirt)
    with pytest.raises(
        LabError, match=r"stacklab-two-node-controller, .*of a lab two-node of another checkout"
    ):
        up(plan)
    assert fake.state["domains"].keys() == machines and not plan.directory.exists()


def test_who_waited_for_the_lab_takes_it_as_it_then_is(two_node: Plan, world: World) -> None:
    image(two_node)
    up(two_node)
    waited = planned(two_node)
    up(without(two_node, "horizon"))
    lab.save(waited, "mine")
    assert snapshots.get(two_node, "mine").planned(two_node) == without(two_node, "horizon")
    removal.down(two_node.lab)
    for command in (lab.reset, lambda plan: lab.save(plan, "x"), lambda plan: lab.forget(plan, "mine")):
        with pytest.raises(LabError, match="there is no lab 'two-node' here"):
            command(waited)
    assert lab.directories() == [] and not lab.lock_of(two_node.lab).exists()


def test_what_a_growth_goes_back_to_is_kept_for_it(
    two_node: Plan, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    image(two_node)
    up(two_node)
    with pytest.raises(InvalidInput, match="a name of stacklab's own snapshots"):
        lab.save(two_node, growth.SNAPSHOT)
    kept = snapshots.get(two_node, "verified").__dict__
    files.write_json(
        two_node.directory / "snapshots" / "before-growth.json", {**kept, "name": growth.SNAPSHOT}
    )
    files.write_json(two_node.directory / "growth.json", {"plan": two_node.as_json()})
    with pytest.raises(LabError, match="nodes were being added"):
        lab.forget(two_node, growth.SNAPSHOT)
    show.plan(two_node)
    assert "take back the growth that did not end\n" in capsys.readouterr().out
    lab.forget(two_node, "images")  # which may free the disk
    assert snapshots.get(two_node, growth.SNAPSHOT)


def test_down_on_a_full_disk(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Lxc(two_node, Golden("", "", Path()))
    files.write_json(two_node.directory / "plan.json", {"plan": two_node.as_json()})
    files.write(two_node.directory / "etc-lxc" / "lxc.conf", "")
    made.log.parent.mkdir()
    made.log.symlink_to("/dev/full")
    stopped: list[str] = []
    monkeypatch.setattr(namespace, "is_there", lambda plan: True)
    monkeypatch.setattr(namespace, "delete", lambda plan: stopped.append("namespace"))
    monkeypatch.setattr(Lxc, "_states", lambda self: {"controller": "RUNNING"})
    monkeypatch.setattr(Lxc, "_enter", lambda self: ["true"])
    removal.down(two_node.lab)
    assert stopped == ["namespace"] and not two_node.directory.exists()


def test_down_of_virtual_machines_on_a_full_disk(
    two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(two_node, provider="libvirt", isolated=False)
    files.write_json(plan.directory / "plan.json", {"plan": plan.as_json()})
    made = Libvirt(plan, Golden("", "", Path()))
    made.log.parent.mkdir()
    made.log.symlink_to("/dev/full")
    monkeypatch.setattr(libvirt, "_SYSTEM_IMAGES", tmp_path)
    names = (made.machine(node) for node in plan.topology.nodes)
    state = {"domains": {name: {"state": "running", "snapshots": {}, "disks": {}} for name in names}}
    fake = install("virsh", tmp_path / "fake", monkeypatch, {**state, "networks": {}})
    removal.down(plan.lab)
    assert fake.state["domains"] == {} and not plan.directory.exists()


def test_down_leaves_the_namespace_that_is_another_checkouts_by_now(
    two_node: Plan, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write_json(two_node.directory / "plan.json", {"plan": two_node.as_json()})
    monkeypatch.setattr(namespace, "is_foreign", lambda plan: True)
    removal.down(two_node.lab)
    assert world.done == [] and not two_node.directory.exists()
    assert "stacklab-two-node is another checkout's by now, and stays" in capsys.readouterr().err


def test_down_leaves_what_another_command_is_making(
    two_node: Plan, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = archive.staging(two_node.directory)
    stage.mkdir(parents=True)
    monkeypatch.setattr(time, "monotonic", itertools.count(0, 40).__next__)
    with files.lock(lab.lock_of(two_node.lab), "the lab"):
        with pytest.raises(Busy):
            removal.down(two_node.lab)
        assert stage.is_dir()
        assert lab.lock_of(two_node.lab).exists()


def test_down_of_one_lab_leaves_the_mount_point_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    (run / "stacklab/cgroups").mkdir(parents=True)
    (run / "netns/stacklab-other").mkdir(parents=True)
    monkeypatch.setattr(removal, "_RUN", run)
    monkeypatch.setattr(files, "labs_dir", lambda: tmp_path / ".stacklab/labs")
    removal.down("mine")
    assert (run / "stacklab/cgroups").is_dir()
    (run / "netns/stacklab-other").rmdir()
    (run / "netns/of-somebody-else").mkdir()
    removal.down("mine")
    assert not (run / "stacklab").exists()
