"""Foreign files: their sha512, kept; their format; what is refused before anything is sent.

Order among the images of a Glance in memory; the real one's are in tests/integration/test_glance.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from keystoneauth1 import exceptions as denied

from stacklab import (
    catalogue,
    clouds,
    files,
    glance,
    glance_api,
    glance_keep,
    glance_send,
    guestbuild,
    images,
    show,
    ui,
    upload,
    upload_bars,
    upload_hash,
    variants,
)
from stacklab.errors import InvalidInput, LabError
from stacklab.guests import GuestImage
from tests.unit.fake_glance import FakeGlance


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
    with pytest.raises(InvalidInput, match=r"^file: .*a\.qcow2 is not there$"):
        upload.foreign(tmp_path / "a.qcow2")
    with pytest.raises(InvalidInput, match="is a directory"):
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
        ("a.ari", b"\x1f\x8b\x08", "ari"),
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
    with pytest.raises(InvalidInput, match="format cannot be told"):
        upload.foreign(path)
    with pytest.raises(InvalidInput, match="format cannot be told"):
        upload.foreign(path, disk_format="rwa")
    path.write_bytes(b"QFI\xfb")
    with pytest.raises(InvalidInput, match="is qcow2, not raw"):
        upload.foreign(path, disk_format="raw")
    (tmp_path / "a.qcow2.xz").write_bytes(b"\xfd7zXZ\x00")
    with pytest.raises(InvalidInput, match="it is compressed by xz, not a disk image") as caught:
        upload.foreign(tmp_path / "a.qcow2.xz")
    assert "unpack" in caught.value.hint
    for content, name in {b"\x1f\x8b\x08": "gzip", b"BZh9": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}.items():
        (tmp_path / "a.raw").write_bytes(content)
        with pytest.raises(InvalidInput, match=f"it is compressed by {name}, not raw"):
            upload.foreign(tmp_path / "a.raw")
    # Its data are in other files, and would not go up.
    path = tmp_path / "a.vmdk"
    path.write_bytes(b"# Disk DescriptorFile\nversion=1\n")
    with pytest.raises(InvalidInput, match="is only the description of a vmdk, not vmdk"):
        upload.foreign(path)


def test_two_of_one_name(tmp_path: Path) -> None:
    image = GuestImage("twin", tmp_path / "a", "raw", "0", 1, 1, 1)
    with pytest.raises(LabError, match="several images are called twin"):
        upload.images(object(), [upload.Job(image), upload.Job(image)])


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("debian", {"os_hidden": False}, True),
        ("debian", {}, True),
        ("debian-20260101-120000", {"os_hidden": True}, True),
        ("debian-20260101-120000", {"os_hidden": False}, False),
        ("debian-20260101-120000", {"stacklab_replaced": "debian"}, True),
        ("debian-20260101-120000", {"stacklab_replaced": "debian-20260101-120000"}, False),
        ("debian-20260101-120000", {}, False),
        ("debian-12", {"os_hidden": True}, False),
        ("debian (upload not finished)", {"os_hidden": True}, False),
        (None, {"os_hidden": True}, False),
    ],
)
def test_images_of_a_name(name: str, more: dict[str, Any], expected: bool) -> None:
    assert glance_keep.of_name({"name": name, **more}, "debian") is expected


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


def test_what_is_asked_for_wrongly_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestbuild, "build", lambda _entry: pytest.fail("it builds"))
    adapter = FakeGlance()
    with pytest.raises(InvalidInput, match="import: unknown method 'glance-dirct': did you mean 'glance-d"):
        images.send(adapter, ["probe"], method="glance-dirct")
    with pytest.raises(InvalidInput, match="file: it goes up instead of the catalogue's images"):
        images.send(adapter, ["probe"], file="a.qcow2")
    with pytest.raises(InvalidInput, match="unknown image 'probee'"):
        images.send(adapter, ["probee"])
    with pytest.raises(InvalidInput, match="web-download: debian-12 is made here") as caught:
        images.send(adapter, ["probe", "debian-12", "debian-12-cloud"], method="web-download")
    assert [problem.path for problem in caught.value.problems] == ["import"] * 2
    with pytest.raises(InvalidInput, match=r"import: web-download: a\.qcow2 is made here"):
        images.send(adapter, [], file="a.qcow2", method="web-download")
    assert adapter.asked == []


# -- order in Glance ---------------------------------------------------------------------


def image_of(path: Path, data: bytes) -> GuestImage:
    path.write_bytes(data)
    return GuestImage("probe", path, "raw", hashlib.sha512(data).hexdigest(), len(data), 1, 64)


def send(adapter: FakeGlance, image: GuestImage, keep: int = 1) -> glance.Uploaded:
    return glance.upload(adapter, image, visibility="private", deadline=30.0, keep=keep)


def test_only_what_never_was_whole_is_swept(tmp_path: Path) -> None:
    """A deactivated image is an administrator's decision, whatever its age."""
    adapter = FakeGlance()
    for status in ("queued", "saving", "uploading", "importing", "killed"):
        adapter.add(status, status=status, name="other")
    adapter.add("not committed", name=f"other{glance_api.UNFINISHED}")
    adapter.add("deactivated", status="deactivated", name="other")
    adapter.add("being deleted", status="pending_delete", name="other")
    done = send(adapter, image_of(tmp_path / "a", b"one"))
    assert set(adapter.rows) == {"deactivated", "being deleted", done.id}


@pytest.mark.parametrize("algorithm", ["sha512", "sha256", ""])
def test_the_same_again_whatever_glance_hashes_by(algorithm: str, tmp_path: Path) -> None:
    """sha256 is a choice of the cloud's; a Glance older than Rocky has md5 sums, and hides nothing."""
    adapter = FakeGlance(algorithm)
    one, two = image_of(tmp_path / "a", b"one"), image_of(tmp_path / "b", b"two")
    first, second = send(adapter, one), send(adapter, two)
    assert adapter.seen() == [second.id]
    assert set(adapter.rows) == {first.id, second.id}
    adapter.asked.clear()
    assert send(adapter, two) == glance.Uploaded(second.id, "unchanged")
    assert adapter.asked == ["GET", "GET"]
    assert send(adapter, one) == glance.Uploaded(first.id, "properties")
    assert adapter.seen() == [first.id]
    assert not [line for line in adapter.asked if line.startswith(("PUT", "POST"))]
    adapter.rows[first.id] |= {"os_hash_value": "0" * 64, "checksum": "0" * 32}
    assert send(adapter, one).status == "uploaded"


@pytest.mark.parametrize("code", [429, 500, 503, 0])
def test_a_glance_that_starts_again_during_an_upload(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a load balancer it answers all the time, by 503 until it is there again; else by nothing."""
    monkeypatch.setattr(glance_send, "FIRST_PAUSE", 0.01)
    adapter, real, broken = FakeGlance(), FakeGlance._answer, ["PUT", "GET", "GET", "GET"]

    def answer(self: FakeGlance, method: str, path: str, more: dict[str, Any]) -> tuple[int, Any]:
        if path and broken[:1] == [method]:
            broken.pop(0)
            if not code:
                raise denied.ConnectFailure("nobody is there")
            return code, "no server is available"
        return real(self, method, path, more)

    monkeypatch.setattr(FakeGlance, "_answer", answer)
    done = send(adapter, image_of(tmp_path / "a", b"one"))
    assert (adapter.seen(), broken) == ([done.id], [])
    broken += ["PUT", *["GET"] * 99]
    monkeypatch.setattr(glance_send, "SAVING", 0.05)
    with pytest.raises(LabError, match=str(code or "nobody is there")):
        send(adapter, image_of(tmp_path / "b", b"two"))
    assert adapter.seen() == [done.id]


@pytest.mark.parametrize("text", ["<html>log in</html>", "{}", "[]"])
def test_what_answers_is_no_glance(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where image_endpoint_override is the address of a portal."""
    adapter = FakeGlance()
    answer = SimpleNamespace(status_code=200, text=text, headers={}, json=lambda: json.loads(text))
    monkeypatch.setattr(adapter, "request", lambda *_, **__: answer)
    here = glance_api.Glance(adapter, time.monotonic() + 30)
    calls: list[Callable[[], object]] = [
        lambda: glance.list_images(adapter),
        lambda: send(adapter, image_of(tmp_path / "a", b"one")),
        lambda: here.get("1"),
        here.import_methods,
        lambda: glance_send._task(here, "1"),
    ]
    for call in calls:
        with pytest.raises(LabError, match="what answers at http://glance is no Glance") as caught:
            call()
        assert "image_endpoint_override" in caught.value.hint


def test_only_what_may_be_the_same_is_hashed(tmp_path: Path, hashed: list[str]) -> None:
    adapter = FakeGlance("sha256")
    rows = [adapter.add("1", data=b"three"), adapter.add("2", data=b"two", status="deactivated")]
    image = image_of(tmp_path / "a", b"one")
    run = glance.Upload(adapter, image, 30.0)
    assert run._same_content(rows) is None
    assert hashed == []
    rows += [adapter.add(name, data=b"two") for name in ("3", "4")]
    assert run._same_content(rows) is None
    assert hashed == [str(image.path)]


def test_a_wrong_digest_is_told_with_its_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = FakeGlance("sha256")
    real = adapter._hashed
    monkeypatch.setattr(adapter, "_hashed", lambda data: real(data[:-1] + b"x") if data else real(data))
    wrong, right = (hashlib.sha256(data).hexdigest() for data in (b"onx", b"one"))
    with pytest.raises(
        LabError, match=f"3 bytes, sha256 {wrong}; it should be active, 3 bytes, sha256 {right}"
    ):
        send(adapter, image_of(tmp_path / "a", b"one"))
    assert adapter.rows == {}


def test_a_look_back_only_after_a_move(tmp_path: Path) -> None:
    adapter = FakeGlance()
    send(adapter, image_of(tmp_path / "a", b"one"))
    first = list(adapter.asked)
    adapter.asked.clear()
    done = send(adapter, image_of(tmp_path / "b", b"two"))
    lists = [line for line in adapter.asked if line == "GET"]
    assert len(lists) == first.count("GET") + 1
    assert adapter.asked[-1] == "GET"
    assert adapter.seen() == [done.id]


def test_a_colon_in_a_name(tmp_path: Path) -> None:
    adapter = FakeGlance()
    for data in (b"one", b"two", b"three"):
        done = send(adapter, replace(image_of(tmp_path / "a", data), name="ubuntu:22.04"))
        assert adapter.seen("ubuntu:22.04") == [done.id]
    assert len(adapter.rows) == 2


@pytest.mark.parametrize("algorithm", ["sha512", ""])
def test_a_date_in_a_name_of_its_own_makes_no_older_version(algorithm: str, tmp_path: Path) -> None:
    adapter = FakeGlance(algorithm)
    names = ("backup-20261126-101500", "backup-20261127-101500", "backup")
    for number, name in enumerate(names):
        send(adapter, replace(image_of(tmp_path / name, b"x" * number), name=name), keep=0)
    assert [(row["name"], row.get("os_hidden", False)) for row in adapter.rows.values()] == [
        (name, False) for name in names
    ]
    assert glance.prune(adapter, [], yes=True) == []
    assert len(adapter.rows) == 3
    # What stacklab has replaced is one, and is found by the name that it had.
    send(adapter, replace(image_of(tmp_path / "new", b"new"), name="backup"))
    [old] = [side for side in glance.listed(adapter, []) if side.remote and side.remote.before]
    assert old.remote and old.remote.before == "backup"
    assert [one.id for one in glance.prune(adapter, ["backup"], yes=True)] == [old.remote.id]
    assert {row["name"] for row in adapter.rows.values()} == set(names)


def test_two_uploads_that_move_each_other_away() -> None:
    adapter = FakeGlance()
    for name in ("a", "b"):
        adapter.add(name)
    adapter.add("old", updated_at="2025-12-01T00:00:00Z")
    here = glance_api.Glance(adapter, time.monotonic() + 30)
    rows = here.ours()  # both have seen all three before either moves any
    assert glance_keep.rotate(here, rows, "probe", "a", 1) == []
    assert adapter.seen() == ["a"]
    assert set(adapter.rows) == {"a", "b"}
    assert glance_keep.rotate(here, rows, "probe", "b", 1) == []
    assert adapter.seen() == ["b"]
    assert set(adapter.rows) == {"a", "b"}


def test_an_image_that_another_upload_deleted_is_told() -> None:
    adapter = FakeGlance()
    for name in ("a", "b"):
        adapter.add(name)
    here = glance_api.Glance(adapter, time.monotonic() + 30)
    rows = here.ours()
    glance_keep.rotate(here, rows, "probe", "a", 0)
    with pytest.raises(LabError, match="probe was deleted"):
        glance_keep.rotate(here, rows, "probe", "b", 0)
    assert set(adapter.rows) == {"a"}


def test_an_image_that_another_upload_put_back_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = FakeGlance()
    for name in ("a", "b"):
        adapter.add(name)
    here = glance_api.Glance(adapter, time.monotonic() + 30)
    rows = here.ours()
    look = glance_keep._is_back

    def just_before(*arguments: Any) -> bool:
        """The other upload moves, looks back and deletes between this one's moves and its deletions."""
        monkeypatch.setattr(glance_keep, "_is_back", look)
        glance_keep.rotate(here, rows, "probe", "b", 0)
        return look(*arguments)

    monkeypatch.setattr(glance_keep, "_is_back", just_before)
    glance_keep.rotate(here, rows, "probe", "a", 0)
    assert adapter.seen() == ["b"]


def test_pruned_by_the_catalogues_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.yaml"
    system = "properties: {os_distro: d, os_version: 1}"
    own.write_text(
        "images:\n  mine: {builder: dib, title: My own, elements: [a], formats: [qcow2, raw], "
        + system
        + "}\n"
    )
    adapter = FakeGlance()
    titles = ("Debian 12", "Debian 12 (cloud)", "My own", "My own (raw)", "of a file")
    for title in titles:
        adapter.add(title, name=title)
        adapter.add(f"{title}, old", name=f"{title}-20260101-000000", os_hidden=True)
    monkeypatch.setattr(clouds, "adapter", lambda _name: adapter)
    before = set(adapter.rows)
    show.pruned(None, "cloud", ["debian-12", "mine"], str(own), yes=False)
    assert set(adapter.rows) == before
    assert "say --yes" in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="unknown image 'Debian 12'"):
        show.pruned(None, "cloud", ["mine", "Debian 12"], str(own), yes=True)
    show.pruned(None, "cloud", ["debian-12", "mine"], str(own), yes=True)
    assert before - set(adapter.rows) == {"Debian 12, old", "My own, old", "My own (raw), old"}
    show.pruned(None, "cloud", [], "", yes=True)
    assert set(adapter.rows) == set(titles)


def test_the_name_in_glance_is_the_one_that_is_pruned(tmp_path: Path) -> None:
    entry = catalogue.shipped()["debian-12"]
    described = {"sha512": "", "size": 1, "source": "private", "built": 0}
    for disk_format in entry.formats:
        image = variants.image(entry, tmp_path / "a", disk_format, described)
        assert image.name in images.titles(["debian-12"])
