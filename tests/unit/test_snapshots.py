"""Snapshots, and the layers of the lxc provider below them: real directories, real copies, no containers."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stacklab import files, interfaces, namespace, seed, snapshots
from stacklab.base import Golden
from stacklab.errors import InvalidInput, LabError
from stacklab.plan import Plan
from stacklab.providers import layers, lxc, vagrant
from stacklab.providers.lxc import Lxc
from stacklab.snapshots import Snapshot

NODES = ("controller", "compute1")


class Lab(Lxc):
    """The provider without containers: what it would ask of LXC is written down."""

    def __init__(self, plan: Plan, golden: Golden) -> None:
        super().__init__(plan, golden)
        self.asked: list[str] = []
        self.up = True
        self.frozen: dict[str, str] = {}

    def _each(self, command: str, *args: str, check: bool = True, timeout: float = 120) -> None:
        self.asked.append(command)

    def _lxc(self, command: str, name: str, *args: str, check: bool = True, timeout: float = 120) -> str:
        self.asked.append(f"{command} {name}")
        return ""

    def _states(self) -> dict[str, str]:
        return self.frozen or dict.fromkeys(NODES, "RUNNING" if self.up else "STOPPED")

    def kill(self) -> None:
        self.asked.append("kill")
        self.up = False

    # -- what a test looks at ----------------------------------------------------------

    def upper(self, node: str = "controller") -> Path:
        """The writable layer that the node's container would have."""
        return Path(self.stack(node)[-1])

    def stack(self, node: str = "controller") -> list[str]:
        """The directories of the overlay as the container's configuration has them."""
        config = (self.directory / "lxc" / node / "config").read_text()
        (line,) = (line for line in config.splitlines() if line.startswith("lxc.rootfs.path"))
        kind, *stack = line.removeprefix("lxc.rootfs.path = ").split(":")
        assert kind == "overlay"
        # What lxc-create would be given is the same.
        assert (self.directory / "rootfs" / node).read_text() == ":".join([kind, *stack])
        return stack

    def layers(self) -> set[str]:
        return {path.name for path in (self.directory / "layers").iterdir()}

    def look(self, name: str, node: str = "controller") -> str | None:
        """A file as the node would see it: the writable layer first, then the layers in their order."""
        stack = self.stack(node)
        for layer in (stack[-1], *stack[:-1]):
            if (Path(layer) / name).is_file():
                return (Path(layer) / name).read_text()
        return None


@pytest.fixture
def lab(two_node: Plan, tmp_path: Path) -> Lab:
    """A lab just made, its containers' configurations as vagrant-lxc leaves them."""
    golden = Golden("debian-12-lxc-1", "1", tmp_path / "golden")
    golden.rootfs.mkdir(parents=True)
    (golden.rootfs / "os").write_text("golden")
    made = Lab(two_node, golden)
    for node in NODES:
        files.write(
            two_node.directory / "lxc" / node / "config",
            f"lxc.arch = amd64\nlxc.rootfs.path = dir:/else/where\nlxc.uts.name = {node}\n",
        )
    made._set_layers([], "first")
    return made


def save(lab: Lab, name: str, stage: str = "cloud") -> Snapshot:
    return snapshots.save(lab.plan, lab, name, stage, f"key-{stage}")


def restore(lab: Lab, name: str) -> None:
    snapshots.restore(lab.plan, lab, snapshots.get(lab.plan, name))


def test_a_new_lab_lies_on_the_golden_image(lab: Lab) -> None:
    for node in NODES:
        upper = lab.directory / "layers" / "first" / node / "upper"
        assert lab.stack(node) == [str(lab.golden.rootfs), str(upper)]
        assert upper.is_dir()
    config = (lab.directory / "lxc" / "compute1" / "config").read_text().splitlines()
    assert (config[0], config[2:]) == ("lxc.arch = amd64", ["lxc.uts.name = compute1"])


def test_capture_copies_the_writable_layers(lab: Lab) -> None:
    for node in NODES:
        upper = lab.upper(node)
        (upper / "etc").mkdir(mode=0o700)
        (upper / "etc" / "shadow").write_text(f"of {node}")
        (upper / "etc" / "shadow").chmod(0o4640)
        os.utime(upper / "etc" / "shadow", (1_000_000_000, 1_000_000_000))
        (upper / "link").symlink_to("etc/shadow")
    (name,) = lab.capture()["layers"]
    for node in NODES:
        copy = lab.directory / "layers" / name / node / "upper"
        assert (copy / "etc" / "shadow").read_text() == f"of {node}"
        assert (copy / "link").readlink() == Path("etc/shadow")
        for part in ("etc", "etc/shadow", "."):
            there, here = (lab.upper(node) / part).stat(), (copy / part).stat()
            assert (there.st_mode, there.st_mtime_ns) == (here.st_mode, here.st_mtime_ns), part
    (lab.upper() / "etc" / "shadow").write_text("changed later")
    assert (lab.directory / "layers" / name / "controller/upper/etc/shadow").read_text() == "of controller"


def test_capture_keeps_what_was_deleted(lab: Lab) -> None:
    try:  # overlayfs marks a deleted file by a device 0:0
        os.mknod(lab.upper() / "deleted", stat.S_IFCHR | 0o000, os.makedev(0, 0))
    except PermissionError:
        pytest.skip("only root makes device nodes")
    (name,) = lab.capture()["layers"]
    mark = (lab.directory / "layers" / name / "controller/upper/deleted").lstat()
    assert stat.S_ISCHR(mark.st_mode) and mark.st_rdev == os.makedev(0, 0)


def test_running_nodes_are_frozen_meanwhile(lab: Lab) -> None:
    lab.capture()
    assert lab.asked == ["lxc-freeze", "lxc-unfreeze"]
    lab.asked.clear()
    lab.up = False
    lab.capture()
    assert lab.asked == []


def test_a_copy_that_fails_thaws_the_nodes_and_is_no_snapshot(lab: Lab) -> None:
    save(lab, "cloud")
    before = snapshots.get(lab.plan, "cloud")
    upper = lab.upper("compute1")
    upper.rename(upper.with_name("away"))  # the second node's copy fails
    lab.asked.clear()
    with pytest.raises(LabError):
        save(lab, "cloud")
    assert lab.asked == ["lxc-freeze", "lxc-unfreeze"]
    assert snapshots.listed(lab.plan) == (before,)
    upper.with_name("away").rename(upper)
    assert not [name for name in lab.layers() if name.startswith(".part-")], "it filled the disk"
    files.write(lab.directory / "layers" / ".part-1" / "of a killed copy", "")
    save(lab, "other")
    assert not [name for name in lab.layers() if name.startswith(".part-")]


def test_revert_gives_an_empty_layer_over_the_snapshot(lab: Lab) -> None:
    for node in NODES:
        (lab.upper(node) / "state").write_text(f"good {node}")
    payload = lab.capture()
    for node in NODES:
        (lab.upper(node) / "state").write_text("ruined")
        (lab.upper(node) / "rubbish").touch()
    lab.revert(payload)
    assert lab.asked[-1] == "kill"
    (name,) = payload["layers"]
    for node in NODES:
        *below, upper = lab.stack(node)
        assert below == [str(lab.directory / "layers" / name / node / "upper"), str(lab.golden.rootfs)]
        assert list(Path(upper).iterdir()) == []
        assert (lab.look("state", node), lab.look("rubbish", node)) == (f"good {node}", None)
        assert lab.look("os", node) == "golden"


def test_nodes_are_stopped_before_their_layers_change(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = lab.capture()
    before = lab.stack()

    def kill() -> None:
        assert lab.stack() == before
        lab.asked.append("killed")

    monkeypatch.setattr(lab, "kill", kill)
    lab.revert(payload)
    assert lab.asked[-1] == "killed"
    assert lab.stack() != before


def test_layers_pile_up_the_newest_first(lab: Lab) -> None:
    (lab.upper() / "a").write_text("1")
    save(lab, "one")
    restore(lab, "one")
    (lab.upper() / "a").write_text("2")
    (lab.upper() / "b").write_text("2")
    save(lab, "two")
    restore(lab, "two")
    one, two = (snapshots.get(lab.plan, name).payload["layers"] for name in ("one", "two"))
    assert two == [two[0], *one]
    assert len(lab.stack()) == 4  # two snapshots, the golden image, the writable layer
    assert (lab.look("a"), lab.look("b"), lab.look("os")) == ("2", "2", "golden")
    restore(lab, "one")
    assert (lab.look("a"), lab.look("b")) == ("1", None)


def test_a_chain_that_grows_is_flattened(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxc, "LONGEST_CHAIN", 3)
    lengths = []
    for number in range(8):
        for node in NODES:
            (lab.upper(node) / f"file-{number}").write_text(f"{number} of {node}")
            (lab.upper(node) / "last").write_text(str(number))
        name = save(lab, f"s{number}").name
        lengths.append(len(snapshots.get(lab.plan, name).payload["layers"]))
        restore(lab, name)
    assert lengths == [1, 2, 3, 1, 2, 3, 1, 2]
    for node in NODES:
        assert [lab.look(f"file-{number}", node) for number in range(8)] == [
            f"{number} of {node}" for number in range(8)
        ]
        assert lab.look("last", node) == "7"
    restore(lab, "s2")  # those before are as they were
    assert (lab.look("last"), lab.look("file-3")) == ("2", None)
    assert not [name for name in lab.layers() if name.startswith(".part-")]


def test_layers_that_cannot_be_merged_stay_a_chain(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def entangled(above: list[Path], target: Path) -> None:
        target.mkdir(parents=True)
        raise layers.Entangled("by reference")

    monkeypatch.setattr(lxc, "LONGEST_CHAIN", 1)
    monkeypatch.setattr(layers, "merge", entangled)
    save(lab, "one")
    restore(lab, "one")
    (lab.upper() / "a").write_text("2")
    assert len(save(lab, "two").payload["layers"]) == 2
    restore(lab, "two")
    assert lab.look("a") == "2"
    assert not [name for name in lab.layers() if name.startswith(".part-")]


def test_restoring_again_and_again_takes_no_disk(lab: Lab) -> None:
    (lab.upper() / "big").write_bytes(os.urandom(1_000_000))
    save(lab, "one")
    restore(lab, "one")
    before, stack = files.disk_usage(lab.directory), lab.stack()
    for _ in range(5):
        (lab.upper() / "rubbish").write_bytes(os.urandom(500_000))
        restore(lab, "one")
        assert len(lab.stack()) == len(stack)
        assert files.disk_usage(lab.directory) <= before


def test_sizes(lab: Lab) -> None:
    (lab.upper() / "a").write_bytes(os.urandom(1_000_000))
    save(lab, "one")
    restore(lab, "one")
    (lab.upper("compute1") / "b").write_bytes(os.urandom(2_000_000))
    os.link(lab.upper("compute1") / "b", lab.upper("compute1") / "b-too")
    save(lab, "two")
    found = snapshots.sizes(lab.plan, lab)
    for size, expected in ((found["one"].whole, 1), (found["two"].whole, 3), (found["two"].own, 2)):
        assert expected * 1e6 <= size < expected * 1e6 + 200_000
    assert found["one"].own == 0  # "two" needs all of it


def test_prune_removes_what_nobody_needs(lab: Lab) -> None:
    save(lab, "one")
    restore(lab, "one")
    assert "first" not in lab.layers()  # what the nodes had written since
    save(lab, "two")
    one, two = (snapshots.get(lab.plan, name).payload["layers"] for name in ("one", "two"))
    upper = lab.upper().parents[1].name
    assert lab.layers() == {*one, *two, upper}
    snapshots.delete(lab.plan, lab, "one")
    assert lab.layers() == {*one, *two, upper}  # "two" lies on it, and so do the nodes
    assert [s.name for s in snapshots.listed(lab.plan)] == ["two"]
    snapshots.delete(lab.plan, lab, "two")
    assert lab.layers() == {*one, upper}


def test_saving_again_replaces(lab: Lab) -> None:
    (lab.upper() / "state").write_text("old")
    old = save(lab, "mine")
    (lab.upper() / "state").write_text("new")
    new = save(lab, "mine")
    assert snapshots.listed(lab.plan) == (new,)
    assert lab.layers() == {"first", *new.payload["layers"]}
    assert old.payload != new.payload
    restore(lab, "mine")
    assert lab.look("state") == "new"


def test_a_kill_between_state_and_configuration_is_mended_at_the_next_start(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab.upper() / "state").write_text("good")
    payload = lab.capture()
    (lab.upper() / "state").write_text("ruined")

    def killed() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lab, "_apply_layers", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.revert(payload)
    monkeypatch.setattr(namespace, "create", lambda plan, log: None)
    lab.start()
    assert lab.look("state") == "good"
    assert sorted(lab.asked[-2:]) == ["lxc-start compute1", "lxc-start controller"]


def test_a_kill_before_the_state_is_written_leaves_the_old(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = lab.capture()
    before = lab.stack()

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.revert(payload)
    assert lab.stack() == before
    lab.prune([payload])
    assert lab.layers() == {"first", *payload["layers"]}  # the layer nobody came to use is gone


def test_only_stopped_nodes_are_started(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "create", lambda plan, log: None)
    monkeypatch.setattr(lab, "_states", lambda: {"controller": "RUNNING", "compute1": "STOPPED"})
    lab.start()
    assert lab.asked == ["lxc-start compute1"]


def test_nodes_that_a_killed_capture_left_frozen_are_thawed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespace, "create", lambda plan, log: None)
    lab.frozen = {"controller": "FROZEN", "compute1": "RUNNING"}
    lab.start()
    assert lab.asked == ["lxc-unfreeze controller"]
    lab.asked.clear()
    lab.capture()
    assert lab.asked == ["lxc-unfreeze", "lxc-freeze", "lxc-unfreeze"]


def test_a_lab_exists_when_all_its_nodes_do(lab: Lab) -> None:
    assert lab.exists()
    (lab.directory / "lxc" / "compute1" / "config").unlink()
    assert not lab.exists()


def test_listed_is_by_age_and_has_whole_ones_only(two_node: Plan) -> None:
    place = two_node.directory / "snapshots"
    assert snapshots.listed(two_node) == ()
    made = [Snapshot(name, "cloud", "key", age, {"layers": []}) for name, age in (("b", 1), ("a", 2))]
    for one in made:
        files.write_json(place / f"{one.name}.json", one.__dict__)
    (place / ".c.json").write_text("{half")
    (place / ".c.json.77.part").write_text("{half")
    assert snapshots.listed(two_node) == tuple(made)


def test_an_unknown_snapshot_names_those_there_are(lab: Lab) -> None:
    for names in ("none yet", "one"):
        with pytest.raises(LabError) as caught:
            snapshots.delete(lab.plan, lab, "oen")
        assert caught.value.message == "there is no snapshot 'oen' of the lab two-node"
        assert caught.value.hint == f"there are: {names}"
        save(lab, "one")


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "A", "a b", "a/b", "-x", "x" * 41])
def test_names_that_no_snapshot_may_have(name: str) -> None:
    with pytest.raises(InvalidInput, match="lower-case letters"):
        snapshots.check_name(name, ())


def test_stages_own_their_names() -> None:
    snapshots.check_name("before-lesson.3", ("nodes",))
    with pytest.raises(InvalidInput, match="a name of stacklab's own snapshots"):
        snapshots.check_name("nodes", ("nodes",))


def test_what_the_vagrantfile_reads(lab: Lab, labs: Path) -> None:
    settings = lab._vagrant()
    assert settings["lab"] == "two-node"
    assert settings["box"] == "stacklab/debian-12-lxc-1"
    assert settings["enter"][0].endswith("/scripts/in-namespace")
    assert settings["enter"][1:] == ["stacklab-two-node", f"{labs}/two-node/etc-lxc"]
    for place in (settings["private_key"], *settings["environment"].values()):
        assert str(place).startswith(f"{labs}/two-node/") or place in ("lxc", "1", "two-node")
    assert [(node["name"], node["address"]) for node in settings["nodes"]] == [
        ("controller", "10.0.0.11"),
        ("compute1", "10.0.0.31"),
    ]
    compute = lab.plan.topology.nodes[1]
    nets: list[list[str]] = settings["nodes"][1]["customize"]
    assert nets == [
        ["net.0.type", "veth"],
        ["net.0.link", "br-mgmt"],
        ["net.0.name", "eth0"],
        ["net.0.flags", "up"],
        ["net.0.hwaddr", interfaces.mac(lab.plan, compute, "eth0")],
        ["net.0.ipv4.address", "10.0.0.31/24"],
        ["net.0.ipv4.gateway", "10.0.0.1"],  # Packstack wants a default route
        ["net.1.type", "veth"],
        ["net.1.link", "br-provider"],
        ["net.1.name", "eth1"],
        ["net.1.flags", "up"],
        ["net.1.hwaddr", interfaces.mac(lab.plan, compute, "eth1")],
        ["net.2.type", "veth"],
        ["net.2.link", "br-tunnel"],
        ["net.2.name", "eth2"],
        ["net.2.flags", "up"],
        ["net.2.hwaddr", interfaces.mac(lab.plan, compute, "eth2")],
    ]


def test_running_reads_what_lxc_lists(
    two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Lxc(two_node, Golden("g", "1", tmp_path))
    assert provider.running() == {"controller": False, "compute1": False}  # nothing was made yet
    for node in NODES:
        files.write(two_node.directory / "lxc" / node / "config", "")
    files.write_json(two_node.directory / "layers.json", {"base": [], "upper": "x"})
    monkeypatch.setattr(namespace, "is_whole", lambda plan: True)
    fake = tmp_path / "enter"
    fake.write_text("#!/bin/sh\nprintf 'NAME STATE\\ncontroller RUNNING\\ncompute1   FROZEN\\n\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setattr(provider, "_enter", lambda: [str(fake)])
    assert provider.running() == {"controller": True, "compute1": False}
    # Containers whose networks are gone do not run for anybody.
    monkeypatch.setattr(namespace, "is_whole", lambda plan: False)
    assert provider.running() == {"controller": False, "compute1": False}


def test_kill_ends_those_too_that_the_plan_does_not_have(
    two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Lxc(two_node, Golden("g", "1", tmp_path))
    provider._etc.mkdir(parents=True)
    monkeypatch.setattr(namespace, "is_there", lambda plan: True)
    fake = tmp_path / "enter"
    fake.write_text(
        f"#!/bin/sh\n[ $1 = lxc-ls ] || echo $* >>{tmp_path}/asked\n"
        "printf 'NAME STATE\\ncontroller RUNNING\\ncompute1 STOPPED\\ncompute2 RUNNING\\n'\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(provider, "_enter", lambda: [str(fake)])
    provider.kill()
    # All at once, so in any order.
    asked = sorted((tmp_path / "asked").read_text().splitlines())
    assert asked == ["lxc-stop -n compute2 --kill", "lxc-stop -n controller --kill"]


@pytest.fixture
def larger(lab: Lab, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The same lab with a plan that has compute2 as well; Vagrant writes the container's configuration."""
    plan = dataclasses.replace(make_plan("multi-compute"), lab=lab.plan.lab)
    made = Lab(plan, lab.golden)

    class Vagrant:
        def __init__(self, settings: dict[str, Any], log: Path) -> None:
            self.names = [node["name"] for node in settings["nodes"]]

        def up(self, vm_name: str) -> None:
            made.asked.append(f"vagrant up {vm_name} of {' '.join(self.names)}")
            rootfs = (made.directory / "rootfs" / vm_name).read_text()
            files.write(made.directory / "lxc" / vm_name / "config", f"lxc.rootfs.path = {rootfs}\n")

    monkeypatch.setattr(vagrant, "Vagrant", Vagrant)
    monkeypatch.setattr(namespace, "create", lambda plan, log: None)
    monkeypatch.setattr(seed, "write", lambda plan: None)
    return made


def test_an_added_node_lies_on_the_golden_image_beside_the_others(lab: Lab, larger: Lab) -> None:
    (lab.upper() / "file").write_text("of the controller")
    restore_point = save(lab, "before")
    restore(lab, "before")
    stacks = {node: lab.stack(node) for node in NODES}
    larger.add(larger.plan.topology.nodes[2:])
    assert larger.asked == ["vagrant up compute2 of controller compute1 compute2"]
    assert {node: lab.stack(node) for node in NODES} == stacks
    assert larger.look("file") == "of the controller"
    assert larger.look("file", "compute2") is None
    assert all(Path(layer).is_dir() for layer in larger.stack("compute2"))
    assert larger.exists()
    (larger.upper("compute2") / "file").write_text("of compute2")
    grown = save(larger, "grown")
    restore(larger, "grown")
    assert larger.look("file", "compute2") == "of compute2"
    assert grown.payload != restore_point.payload


def test_a_dropped_node_leaves_nothing(lab: Lab, larger: Lab) -> None:
    save(lab, "before")
    before = {path.relative_to(lab.directory) for path in lab.directory.rglob("*")}
    larger.add(larger.plan.topology.nodes[2:])
    files.write(lab.directory / "vagrant/state/machines/compute2/lxc/id", "1")
    files.write(lab.directory / "vagrant/state/machines/compute1/lxc/id", "1")
    lab.drop()
    assert lab.asked[-1] == "kill"
    left = {path.relative_to(lab.directory) for path in lab.directory.rglob("*")} - before
    assert [path for path in left if "compute2" in str(path)] == []
    assert (lab.directory / "vagrant/state/machines/compute1/lxc/id").exists()
    restore(lab, "before")
