"""Downloads from a server on 127.0.0.1 that cuts, refuses, changes its mind and lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacklab import download
from stacklab.errors import InvalidInput, LabError
from tests.unit.broken_server import CONTENT, Server, running

DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(download, "_LONGEST_PAUSE", 0.02)
    with running() as found:
        yield found


def left(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_whole_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    seen: list[tuple[int, int]] = []
    download.fetch(server.url, path, DIGEST, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert left(tmp_path) == ["image.qcow2"]
    assert server.ranges == [""]


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(CONTENT)
    download.fetch(server.url, path, DIGEST)
    assert server.ranges == []
    path.write_bytes(CONTENT[1:])
    download.fetch(server.url, path, DIGEST)
    assert path.read_bytes() == CONTENT


def test_a_cut_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.cuts = [1 << 20, 1 << 20]
    path = tmp_path / "image.qcow2"
    seen: list[int] = []
    download.fetch(server.url, path, DIGEST, lambda done, total: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=1048576-", "bytes=2097152-"]
    assert seen == sorted(seen)
    assert left(tmp_path) == ["image.qcow2"]


def test_a_connection_that_is_cut_again_and_again(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000] * 12
    download.fetch(server.url, tmp_path / "image.qcow2", DIGEST)
    assert (tmp_path / "image.qcow2").read_bytes() == CONTENT


class Short:
    """An answer that ends early without an error, as urllib3 1.x gives it."""

    def iter_content(self, size: int) -> list[bytes]:
        return [b"x" * 10]


def test_an_early_end_that_nobody_reports(tmp_path: Path) -> None:
    with pytest.raises(download._Broken, match="ended after 10 of 20 bytes"):
        download._receive(Short(), tmp_path / "part", 0, 20, None)  # type: ignore[arg-type]


def test_what_a_broken_run_left_is_continued_by_the_next(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    server.cuts = [1 << 20, *([0] * 20)]
    with pytest.raises(LabError, match="cannot be downloaded: the connection ends early") as caught:
        download.fetch(server.url, path, DIGEST)
    assert "goes on from there" in caught.value.hint
    assert not path.exists()
    assert len(server.ranges) <= 1 + download._ATTEMPTS + 1
    server.cuts, server.ranges = [], []
    download.fetch(server.url, path, DIGEST)
    assert server.ranges == ["bytes=1048576-"]
    assert path.read_bytes() == CONTENT


def test_another_file_at_the_address_is_not_glued_to_the_old_one(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    server.cuts = [1 << 20, *([0] * 20)]
    with pytest.raises(LabError):
        download.fetch(server.url, path, DIGEST)
    server.cuts, server.tag, server.content = [], '"two"', CONTENT[::-1]
    digest = f"sha512:{hashlib.sha512(server.content).hexdigest()}"
    download.fetch(server.url, path, digest)
    assert path.read_bytes() == server.content


def test_a_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.takes_ranges = False
    server.cuts = [1 << 20]
    download.fetch(server.url, tmp_path / "image.qcow2", DIGEST)
    assert (tmp_path / "image.qcow2").read_bytes() == CONTENT


def test_a_server_without_ranges_that_always_cuts(server: Server, tmp_path: Path) -> None:
    server.takes_ranges = False
    server.cuts = [200_000, 100_000] * 20
    with pytest.raises(LabError, match="the connection ends early, again and again"):
        download.fetch(server.url, tmp_path / "image.qcow2", DIGEST)
    assert len(server.ranges) == 1 + download._ATTEMPTS


@pytest.mark.parametrize("tag", ['"one"', 'W/"weak"'])
def test_a_wrong_digest_leaves_no_file(tag: str, server: Server, tmp_path: Path) -> None:
    server.tag = tag
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(LabError, match=rf"the sha256 is [0-9a-f]{{64}}, not {DIGEST[7:]}"):
        download.fetch(server.url, tmp_path / "image.qcow2", DIGEST)
    assert left(tmp_path) == []


def test_an_earlier_part_that_is_rotten_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".image.qcow2.part").write_bytes(b"x" * 1000)
    (tmp_path / ".image.qcow2.part.of").write_text(server.tag)
    with pytest.raises(LabError, match="thrown away"):
        download.fetch(server.url, tmp_path / "image.qcow2", DIGEST)
    download.fetch(server.url, tmp_path / "image.qcow2", DIGEST)
    assert (tmp_path / "image.qcow2").read_bytes() == CONTENT


def test_refusals(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 429]
    download.fetch(server.url, tmp_path / "busy", DIGEST)
    server.codes = [404]
    with pytest.raises(LabError, match="the server says 404 Not Found"):
        download.fetch(server.url, tmp_path / "gone", DIGEST)
    assert left(tmp_path) == ["busy"]
    server.codes = [416]
    download.fetch(server.url, tmp_path / "short", DIGEST)


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FIRST_PAUSE", 0.0)
    with pytest.raises(LabError, match="cannot be downloaded: Connection refused"):
        download.fetch("http://127.0.0.1:9/x", tmp_path / "x", DIGEST)


A, B = "a" * 64, "b" * 128


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{B}  image.qcow2\n{A}  other\n", {"image.qcow2": f"sha512:{B}", "other": f"sha256:{A}"}),
        (f"{A.upper()} *./image.qcow2\n", {"image.qcow2": f"sha256:{A}"}),
        (f"# image.qcow2: 610 bytes\nSHA256 (image.qcow2) = {A}\n", {"image.qcow2": f"sha256:{A}"}),
        (f"SHA512 (i) = {B}\nSHA256 (i) = {A}\n", {"i": f"sha512:{B}"}),
        (f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nMD5 (i) = {'c' * 32}\n<html>", {}),
    ],
    ids=["sha512sum", "binary", "tagged", "both", "nothing"],
)
def test_lists_of_checksums(text: str, expected: dict[str, str]) -> None:
    assert download.parse(text) == expected


def test_published(server: Server) -> None:
    server.content = f"{A}  image.qcow2\n".encode()
    sums = server.url.replace("image.qcow2", "SUMS")
    assert download.published(sums, server.url) == f"sha256:{A}"
    with pytest.raises(LabError, match=r"SUMS has no checksum of other\.qcow2"):
        download.published(sums, "https://images.example/other.qcow2")
    server.codes = [500]
    with pytest.raises(LabError, match="cannot be had: 500 Server Error"):
        download.published(sums, server.url)


@pytest.mark.parametrize("url", ["http://[::1", "ftp://mirror.example", "mirror.example", "http://"])
def test_a_mirror_or_a_proxy_that_is_no_url(url: str) -> None:
    with pytest.raises(InvalidInput, match="is not a mirror"):
        download.use_mirror(url)
    with pytest.raises(InvalidInput, match="is not a proxy"):
        download.use_proxy(url)
