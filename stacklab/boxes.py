"""Vagrant boxes of golden images, in a catalogue that names each by its content.

The version follows from the disk's bytes, so a rebuilt image is never taken for the one before
(https://github.com/vagrant-libvirt/vagrant-libvirt/issues/1351), and the same image is the same
version on every machine.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacklab import base, files, ui
from stacklab.base import Golden
from stacklab.errors import LabError
from stacklab.run import run

DATA = Path(__file__).parent / "data" / "box"
CONVERT_SECONDS = 1800


@dataclass(frozen=True)
class Box:
    """A box in the cache. `catalogue` is what `vagrant box add` takes; `version` names the content."""

    name: str
    version: str
    provider: str
    file: Path
    catalogue: Path

    @property
    def url(self) -> str:
        """The catalogue's URL, for `config.vm.box_url`."""
        return self.catalogue.as_uri()


def image(distribution: str, provider: str) -> Golden:
    """The image that a box for `provider` is made of, built if need be."""
    return base.build(base.spec(distribution, provider))


def place() -> Path:
    """Where boxes and their catalogues are kept."""
    return files.cache_dir() / "boxes"


def box(golden: Golden, provider: str, log: Path) -> Box:
    """The box of an image; made unless it is there. Older ones of the same name are removed.

    Raises LabError for a provider that takes no boxes of such an image, and when a conversion
    fails; then there is no box.
    """
    if provider not in _MAKERS:
        raise LabError(f"no box is made for {provider}: take {', '.join(_MAKERS)}")
    found = _named(golden, provider)
    with files.lock(found.file.with_suffix(".lock"), f"the box {found.file.name}", wait=CONVERT_SECONDS):
        if not found.file.is_file():
            with ui.step(f"making the box {found.file.name}"):
                _make(golden, found, log)
        _publish(found)
    return found


def known() -> list[Box]:
    """The boxes in the cache, by name."""
    boxes = []
    for path in sorted(place().glob("*.json")):
        catalogue = files.read_json(path)
        for version in catalogue["versions"]:
            for row in version["providers"]:
                file = Path(row["url"].removeprefix("file://"))
                boxes.append(Box(catalogue["name"], version["version"], row["name"], file, path))
    return boxes


def prune(keep: Iterable[Golden]) -> list[Path]:
    """Remove the boxes of images that are not in `keep`; what was removed."""
    wanted = {_named(golden, provider).file for golden in keep for provider in _MAKERS}
    gone = [found for found in known() if found.file not in wanted]
    for found in gone:
        found.catalogue.unlink()
        found.file.unlink(missing_ok=True)
    return [found.file for found in gone]


def _named(golden: Golden, provider: str) -> Box:
    about = files.read_json(golden.directory / "metadata.json")
    content = about["sha256"]
    stem = golden.name.removesuffix(f"-{golden.key}")
    if provider not in stem:
        stem = f"{stem}-{provider}"  # several providers may share a disk
    # Vagrant wants numbers between dots.
    version = f"0.{int(content[:12], 16)}.0"
    return Box(
        name=f"stacklab/{stem}",
        version=version,
        provider=provider,
        file=place() / f"{stem}-{content[:12]}.box",
        catalogue=place() / f"{stem}.json",
    )


def _publish(found: Box) -> None:
    """Name the box in its catalogue, as the only version, and remove the archives of older ones."""
    provider = {"name": found.provider, "url": found.file.as_uri()}
    value = {
        "name": found.name,
        "versions": [{"version": found.version, "providers": [provider]}],
    }
    before = files.read_json(found.catalogue)
    if before == value:
        return
    files.write_json(found.catalogue, value)
    for version in before["versions"] if before else ():
        for row in version["providers"]:
            old = Path(row["url"].removeprefix("file://"))
            if old != found.file:
                old.unlink(missing_ok=True)


def _make(golden: Golden, found: Box, log: Path) -> None:
    found.file.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{found.file.name}.", dir=found.file.parent))
    try:
        content = work / "content"
        content.mkdir()
        _MAKERS[found.provider](golden, content, log)
        about = {"Author": "stacklab", "image": golden.name, "version": found.version}
        files.write_json(content / "info.json", about)
        archive = work / "box"
        _pack(content, archive)
        archive.replace(found.file)
    finally:
        shutil.rmtree(work)


def _pack(content: Path, archive: Path) -> None:
    """A tar without owners and times. It is not compressed: its disk is."""
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        # metadata.json first: Vagrant looks for it, and a tar is read from the start.
        for path in sorted(content.iterdir(), key=lambda path: (path.name != "metadata.json", path.name)):
            member = tar.gettarinfo(path, path.name)
            member.uid = member.gid = member.mtime = 0
            member.uname = member.gname = ""
            member.mode = 0o644
            with path.open("rb") as source:
                tar.addfile(member, source)


def _libvirt(golden: Golden, content: Path, log: Path) -> None:
    # A link where it can be one: the disk is large and stays as it is.
    try:
        os.link(golden.disk, content / "disk.qcow2")
    except OSError:
        shutil.copyfile(golden.disk, content / "disk.qcow2")
    disks = [{"path": "disk.qcow2", "name": "root"}]
    files.write_json(content / "metadata.json", {"provider": "libvirt", "format": "qcow2", "disks": disks})
    shutil.copyfile(DATA / "Vagrantfile", content / "Vagrantfile")


def _virtualbox(golden: Golden, content: Path, log: Path) -> None:
    # streamOptimized is the form of an appliance's disk; VirtualBox unpacks it when it imports.
    _convert(golden, content / "disk.vmdk", "subformat=streamOptimized", log)
    files.write_json(content / "metadata.json", {"provider": "virtualbox"})
    size = _virtual_size(golden.disk, log)
    identity = uuid.uuid5(uuid.NAMESPACE_URL, golden.name)
    values = {"NAME": golden.name, "CAPACITY": size, "SIZE": (content / "disk.vmdk").stat().st_size}
    _fill("virtualbox.ovf", content / "box.ovf", {**values, "UUID": identity})
    _fill("virtualbox.Vagrantfile", content / "Vagrantfile", {"MAC": "080027" + identity.hex[:6].upper()})


def _vmware(golden: Golden, content: Path, log: Path) -> None:
    # A machine cannot run from a streamOptimized disk; this is the growing kind that it can.
    _convert(
        golden, content / "disk.vmdk", "subformat=monolithicSparse,adapter_type=lsilogic,hwversion=14", log
    )
    files.write_json(content / "metadata.json", {"provider": "vmware_desktop"})
    _fill("vmware.vmx", content / "box.vmx", {"NAME": golden.name})
    shutil.copyfile(DATA / "Vagrantfile", content / "Vagrantfile")


def _lxc(golden: Golden, content: Path, log: Path) -> None:
    files.write_json(content / "metadata.json", {"provider": "lxc", "version": "1.0.0"})
    run(
        [
            *("tar", "-C", golden.directory, "--numeric-owner", "--xattrs", "--xattrs-include=*"),
            *("--sort=name", "--use-compress-program", "gzip -n -1"),
            *("-cf", content / "rootfs.tar.gz", "./rootfs"),
        ],
        log=log,
        timeout=CONVERT_SECONDS,
        hint="is the disk full?",
    )


_MAKERS: dict[str, Callable[[Golden, Path, Path], None]] = {
    "libvirt": _libvirt,
    "virtualbox": _virtualbox,
    "vmware_desktop": _vmware,
    "lxc": _lxc,
}


def _convert(golden: Golden, target: Path, options: str, log: Path) -> None:
    run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "vmdk", "-o", options, golden.disk, target],
        log=log,
        timeout=CONVERT_SECONDS,
        hint="is the disk full?",
    )


def _virtual_size(disk: Path, log: Path) -> int:
    told = run(["qemu-img", "info", "--output=json", disk], log=log, merge_stderr=False)
    return int(json.loads(told.output)["virtual-size"])


def _fill(template: str, target: Path, values: dict[str, Any]) -> None:
    text = (DATA / template).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    files.write(target, text)
