"""What is wider than CI: other topologies, a golden build that is killed, a puppet that dies."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.driving import down, ending, footprint, invoke, invoke_and_kill, lab_name

pytestmark = [pytest.mark.lab, pytest.mark.matrix]


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[str]:
    name = lab_name(f"m-{request.node.name.removeprefix('test_').replace('_', '-')[:18].strip('-')}")
    down(name)
    yield name
    down(name)


def test_all_in_one(lab: str) -> None:
    ran = invoke("up", "--topology", "all-in-one", "--lab", lab)
    assert ran.code == 0, ran.output
    assert "floating IP" in ran.output
    assert invoke("reset", "--lab", lab).code == 0
    assert invoke("verify", "--lab", lab).code == 0


def test_a_golden_build_that_is_killed_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = footprint()
    for seconds in (20.0, 100.0):  # while it bootstraps; while packages are unpacked
        invoke_and_kill("build-base", at="building the golden image", after=seconds)
        time.sleep(3)  # what is in the build's own mount namespace goes with its last process
        assert not list((tmp_path / "stacklab" / "images").glob("[!.]*/metadata.json"))
        after = footprint()
        assert after["mounts"] - before["mounts"] == set()
        assert after["loop devices"] - before["loop devices"] == set()
    assert invoke("build-base").code == 0
    again = invoke("build-base")
    assert again.code == 0
    assert "building" not in again.output
    assert not list((tmp_path / "stacklab" / "images").glob(".building-*"))


# Kills the puppet of the network manifest; with "all", what started it too, which leaves Packstack waiting.
_KILLER = """
until pid=$(pgrep -f '^/usr/bin/ruby.*[p]uppet apply.*_network.pp'); do sleep 1; done
flock=$(ps -o ppid= -p $pid)
shell=$(ps -o ppid= -p $flock)
[ "$1" = all ] && kill -9 $shell $flock
kill -9 $pid
"""


@pytest.mark.parametrize("victims", ["puppet", "all"])
def test_a_puppet_that_dies_is_noticed(lab: str, victims: str) -> None:
    with ending(subprocess.Popen(["bash", "-c", _KILLER, "killer", victims])):
        ran = invoke("up", "--topology", "two-node", "--lab", lab)
    assert ran.code == 1
    assert "its puppet died" in ran.output
    ran = invoke("up", "--topology", "two-node", "--lab", lab)
    assert ran.code == 0, ran.output
    assert "restoring the snapshot nodes" in ran.output
