"""Inputs of golden images: what vouches for them, by real keys of gpg, from a server that misbehaves."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stacklab import distributions, download, files, inputs
from stacklab.errors import InvalidInput, LabError
from stacklab.inputs import Input
from tests.unit.broken_server import CONTENT, Server, running

SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "Test-9.7-x86_64-minimal.iso"
LIST = f"# {NAME}: {len(CONTENT)} bytes\nSHA256 ({NAME}) = {SHA256}\n"

pytestmark = pytest.mark.skipif(
    shutil.which("gpg") is None and not os.environ.get("CI"), reason="gpg is not installed"
)


@dataclass(frozen=True)
class Key:
    """A key pair in a GNUPGHOME of its own."""

    home: Path
    fingerprint: str

    @classmethod
    def make(cls, home: Path) -> Key:
        home.mkdir(mode=0o700)
        key = cls(home, "")
        key.gpg("--passphrase", "", "--quick-gen-key", home.name, "ed25519", "sign", "never")
        listed = key.gpg("--with-colons", "--list-keys").decode()
        return cls(home, re.findall(r"^fpr:+([0-9A-F]{40}):", listed, re.MULTILINE)[0])

    def gpg(self, *words: str, text: bytes = b"") -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", *words]
        return subprocess.run(argv, input=text, capture_output=True, check=True).stdout

    def clear_sign(self, text: str) -> bytes:
        return self.gpg("--clear-sign", text=text.encode())

    def sign(self, text: str) -> bytes:
        return self.gpg("--armor", "--detach-sign", text=text.encode())

    @property
    def public(self) -> bytes:
        return self.gpg("--armor", "--export")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Key, Key]]:
    """The publisher's key and somebody else's."""
    place = tmp_path_factory.mktemp("k")  # gpg-agent's socket has to fit into 108 bytes
    made = Key.make(place / "publisher"), Key.make(place / "other")
    yield made
    for key in made:
        subprocess.run(["gpgconf", "--homedir", key.home, "--kill", "all"], check=True)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(download, "_LONGEST_PAUSE", 0.0)
    with running() as found:
        found.tree = {f"/pub/9.7/isos/{NAME}": CONTENT}
        yield found


def publish(server: Server, keys: tuple[Key, Key], detached: bool = True, text: str = LIST) -> Input:
    """An unpinned input whose list of checksums the server has, signed."""
    assert server.tree is not None
    key = keys[0]
    server.tree["/key"] = key.public
    server.tree["/pub/9.7/isos/CHECKSUM"] = text.encode() if detached else key.clear_sign(text)
    if detached:
        server.tree["/pub/9.7/isos/CHECKSUM.asc"] = key.sign(text)
    base = f"http://127.0.0.1:{server.server_port}"
    return Input(
        distribution="test-9",
        kind="iso",
        name=NAME,
        sha256="",
        roots=(f"{base}/pub",),
        path="9.7/isos",
        checksums="CHECKSUM",
        signature="CHECKSUM.asc" if detached else "inside",
        fingerprint=key.fingerprint,
        key_url=f"{base}/key",
    )


def cached() -> list[str]:
    place = files.cache_dir() / "inputs"
    names = [path.name for path in place.iterdir()] if place.is_dir() else []
    return sorted(name for name in names if not name.endswith(".lock"))


@pytest.mark.parametrize("detached", [True, False], ids=["detached", "inside"])
def test_a_signed_list_vouches(detached: bool, server: Server, keys: tuple[Key, Key]) -> None:
    wanted = publish(server, keys, detached)
    found = inputs.fetch(wanted)
    assert found.path.read_bytes() == CONTENT
    assert found.digest == f"sha256:{SHA256}"
    assert keys[0].fingerprint in found.proof
    assert cached() == [f"{SHA256[:12]}-{NAME}", f"{SHA256[:12]}-{NAME}.json"]


def test_a_pinned_file_is_asked_for_once(server: Server, keys: tuple[Key, Key]) -> None:
    wanted = dataclasses.replace(publish(server, keys), sha256=SHA256)
    first = inputs.fetch(wanted)
    assert first.proof.endswith("and the pin")
    server.asked.clear()
    assert inputs.fetch(wanted) == first
    assert server.asked == []
    # what is not as it was when it was verified is not believed
    first.path.write_bytes(CONTENT + b"!")
    assert inputs.fetch(wanted).path.read_bytes() == CONTENT
    assert f"/pub/9.7/isos/{NAME}" in server.asked


def test_a_mirror_that_breaks_off_is_gone_on_with(server: Server, keys: tuple[Key, Key]) -> None:
    wanted = publish(server, keys)
    server.cuts = [1 << 20, *([0] * 20)]
    with pytest.raises(LabError, match="cannot be downloaded: the connection ends early") as caught:
        inputs.fetch(wanted)
    assert "goes on from there" in caught.value.hint
    assert cached() == [f".{SHA256[:12]}-{NAME}.part", f".{SHA256[:12]}-{NAME}.part.of"]
    server.cuts, server.ranges = [], []
    assert inputs.fetch(wanted).path.read_bytes() == CONTENT
    assert [found for found in server.ranges if found] == ["bytes=1048576-"]


def test_a_wrong_iso(server: Server, keys: tuple[Key, Key]) -> None:
    wanted = publish(server, keys)
    assert server.tree is not None
    server.tree[f"/pub/9.7/isos/{NAME}"] = CONTENT[::-1]
    with pytest.raises(LabError, match=rf"{NAME}: the sha256 is [0-9a-f]{{64}}, not {SHA256}"):
        inputs.fetch(wanted)
    assert cached() == []


def test_a_list_that_somebody_changed(server: Server, keys: tuple[Key, Key]) -> None:
    wanted = publish(server, keys)
    assert server.tree is not None
    server.tree["/pub/9.7/isos/CHECKSUM"] = LIST.replace(SHA256, "0" * 64).encode()
    with pytest.raises(LabError, match="checksums: the signature is bad"):
        inputs.fetch(wanted)
    # a pin does not help: somebody is at work here
    with pytest.raises(LabError, match="the signature is bad"):
        inputs.fetch(dataclasses.replace(wanted, sha256=SHA256))
    assert cached() == []


@pytest.mark.parametrize("detached", [True, False], ids=["detached", "inside"])
def test_a_key_of_somebody_else(detached: bool, server: Server, keys: tuple[Key, Key]) -> None:
    """Whoever changes the list can sign it and put his key where the publisher's was."""
    publisher, other = keys
    wanted = publish(server, (other, publisher), detached)
    wanted = dataclasses.replace(wanted, fingerprint=publisher.fingerprint)
    with pytest.raises(LabError, match=f"signed by {other.fingerprint}, not by {publisher.fingerprint}"):
        inputs.fetch(wanted)
    assert cached() == []


def test_text_outside_the_signature_is_nothing(server: Server, keys: tuple[Key, Key]) -> None:
    wanted = publish(server, keys, detached=False)
    assert server.tree is not None
    bad = f"SHA512 ({NAME}) = {'0' * 128}\n".encode()
    signed = server.tree["/pub/9.7/isos/CHECKSUM"]
    server.tree["/pub/9.7/isos/CHECKSUM"] = bad + signed + bad
    assert inputs.fetch(wanted).digest == f"sha256:{SHA256}"


def test_a_keyring_of_the_users_own(server: Server, keys: tuple[Key, Key], tmp_path: Path) -> None:
    wanted = dataclasses.replace(publish(server, keys), key_url=f"http://127.0.0.1:{server.server_port}/no")
    with pytest.raises(LabError, match=f"--keyring FILE takes one that holds {keys[0].fingerprint}"):
        inputs.fetch(wanted)
    keyring = tmp_path / "keyring.gpg"
    keyring.write_bytes(keys[0].gpg("--export"))
    assert inputs.fetch(wanted, keyring=keyring).path.is_file()
    with pytest.raises(LabError, match="cannot be read: No such file"):
        inputs.fetch(dataclasses.replace(wanted, sha256="1" * 64), keyring=tmp_path / "none")


@pytest.mark.parametrize(
    "key", [b"", b"<html>", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nno!\n-----END PGP"], ids=len
)
def test_what_is_no_key(key: bytes, server: Server, keys: tuple[Key, Key]) -> None:
    wanted = publish(server, keys)
    assert server.tree is not None
    server.tree["/key"] = key
    with pytest.raises(LabError, match=r"publisher's key is none|signed by [0-9A-F]+, not by"):
        inputs.fetch(wanted)
    assert cached() == []


def test_the_pin_and_the_publisher_disagree(server: Server, keys: tuple[Key, Key]) -> None:
    wanted = dataclasses.replace(publish(server, keys), sha256="1" * 64)
    with pytest.raises(LabError, match=f"CHECKSUM says sha256:{SHA256}, pinned is sha256:1111"):
        inputs.fetch(wanted)
    assert cached() == []


def test_without_a_list_the_pin_decides(
    server: Server, keys: tuple[Key, Key], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = dataclasses.replace(publish(server, keys), sha256=SHA256)
    assert server.tree is not None
    del server.tree["/pub/9.7/isos/CHECKSUM.asc"]
    assert inputs.fetch(wanted).proof == "the pinned sha256"
    assert "no signed list of checksums can be had" in capsys.readouterr().err


def test_an_unsigned_list_is_said_to_be_one(
    server: Server, keys: tuple[Key, Key], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = dataclasses.replace(publish(server, keys), signature="none", fingerprint="", key_url="")
    assert inputs.fetch(wanted).digest == f"sha256:{SHA256}"
    assert "warning: " in (said := capsys.readouterr().err) and "signs no checksums" in said


def test_an_unsigned_list_never_comes_from_a_mirror(server: Server, keys: tuple[Key, Key]) -> None:
    wanted = dataclasses.replace(publish(server, keys), signature="none", fingerprint="", key_url="")
    assert server.tree is not None
    lie = CONTENT[::-1]
    sums = f"{hashlib.sha256(lie).hexdigest()}  {NAME}\n"
    server.tree |= {f"/mirror/9.7/isos/{NAME}": lie, "/mirror/9.7/isos/CHECKSUM": sums.encode()}
    found = inputs.fetch(wanted, mirror=f"http://127.0.0.1:{server.server_port}/mirror/")
    assert found.path.read_bytes() == CONTENT


def test_a_mirror_is_asked_first(server: Server, keys: tuple[Key, Key]) -> None:
    wanted = publish(server, keys)
    assert server.tree is not None
    server.tree = {path.replace("/pub/", "/mirror/"): content for path, content in server.tree.items()}
    inputs.fetch(wanted, mirror=f"http://127.0.0.1:{server.server_port}/mirror")
    assert not [path for path in server.asked if path.startswith("/pub")]


def test_the_publishers_next_place(server: Server, keys: tuple[Key, Key]) -> None:
    wanted = publish(server, keys)
    first = f"http://127.0.0.1:{server.server_port}/vault"
    inputs.fetch(dataclasses.replace(wanted, roots=(first, *wanted.roots)))
    assert f"/vault/9.7/isos/{NAME}" in server.asked and f"/pub/9.7/isos/{NAME}" in server.asked


def test_a_file_that_the_list_does_not_name(server: Server, keys: tuple[Key, Key]) -> None:
    wanted = publish(server, keys, text=LIST.replace(NAME, "other.iso"))
    with pytest.raises(LabError, match=f"CHECKSUM does not name {NAME}"):
        inputs.fetch(wanted)


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "my.iso"
    path.write_bytes(CONTENT)
    assert inputs.given(path) == inputs.Fetched(path, f"sha256:{SHA256}", "given by the user")
    with pytest.raises(InvalidInput, match=r"source: \S+none\.iso: no such file"):
        inputs.given(tmp_path / "none.iso")


def test_the_table() -> None:
    known = inputs.all_inputs()
    assert {(one.distribution, one.kind) for one in known} >= {
        (name, kind) for name in ("centos-7", "centos-stream-9", "rocky-9") for kind in ("iso", "cloud")
    }
    for one in known:
        where = f"{one.distribution} {one.kind}"
        assert all(re.fullmatch(r"https://[\w.-]+(/[\w.-]+)*", root) for root in one.roots), where
        assert not one.sha256 or re.fullmatch("[0-9a-f]{64}", one.sha256), where
        # either somebody signs, with a key that is known, or it is said that nobody does
        assert bool(re.fullmatch("[0-9A-F]{40}", one.fingerprint)) is (one.signature != "none"), where
        assert (one.signature == "none") is not one.key_url.startswith("https://"), where
    assert {one.sha256 for one in known if one.distribution != "centos-stream-9"} - {""}
    assert set(distributions.names()) <= {one.distribution for one in known}


def test_unknown_inputs() -> None:
    with pytest.raises(InvalidInput, match=r"debian-12 has no 'iso': known are centos-7 \(iso, cloud\)"):
        inputs.find("debian-12", "iso")
    with pytest.raises(InvalidInput, match="suse has no 'iso'"):
        inputs.find("suse", "iso")


def test_a_proxy_gets_every_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.setenv(name, "x.example")
        monkeypatch.setenv(name.upper(), "x.example")
    server.tree = {"http://publisher.invalid/list": b"text"}
    download.use_proxy(f"http://127.0.0.1:{server.server_port}")
    assert download.content("http://publisher.invalid/list") == b"text"
    assert os.environ["https_proxy"] == os.environ["HTTP_PROXY"]
    assert os.environ["no_proxy"] == "x.example,localhost,127.0.0.1,::1"
    with pytest.raises(InvalidInput, match=r"'proxy.example:3128' is not a proxy: write it such as http"):
        download.use_proxy("proxy.example:3128")


def test_the_setting_mirror(server: Server, keys: tuple[Key, Key], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = publish(server, keys)
    assert server.tree is not None
    server.tree = {path.replace("/pub/", "/mirror/"): content for path, content in server.tree.items()}
    monkeypatch.setenv("STACKLAB_MIRROR", "")
    download.use_mirror(f"http://127.0.0.1:{server.server_port}/mirror/")
    inputs.fetch(wanted)
    assert not [path for path in server.asked if path.startswith("/pub")]
    with pytest.raises(InvalidInput, match="'mirror' is not a mirror: write it such as https://"):
        download.use_mirror("mirror")
