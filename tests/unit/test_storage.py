"""Storage that moves to nodes of its own: what runs where, in which order, and the scripts that do it."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stacklab import files, lab, remote, storage
from stacklab.base import Golden
from stacklab.errors import LabError
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.run import Result

Maker = Callable[..., Plan]
SCRIPTS = files.PROJECT / "scripts" / "storage"


class Nodes:
    """Runs no script, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.disks: dict[str, str] = {}

    def __call__(self, plan: Plan, node: Node, name: str, *args: str, **_: Any) -> Result:
        assert (remote.SCRIPTS / name).is_file()
        self.ran.append(" ".join([f"{node.name}: {name}", *args]))
        return Result(0, self.disks[node.name] if name == "storage/disks" else "")


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    made = Nodes()
    monkeypatch.setattr(remote, "script", made)
    return made


def changed(plan: Plan, name: str, **changes: Any) -> Plan:
    """The plan with one of its nodes changed."""
    found = [dataclasses.replace(n, **changes) if n.name == name else n for n in plan.topology.nodes]
    return dataclasses.replace(plan, topology=dataclasses.replace(plan.topology, nodes=tuple(found)))


def test_in_containers(make_plan: Maker, nodes: Nodes) -> None:
    plan = make_plan("storage")
    storage.place(plan)
    swift = f"'{storage._SWIFT}'"
    assert nodes.ran == [
        "controller: let-in 10.0.0.41 10.0.0.51",
        "compute1: let-in 10.0.0.41 10.0.0.51",
        "block1: let-in 10.0.0.11 10.0.0.31 10.0.0.51",
        "object1: let-in 10.0.0.11 10.0.0.31 10.0.0.41",
        "controller: storage/hand-over 10.0.0.41 /etc/cinder",
        "block1: storage/volumes 10.0.0.11 10.0.0.41",
        f"block1: storage/services on '{storage._CINDER}'",
        f"controller: storage/services off '{storage._CINDER}'",
        "controller: storage/retire-volumes controller.lab.test",
        "controller: storage/rings 10.0.0.11 10.0.0.51:disk1:1:10",
        f"controller: storage/hand-over 10.0.0.51 {' '.join(storage._SWIFT_FILES)}",
        "object1: storage/objects 10.0.0.11 10.0.0.51 disk1",
        f"object1: storage/services on '{storage._SWIFT}|{storage._RSYNC}'",
        f"controller: storage/services off {swift}",
        f"controller: storage/services on '{storage._PROXY}'",
    ]


def test_in_machines(make_plan: Maker, nodes: Nodes) -> None:
    plan = dataclasses.replace(make_plan("storage"), provider="libvirt")
    plan = changed(plan, "object1", extra_disks=(10, 20))
    nodes.disks = {"block1": "/dev/vdb\n", "object1": "/dev/vdb\n/dev/vdc\n"}
    storage.place(plan)
    assert "block1: storage/volumes 10.0.0.11 10.0.0.41 /dev/vdb" in nodes.ran
    assert "controller: storage/rings 10.0.0.11 10.0.0.51:disk1:1:10 10.0.0.51:disk2:1:20" in nodes.ran
    assert "object1: storage/objects 10.0.0.11 10.0.0.51 disk1=/dev/vdb disk2=/dev/vdc" in nodes.ran
    nodes.disks["object1"] = "/dev/vdb\n"
    with pytest.raises(LabError, match="object1 has the extra disks /dev/vdb, and its topology gives it 2"):
        storage.place(plan)


def test_a_controller_that_keeps_its_own(make_plan: Maker, nodes: Nodes) -> None:
    plan = changed(
        make_plan("storage"),
        "controller",
        roles=("controller", "network", "block-storage", "object-storage"),
    )
    storage.place(plan)
    assert not [line for line in nodes.ran if " off " in line or "retire" in line]
    assert "controller: storage/rings none 10.0.0.51:disk1:2:10" in nodes.ran
    assert [node.name for node in storage.keepers(plan.topology, storage.OBJECT)] == ["controller", "object1"]


def test_where_nothing_moves(two_node: Plan, nodes: Nodes) -> None:
    storage.place(two_node)
    assert nodes.ran == []
    assert (storage.inputs(two_node), storage.commands(two_node)) == ({}, ())
    assert storage.keepers(two_node.topology, storage.BLOCK) == (two_node.topology.controller,)


def test_the_stage_is_another_one_when_the_scripts_are(make_plan: Maker, two_node: Plan) -> None:
    def stage(plan: Plan) -> Any:
        return lab.stages_of(plan, Golden("image", "key", Path("/image")), print)[1]

    moved = stage(make_plan("storage"))
    assert moved.inputs["storage nodes"] == files.tree_digest(SCRIPTS)
    assert moved.commands[-2:] == (
        "on block1: scripts/storage/volumes",
        "on object1: scripts/storage/objects",
    )
    # Labs without such nodes keep the key that they had.
    assert set(stage(two_node).inputs) == {"version of the stage", "answer file"}


def test_servers(make_plan: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan("storage")
    up = {("10.0.0.51", 6000), ("10.0.0.11", 6002), ("10.0.0.41", 6000)}
    monkeypatch.setattr(storage, "_listens", lambda *place: place in up)
    assert [(name, node.name, found) for name, node, found in storage.servers(plan)] == [
        ("swift-object-server", "object1", True),
        ("swift-container-server", "object1", False),
        ("swift-account-server", "object1", False),
        ("swift-account-server", "controller", True),
    ]


def test_what_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert storage._listens("127.0.0.1", port)
    assert not storage._listens("127.0.0.1", port)


class Machine:
    """A directory in place of /etc, and programs that write down what they are called with."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "bin").mkdir()
        (place / "etc/cinder").mkdir(parents=True)
        self.said = place / "said"
        self.said.write_text("")

    def program(self, name: str, body: str = "") -> None:
        path = self.place / "bin" / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.said}\n{body}\n')
        path.chmod(0o755)

    def run(self, name: str, *args: str) -> subprocess.CompletedProcess[str]:
        text = (SCRIPTS / name).read_text().replace("/etc/cinder", str(self.place / "etc/cinder"))
        return subprocess.run(
            ["bash", "-s", "--", *args],
            input=text,
            env={"PATH": f"{self.place}/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        return [line.strip() for line in self.said.read_text().splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


UNITS = """\
cinder-scheduler.service enabled enabled
cinder-volume.service disabled enabled
rsync.service disabled enabled
swift-account.service disabled enabled
swift-account-reaper.service disabled enabled
swift-account-reaper@.service disabled enabled
swift-container-reconciler.service disabled enabled
swift-object-expirer.service enabled enabled
swift-object-replicator.service disabled enabled
swift-proxy.service enabled enabled
"""


@pytest.mark.parametrize(
    ("prefix", "pattern", "units"),
    [
        ("", storage._CINDER, "cinder-volume.service"),
        ("openstack-", storage._CINDER, "openstack-cinder-volume.service"),
        (
            "",
            f"{storage._SWIFT}|{storage._RSYNC}",
            "rsync.service swift-account.service swift-account-reaper.service"
            " swift-object-replicator.service",
        ),
        ("", storage._PROXY, "swift-proxy.service"),
    ],
)
def test_services(prefix: str, pattern: str, units: str, machine: Machine) -> None:
    listed = UNITS.replace("cinder-", f"{prefix}cinder-")
    machine.program("systemctl", f"[ $1 != list-unit-files ] || cat <<'E'\n{listed}E")
    assert machine.run("services", "on", pattern).returncode == 0
    assert machine.run("services", "off", pattern).returncode == 0
    assert [call for call in machine.calls() if "list-" not in call] == [
        f"systemctl enable {units}",
        f"systemctl restart {units}",
        f"systemctl disable --now {units}",
    ]


def test_services_that_are_not_in_the_image(machine: Machine) -> None:
    machine.program("systemctl", "echo ssh.service enabled enabled")
    ran = machine.run("services", "on", storage._CINDER)
    assert ran.returncode == 1
    assert "no unit matches" in ran.stderr


def test_disks(machine: Machine) -> None:
    rows = "\n".join(
        (
            "/dev/vda disk ",
            "/dev/vdb disk LVM2_member",
            "/dev/vdc disk ",
            "/dev/vdd disk xfs",
            "/dev/sr0 rom iso9660",
            "/dev/loop0 loop ext4",
            "/dev/zram0 disk ",
        )
    )
    machine.program(
        "lsblk",
        f"case $* in *vda) printf 'disk\\npart\\n' ;; *vd?) echo disk ;; *) cat <<'E'\n{rows}\nE\nesac",
    )
    assert machine.run("disks").stdout.split() == ["/dev/vdb", "/dev/vdc"]


NFS = """\
[DEFAULT]
enabled_backends = nfs
transport_url = rabbit://guest:guest@10.0.0.11:5672/
[nfs]
nfs_shares_config={place}/nfs_shares.conf
"""


def test_volumes_in_a_share(machine: Machine) -> None:
    place = machine.place / "etc/cinder"
    config = NFS.format(place=place)
    (place / "cinder.conf").write_text(config)
    (place / "nfs_shares.conf").write_text("10.0.0.11:/srv/cinder\n192.0.2.7:/export\n10.0.0.111:/other")
    for _ in range(2):
        ran = machine.run("volumes", "10.0.0.11", "10.0.0.41")
        assert (ran.returncode, ran.stderr) == (0, "")
        shares = (place / "nfs_shares.conf").read_text().split()
        assert shares == ["10.0.0.41:/srv/cinder", "192.0.2.7:/export", "10.0.0.111:/other"]
        assert (place / "cinder.conf").read_text() == config  # databases and queues stay where they are


LVM = """\
[DEFAULT]
enabled_backends=lvm
my_ip=192.0.2.2
glance_host=10.0.0.11
[lvm]
target_ip_address=10.0.0.11
target_helper=lioadm
volume_group=cinder-volumes
"""


def test_volumes_on_disks(machine: Machine) -> None:
    (machine.place / "etc/cinder/cinder.conf").write_text(LVM)
    groups = machine.place / "groups"
    groups.write_text("")
    machine.program("vgs", f'grep -q "^$1 " {groups}')
    machine.program("pvs", f'sed -n "s|^\\(.*\\) ${{@: -1}}$|  \\1|p" {groups}')
    for name in ("vgcreate", "vgextend"):
        machine.program(name, f'echo "$1 $2" >> {groups}')
    machine.program("systemctl")
    for _ in range(2):
        ran = machine.run("volumes", "10.0.0.11", "10.0.0.41", "/dev/vdb", "/dev/vdc")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert groups.read_text() == "cinder-volumes /dev/vdb\ncinder-volumes /dev/vdc\n"
    config = (machine.place / "etc/cinder/cinder.conf").read_text()
    own = LVM.replace("target_ip_address=10.0.0.11", "target_ip_address=10.0.0.41")
    assert config == own.replace("my_ip=192.0.2.2", "my_ip=10.0.0.41")
    assert machine.calls().count("systemctl enable --now target") == 2
    assert machine.calls().count("vgcreate cinder-volumes /dev/vdb") == 1
