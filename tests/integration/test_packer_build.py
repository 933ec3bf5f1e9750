"""debian-12's disk by dib, which boots, and from it an image by the real Packer, in a machine that boots.

The disk is built first, unless it is in the user's cache. Emulated, the rest takes five minutes.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacklab import access, base, contract, diskfiles, files, goldenshow, packer
from stacklab.base import Golden
from tests.integration import needs, vagrant_boxes
from tests.unit.test_linters import tool

pytestmark = pytest.mark.integration

SEEDED = ("etc/systemd/network/05-build.network", "var/lib/stacklab", "root/.ssh", "etc/hostname")


@pytest.fixture(scope="module")
def start() -> Golden:
    """What the build starts from."""
    needs.root("diskimage-builder")
    tool("packer")
    return base.build(base.spec("debian-12", "libvirt"))


@pytest.fixture(scope="module")
def keys() -> Iterator[list[str]]:
    """The public keys that builds have drawn."""
    drawn: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = access.make_key

        def noted(place: Path) -> tuple[Path, str]:
            private, public = real(place)
            drawn.append(public)
            return private, public

        patch.setattr(access, "make_key", noted)
        yield drawn


@pytest.fixture(scope="module")
def built(start: Golden, keys: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Golden]:
    """The image by Packer, in a cache of the test's own."""
    cache = tmp_path_factory.mktemp("cache")
    shutil.copytree(files.cache_dir() / "wheels", cache / "stacklab" / "wheels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield base.build(base.spec("debian-12", "libvirt", builder="packer", source=str(start.disk)))


@pytest.fixture(scope="module")
def raw(built: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", built.disk, path], check=True)
    return path


def test_it_keeps_the_contract(built: Golden, raw: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    diskfiles.extract(raw, tree, contract.TREES, contract.PROBES, tmp_path / "log")
    assert contract.check(tree, "libvirt") == []
    about = files.read_json(built.directory / "metadata.json")
    assert about["kernel"] == contract.kernels(tree)[-1]
    assert about["source"]["proof"] == "given by the user"
    packages = (built.directory / "packages.txt").read_text().splitlines()
    assert packages == sorted(packages) and any(line.startswith("nova-compute ") for line in packages)
    # the machine was asked, not only its files
    log = (built.directory / "build.log").read_text()
    assert "provision: finalise.d/95-stacklab-manifest" in log
    assert "Gracefully halting virtual machine" in log


def test_nothing_of_the_build_is_in_it(
    start: Golden, built: Golden, raw: Path, keys: list[str], tmp_path: Path
) -> None:
    trees = ("etc", "root", "tmp", "var/lib/stacklab", "var/lib/systemd", "var/log", "home")
    found = tmp_path / "tree"
    diskfiles.extract(raw, found, trees, (), tmp_path / "log")
    for name in SEEDED:
        assert not (found / name).exists(), name
    names = {path.name for path in found.rglob("*")}
    assert not names & {"hooks.tar", "in_target.d", "random-seed", "sources.list.d.build"}
    assert not [name for name in names if name.startswith(("ssh_host_", "script_"))]
    (key,) = keys
    # not in a deleted block either: freed blocks go back to the host
    argv = ["grep", "-a", "-c", "-F", key.split()[1], str(raw)]
    assert subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip() == "0"
    assert sorted(path.name for path in built.directory.iterdir()) == [
        "build.log",
        "disk.qcow2",
        "metadata.json",
        "packages.txt",
    ]


def test_nothing_is_left_running(built: Golden) -> None:
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(files.cache_dir()) not in running


def test_it_is_there_at_once_the_second_time(start: Golden, built: Golden) -> None:
    spec = base.spec("debian-12", "libvirt", builder="packer", source=str(start.disk))
    made = built.disk.stat().st_mtime_ns
    assert base.build(spec) == built
    assert built.disk.stat().st_mtime_ns == made
    assert packer.inputs(spec)["source"].startswith("sha256:")


def test_it_boots(start: Golden) -> None:
    """The disk that it starts from, by dib, with a seed as labs make it."""
    report = goldenshow.verify(start, boot=True)
    assert report["kernel"] == files.read_json(start.directory / "metadata.json")["kernel"]


@pytest.mark.parametrize("which", ["by dib", "by Packer"])
def test_its_box_is_accepted_by_vagrant(
    which: str, start: Golden, built: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vagrant_boxes.accepted(start if which == "by dib" else built, tmp_path, monkeypatch)
