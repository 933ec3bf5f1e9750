"""Snapshots of nodes without OpenStack: killed, interrupted, piled up, handed over. Some five minutes.

What `test_crash_matrix` does with a whole cloud is done here with what comes before Packstack: the
provider's part of it, in a tenth of the time. The tests build on one another.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.driving import PROJECT, down, invoke, invoke_and_interrupt, invoke_and_kill, lab_name

pytestmark = [pytest.mark.lab, pytest.mark.matrix]

LAB, OTHER = lab_name("bare"), lab_name("bare-2")
HERE, THERE = ("--lab", LAB), ("--lab", OTHER)
DIRECTORY = PROJECT / ".stacklab" / "labs" / LAB
NODES = ("controller", "compute1")


@pytest.fixture(scope="module", autouse=True)
def bare_nodes() -> Iterator[None]:
    down(LAB, OTHER)
    try:
        invoke_and_kill("up", "--topology", "two-node", *HERE, at="stage openstack", after=0.0)
        healthy()
        yield
    finally:
        down(LAB, OTHER)


def snapshots(directory: Path = DIRECTORY) -> dict[str, list[str]]:
    """The layers of each snapshot by its name; all of them are there, of every node."""
    found = {}
    for path in (directory / "snapshots").glob("[!.]*.json"):
        snapshot = json.loads(path.read_text(encoding="utf-8"))
        found[snapshot["name"]] = snapshot["payload"]["layers"]
        for layer in snapshot["payload"]["layers"]:
            for node in NODES:
                assert (directory / "layers" / layer / node / "upper" / "var" / "log").is_dir(), snapshot
    return found


def healthy(to: str = "nodes", lab: str = LAB) -> None:
    """The next reset completes, and the nodes run."""
    assert invoke("reset", "--to", to, "--lab", lab).code == 0
    state: dict[str, Any] = json.loads(invoke("status", "--json", "--lab", lab).output)
    assert [node["running"] for node in state["nodes"]] == [True, True]
    assert state["working"] == ""


def on(node: str, command: str) -> str:
    """What a command on a node says; it must succeed."""
    argv = ["ssh", "-F", str(DIRECTORY / "ssh_config"), node, command]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_a_killed_save() -> None:
    for after in (0.0, 0.15, 0.4):
        invoke_and_kill("snapshots.save", "mine", *HERE, at="snapshot mine", after=after)
        assert set(snapshots()) <= {"nodes", "mine"}
    healthy()
    assert invoke("snapshots.save", "mine", *HERE).code == 0


@pytest.mark.parametrize(
    ("line", "after"),
    [("restoring the snapshot", 0.0), ("restoring the snapshot", 0.8), ("checking the nodes", 0.5)],
)
def test_a_killed_restore(line: str, after: float) -> None:
    invoke_and_kill("snapshots.restore", "mine", *HERE, at=line, after=after)
    assert set(snapshots()) == {"nodes", "mine"}
    healthy()


def test_ctrl_c_in_a_restore() -> None:
    ran = invoke_and_interrupt("snapshots.restore", "mine", *HERE, at="checking the nodes", after=0.3)
    assert ran.code == 130
    assert "interrupted in the middle of the restore of mine; kept: the snapshots nodes, mine" in ran.output
    healthy()


def test_snapshots_over_snapshots() -> None:
    for number in range(8):
        on("controller", f"echo {number} > /root/file-{number}")
        assert invoke("snapshots.save", f"s{number}", *HERE).code == 0
        assert invoke("snapshots.restore", f"s{number}", *HERE).code == 0
    assert on("controller", "cat /root/file-?").split() == [str(number) for number in range(8)]
    lengths = [len(snapshots()[f"s{number}"]) for number in range(8)]
    assert max(lengths) <= 7
    assert lengths[-1] < lengths[4], "they were never flattened"


def test_ten_resets_take_no_disk() -> None:
    def used() -> int:
        said = subprocess.run(
            ["du", "-s", "-B1", str(DIRECTORY)], capture_output=True, text=True, check=True
        ).stdout
        return int(said.split()[0])

    healthy("s7")
    first = used()
    for _ in range(10):
        for node in NODES:
            on(node, "head -c 30000000 /dev/urandom > /var/tmp/rubbish; touch /root/marker; sync")
        assert invoke("reset", "--to", "s7", *HERE).code == 0
        for node in NODES:
            on(node, "test ! -e /root/marker -a ! -e /var/tmp/rubbish")
        assert used() <= first * 1.05


def test_handed_over_and_killed_meanwhile(tmp_path: Path) -> None:
    target, directory = tmp_path / "bare.lab", DIRECTORY.with_name(OTHER)
    assert invoke("snapshots.export", str(target), "--snapshot", "nodes", *HERE).code == 0
    take = ("snapshots.import", str(target), *THERE)
    invoke_and_kill(*take, at="unpacking the lab", after=0.05)
    assert not directory.exists()
    invoke_and_kill(*take, at="creating the nodes", after=3.0)
    assert set(snapshots(directory)) == {"nodes"}
    assert invoke(*take).code == 2  # there is a lab of that name
    healthy(lab=OTHER)
    healthy("s7")  # both at once
    secrets = [(path / "secrets.json").read_text() for path in (DIRECTORY, directory)]
    assert secrets[0] == secrets[1]
    assert str(DIRECTORY) + "/" not in (directory / "plan.json").read_text()
    assert invoke("down", *THERE).code == 0
    assert not directory.exists()
    assert not Path(f"/run/netns/stacklab-{OTHER}").exists()
    assert on("controller", "ping -q -c 1 -W 5 10.0.0.31")  # the other one is as it was
