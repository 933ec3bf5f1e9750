"""Killed anywhere, interrupted, reset ten times, handed over: what a lab survives. About an hour and a half.

One lab serves all tests, which run in this order; the first one that fails stops the rest. A lab
that an earlier run of these tests left (STACKLAB_TEST_KEEP=1) is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stacklab import files, stages
from tests.lab.driving import (
    PROJECT,
    Ran,
    down,
    invoke,
    invoke_and_interrupt,
    invoke_and_kill,
    lab_name,
)

pytestmark = [pytest.mark.lab, pytest.mark.matrix]

LAB, OTHER = lab_name("crash"), lab_name("crash-2")
HERE, THERE = ("--lab", LAB), ("--lab", OTHER)
UP = ("up", "--topology", "two-node", *HERE)
DIRECTORY = PROJECT / ".stacklab" / "labs" / LAB
NODES = ("controller", "compute1")


@pytest.fixture(autouse=True)
def stop_at_first_failure(request: pytest.FixtureRequest) -> Iterator[None]:
    if getattr(request.module, "_failed", False):
        pytest.skip("a test that this one builds on failed")
    failed = request.session.testsfailed
    yield
    request.module._failed = request.session.testsfailed > failed


@pytest.fixture(scope="module", autouse=True)
def gone_after() -> Iterator[None]:
    yield
    down(*(() if os.environ.get("STACKLAB_TEST_KEEP") else (LAB,)), OTHER)


def nothing_is_half(directory: Path = DIRECTORY) -> list[str]:
    """The names of the snapshots, each of which is whole: of every node all the layers that it needs."""
    names = []
    for path in (directory / "snapshots").glob("[!.]*.json"):
        snapshot = json.loads(path.read_text(encoding="utf-8"))
        names.append(snapshot["name"])
        for layer in snapshot["payload"]["layers"]:
            for node in NODES:
                upper = directory / "layers" / layer / node / "upper"
                # A half copy lacks what cp comes to last; every node has written to both.
                assert (upper / "etc" / "machine-id").is_file() or layer != snapshot["payload"]["layers"][-1]
                assert (upper / "var" / "log").is_dir(), f"{snapshot['name']}: {upper}"
    return names


def whole_again(*, verified: bool = True) -> Ran:
    """The next `up` completes, and the lab verifies."""
    nothing_is_half()
    ran = invoke(*UP)
    assert ran.code == 0, ran.output
    assert set(stages.NAMES) <= set(nothing_is_half())
    if verified:
        assert invoke("verify", *HERE).code == 0
    return ran


def kill_each(kills: tuple[tuple[str, float], ...]) -> None:
    """Kill one `up` after the other, each at a line and some seconds past it. All begin where they must."""
    for line, after in kills:
        invoke_and_kill(*UP, at=line, after=after)
        nothing_is_half()


# Each `up` gets past the kill before it: it has to, to come to its own.
ON_THE_WAY = (
    ("stage nodes", 0.0),
    ("creating the nodes with Vagrant", 1.5),
    ("creating the nodes with Vagrant", 5.0),
    ("checking the nodes", 0.5),
    ("snapshot nodes", 0.0),
    ("snapshot nodes", 0.3),
    ("stage openstack", 0.0),
    ("restoring the snapshot nodes", 0.0),
    ("restoring the snapshot nodes", 0.6),
    ("checking the nodes", 0.5),  # of the restore
    ("stage openstack", 8.0),
    ("applying the network manifest", 3.0),
)


def test_killed_on_the_way() -> None:
    if (DIRECTORY / "snapshots" / "verified.json").is_file():
        pytest.skip("there is a lab already")
    kill_each(ON_THE_WAY)


def test_ctrl_c() -> None:
    if (DIRECTORY / "snapshots" / "verified.json").is_file():
        pytest.skip("there is a lab already")
    ran = invoke_and_interrupt(*UP, at="applying the controller manifest", after=20)
    assert ran.code == 130
    assert "interrupted in the middle of the stage openstack; kept: the snapshots nodes" in ran.output
    assert f"`invoke up --topology topologies/two-node.yaml --lab {LAB}` goes on after the stage nodes" in (
        ran.output
    )
    for node in NODES:
        left = on(node, "pgrep -fa '[p]ackstack --answer-file|[p]uppet apply' || true")
        assert left == "", f"{node}: {left}"
    page = report(DIRECTORY)
    assert ">interrupted<" in page


# The first goes through all of the stage openstack, those after it only through what is left.
LATER = (
    ("stage cloud", 0.0),
    ("provider network, tenant network", 1.0),
    ("snapshot cloud", 0.0),
    ("snapshot cloud", 0.4),
    ("stage images", 0.2),
    ("snapshot images", 0.2),
)
LAST = (("stage verified", 0.0), ("verifying ", 12.0), ("snapshot verified", 0.3))


def test_killed_further_on() -> None:
    if not (DIRECTORY / "snapshots" / "verified.json").is_file():
        kill_each(LATER)
    whole_again()


def test_killed_in_the_last_stage() -> None:
    for words in (("delete", "verified"), ("restore", "images")):
        assert invoke(f"snapshots.{words[0]}", words[1], *HERE).code == 0
    kill_each(LAST)
    whole_again()


def test_one_change_reruns_only_what_depends_on_it(tmp_path: Path) -> None:
    text = (PROJECT / "topologies" / "two-node.yaml").read_text(encoding="utf-8")
    changed = tmp_path / "two-node.yaml"
    changed.write_text(text.replace("203.0.113.250", "203.0.113.240"), encoding="utf-8")
    assert changed.read_text() != text
    again = ("up", "--topology", str(changed), *HERE)
    said = invoke(*again, "--dry-run").output
    assert re.search(r"^stage openstack \(\w+\): there already \(snapshot openstack\)", said, re.MULTILINE)
    assert "provider.pool_end: 203.0.113.250 → 203.0.113.240" in said
    assert re.search(r"^stage images \(\w+\): to be done: lies on the stage cloud", said, re.MULTILINE)
    ran = invoke(*again)
    assert ran.code == 0
    assert re.findall(r"^stage (\w+)$", ran.output, re.MULTILINE) == ["cloud", "images", "verified"]
    assert "restoring the snapshot openstack" in ran.output
    pools = invoke("openstack", *HERE, "--", "subnet", "show", "provider", "-c", "allocation_pools").output
    assert "203.0.113.240" in pools
    assert invoke(*UP).code == 0  # as it was, for the tests that follow


# -- what users do with a lab that is whole ------------------------------------------------

SAVE, RESTORE = ("snapshots.save", "mine", *HERE), ("snapshots.restore", "mine", *HERE)


def test_a_killed_save_is_no_snapshot_or_a_whole_one() -> None:
    for after in (0.0, 0.3, 0.8):
        invoke_and_kill(*SAVE, at="snapshot mine", after=after)
        nothing_is_half()
        assert "nothing" not in invoke(*UP).output
    assert invoke(*SAVE).code == 0
    assert "mine" in nothing_is_half()
    whole_again()


@pytest.mark.parametrize(
    ("line", "after"),
    [("restoring the snapshot mine", 0.0), ("restoring the snapshot mine", 0.8), ("settling", 4.0)],
)
def test_a_killed_restore_is_made_up_for(line: str, after: float) -> None:
    invoke_and_kill(*RESTORE, at=line, after=after)
    assert "restoring the snapshot" in whole_again(verified=line == "settling").output


def test_a_killed_export_leaves_no_file(tmp_path: Path) -> None:
    target = tmp_path / "lab.file"
    for after in (0.0, 0.6):
        invoke_and_kill("snapshots.export", str(target), *HERE, at="writing", after=after)
        assert not target.exists()
    assert invoke("snapshots.export", str(target), *HERE).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lab.file"]


def test_two_labs_at_once_the_second_one_handed_over_and_killed(tmp_path: Path) -> None:
    target = tmp_path / "lab.file"
    assert invoke("snapshots.export", str(target), *HERE).code == 0
    take = ("snapshots.import", str(target), *THERE)
    directory = DIRECTORY.with_name(OTHER)
    invoke_and_kill(*take, at="unpacking the lab", after=0.1)
    assert not directory.exists()
    invoke_and_kill(*take, at="creating the nodes", after=3.0)
    assert nothing_is_half(directory) == ["verified"]
    refused = invoke(*take)
    assert refused.code == 2
    assert f"there is a lab {OTHER} already" in refused.output
    second = ("up", "--topology", "two-node", *THERE)
    ran = invoke(*second)
    assert ran.code == 0, ran.output
    assert "restoring the snapshot verified" in ran.output
    assert "stage " not in ran.output
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda where: invoke("verify", *where), (HERE, THERE)))
    assert [one.code for one in both] == [0, 0]
    # What is done in one is not seen in the other.
    assert invoke("openstack", *THERE, "--", "project", "create", "of-the-second").code == 0
    assert "of-the-second" not in invoke("openstack", *HERE, "--", "project", "list").output
    secrets = [json.loads((path / "secrets.json").read_text()) for path in (DIRECTORY, directory)]
    assert secrets[0] == secrets[1]
    assert f"{DIRECTORY}/" not in (directory / "plan.json").read_text()
    before = state()
    assert invoke("down", *THERE).code == 0
    assert not directory.exists()
    assert not Path(f"/run/netns/stacklab-{OTHER}").exists()
    assert state() == before
    assert invoke("verify", *HERE).code == 0


# Where services write that they are alive, and what agents note when they come back.
HEARTBEATS = re.compile(
    r"^INSERT INTO `(services|compute_nodes|agents|standardattributes|provisioningblocks|"
    r"ml2_port_bindings|ovn_hash_ring|token|cache|sessions?|django_session)` "
)
DUMP = (
    "for d in $(mysql -N -e 'show databases' | grep -Ev '^(mysql|sys|.*_schema)$'); "
    'do echo "-- database $d"; mysqldump --skip-dump-date --skip-extended-insert --skip-comments '
    '--order-by-primary --single-transaction "$d"; done'
)


def on(node: str, command: str) -> str:
    """What a command on a node says; it must succeed."""
    argv = ["ssh", "-F", str(DIRECTORY / "ssh_config"), node, command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{node}: {command}: {done.stderr}"
    return done.stdout.strip()


def state() -> dict[str, Any]:
    """Checksums of every table (but for heartbeats) and of every image file."""
    tables: dict[str, Any] = {}
    database = ""
    for line in on("controller", DUMP).splitlines():
        if line.startswith("-- database "):
            database = line.removeprefix("-- database ")
        elif line.startswith("INSERT") and not HEARTBEATS.match(line):
            table = f"{database}.{line.split('`')[1]}"
            tables.setdefault(table, hashlib.sha256()).update(line.encode())
    found = {name: value.hexdigest() for name, value in tables.items()}
    found["images"] = on("controller", "cd /var/lib/glance/images && sha512sum * | sort")
    assert len(found["images"].splitlines()) >= 1
    assert len(found) > 50
    return found


def disk() -> int:
    done = subprocess.run(["du", "-s", "-B1", str(DIRECTORY)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def test_ten_resets_in_a_row() -> None:
    assert invoke("reset", *HERE).code == 0
    good, size = state(), disk()
    payload = json.loads((DIRECTORY / "snapshots" / "verified.json").read_text())["payload"]
    below = [DIRECTORY / "layers" / name for name in payload["layers"]]
    layers = [files.tree_digest(path) for path in below]
    seconds, grown = [], []
    for number in range(10):
        for node in NODES:
            on(node, f"echo {number} > /root/marker; head -c 30000000 /dev/urandom > /var/tmp/rubbish; sync")
        on("controller", "mysql keystone -e 'create table marker (a int)'; rm /var/lib/glance/images/*")
        start = time.monotonic()
        assert invoke("reset", *HERE).code == 0
        seconds.append(round(time.monotonic() - start, 1))
        for node in NODES:
            assert on(node, "ls /root/marker /var/tmp/rubbish 2>/dev/null || true") == ""
        now = state()
        assert {name for name in now.keys() | good.keys() if now.get(name) != good.get(name)} == set()
        grown.append(round(disk() / size, 3))
        assert invoke("verify", *HERE).code == 0
        assert invoke("reset", *HERE).code == 0 if number == 9 else True
    print(f"ten resets: {seconds} s; disk, times the first: {grown}")
    assert max(grown) <= 1.05
    assert [files.tree_digest(path) for path in below] == layers
    assert disk() <= size * 1.05


def report(directory: Path) -> str:
    """The lab's report, rendered by a browser where there is one."""
    ran = invoke("report", "--lab", directory.name)
    assert ran.code == 0
    path = directory / "report.html"
    assert ran.output.strip().endswith(str(path))
    return path.read_text(encoding="utf-8")
