"""The probe guest's place in the cache, and what its DHCP script makes of a lease."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stacklab import guests
from stacklab.errors import CommandFailed
from stacklab.run import Result


class Builds:
    """Stands in for the build script; counts, and does what a test wants of it."""

    def __init__(self) -> None:
        self.count = 0
        self.content = b"an image"
        self.fails = False

    def __call__(self, argv: Sequence[str | Path], **_: Any) -> Result:
        self.count += 1
        out = Path(argv[2])
        out.write_bytes(self.content)
        if self.fails:
            raise CommandFailed("build-probe-guest.sh ended with exit code 1")
        return Result(0, "")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    fake = Builds()
    monkeypatch.setattr(guests, "run", fake)
    return fake


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    tree = tmp_path / "rootfs"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    return tree


def build(rootfs: Path, tmp_path: Path, inputs: str = "golden-1") -> guests.GuestImage:
    return guests.build_probe(rootfs, tmp_path / "cache", tmp_path / "build.log", inputs=inputs)


def seen(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.suffix != ".lock")


def test_builds_once_and_describes_itself(builds: Builds, rootfs: Path, tmp_path: Path) -> None:
    image = build(rootfs, tmp_path)
    assert build(rootfs, tmp_path) == image
    assert builds.count == 1
    assert image.path == tmp_path / "cache" / "guests" / f"probe-{guests.probe_key('golden-1')}.qcow2"
    assert seen(image.path.parent) == [image.path.with_suffix(".json").name, image.path.name]
    described = json.loads(image.path.with_suffix(".json").read_text())
    assert described == {key: value for key, value in dataclasses.asdict(image).items() if key != "path"}
    assert (image.size, image.properties["os_distro"], image.properties["os_version"]) == (8, "debian", "12")


@pytest.mark.parametrize("script", guests.PROBE_SCRIPTS)
def test_key_changes_with_each_script(script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = guests.probe_key("golden-1")
    copies = tmp_path / "scripts"
    copies.mkdir()
    for name in guests.PROBE_SCRIPTS:
        shutil.copy(guests.SCRIPTS / name, copies / name)
    monkeypatch.setattr(guests, "SCRIPTS", copies)
    assert guests.probe_key("golden-1") == before
    with (copies / script).open("a") as handle:
        handle.write("# changed\n")
    assert guests.probe_key("golden-1") != before


def test_key_changes_with_the_golden_image(builds: Builds, rootfs: Path, tmp_path: Path) -> None:
    assert build(rootfs, tmp_path, "golden-1").path != build(rootfs, tmp_path, "golden-2").path
    assert builds.count == 2


def test_a_failed_build_leaves_nothing(builds: Builds, rootfs: Path, tmp_path: Path) -> None:
    builds.fails = True
    with pytest.raises(CommandFailed):
        build(rootfs, tmp_path)
    assert seen(tmp_path / "cache" / "guests") == []


@pytest.mark.parametrize(
    "damage", ["image cut", "image changed", "image gone", "json cut", "json gone", "json odd"]
)
def test_corrupt_leftovers_are_built_anew(damage: str, builds: Builds, rootfs: Path, tmp_path: Path) -> None:
    image = build(rootfs, tmp_path)
    metadata = image.path.with_suffix(".json")
    match damage:
        case "image cut":
            image.path.write_bytes(b"an im")
        case "image changed":
            image.path.write_bytes(b"AN IMAGE")
        case "image gone":
            image.path.unlink()
        case "json cut":
            metadata.write_text('{"name": ')
        case "json gone":
            metadata.unlink()
        case "json odd":
            metadata.write_text("[1]")
    assert build(rootfs, tmp_path) == image
    assert builds.count == 2
    assert image.path.read_bytes() == b"an image"


def test_a_killed_build_is_swept_and_never_used(builds: Builds, rootfs: Path, tmp_path: Path) -> None:
    left = tmp_path / "cache" / "guests" / f".probe-{guests.probe_key('golden-1')}-x"
    left.mkdir(parents=True)
    (left / "half.qcow2").write_bytes(b"half")
    image = build(rootfs, tmp_path)
    assert image.path.read_bytes() == b"an image"
    assert not left.exists()


LEASE = {"interface": "eth0", "ip": "203.0.113.101", "mask": "24"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"router": "203.0.113.1"}, ["route add 0.0.0.0/0 via 203.0.113.1 dev eth0"]),
        (
            {"staticroutes": "169.254.169.254/32 203.0.113.2 0.0.0.0/0 203.0.113.1", "router": "203.0.113.9"},
            [
                "route add 169.254.169.254/32 via 203.0.113.2 dev eth0",
                "route add 0.0.0.0/0 via 203.0.113.1 dev eth0",
            ],
        ),
        (
            {"staticroutes": "169.254.169.254/32 203.0.113.2", "router": "203.0.113.1 203.0.113.3"},
            [
                "route add 169.254.169.254/32 via 203.0.113.2 dev eth0",
                "route add 0.0.0.0/0 via 203.0.113.1 dev eth0",
            ],
        ),
        ({"staticroutes": "10.9.0.0/16 0.0.0.0"}, ["route add 10.9.0.0/16 dev eth0"]),
        ({"mtu": "1450"}, ["link set eth0 mtu 1450"]),
        ({}, []),
    ],
)
def test_dhcp_script_sets_routes(more: dict[str, str], expected: list[str], tmp_path: Path) -> None:
    fake = tmp_path / "ip"
    fake.write_text('#!/bin/sh\necho "$*" >>"$IP_LOG"\n')
    fake.chmod(0o755)
    log = tmp_path / "ip.log"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "IP_LOG": str(log), **LEASE, **more}
    script = guests.SCRIPTS / "probe-guest-udhcpc"
    said = subprocess.run(
        ["sh", script, "bound"], env=environment, check=True, capture_output=True, text=True
    )
    assert said.stdout == "STACKLAB-PROBE dhcp 203.0.113.101/24\n"
    assert log.read_text().splitlines() == [
        "addr flush dev eth0",
        "addr add 203.0.113.101/24 dev eth0",
        *expected,
    ]
