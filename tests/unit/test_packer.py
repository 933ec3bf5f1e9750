"""The builder packer: templates and kickstarts by the tools that read them, and what it asks of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from stacklab import access, base, dib, distributions, files, goldendib, hooks, inputs, kvm, packer
from stacklab.base import Spec
from stacklab.errors import InvalidInput, LabError
from stacklab.inputs import Fetched


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with a wheel that nobody looks into; no KVM, no mirrors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel = tmp_path / "packstack.whl"
    wheel.touch()
    monkeypatch.setattr(goldendib, "wheel", lambda release, log: wheel)
    monkeypatch.setattr(kvm, "usable", lambda: (False, "a test"))
    monkeypatch.setattr(dib, "apt_mirrors", lambda codename: ("", ""))
    return tmp_path / "cache" / "stacklab"


def spec(distribution: str, source: str = "") -> Spec:
    provider = next(name for name in distributions.distribution(distribution).providers if name != "lxc")
    return base.spec(distribution, provider, builder="packer", source=source)


def source(path: Path, size: int = 32 << 20, table: str = "start=2048, type=83\n") -> Fetched:
    """An ISO or a disk, as far as anybody looks at it before it boots."""
    if path.suffix == ".iso":
        path.write_bytes(b"an installer")
        return inputs.given(path)
    raw = path.with_name(f"{path.name}.raw")
    raw.touch()
    os.truncate(raw, size)
    for argv, text in (
        (["sfdisk", "-q", str(raw)], f"label: dos\n{table}"),
        (["mkfs.ext4", "-q", "-F", "-E", f"offset={1 << 20}", str(raw), "16M"], ""),
        (["qemu-img", "convert", "-O", "qcow2", str(raw), str(path)], ""),
    ):
        subprocess.run(argv, input=text, text=True, check=True)
    raw.unlink()
    return inputs.given(path)


def variables(distribution: str, place: Path, name: str) -> dict[str, Any]:
    place.mkdir(exist_ok=True)
    return packer.variables(spec(distribution), source(place / name), place, place / "log")


def test_no_version_or_address_in_the_templates() -> None:
    for path in (packer.TEMPLATES / "golden").iterdir():
        text = path.read_text()
        assert not re.search(r"https?://|sha256:[0-9a-f]{64}|required_plugins", text), path
    (init,) = (packer.TEMPLATES / "init").iterdir()
    assert "required_plugins" in init.read_text() and "build {" not in init.read_text()


def test_a_kickstart_for_each_installer_and_no_other() -> None:
    there = {path.stem for path in (packer.TEMPLATES / "kickstart").iterdir()}
    assert there == {one.kickstart for one in inputs.all_inputs() if one.kind == "iso"}


def test_a_disk_of_a_publisher_is_let_in(tmp_path: Path) -> None:
    found = variables("debian-12", tmp_path / "place", "disk.qcow2")
    own, cloud, seed = found["drives"]
    assert own.startswith(f"file={found['output']}/golden.qcow2,if=virtio")
    key = (tmp_path / "place/access/key.pub").read_text().strip()
    image = re.sub(r"file=([^,]+),.*", r"\1", cloud)
    said = subprocess.run(["mtype", "-i", image, "::user-data"], capture_output=True, text=True, check=True)
    first, rest = said.stdout.split("\n", 1)
    assert first == "#cloud-config"
    told = json.loads(rest)
    assert told["disable_root"] is False
    assert told["users"] == [{"name": "root", "lock_passwd": True, "ssh_authorized_keys": [key]}]
    label = subprocess.run(
        ["blkid", "-o", "value", "-s", "LABEL", image], capture_output=True, text=True, check=True
    )
    assert label.stdout.strip() == "CIDATA"
    disc = re.sub(r"file=([^,]+),.*", r"\1", seed)
    label = subprocess.run(
        ["blkid", "-o", "value", "-s", "LABEL", disc], capture_output=True, text=True, check=True
    )
    assert label.stdout.strip() == "STACKLAB"
    argv = ["xorriso", "-osirrox", "on", "-indev", disc, "-extract", "/seed.tar", str(tmp_path / "seed.tar")]
    subprocess.run(argv, capture_output=True, check=True)
    with tarfile.open(tmp_path / "seed.tar") as tar:
        member = tar.getmember("./root/.ssh/authorized_keys")
        content = tar.extractfile(member)
        assert content is not None and content.read().decode().strip() == key
        assert (member.mode, member.uid) == (0o600, 0)
        assert tar.getmember("./root/.ssh").mode == tar.getmember("./root").mode == 0o700


def test_the_key_is_the_builds_own(tmp_path: Path) -> None:
    first, public = access.make_key(tmp_path / "one")
    _, other = access.make_key(tmp_path / "two")
    assert public != other
    assert first.stat().st_mode & 0o777 == 0o600 and first.parent.stat().st_mode & 0o777 == 0o700


def test_kvm_where_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = variables("debian-12", tmp_path / "place", "disk.qcow2")
    assert (found["accelerator"], found["cpu"]) == ("tcg", "max")
    monkeypatch.setattr(kvm, "usable", lambda: (True, "a guest ran"))
    found = variables("debian-12", tmp_path / "other", "disk.qcow2")
    assert (found["accelerator"], found["cpu"]) == ("kvm", "host")


def test_the_disk_is_never_smaller_than_its_source(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    big = source(tmp_path / "big.qcow2", 40 << 30)
    found = packer.variables(spec("debian-12"), big, tmp_path / "place", tmp_path / "log")
    assert found["disk"] == 40 << 10
    assert variables("debian-12", tmp_path / "other", "disk.qcow2")["disk"] == 12 << 10


def golden(place: Path, elements: dict[str, str]) -> Fetched:
    """A golden image of ours with these elements, to start from."""
    place.mkdir()
    found = source(place / "disk.qcow2")
    about = {"name": "debian-12-x", "sha256": found.digest[7:], "inputs": {"elements": elements}}
    files.write_json(place / "metadata.json", about)
    return found


def test_a_golden_image_has_its_elements_already(tmp_path: Path) -> None:
    wanted = spec("debian-12")
    place = tmp_path / "place"
    place.mkdir()
    first = golden(tmp_path / "golden", {**hooks.digests(wanted.elements), "debian-minimal": "dib"})
    packer.variables(wanted, first, place, tmp_path / "log")
    with tarfile.open(place / "hooks.tar") as tar:
        names = tar.getnames()
    assert not [name for name in names if name.startswith(("./install.d", "./packages", "./static"))]
    assert "./finalise.d/95-stacklab-manifest" in names


def test_an_element_is_not_laid_over_an_older_one(tmp_path: Path) -> None:
    wanted = spec("debian-12")
    old = {**hooks.digests(wanted.elements), "packstack": "0" * 64}
    with pytest.raises(LabError, match="debian-12-x was built before packstack changed"):
        packer.variables(wanted, golden(tmp_path / "golden", old), tmp_path, tmp_path / "log")


def test_a_disk_beside_somebody_elses_metadata_is_no_golden_image(tmp_path: Path) -> None:
    wanted = spec("debian-12")
    found = golden(tmp_path / "golden", hooks.digests(wanted.elements))
    other = dataclasses.replace(found, digest="sha256:" + "0" * 64)
    place = tmp_path / "place"
    place.mkdir()
    packer.variables(wanted, other, place, tmp_path / "log")
    with tarfile.open(place / "hooks.tar") as tar:
        assert "./install.d/65-packstack" in tar.getnames()


def test_the_name_changes_with_the_source(tmp_path: Path) -> None:
    paths = []
    for name, content in (("a.qcow2", b"a"), ("b.qcow2", b"b"), ("same.qcow2", b"a")):
        (tmp_path / name).write_bytes(content)
        paths.append(str(tmp_path / name))
    keys = [base.wanted(spec("debian-12", path)).key for path in paths]
    assert keys[0] == keys[2] != keys[1]
    built_by_dib = base.wanted(base.spec("debian-12", spec("debian-12").provider, builder="dib"))
    assert built_by_dib.key not in keys
    named = packer.inputs(spec("debian-12"))["source"]
    assert named == [inputs.find("debian-12", "cloud").name, ""]


def test_a_source_for_the_wrong_builder() -> None:
    with pytest.raises(InvalidInput, match="dib starts from nothing: only the builder packer takes a source"):
        base.spec("debian-12", "lxc", builder="dib", source="x.qcow2")


def test_only_qemu_starts_from_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = source(tmp_path / "disk.qcow2").path
    assert packer.machine() == "qemu"
    real = shutil.which
    here = {"qemu-system-x86_64": None, "VBoxManage": "/usr/bin/VBoxManage"}
    monkeypatch.setattr(shutil, "which", lambda name: here.get(name, real(name)))
    assert packer.machine() == "virtualbox-iso"
    with pytest.raises(InvalidInput, match=r"disk.qcow2 is a disk, and only QEMU starts from one"):
        packer.make(spec("debian-12", str(disk)), tmp_path / "work", tmp_path / "log")


@pytest.mark.parametrize(
    ("distribution", "table", "has", "right"),
    [
        ("debian-12", "size=20M\n,\n", "2 partitions (ext4, no filesystem)", "as golden images are"),
        ("rocky-9", "start=4096\n", "1 partition (no filesystem)", "or the installer (iso)"),
        ("rocky-9", "", "no table of partitions", "or the installer (iso)"),
    ],
)
def test_a_disk_that_cannot_end_well_is_not_started(
    distribution: str, table: str, has: str, right: str, fake: Any, tmp_path: Path, cache: Path
) -> None:
    calls = fake("1.6.6")
    disk = source(tmp_path / "disk.qcow2", table=table).path if table else tmp_path / "disk.img"
    if not table:
        disk.write_bytes(bytes(1 << 20))
    with pytest.raises(InvalidInput) as caught:
        base.build(spec(distribution, str(disk)))
    message = f"source: {disk.name} has {has}; a golden image has one, of ext4: take such a disk"
    assert caught.value.message.startswith(message) and caught.value.message.endswith(right)
    assert not calls.exists()


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"source: \S+nope\.iso: no such file"):
        base.build(spec("rocky-9", str(tmp_path / "nope.iso")))


def test_what_the_machine_is_told_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dib, "apt_mirrors", lambda codename: ("http://localhost/debian", "http://localhost/s")
    )
    monkeypatch.setenv("http_proxy", "http://user:word@127.0.0.1:3128/")
    monkeypatch.delenv("https_proxy", raising=False)
    found = packer._network("bookworm")
    # the build host's own proxy, as the machine sees it
    assert found["http_proxy"] == "http://user:word@10.0.2.2:3128/"
    assert "https_proxy" not in found
    assert found["STACKLAB_SOURCES"].split("|") == [
        "deb http://localhost/debian bookworm main",
        "deb http://localhost/debian bookworm-updates main",
        "deb http://localhost/s bookworm-security main",
    ]
    # a name that only /etc/hosts knows
    assert "127.0.0.1 localhost" in found["STACKLAB_HOSTS"].split("|")
    monkeypatch.setattr(dib, "apt_mirrors", lambda codename: ("", ""))
    assert "STACKLAB_SOURCES" not in packer._network("bookworm")


FAKE = """#!/bin/sh
echo "$*" >> {calls}
case $1 in
version) echo 'Packer v{version}' ;;
build)
    echo '==> qemu.golden: provision: install.d/65-packstack'
    {then} ;;
esac
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fake packer first on PATH, which notes its calls."""

    def make(version: str, then: str = "exit 0") -> Path:
        calls = tmp_path / "calls"
        script = FAKE.format(calls=calls, version=version, then=then)
        files.write(tmp_path / "bin" / "packer", script, 0o755)
        return calls

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}", prepend=":")
    return make


@pytest.mark.parametrize(("version", "plugins"), [("1.6.6", False), ("1.7.0", True), ("1.11.2", True)])
def test_plugins_are_installed_where_packer_wants_them(version: str, plugins: bool, fake: Any) -> None:
    fake(version)
    found = packer.commands(spec("debian-12"), Path("/a/place/out"))
    assert [argv[1] for argv in found] == (["init", "build"] if plugins else ["build"])
    assert "-only=qemu.golden" in found[-1] and "-var-file=/a/place/golden.pkrvars.json" in found[-1]


def test_a_failed_build_leaves_its_log_alone(fake: Any, tmp_path: Path, cache: Path) -> None:
    calls = fake("1.6.6", "echo '==> qemu.golden: Error: no space'; exit 1")
    disk = source(tmp_path / "disk.qcow2").path
    wanted = spec("debian-12", str(disk))
    with pytest.raises(LabError, match=r"ended with exit code 1\n(.*\n)*.*Error: no space"):
        base.build(wanted)
    assert "build" in calls.read_text()
    assert [path.name for path in (cache / "images").iterdir() if path.suffix != ".lock"] == []
    (log,) = (cache / "logs").glob("debian-12-*.log")
    assert "provision: install.d/65-packstack" in log.read_text()


def test_a_build_without_a_disk(fake: Any, tmp_path: Path) -> None:
    fake("1.6.6")
    disk = source(tmp_path / "disk.qcow2").path
    with pytest.raises(LabError, match="Packer ended well but left no disk"):
        base.build(spec("debian-12", str(disk)))


def test_digests_of_given_files(tmp_path: Path) -> None:
    found = source(tmp_path / "x.iso")
    assert found.digest == f"sha256:{hashlib.sha256(b'an installer').hexdigest()}"
