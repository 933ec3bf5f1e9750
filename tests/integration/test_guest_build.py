"""The debian-12 guest: built by diskimage-builder, checked, converted, booted under QEMU.

The image is kept in the user's cache, so only the first run, or one after a change of the
elements, builds (about 2 minutes). The boot is done every time (about 1.5 minutes without KVM).
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from stacklab import catalogue, contract, dib, files, guestboot, guestbuild, guestcontract, variants
from stacklab.guests import GuestImage
from tests.integration import needs

pytestmark = pytest.mark.integration

ENTRY = catalogue.shipped()["debian-12"]


@pytest.fixture(scope="module")
def image() -> GuestImage:
    needs.root("diskimage-builder")
    (built,) = guestbuild.build(ENTRY)
    return built


@pytest.fixture(scope="module")
def raw(image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same image, raw, for tools that read no qcow2."""
    place = tmp_path_factory.mktemp("guest")
    variants.convert(image.path, "qcow2", place / "image.raw", "raw", "", place / "log")
    return place / "image.raw"


def test_the_image_is_whole(image: GuestImage) -> None:
    assert image.sha512 == variants.sha512(image.path)
    assert image.size == image.path.stat().st_size
    assert 100 << 20 < image.size < 600 << 20
    check = subprocess.run(["qemu-img", "check", image.path], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout


def test_it_is_there_at_once_the_second_time(image: GuestImage) -> None:
    start = time.monotonic()
    assert guestbuild.build(ENTRY) == (image,)
    assert time.monotonic() - start < 1


def test_nothing_of_the_build_stays_behind(image: GuestImage) -> None:
    assert not list(image.path.parent.glob(".building-debian-12-*"))
    held = subprocess.run(
        ["losetup", "--list", "-n", "-O", "BACK-FILE"], capture_output=True, text=True, check=True
    )
    assert str(files.cache_dir()) not in held.stdout


def test_its_files_keep_the_contract(raw: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    guestcontract.extract(raw, tree, tmp_path / "log")
    assert guestcontract.check(tree) == []
    (kernel,) = contract.kernels(tree)
    packages = (tree / guestcontract.PACKAGES).read_text()
    assert f"linux-image-{kernel} " in packages
    stem = image_stem(guestbuild.find(ENTRY)[0])
    assert packages == (files.cache_dir() / "guests" / f"{stem}.packages.txt").read_text()
    for name in ("chrony", "cloud-guest-utils", "cloud-init", "openssh-server", "qemu-guest-agent"):
        assert f"\n{name} " in packages


def test_it_does_not_know_where_it_was_built(raw: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    guestcontract.extract(raw, tree, tmp_path / "log")
    assert not list((tree / "etc/apt/sources.list.d").glob("*"))
    assert not (tree / "etc/dib-manifests/dib_environment").exists()
    assert not (tree / "etc/apt/sources.list").exists()


def test_what_breaks_the_contract_is_seen_in_the_real_image(raw: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.raw"
    subprocess.run(["cp", "--sparse=always", raw, broken], check=True)
    machine_id = tmp_path / "machine-id"
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    requests = (
        "rm /usr/bin/growpart\nrm /etc/machine-id\n"
        f"write {machine_id} /etc/machine-id\nrm /etc/systemd/system/multi-user.target.wants/chrony.service\n"
    )
    argv = ["debugfs", "-w", "-f", "/dev/stdin", f"{broken}?offset=1048576"]
    subprocess.run(argv, input=requests, text=True, check=True, capture_output=True)
    guestcontract.extract(broken, tmp_path / "tree", tmp_path / "log")
    assert [problem.split()[0] for problem in guestcontract.check(tmp_path / "tree")] == [
        "growpart",
        "chrony",
        "/etc/machine-id",
    ]


def test_it_boots(image: GuestImage, tmp_path: Path) -> None:
    needs.program("qemu-system-x86_64")
    log = tmp_path / "console.log"
    report = guestboot.boot(image.path, "qcow2", 4, ENTRY.min_ram, log)
    known = json.loads(variants.description_of(image.path).read_text())
    assert guestboot.problems(report, 4, known["kernel"]) == []
    assert report["source"] == "nocloud"
    assert int(report["apt-sources"]) >= 3  # the release, its updates, its security: by cloud-init
    assert "login:" in log.read_text(errors="replace")
    # the layer took all writes
    assert variants.sha512(image.path) == image.sha512


@pytest.mark.parametrize("disk_format", ["raw", "vmdk", "vdi", "vhd"])
def test_the_other_formats_hold_the_same_disk(disk_format: str, raw: Path, tmp_path: Path) -> None:
    target = tmp_path / f"image.{disk_format}"
    variants.convert(raw, "raw", target, disk_format, "", tmp_path / "log")
    argv: list[str | Path] = [
        "qemu-img",
        "compare",
        "-f",
        "raw",
        "-F",
        variants.qemu_name(disk_format),
        raw,
        target,
    ]
    compared = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "Images are identical" in compared.stdout, compared.stdout + compared.stderr


def test_the_plugin_was_needed_where_there_is_no_device_mapper(image: GuestImage) -> None:
    if dib.has_device_mapper():
        pytest.skip("device-mapper works here: dib's own partitioning was used")
    assert dib.block_device()


def image_stem(image: GuestImage) -> str:
    """The name before compression and format."""
    return image.path.name.split(".")[0]
