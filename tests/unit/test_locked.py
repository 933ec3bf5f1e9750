"""Builds with the packages of a manifest: what is read, pinned, refused, and what comes of it."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import lzma
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stacklab import base, dib, files, goldenshow, locked, repositories
from stacklab.errors import InvalidInput, LabError
from stacklab.locked import Manifest
from tests.unit.test_cli import INVOKE

DEBIAN = "acl 2.3.1-3 amd64\nbase-files 12.4+deb12u15 amd64\nvim 2:9.0.1378-2+deb12u2~x amd64\n"
DIGEST = "ab" * 32
EL = (
    f"bash 0:5.1.8-9.el9 x86_64 {DIGEST}\n"
    "gpg-pubkey 0:6fedfc85-682cfb92 (none) (none)\n"
    f"kernel 0:5.14.0-570.el9 x86_64 {DIGEST}\n"
    f"kernel 0:5.14.0-571.el9 x86_64 {DIGEST}\n"
    f"rocky-release 0:9.6-1.3.el9 noarch {DIGEST}\n"
)
NAME = "debian-12-lxc-aaaa00000000"
ABOUT = {
    "name": NAME,
    "distribution": "debian-12",
    "provider": "lxc",
    "release": "zed",
    "builder": "dib",
    "built": 1700000000,
    "inputs": {"elements": {"debian-minimal": "dib"}},
}


@pytest.fixture(autouse=True)
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A golden image in a cache of the test's own: its directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = files.cache_dir() / "images" / NAME
    files.write(place / "packages.txt", DEBIAN)
    files.write_json(place / "metadata.json", ABOUT)
    return place


def manifest(text: str = DEBIAN, about: dict[str, Any] | None = None) -> Manifest:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Manifest(digest, "m", locked.parse(text, "m"), about or {})


def test_a_manifest_is_an_image_a_file_or_a_directory(image: Path, tmp_path: Path) -> None:
    alone = tmp_path / "kept.txt"
    # Whatever its order: the digest is that of the packages.
    files.write(alone, "".join(reversed(DEBIAN.splitlines(keepends=True))))
    named = [goldenshow.manifest(str(what)) for what in (NAME, "debian-12", image, image / "packages.txt")]
    assert {found.name for found in named} == {NAME}
    by_file = goldenshow.manifest(str(alone))
    assert by_file.name == str(alone) and by_file.about == {}
    assert {*named, by_file} == {named[0]}
    assert named[0].sha256 == goldenshow.about(goldenshow.find(NAME))["manifest-sha256"]
    assert named[0].text == by_file.text == DEBIAN


@pytest.mark.parametrize("other", ["{", "[1]", '{"provider": "libvirt"}', '{"inputs": ["x"]}'])
def test_what_lies_beside_a_manifest_may_be_anybodys(other: str, tmp_path: Path) -> None:
    files.write(tmp_path / "m.txt", DEBIAN)
    files.write(tmp_path / "metadata.json", other)
    assert base.spec("debian-12", "lxc", manifest=goldenshow.manifest(str(tmp_path / "m.txt"))).manifest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not the manifest of a golden image: it is empty"),
        ("acl 2.3.1-3 amd64\nroot:x:0\n", "line 2: 'root:x:0' is not `name version architecture`"),
        ("acl 2.3.1-3 amd64 abcd\n", "line 1: 'acl 2.3.1-3 amd64 abcd' is not"),
        ("a few words\n", "line 1: 'a few words' is not"),
        ("acl,bash 1 amd64\n", "line 1"),
        ("acl * amd64\n", "line 1"),
    ],
)
def test_a_file_that_is_no_manifest(text: str, said: str, tmp_path: Path) -> None:
    files.write(tmp_path / "m.txt", text)
    with pytest.raises(InvalidInput) as caught:
        goldenshow.manifest(str(tmp_path / "m.txt"))
    assert caught.value.message.startswith(f"{tmp_path}/m.txt: locked: ")
    assert said in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path, why in (
        (tmp_path / "nowhere/m.txt", "No such file or directory"),
        (tmp_path / "binary", "it is not text"),
        (tmp_path, "packages.txt cannot be read: No such file"),
    ):
        with pytest.raises(InvalidInput, match=why):
            goldenshow.manifest(str(path))
    with pytest.raises(InvalidInput, match=f"locked: no file, and as an image 'rocky' .* there is {NAME}"):
        goldenshow.manifest("rocky")


def test_whose_packages_they_are() -> None:
    assert locked.distribution(manifest()) == "debian-12"
    assert locked.distribution(manifest(EL)) == "rocky-9"
    assert locked.distribution(manifest(EL.replace("rocky-", "centos-stream-"))) == "centos-stream-9"
    assert locked.distribution(manifest("centos-release 0:7-9.2009.1.el7.centos x86_64\n")) == "centos-7"
    assert locked.distribution(manifest(DEBIAN.replace(" 12.4", " 13.1"))) == ""
    assert locked.distribution(manifest("acl 2.3.1-3 amd64\n")) == ""


SERVICES = {**ABOUT, "inputs": {"elements": {"openstack-debian-services": "0123"}}}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"manifest": manifest(EL)}, ["is of rocky-9: --distribution rocky-9; the build is of debian-12"]),
        ({"manifest": manifest("acl 1 all\n")}, ["is of no distribution that is known"]),
        ({"builder": "packer", "provider": "libvirt"}, ["packer takes the newest", "only the builder dib"]),
        ({"manifest": manifest(about={**ABOUT, "provider": "libvirt"})}, ["--provider libvirt"]),
        ({"manifest": manifest(about={**ABOUT, "release": "yoga"})}, ["--release yoga"]),
        ({"manifest": manifest(about=SERVICES)}, ["is of an image for other services"]),
        ({"manifest": manifest(about=ABOUT), "extras": ["openstack-debian-services"]}, ["other services"]),
    ],
)
def test_what_does_not_go_together(wanted: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        base.spec(**{"distribution": "debian-12", "provider": "lxc", "manifest": manifest(), **wanted})
    assert caught.value.exit_code == 2 and caught.value.message.startswith("m: locked: ")
    for part in said:
        assert part in caught.value.message


def test_at_the_command_line(image: Path, tmp_path: Path) -> None:
    files.write(tmp_path / "el.txt", EL)
    for words, said in (
        (["--locked", "nothing-like-it"], "locked: no file"),
        (["--locked", str(tmp_path / "el.txt")], "is of rocky-9: --distribution rocky-9"),
        (["--locked", NAME, "--refresh"], "refresh: it asks for news"),
    ):
        done = subprocess.run(
            [INVOKE, "build-base", *words], cwd=files.PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and said in done.stderr, done.stderr


def test_only_the_packages_decide_the_name() -> None:
    plain = base.spec("debian-12", "lxc")
    spec = dataclasses.replace(plain, manifest=manifest())
    assert spec.elements == (*plain.elements, "stacklab-locked")
    assert "locked-manifest" not in base.inputs(plain)
    assert "stacklab-locked" not in base.inputs(plain)["elements"]
    key = base.wanted(spec).key
    assert key != base.wanted(plain).key
    renamed = dataclasses.replace(manifest(), name="other", about={"a": "b"})
    assert base.wanted(dataclasses.replace(plain, manifest=renamed)).key == key
    newer = manifest(DEBIAN.replace("2.3.1-3", "2.3.1-4"))
    assert base.wanted(dataclasses.replace(plain, manifest=newer)).key != key


def test_preferences_of_apt() -> None:
    stanzas = locked.preferences(manifest()).split("\n\n")
    assert stanzas[0] == "Package: acl\nPin: version 2.3.1-3\nPin-Priority: 1001"
    assert [stanza.split()[1] for stanza in stanzas] == ["acl", "base-files", "vim"]
    assert "Pin: version 2:9.0.1378-2+deb12u2~x\n" in stanzas[2]


def test_apt_itself_takes_the_pinned_version(tmp_path: Path) -> None:
    """Where apt is: two versions of a package, the older one pinned, the newer one installed."""
    lists = "".join(
        f"Package: acl\nVersion: {version}\nArchitecture: all\nFilename: ./acl_{version}.deb\nSize: 1\n"
        f"SHA256: {'0' * 64}\n\n"
        for version in ("2.3.1-2", "2.3.1-3", "2.3.1-4")
    )
    files.write(tmp_path / "archive/Packages", lists)
    files.write(tmp_path / "preferences", locked.preferences(manifest()))
    files.write(tmp_path / "sources.list", f"deb [trusted=yes] file:{tmp_path}/archive ./\n")
    status = (
        "Package: acl\nStatus: install ok installed\nVersion: 2.3.1-4\nArchitecture: all\nDescription: x\n\n"
    )
    files.write(tmp_path / "status", status)
    (tmp_path / "lists/partial").mkdir(parents=True)
    options = {
        "Dir::State::status": "status",
        "Dir::State::Lists": "lists",
        "Dir::Etc::SourceList": "sources.list",
        "Dir::Etc::SourceParts": "none",
        "Dir::Etc::Preferences": "preferences",
        "Dir::Etc::PreferencesParts": "none",
        "Dir::Cache": "cache",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={tmp_path / value}")]
    words += ["-o", "APT::Sandbox::User=root"]
    try:
        subprocess.run(["apt-get", *words, "update"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("apt is not here")
    argv = ["apt-get", *words, "-s", "-o", "APT::Get::allow-downgrades=true", "-y", "dist-upgrade"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "Inst acl [2.3.1-4] (2.3.1-3 " in said


def test_what_the_element_reads(tmp_path: Path) -> None:
    place = locked.prepare(manifest(EL), tmp_path / "locked")
    assert (place / "packages.txt").read_text() == EL
    assert (place / "preferences").read_text() == locked.preferences(manifest(EL))


class Builder:
    """In place of a builder: leaves a list of packages."""

    packages = DEBIAN
    calls = 0

    def inputs(self, spec: base.Spec) -> dict[str, Any]:
        return {"elements": dict.fromkeys(spec.elements, "0")}

    def make(self, spec: base.Spec, work: Path, log: Path) -> dict[str, Any]:
        self.calls += 1
        files.write(work / "packages.txt", self.packages)
        log.write_text("built\n")
        return {"sha256": "0" * 64}


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    found = Builder()
    monkeypatch.setattr(base, "_builder", lambda spec: found)
    monkeypatch.setattr(repositories, "checksums", lambda spec: {})
    return found


def names() -> set[str]:
    return {path.name for path in (files.cache_dir() / "images").iterdir() if path.suffix != ".lock"}


def test_a_locked_image_says_so(builder: Builder, capsys: pytest.CaptureFixture[str]) -> None:
    spec = base.spec("debian-12", "lxc", manifest=goldenshow.manifest(NAME))
    assert spec.manifest is not None
    built = base.build(spec)
    assert base.build(spec) == built and builder.calls == 1
    assert names() == {NAME, built.name}
    about = json.loads((built.directory / "metadata.json").read_text())
    assert about["locked"] == NAME
    assert about["inputs"]["locked-manifest"] == spec.manifest.sha256
    goldenshow.show(built, as_json=False)
    said = capsys.readouterr().out
    assert f"  locked: {NAME}\n" in said and f"  locked-manifest: {spec.manifest.sha256}\n" in said


def test_another_image_than_the_manifest_is_not_kept(builder: Builder) -> None:
    builder.packages = DEBIAN.replace("2.3.1-3", "2.3.1-4").replace("vim ", "vim-tiny ")
    spec = base.spec("debian-12", "lxc", manifest=goldenshow.manifest(NAME))
    with pytest.raises(LabError) as caught:
        base.build(spec)
    assert caught.value.message.splitlines() == [
        f"the built image differs from the manifest {NAME}, and is not kept:",
        "  changed: acl: wanted 2.3.1-3, got 2.3.1-4",
        "  missing: vim 2:9.0.1378-2+deb12u2~x",
        "  added: vim-tiny 2:9.0.1378-2+deb12u2~x",
    ]
    assert names() == {NAME}
    builder.packages = DEBIAN
    assert base.is_built(base.build(spec))


def test_a_digest_alone_makes_a_difference() -> None:
    other = manifest(EL.replace(DIGEST, "cd" * 32, 1))
    assert locked.difference(manifest(EL).packages, other.packages) == []
    (row,) = locked.difference(manifest(EL).packages, other.packages, digests=True)
    assert row == ("bash", f"0:5.1.8-9.el9 x86_64 {DIGEST}", f"0:5.1.8-9.el9 x86_64 {'cd' * 32}")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Nothing."""


class Archive:
    """Debian's archives on 127.0.0.1; `suites` is what each suite has, in which kind of list."""

    suites = ("debian/dists/bookworm", "debian/dists/bookworm-updates", "security/dists/bookworm-security")

    def __init__(self, place: Path) -> None:
        self.place = place

    def hold(self, suite: str, packages: str, kind: str) -> None:
        stanzas = ""
        for line in packages.splitlines():
            name, version, architecture = line.split()
            stanzas += (
                f"Package: {name}\nSource: s\nVersion: {version}\nArchitecture: {architecture}\n"
                "Description: Package: other\n continued\n\n"
            )
        packed = stanzas.encode()
        packed = {"xz": lzma.compress(packed), "gz": gzip.compress(packed), "": packed}[kind]
        name = "main/binary-amd64/Packages" + (f".{kind}" if kind else "")
        path = self.place / suite / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        release = f"Suite: x\nMD5Sum:\n {'0' * 32} 1 {name}\nSHA256:\n {digest} 99 {name}\n-----BEGIN\n\nx\n"
        files.write(self.place / suite / "InRelease", release)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    place = tmp_path / "archive"
    place.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(dib, "apt_mirrors", lambda codename: (f"{url}/debian", f"{url}/security"))
        found = Archive(place)
        lines = DEBIAN.splitlines()
        for suite, line, kind in zip(found.suites, lines, ("xz", "gz", ""), strict=True):
            found.hold(suite, line, kind)
        yield found
        server.shutdown()
        thread.join()


def test_all_is_still_there(archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = base.spec("debian-12", "lxc", manifest=manifest())
    repositories.have(spec, tmp_path / "lists")
    assert "not known" not in capsys.readouterr().err
    repositories.have(base.spec("debian-12", "lxc"), tmp_path / "lists")


def test_what_is_gone_is_named_before_the_build(archive: Archive, tmp_path: Path) -> None:
    archive.hold(archive.suites[1], "base-files 12.4+deb12u16 amd64", "gz")
    archive.hold(archive.suites[2], "other 1 all", "")
    spec = base.spec("debian-12", "lxc", manifest=goldenshow.manifest(NAME))
    with pytest.raises(LabError) as caught:
        base.build(spec)
    assert caught.value.message.splitlines() == [
        f"the repositories no longer have 2 of the packages of {NAME}:",
        "  base-files 12.4+deb12u15",
        "  vim 2:9.0.1378-2+deb12u2~x",
    ]
    assert names() == {NAME}


@pytest.mark.parametrize("name", ["InRelease", "main/binary-amd64/Packages.gz"])
def test_lists_that_cannot_be_had_are_left_to_the_build(
    name: str, archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive.place / archive.suites[1] / name).unlink()
    repositories.have(base.spec("debian-12", "lxc", manifest=manifest()), tmp_path / "lists")
    assert "not known before the build whether all packages are still there" in capsys.readouterr().err
