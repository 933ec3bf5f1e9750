"""Vagrant boxes: what is in them, by the tools that know; their versions; what is left of older ones."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stacklab import boxes, files
from stacklab.base import Golden
from stacklab.errors import CommandFailed, LabError
from tests import golden_images

OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "images"


def unpack(box: boxes.Box, target: Path) -> dict[str, Path]:
    with tarfile.open(box.file) as tar:
        tar.extractall(target, filter="data")
        names = tar.getnames()
    assert names[0] == "metadata.json"
    return {name: target / name for name in names}


def info(disk: Path) -> dict[str, object]:
    argv = ["qemu-img", "info", "--output=json", str(disk)]
    found: dict[str, object] = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return found


def same(disk: Path, golden: Golden) -> bool:
    argv = ["qemu-img", "compare", str(disk), str(golden.disk)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_libvirt(place: Path, tmp_path: Path) -> None:
    golden = golden_images.with_disk(place)
    box = boxes.box(golden, "libvirt", tmp_path / "log")
    assert box.name == "stacklab/debian-12-libvirt"
    parts = unpack(box, tmp_path / "box")
    assert set(parts) == {"metadata.json", "Vagrantfile", "disk.qcow2", "info.json"}
    assert files.read_json(parts["metadata.json"]) == {
        "provider": "libvirt",
        "format": "qcow2",
        "disks": [{"path": "disk.qcow2", "name": "root"}],
    }
    assert parts["disk.qcow2"].read_bytes() == golden.disk.read_bytes()


def test_virtualbox(place: Path, tmp_path: Path) -> None:
    golden = golden_images.with_disk(place)
    box = boxes.box(golden, "virtualbox", tmp_path / "log")
    assert box.name == "stacklab/debian-12-libvirt-virtualbox"
    parts = unpack(box, tmp_path / "box")
    assert files.read_json(parts["metadata.json"]) == {"provider": "virtualbox"}
    # Vagrant's provider imports the file of this name.
    envelope = ElementTree.parse(parts["box.ovf"]).getroot()
    (file,) = envelope.iter(f"{OVF}File")
    disk = parts[file.attrib[f"{OVF}href"]]
    assert int(file.attrib[f"{OVF}size"]) == disk.stat().st_size
    (described,) = envelope.iter(f"{OVF}Disk")
    assert described.attrib[f"{OVF}fileRef"] == file.attrib[f"{OVF}id"]
    assert int(described.attrib[f"{OVF}capacity"]) == golden_images.SIZE
    items = {item.findtext(f"{RASD}InstanceID"): item for item in envelope.iter(f"{OVF}Item")}
    (attached,) = [item for item in items.values() if item.findtext(f"{RASD}HostResource")]
    assert attached.findtext(f"{RASD}HostResource") == f"/disk/{described.attrib[f'{OVF}diskId']}"
    assert items[attached.findtext(f"{RASD}Parent")].findtext(f"{RASD}ResourceSubType") == "AHCI"
    assert "streamOptimized" in json.dumps(info(disk))
    assert described.attrib[f"{OVF}format"].endswith("#streamOptimized")
    assert same(disk, golden)
    mac = re.search(r'base_mac = "(.+)"', parts["Vagrantfile"].read_text())
    assert mac and re.fullmatch("080027[0-9A-F]{6}", mac[1])
    assert "@" not in parts["box.ovf"].read_text()


def test_vmware(place: Path, tmp_path: Path) -> None:
    golden = golden_images.with_disk(place)
    parts = unpack(boxes.box(golden, "vmware_desktop", tmp_path / "log"), tmp_path / "box")
    assert files.read_json(parts["metadata.json"]) == {"provider": "vmware_desktop"}
    lines = parts["box.vmx"].read_text().splitlines()
    assert all(re.fullmatch(r'[\w.:]+ = ".*"', line) for line in lines)
    values = {name: value.strip('"') for name, value in (line.split(" = ") for line in lines)}
    disk = parts[values["scsi0:0.fileName"]]
    assert "monolithicSparse" in json.dumps(info(disk))
    assert same(disk, golden)
    assert values["displayName"] == golden.name


def test_lxc(place: Path, tmp_path: Path) -> None:
    golden = golden_images.with_rootfs(place)
    box = boxes.box(golden, "lxc", tmp_path / "log")
    assert box.name == "stacklab/debian-12-lxc"
    parts = unpack(box, tmp_path / "box")
    assert files.read_json(parts["metadata.json"]) == {"provider": "lxc", "version": "1.0.0"}
    root = tmp_path / "root"
    root.mkdir()
    # as vagrant-lxc's template does it
    argv = ["tar", "xfz", str(parts["rootfs.tar.gz"]), "--strip-components=2"]
    subprocess.run(argv, cwd=root, check=True)
    assert (root / "etc/hostname").read_text() == "golden\n"


def test_the_version_follows_from_the_content(place: Path, tmp_path: Path) -> None:
    first = golden_images.with_disk(place / "a", "00000000000a")
    rebuilt = golden_images.with_disk(place / "b", "00000000000b")
    other = golden_images.with_disk(place / "c", "00000000000c", b"other")
    versions = [boxes.box(golden, "libvirt", tmp_path / "log").version for golden in (first, rebuilt, other)]
    assert versions[0] == versions[1] != versions[2]
    # as RubyGems, and so Vagrant, wants a version
    assert all(re.fullmatch(r"0\.\d+\.0", version) for version in versions)


def test_the_catalogue_has_the_newest_alone(place: Path, tmp_path: Path) -> None:
    old = boxes.box(golden_images.with_disk(place, "00000000000a"), "libvirt", tmp_path / "log")
    assert boxes.known() == [old]
    new = boxes.box(golden_images.with_disk(place, "00000000000b", b"other"), "libvirt", tmp_path / "log")
    assert new.catalogue == old.catalogue and new.url.startswith("file:///")
    assert boxes.known() == [new]
    assert files.read_json(new.catalogue) == {
        "name": "stacklab/debian-12-libvirt",
        "versions": [
            {"version": new.version, "providers": [{"name": "libvirt", "url": f"file://{new.file}"}]}
        ],
    }
    assert new.file.is_file() and not old.file.exists()


def test_a_box_that_is_there_is_not_made_again(place: Path, tmp_path: Path) -> None:
    golden = golden_images.with_disk(place)
    first = boxes.box(golden, "libvirt", tmp_path / "log")
    made = first.file.stat().st_mtime_ns
    assert boxes.box(golden, "libvirt", tmp_path / "log") == first
    assert first.file.stat().st_mtime_ns == made


def test_the_same_image_gives_the_same_box(place: Path, tmp_path: Path) -> None:
    golden = golden_images.with_disk(place)
    first = boxes.box(golden, "libvirt", tmp_path / "log")
    content = first.file.read_bytes()
    first.file.unlink()
    assert boxes.box(golden, "libvirt", tmp_path / "log").file.read_bytes() == content


def test_a_failed_conversion_leaves_nothing(place: Path, tmp_path: Path) -> None:
    golden = golden_images.with_disk(place)
    golden.disk.write_bytes(b"no disk")
    with pytest.raises(CommandFailed):
        boxes.box(golden, "virtualbox", tmp_path / "log")
    assert [path for path in boxes.place().iterdir() if path.suffix != ".lock"] == []
    assert boxes.known() == []


def test_prune(place: Path, tmp_path: Path) -> None:
    golden, lone = golden_images.with_disk(place), golden_images.with_rootfs(place)
    kept = boxes.box(golden, "libvirt", tmp_path / "log")
    gone = boxes.box(lone, "lxc", tmp_path / "log")
    assert boxes.prune([golden]) == [gone.file]
    assert boxes.known() == [kept]
    assert not gone.file.exists() and not gone.catalogue.exists()


def test_an_unknown_provider(place: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no box is made for hyperv: take libvirt, virtualbox, vmware_desktop"):
        boxes.box(golden_images.with_disk(place), "hyperv", tmp_path / "log")
