"""Golden images of EL, against repositories of the test's own: one that is good, and broken inputs.

What it shows and what it does not: see elfixture.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stacklab import base, contract, diskfiles, distributions, files, goldenshow, releases
from stacklab.errors import LabError
from tests.integration import elfixture, needs, vagrant_boxes
from tests.integration.elfixture import Fixture, Server
from tests.lab.driving import ending

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fixture, Server]]:
    needs.root("building")
    for name in elfixture.TOOLS:
        needs.program(name)
    with elfixture.serving(tmp_path_factory.mktemp("el") / "fixture") as found:
        found[0].rootfs()
        yield found


@pytest.fixture(scope="module")
def spec(served: tuple[Fixture, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[base.Spec]:
    """rocky-9 from the fixture's mirror, in a cache of the module's own."""
    fixture, server = served
    own, release = elfixture.row(server), elfixture.release(server)
    known, known_release = distributions.distribution, releases.release
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fixture.environment().items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(distributions, "distribution", lambda name: own if name == "rocky-9" else known(name))
        patch.setattr(releases, "release", lambda name: release if name == "epoxy" else known_release(name))
        yield base.spec("rocky-9", "libvirt", mirror=elfixture.mirror(server))


@pytest.fixture(scope="module")
def image(spec: base.Spec) -> base.Golden:
    return base.build(spec)


def left_behind() -> list[str]:
    """What a build that ended has no business to leave: images, loop devices, mounts."""
    place = files.cache_dir()
    found = [path.name for path in (place / "images").iterdir() if path.suffix != ".lock"]
    argv = ["losetup", "--list", "-n", "-O", "BACK-FILE"]
    loops = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    found += [line for line in loops.splitlines() if str(place) in line]
    mounts = Path("/proc/self/mounts").read_text()
    return found + [line for line in mounts.splitlines() if str(place) in line]


@pytest.fixture
def broken(
    spec: base.Spec, served: tuple[Fixture, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fixture]:
    """The fixture, to be broken: what lies in its repositories is put back afterwards. An empty cache."""
    fixture, _ = served
    kept = tmp_path / "kept"
    shutil.copytree(fixture.served, kept)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield fixture
    shutil.rmtree(fixture.served)
    shutil.copytree(kept, fixture.served)


def test_it_is_a_golden_image(image: base.Golden, spec: base.Spec) -> None:
    assert image == base.wanted(spec)
    packages = (image.directory / "packages.txt").read_text().splitlines()
    names = {line.split()[0] for line in packages}
    assert {"chrony", "kernel", "openstack-packstack", "centos-release-openstack-epoxy"} <= names
    # name, version, architecture and the digest of the header that rpm verified
    assert all(len(line.split()) == 4 and len(line.split()[3]) == 64 for line in packages)
    assert packages == sorted(packages)


@pytest.fixture(scope="module")
def tree(image: base.Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files")
    raw = place / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image.disk, raw], check=True)
    diskfiles.extract(raw, place / "tree", contract.TREES, contract.PROBES, place / "log")
    raw.unlink()
    return place / "tree"


def test_the_repositories_end_as_they_came(tree: Path) -> None:
    rocky = (tree / "etc/yum.repos.d/rocky.repo").read_text()
    assert "mirrorlist=https://mirrors.rockylinux.org/" in rocky
    assert "\n#baseurl=http://dl.rockylinux.org/$contentdir/" in rocky
    crb = rocky.partition("[crb]")[2]
    assert "enabled=1" in crb
    assert "localhost" not in rocky


def test_services_and_selinux(tree: Path) -> None:
    for unit in ("chronyd.service", "sshd.service", "NetworkManager.service", "growroot.service"):
        assert contract.is_enabled(tree, unit), unit
    assert not contract.is_enabled(tree, "firewalld.service")
    assert "\nSELINUX=permissive\n" in "\n" + (tree / "etc/selinux/config").read_text()


def test_it_is_there_at_once_the_second_time(image: base.Golden, spec: base.Spec) -> None:
    start = time.monotonic()
    assert base.build(spec) == image
    assert time.monotonic() - start < 1


def test_its_box_is_accepted_by_vagrant(
    image: base.Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vagrant_boxes.accepted(image, tmp_path, monkeypatch)


def test_it_boots(image: base.Golden) -> None:
    """With a seed as labs make it: the repositories' kernel, chronyd, a login by ssh, a grown root."""
    needs.program("qemu-system-x86_64")
    report = goldenshow.verify(image, boot=True)
    assert report["kernel"] == files.read_json(image.directory / "metadata.json")["kernel"]


def test_only_news_are_built(
    image: base.Golden, spec: base.Spec, served: tuple[Fixture, Server], tmp_path: Path
) -> None:
    fixture, _ = served
    assert base.refresh(spec) == image
    fixture.kernel(3)
    fixture.index()
    newer = base.refresh(spec)
    try:
        assert newer != image and base.wanted(spec) == newer
        assert goldenshow.difference(image, newer) == [("kernel", "0:6.1.0-2.el9", "0:6.1.0-3.el9")]
    finally:
        next(fixture.repository["BaseOS"].glob("kernel-6.1.0-3.*")).unlink()
        fixture.index()


def no_newer_kernel(fixture: Fixture) -> None:
    fixture.kernel(3, needs="something-that-nobody-has")
    fixture.index()


def posttrans_fails(fixture: Fixture) -> None:
    # As dracut would on a full disk: no initramfs, and dnf ends well.
    fixture.kernel(3, breaks="exit 1")
    fixture.index()


def no_repository(fixture: Fixture) -> None:
    shutil.rmtree(fixture.repository["openstack"])


def wrong_digest(fixture: Fixture) -> None:
    (package,) = fixture.repository["openstack"].glob("openstack-packstack-*.rpm")
    data = bytearray(package.read_bytes())
    data[-20] ^= 0xFF
    package.write_bytes(data)


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (
            no_newer_kernel,
            "the newest kernel of the repositories is 6.1.0-3.el9, and 6.1.0-2.el9 is installed",
        ),
        (posttrans_fails, "has no initramfs"),
        (no_repository, "centos-openstack-epoxy"),
        (wrong_digest, "openstack-packstack"),
    ],
    ids=["newer kernel not installable", "failing %posttrans", "missing repository", "wrong digest"],
)
def test_a_broken_repository(
    breaks: Callable[[Fixture], None], said: str, broken: Fixture, spec: base.Spec
) -> None:
    breaks(broken)
    with pytest.raises(LabError) as caught:
        base.build(spec)
    assert said in caught.value.message
    assert left_behind() == []


def test_a_full_disk(
    broken: Fixture, spec: base.Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "small", place], check=True)
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        with pytest.raises(LabError, match=r"[Nn]o space left on device"):
            base.build(spec)
        assert not base.is_built(base.wanted(spec))
        assert not list((place / "stacklab" / "images").glob(".building-*"))
    finally:
        subprocess.run(["umount", place], check=True)


BUILD = """
import sys
from stacklab import base, distributions
import dataclasses
row = distributions.distribution("rocky-9")
own = dataclasses.replace(row, environment={"STACKLAB_ENABLING_REPOSITORY": sys.argv[2]})
distributions.distribution = lambda name: own
base.build(base.spec("rocky-9", "libvirt", mirror=sys.argv[1]))
"""


MOMENTS = (
    "root.d/08-containerfile",
    "install.d/60-openstack-el",
    "finalise.d/50-bootloader",
    "$ sfdisk",
    "$ qemu-img",
)


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt(moment: str, broken: Fixture, spec: base.Spec, tmp_path: Path) -> None:
    enabling = distributions.distribution("rocky-9").environment["STACKLAB_ENABLING_REPOSITORY"]
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, spec.mirror, enabling],
        cwd=files.PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    log = base.wanted(spec).directory.with_name(f".building-{base.wanted(spec).name}") / "build.log"
    with ending(process):
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            if log.is_file() and moment in log.read_text(errors="replace"):
                break
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0
    assert left_behind() == []


def test_two_builds_at_once_are_one(broken: Fixture, served: tuple[Fixture, Server], spec: base.Spec) -> None:
    served[1].asked.clear()
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(base.build, spec) for _ in range(2))
    assert first.result() == second.result()
    fetched = [
        path for path in served[1].asked if path.endswith("/openstack-packstack-26.0.0-1.el9.noarch.rpm")
    ]
    assert len(fetched) == 1
