"""The storage topology, for real: volumes on block1 only, objects on object1 only, and a stray is found."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.lab.driving import down, footprint, invoke, lab_name, left_of

pytestmark = [pytest.mark.lab, pytest.mark.matrix]
LAB = lab_name("m-storage")
ROWS = ("available, on block1", "volume attached elsewhere", "object got", "object1, disk1", "floating IP")
CINDER = "cinder-volume.service"
SWIFT = ("swift-account", "swift-container", "swift-object", "swift-object-replicator")


@pytest.fixture
def lab() -> Iterator[str]:
    down(LAB)
    yield LAB
    down(LAB)


def volume_hosts() -> set[str]:
    """Where Cinder knows a cinder-volume, without backend and domain."""
    listed = invoke(
        *("openstack", "--lab", LAB, "--"),
        *("volume", "service", "list", "--service", "cinder-volume", "-f", "json"),
    )
    assert listed.code == 0, listed.output
    rows = json.loads(listed.output[listed.output.index("[") :])
    return {row["Host"].partition("@")[0].partition(".")[0] for row in rows}


def active(node: str, *units: str) -> list[str]:
    """What systemd says of each unit: whether it runs, and whether it would after a start."""
    words = " ".join(units)
    command = f"systemctl is-active {words}; systemctl is-enabled {words}; true"
    return invoke("ssh", node, "--command", command, "--lab", LAB).output.split()


def is_moved() -> None:
    """All of it is on its own node, and none of it on the controller."""
    assert volume_hosts() == {"block1"}
    assert active("block1", CINDER) == ["active", "enabled"]
    assert active("controller", CINDER) == ["inactive", "disabled"]
    assert active("object1", *SWIFT, "rsync") == ["active"] * 5 + ["enabled"] * 5
    assert active("controller", *SWIFT) == ["inactive"] * 4 + ["disabled"] * 4
    assert active("controller", "swift-proxy") == ["active", "enabled"]


def test_storage(lab: str) -> None:
    before = footprint()
    ran = invoke("up", "--topology", "storage", "--lab", lab)
    assert ran.code == 0, ran.output
    assert all(row in ran.output for row in ROWS), ran.output
    is_moved()
    assert invoke("ssh", "controller", "--command", f"systemctl start {CINDER}", "--lab", lab).code == 0
    end = time.monotonic() + 120
    while "controller" not in volume_hosts():
        assert time.monotonic() < end, "the stray cinder-volume did not register"
    stray = invoke("verify", "--lab", lab)
    assert stray.code != 0
    assert "on the wrong node: cinder-volume on controller.lab.test" in stray.output
    assert invoke("reset", "--lab", lab).code == 0
    is_moved()
    again = invoke("verify", "--lab", lab)
    assert again.code == 0
    assert all(row in again.output for row in ROWS), again.output
    assert invoke("down", "--lab", lab).code == 0
    assert left_of(lab, before)["mounts"] == set()
