"""Why stages run again, in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from stacklab import cloud, files, guests, lab, reuse, snapshots, stages
from stacklab.base import Golden
from stacklab.plan import Plan
from stacklab.stages import NAMES, Progress, Stage, Start


def todo(plan: Plan, golden: str = "1") -> list[Stage]:
    return lab.stages_of(plan, Golden(f"debian-12-lxc-{golden}", golden, Path("/nowhere")), lambda rows: None)


def made(plan: Plan, upto: str = "verified", golden: str = "1") -> None:
    """The lab as after a run that ended with the stage `upto`."""
    for stage in todo(plan, golden):
        reuse.record(plan, stage)
        stages.set_progress(plan, Progress(stage.name, stage.key))
        saved = snapshots.Snapshot(stage.name, stage.name, stage.key, NAMES.index(stage.name), {})
        files.write_json(plan.directory / "snapshots" / f"{stage.name}.json", saved.__dict__)
        if stage.name == upto:
            return


class Nodes:
    """A provider whose nodes are there."""

    def exists(self) -> bool:
        return True


def explained(plan: Plan, golden: str = "1") -> dict[str, str]:
    now = todo(plan, golden)
    begin = stages.start_of(plan, cast(Any, Nodes()), now)
    return dict(zip(NAMES, reuse.explain(plan, now, begin, stages.progress(plan)), strict=True))


def changed(plan: Plan, **topology: Any) -> Plan:
    return replace(plan, topology=replace(plan.topology, **topology))


def test_nothing_changed(two_node: Plan) -> None:
    made(two_node)
    assert set(explained(two_node).values()) == {"there already (the nodes as they are)"}


def test_a_new_lab(two_node: Plan) -> None:
    found = explained(two_node)
    assert found["nodes"] == "to be done: was never made"
    assert {found[name] for name in NAMES[1:]} == {"to be done: lies on the stage nodes"}


def test_an_answer_changed(two_node: Plan) -> None:
    made(two_node)
    found = explained(changed(two_node, answers={"CONFIG_NOVA_SCHED_RAM_ALLOC_RATIO": "3.0"}))
    assert found["nodes"] == "there already (snapshot nodes)"
    assert found["openstack"].startswith("to be done: answer file.CONFIG_NOVA_SCHED_RAM_ALLOC_RATIO: ")
    assert found["openstack"].endswith(" → 3.0")
    assert {found[name] for name in NAMES[2:]} == {"to be done: lies on the stage openstack"}


def test_a_flavor_changed(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    made(two_node)
    real = cloud.definition

    def more(plan: Plan) -> dict[str, Any]:
        value = real(plan)
        flavors = {**value["flavors"], "m1.tiny": {**value["flavors"]["m1.tiny"], "ram": 640}}
        return {**value, "flavors": flavors}

    monkeypatch.setattr(cloud, "definition", more)
    found = explained(two_node)
    assert found["openstack"] == "there already (snapshot openstack)"
    assert found["cloud"] == "to be done: flavors.m1.tiny.ram: 512 → 640"
    assert found["images"] == "to be done: lies on the stage cloud"


def test_an_image_changed(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    made(two_node)
    monkeypatch.setattr(guests, "probe_key", lambda key: "newer")
    found = explained(two_node)
    assert found["cloud"] == "there already (snapshot cloud)"
    assert found["images"].endswith("→ newer")
    assert found["verified"] == "to be done: lies on the stage images"


def test_a_node_and_the_golden_image_changed(two_node: Plan) -> None:
    made(two_node)
    node = replace(two_node.topology.nodes[1], memory=8192)
    grown = changed(two_node, nodes=(two_node.topology.nodes[0], node))
    found = explained(grown, golden="2")
    assert found["nodes"] == (
        "to be done: topology.nodes.compute1.memory: 4096 → 8192; "
        "golden image: debian-12-lxc-1 → debian-12-lxc-2"
    )


def test_two_changes_are_told_where_they_belong(two_node: Plan) -> None:
    made(two_node)
    tenant = replace(two_node.topology.tenant, gateway="172.16.1.254")
    found = explained(changed(two_node, answers={"CONFIG_NTP_SERVERS": "192.0.2.1"}, tenant=tenant))
    assert "CONFIG_NTP_SERVERS" in found["openstack"]
    assert found["cloud"] == "to be done: tenant.gateway: 172.16.1.1 → 172.16.1.254"


def test_a_stage_that_did_not_end(two_node: Plan) -> None:
    made(two_node, upto="openstack")
    there = stages.progress(two_node)
    reuse.record(two_node, todo(two_node)[2])
    stages.set_progress(two_node, replace(there, working="cloud"))
    found = explained(two_node)
    assert found["openstack"] == "there already (snapshot openstack)"
    assert found["cloud"] == "to be done: did not end"
    assert found["images"] == "to be done: lies on the stage cloud"


def test_a_snapshot_that_was_deleted(two_node: Plan) -> None:
    made(two_node)
    for name in ("cloud", "images", "verified"):
        (two_node.directory / "snapshots" / f"{name}.json").unlink()
    stages.set_progress(two_node, Progress(working="restore of cloud"))
    found = explained(two_node)
    assert found["openstack"] == "there already (snapshot openstack)"
    assert found["cloud"] == "to be done: was never made"  # nothing is known of it any more


def test_what_was_made_and_is_in_no_snapshot(two_node: Plan) -> None:
    made(two_node)
    there = stages.progress(two_node)
    begin = Start(3)
    words = reuse.explain(two_node, todo(two_node), begin, there)
    assert words[3] == "to be done: was made, but no snapshot has it any more"


def test_the_records_hold_no_secret(two_node: Plan) -> None:
    from stacklab import packstack

    secrets = packstack.secrets(two_node)
    made(two_node)
    for path in (two_node.directory / "stages").glob("*.json"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert not [name for name, value in secrets.items() if value in path.read_text()]


def test_old_records_go(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "KEPT", 7)
    for number in range(3):
        made(changed(two_node, answers={"CONFIG_NTP_SERVERS": f"192.0.2.{number}"}))
    assert len(list((two_node.directory / "stages").iterdir())) == 7
    found = explained(changed(two_node, answers={"CONFIG_NTP_SERVERS": "192.0.2.9"}))
    assert found["openstack"] == "to be done: answer file.CONFIG_NTP_SERVERS: 192.0.2.2 → 192.0.2.9"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2, "b": 3}, ["a: 1 → 2", "b: none → 3"]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1]}}, ["a.b: [1, 2] → [1]"]),
        ([{"name": "x", "v": 1}], [{"name": "x", "v": 2}], ["x.v: 1 → 2"]),
        ([{"name": "x"}], [{"name": "y"}], ["y: new", "x: gone"]),
        ("x" * 50, "y", [f": {'x' * 37}… → y"]),
    ],
)
def test_differences(before: Any, after: Any, expected: list[str]) -> None:
    assert list(reuse.differences(before, after)) == expected


def test_the_key_does_not_hang_on_the_labs_name(make_plan: Callable[..., Plan]) -> None:
    assert [s.key for s in todo(make_plan(lab="one"))] == [s.key for s in todo(make_plan(lab="two"))]
