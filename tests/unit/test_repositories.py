"""Whether repositories have news: their indexes' checksums, from a server of the test's own."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stacklab import base, dib, files, releases, repositories
from stacklab.errors import LabError

NAMES = [
    *("9/AppStream/x86_64/os/repodata/repomd.xml", "9/BaseOS/x86_64/os/repodata/repomd.xml"),
    *("9/CRB/x86_64/os/repodata/repomd.xml", "9/extras/x86_64/os/repodata/repomd.xml"),
    "openstack-epoxy",
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Nothing."""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[base.Spec]:
    for name in NAMES[:-1]:
        files.write(tmp_path / "rocky" / name, f"<repomd>{name}</repomd>\n")
    files.write(tmp_path / "openstack/repodata/repomd.xml", "<repomd/>\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        row = releases.release("epoxy")
        own = dataclasses.replace(row, repositories={"openstack-epoxy": f"{url}/openstack/"})
        monkeypatch.setattr(releases, "release", lambda name: own)
        yield base.spec("rocky-9", "libvirt", mirror=f"{url}/rocky")
        server.shutdown()
        thread.join()


def test_the_checksums_of_all_indexes(spec: base.Spec, tmp_path: Path) -> None:
    found = repositories.checksums(spec)
    assert list(found) == NAMES
    base_os = (tmp_path / "rocky" / NAMES[1]).read_bytes()
    assert found[NAMES[1]] == hashlib.sha256(base_os).hexdigest()
    files.write(tmp_path / "rocky" / NAMES[2], "<repomd>newer</repomd>\n")
    later = repositories.checksums(spec)
    assert [name for name in NAMES if later[name] != found[name]] == [NAMES[2]]


def test_every_repository_that_does_not_answer_is_named(spec: base.Spec, tmp_path: Path) -> None:
    for name in NAMES[:2]:
        (tmp_path / "rocky" / name).unlink()
    with pytest.raises(LabError) as caught:
        repositories.checksums(spec)
    assert caught.value.message.count("404") == 2
    assert all(name in caught.value.message for name in NAMES[:2])


def test_debian_is_asked_where_the_build_has_its_packages_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STACKLAB_MIRROR", raising=False)
    monkeypatch.setattr(
        dib, "apt_mirrors", lambda codename: ("http://a.example/debian/", "http://s.example/s")
    )
    found = repositories.indexes(base.spec("debian-12", "lxc"))
    assert found["dists/bookworm/InRelease"] == "http://a.example/debian/dists/bookworm/InRelease"
    assert (
        found["dists/bookworm-security/InRelease"] == "http://s.example/s/dists/bookworm-security/InRelease"
    )
    mirrored = repositories.indexes(base.spec("debian-12", "lxc", mirror="http://m.example/debian"))
    assert mirrored["dists/bookworm-security/InRelease"] == (
        "http://m.example/debian-security/dists/bookworm-security/InRelease"
    )
    monkeypatch.setattr(dib, "apt_mirrors", lambda codename: ("", ""))
    with pytest.raises(LabError, match="no mirror") as caught:
        repositories.indexes(base.spec("debian-12", "lxc"))
    assert "--mirror" in caught.value.hint
