"""Labs of other shapes, for real: a network node of its own, several computes, one more while it runs."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.driving import PROJECT, Ran, down, invoke, invoke_and_kill, lab_name

pytestmark = [pytest.mark.lab, pytest.mark.matrix]


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[str]:
    name = lab_name(f"t-{request.node.name.removeprefix('test_').replace('_', '-')[:18].strip('-')}")
    down(name)
    yield name
    down(name)


def client(lab: str, *words: str) -> Ran:
    ran = invoke("openstack", "--lab", lab, "--", *words)
    assert ran.code == 0, ran.output
    return ran


def agents(lab: str) -> set[tuple[str, str]]:
    """Each network agent that is alive, without its domain."""
    listed = client(
        lab, "network", "agent", "list", "-f", "json", "-c", "Binary", "-c", "Host", "-c", "Alive"
    )
    rows = json.loads(listed.output[listed.output.index("[") :])
    return {(row["Binary"], row["Host"].partition(".")[0]) for row in rows if row["Alive"] is True}


def computes(lab: str) -> set[str]:
    """The compute hosts that are up."""
    listed = client(lab, "compute", "service", "list", "--service", "nova-compute", "-f", "json")
    rows = json.loads(listed.output[listed.output.index("[") :])
    return {row["Host"].partition(".")[0] for row in rows if row["State"] == "up"}


def boot(lab: str, name: str, host: str) -> str:
    """An instance of the probe image on that host, on the provider network; returns its address."""
    made = client(
        lab,
        *("server", "create", name, "--image", "stacklab-probe", "--flavor", "m1.tiny"),
        *("--network", "provider", "--availability-zone", f"nova:{host}.lab.test", "--wait"),
        *("-f", "value", "-c", "addresses"),
    )
    found = re.search(r"203\.0\.113\.\d+", made.output)
    assert found, made.output
    return found[0]


def inside(lab: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/stacklab-{lab}", *words], capture_output=True, text=True, check=False
    )


def answers(lab: str, address: str) -> bool:
    """Whether it answers a ping within four minutes."""
    end = time.monotonic() + 240
    # One ping at a time: until the instance is there, the first answer is that it cannot be reached.
    while inside(lab, "ping", "-q", "-c", "1", "-W", "2", address).returncode != 0:
        if time.monotonic() > end:
            return False
    return True


class Pings:
    """One ping a second, as long as the block runs."""

    def __init__(self, lab: str, address: str) -> None:
        self._argv = ["nsenter", f"--net=/run/netns/stacklab-{lab}", "ping", "-i", "1", "-q", address]
        self.sent = self.received = 0

    def __enter__(self) -> Pings:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(2)
        said = self._process.communicate(timeout=30)[0]
        found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
        assert found, said
        self.sent, self.received = int(found[1]), int(found[2])


def topology(tmp_path: Path, count: int) -> str:
    """multi-compute with so many compute nodes."""
    text = (PROJECT / "topologies" / "multi-compute.yaml").read_text(encoding="utf-8")
    file = tmp_path / "lab.yaml"
    file.write_text(text.replace("count: 2", f"count: {count}"), encoding="utf-8")
    return str(file)


def test_three_node(lab: str) -> None:
    ran = invoke("up", "--topology", "three-node", "--lab", lab)
    assert ran.code == 0, ran.output
    assert "floating IP" in ran.output
    assert agents(lab) == {
        *((f"neutron-{kind}-agent", "network") for kind in ("dhcp", "l3", "metadata", "openvswitch")),
        ("neutron-openvswitch-agent", "compute1"),
    }
    assert computes(lab) == {"compute1"}


def test_one_more_compute_node(lab: str, tmp_path: Path) -> None:
    """From one to two while an instance runs: it is pinged meanwhile, and the new node takes another."""
    ran = invoke("up", "--topology", topology(tmp_path, 1), "--lab", lab)
    assert ran.code == 0, ran.output
    before = boot(lab, "before", "compute1")
    assert answers(lab, before)
    since = invoke("ssh", "compute1", "-c", "uptime -s; cat /etc/machine-id", "--lab", lab).output
    with Pings(lab, before) as pings:
        ran = invoke("up", "--topology", topology(tmp_path, 2), "--lab", lab)
    assert ran.code == 0, ran.output
    assert "adding compute2; what runs keeps running" in ran.output
    assert "controller manifest" not in ran.output
    print(f"{pings.received} of {pings.sent} pings were answered")
    # The host is busy meanwhile; a restart of the instance, its node or its switch would cost many more.
    assert pings.sent > 60 and pings.received >= pings.sent - 10
    assert invoke("ssh", "compute1", "-c", "uptime -s; cat /etc/machine-id", "--lab", lab).output == since
    assert computes(lab) == {"compute1", "compute2"}
    assert ("neutron-openvswitch-agent", "compute2") in agents(lab)
    after = boot(lab, "after", "compute2")
    assert answers(lab, after) and answers(lab, before)
    again = invoke("up", "--topology", topology(tmp_path, 2), "--lab", lab)
    assert "is up and healthy" in again.output
    ran = invoke("reset", "--lab", lab)
    assert ran.code == 0, ran.output
    assert invoke("verify", "--lab", lab).code == 0
    assert computes(lab) == {"compute1", "compute2"}


def test_two_compute_nodes_from_the_start(lab: str) -> None:
    ran = invoke("up", "--topology", "multi-compute", "--lab", lab)
    assert ran.code == 0, ran.output
    assert computes(lab) == {"compute1", "compute2"}
    for host in ("compute1", "compute2"):
        assert answers(lab, boot(lab, f"on-{host}", host))


def test_a_growth_that_is_killed_is_taken_back(lab: str, tmp_path: Path) -> None:
    ran = invoke("up", "--topology", topology(tmp_path, 1), "--lab", lab)
    assert ran.code == 0, ran.output
    grow = ("up", "--topology", topology(tmp_path, 2), "--lab", lab)
    invoke_and_kill(*grow, at="applying the compute manifest on compute2", after=5.0)
    ran = invoke("up", "--topology", topology(tmp_path, 1), "--lab", lab)
    assert ran.code == 0, ran.output
    assert "taking back the growth that did not end" in ran.output
    assert computes(lab) == {"compute1"}
