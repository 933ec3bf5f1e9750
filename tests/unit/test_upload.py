"""Foreign files: their sha512, kept; their format; and what is refused before anything is sent."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stacklab import files, glance_api, glance_keep, ui, upload, upload_bars, upload_hash
from stacklab.errors import LabError
from stacklab.guests import GuestImage


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(upload_hash, "_YOUNG", -1.0)
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each time that a file is really read."""
    seen: list[str] = []
    real = hashlib.file_digest

    def digest(handle: Any, name: Any) -> Any:
        seen.append(handle.name)
        return real(handle, name)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return seen


def test_sha512_is_taken_once(tmp_path: Path, hashed: list[str]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    expected = hashlib.sha512(b"one").hexdigest()
    assert [upload_hash.sha512_of(path) for _ in range(3)] == [expected] * 3
    assert len(hashed) == 1
    (tmp_path / "link").symlink_to(path)
    assert upload_hash.sha512_of(tmp_path / "link") == expected
    assert len(hashed) == 1


@pytest.mark.parametrize("what", ["size", "mtime", "copy", "broken"])
def test_sha512_is_taken_anew(tmp_path: Path, cache: Path, hashed: list[str], what: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    upload_hash.sha512_of(path)
    before = path.stat()
    if what == "size":
        path.write_bytes(b"three")
    elif what == "mtime":
        path.write_bytes(b"two")
        os.utime(path, ns=(1, before.st_mtime_ns + 1))
    elif what == "copy":
        # As cp -p or rsync make it: another content, the same size and time.
        time.sleep(0.02)
        path.write_bytes(b"two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        for kept in (cache / "sha512").iterdir():
            kept.write_text("{")
    assert upload_hash.sha512_of(path) == hashlib.sha512(path.read_bytes()).hexdigest()
    assert len(hashed) == 2


def test_forgotten_and_young(tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    upload_hash.sha512_of(path)
    upload_hash.forget(path)
    upload_hash.sha512_of(path)
    assert len(hashed) == 2
    # Changed within the same tick of the clock nothing would show it: such a hash is not kept.
    upload_hash.forget(path)
    monkeypatch.setattr(upload_hash, "_YOUNG", 60.0)
    upload_hash.sha512_of(path)
    upload_hash.sha512_of(path)
    assert len(hashed) == 4


def test_sha512_later(tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert upload_hash.Later(path, "known").value(lambda: None) == "known"
    assert hashed == []
    later = upload_hash.Later(path)
    later.start()
    assert {later.value(lambda: None) for _ in range(3)} == {hashlib.sha512(b"one").hexdigest()}
    assert len(hashed) == 1
    with pytest.raises(LabError, match="is not there"):
        upload_hash.Later(tmp_path / "b").value(lambda: None)
    # Who has no time left does not wait for it.
    release = threading.Event()
    monkeypatch.setattr(upload_hash, "sha512_of", lambda _path: str(release.wait(30)))

    def left() -> None:
        raise LabError("the deadline is over")

    with pytest.raises(LabError, match="deadline"):
        upload_hash.Later(path).value(left)
    release.set()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="is not there"):
        upload.foreign(tmp_path / "a.qcow2")
    with pytest.raises(LabError, match="is a directory"):
        upload.foreign(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.img", b"QFI\xfb...", "qcow2"),
        ("a.vmdk", b"KDMV", "vmdk"),
        ("a.disk", bytes(64) + b"\x7f\x10\xda\xbe", "vdi"),
        ("a.vpc", b"conectix", "vhd"),
        ("a", bytes(32769) + b"CD001", "iso"),
        ("a.raw", b"x", "raw"),
        ("a.img", b"x", "raw"),
        ("a.aki", b"x", "aki"),
    ],
)
def test_formats(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    image = upload.foreign(path, properties={"os_distro": "x"})
    assert (image.disk_format, image.name, image.size) == (expected, "a", len(content))
    assert image.properties == {"os_distro": "x"}


def test_formats_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    with pytest.raises(LabError, match="format cannot be told"):
        upload.foreign(path)
    path.write_bytes(b"QFI\xfb")
    with pytest.raises(LabError, match="is qcow2, not raw"):
        upload.foreign(path, disk_format="raw")


def test_two_of_one_name(tmp_path: Path) -> None:
    image = GuestImage("twin", tmp_path / "a", "raw", "0", 1, 1, 1)
    with pytest.raises(LabError, match="several images are called twin"):
        upload.images(object(), [upload.Job(image), upload.Job(image)])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("debian", True),
        ("debian-20260101-120000", True),
        ("debian-12", False),
        ("debian (upload not finished)", False),
    ],
)
def test_family(name: str, expected: bool) -> None:
    assert bool(glance_keep.family("debian").fullmatch(name)) is expected


def test_retry_after() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    date = format_datetime(now, usegmt=True)
    later = format_datetime(now + timedelta(seconds=7), usegmt=True)
    for text, seconds in (("3", 3.0), (later, 7.0), ("", 0.0), ("soon", 0.0)):
        answer = SimpleNamespace(headers={"Retry-After": text, "Date": date})
        assert glance_api.retry_after(answer) == seconds


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "on_terminal", lambda: True)
    with upload_bars.display() as shown:
        told = [shown.begin(name, 100) for name in ("a", "b")]
        told[0](40, 100)
        told[1](100, 100)
        shown.end("b", "uploaded in 1 s")
        assert isinstance(shown, upload_bars.Bars)
        [first, second] = shown.bars.tasks
        assert (first.completed, second.completed) == (40, 100)
        assert second.description == "b: uploaded in 1 s"


def test_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(upload_bars, "_EVERY", 0.0)
    with upload_bars.display() as shown:
        shown.begin("a", 2 << 20)(1 << 20, 2 << 20)
        shown.end("a", "uploaded")
    assert capsys.readouterr().err.splitlines() == [
        "a: uploading 2.0 MiB",
        "a: 50 %, 1.0 MiB of 2.0 MiB",
        "a: uploaded",
    ]
