"""Boxes as the real Vagrant takes them: from their catalogue, in a VAGRANT_HOME of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacklab import boxes
from tests import golden_images
from tests.integration import needs
from tests.integration.vagrant_boxes import listed, vagrant

pytestmark = pytest.mark.integration


@pytest.fixture
def vagrant_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    needs.program("vagrant")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VAGRANT_HOME", str(tmp_path / "vagrant"))
    monkeypatch.setenv("VAGRANT_CHECKPOINT_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "vagrant"


def test_a_changed_image_is_a_new_version(vagrant_home: Path, tmp_path: Path) -> None:
    old = boxes.box(golden_images.with_disk(tmp_path, "00000000000a"), "libvirt", tmp_path / "log")
    vagrant("box", "add", old.url)
    assert listed() == {(old.name, "libvirt", old.version)}
    kept = vagrant_home / "boxes" / old.name.replace("/", "-VAGRANTSLASH-") / old.version / "libvirt"
    assert (kept / "disk.qcow2").is_file()

    golden = golden_images.with_disk(tmp_path, "00000000000b", b"other")
    new = boxes.box(golden, "libvirt", tmp_path / "log")
    vagrant("box", "add", new.url)
    assert listed() == {(old.name, "libvirt", old.version), (new.name, "libvirt", new.version)}
    kept = kept.parents[1] / new.version / "libvirt"
    assert (kept / "disk.qcow2").read_bytes() == golden.disk.read_bytes()


@pytest.mark.parametrize("provider", ["virtualbox", "vmware_desktop", "lxc"])
def test_the_other_providers(provider: str, vagrant_home: Path, tmp_path: Path) -> None:
    golden = golden_images.with_rootfs(tmp_path) if provider == "lxc" else golden_images.with_disk(tmp_path)
    box = boxes.box(golden, provider, tmp_path / "log")
    vagrant("box", "add", box.url)
    assert listed() == {(box.name, provider, box.version)}
