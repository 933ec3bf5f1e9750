"""Guest images by a fake diskimage-builder that leaves a tiny disk, with the real checks and conversions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from stacklab import catalogue, dib, download, files, guestboot, guestbuild, guestcontract, kvm, variants
from stacklab.catalogue import Entry
from stacklab.errors import CommandFailed, InvalidInput, LabError
from tests.unit.guest_disks import KERNEL, make_disk, sound

DEBIAN = catalogue.shipped()["debian-12"]
CLOUD = catalogue.shipped()["debian-12-cloud"]

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


class Dib:
    """A fake disk-image-create; `then` is what it does once it has noted its call."""

    def __init__(self, place: Path, disk: Path) -> None:
        self.place = place
        self.then = ""
        self.disk = place / "disk.raw"
        subprocess.run(["cp", "--sparse=always", disk, self.disk], check=True)

    def argv(self, elements: Sequence[str], kind: str, out: Path) -> list[str]:
        script = self.place / "disk-image-create"
        script.write_text(
            f'echo "$DIB_RELEASE $DIB_DISTRIBUTION_MIRROR" >>{self.place}/calls\n'
            f'touch "$TMP_DIR/scratch"\n{self.then}\ncp --sparse=always {self.disk} "$1.raw"\n'
        )
        assert kind == "raw"
        return ["sh", "-e", str(script), str(out)]

    @property
    def calls(self) -> list[str]:
        file = self.place / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture(scope="session")
def good_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build that went well leaves."""
    place = tmp_path_factory.mktemp("disk")
    make_disk(sound(place / "tree"), place / "disk.raw")
    return place / "disk.raw"


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_disk: Path) -> Dib:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "dib").mkdir()
    fake = Dib(tmp_path / "dib", good_disk)
    monkeypatch.setattr(dib, "argv", fake.argv)
    monkeypatch.setattr(dib, "apt_mirrors", lambda codename: (f"http://mirror.example/{codename}", ""))
    monkeypatch.setattr(dib, "block_device", lambda: {})
    monkeypatch.setattr(guestbuild, "_PROGRAMS", {})
    monkeypatch.setattr(kvm, "usable", lambda: (False, "not tried"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return fake


def place() -> Path:
    return files.cache_dir() / "guests"


def seen() -> set[str]:
    """All that lies in the cache of guests, but for locks."""
    return {path.name for path in place().iterdir() if path.suffix != ".lock"} if place().is_dir() else set()


def info(path: Path) -> dict[str, Any]:
    argv: list[str | Path] = ["qemu-img", "info", "--output=json", path]
    found: dict[str, Any] = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return found


def test_a_build(built: Dib) -> None:
    (image,) = guestbuild.build(DEBIAN)
    stem = image.path.name.removesuffix(".zstd.qcow2")
    assert seen() == {image.path.name, f"{image.path.name}.json", f"{stem}.packages.txt"}
    assert (image.name, image.disk_format, image.min_disk, image.min_ram) == ("Debian 12", "qcow2", 3, 512)
    assert image.sha512 == hashlib.sha512(image.path.read_bytes()).hexdigest()
    assert image.size == image.path.stat().st_size
    assert image.properties["image_source"] == "private"
    assert len(image.properties["image_build_date"]) == len("2026-01-01")
    assert image.properties["os_distro"] == "debian"
    assert built.calls == ["bookworm http://mirror.example/bookworm"]
    assert info(image.path)["format-specific"]["data"]["compression-type"] == "zstd"
    described = json.loads((place() / f"{image.path.name}.json").read_text())
    assert described["inputs"] == guestbuild.inputs(DEBIAN)
    assert described["kernel"] == KERNEL
    assert guestbuild.find(DEBIAN) == (image,)


def test_an_image_that_is_there_is_not_built_again(built: Dib, capsys: pytest.CaptureFixture[str]) -> None:
    first = guestbuild.build(DEBIAN)
    capsys.readouterr()
    assert guestbuild.build(DEBIAN) == first
    assert len(built.calls) == 1
    assert capsys.readouterr().err == ""


def test_other_properties_do_not_need_another_build(built: Dib) -> None:
    guestbuild.build(DEBIAN)
    (image,) = guestbuild.build(dataclasses.replace(DEBIAN, min_ram=2048, properties={"os_distro": "x"}))
    assert (image.min_ram, image.properties["os_distro"]) == (2048, "x")
    assert len(built.calls) == 1


def test_rebuild(built: Dib) -> None:
    guestbuild.build(DEBIAN)
    guestbuild.build(DEBIAN, rebuild=True)
    assert len(built.calls) == 2
    assert len(seen()) == 3


def test_the_formats(built: Dib) -> None:
    entry = dataclasses.replace(DEBIAN, formats=("raw", "qcow2", "vmdk", "vdi", "vhd"))
    images = guestbuild.build(entry)
    assert len(built.calls) == 1
    assert [image.disk_format for image in images] == ["raw", "qcow2", "vmdk", "vdi", "vhd"]
    assert [image.name for image in images[:2]] == ["Debian 12", "Debian 12 (qcow2)"]
    for image in images:
        known = info(image.path)
        assert known["format"] == {"vhd": "vpc"}.get(image.disk_format, image.disk_format)
        assert known["virtual-size"] == 32 << 20
    assert images[2].properties["vmware_disktype"] == "streamOptimized"
    assert info(images[2].path)["format-specific"]["data"]["create-type"] == "streamOptimized"


def test_a_format_more_is_converted_from_what_is_there(built: Dib) -> None:
    (first,) = guestbuild.build(DEBIAN)
    images = guestbuild.build(dataclasses.replace(DEBIAN, formats=("qcow2", "raw")))
    assert images[0] == first
    assert images[1].properties["image_build_date"] == first.properties["image_build_date"]
    assert len(built.calls) == 1
    (old,) = guestbuild.build(dataclasses.replace(DEBIAN, compression="zlib"))
    assert old.path.name.endswith(".zlib.qcow2") and old.sha512 != first.sha512
    assert info(old.path)["format-specific"]["data"]["compression-type"] == "zlib"


def change_element(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Entry:
    shutil.copytree(files.PROJECT / "elements", tmp_path / "copy/elements", symlinks=True)
    monkeypatch.setattr(files, "PROJECT", tmp_path / "copy")
    files.write(tmp_path / "copy/elements/stacklab-guest/README.rst", "changed")
    return DEBIAN


def change_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Entry:
    monkeypatch.setattr(guestcontract, "VERSION", 99)
    return DEBIAN


def change_builder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Entry:
    monkeypatch.setattr(metadata, "version", lambda name: "99")
    return DEBIAN


def change_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Entry:
    return dataclasses.replace(DEBIAN, environment={"DIB_RELEASE": "trixie"})


def change_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Entry:
    return dataclasses.replace(DEBIAN, elements=DEBIAN.elements[::-1])


@pytest.mark.parametrize(
    "change", [change_element, change_contract, change_builder, change_environment, change_order]
)
def test_the_name_changes_with_what_decides(
    change: Callable[[pytest.MonkeyPatch, Path], Entry], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = guestbuild._stem(DEBIAN, online=False)
    assert before == guestbuild._stem(DEBIAN, online=False)
    assert guestbuild._stem(change(monkeypatch, tmp_path), online=False) != before


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("echo E: no space; exit 2", r"failed:\n +E: no space"),
        ("exit 0", "ended well but left no image"),
        ('head -c 100000 /dev/urandom >"$1.raw"; exit 0', "sfdisk"),
    ],
    ids=["it fails", "no image", "no disk"],
)
def test_a_failed_build_leaves_its_log_alone(then: str, message: str, built: Dib) -> None:
    built.then = then
    with pytest.raises(LabError, match=message):
        guestbuild.build(DEBIAN)
    assert seen() == set()
    assert list((files.cache_dir() / "logs").iterdir())
    built.then = ""
    assert guestbuild.build(DEBIAN)


def test_a_failed_rebuild_keeps_the_image(built: Dib) -> None:
    first = guestbuild.build(DEBIAN)
    built.then = "exit 1"
    with pytest.raises(CommandFailed):
        guestbuild.build(DEBIAN, rebuild=True)
    assert guestbuild.find(DEBIAN) == first


def test_an_image_that_breaks_the_contract_gets_no_name(built: Dib) -> None:
    tree = sound(built.place / "tree")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tree / "usr/bin/growpart").unlink()
    make_disk(tree, built.disk)
    with pytest.raises(LabError) as caught:
        guestbuild.build(DEBIAN)
    first, *problems = caught.value.message.splitlines()
    assert first == "the built image breaks the contract:"
    assert [problem.split()[0] for problem in problems] == ["growpart", "/etc/machine-id"]
    assert seen() == set()


def test_two_builds_at_once_are_one(built: Dib, capsys: pytest.CaptureFixture[str]) -> None:
    built.then = "sleep 0.5"
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(guestbuild.build, DEBIAN) for _ in range(2))
    assert first.result() == second.result()
    assert len(built.calls) == 1
    assert capsys.readouterr().err.count("building the guest image") == 1


def test_a_kill_between_file_and_description(built: Dib, monkeypatch: pytest.MonkeyPatch) -> None:
    guestbuild.build(DEBIAN)
    with built.disk.open("r+b") as handle:
        handle.seek(20 << 20)
        handle.write(b"new")
    with monkeypatch.context() as killed:
        killed.setattr(files, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            guestbuild.build(DEBIAN, rebuild=True)
    assert guestbuild.find(DEBIAN) == ()
    (image,) = guestbuild.build(DEBIAN)
    assert image.sha512 == hashlib.sha512(image.path.read_bytes()).hexdigest()


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "json cut", "json gone", "json odd"])
def test_corrupt_leftovers_are_made_anew(damage: str, built: Dib) -> None:
    (image,) = guestbuild.build(DEBIAN)
    description = variants.description_of(image.path)
    match damage:
        case "cut":
            os.truncate(image.path, 1000)
        case "changed":
            image.path.write_bytes(b"x" * image.size)
        case "gone":
            image.path.unlink()
        case "json cut":
            description.write_text('{"name": ')
        case "json gone":
            description.unlink()
        case "json odd":
            description.write_text("[1]")
    assert guestbuild.find(DEBIAN) == ()
    (again,) = guestbuild.build(DEBIAN)
    assert again.sha512 == hashlib.sha512(again.path.read_bytes()).hexdigest()
    assert len(built.calls) == 2


def test_a_copied_cache_is_hashed_once(built: Dib, monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = guestbuild.build(DEBIAN)
    os.utime(image.path)
    hashed: list[Path] = []
    real = variants.sha512

    def sha512(path: Path) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(variants, "sha512", sha512)
    assert guestbuild.find(DEBIAN) == (image,)
    assert guestbuild.find(DEBIAN) == (image,)
    assert hashed == [image.path]


def test_what_a_kill_left_is_not_built_upon(built: Dib) -> None:
    files.write(place() / f".building-{guestbuild._stem(DEBIAN, online=False)}" / "image.raw", "rubbish")
    guestbuild.build(DEBIAN)
    assert not [name for name in seen() if name.startswith(".")]


def test_what_this_machine_lacks_is_said_before(built: Dib, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestbuild, "_PROGRAMS", {"no-such-program": "some-package"})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(dib, "has_device_mapper", lambda: False)
    for name, lines in {"debian-12": 3, "rocky-9": 4, "centos-stream-9": 4}.items():
        with pytest.raises(LabError, match="cannot be made here") as caught:
            guestbuild.build(catalogue.shipped()[name])
        assert len(caught.value.message.splitlines()) == lines
    assert built.calls == []


# -- fetched --------------------------------------------------------------------------


@pytest.fixture
def published(built: Dib, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A publisher: `disk` is the file at the address, `down` whether he answers."""
    state: dict[str, Any] = {"disk": tmp_path / "published.qcow2", "down": False, "fetched": 0}
    variants.convert(built.disk, "raw", state["disk"], "qcow2", "zlib", tmp_path / "log")

    def checksum(checksums: str, url: str) -> str:
        if state["down"]:
            raise LabError("no answer")
        return f"sha256:{hashlib.sha256(state['disk'].read_bytes()).hexdigest()}"

    def fetch(url: str, path: Path, digest: str, progress: object) -> None:
        state["fetched"] += 1
        shutil.copy(state["disk"], path)

    monkeypatch.setattr(download, "published", checksum)
    monkeypatch.setattr(download, "fetch", fetch)
    return state


def test_a_fetched_image_stays_as_it_was_published(published: dict[str, Any]) -> None:
    assert guestbuild.find(CLOUD) == ()
    (image,) = guestbuild.build(CLOUD)
    assert image.path.read_bytes() == published["disk"].read_bytes()
    assert image.sha512 == hashlib.sha512(published["disk"].read_bytes()).hexdigest()
    assert image.properties["image_source"] == CLOUD.url
    assert guestbuild.build(CLOUD) == guestbuild.find(CLOUD) == (image,)
    assert published["fetched"] == 1
    images = guestbuild.build(dataclasses.replace(CLOUD, formats=("qcow2", "raw")))
    assert [image.disk_format for image in images] == ["qcow2", "raw"]
    assert published["fetched"] == 1


def test_a_new_version_is_fetched_beside_the_old(published: dict[str, Any], built: Dib) -> None:
    (old,) = guestbuild.build(CLOUD)
    with built.disk.open("r+b") as handle:
        handle.seek(20 << 20)
        handle.write(b"new")
    variants.convert(built.disk, "raw", published["disk"], "qcow2", "zlib", built.place / "log")
    (new,) = guestbuild.build(CLOUD)
    assert new.path != old.path and old.path.exists()


def test_without_the_publisher_the_version_seen_last_serves(
    published: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    published["down"] = True
    with pytest.raises(LabError, match="no answer"):
        guestbuild.build(CLOUD)
    published["down"] = False
    first = guestbuild.build(CLOUD)
    published["down"] = True
    assert guestbuild.build(CLOUD) == first
    assert "no answer; the version seen last is taken" in capsys.readouterr().err


def test_a_fetched_file_of_another_format_is_refused(published: dict[str, Any]) -> None:
    published["disk"].write_text("<html>")
    with pytest.raises(CommandFailed, match="qemu-img"):
        guestbuild.build(CLOUD)
    assert not [name for name in seen() if name.endswith("qcow2")]


def test_nothing_is_fetched_without_what_examines_it(
    published: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(guestbuild, "_PROGRAMS", {"qemu-img": "qemu-utils"})
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "qemu-img" else which(name))
    with pytest.raises(LabError, match="cannot be made here:\n  qemu-utils is not installed"):
        guestbuild.build(CLOUD)
    assert published["fetched"] == 0
    # Nobody looks into these.
    published["disk"].write_bytes(b"x")
    assert guestbuild.build(dataclasses.replace(CLOUD, format="aki", formats=("aki",)))


def test_a_fetched_file_that_is_not_raw_is_refused(published: dict[str, Any]) -> None:
    with pytest.raises(LabError, match="it is qcow2, not raw") as caught:
        guestbuild.build(dataclasses.replace(CLOUD, format="raw"))
    assert "`format`" in caught.value.hint
    published["disk"].write_bytes(b"\xfd7zXZ\x00...")
    with pytest.raises(LabError, match="it is compressed by xz, not raw"):
        guestbuild.build(dataclasses.replace(CLOUD, format="raw"))
    assert not [name for name in seen() if not name.endswith("published.json")]


def test_a_fetched_image_larger_than_its_min_disk_is_refused(published: dict[str, Any]) -> None:
    argv: list[str | Path] = ["qemu-img", "resize", "-q", published["disk"], str((2 << 30) + 512)]
    subprocess.run(argv, check=True)
    with pytest.raises(InvalidInput, match=r"^images\.debian-12-cloud\.min_disk: 2 GiB .*: write 3$"):
        guestbuild.build(dataclasses.replace(CLOUD, min_disk=2))
    assert guestbuild.find(CLOUD) == ()
    # What was fetched stays, and is not fetched again.
    assert [name for name in seen() if name.endswith(".qcow2")]
    assert guestbuild.build(dataclasses.replace(CLOUD, min_disk=3))


def test_a_fetched_image_that_reads_our_files_is_refused(published: dict[str, Any], tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"s" * 4096)
    published["disk"].unlink()
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", published["disk"]]
    subprocess.run(argv, check=True)
    with pytest.raises(LabError, match=r"needs another file, .*secret\.raw"):
        guestbuild.build(CLOUD)
    assert not [name for name in seen() if name.endswith("qcow2")]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("# Disk DescriptorFile", "is only the description of a vmdk"),
        ("version=1", r"needs another file, .*secret\.raw"),
    ],
)
def test_a_fetched_vmdk_that_reads_our_files_is_refused(
    first: str, message: str, published: dict[str, Any], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"s" * 65536)
    published["disk"].write_text(
        f'{first}\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 128 FLAT "{secret}" 0\n'
    )
    with pytest.raises(LabError, match=message):
        guestbuild.build(dataclasses.replace(CLOUD, format="vmdk"))
    assert not [name for name in seen() if not name.endswith("published.json")]


def test_kinds_of_vmdk(built: Dib, tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    for kind in ("monolithicSparse", "streamOptimized"):
        argv: list[str | Path] = ["qemu-img", "convert", "-O", "vmdk", "-o", f"subformat={kind}"]
        subprocess.run([*argv, built.disk, path], check=True)
        variants.inspect(path, "vmdk", tmp_path / "log")
    # Its only part is itself.
    ids = "version=1\nCID=fffffffe\nparentCID=ffffffff\n"
    path.write_text(f'{ids}createType="monolithicFlat"\nRW 1 FLAT "a.vmdk" 0\n')
    with pytest.raises(LabError, match="is a vmdk of the kind monolithicFlat"):
        variants.inspect(path, "vmdk", tmp_path / "log")


def test_leftovers(published: dict[str, Any], built: Dib) -> None:
    (old,) = guestbuild.build(dataclasses.replace(DEBIAN, environment={"DIB_RELEASE": "trixie"}))
    guestbuild.build(DEBIAN)
    guestbuild.build(CLOUD)
    names = {path.name for path in guestbuild.leftovers([DEBIAN, CLOUD])}
    stem = old.path.name.removesuffix(".zstd.qcow2")
    assert names == {old.path.name, f"{old.path.name}.json", f"{stem}.packages.txt"}


# -- booted ---------------------------------------------------------------------------

REPORT = {
    "kernel": KERNEL,
    "root-mib": "3773",
    "address": "10.0.2.15",
    **dict.fromkeys(("chrony", "ssh", "agent"), "up"),
    "host-keys": "1",
    "done": "",
}


def test_a_boot_is_done_once(built: Dib, monkeypatch: pytest.MonkeyPatch) -> None:
    boots: list[Path] = []

    def boot(path: Path, *_: object) -> dict[str, str]:
        boots.append(path)
        return dict(REPORT)

    monkeypatch.setattr(guestboot, "boot", boot)
    (image,) = guestbuild.build(DEBIAN, boot=True)
    guestbuild.build(DEBIAN, boot=True)
    assert boots == [image.path]
    assert files.read_json(variants.description_of(image.path))["boot"]["kernel"] == KERNEL
    assert guestbuild.find(DEBIAN) == (image,)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, ""),
        ({"kernel": "6.1.0-9-amd64"}, f"it runs 6.1.0-9-amd64, not {KERNEL}"),
        ({"chrony": "down"}, "chrony is not running"),
        ({"root-mib": "1700"}, "did not grow"),
        ({"address": ""}, "no address by DHCP"),
        ({"host-keys": "0"}, "no host keys"),
    ],
)
def test_what_a_boot_has_to_show(changed: dict[str, str], problem: str) -> None:
    found = guestboot.problems({**REPORT, **changed}, 4, KERNEL)
    assert len(found) == bool(problem)
    assert problem in "".join(found)


def test_a_guest_that_does_not_report(built: Dib, monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = guestbuild.build(DEBIAN)
    monkeypatch.setattr(
        guestboot, "argv", lambda *_: ["sh", "-c", "echo STACKLAB-BOOT chrony=up; echo Panic"]
    )
    monkeypatch.setattr(guestboot, "make_seed", lambda path: None)
    with pytest.raises(LabError, match=r"(?s)ended before it reported.*Panic"):
        guestboot.boot(image.path, "qcow2", 1, 512, files.cache_dir() / "logs/boot.log")
    assert not [name for name in seen() if name.startswith(".booting")]
    monkeypatch.setattr(guestboot, "argv", lambda *_: ["sleep", "60"])
    with pytest.raises(CommandFailed, match="did not end within 0 s"):
        guestboot.boot(image.path, "qcow2", 1, 512, files.cache_dir() / "logs/boot.log", deadline=0.2)


def test_what_a_guest_says_is_understood(built: Dib, monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = guestbuild.build(DEBIAN)
    lines = "\\r\\n".join(f"STACKLAB-BOOT {key}={value}" for key, value in REPORT.items())
    said = f"noise [   75.4] cloud-init: x\\r\\n{lines}\\r\\nSTACKLAB-BOOT done\\r\\n"
    monkeypatch.setattr(guestboot, "argv", lambda *_: ["printf", said])
    monkeypatch.setattr(guestboot, "make_seed", lambda path: None)
    report = guestboot.boot(image.path, "qcow2", 1, 512, files.cache_dir() / "logs/boot.log")
    assert report == REPORT


@pytest.mark.skipif(shutil.which("mcopy") is None, reason="mtools are not installed")
def test_the_seed(tmp_path: Path) -> None:
    seed = tmp_path / "seed.img"
    guestboot.make_seed(seed)
    listed = subprocess.run(
        ["mdir", "-b", "-i", seed, "::"], capture_output=True, text=True, check=True
    ).stdout
    assert listed.split() == ["::/meta-data", "::/user-data"]
    label = subprocess.run(
        ["mlabel", "-s", "-i", seed, "::"], capture_output=True, text=True, check=True
    ).stdout
    assert "CIDATA" in label
