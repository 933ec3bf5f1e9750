"""What is shared of diskimage-builder, and the block-device plugin with its commands faked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from diskimage_builder.block_device.exception import (  # type: ignore[import-untyped]
    BlockDeviceSetupException,
)

from stacklab import dib, dib_partx, files, ui
from stacklab.errors import CommandFailed, LabError
from stacklab.run import run


def no_device_mapper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dib, "_CONTROL", tmp_path / "control")


def test_dibs_own_partitioning_where_device_mapper_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_device_mapper(monkeypatch, tmp_path)
    (tmp_path / "control").touch()
    assert dib.block_device() == {}


def test_the_plugin_where_it_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_device_mapper(monkeypatch, tmp_path)
    (value,) = dib.block_device().values()
    layout = Path(value.removeprefix("file://"))
    first, second = yaml.safe_load(layout.read_text())
    assert first == {"local_loop": {"name": "image0"}}
    assert list(second) == [dib.PLUGIN] == [dib_partx.NAME]


def test_the_entry_point_is_the_plugin() -> None:
    (entry,) = metadata.entry_points(group="diskimage_builder.block_device.plugin", name=dib.PLUGIN)
    assert entry.load() is dib_partx.Partx


def test_an_installation_older_than_the_plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_device_mapper(monkeypatch, tmp_path)
    monkeypatch.setattr(metadata, "entry_points", lambda **_: ())
    with pytest.raises(LabError, match="no device-mapper") as caught:
        dib.block_device()
    assert "pip install" in caught.value.hint


def test_digests_follow_what_elements_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "PROJECT", tmp_path)
    files.write(tmp_path / "elements/one/element-deps", "two\nvm\n")
    files.write(tmp_path / "elements/two/element-deps", "one\n")
    before = dib.element_digests(["one", "debian-minimal"])
    assert {name: digest == "dib" for name, digest in before.items()} == {
        "one": False,
        "two": False,
        "vm": True,
        "debian-minimal": True,
    }
    files.write(tmp_path / "elements/two/README.rst", "changed")
    after = dib.element_digests(["one", "debian-minimal"])
    assert [name for name in before if before[name] != after[name]] == ["two"]


SOURCES = """Types: deb
URIs: https://docker.example/linux/debian
Suites: bookworm
Components: stable
Trusted: yes

Types: deb
URIs: tor+http://onion.example/debian
Suites: bookworm
Components: main
Trusted: yes

Types: deb
URIs: {archive}
Suites: bookworm bookworm-updates
Components: contrib main
Trusted: yes

Types: deb
URIs: {security}
Suites: bookworm-security
Components: main
Trusted: yes

Types: deb
URIs: http://second.example/debian
Suites: bookworm
Components: main
Trusted: yes

Types: deb
URIs: https://vagrant.example
Suites: bookworm
Components: main
Trusted: yes
"""
FETCHED = {
    "docker.example_linux_debian_dists_bookworm": "Docker",
    "onion.example_debian_dists_bookworm": "Debian",
    "first.example_debian_dists_bookworm": "Debian",
    "first.example_s_dists_bookworm-security": "Debian",
    "second.example_debian_dists_bookworm": "Debian",
    "vagrant.example_dists_bookworm": "a publisher",
}


def apt(place: Path, monkeypatch: pytest.MonkeyPatch, archive: str, security: str) -> None:
    """The real apt with sources and fetched lists of the test's own."""
    if not shutil.which("apt-get"):
        pytest.skip("apt is not here")
    files.write(place / "test.sources", SOURCES.format(archive=archive, security=security))
    listed = str(place).replace("_", "%5f").replace("/", "_")
    names = {
        **FETCHED,
        f"{listed}_archive.list_dists_bookworm": "Debian",
        f"{listed}_security.list_dists_bookworm-security": "Debian",
    }
    for name, origin in names.items():
        about = f"Origin: {origin}\nCodename: {name.rpartition('_')[2]}\nComponents: contrib main stable\n"
        dated = "Architectures: amd64\nDate: Sat, 01 Jan 2022 00:00:00 UTC\nSHA256:\n"
        files.write(place / "lists" / f"{name}_Release", about + dated)
        for component in ("contrib", "main", "stable"):
            files.write(place / "lists" / f"{name}_{component}_binary-amd64_Packages", "")
    configuration = {"Etc::sourcelist": "test.sources", "State::lists": "lists"}
    lines = [f'Dir::{name} "{place / path}";' for name, path in configuration.items()]
    files.write(place / "apt.conf", "\n".join([*lines, 'Dir::Etc::sourceparts "-";\n']))
    monkeypatch.setenv("APT_CONFIG", str(place / "apt.conf"))


def test_mirrors_are_debians_own_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others name their suites after Debian's, and the last of all lines is one of theirs."""
    apt(tmp_path, monkeypatch, "http://first.example/debian/", "https://first.example/s/")
    assert dib.apt_mirrors("bookworm") == ("http://first.example/debian", "https://first.example/s")
    assert dib.apt_mirrors("trixie") == ("", "")


def test_mirrors_that_are_listed_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Debian's cloud images."""
    listed = [f"mirror+file://{tmp_path}/{name}.list" for name in ("archive", "security")]
    apt(tmp_path, monkeypatch, *listed)
    files.write(
        tmp_path / "archive.list",
        "# ours\nftp://a.example/\nhttps://a.example/debian\tpriority:1\nhttp://b.example/debian\n",
    )
    assert dib.apt_mirrors("bookworm") == ("https://a.example/debian", "")
    files.write(tmp_path / "archive.list", "ftp://a.example/\n")
    files.write(tmp_path / "security.list", "http://s.example/s")
    assert dib.apt_mirrors("bookworm") == ("http://second.example/debian", "http://s.example/s")


def test_a_build_has_the_modes_that_git_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever umask the checkout was made under, and with the times that it has."""
    monkeypatch.setattr(files, "PROJECT", tmp_path)
    own = tmp_path / "elements" / "one"
    files.write(own / "static/etc/file", "", 0o640)
    files.write(own / "install.d/10-one", "#!/bin/sh\n", 0o750)
    (own / "static/etc/link").symlink_to("/nowhere")
    for name in ("static/etc", "static", "install.d", ".", ".."):
        (own / name).chmod(0o750)
        os.utime(own / name, (1600000000, 1600000000))
    os.utime(own / "static/etc/file", (1500000000, 1500000000))
    copy = Path(dib.environment(tmp_path / "work", {}, ("", ""))["ELEMENTS_PATH"])
    assert copy.is_relative_to(tmp_path / "work" / "tmp")
    found = {str(path.relative_to(copy)): path.lstat() for path in (copy, *copy.rglob("*"))}
    modes = {name: about.st_mode & 0o777 for name, about in found.items()}
    assert {name for name, mode in modes.items() if mode == 0o644} == {"one/static/etc/file"}
    assert {mode for name, mode in modes.items() if not name.endswith(("file", "link"))} == {0o755}
    assert (copy / "one/static/etc/link").readlink() == Path("/nowhere")
    assert found["one/static/etc/file"].st_mtime == 1500000000 and found["one/static"].st_mtime == 1600000000


def test_a_mirror_over_https_needs_certificates(tmp_path: Path) -> None:
    for security, needed in (("https://a.example/s", True), ("http://a.example/s", False)):
        found = dib.environment(tmp_path / str(needed), {}, ("http://a.example/debian", security))
        assert ("ca-certificates" in found.get("DIB_MMDEBSTRAP_EXTRA_ARGS", "")) is needed


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "x | dib-run-parts Running /tmp/b/hooks/install.d/01-package-installs",
            "install.d: 01-package-installs",
        ),
        ("x | Setting up chrony (4.3-2) ...", "Setting up chrony"),
        ("x | anything else", None),
    ],
)
def test_progress(line: str, shown: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(ui, "detail", seen.append)
    dib.progress(line)
    assert seen == ([shown] if shown else [])


def test_a_failed_build_says_what_its_programs_said(tmp_path: Path) -> None:
    stamp = "2026-11-24 21:01:09.257 | "
    said = (
        f"{stamp}> Error: \n{stamp}>  Problem: conflicting requests\n{stamp}>   - nothing provides x\n"
        f"{stamp}Unmount /somewhere\n{stamp}INFO nothing to do\n"
    )
    argv = ["sh", "-c", f"cat <<'E'\n{said}E\nexit 1"]
    with pytest.raises(CommandFailed) as caught:
        dib.build(argv, tmp_path / "log", {}, 60)
    assert caught.value.message == (
        "diskimage-builder failed:\n    Error:\n"
        "     Problem: conflicting requests\n      - nothing provides x"
    )
    # Nothing that looks like a fault: what the hook said that was the last one.
    said = (
        f"{stamp}E: Can not write log (Is /dev/pts mounted?)\n"
        f"{stamp}dib-run-parts Running /tmp/in_target.d/install.d/65-one\n{stamp}well\n"
        f"{stamp}dib-run-parts Running /tmp/in_target.d/install.d/70-two\n"
        f"{stamp}patching file x\n{stamp}can't find file to patch\n"
        f"{stamp}Unmount /somewhere\n{stamp}INFO diskimage_builder.block_device [-] nothing to do\n"
    )
    (tmp_path / "said").write_text(said)
    with pytest.raises(CommandFailed) as caught:
        dib.build(["sh", "-c", f"cat {tmp_path}/said; exit 1"], tmp_path / "log", {}, 60)
    assert caught.value.message == (
        f"sh -c 'cat {tmp_path}/said; exit 1' ended with exit code 1\n    in install.d/70-two:\n"
        "    patching file x\n    can't find file to patch"
    )
    with pytest.raises(CommandFailed, match="ended with exit code 3"):
        dib.build(["sh", "-c", "exit 3"], tmp_path / "log", {}, 60)


def test_builds_of_one_cache_wait_for_each_other(tmp_path: Path) -> None:
    argv = ["sh", "-c", f"mkdir {tmp_path}/busy && sleep 0.2 && rmdir {tmp_path}/busy"]

    def build(number: int) -> None:
        dib.build(argv, tmp_path / f"log{number}", {"DIB_IMAGE_CACHE": str(tmp_path / "cache")}, 60)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(build, range(3)))


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a build that never ends: as sudo does, it starts a session of its own in between."""
    if os.geteuid() != 0:
        pytest.skip("builds need root")
    fake = tmp_path / "bin" / "disk-image-create"
    fake.parent.mkdir()
    fake.write_text(
        f"#!/bin/bash\ntrap 'touch {tmp_path}/cleaned' EXIT\n"
        f"setsid sh -c 'echo begun; exec sleep 987.{os.getpid()}' & wait\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake.with_name("python")))
    argv = dib.argv(["element"], "tar", tmp_path / "image")
    monkeypatch.undo()
    return argv


def running() -> list[str]:
    argv = ["pgrep", "-f", f"^sleep 987.{os.getpid()}"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()


def ended() -> bool:
    """Whether nothing of `endless` runs any more, within two seconds."""
    for _ in range(20):
        if not running():
            return True
        time.sleep(0.1)
    return False


def test_nothing_outlives_an_interrupted_build(endless: list[str], tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(endless, each_line=interrupt)
    assert ended()
    assert (tmp_path / "cleaned").is_file(), "dib could not detach its loop devices"


def test_nothing_outlives_a_killed_build(endless: list[str]) -> None:
    program = (
        f"from stacklab.run import run\nrun({endless!r}, each_line=lambda line: print(line, flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=files.PROJECT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "begun\n"
        assert len(running()) == 1
        parent.kill()
    assert ended()


def test_a_killed_build_leaves_no_loop_device(tmp_path: Path) -> None:
    """Neither its own next build nor another's keeps its disk."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    devices = []
    for name in ("mine", "other"):
        disk = tmp_path / f".building-{name}" / "image0.raw"
        files.write(disk, "\0" * 4096)
        argv = ["losetup", "--find", "--show", str(disk)]
        devices.append(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip())
    try:
        work = dib.workplace(tmp_path, "mine")
        used = subprocess.run(
            ["losetup", "--list", "-n", "-O", "NAME"], capture_output=True, text=True, check=True
        )
        assert not set(devices) & set(used.stdout.split())
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [work.name]
        assert list(work.iterdir()) == []
    finally:
        for device in devices:
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


LAYOUT = {
    "base": "image0",
    "label": "mbr",
    "partitions": [
        {"base": "image0", "name": "boot", "flags": ["boot", "primary"], "size": "10%"},
        {"base": "image0", "name": "root", "flags": ["primary"], "size": "100%"},
    ],
}


class Disk:
    """A disk of 64 MiB and the commands that dib would have run."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        image = place / "disk.raw"
        with image.open("wb") as handle:
            handle.truncate(64 << 20)
        self.state: dict[str, Any] = {"blockdev": {"image0": {"image": str(image), "device": "/dev/loop7"}}}
        self.commands: list[list[str]] = []
        self.fails = 0
        monkeypatch.setattr(dib_partx, "exec_sudo", self.run)
        monkeypatch.setattr(dib_partx, "sleep", lambda seconds: None)
        self.plugin = dib_partx.Partx(LAYOUT, {}, self.state)

    def run(self, command: list[str]) -> None:
        self.commands.append(command)
        if "--delete" in command and self.fails:
            self.fails -= 1
            raise BlockDeviceSetupException("busy")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


def test_partitions_come_from_the_kernel(disk: Disk) -> None:
    for _ in disk.plugin.get_nodes():
        disk.plugin.create()
    devices = {name: disk.state["blockdev"][name]["device"] for name in ("boot", "root")}
    assert devices == {"boot": "/dev/loop7p1", "root": "/dev/loop7p2"}
    assert disk.commands == [["sync"], ["partx", "--update", "/dev/loop7"]]
    sector = Path(disk.state["blockdev"]["image0"]["image"]).read_bytes()[:512]
    assert sector[510:] == b"\x55\xaa" and sector[446] == 0x80


def test_a_failure_later_removes_them(disk: Disk) -> None:
    disk.plugin.create()
    disk.commands.clear()
    # dib's own would call dmsetup
    assert [len(partition.rollbacks) for partition in disk.plugin.get_nodes()] == [1, 0]
    for partition in disk.plugin.get_nodes():
        partition.rollback()
    assert disk.commands == [["partx", "--delete", "/dev/loop7"]]


def test_they_are_removed_after_the_last_one_and_patiently(disk: Disk) -> None:
    nodes = disk.plugin.get_nodes()
    for _ in nodes:
        disk.plugin.create()
    disk.commands.clear()
    disk.plugin.umount()
    assert disk.commands == []
    disk.fails = 3
    disk.plugin.umount()
    assert disk.commands == [["partx", "--delete", "/dev/loop7"]] * 4


def test_they_are_not_waited_for_for_ever(disk: Disk) -> None:
    disk.fails = 99
    for _ in disk.plugin.get_nodes():
        disk.plugin.create()
    disk.plugin.umount()
    with pytest.raises(BlockDeviceSetupException):
        disk.plugin.umount()
    assert disk.fails == 99 - 20
