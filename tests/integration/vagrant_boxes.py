"""The real Vagrant's boxes, in the VAGRANT_HOME of the environment."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stacklab import boxes
from stacklab.base import Golden
from tests.unit.test_linters import tool


def vagrant(*words: str) -> str:
    argv = ["vagrant", *words, "--machine-readable"]
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def listed() -> set[tuple[str, str, str]]:
    """(name, provider, version) of every box that Vagrant has."""
    values = [line.split(",", 3) for line in vagrant("box", "list").splitlines()]
    found = {
        kind: [row[3] for row in values if row[2] == f"box-{kind}"]
        for kind in ("name", "provider", "version")
    }
    return set(zip(found["name"], found["provider"], found["version"], strict=True))


def accepted(golden: Golden, place: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether Vagrant takes the libvirt box of an image from its catalogue, in a home of its own."""
    tool("vagrant")
    monkeypatch.setenv("VAGRANT_HOME", str(place / "vagrant"))
    monkeypatch.setenv("VAGRANT_CHECKPOINT_DISABLE", "1")
    monkeypatch.chdir(place)
    box = boxes.box(golden, "libvirt", place / "log")
    vagrant("box", "add", box.url)
    return listed() == {(box.name, "libvirt", box.version)}
