"""A lab with all services that can run here: verified, seen in a browser, reset, verified again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.dashboard import look
from tests.lab.driving import PROJECT, down, footprint, invoke, lab_name, left_of

pytestmark = [pytest.mark.lab, pytest.mark.matrix]
LAB = lab_name("m-services")
ROWS = (
    *("object got", "volume attached elsewhere", "Heat stack deleted", "metric cpu", "alarm", "Magnum"),
    *("Horizon's instances", "floating IP"),
)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    """The two-node topology with `services: full`, in a file of its own."""
    text = (PROJECT / "topologies" / "two-node.yaml").read_text(encoding="utf-8")
    file = tmp_path / "services.yaml"
    file.write_text(re.sub(r"(?m)^services:.*$", "services: full", text), encoding="utf-8")
    down(LAB)
    yield file
    down(LAB)


def test_full(lab: Path, tmp_path: Path) -> None:
    before = footprint()
    ran = invoke("up", "--topology", str(lab), "--lab", LAB)
    assert ran.code == 0, ran.output
    assert "trove is left out: " in ran.output
    assert all(row in ran.output for row in ROWS), ran.output
    demo = ["ssh", "controller", "--lab", LAB, "--command"]
    boot = (
        f". /root/keystonerc_admin; export {_demo()}; openstack server create --image stacklab-probe"
        " --flavor m1.tiny --network tenant --wait web"
    )
    assert invoke(*demo, boot).code == 0
    picture = look(LAB, "web", tmp_path)
    shutil.copyfile(picture, PROJECT / ".stacklab" / "labs" / LAB / "dashboard.png")
    assert invoke("reset", "--lab", LAB).code == 0
    again = invoke("verify", "--lab", LAB)
    assert again.code == 0
    assert all(row in again.output for row in ROWS), again.output
    assert invoke("down", "--lab", LAB).code == 0
    assert left_of(LAB, before)["mounts"] == set()


def _demo() -> str:
    """The variables of demo, for a shell on the controller."""
    rc = (PROJECT / ".stacklab" / "labs" / LAB / "openrc-demo").read_text(encoding="utf-8")
    return " ".join(re.findall(r"^export (.+)$", rc, re.MULTILINE))
