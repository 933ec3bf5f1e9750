"""Golden images of EL with exactly the packages of another one, from repositories of the test's own.

What it shows and what it does not: see elfixture.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacklab import base, contract, diskfiles, distributions, files, goldenshow, releases
from stacklab.errors import LabError
from tests.integration import elfixture, needs
from tests.integration.elfixture import Fixture

PLUGINS = "usr/lib/python3/dist-packages/dnf-plugins"  # where the fixture's dnf, Debian's, has them

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fixture]:
    """The repositories, and a cache of the module's own. What a test adds to them stays."""
    needs.root("building")
    for name in elfixture.TOOLS:
        needs.program(name)
    with (
        elfixture.serving(tmp_path_factory.mktemp("el") / "fixture") as (found, server),
        pytest.MonkeyPatch.context() as patch,
    ):
        own, release = elfixture.row(server), elfixture.release(server)
        known, known_release = distributions.distribution, releases.release
        for name, value in found.environment().items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("STACKLAB_MIRROR", elfixture.mirror(server))
        patch.setattr(distributions, "distribution", lambda name: own if name == "rocky-9" else known(name))
        patch.setattr(releases, "release", lambda name: release if name == "epoxy" else known_release(name))
        yield found


@pytest.fixture(scope="module")
def first(fixture: Fixture) -> base.Golden:
    """The image whose manifest is the others' lock; its repositories then go on."""
    found = base.build(base.spec("rocky-9", "libvirt"))
    fixture.kernel(3)
    fixture.rpm("openstack-packstack", "openstack", build="2")
    fixture.index()
    return found


def locked(manifest: str | Path) -> base.Spec:
    return base.spec("rocky-9", "libvirt", manifest=goldenshow.manifest(str(manifest)))


def packages(image: base.Golden) -> str:
    return (image.directory / "packages.txt").read_text()


def cached() -> set[str]:
    """Everything among the images, but for locks."""
    place = files.cache_dir() / "images"
    return {path.name for path in place.iterdir() if path.suffix != ".lock"}


@pytest.fixture(scope="module")
def second(first: base.Golden) -> base.Golden:
    return base.build(locked(first.name))


def test_the_old_versions_where_newer_ones_are(
    first: base.Golden, second: base.Golden, fixture: Fixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(fixture.repository["BaseOS"].glob("kernel-6.1.0-3.el9.*"))
    assert second != first
    assert packages(second) == packages(first)
    assert "kernel 0:6.1.0-2.el9 x86_64 " in packages(second)
    goldenshow.show(second, as_json=False)
    said = capsys.readouterr().out
    digest = goldenshow.about(first)["manifest-sha256"]
    assert f"  locked: {first.name}\n" in said and f"  locked-manifest: {digest}\n" in said
    # Unchanged, it is not built again; and it is not what an ordinary build means.
    made = (second.directory / "metadata.json").stat().st_mtime_ns
    assert base.build(locked(second.directory)) == second
    assert (second.directory / "metadata.json").stat().st_mtime_ns == made
    assert base.wanted(base.spec("rocky-9", "libvirt")) == first


def unpacked(image: base.Golden, place: Path) -> Path:
    place.mkdir()
    raw = place / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image.disk, raw], check=True)
    diskfiles.extract(raw, place / "tree", (*contract.TREES, PLUGINS, "tmp"), contract.PROBES, place / "log")
    raw.unlink()
    return place / "tree"


def test_the_lock_leaves_no_trace(first: base.Golden, second: base.Golden, tmp_path: Path) -> None:
    one, other = (unpacked(image, tmp_path / image.key) for image in (first, second))
    names = {path.relative_to(tree) for tree in (one, other) for path in tree.rglob("*")}
    names = {name for name in names if name.parts[0] in ("etc", "root", "tmp", "usr")}
    assert Path(PLUGINS) / "config_manager.py" in names
    # What any two builds differ in.
    names -= {Path("etc/machine-id"), Path("etc/fstab")}
    for name in sorted(names):
        assert (one / name).is_file() == (other / name).is_file(), name
        if (one / name).is_file() and not (one / name).is_symlink():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_what_the_base_image_has_later_becomes_older(
    first: base.Golden, fixture: Fixture, tmp_path: Path
) -> None:
    """The lock is a file, and the container has a later release package than it."""
    older = (elfixture.HERE / "rocky-release.spec").read_text().replace("Release: 1.1.", "Release: 1.0.")
    files.write(tmp_path / "older.spec", older)
    fixture.rpm(str(tmp_path / "older"), "BaseOS")
    fixture.index()
    (rpm,) = fixture.repository["BaseOS"].glob("rocky-release-9.6-1.0.*")
    query = ["rpm", "-qp", "--nosignature", "--qf", "%{SHA256HEADER}", str(rpm)]
    digest = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    lines = [
        f"rocky-release 0:9.6-1.0.el9 noarch {digest}" if line.startswith("rocky-release ") else line
        for line in packages(first).splitlines()
    ]
    manifest = tmp_path / "manifest.txt"
    files.write(manifest, "\n".join(lines) + "\n")
    built = base.build(locked(manifest))
    assert packages(built) == manifest.read_text()
    assert goldenshow.difference(first, built) == [("rocky-release", "0:9.6-1.1.el9", "0:9.6-1.0.el9")]


@pytest.fixture
def going(
    first: base.Golden, fixture: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[base.Spec]:
    """A build locked to the first image, in an empty cache; what lies in the repositories is put back."""
    kept = tmp_path / "kept"
    shutil.copytree(fixture.served, kept)
    spec = locked(first.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield spec
    shutil.rmtree(fixture.served)
    shutil.copytree(kept, fixture.served)


def test_another_package_under_the_same_version(going: base.Spec, fixture: Fixture) -> None:
    """Only the digest tells; it is seen after the build."""
    fixture.rpm("openstack-packstack", "openstack", says="something-else")
    fixture.index()
    with pytest.raises(LabError) as caught:
        base.build(going)
    assert going.manifest is not None
    assert f"differs from the manifest {going.manifest.name}, and is not kept" in caught.value.message
    assert "changed: openstack-packstack: wanted 0:26.0.0-1.el9 noarch " in caught.value.message
    assert caught.value.message.count("changed") == 1
    assert cached() == set()


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        (
            {"openstack": "openstack-packstack-26.0.0-1.*", "BaseOS": "kernel-6.1.0-2.*"},
            "kernel 0:6.1.0-2.el9 x86_64, openstack-packstack 0:26.0.0-1.el9 noarch",
        ),
        (
            {"extras": "centos-release-openstack-epoxy-*"},
            "centos-release-openstack-epoxy 0:1-1.el9 noarch",
        ),
    ],
    ids=["what is installed last", "what adds the repositories"],
)
def test_what_is_gone_is_named_at_once(
    packages: dict[str, str], said: str, going: base.Spec, fixture: Fixture
) -> None:
    for repository, pattern in packages.items():
        (package,) = fixture.repository[repository].glob(pattern)
        package.unlink()
    fixture.index()
    with pytest.raises(LabError) as caught:
        base.build(going)
    assert f"gone: no repository has these packages of the manifest any more: {said}\n" in (
        caught.value.message + "\n"
    )
    assert cached() == set()
    (log,) = (files.cache_dir() / "logs").iterdir()
    assert "Running /tmp/in_target.d/pre-install.d/01-stacklab-locked" in log.read_text()
    assert "Running /tmp/in_target.d/pre-install.d/04-openstack-el-upgrade" not in log.read_text()
