"""Uploads to a real Glance: sent, found again, replaced, imported, listed, pruned."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from keystoneauth1.adapter import Adapter

from stacklab import files, glance, upload, upload_hash
from stacklab.errors import LabError
from stacklab.guests import GuestImage
from stacklab.upload import Job
from tests.integration import needs
from tests.integration.glance_proxy import Fault, Proxy

if TYPE_CHECKING:
    from tests.integration.openstack_services import Services

pytest_plugins = [f"{__package__}.openstack_services" if __package__ else "openstack_services"]
pytestmark = pytest.mark.integration

MIB = 1 << 20
OCTETS = {"Content-Type": "application/octet-stream"}
PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "cache_dir", lambda: tmp_path / "cache")


@pytest.fixture
def proxy(services: Services) -> Iterator[Proxy]:
    found = Proxy(services.glance)
    yield found
    found.close()


def guest(path: Path, size: int = 4 * MIB, name: str = "probe", disk_format: str = "raw") -> GuestImage:
    """An image file with new random content."""
    data = os.urandom(size)
    path.write_bytes(data)
    sha512 = hashlib.sha512(data).hexdigest()
    properties = {"os_distro": "debian", "hw_disk_bus": "virtio"}
    return GuestImage(name, path, disk_format, sha512, size, 1, 64, properties)


def send(adapter: Adapter, image: GuestImage, **more: Any) -> glance.Uploaded:
    return glance.upload(adapter, image, **{"visibility": "public", "deadline": 60.0, **more})


def rows(adapter: Adapter, hidden: bool = False) -> list[dict[str, Any]]:
    found = adapter.get("/v2/images", params={"os_hidden": str(hidden).lower()}).json()["images"]
    return [dict(row) for row in found]


def everything(adapter: Adapter) -> list[dict[str, Any]]:
    return rows(adapter) + rows(adapter, hidden=True)


def test_upload_then_again(services: Services, adapter: Adapter, proxy: Proxy, tmp_path: Path) -> None:
    image = guest(tmp_path / "a")
    told: list[tuple[int, int]] = []
    done = send(adapter, image, progress=lambda sent, size: told.append((sent, size)))
    assert done.status == "uploaded"
    assert told[-1] == (image.size, image.size)
    assert told == sorted(told)
    [row] = everything(adapter)
    assert (row["id"], row["name"], row["status"], row["visibility"]) == (
        done.id,
        "probe",
        "active",
        "public",
    )
    assert (row["os_hash_value"], row["size"], row["min_ram"]) == (image.sha512, image.size, 64)
    assert (row["os_distro"], row["tags"]) == ("debian", ["stacklab"])
    assert not list((tmp_path / "cache" / "uploads").iterdir())

    again = send(services.adapter(port=proxy.port), image)
    assert again == glance.Uploaded(done.id, "unchanged")
    assert proxy.requests
    assert {one.line.split()[0] for one in proxy.requests} == {"GET"}
    assert proxy.sent == 0

    other = replace(image, properties={**image.properties, "os_version": "12"}, min_ram=96)
    assert send(services.adapter(port=proxy.port), other) == glance.Uploaded(done.id, "properties")
    assert proxy.puts() == []
    assert proxy.sent < 1000
    [row] = everything(adapter)
    assert (row["os_version"], row["min_ram"]) == ("12", 96)

    # What a person set by hand stays; what the catalogue has dropped goes.
    patch = [{"op": "add", "path": "/of_a_person", "value": "x"}]
    adapter.patch(f"/v2/images/{done.id}", json=patch, headers=PATCH).raise_for_status()
    fewer = replace(image, properties={"os_distro": "debian"})
    assert send(adapter, fewer) == glance.Uploaded(done.id, "properties")
    [row] = everything(adapter)
    assert {"os_distro", "of_a_person"} <= set(row) and not {"os_version", "hw_disk_bus"} & set(row)
    assert send(adapter, fewer) == glance.Uploaded(done.id, "unchanged")


def test_every_property(adapter: Adapter, tmp_path: Path) -> None:
    """The names of SCS-0102, and text that JSON and HTTP could trip over."""
    properties = {
        "architecture": "x86_64",
        "hw_disk_bus": "scsi",
        "hw_qemu_guest_agent": "yes",
        "hw_rng_model": "virtio",
        "hw_scsi_model": "virtio-scsi",
        "image_build_date": "2026-11-21",
        "image_description": 'Grüße, "quoted" / ~tilde~ \\ 100 %',
        "image_original_user": "debian",
        "image_source": "https://example.org/a?b=c&d=e",
        "os_distro": "debian",
        "os_purpose": "generic",
        "os_version": "12",
        "patchlevel": "7",
        "provided_until": "2028-06-30",
        "replace_frequency": "monthly",
        "trait:HW_CPU_X86_AVX2": "required",
    }
    image = replace(guest(tmp_path / "a", MIB), properties=properties, min_disk=5, min_ram=512)
    send(adapter, image, visibility="community")
    [row] = [dict(adapter.get(f"/v2/images/{row['id']}").json()) for row in community(adapter)]
    assert {name: row.get(name) for name in properties} == properties
    assert (row["min_disk"], row["min_ram"], row["visibility"]) == (5, 512, "community")
    assert row["tags"] == ["stacklab"]


def community(adapter: Adapter) -> list[dict[str, Any]]:
    return list(adapter.get("/v2/images", params={"visibility": "community"}).json()["images"])


def test_changed_content_replaces_and_hides(adapter: Adapter, tmp_path: Path) -> None:
    images = [guest(tmp_path / str(number), MIB) for number in range(3)]
    first, second, third = (send(adapter, image).id for image in images)
    [visible] = rows(adapter)
    assert (visible["id"], visible["name"]) == (third, "probe")
    [hidden] = rows(adapter, hidden=True)
    assert hidden["id"] == second
    assert hidden["name"].startswith(f"probe-{datetime.now(UTC):%Y}")
    assert first not in {row["id"] for row in everything(adapter)}
    # Back to the one before: not a byte to send, and still only one is visible.
    assert send(adapter, images[1]) == glance.Uploaded(second, "properties")
    assert [row["id"] for row in rows(adapter)] == [second]
    assert [row["id"] for row in rows(adapter, hidden=True)] == [third]
    listed = {entry.id: entry for entry in glance.list_images(adapter)}
    assert (listed[second].hidden, listed[second].ours, listed[second].name) == (False, True, "probe")
    assert listed[third].hidden


def test_a_colon_and_a_date_in_names(adapter: Adapter, tmp_path: Path) -> None:
    names = ("ubuntu:22.04-20261126-101500", "ubuntu:22.04-20261127-101500", "ubuntu:22.04", "ubuntu:22.04")
    for number, name in enumerate(names):
        send(adapter, guest(tmp_path / str(number), MIB, name))
    assert sorted(row["name"] for row in rows(adapter)) == sorted(set(names))
    [hidden] = rows(adapter, hidden=True)
    assert [one.id for one in glance.prune(adapter, ["ubuntu:22.04"])] == [hidden["id"]]


def test_images_of_others_are_left_alone(adapter: Adapter, tmp_path: Path) -> None:
    image = guest(tmp_path / "a", MIB)
    theirs = {"name": "probe", "disk_format": "raw", "container_format": "bare"}
    foreign = adapter.post("/v2/images", json=theirs).json()["id"]
    adapter.put(f"/v2/images/{foreign}/file", data=image.path.read_bytes(), headers=OCTETS)
    done = send(adapter, image)
    assert done.id != foreign
    after = adapter.get(f"/v2/images/{foreign}").json()
    assert (after["name"], after["os_hidden"], after["visibility"]) == ("probe", False, "shared")
    # The same content under another name of ours is another image.
    other = send(adapter, replace(image, name="other"))
    assert other.status == "uploaded"
    assert {row["name"] for row in rows(adapter)} == {"probe", "other"}


def test_four_in_parallel(
    services: Services, adapter: Adapter, proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(guest(tmp_path / f"{number}", 6 * MIB, f"guest-{number}")) for number in range(4)]
    # Slow enough that they are all under way at once.
    proxy.pace = 2 * MIB
    done = upload.images(services.adapter(port=proxy.port), jobs)
    assert proxy.most_at_once == 4
    assert list(done) == [job.image.name for job in jobs]
    assert {one.status for one in done.values()} == {"uploaded"}
    assert {(row["name"], row["os_hash_value"]) for row in rows(adapter)} == {
        (job.image.name, job.image.sha512) for job in jobs
    }
    said = capsys.readouterr().err
    for job in jobs:
        assert f"{job.image.name}: uploading 6.0 MiB" in said
        assert f"{job.image.name}: uploaded in " in said
    again = upload.images(services.adapter(port=proxy.port), jobs)
    assert {one.status for one in again.values()} == {"unchanged"}
    assert len(proxy.puts()) == 4


def test_one_of_several_fails(adapter: Adapter, tmp_path: Path) -> None:
    good = guest(tmp_path / "good", MIB, "good")
    bad = replace(guest(tmp_path / "bad", MIB, "bad"), sha512="0" * 128)
    with pytest.raises(LabError, match=r"1 of 2 images were not uploaded:\n  bad: ") as caught:
        upload.images(adapter, [Job(bad), Job(good)])
    assert caught.value.hint
    [row] = everything(adapter)
    assert (row["name"], row["status"]) == ("good", "active")


@pytest.mark.parametrize("disk_format", ["raw", "qcow2", "vmdk", "vdi", "vhd", "iso"])
def test_formats(adapter: Adapter, tmp_path: Path, disk_format: str) -> None:
    """Glance looks into what claims to be one of these: so these are real ones, if small."""
    path = made(tmp_path, disk_format)
    image = upload.foreign(path, name="probe")
    assert image.disk_format == disk_format
    send(adapter, image)
    [row] = everything(adapter)
    assert (row["disk_format"], row["container_format"], row["os_hash_value"]) == (
        disk_format,
        "bare",
        hashlib.sha512(path.read_bytes()).hexdigest(),
    )


def test_a_file_of_unknown_sha512(services: Services, adapter: Adapter, proxy: Proxy, tmp_path: Path) -> None:
    """Its sha512 is taken while it is sent, and decides all the same."""
    path = guest(tmp_path / "a").path
    through = services.adapter(port=proxy.port)
    proxy.faults.append(Fault("flip"))
    with pytest.raises(LabError, match="it should be active"):
        send(through, upload.foreign(path, disk_format="raw"))
    assert everything(adapter) == []
    upload_hash.forget(path)
    done = send(through, upload.foreign(path, disk_format="raw"))
    upload_hash.forget(path)
    sent = proxy.sent
    image = upload.foreign(path, disk_format="raw")
    assert image.sha512 == ""
    assert send(through, image) == glance.Uploaded(done.id, "unchanged")
    assert proxy.sent == sent


def made(directory: Path, disk_format: str) -> Path:
    raw = directory / "disk.img"
    raw.write_bytes(os.urandom(MIB) if disk_format != "iso" else bytes(32769) + b"CD001" + bytes(MIB))
    if disk_format in ("raw", "iso"):
        return raw.rename(directory / "disk.iso") if disk_format == "iso" else raw
    tool = needs.program("qemu-img")
    path = directory / f"disk.{disk_format}"
    driver = {"vhd": "vpc"}.get(disk_format, disk_format)
    more = ["-o", "subformat=streamOptimized"] if disk_format == "vmdk" else []
    subprocess.run([tool, "convert", "-f", "raw", "-O", driver, *more, raw, path], check=True, timeout=60)
    return path


def test_kernel_ramdisk_and_machine(adapter: Adapter, tmp_path: Path) -> None:
    """Amazon's three: kernel and ramdisk first, then the image that names them."""
    kernel = send(adapter, guest(tmp_path / "vmlinuz", MIB, "probe-kernel", "aki"))
    ramdisk = send(adapter, guest(tmp_path / "initrd", MIB, "probe-ramdisk", "ari"))
    image = guest(tmp_path / "disk", MIB, "probe", "ami")
    properties = {**image.properties, "kernel_id": kernel.id, "ramdisk_id": ramdisk.id}
    send(adapter, replace(image, properties=properties))
    found = {row["name"]: row for row in everything(adapter)}
    assert {name: (row["disk_format"], row["container_format"]) for name, row in found.items()} == {
        "probe-kernel": ("aki", "aki"),
        "probe-ramdisk": ("ari", "ari"),
        "probe": ("ami", "ami"),
    }
    assert (found["probe"]["kernel_id"], found["probe"]["ramdisk_id"]) == (kernel.id, ramdisk.id)


def test_glance_direct(services: Services, adapter: Adapter, proxy: Proxy, tmp_path: Path) -> None:
    image = guest(tmp_path / "a")
    done = send(services.adapter(port=proxy.port), image, method="glance-direct")
    assert proxy.puts() == [f"/v2/images/{done.id}/stage"]
    [row] = everything(adapter)
    assert (row["id"], row["status"], row["visibility"]) == (done.id, "active", "public")
    assert (row["os_hash_value"], row["name"]) == (image.sha512, "probe")
    assert send(adapter, image, method="glance-direct").status == "unchanged"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A web server on 127.0.0.1: its directory and its address."""
    root = tmp_path / "site"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_web_download(
    services: Services, adapter: Adapter, proxy: Proxy, site: tuple[Path, str], tmp_path: Path
) -> None:
    older = send(adapter, guest(tmp_path / "a", MIB))
    image = guest(site[0] / "b")
    again = functools.partial(send, services.adapter(port=proxy.port), image, method="web-download")
    # Not there; other content than expected: neither leaves anything, nor hides the older one.
    with pytest.raises(LabError, match="could not import probe by web-download") as caught:
        again(uri=f"{site[1]}/nothing")
    assert "reach" in caught.value.hint
    (site[0] / "other").write_bytes(os.urandom(image.size))
    with pytest.raises(LabError, match="it should be active"):
        again(uri=f"{site[1]}/other")
    [row] = everything(adapter)
    assert (row["id"], row["os_hidden"]) == (older.id, False)

    done = again(uri=f"{site[1]}/b")
    assert proxy.puts() == []
    [row] = rows(adapter)
    assert (row["id"], row["status"], row["os_hash_value"]) == (done.id, "active", image.sha512)
    assert again(uri=f"{site[1]}/b").status == "unchanged"
    with pytest.raises(LabError, match="needs an address"):
        again()


def test_import_that_is_not_offered(
    adapter: Adapter, proxy: Proxy, services: Services, tmp_path: Path
) -> None:
    offer = '{"import-methods": {"value": ["copy-image"]}}'
    kind = "Content-Type: application/json\r\n"
    proxy.faults.append(Fault("answer", match="GET /v2/info/import ", code=200, text=offer, headers=kind))
    with pytest.raises(LabError, match="does not offer the import method glance-direct") as caught:
        send(services.adapter(port=proxy.port), guest(tmp_path / "a", MIB), method="glance-direct")
    assert "copy-image" in caught.value.hint
    assert everything(adapter) == []


def test_listed_side_by_side(adapter: Adapter, tmp_path: Path) -> None:
    old, new = guest(tmp_path / "a", MIB), guest(tmp_path / "b", MIB)
    only_here = guest(tmp_path / "c", MIB, "only-here")
    adapter.post("/v2/images", json={"name": "theirs", "disk_format": "raw", "container_format": "bare"})
    send(adapter, old)
    [missing, side, theirs] = glance.listed(adapter, [new, only_here])
    assert (missing.name, missing.remote, missing.equal) == ("only-here", None, None)
    assert (side.name, side.equal, side.remote and side.remote.hidden) == ("probe", False, False)
    send(adapter, new)
    sides = glance.listed(adapter, [new, only_here])
    assert [
        (side.name, side.equal, side.remote is not None and side.remote.hidden) for side in sides[1:3]
    ] == [
        ("probe", True, False),
        ("probe", False, True),
    ]
    assert (sides[0].name, sides[0].remote, sides[0].equal) == ("only-here", None, None)
    assert (theirs.name, theirs.local) == ("theirs", None)
    assert sides[3].remote is not None
    assert (sides[3].remote.name, sides[3].remote.ours) == ("theirs", False)
    assert len(sides) == 4


def test_prune_needs_yes(adapter: Adapter, tmp_path: Path) -> None:
    for name in ("probe", "other"):
        for number in range(3):
            send(adapter, guest(tmp_path / "a", MIB, name), keep=5, visibility="private")
            assert len([row for row in everything(adapter) if row["name"].startswith(name)]) == number + 1
    theirs = {"name": "probe-20260101-000000", "disk_format": "raw", "container_format": "bare"}
    foreign = adapter.post("/v2/images", json={**theirs, "os_hidden": True}).json()["id"]
    adapter.put(f"/v2/images/{foreign}/file", data=b"x", headers=OCTETS)
    before = {row["id"] for row in everything(adapter)}
    would = glance.prune(adapter, ["probe"])
    assert [(one.done, one.size) for one in would] == [(False, MIB)] * 2
    assert {row["id"] for row in everything(adapter)} == before
    protect = [{"op": "replace", "path": "/protected", "value": True}]
    adapter.patch(f"/v2/images/{would[0].id}", json=protect, headers=PATCH)
    done = glance.prune(adapter, ["probe"], yes=True)
    assert [(one.id, one.done, one.why) for one in done] == [
        (would[0].id, False, "protected"),
        (would[1].id, True, ""),
    ]
    assert {row["id"] for row in everything(adapter)} == before - {would[1].id}
    assert len(glance.prune(adapter, [], yes=True)) == 3
    assert len([row for row in rows(adapter) if row["name"] in ("probe", "other")]) == 2
    assert foreign in {row["id"] for row in everything(adapter)}


def test_leftovers_of_ours_are_swept(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def queued(*tags: str) -> str:
        row = {"name": "left", "disk_format": "raw", "container_format": "bare", "tags": list(tags)}
        return str(adapter.post("/v2/images", json={**row, "id": str(uuid.uuid4())}).json()["id"])

    image = guest(tmp_path / "a", MIB)
    ours, theirs, dead, alive = queued("stacklab"), queued(), queued("stacklab"), queued("stacklab")
    uploads = tmp_path / "cache" / "uploads"
    uploads.mkdir(parents=True)
    (uploads / f"{dead}.lock").touch()
    with files.lock(uploads / f"{alive}.lock", "an upload"):
        # Of this machine: known to be dead. Of others: only its age tells.
        send(adapter, image)
        assert {row["id"] for row in everything(adapter)} >= {ours, theirs, alive}
        assert dead not in {row["id"] for row in everything(adapter)}
        monkeypatch.setattr(glance, "_STALE", -5.0)
        send(adapter, image)
        left = {row["id"] for row in everything(adapter)}
    assert ours not in left
    assert left >= {theirs, alive}
