"""Golden images: their names, and builds by a fake diskimage-builder that makes a tiny image."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

from stacklab import base, contract, distributions, files, goldendib, releases, repositories
from stacklab.errors import CommandFailed, InvalidInput, LabError
from stacklab.run import Result, run

SPEC = base.spec("debian-12", "lxc")
PROJECT = files.PROJECT


def key() -> str:
    return base.wanted(SPEC).key


def test_defaults_are_the_distributions() -> None:
    assert base.Spec("debian-12", "zed", "dib", "lxc") == SPEC
    assert base.spec("debian-12", "lxc", extras=["b", "a", "b"]).extras == ("a", "b")


def test_what_does_not_go_together_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(releases.release("zed"), name="epoxy", distributions=("rocky-9",))
    monkeypatch.setattr(releases, "release", {"epoxy": other}.__getitem__)
    with pytest.raises(InvalidInput) as caught:
        base.spec("debian-12", "vbox", "epoxy", "mkosi")
    assert [problem.path for problem in caught.value.problems] == ["provider", "builder", "release"]
    assert "epoxy does not run on debian-12: take rocky-9" in caught.value.message


def test_a_release_that_no_image_is_built_for() -> None:
    with pytest.raises(
        InvalidInput, match="ussuri does not run on centos-7: it runs on centos-stream-8 only"
    ):
        base.spec("centos-7", "libvirt", "ussuri")


def test_an_unknown_distribution() -> None:
    with pytest.raises(InvalidInput, match="'slackware' is not known: take debian-12"):
        base.spec("slackware", "lxc")


def test_a_mirror_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://user:word@proxy.example:3128/")
    mirrored = base.spec("debian-12", "lxc", mirror="http://mirror.example/debian/")
    assert mirrored == SPEC and base.wanted(mirrored) == base.wanted(SPEC)
    assert base.hosts_of_build(mirrored) == ("mirror.example", "proxy.example:3128")
    with pytest.raises(InvalidInput, match=r"mirror: 'mirror\.example' is no URL"):
        base.spec("debian-12", "lxc", mirror="mirror.example")


def test_hosts_that_an_image_names_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that nodes have their packages from, too, is no trace of the build."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("stacklab.dib.apt_mirrors", lambda codename: ("http://own.example:3142/debian", ""))
    own = base.spec("debian-12", "lxc", mirror="http://own.example:3142/debian")
    assert base.hosts_of_build(own) == ()
    monkeypatch.setenv("http_proxy", "http://own.example:3128")
    assert base.hosts_of_build(own) == ("own.example:3128",)
    monkeypatch.setenv("http_proxy", "user:word@proxy.example:3128")
    assert base.hosts_of_build(own) == ("proxy.example:3128",)
    monkeypatch.delenv("http_proxy")
    rocky, centos = (distributions.distribution(name) for name in ("rocky-9", "centos-7"))
    repository = next(iter(releases.release(rocky.release).repositories.values()))
    for row, mirror in (
        (rocky, rocky.archive),
        (rocky, repository),
        (centos, "https://vault.centos.org"),
    ):
        spec = base.spec(row.name, "libvirt", mirror=mirror)
        assert base.hosts_of_build(spec) == (), mirror


def test_a_mirror_reaches_the_build(dib: Dib, tmp_path: Path) -> None:
    dib.then = f'echo "$DIB_DISTRIBUTION_MIRROR $DIB_DEBIAN_SECURITY_MIRROR" >{tmp_path}/mirrors'
    base.build(base.spec("debian-12", "lxc", mirror="http://mirror.example/debian/"))
    assert (tmp_path / "mirrors").read_text().split() == [
        "http://mirror.example/debian",
        "http://mirror.example/debian-security",
    ]


def test_the_image_has_the_hosts_package_sources(
    dib: Dib, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mirror is the build's alone."""
    mirrors = ("http://own.example/debian/", "http://own.example/s/")
    monkeypatch.setattr("stacklab.dib.apt_mirrors", lambda codename: mirrors)
    dib.then = f'echo "$STACKLAB_APT" >{tmp_path}/sources'
    base.build(base.spec("debian-12", "lxc", mirror="http://mirror.example/debian/"))
    assert (tmp_path / "sources").read_text().strip().split("|") == [
        "deb http://own.example/debian/ bookworm main",
        "deb http://own.example/debian/ bookworm-updates main",
        "deb http://own.example/s/ bookworm-security main",
    ]


def test_an_image_that_names_the_mirror_gets_no_name(dib: Dib) -> None:
    files.write(dib.place / "rootfs/etc/apt/sources.list", "deb http://mirror.example/debian bookworm main\n")
    with pytest.raises(LabError, match=r"sources\.list names mirror\.example"):
        base.build(base.spec("debian-12", "lxc", mirror="http://mirror.example/debian"))
    assert images() == set()


def test_extras_decide_the_name() -> None:
    assert base.wanted(dataclasses.replace(SPEC, extras=("devuser",))).key != key()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of elements/ to change."""
    copy = tmp_path / "project"
    shutil.copytree(PROJECT / "elements", copy / "elements", symlinks=True)
    monkeypatch.setattr(files, "PROJECT", copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return copy


def test_a_name_is_the_same_wherever_the_project_lies(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = base.wanted(SPEC)
    assert here.name == f"debian-12-lxc-{here.key}" and len(here.key) == 12
    assert here.directory == files.cache_dir() / "images" / here.name
    assert here.rootfs == here.directory / "rootfs"
    monkeypatch.setattr(files, "PROJECT", PROJECT)
    assert base.wanted(SPEC) == here


def test_the_name_changes_with_each_element(project: Path) -> None:
    own = {path.name for path in (project / "elements").iterdir()}
    names = sorted(own & set(SPEC.elements))
    assert {"lxc-node", "packstack", "stacklab-golden"} <= set(names)
    keys = [key()]
    for name in names:
        (project / "elements" / name / "README.rst").write_text("changed\n")
        keys.append(key())
        (project / "elements" / name / "new-file").touch()
        keys.append(key())
    assert len(set(keys)) == 1 + 2 * len(names)
    files.write(project / "elements" / "for-something-else" / "README.rst", "")
    assert key() == keys[-1]


def test_the_name_changes_with_an_executable_bit(project: Path) -> None:
    before = key()
    script = project / "elements" / "packstack" / "install.d" / "65-packstack"
    script.chmod(script.stat().st_mode ^ 0o111)
    assert key() != before


def test_every_element_of_ours_that_others_need_decides_the_name() -> None:
    own = {path.name for path in (PROJECT / "elements").iterdir()}
    known = set(base.inputs(SPEC)["elements"])
    for name in known & own:
        deps = PROJECT / "elements" / name / "element-deps"
        needed = set(deps.read_text().split()) if deps.is_file() else set()
        assert needed & own <= known, name


def change_packstack(monkeypatch: pytest.MonkeyPatch) -> None:
    real = releases.release
    monkeypatch.setattr(
        releases, "release", lambda name: dataclasses.replace(real(name), sha256="0" * 64, packstack="21.0.1")
    )


def change_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "VERSION", contract.VERSION + 1)


def change_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "99")


def change_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goldendib, "fixed_environment", lambda spec: {"DIB_RELEASE": "trixie"})


@pytest.mark.parametrize("change", [change_packstack, change_contract, change_builder, change_environment])
def test_the_name_changes_with_what_else_decides(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key()
    change(monkeypatch)
    assert key() != before


def test_only_metadata_makes_an_image(tmp_path: Path) -> None:
    image = base.Golden("x-1", "1", tmp_path / "x-1")
    assert not base.is_built(image)
    image.rootfs.mkdir(parents=True)
    assert not base.is_built(image)
    (image.directory / "metadata.json").write_text("{}")
    assert base.is_built(image)


def test_the_command() -> None:
    (argv,) = base.commands(SPEC, Path("/w/image"))
    assert argv[:5] == ["setpriv", "--pdeathsig", "KILL", "--", "unshare"]
    command = [
        str(Path(sys.executable).parent / "disk-image-create"),
        *("-a", "amd64", "-t", "tar", "-o", "/w/image"),
        *("debian-minimal", "stacklab-golden", "openstack-debian", "packstack", "packstack-debian"),
        "lxc-node",
    ]
    assert argv[-len(command) :] == command


class Dib:
    """A fake disk-image-create; `then` is what it does once it has noted its call."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.then = ""
        self.held = {"dists/bookworm/InRelease": "0" * 64}

    def commands(self, spec: base.Spec, out: Path) -> list[list[str]]:
        script = self.place / "disk-image-create"
        script.write_text(
            f'echo "$DIB_RELEASE $STACKLAB_PACKSTACK_WHEEL" >>{self.place}/calls\n'
            "echo 'dib-run-parts Running /tmp/x/hooks/install.d/65-packstack'\n"
            f'touch "$TMP_DIR/scratch"\n{self.then}\ntar -cf "$1.tar" -C {self.place}/rootfs .\n'
        )
        return [["sh", "-e", str(script), str(out)]]

    def apt_get(self, body: str) -> None:
        """What the build host's apt-get says of its mirrors."""
        fake = self.place / "bin" / "apt-get"
        fake.write_text(f"#!/bin/sh\n{body}\n")
        fake.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        file = self.place / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def dib(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_rootfs: Callable[[Path], Path]
) -> Dib:
    place = tmp_path / "dib"
    make_rootfs(place / "rootfs")
    fake = Dib(place)
    monkeypatch.setattr(goldendib, "commands", fake.commands)
    (place / "bin").mkdir()
    fake.apt_get("exit 1")
    monkeypatch.setattr(repositories, "checksums", lambda spec: dict(fake.held))
    monkeypatch.setenv("PATH", f"{place}/bin", prepend=":")
    wheel = files.cache_dir() / "wheels" / "packstack-21.0.1-py3-none-any.whl"
    files.write(wheel, "a wheel")
    row = dataclasses.replace(releases.release("zed"), sha256=hashlib.sha256(b"a wheel").hexdigest())
    monkeypatch.setattr(releases, "release", lambda name: row)
    return fake


def images() -> set[str]:
    """All that is in the cache's images, but for locks."""
    place = files.cache_dir() / "images"
    return {path.name for path in place.iterdir() if path.suffix != ".lock"} if place.is_dir() else set()


def test_a_build(dib: Dib) -> None:
    image = base.build(SPEC)
    assert image == base.wanted(SPEC)
    assert images() == {image.name}
    parts = {path.name for path in image.directory.iterdir()}
    assert {"rootfs", "metadata.json", "packages.txt", "build.log"} <= parts
    assert not {"image.tar", "tmp"} & parts
    assert contract.check(image.rootfs, SPEC.provider) == []
    assert (image.directory / "packages.txt").read_text() == "acl 2.3.1-3 amd64\n"
    assert "dib-run-parts Running" in (image.directory / "build.log").read_text()
    about = files.read_json(image.directory / "metadata.json")
    assert about["inputs"] == base.inputs(SPEC)
    assert dib.calls == [f"bookworm {files.cache_dir()}/wheels/packstack-21.0.1-py3-none-any.whl"]


def test_an_image_that_is_there_is_not_built_again(dib: Dib, capsys: pytest.CaptureFixture[str]) -> None:
    first = base.build(SPEC)
    made = first.directory.stat().st_mtime_ns
    capsys.readouterr()
    assert base.build(SPEC) == first
    assert len(dib.calls) == 1
    assert capsys.readouterr().err == ""
    assert first.directory.stat().st_mtime_ns == made


def test_built_twice_the_same_sha256(dib: Dib) -> None:
    """What a build leaves by the hour and by chance: time stamps, logs, locks, backups."""
    root = dib.place / "rootfs"
    # A package's file is older than the build; all others are the build's.
    packaged = root / "usr/bin/packstack"
    os.utime(packaged, (1700000000, 1700000000))
    for path in root.rglob("*"):
        if path != packaged:
            os.utime(path, follow_symlinks=False)
    dib.then = (
        f'mkdir -p "{root}/var/log" "{root}/tmp"; date +%N >>"{root}/var/log/dpkg.log"\n'
        f'mktemp -p "{root}/tmp" >/dev/null; echo $$ >"{root}/etc/passwd-"\n'
        f'find "{root}" ! -path "*/usr/bin/packstack" -exec touch -h {{}} +'
    )
    image = base.build(SPEC)
    first = files.read_json(image.directory / "metadata.json")["sha256"]
    assert (image.rootfs / "etc/fstab").stat().st_mtime == 1700000000
    shutil.rmtree(image.directory)
    time.sleep(1.1)
    base.build(SPEC)
    assert files.read_json(image.directory / "metadata.json")["sha256"] == first
    shutil.rmtree(image.directory)
    files.write(root / "etc/issue", "something else\n")
    base.build(SPEC)
    assert files.read_json(image.directory / "metadata.json")["sha256"] != first


def kept_log() -> str:
    (log,) = (files.cache_dir() / "logs").iterdir()
    return log.read_text()


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("echo E: no space; exit 2", "diskimage-builder failed:\n    E: no space"),
        ("exit 0", "ended well but left no image"),
        ('head -c 100000 /dev/urandom >"$1.tar"; exit 0', r"tar -x .* ended with exit code 2"),
    ],
    ids=["it fails", "no image", "a broken archive"],
)
def test_a_failed_build_leaves_its_log_alone(then: str, message: str, dib: Dib) -> None:
    dib.then = then
    with pytest.raises(CommandFailed, match=message):
        base.build(SPEC)
    assert images() == set()
    assert "dib-run-parts Running" in kept_log()
    dib.then = ""
    assert base.is_built(base.build(SPEC))


def test_an_image_that_breaks_the_contract_gets_no_name(dib: Dib) -> None:
    broken = dib.place / "rootfs"
    (broken / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (broken / "etc/fstab").write_text("/dev/vda1 / ext4\n")
    with pytest.raises(LabError) as caught:
        base.build(SPEC)
    first, *problems = caught.value.message.splitlines()
    assert first == "the built image breaks the contract:"
    assert [problem.split()[0] for problem in problems] == ["/etc/machine-id", "/etc/fstab"]
    assert images() == set()
    assert base.built() == []
    assert "dib-run-parts Running" in kept_log()


def test_an_image_appears_when_it_is_whole(dib: Dib, monkeypatch: pytest.MonkeyPatch) -> None:
    image = base.wanted(SPEC)
    seen: list[bool] = []
    real = contract.check

    def check(rootfs: Path, provider: str, hosts: Sequence[str]) -> list[str]:
        seen.append(image.directory.exists())
        return real(rootfs, provider, hosts)

    monkeypatch.setattr(contract, "check", check)
    base.build(SPEC)
    assert seen == [False]
    assert image.directory.is_dir()


def test_what_a_kill_left_is_not_built_upon(dib: Dib) -> None:
    image = base.wanted(SPEC)
    left = image.directory.with_name(f".building-{image.name}")
    files.write(left / "rootfs" / "rubbish", "")
    files.write(left / "metadata.json", "{}")
    assert base.built() == []
    assert base.build(SPEC) == image
    assert not (image.rootfs / "rubbish").exists()
    assert images() == {image.name}


def test_what_a_killed_build_of_another_image_left_is_removed(dib: Dib) -> None:
    cache = base.wanted(SPEC).directory.parent
    for name in ("gone", "busy"):
        files.write(cache / f".building-{name}" / "image.tar", "gigabytes")
    with files.lock(cache / "busy.lock", "the other image"):
        base.build(SPEC)
    assert not (cache / ".building-gone").exists()
    assert (cache / ".building-busy" / "image.tar").is_file()


def test_nothing_new_is_not_built(dib: Dib) -> None:
    image = base.build(SPEC)
    assert base.refresh(SPEC) == image
    assert len(dib.calls) == 1


def test_news_make_an_image_of_their_own(dib: Dib) -> None:
    old = base.build(SPEC)
    dib.held["dists/bookworm/InRelease"] = "1" * 64
    new = base.refresh(SPEC)
    assert new.key != old.key and base.is_built(old)  # a lab may stand on it
    assert base.wanted(SPEC) == base.build(SPEC) == base.refresh(SPEC) == new
    assert len(dib.calls) == 2
    assert files.read_json(new.directory / "metadata.json")["repositories"] == dib.held
    dib.held["dists/bookworm/InRelease"] = "2" * 64
    assert base.refresh(SPEC) not in (old, new)


def test_news_that_cannot_be_built_change_nothing(dib: Dib) -> None:
    old = base.build(SPEC)
    dib.held["dists/bookworm/InRelease"] = "1" * 64
    dib.then = "exit 1"
    with pytest.raises(CommandFailed):
        base.refresh(SPEC)
    assert base.wanted(SPEC) == old


def test_a_repository_that_does_not_answer(dib: Dib, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(spec: base.Spec) -> dict[str, str]:
        raise LabError("it does not answer")

    monkeypatch.setattr(repositories, "checksums", fail)
    image = base.build(SPEC)  # which can do without
    assert "repositories" not in files.read_json(image.directory / "metadata.json")
    with pytest.raises(LabError, match="does not answer"):
        base.refresh(SPEC)


def test_two_builds_at_once_are_one(dib: Dib) -> None:
    dib.then = "sleep 0.3"
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(base.build, SPEC) for _ in range(2))
    assert first.result() == second.result()
    assert len(dib.calls) == 1


def test_built_lists_whole_images_by_name(dib: Dib) -> None:
    image = base.build(SPEC)
    (files.cache_dir() / "images" / "debian-12-lxc-half").mkdir()
    assert base.built() == [image]


def test_modes_and_links_survive(dib: Dib) -> None:
    files.write(dib.place / "rootfs" / "usr/bin/sudo", "", mode=0o4755)
    image = base.build(SPEC)
    assert (image.rootfs / "usr/bin/sudo").stat().st_mode & 0o7777 == 0o4755
    assert (image.rootfs / "etc/systemd/system/systemd-udev-trigger.service").readlink() == Path("/dev/null")


def test_a_wheel_with_another_hash_is_fetched_anew(dib: Dib, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = files.cache_dir() / "wheels" / "packstack-21.0.1-py3-none-any.whl"
    wheel.write_text("not the wheel")
    asked: list[str] = []

    def download(argv: list[object], *, log: Path, **_: object) -> Result:
        asked.append(log.with_name("packstack.txt").read_text())
        wheel.write_text("a wheel")
        return Result(0, "")

    monkeypatch.setattr(goldendib, "run", download)
    (files.cache_dir() / "work").mkdir()
    release = releases.release(SPEC.release)
    log = files.cache_dir() / "work" / "build.log"
    assert goldendib.wheel(release, log) == wheel
    assert asked == [f"packstack==21.0.1 --hash=sha256:{hashlib.sha256(b'a wheel').hexdigest()}\n"]
    assert goldendib.wheel(release, log) == wheel
    assert len(asked) == 1  # from now on from the cache


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "printf '%s main %s Debian\\n' bookworm http://a.example/debian/ bookworm-security http://a.example/s/",
            "a.example",
        ),
        ("printf 'trixie main http://a.example/debian/ Debian\\nodd\\n'", "none"),
        ("exit 1", "none"),
    ],
    ids=["its own", "another distribution's", "no apt"],
)
def test_mirrors_are_those_of_the_build_host(said: str, expected: str, dib: Dib, tmp_path: Path) -> None:
    dib.apt_get(said)
    mirrors = '"${DIB_DISTRIBUTION_MIRROR-none} ${DIB_DEBIAN_SECURITY_MIRROR-none}"'
    dib.then = f"echo {mirrors} >{tmp_path}/mirrors"
    base.build(SPEC)
    wanted = {"a.example": "http://a.example/debian/ http://a.example/s/", "none": "none none"}
    assert (tmp_path / "mirrors").read_text().strip() == wanted[expected]


def test_the_fake_makes_what_dib_makes(dib: Dib, tmp_path: Path) -> None:
    """A tar of a root filesystem, names relative: else these tests would prove nothing."""
    run(dib.commands(SPEC, tmp_path / "image")[0], env={"TMP_DIR": str(tmp_path)})
    with tarfile.open(tmp_path / "image.tar") as archive:
        assert "./etc/shadow" in archive.getnames()
